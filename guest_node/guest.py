"""The guest as its program sees it: `async def main(guest)`.

Everything that a program may reach is an attribute here: its arguments, its peers, time, randomness, files,
sockets, a log, and the fields of its report.  The same program thus runs in a process of its own and in a
simulation, where time is virtual and chance comes from a seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from guest_node.config import DeviceConfig, FrontConfig
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dialect import V4V
from guest_node.drivers.hypercall import error
from guest_node.drivers.rings import Randomness
from guest_node.drivers.sockets import ArgoSockets
from guest_node.drivers.v4v import V4vCalls, V4vSockets
from guest_node.files import Files
from hmx.argo.calls import ArgoCalls
from hmx.errno import Errno

if TYPE_CHECKING:
    import random

    from guest_node.devices import OpenDevice
    from guest_node.kernel.boot import Kernel
    from guest_node.virtio.grant_table import GrantTable
    from guest_node.virtio.guarded import Guarded

RESULTS_MOST: Final = 48 * 1024
"""Bytes of JSON.  A report is one record in one frame of the broker's (64 KiB), and the guest's counters are in it."""

Program = Callable[["Guest"], Awaitable[int | None]]
"""A program: returns its exit code, None meaning 0."""


def fits(results: Mapping[str, Any]) -> None:
    """Raise ValueError for results that are too large for a report, TypeError and ValueError for what is no JSON."""
    size = len(json.dumps(results, allow_nan=False))
    if size > RESULTS_MOST:
        raise ValueError(
            f"guest.result: the report would be {size} bytes of JSON, and may be {RESULTS_MOST}: write a file "
            "(guest.files.create_output) and report its name"
        )


class Guest:
    """One guest.  Made by its shell, inside the running loop, when its kernel is up."""

    def __init__(
        self,
        *,
        name: str,
        domid: int,
        calls: ArgoCalls,
        arguments: Mapping[str, Any],
        peers: Mapping[str, int],
        randomness: random.Random,
        driver_randomness: Randomness,
        files: Files,
        log: Callable[[str], None],
        probe: Mapping[str, Any] = MappingProxyType({}),
        counters: Callable[[], Mapping[str, Any]] = dict,
        v4v: V4vCalls | None = None,
        devices: tuple[DeviceConfig, ...] = (),
        fronts: tuple[FrontConfig, ...] = (),
        kernel: Kernel | None = None,
    ) -> None:
        self.name = name
        self.domid = domid
        self.arguments = MappingProxyType(dict(arguments))
        self.peers = MappingProxyType(peers)  # its shell's own: a peer that was restarted has another id
        self.random = randomness
        self.files = files
        self.probe = probe  # what the kernel found at its start: hypervisors, doors, its choice
        self.counters = counters  # what the guest's side counted up to now: `arch` and `host` apart
        # The driver's draws depend on timing (ports, retries); a program's own are the same in every run of a seed.
        self.driver = ArgoDriver(calls, driver_randomness)
        self.argo = ArgoSockets(self.driver)
        self._v4v = None if v4v is None else V4vSockets(ArgoDriver(v4v, driver_randomness, V4V), v4v)
        self._drivers = [self.driver] if self._v4v is None else [self.driver, self._v4v.driver]
        self.devices = devices  # as the topology has them
        self.fronts = fronts  # devices of others whose device model it is
        self.grants: GrantTable | None = None  # of which there is one, made when it is needed
        self.guarded: Guarded | None = None  # likewise
        self.kernel = kernel  # for drivers that access memory and registers themselves; a test may have none
        self._opened: list[OpenDevice] = []
        self.results: dict[str, Any] = {}
        self._log = log
        self._start = asyncio.get_running_loop().time()

    @property
    def v4v(self) -> V4vSockets:
        """Datagrams by uXen's v4v.  OSError ENOSYS under a hypervisor that has none."""
        if self._v4v is None:
            raise error(Errno.ENOSYS, "this hypervisor has no v4v")
        return self._v4v

    async def virtio(self, which: int | str = 0, *, within: float = 10.0) -> OpenDevice:
        """The VirtIO transport of device `which` of :attr:`devices`: its number, or its type, meaning the first of it.

        Reset, and ready to negotiate (guest_node/virtio/frontend.py).  Who serves it is asked again for `within`
        seconds if nobody does yet.  It is closed when the program ends, if not before.  Raises LookupError where the
        topology has no such device, and OSError.
        """
        from guest_node.devices import find, open_device  # a guest without devices loads nothing of VirtIO

        opened = await open_device(self, find(self.devices, which), within)
        self._opened.append(opened)
        return opened

    def end(self, cause: BaseException) -> None:
        """There is no hypervisor any more: whoever waits for it is told `cause`."""
        for driver in self._drivers:
            driver.end(cause)

    def time(self) -> float:
        """Seconds since the guest started; virtual in a simulation."""
        return asyncio.get_running_loop().time() - self._start

    def log(self, text: str) -> None:
        """A line for the guest's log."""
        self._log(text)

    def result(self, **fields: Any) -> None:
        """Add `fields` to the guest's report; a later value of a field replaces an earlier one.

        Raises TypeError and ValueError for what JSON does not know, and ValueError if the report would be larger than
        `RESULTS_MOST`: it is for figures.  More goes to a file (`guest.files.create_output`).
        """
        fits({**self.results, **fields})
        self.results.update(fields)

    async def run(self, program: Program) -> int:
        """Run `program` to its end and close what it left open; its exit code.

        What it raises is raised here.  A return value other than None and int is a TypeError.
        """
        for driver in self._drivers:
            await driver.start()
        try:
            code = await program(self)
        except BaseException:
            await self._close_quietly()
            raise
        await self._close()
        if code is None:
            return 0
        if not isinstance(code, int):
            raise TypeError(f"the program returned {code!r}: an exit code is an int, or None for 0")
        return int(code)

    async def _close(self) -> None:
        """All devices and drivers, the last first, each whatever another one raises."""
        async with contextlib.AsyncExitStack() as stack:
            for driver in self._drivers:
                stack.push_async_callback(driver.close)
            for device in self._opened:
                stack.push_async_callback(device.close)

    async def _close_quietly(self) -> None:
        """The program has failed already: let its own error be the one that is seen."""
        try:
            await self._close()
        except Exception as exc:
            self.log(f"closing after the program's failure failed too: {exc!r}")
