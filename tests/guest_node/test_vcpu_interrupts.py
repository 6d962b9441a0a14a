"""Interrupts as a vCPU's guest sees them: nesting, priorities, EOI, NMIs, IPIs, by posts and interruption points alone.

Rules: Intel SDM vol. 3A 10.8 (priority, nesting, EOI), 10.6 and 10.12.9 (IPIs), 6.7 (NMI); the project's contracts on
interruption points.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from guest_node.kernel.ipi import connect_apics
from guest_node.vcpu import Trap, Vcpu
from hmx.cpu.apic_regs import MSR, ApicFault
from hmx.cpu.evtchn import EventChannelPage
from hmx.cpu.lapic import LocalApic
from hmx.memory import PAGE_SIZE, Window
from hmx.trap import Kind, Outcome
from hmx.vcpu_area import AREA_SIZE, GuestSide, HypervisorSide, Post, post_entry

DISABLED = 0x0FF
ENABLED = 0x1FF
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
LOGICAL = 1 << 11
NMI, INIT, STARTUP, SMI = 4 << 8, 5 << 8, 6 << 8, 2 << 8


class Silent:
    """A platform on which nobody waits: a ring or a yield runs the hypervisor's side, which answers every frame."""

    def __init__(self, side: HypervisorSide) -> None:
        self._side = side
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1

    def yield_cpu(self) -> None:
        while self._side.submitted():
            head, _ = self._side.take()
            self._side.complete(head[0], Outcome.DONE)
        self._side.publish()

    def wait_briefly(self) -> None:
        self.yield_cpu()

    def pause(self) -> None:
        self.yield_cpu()

    def on_bell(self, handler: Callable[[], None]) -> None:
        pass


class Bench:
    """One vCPU with a local APIC, its hypervisor's side, and a log of handlers: "41 on" when it begins, "41" when it
    ends.
    """

    def __init__(self, index: int = 0) -> None:
        buffer = memoryview(bytearray(AREA_SIZE))
        self.side = HypervisorSide(buffer)
        self.vcpu = Vcpu(index, GuestSide(buffer), Silent(self.side))
        self.apic = LocalApic(index)
        self.vcpu.attach_apic(self.apic)
        self.log: list[str] = []

    def vector(self, vector: int, *steps: Callable[[], object]) -> None:
        """Handle `vector` by taking `steps`."""
        self.vcpu.on_vector(vector, self._handler(f"{vector:x}", steps))

    def nmi(self, *steps: Callable[[], object]) -> None:
        self.vcpu.on_nmi(self._handler("nmi", steps))

    def _handler(self, name: str, steps: tuple[Callable[[], object], ...]) -> Callable[[], None]:
        def run() -> None:
            if steps:
                self.log.append(f"{name} on")
            for step in steps:
                step()
            self.log.append(name)

        return run

    def post(self, *vectors: int) -> None:
        for vector in vectors:
            self.side.post(post_entry(Post.VECTOR, vector))

    def poster(self, *vectors: int) -> Callable[[], None]:
        return lambda: self.post(*vectors)

    def post_nmi(self) -> None:
        self.side.post(post_entry(Post.NMI, 0))

    def poll(self) -> None:
        self.vcpu.poll_interrupts()

    def off(self) -> None:
        self.vcpu.enable_interrupts(False)

    def on(self) -> None:
        self.vcpu.enable_interrupts(True)

    def interrupt(self, *vectors: int) -> list[str]:
        """Post, come to an interruption point, and say what ran."""
        self.post(*vectors)
        self.poll()
        return self.log


# -- nesting ----


@pytest.mark.parametrize("other", [0x40, 0x42, 0x4F])
def test_the_same_class_does_not_nest(other: int) -> None:
    """SDM 10.8.3.1: a vector of the class in service waits for its EOI, higher in the class or not."""
    bench = Bench()
    bench.vector(0x41, bench.poster(other), bench.poll)
    bench.vector(other)
    assert bench.interrupt(0x41) == ["41 on", "41", f"{other:x}"]


