"""The other way in which a back-end program serves: as device model of guests whose devices are virtio-mmio registers.

One IOREQ server for each guest; a device is at the window that the topology gave it, and reaches the guest's memory in
the way that the topology says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from guest_node.config import FrontConfig
from guest_node.guest import Guest
from guest_node.virtio.access import RemoteMemory
from guest_node.virtio.access_dma import DmaAccess
from guest_node.virtio.access_foreign import ForeignAccess
from guest_node.virtio.access_grant import GrantCopyAccess, GrantMapAccess
from guest_node.virtio.ioreq_server import IoreqServer
from guest_node.virtio.mmio_back import OFFERED, MmioDevice
from guest_node.virtio.model import Model, Request
from guest_node.virtio.xen_calls import XenCalls
from hmx.errno import Errno
from hmx.ioreq import WINDOW_SIZE, windows
from hmx.virtio.features import Feature, feature_set


class Way(NamedTuple):
    """How a guest's memory is reached: by what, made of (our calls, target, window), and whether the addresses that it
    gives are the platform's, grants or those of an IOMMU, instead of its own.
    """

    name: str
    make: Callable[[XenCalls, int, int], RemoteMemory]
    platform: bool


WAYS: Final = (
    Way("foreign", lambda xen, target, _: ForeignAccess(xen, target), False),
    Way("foreign-kept", lambda xen, target, _: ForeignAccess(xen, target, keep=True), False),
    Way("grant-map", lambda xen, target, _: GrantMapAccess(xen, target), True),
    Way("grant-copy", lambda xen, target, _: GrantCopyAccess(xen, target), True),
    Way("dma", lambda xen, target, _: DmaAccess(xen, target), False),
    Way("dma-rings", lambda xen, target, _: DmaAccess(xen, target, ForeignAccess(xen, target)), False),
    Way("dma-iommu", lambda xen, target, window: DmaAccess(xen, target, endpoint=window), True),
)


class Served(NamedTuple):
    """A front end (guest_node/programs/back.py)."""

    domid: int
    port: int


class Watched:
    """A model that tells when a driver that was live has reset it."""

    def __init__(self, model: Model, left: Callable[[], None]) -> None:
        self.device_id = model.device_id
        self.features = model.features
        self.queue_sizes = model.queue_sizes
        self._model = model
        self._left = left
        self._live = False

    @property
    def on_config(self) -> Callable[[], None]:
        """The model's."""
        return self._model.on_config

    @on_config.setter
    def on_config(self, told: Callable[[], None]) -> None:
        self._model.on_config = told

    def config(self) -> bytes:
        """The model's."""
        return self._model.config()

    def write_config(self, offset: int, data: bytes) -> bool:
        """The model's."""
        return self._model.write_config(offset, data)

    def start(self, features: int) -> None:
        """The driver is live."""
        self._live = True
        self._model.start(features)

    def reset(self) -> None:
        """The driver is gone, or begins."""
        self._model.reset()
        if self._live:
            self._live = False
            self._left()

    def request(self, request: Request) -> None:
        """The model's."""
        self._model.request(request)


class Windows:
    """The devices that this guest serves at `port` for its `fronts`."""

    def __init__(self, guest: Guest, port: int) -> None:
        self.fronts = [front for front in guest.fronts if front.port == port]
        self._guest = guest
        self.served: list[Served] = []
        self._servers: dict[int, IoreqServer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._devices: list[MmioDevice] = []

    async def open(self, make_model: Callable[[Served], Model], left: Callable[[Served, str], None]) -> None:
        """Serve all of them.  Raises OSError."""
        for front in self.fronts:
            server = self._servers.get(front.domid) or await self._server(front.domid)
            self._plug(server, front, make_model, left)

    async def _server(self, domid: int) -> IoreqServer:
        kernel = self._guest.kernel
        if kernel is None:
            raise OSError(Errno.ENOSYS, "this guest has no kernel that could be a device model's")
        server = self._servers[domid] = IoreqServer(kernel, domid)
        await server.start()
        self._tasks.append(asyncio.get_running_loop().create_task(server.serve()))
        return server

    def _plug(
        self,
        server: IoreqServer,
        config: FrontConfig,
        make_model: Callable[[Served], Model],
        left: Callable[[Served, str], None],
    ) -> None:
        kernel = self._guest.kernel
        assert kernel is not None
        window = windows(kernel.probe.arch)[config.window]
        way = next(row for row in WAYS if row.name == config.access)
        front = Served(config.domid, config.port)
        self.served.append(front)
        model = Watched(make_model(front), lambda: left(front, "bye"))
        features = OFFERED | (feature_set(Feature.ACCESS_PLATFORM) if way.platform else 0)
        access = way.make(server.xen, config.domid, config.window)
        device = MmioDevice(model, access, server.line(window), lambda: server.soon(device), features)
        server.add(window.base, window.base + WINDOW_SIZE - 1, device)
        self._devices.append(device)

    def report(self) -> dict[str, Any]:
        """What reaching the front ends' memory took, and how often they trapped here."""
        counted: dict[str, int] = {"round_trips": sum(server.round_trips for server in self._servers.values())}
        for device in self._devices:
            for name, count in asdict(device.access.counters).items():
                key = {"hypercalls": "calls"}.get(name, name)  # a guest has a counter of that name
                counted[key] = counted.get(key, 0) + count
        return counted

    async def close(self) -> None:
        """Serve no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers.values():
            with contextlib.suppress(OSError):  # whoever it served is gone
                server.close()
