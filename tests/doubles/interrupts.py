"""A simulated machine whose guests' interrupts are watched: every post, every handler, in one order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from guest_node.kernel.boot import Kernel, Machine, boot
from guest_node.platform import Platform
from guest_node.vcpu import Vcpu
from hmx.cpu.evtchn import UNMASK_FLAG
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide, HypervisorSide, Post, post_entry
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

MIB = 1 << 20
NOTIFICATIONS = ("virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")


class Watch:
    """When each interrupt of one guest was posted last, and when its handler ran last, on one clock.

    A port is the same wherever it is posted; a vector and a line belong to their vCPU.
    """

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.posted: dict[tuple[int, int], int] = {}
        self.ran: dict[tuple[int, int], int] = {}
        self._now = 0

    def _note(self, log: dict[tuple[int, int], int], vcpu: int, entry: int) -> None:
        self._now += 1
        log[-1 if entry >> 24 == Post.PORT else vcpu, entry] = self._now

    def saw_post(self, vcpu: int, entry: int) -> None:
        """The hypervisor posts, or need not.  What travels by the same way and is no event is left out."""
        if entry >> 24 != Post.PORT or (entry & 0xFF_FFFF and not entry & UNMASK_FLAG):
            self._note(self.posted, vcpu, entry)

    def saw_handler(self, vcpu: int, entry: int) -> None:
        """The handler of `entry` begins."""
        self._note(self.ran, vcpu, entry)

    def unserved(self) -> list[tuple[int, str]]:
        """(vCPU, entry) of all whose handler has not run since the last post."""
        late = [key for key, when in self.posted.items() if self.ran.get(key, 0) < when]
        return [(vcpu, f"{Post(entry >> 24).name} {entry & 0xFF_FFFF:#x}") for vcpu, entry in late]


class WatchedVcpu(Vcpu):
    """A vCPU whose handlers are noted, and hold that they were let through; at times one is interrupted in its turn."""

    def __init__(self, index: int, area: GuestSide, platform: Platform, watch: Watch) -> None:
        super().__init__(index, area, platform)
        self._watch = watch

    def _watched(self, entry: int, handler: Callable[[], None], allowed: Callable[[], bool]) -> Callable[[], None]:
        def run() -> None:
            assert self.interrupts_enabled, f"interrupted with interrupts off, by {entry:#x}"
            assert allowed(), f"{entry:#x} should have been held back"
            self._watch.saw_handler(self.index, entry)
            handler()
            if self._watch.random.random() < 0.3:
                self.poll_interrupts()

        return run

    def on_port(self, port: int, handler: Callable[[], None]) -> None:
        super().on_port(port, self._watched(post_entry(Post.PORT, port), handler, lambda: True))

    def on_vector(self, vector: int, handler: Callable[[], None]) -> None:
        def allowed() -> bool:
            return self.apic is not None and vector >> 4 > self.apic.tpr >> 4

        super().on_vector(vector, self._watched(post_entry(Post.VECTOR, vector), handler, allowed))

    def on_line(self, line: int, handler: Callable[[], None]) -> None:
        super().on_line(line, self._watched(post_entry(Post.EXTINT, line), handler, lambda: True))


class World:
    """A machine under one hypervisor; `watches` are those of its guests by domid."""

    def __init__(
        self, seed: int, *, personality: str = "xen", notifications: Sequence[str] = NOTIFICATIONS
    ) -> None:
        options, _ = parse_options("on,mac-permissive")
        self.core = Hypervisor(
            PERSONALITIES[personality, Arch.X86_64], "intel", options, xsm_by_name("dummy"),
            doors=("hypercall", "msr"), notifications=notifications,
        )  # fmt: skip
        self.machine = InlineMachine(self.core, random.Random(seed))
        self.watches: dict[int, Watch] = {}
        self._seed = seed
        self._sides: dict[HypervisorSide, tuple[int, int]] = {}

    async def guest(self, domid: int, *, vcpus: int = 1, **wanted: Any) -> Kernel:
        """Boot a guest."""
        memory = SharedMemory(MIB)
        areas, bells = self.machine.create_domain(domid, memory, vcpus, name=f"g{domid}")
        watch = self.watches[domid] = Watch(random.Random(self._seed + domid))
        hvm = self.core.hvm(domid)
        assert hvm is not None
        for vcpu in hvm.vcpus:
            self._sides[vcpu.area] = domid, vcpu.index
        cpus = [WatchedVcpu(index, GuestSide(area), bells[index], watch) for index, area in enumerate(areas)]
        for cpu in cpus:
            cpu.start()
        return await boot(cpus, memory.guest, Machine(domid=domid, **wanted))

    def counters(self, domid: int) -> dict[str, int]:
        """`arch.*` of a guest."""
        return self.core.counters()[f"g{domid}"]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every post while it lasts."""
        post = HypervisorSide.post

        def watched_post(side: HypervisorSide, entry: int) -> bool:
            if (found := self._sides.get(side)) is not None:
                self.watches[found[0]].saw_post(found[1], entry)
            return post(side, entry)

        with mock.patch.object(HypervisorSide, "post", watched_post):
            yield


def simulate(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)