POINTS: dict[str, Callable[[Vcpu], object]] = {
    "poll": lambda vcpu: vcpu.poll_interrupts(),
    "TPR": lambda vcpu: vcpu.set_priority(0),
    "TPR as MSR": lambda vcpu: vcpu.write_apic(MSR["TPR"], 0),
    "STI": lambda vcpu: vcpu.enable_interrupts(True),
    "a trap that completed": lambda vcpu: vcpu.trap_now(Trap(Kind.CPUID, (0, 0, 0, 0))),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_higher_class_preempts_at_an_interruption_point(point: str) -> None:
    """And nowhere else: it was posted before the point, and runs at it."""

    async def main() -> None:
        bench = Bench()
        mark, reach = bench.log.append, POINTS[point]
        bench.vector(
            0x4F, bench.poster(0x50), lambda: mark("posted"), lambda: reach(bench.vcpu), lambda: mark("passed")
        )
        bench.vector(0x50)
        assert bench.interrupt(0x4F) == ["4f on", "posted", "50", "passed", "4f"]

    asyncio.run(main())


def test_a_lower_class_never_preempts() -> None:
    """It waits for the EOI of what is in service."""
    bench = Bench()
    bench.vector(0x81, bench.poster(0x71), bench.poll)
    bench.vector(0x71)
    assert bench.interrupt(0x81) == ["81 on", "81", "71"]


def test_handlers_nest_and_end_in_reverse_order() -> None:
    """SDM 10.8.5: EOI ends the highest in service; each level is as deep as its class."""
    bench = Bench()
    served: list[int] = []

    def look() -> None:
        served.append(bench.apic.isr)

    bench.vector(0x41, bench.poster(0x51), bench.poll, look)
    bench.vector(0x51, bench.poster(0x61), bench.poll, look)
    bench.vector(0x61, look)
    assert bench.interrupt(0x41) == ["41 on", "51 on", "61 on", "61", "51", "41"]
    assert served == [1 << 0x61 | 1 << 0x51 | 1 << 0x41, 1 << 0x51 | 1 << 0x41, 1 << 0x41]
    assert bench.apic.isr == bench.apic.irr == 0


def test_what_came_during_a_handler_comes_by_priority_at_its_eoi() -> None:
    """EOI is an interruption point: what was posted meanwhile is accepted before the next vector is chosen."""
    bench = Bench()
    bench.vector(0x71, bench.poster(0x41, 0x61))
    for vector in (0x41, 0x61):
        bench.vector(vector)
    assert bench.interrupt(0x51, 0x71) == ["71 on", "71", "61", "41"]
    assert bench.vcpu.counters.interrupts_spurious == 1, "nobody handles 0x51"


def test_a_vector_in_service_may_be_pending_once_more() -> None:
    """SDM 10.8.4: one in ISR, one in IRR; a third is lost in the second."""
    bench = Bench()
    again = [True]

    def more() -> None:
        if again.pop() if again else False:
            for _ in range(3):
                bench.post(0x41)
                bench.poll()

    bench.vector(0x41, more)
    assert bench.interrupt(0x41) == ["41 on", "41", "41 on", "41"]


# -- EOI ----


def test_a_handler_may_write_eoi_itself() -> None:
    """What was held back comes at that point; the interrupted handler's own vector stays in service."""
    bench = Bench()
    served: list[int] = []
    bench.vector(0x41, bench.poster(0x51), bench.poll, lambda: served.append(bench.apic.isr))
    bench.vector(0x51, bench.poster(0x52), lambda: bench.vcpu.write_apic(MSR["EOI"], 0))
    bench.vector(0x52)
    assert bench.interrupt(0x41) == ["41 on", "51 on", "52", "51", "41"]
    assert served == [1 << 0x41] and bench.apic.isr == 0


def test_an_exception_in_a_handler_ends_its_vector() -> None:
    """A broken handler does not block its class for ever."""
    bench = Bench()

    def fail() -> None:
        raise RuntimeError("broken")

    bench.vector(0x41, fail)
    bench.vector(0x42)
    with pytest.raises(RuntimeError, match="broken"):
        bench.interrupt(0x41)
    assert bench.apic.isr == 0
    assert bench.interrupt(0x42)[-1] == "42"


# -- holding back ----


def test_interrupts_off_inside_a_handler() -> None:
    """CLI in a handler: no class preempts before STI, which is an interruption point."""
    bench = Bench()
    bench.vector(0x41, bench.off, bench.poster(0x91), bench.poll, lambda: bench.log.append("sti"), bench.on)
    bench.vector(0x91)
    assert bench.interrupt(0x41) == ["41 on", "sti", "91", "41"]


def test_a_handler_that_leaves_interrupts_off() -> None:
    """Nothing more is delivered until they are on; nothing is lost."""
    bench = Bench()
    bench.vector(0x41, bench.off)
    bench.vector(0x31)
    assert bench.interrupt(0x41, 0x31) == ["41 on", "41"]
    bench.post(0x31)
    bench.poll()
    assert bench.log == ["41 on", "41"]
    bench.on()
    assert bench.log == ["41 on", "41", "31"]


@pytest.mark.parametrize(
    ("tpr", "vector", "delivered"),
    [
        (0x00, 0x20, True), (0x0F, 0x10, True), (0x1F, 0x20, True), (0x20, 0x2F, False), (0x2F, 0x30, True),
        (0x40, 0x41, False), (0x4F, 0x50, True), (0x50, 0x4F, False), (0xEF, 0xFF, True), (0xF0, 0xFF, False),
    ],
)  # fmt: skip
def test_the_tpr_holds_back_its_class_and_those_below(tpr: int, vector: int, delivered: bool) -> None:
    """SDM 10.8.3: class above the TPR's; lowering it delivers what was held."""
    bench = Bench()
    bench.vector(vector)
    bench.vcpu.set_priority(tpr)
    assert bench.interrupt(vector) == ([f"{vector:x}"] if delivered else [])
    bench.vcpu.set_priority(0)
    assert bench.log == [f"{vector:x}"]


def test_a_handler_may_raise_the_tpr_against_others() -> None:
    """Between the raise and the fall a higher class is held back too."""
    bench = Bench()
    bench.vector(
        0x41, lambda: bench.vcpu.set_priority(0x90), bench.poster(0x91), bench.poll,
        lambda: bench.log.append("down"), lambda: bench.vcpu.set_priority(0),
    )  # fmt: skip
    bench.vector(0x91)
    assert bench.interrupt(0x41) == ["41 on", "down", "91", "41"]


def test_a_software_disabled_apic_accepts_nothing_and_keeps_what_it_has() -> None:
    """SDM 10.4.7.2: IRR and ISR are held; a fixed interrupt that comes meanwhile is lost."""
    bench = Bench()
    for vector in (0x41, 0x51):
        bench.vector(vector)
    bench.off()
    assert bench.interrupt(0x41) == []
    bench.vcpu.write_apic(MSR["SVR"], DISABLED)
    bench.on()
    assert bench.interrupt(0x51) == [], "neither the one that is held nor the one that comes"
    bench.vcpu.write_apic(MSR["SVR"], ENABLED)
    assert bench.log == ["41"] and bench.apic.irr == 0


# -- what nobody handles ----


@pytest.mark.parametrize(
    "entry",
    [post_entry(Post.VECTOR, 0x77), post_entry(Post.VECTOR, 256), post_entry(Post.VECTOR, 0xFF_FFFF),
     post_entry(Post.NMI, 0), post_entry(Post.EXTINT, 7), post_entry(Post.PORT, 1), post_entry(Post.LR, 0),
     0, 6 << 24, 0xFFFF_FFFF],
)  # fmt: skip
def test_what_nobody_handles_is_counted(entry: int) -> None:
    """A vector, a line, an NMI without handler; a port without page; a vector that is none; a kind that is none."""
    bench = Bench()
    bench.side.post(entry)
    bench.poll()
    assert (bench.vcpu.counters.interrupts_spurious, bench.vcpu.counters.interrupts_delivered) == (1, 0)
    assert bench.apic.isr == bench.apic.irr == 0, "its EOI was written"


@pytest.mark.parametrize("vector", [0, 15])
def test_an_illegal_vector_is_an_error_of_the_apic(vector: int) -> None:
    """SDM 10.5.3: received illegal vector, ESR bit 6; nothing is delivered."""
    bench = Bench()
    bench.vector(vector)
    assert bench.interrupt(vector) == []
    bench.vcpu.write_apic(MSR["ESR"], 0)
    assert bench.apic.esr == 1 << 6


# -- lines and ports beside vectors ----


def test_lines_and_ports_ignore_the_tpr_but_not_the_interrupt_flag() -> None:
    """An external interrupt and Xen's direct upcall do not pass the local APIC's priorities."""
    bench = Bench()
    page = EventChannelPage(Window(bytearray(PAGE_SIZE), 0, PAGE_SIZE))
    bench.vcpu.attach_page(page)
    bench.vcpu.on_line(7, lambda: bench.log.append("line"))
    bench.vcpu.on_port(5, lambda: bench.log.append("port"))
    bench.vector(0x41)
    bench.vcpu.set_priority(0xFF)
    bench.off()
    for entry in (post_entry(Post.EXTINT, 7), post_entry(Post.PORT, 5)):
        bench.side.post(entry)
    assert bench.interrupt(0x41) == []
    bench.on()
    assert bench.log == ["line", "port"]
    bench.vcpu.set_priority(0)
    assert bench.log == ["line", "port", "41"]


def test_an_upcall_after_one_that_cleared_the_flag_waits() -> None:
    """A port's handler that leaves interrupts off stops further upcalls, and loses none."""
    bench = Bench()
    bench.vcpu.attach_page(EventChannelPage(Window(bytearray(PAGE_SIZE), 0, PAGE_SIZE)))

    def first() -> None:
        bench.log.append("first")
        bench.side.post(post_entry(Post.PORT, 70))
        bench.off()
        bench.poll()

    bench.vcpu.on_port(5, first)
    bench.vcpu.on_port(70, lambda: bench.log.append("second"))
    bench.side.post(post_entry(Post.PORT, 5))
    bench.poll()
    assert bench.log == ["first"]
    bench.on()
    assert bench.log == ["first", "second"]


# -- NMI ----


def test_an_nmi_comes_through_everything() -> None:
    """SDM 6.7: neither IF nor a priority holds it back."""
    bench = Bench()
    bench.nmi()
    bench.off()
    bench.vcpu.set_priority(0xFF)
    bench.post_nmi()
    bench.poll()
    assert bench.log == ["nmi"] and bench.vcpu.counters.interrupts_delivered == 1


def test_an_nmi_interrupts_any_handler() -> None:
    """At the handler's next interruption point, even with interrupts off."""
    bench = Bench()
    bench.nmi()
    bench.vector(0xF1, bench.off, bench.post_nmi, bench.poll, bench.on)
    assert bench.interrupt(0xF1) == ["f1 on", "nmi", "f1"]


def test_an_nmi_is_not_interrupted() -> None:
    """SDM 6.7.1: further NMIs wait for its end and are one; its gate has cleared IF, so everything else waits too."""
    bench = Bench()
    more = [bench.post_nmi, bench.poll, bench.post_nmi, bench.poll, bench.poster(0xF1), bench.poll]

    def once() -> None:
        while more:
            more.pop(0)()

    bench.nmi(once)
    bench.vector(0xF1)
    bench.post_nmi()
    bench.poll()
    assert bench.log == ["nmi on", "nmi", "nmi on", "nmi", "f1"]


# -- IPIs ----


def three() -> list[Bench]:
    benches = [Bench(index) for index in range(3)]
    connect_apics([bench.vcpu for bench in benches])
    for bench in benches:
        bench.vector(0x41)
        bench.nmi()
    return benches


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (1 << 32 | 0x41, [[], ["41"], []]),
        (0 << 32 | 0x41, [["41"], [], []]),  # oneself by id
        (0xFFFF_FFFF << 32 | 0x41, [["41"], ["41"], ["41"]]),
        (OTHERS | 0x41, [[], ["41"], ["41"]]),
        (ALL | 0x41, [["41"], ["41"], ["41"]]),
        (SELF | 0x41, [["41"], [], []]),
        (0b110 << 32 | LOGICAL | 0x41, [[], ["41"], ["41"]]),  # cluster 0, members 1 and 2
        (2 << 32 | NMI, [[], [], ["nmi"]]),
        (OTHERS | NMI, [[], ["nmi"], ["nmi"]]),
        (7 << 32 | 0x41, [[], [], []]),  # an id that nobody has
        (1 << 32 | 0x0F, [[], [], []]),  # an illegal vector is not sent
        (1 << 32 | INIT, [[], [], []]),
        (1 << 32 | STARTUP | 0x10, [[], [], []]),
        (1 << 32 | SMI, [[], [], []]),
    ],
)
def test_an_ipi_reaches_whom_it_names(command: int, expected: list[list[str]]) -> None:
    """SDM 10.6, 10.12.9: an ICR write of vCPU 0, without an exit."""

    async def main() -> None:
        benches = three()
        benches[0].vcpu.write_apic(MSR["ICR"], command)
        assert [bench.log for bench in benches[1:]] == [[], []], "another vCPU is interrupted at its own points only"
        await asyncio.sleep(0)
        assert [bench.log for bench in benches] == expected
        stops = command >> 8 & 7 in (INIT >> 8, STARTUP >> 8, SMI >> 8)
        assert benches[1].vcpu.counters.interrupts_spurious == stops
        assert all(bench.vcpu.counters.traps == 0 for bench in benches)
        benches[0].vcpu.write_apic(MSR["ESR"], 0)
        assert benches[0].apic.esr == (1 << 5 if command & 0x7FF == 0x0F else 0)

    asyncio.run(main())


