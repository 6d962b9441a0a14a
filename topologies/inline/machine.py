"""A hypervisor and its guests' vCPUs in one process: doorbells are calls, turns are callbacks, chance has a seed.

What the scheduler of a real machine decides is drawn from the simulation's generator: whether the hypervisor runs while
a guest yields the CPU, in which order it serves its vCPUs, how many frames it takes before the next one's turn.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Final, Protocol

from guest_node.kernel.argo import GuestMemoryView
from hmx.memory import GuestMemory, MappedMemory, Window
from hmx.vcpu_area import AREA_SIZE
from hv_node.hvm import TURN, Hvm, Vcpu
from hv_node.hypervisor import Hypervisor

YIELDS: Final = 4


class InlineMemory(Protocol):
    """One domain's memory as its two sides see it, and the moments when a mirror would have to travel."""

    guest: GuestMemoryView
    hypervisor: GuestMemory

    def before_run(self, vcpu: Vcpu) -> None:
        """The hypervisor is about to look at the frames of `vcpu`."""

    def after_run(self) -> None:
        """The hypervisor has run frames of anybody; what it wrote here may be shown to the guest."""


class SharedMemory:
    """Both sides share one buffer, as two processes share a mapping."""

    def __init__(self, size: int) -> None:
        ram = bytearray(size)
        self.guest = GuestMemoryView(memoryview(ram), lambda gpa, length: Window(ram, gpa, length))
        self.hypervisor: GuestMemory = MappedMemory(ram)

    def before_run(self, vcpu: Vcpu) -> None:
        """Nothing travels."""

    def after_run(self) -> None:
        """Nothing travels."""


class InlineBells:
    """The bells of one vCPU inside a simulation."""

    def __init__(self, machine: InlineMachine, vcpu: Vcpu) -> None:
        self._machine = machine
        self._vcpu = vcpu
        self._handler: Callable[[], None] | None = None
        self._scheduled = False

    def ring(self) -> None:
        """Wake the hypervisor."""
        self._machine.wake(self._vcpu)

    def yield_cpu(self) -> None:
        """Perhaps the hypervisor runs now, perhaps something else does."""
        self._machine.maybe_turn()

    def pause(self) -> None:
        """Perhaps the hypervisor runs now."""
        self._machine.maybe_turn()

    def wait_briefly(self) -> None:
        """Perhaps the hypervisor runs now; a guest that goes on waiting suspends its task."""
        self._machine.maybe_turn()

    def on_bell(self, handler: Callable[[], None]) -> None:
        """Call `handler` from the loop when the hypervisor rang."""
        self._handler = handler

    def rung(self) -> None:
        """The hypervisor rings: at most one call of the handler is on its way."""
        if self._handler is not None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._handler is not None:
            self._handler()


