"""From a device of the topology to its VirtIO transport.  Loaded by guests that open a device, and by no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from guest_node.config import BEHIND_IOMMU, DeviceConfig
from guest_node.virtio.frontend import Transport
from hmx.argo.abi import DOMID_ANY, Address
from hmx.errno import Errno

if TYPE_CHECKING:
    from guest_node.guest import Guest

FIRST_DELAY: Final = 0.01
LAST_DELAY: Final = 0.2
NOT_YET: Final = (Errno.ECONNREFUSED, Errno.ESRCH, Errno.ETIMEDOUT, Errno.ENODEV)
"""Nobody serves the port yet, nobody is behind the destination yet, who was there has just ended, or nobody answers at
the register window: ask again.
"""


class OpenDevice(Transport, Protocol):
    """A transport that can be closed."""

    async def close(self) -> None:
        """Reset the device and say goodbye to who serves it.  A second time, nothing."""


def find(devices: Sequence[DeviceConfig], which: int | str, nth: int = 0) -> DeviceConfig:
    """Device number `which`, or the one number `nth` of type `which`.  Raises LookupError."""
    if isinstance(which, int):
        if 0 <= which < len(devices):
            return devices[which]
        raise LookupError(f"there is no device {which}: the topology gives this guest {len(devices)}")
    fit = [device for device in devices if device.type == which]
    if nth < len(fit):
        return fit[nth]
    number = f"number {nth} " if fit else ""
    raise LookupError(f"the topology gives this guest no {which} device {number}".rstrip())


async def open_device(guest: Guest, device: DeviceConfig, within: float) -> OpenDevice:
    """The transport of `device`; while nobody serves it, ask again for `within` seconds.  Raises OSError."""
    deadline, delay = guest.time() + within, FIRST_DELAY
    while True:
        try:
            return await OPENERS[device.transport](guest, device)
        except OSError as exc:
            if exc.errno not in NOT_YET or guest.time() + delay > deadline:
                raise
        await asyncio.sleep(delay)
        delay = min(2 * delay, LAST_DELAY)


async def _open_port(guest: Guest, device: DeviceConfig) -> OpenDevice:
    from guest_node.virtio.argo_front import connect
    from hmx.virtio.argo import Variant

    return await connect(guest.driver, Address(device.port, DOMID_ANY), variant=Variant.named(device.variant))


async def _open_window(guest: Guest, device: DeviceConfig) -> OpenDevice:
    from guest_node.virtio.grant_table import GrantTable
    from guest_node.virtio.mmio_front import open_mmio
    from guest_node.virtio.xen_calls import XenCalls
    from hmx.ioreq import windows

    kernel = guest.kernel
    if kernel is None:
        raise OSError(Errno.ENOSYS, "this guest has no kernel that could map registers")
    grants = arena = None
    if device.access.startswith("grant"):
        grants = guest.grants = guest.grants or GrantTable(XenCalls(kernel))
    elif device.access == BEHIND_IOMMU:
        from guest_node.virtio.guarded import Guarded

        guest.guarded = guest.guarded or Guarded(kernel)
        arena = await guest.guarded.arena(device.window)
    window = windows(kernel.probe.arch)[device.window]
    return await open_mmio(kernel, window, grants=grants, backend=device.backend, arena=arena)


OPENERS: Final[dict[str, Callable[[Guest, DeviceConfig], Awaitable[OpenDevice]]]] = {
    "virtio-argo": _open_port,
    "virtio-mmio": _open_window,
}
"""How a transport is opened."""