def test_an_ipi_is_held_back_like_any_vector() -> None:
    """By the receiver's TPR and interrupt flag; an NMI by neither."""

    async def main() -> None:
        sender, receiver, _ = three()
        receiver.vcpu.set_priority(0x40)
        sender.vcpu.write_apic(MSR["ICR"], 1 << 32 | 0x41)
        await asyncio.sleep(0)
        assert receiver.log == []
        receiver.off()
        receiver.vcpu.set_priority(0)
        sender.vcpu.write_apic(MSR["ICR"], 1 << 32 | NMI)
        await asyncio.sleep(0)
        assert receiver.log == ["nmi"]
        receiver.on()
        assert receiver.log == ["nmi", "41"]

    asyncio.run(main())


def test_the_self_ipi_register() -> None:
    """SDM 10.12.11: a WRMSR of 0x83F interrupts at once, above what is in service only."""

    async def main() -> None:
        bench = three()[0]
        bench.vector(0x51, lambda: bench.vcpu.write_apic(MSR["SELF_IPI"], 0x41))
        bench.vcpu.write_apic(MSR["SELF_IPI"], 0x51)
        assert bench.log == ["51 on", "51", "41"]
        with pytest.raises(ApicFault):
            bench.vcpu.write_apic(MSR["SELF_IPI"], 0x100)

    asyncio.run(main())