class InlineMachine:
    """Runs a hypervisor core inside an asyncio loop, as its process shell would."""

    def __init__(
        self,
        core: Hypervisor,
        generator: random.Random,
        on_turn: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """`on_turn(domain, vcpu, frames)` is told of every turn in which frames were executed.

        `on_ran(vcpu)`, if somebody sets it, is told of the same before the bells are rung.
        """
        self.core = core
        self._on_turn = on_turn
        self.on_ran: Callable[[Vcpu], None] | None = None
        self.doorbells = 0
        self._random = generator
        self._memories: dict[int, InlineMemory] = {}
        self._handed: dict[int, tuple[list[memoryview], list[InlineBells]]] = {}
        self._departed: dict[str, dict[str, int]] = {}
        self._bells: dict[Vcpu, InlineBells] = {}
        self._active: dict[Vcpu, None] = {}
        self._parked: dict[Vcpu, None] = {}  # whose frames wait behind one that is pending
        self._scheduled = False
        self._empty = 0
        self._turning = False

    def create_domain(
        self, domid: int, memory: InlineMemory, vcpus: int, *, name: str, is_control: bool = False, nested: bool = False
    ) -> tuple[list[memoryview], list[InlineBells]]:
        """Create a domain; the vCPU areas and bells are what its guest is given."""
        areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(vcpus)]
        hvm = self.core.create_domain(
            domid, memory.hypervisor, areas, name=name, is_control=is_control, nested=nested
        )
        self._memories[domid] = memory
        if isinstance(memory, SharedMemory):
            memory.guest.foreign = partial(self._foreign, hvm)
        bells = [InlineBells(self, vcpu) for vcpu in hvm.vcpus]
        self._bells.update(zip(hvm.vcpus, bells, strict=True))
        self._handed[domid] = areas, bells
        return areas, bells

    def _foreign(self, emulator: Hvm, domid: int) -> memoryview | None:
        """The RAM of a domain whose device model `emulator` may be."""
        target, hub, memory = self.core.hvm(domid), self.core.ioreqs, self._memories.get(domid)
        if target is None or hub is None or not isinstance(memory, SharedMemory):
            return None
        return memory.guest.buffer if hub.may_share(emulator, target) else None

    def attach(self, domid: int) -> tuple[InlineMemory, list[memoryview], list[InlineBells]]:
        """What the guest of a domain is given."""
        return self._memories[domid], *self._handed[domid]

    def counters(self) -> dict[str, dict[str, int]]:
        """`arch.*` by domain, those of dead ones included."""
        return {**self._departed, **self.core.counters()}

    def destroy_domain(self, domid: int) -> None:
        """The guest is gone: its domain dies and is freed."""
        hvm = self.core.hvm(domid)
        if hvm is not None:
            self._departed[hvm.domain.name] = asdict(hvm.counters)
            for vcpu in hvm.vcpus:
                self._active.pop(vcpu, None)
                self._parked.pop(vcpu, None)
                self._bells.pop(vcpu, None)
        self.core.free_domain(domid)
        self._memories.pop(domid, None)
        self.touched()  # who waited for it as a device model goes on

    def wake(self, vcpu: Vcpu) -> None:
        """A guest rang: its vCPU is polled until it is found idle."""
        if vcpu in self._bells:
            vcpu.area.awake()
            self._active[vcpu] = None
            self._schedule()

    def maybe_turn(self) -> None:
        """By chance, run the hypervisor in the middle of a guest's turn."""
        if not self._turning and self._random.random() < 0.5:
            self._turn()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        if self._turn():
            self._empty = 0
        elif self._empty < YIELDS:
            self._empty += 1
        else:
            for vcpu in tuple(self._active):
                if vcpu.blocked is not None:
                    self._parked[vcpu] = None
                    del self._active[vcpu]
                elif vcpu.area.sleep():
                    del self._active[vcpu]
        if self._active:
            self._schedule()

    def touched(self) -> None:
        """Something beside the guests' frames had its effects: ring whom it wants rung, and go on with whom it lets."""
        self._unpark()
        if not self._turning:
            self._ring()

    def _unpark(self) -> None:
        """What was pending has been answered: on with what waits behind it."""
        for vcpu in [vcpu for vcpu in self._parked if vcpu.blocked is None]:
            del self._parked[vcpu]
            self._active[vcpu] = None
            self._schedule()

    def _turn(self) -> int:
        """Serve every vCPU that is awake, in a random order, each for a random number of frames."""
        self._turning = True
        self._unpark()
        done = 0
        order = list(self._active)
        self._random.shuffle(order)
        for vcpu in order:
            memory = self._memories.get(vcpu.hvm.domain.domid)
            if memory is None:
                continue
            memory.before_run(vcpu)
            frames = self.core.run(vcpu, self._random.randint(1, TURN))
            done += frames
            if frames and self._on_turn is not None:
                self._on_turn(vcpu.hvm.domain.name, vcpu.index, frames)
            if frames and self.on_ran is not None:
                self.on_ran(vcpu)
            # What was written to any domain is shown to it before the completion or the bell that tells of it is
            # acted on.
            for touched in self._memories.values():
                touched.after_run()
        self._ring()
        self._turning = False
        return done

    def _ring(self) -> None:
        for touched in self._memories.values():
            touched.after_run()
        rung, self.core.bells = self.core.bells, {}
        for vcpu in rung:
            bells = self._bells.get(vcpu)
            if bells is not None:
                self.doorbells += 1
                bells.rung()
