"""Guests under a hypervisor that serves v4v, with whole kernels and drivers, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dialect import V4V
from guest_node.drivers.v4v import V4vSockets
from guest_node.guest import Guest
from guest_node.kernel.boot import Kernel, Machine, boot
from guest_node.vcpu import Vcpu
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.files import MemoryFiles
from topologies.inline.machine import InlineMachine, SharedMemory

MIB = 1 << 20
NAMES = {0: "host", 1: "app", 2: "other"}
DOORS = {"uxen": ("hypercall",), "ax": ("msr",), "whpx": ("msr",)}


class World:
    """One hypervisor; domain 0 runs the device models."""

    def __init__(
        self, personality: str = "uxen", cpu: str = "intel", *, seed: int = 0,
        storage: Mapping[str, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        core = Hypervisor(
            PERSONALITIES[personality, Arch.X86_64], cpu, parse_options("on,mac-permissive")[0], xsm_by_name("dummy"),
            doors=DOORS.get(personality, ("hypercall",)), notifications=("line", "vector-per-cpu"), storage=storage,
        )  # fmt: skip
        self.core = core
        self.machine = InlineMachine(core, random.Random(seed))
        self.logs: dict[str, list[str]] = {}

    async def kernel(self, domid: int, notification: str = "auto", megabytes: int = 8) -> Kernel:
        """A booted guest."""
        memory = SharedMemory(megabytes * MIB)
        areas, bells = self.machine.create_domain(domid, memory, 1, name=NAMES[domid], is_control=domid == 0)
        vcpu = Vcpu(0, GuestSide(areas[0], Arch.X86_64), bells[0])
        vcpu.start()
        return await boot([vcpu], memory.guest, Machine(domid=domid, notification=notification))

    async def sockets(self, domid: int, notification: str = "auto") -> V4vSockets:
        """v4v of a booted guest, its driver started."""
        kernel = await self.kernel(domid, notification)
        assert kernel.v4v is not None
        driver = ArgoDriver(kernel.v4v, random.Random(domid), V4V)
        await driver.start()
        return V4vSockets(driver, kernel.v4v)

    async def guest(self, domid: int, **arguments: Any) -> Guest:
        """A guest as programs see it; its peers are all the others."""
        kernel = await self.kernel(domid)
        log = self.logs[NAMES[domid]] = []
        return Guest(
            name=NAMES[domid], domid=domid, calls=kernel.argo, arguments=arguments,
            peers={name: other for other, name in NAMES.items() if other != domid},
            randomness=random.Random(domid), driver_randomness=random.Random(domid), files=MemoryFiles(),
            log=log.append, v4v=kernel.v4v,
        )  # fmt: skip
