"""Finding devices over VirtIO-Argo.  Experimental, docs/virtio-argo.md.

A front end needs an address and nothing else: the well-known port of a service and, where the toolstack plugs services
in (implicit destinations), not even a domain id.
"""

from __future__ import annotations

from typing import Final

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.hypercall import error
from guest_node.virtio.argo_bus import ArgoBus
from guest_node.virtio.argo_transport import ArgoTransport
from hmx.argo.abi import Address
from hmx.errno import Errno
from hmx.virtio.argo import Variant

__all__ = ["ArgoBus", "ArgoTransport", "connect", "discover"]

DEFAULT_RING_LEN: Final = 1 << 20
DEFAULT_TIMEOUT: Final = 5.0  # seconds that a request may take
DEFAULT_WINDOW: Final = 2 << 20
PING_AFTER: Final = 1.0  # seconds of silence, while something is under way, after which the back end is asked


async def discover(
    driver: ArgoDriver,
    address: Address,
    *,
    variant: Variant | str = Variant.INLINE,
    ring_len: int = DEFAULT_RING_LEN,
    timeout: float = DEFAULT_TIMEOUT,
    window: int = DEFAULT_WINDOW,
    ping_after: float = PING_AFTER,
) -> ArgoBus:
    """The bus at `address` (domain DOMID_ANY: whoever serves that port for us), with its devices.

    `ring_len`: data bytes of the ring that its answers come to; `timeout`: seconds for one request; `window`: bytes
    that may be under way for each queue and direction, the back end may grant fewer; `ping_after`: seconds of silence,
    with chains under way, after which it is asked whether it lives.

    Raises OSError: ECONNREFUSED or ESRCH where nobody serves, ETIMEDOUT, EOPNOTSUPP for a variant or revision that the
    back end does not have, EPROTO for answers that make no sense, or what the hypervisor answers.
    """
    bus = ArgoBus(
        driver, address, variant=variant, ring_len=ring_len, timeout=timeout, window=window, ping_after=ping_after
    )
    await bus.open()
    return bus


async def connect(
    driver: ArgoDriver,
    address: Address,
    *,
    device: int | None = None,
    variant: Variant | str = Variant.INLINE,
    ring_len: int = DEFAULT_RING_LEN,
    timeout: float = DEFAULT_TIMEOUT,
    window: int = DEFAULT_WINDOW,
    ping_after: float = PING_AFTER,
) -> ArgoTransport:
    """Device number `device` of the bus at `address`, by default its first; closing it ends the connection.

    Raises what `discover` raises, and OSError ENODEV where there is no such device.
    """
    bus = await discover(
        driver, address, variant=variant, ring_len=ring_len, timeout=timeout, window=window, ping_after=ping_after
    )
    number = min(bus.devices, default=None) if device is None else device
    transport = None if number is None else bus.devices.get(number)
    if transport is None:
        await bus.close()
        refused = bus.refused.get(device) if device is not None else next(iter(bus.refused.values()), None)
        if refused is not None:
            raise error(refused.errno or Errno.EIO, refused.strerror or "")
        which = "device" if device is None else f"device {device}"
        raise error(Errno.ENODEV, f"no {which} at port {address.port:#x} of domain {address.domid}")
    transport.alone = True
    return transport
