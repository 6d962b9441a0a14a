"""Who waits for room where: questions, answers, and no lost waiter."""

from __future__ import annotations

from hmx.argo.abi import Address, NotifyFlag
from hmx.argo.calls import SpaceAnswer, SpaceQuery
from hmx.argo.wakeups import Outcome, Wakeups
from hmx.errno import Errno

A, B, C = Address(1, 1), Address(2, 1), Address(1, 2)
EXISTS = NotifyFlag.EXISTS
ROOM = SpaceAnswer(EXISTS | NotifyFlag.SUFFICIENT, 80)
ARMED = SpaceAnswer(EXISTS, 80)
TOO_BIG = SpaceAnswer(EXISTS | NotifyFlag.EMSGSIZE, 80)
BUSY = SpaceAnswer(EXISTS | NotifyFlag.EBUSY, 80)
GONE = SpaceAnswer(0, 0xAAAA)


def test_each_answer() -> None:
    """Every outcome ends the wait it belongs to; no flag means: wait on."""
    wakeups = Wakeups()
    for index, address in enumerate((A, B, C, Address(3, 3), Address(4, 4))):
        wakeups.want(address, 10 + index, f"w{index}")
    assert wakeups.batch() == [
        SpaceQuery(A, 10),
        SpaceQuery(B, 11),
        SpaceQuery(C, 12),
        SpaceQuery(Address(3, 3), 13),
        SpaceQuery(Address(4, 4), 14),
    ]
    assert wakeups.absorb(0, [ROOM, ARMED, TOO_BIG, BUSY, GONE]) == [
        ("w0", Outcome.SUFFICIENT),
        ("w2", Outcome.TOO_BIG),
        ("w3", Outcome.BUSY),
        ("w4", Outcome.GONE),
    ]
    assert len(wakeups) == 1
    assert wakeups.batch() == []
    assert not wakeups.pending()
    wakeups.woken()
    assert wakeups.pending()
    assert wakeups.batch() == [SpaceQuery(B, 11)]
    assert wakeups.absorb(0, [ROOM]) == [("w1", Outcome.SUFFICIENT)]
    assert wakeups.batch() == []


def test_waiters_of_one_ring_go_in_order() -> None:
    """One question at a time, for the first in line; the next follows at once, not at the next VIRQ."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "first")
    wakeups.want(A, 20, "second")
    assert wakeups.batch() == [SpaceQuery(A, 50)]
    assert wakeups.absorb(0, [ROOM]) == [("first", Outcome.SUFFICIENT)]
    assert wakeups.batch() == [SpaceQuery(A, 20)]
    assert wakeups.absorb(0, [ARMED]) == []
    assert wakeups.batch() == []


def test_gone_ends_all_of_a_ring() -> None:
    """A ring that is not there has no use for any of its waiters."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "first")
    wakeups.want(A, 20, "second")
    wakeups.batch()
    assert wakeups.absorb(0, [GONE]) == [("first", Outcome.GONE), ("second", Outcome.GONE)]
    assert len(wakeups) == 0


def test_a_smaller_question_disarms_first() -> None:
    """The hypervisor keeps the largest size: one about 0 bytes makes it forget."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "big")
    wakeups.batch()
    wakeups.absorb(0, [ARMED])
    wakeups.forget("big")
    wakeups.want(A, 20, "small")
    assert wakeups.batch() == [SpaceQuery(A, 0), SpaceQuery(A, 20)]
    assert wakeups.absorb(0, [ROOM, ARMED]) == []
    wakeups.woken()
    assert wakeups.batch() == [SpaceQuery(A, 20)]


def test_the_last_one_out_disarms() -> None:
    """Nobody waits any more: the slot in the ring's queue is given back, and the place forgotten."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "only")
    wakeups.batch()
    wakeups.absorb(0, [ARMED])
    wakeups.forget("only")
    wakeups.forget("only")
    assert wakeups.pending()
    assert wakeups.batch() == [SpaceQuery(A, 0)]
    assert wakeups.absorb(0, [ROOM]) == []
    assert wakeups.batch() == []
    assert not wakeups.pending()


def test_eagain_has_armed_already() -> None:
    """No question is needed after -EAGAIN, unless a VIRQ slipped in between the call and the wait."""
    wakeups = Wakeups()
    before = wakeups.generation
    wakeups.want(A, 50, "w", armed_since=before)
    assert wakeups.batch() == []
    wakeups.woken()
    assert wakeups.batch() == [SpaceQuery(A, 50)]
    assert wakeups.absorb(0, [ROOM]) == [("w", Outcome.SUFFICIENT)]
    before = wakeups.generation
    wakeups.woken()  # the handler ran before the driver came to wait
    wakeups.want(B, 50, "w", armed_since=before)
    assert wakeups.batch() == [SpaceQuery(B, 50)]


