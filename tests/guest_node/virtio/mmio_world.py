"""A front end and a device model on one simulated hypervisor: virtio-mmio through IOREQ, by any way of access."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from guest_node.kernel.boot import Kernel, Machine, boot
from guest_node.vcpu import Vcpu
from guest_node.virtio.access import RemoteMemory
from guest_node.virtio.access_dma import DmaAccess
from guest_node.virtio.access_foreign import ForeignAccess
from guest_node.virtio.access_grant import GrantCopyAccess, GrantMapAccess
from guest_node.virtio.grant_table import GrantTable
from guest_node.virtio.ioreq_server import IoreqServer
from guest_node.virtio.mmio_back import OFFERED, MmioDevice
from guest_node.virtio.mmio_front import MmioTransport, open_mmio
from guest_node.virtio.model import Model
from guest_node.virtio.xen_calls import XenCalls
from hmx.ioreq import WINDOW_SIZE, windows
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hmx.virtio.features import Feature, feature_set
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

FRONT, BACK = 1, 2
MIB: Final = 1 << 20
CPU = {Arch.X86_64: "intel", Arch.AARCH64: "armv8"}

WAYS: Final[dict[str, Callable[[XenCalls], RemoteMemory]]] = {
    "foreign": lambda xen: ForeignAccess(xen, FRONT),
    "foreign-kept": lambda xen: ForeignAccess(xen, FRONT, keep=True),
    "grant-map": lambda xen: GrantMapAccess(xen, FRONT),
    "grant-copy": lambda xen: GrantCopyAccess(xen, FRONT),
    "dma": lambda xen: DmaAccess(xen, FRONT, ForeignAccess(xen, FRONT)),
    "dma-only": lambda xen: DmaAccess(xen, FRONT),
}


class World:
    """Both guests; `plug` makes a device of a model at a window, `open` its transport."""

    def __init__(
        self, seed: int, arch: Arch = Arch.X86_64, trusted: bool = True, notifications: tuple[str, ...] = ()
    ) -> None:
        options, _ = parse_options("on,mac-permissive")
        self.arch = arch
        self.events: list[tuple[object, ...]] = []
        self.core = Hypervisor(
            PERSONALITIES["xen", arch], CPU[arch], options, xsm_by_name("dummy"), lambda *e: self.events.append(e),
            notifications=notifications, device_models=(("back", "front"),) if trusted else (),
        )  # fmt: skip
        self.machine = InlineMachine(self.core, random.Random(seed))
        self.tasks: list[asyncio.Task[None]] = []
        self.devices: list[MmioDevice] = []

    async def boot(self, vcpus: int = 1, notification: str = "auto", memory: int = 2 * MIB) -> None:
        self.front = await self.guest(FRONT, "front", vcpus, notification, memory)
        self.back = await self.guest(BACK, "back", 1, notification, 2 * MIB)
        self.server = IoreqServer(self.back, FRONT)
        await self.server.start()
        self.tasks.append(asyncio.get_running_loop().create_task(self.server.serve()))

    async def guest(self, domid: int, name: str, vcpus: int, notification: str, size: int) -> Kernel:
        memory = SharedMemory(size)
        areas, bells = self.machine.create_domain(domid, memory, vcpus, name=name)
        cpus = [Vcpu(index, GuestSide(area, self.arch), bells[index]) for index, area in enumerate(areas)]
        for vcpu in cpus:
            vcpu.start()
        return await boot(cpus, memory.guest, Machine(self.arch, notification=notification))

    def plug(self, model: Model, way: str = "foreign", index: int = 0, features: int = OFFERED) -> MmioDevice:
        window = windows(self.arch)[index]
        if way.startswith("grant"):
            features |= feature_set(Feature.ACCESS_PLATFORM)
        access = WAYS[way](self.server.xen)
        device = MmioDevice(model, access, self.server.line(window), lambda: self.server.soon(device), features)
        self.server.add(window.base, window.base + WINDOW_SIZE - 1, device)
        self.devices.append(device)
        return device

    async def open(self, index: int = 0, grants: bool = False, indirect: int = 0, vcpu: int = 0) -> MmioTransport:
        table = GrantTable(XenCalls(self.front)) if grants else None
        window = windows(self.arch)[index]
        return await open_mmio(self.front, window, grants=table, backend=BACK, indirect=indirect, vcpu=vcpu)

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()


def simulate(
    seed: int,
    main: Callable[[World], Awaitable[None]],
    arch: Arch = Arch.X86_64,
    trusted: bool = True,
    notifications: tuple[str, ...] = (),
) -> None:
    async def run() -> None:
        world = World(seed, arch, trusted, notifications)
        try:
            async with asyncio.timeout(1000):
                await main(world)
        finally:
            world.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
