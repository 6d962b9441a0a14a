"""What a run of calls announces: twice at most to one guest, never too few times, and counted message by message."""

from __future__ import annotations

import pytest

from hmx.trap import Kind
from tests.doubles.machine import Guest, Machine
from tests.hv_node.test_hypervisor import take_posts, two


def counted(guest: Guest) -> tuple[int, int, int]:
    counters = guest.hvm.counters
    return counters.interrupts_raised, counters.interrupts_posted, counters.interrupts_coalesced


def ready(messages: int) -> tuple[Machine, Guest, Guest]:
    """A receiver with a ring and a binding, and `messages` sends that nobody has executed yet."""
    machine, sender, receiver = two()
    receiver.bind_virq()
    receiver.register(0x64)
    for slot in range(messages):
        sender.submit(Kind.VMCALL, sender.send_regs(2, 0x64, b"x", slot=slot))
    return machine, sender, receiver


@pytest.mark.parametrize("messages", [1, 2, 10])
def test_a_run_of_messages_is_one_interrupt(messages: int) -> None:
    """Each counts as raised; all but the first fall together with it (contracts.md 10)."""
    _, sender, receiver = ready(messages)
    sender.run()
    assert len(take_posts(receiver)) == 1
    assert counted(receiver) == (messages, 1, messages - 1)


@pytest.mark.parametrize("last", range(1, 10))
def test_whoever_looked_in_the_middle_of_a_run_is_told_again(last: int) -> None:
    """A guest on another CPU takes its interrupt after message `last` of ten and looks: it must hear of the others."""
    machine, sender, receiver = ready(10)
    written, taken = [0], []

    def on_payload_written(_ring: object) -> None:
        written[0] += 1
        if written[0] == last + 1:
            taken.extend(take_posts(receiver))

    machine.core.argo.on_payload_written = on_payload_written
    sender.run()
    assert len(taken) == 1
    assert len(take_posts(receiver)) == 1
    assert counted(receiver) == (10, 2, 8)


def test_runs_that_alternate_between_receivers_forget_none() -> None:
    """What one guest is owed is announced before another's turn to be announced to."""
    machine, sender, receiver = two()
    third = machine.guest(3)
    for guest in (receiver, third):
        guest.bind_virq()
        guest.register(0x64)
    written = [0]

    def on_payload_written(_ring: object) -> None:
        written[0] += 1
        if written[0] in (3, 6):
            for guest in (receiver, third):
                take_posts(guest)

    machine.core.argo.on_payload_written = on_payload_written
    for slot, domid in enumerate((2, 2, 3, 3, 2, 2, 3, 2)):
        sender.submit(Kind.VMCALL, sender.send_regs(domid, 0x64, b"x", slot=slot))
    sender.run()
    for guest in (receiver, third):
        assert len(take_posts(guest)) == 1
        raised, posted, coalesced = counted(guest)
        assert raised == posted + coalesced


def test_nothing_is_owed_after_a_run() -> None:
    """A call by another way announces at once."""
    _, sender, receiver = ready(3)
    sender.run()
    take_posts(receiver)
    sender.send(2, 0x64, b"y")
    assert len(take_posts(receiver)) == 1