def test_zero_bytes_ask_for_one() -> None:
    """Room for nothing is always sufficient, though a bare header may not fit."""
    wakeups = Wakeups()
    wakeups.want(A, 0, "w")
    assert wakeups.batch() == [SpaceQuery(A, 1)]


def test_a_virq_while_a_batch_is_out() -> None:
    """What was asked before the VIRQ is asked again."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "w")
    wakeups.batch()
    wakeups.woken()
    assert wakeups.absorb(0, [ARMED]) == []
    assert wakeups.batch() == [SpaceQuery(A, 50)]


def test_a_waiter_that_left_while_a_batch_was_out() -> None:
    """Its answer ends nobody else's wait by mistake; the next in line is asked for."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "leaves")
    wakeups.want(A, 80, "stays")
    wakeups.batch()
    wakeups.forget("leaves")
    assert wakeups.absorb(0, [ROOM]) == []
    assert wakeups.batch() == [SpaceQuery(A, 80)]


def test_wanting_again_moves() -> None:
    """A waiter waits for one ring at a time."""
    wakeups = Wakeups()
    wakeups.want(A, 50, "w")
    wakeups.want(B, 60, "w")
    assert len(wakeups) == 1
    assert wakeups.batch() == [SpaceQuery(B, 60)]


def test_at_most_256_questions() -> None:
    """The rest comes in the next batch."""
    wakeups = Wakeups()
    for port in range(300):
        wakeups.want(Address(port, 1), 1, port)
    first = wakeups.batch()
    assert len(first) == 256
    assert wakeups.absorb(0, [ARMED] * 256) == []
    second = wakeups.batch()
    assert len(second) == 44
    assert len({query.address for query in first + second}) == 300


def test_a_denied_batch_is_asked_singly() -> None:
    """One denied entry fails the whole call: the culprit is found, the others are answered."""
    wakeups = Wakeups()
    for address, waiter in ((A, "a"), (B, "b"), (C, "c")):
        wakeups.want(address, 10, waiter)
    assert len(wakeups.batch()) == 3
    assert wakeups.absorb(-Errno.EPERM, []) == []
    ended = []
    for _ in range(3):
        batch = wakeups.batch()
        assert len(batch) == 1
        if batch[0].address == B:
            ended += wakeups.absorb(-Errno.EPERM, [])
        else:
            ended += wakeups.absorb(0, [ROOM])
    assert sorted(map(str, ended)) == sorted(
        map(str, [("a", Outcome.SUFFICIENT), ("b", Outcome.GONE), ("c", Outcome.SUFFICIENT)])
    )
    assert wakeups.batch() == []


def test_no_memory_is_busy() -> None:
    """-ENOMEM says nothing about the ring: try later."""
    wakeups = Wakeups()
    wakeups.want(A, 10, "a")
    wakeups.batch()
    assert wakeups.absorb(-Errno.ENOMEM, []) == [("a", Outcome.BUSY)]


def test_a_waiter_that_comes_while_a_disarming_question_is_out_is_asked_for() -> None:
    """A question about 0 bytes disarms; whoever began to wait meanwhile must be asked about, or sleeps for ever."""
    wakeups = Wakeups()
    address = Address(1, 2)
    wakeups.want(address, 100, "large")
    wakeups.absorb(0, [SpaceAnswer(EXISTS, 80) for _ in wakeups.batch()])
    wakeups.forget("large")
    (question,) = wakeups.batch()
    assert question == SpaceQuery(address, 0)
    wakeups.want(address, 50, "late", armed_since=wakeups.generation)
    wakeups.absorb(0, [ROOM])
    assert wakeups.batch() == [SpaceQuery(address, 50)]


def test_an_answer_that_disarms_ends_the_trust_in_an_earlier_refusal() -> None:
    """A send was refused and armed; before that is booked, another waiter's "sufficient" takes the arming away."""
    wakeups = Wakeups()
    address = Address(1, 2)
    before = wakeups.generation
    wakeups.want(address, 10, "first")
    wakeups.absorb(0, [ROOM for _ in wakeups.batch()])
    wakeups.want(address, 500, "refused", armed_since=before)
    assert wakeups.batch() == [SpaceQuery(address, 500)]
