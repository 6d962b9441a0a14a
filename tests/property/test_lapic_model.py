"""The local APIC against a reference model in the manual's words, and the laws of nesting, under random histories."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.cpu.lapic import LocalApic
from tests.doubles.lapic_model import ReferenceApic, bits

ENABLED: Final = 0x1FF
DISABLED: Final = 0x0FF
NO_BROADCAST: Final = 0x11FF
# Few classes, so that vectors meet; the edges of classes and of 32-bit registers among them.
VECTORS: Final = st.one_of(st.sampled_from([0, 15, 16, 31, 32, 48, 49, 63, 64, 65, 240, 255]), st.integers(0, 255))
PRIORITIES: Final = st.one_of(st.sampled_from([0, 0x0F, 0x1F, 0x20, 0x30, 0x3F, 0x40, 0xF0]), st.integers(0, 255))

Step = tuple[str, int]
STEPS: Final = st.one_of(
    st.tuples(st.just("edge"), VECTORS),
    st.tuples(st.just("edge"), VECTORS),
    st.tuples(st.just("level"), VECTORS),
    st.tuples(st.just("self"), VECTORS),
    st.tuples(st.sampled_from(["ack", "ack", "ack", "eoi", "eoi", "esr"]), st.just(0)),
    st.tuples(st.just("tpr"), PRIORITIES),
    st.tuples(st.just("cr8"), st.integers(0, 15)),
    st.tuples(st.just("svr"), st.sampled_from([ENABLED, ENABLED, NO_BROADCAST, DISABLED])),
)
HISTORIES: Final = st.lists(STEPS, max_size=60)


def enabled_apic() -> LocalApic:
    apic = LocalApic(3)
    apic.svr = ENABLED
    return apic


def drive(apic: LocalApic, step: Step) -> int | None:
    """One step on the APIC under test: through its methods, or through the MSRs where both exist."""
    name, value = step
    match name:
        case "edge" | "level":
            return apic.accept(value, name == "level")
        case "self":
            return apic.self_ipi(value)
        case "ack":
            return apic.acknowledge()
        case "eoi":
            return apic.eoi()
        case "tpr":
            apic.tpr = value
        case "cr8":
            apic.cr8 = value
        case "svr":
            apic.svr = value
        case "esr":
            apic.write(0x828, 0)
            return apic.read(0x828)
    return None


def drive_model(model: ReferenceApic, step: Step) -> int | None:
    name, value = step
    match name:
        case "edge" | "level":
            return model.message(value, name == "level")
        case "self":
            return model.self_ipi(value)
        case "ack":
            return model.dispatch()
        case "eoi":
            return model.end_of_interrupt()
        case "tpr":
            model.task_priority = value
        case "cr8":
            model.task_priority = 16 * value
        case "svr":
            model.software_enabled = value != DISABLED
            model.suppress_broadcast = value == NO_BROADCAST
        case "esr":
            return model.error_status()
    return None


@settings(max_examples=600)
@given(HISTORIES)
def test_every_history_agrees_with_the_manual(history: list[Step]) -> None:
    """After each step: the same answer, IRR, ISR, TMR, PPR and deliverable vector (SDM vol. 3A 10.8)."""
    apic, model = enabled_apic(), ReferenceApic()
    for step in history:
        assert drive(apic, step) == drive_model(model, step), step
        assert apic.irr == bits(model.requested)
        assert apic.isr == bits(model.in_service)
        assert apic.tmr == bits(model.level)
        assert apic.ppr == apic.read(0x80A) == model.processor_priority()
        assert apic.pending() == next(iter(model.deliverable()), None)
        for first, vectors in ((0x810, model.in_service), (0x818, model.level), (0x820, model.requested)):
            words = [apic.read(first + word) for word in range(8)]
            assert words == [bits({v - 32 * word for v in vectors if v // 32 == word}) for word in range(8)]


@settings(max_examples=300)
@given(HISTORIES)
def test_in_service_vectors_are_of_strictly_rising_classes(history: list[Step]) -> None:
    """Same-class vectors never nest, a higher class may always preempt (SDM vol. 3A 10.8.3.1)."""
    apic = enabled_apic()
    stack: list[int] = []  # what a processor would have on its stack
    for step in history:
        result = drive(apic, step)
        if step[0] == "ack" and result is not None:
            assert not stack or result >> 4 > stack[-1] >> 4
            stack.append(result)
        elif step[0] == "eoi" and stack:
            stack.pop()  # an EOI ends the innermost handler, whatever came in between
        assert apic.isr == bits(set(stack))


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(16, 255), max_size=6), max_size=30))
def test_nothing_accepted_is_lost(bursts: list[list[int]]) -> None:
    """Each vector's handler runs after its last accept, however deep the nesting, and never for nothing (10.8.4)."""
    apic = enabled_apic()
    accepted: list[int] = []
    ran: list[int] = []
    waiting = list(bursts)
    owed: set[int] = set()  # accepted and not run since

    def interruption_point() -> None:
        for vector in waiting.pop() if waiting else ():
            accepted.append(vector)
            owed.add(vector)
            apic.accept(vector)
        while (delivered := apic.acknowledge()) is not None:
            owed.remove(delivered)
            ran.append(delivered)
            interruption_point()
            apic.eoi()

    while waiting:
        interruption_point()
    assert not owed
    assert set(ran) == set(accepted)
    assert (apic.irr, apic.isr, apic.ppr) == (0, 0, 0)
