"""Lane arithmetic: sequence and acknowledgement modulo 2^32, credit that is never made or lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.envelope import Use
from broker.frames import SEQ_MASK, Lane, LaneLimits
from broker.lanes import LaneState
from broker.refusals import Refusal, Violation

SMALL = LaneLimits(Lane.REQUEST, window=6, reserve=4, queue_records=9, queue_bytes=999, max_payload=9, ack_after=3)


@contextmanager
def refused(code: Refusal) -> Iterator[None]:
    with pytest.raises(Violation) as caught:
        yield
    assert caught.value.code is code


def test_a_window_is_used_and_returned() -> None:
    """Credit is spent by sending and comes back by acknowledgement only."""
    lane = LaneState(SMALL)
    assert lane.sent([Use.ORDINARY] * 6) == 0
    assert (lane.credit, lane.in_flight) == (0, 6)
    with pytest.raises(ValueError, match="credit for 0"):
        lane.sent([Use.ORDINARY])
    assert lane.acknowledged(4) == 4
    assert (lane.credit, lane.in_flight, lane.next_seq) == (4, 2, 6)
    assert lane.acknowledged(4) == 0
    assert lane.sent([Use.ORDINARY] * 4) == 6


def test_a_result_needs_no_window() -> None:
    """A result uses the room that its request reserved: it leaves although the window is full."""
    lane = LaneState(SMALL)
    lane.received([Use.REQUEST])
    lane.sent([Use.ORDINARY] * 6)
    assert lane.reserve(Use.RESULT)
    assert lane.sent([Use.RESULT]) == 6
    assert lane.acknowledged(7) == 7
    assert lane.credit == 6


def test_reservations_are_taken_when_queued() -> None:
    """At most `reserve` requests wait for their results; a result answers a request once."""
    lane = LaneState(SMALL)
    assert [lane.reserve(Use.REQUEST) for _ in range(5)] == [True] * 4 + [False]
    assert lane.request_credit == 0
    assert not lane.reserve(Use.RESULT)
    lane.received([Use.REQUEST])
    assert [lane.reserve(Use.RESULT) for _ in range(2)] == [True, False]
    lane.received([Use.RESULT])
    assert lane.request_credit == 1


def test_gaps_and_replays() -> None:
    """A receiver asserts that nothing is missing and nothing comes twice, across the wrap as well."""
    lane = LaneState(SMALL)
    lane.expected = SEQ_MASK
    lane.check_seq(SEQ_MASK)
    with refused(Refusal.SEQ_GAP):
        lane.check_seq(0)
    with refused(Refusal.REPLAYED):
        lane.check_seq(SEQ_MASK - 1)
    lane.received([Use.ORDINARY] * 2)
    assert lane.expected == 1
    with refused(Refusal.REPLAYED):
        lane.check_seq(SEQ_MASK)


def test_acknowledgements_that_cannot_be() -> None:
    """What was never sent cannot be acknowledged, nor what was acknowledged taken back."""
    lane = LaneState(SMALL)
    lane.next_seq = SEQ_MASK
    lane.sent([Use.ORDINARY] * 3)
    for ack in (3, 1 << 31, SEQ_MASK - 1):
        with refused(Refusal.BAD_ACK):
            lane.acknowledged(ack)
    assert lane.acknowledged(0) == 1
    with refused(Refusal.BAD_ACK):
        lane.acknowledged(SEQ_MASK)
    assert lane.acknowledged(2) == 2
    assert lane.credit == 6


def test_a_peer_without_credit_is_refused() -> None:
    """More than a window unacknowledged, more requests than reservations, a result nobody asked for."""
    lane = LaneState(SMALL)
    with refused(Refusal.UNASKED_RESULT):
        lane.received([Use.ORDINARY, Use.RESULT])
    with refused(Refusal.OVERRUN):
        lane.received([Use.REQUEST] * 5)
    lane.received([Use.ORDINARY] * 4)
    assert (lane.expected, lane.owed) == (4, 0), "a refused frame leaves no trace"
    with refused(Refusal.OVERRUN):
        lane.received([Use.ORDINARY] * 3)
    assert lane.reported() == 4
    lane.received([Use.ORDINARY] * 6)


def test_when_to_acknowledge() -> None:
    """A bare acknowledgement is due after `ack_after` records, results included; any frame that left resets it."""
    lane = LaneState(SMALL)
    lane.reserve(Use.REQUEST)
    lane.received([Use.ORDINARY, Use.RESULT])
    due = lane.ack_due
    assert not due
    lane.received([Use.ORDINARY])
    assert (lane.ack_due, lane.reported(), lane.ack_due) == (True, 3, False)


class TwoEnds(RuleBasedStateMachine):
    """Two ends of a lane and the ordered channels between them, driven at random.

    Conserved at every step, for each direction: window = credit + ordinary records under way + those
    consumed whose acknowledgement is under way or owed; and every reservation is in exactly one place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = (LaneState(SMALL), LaneState(SMALL))
        self.queues: tuple[deque[Use], deque[Use]] = (deque(), deque())
        self.channels: tuple[deque[tuple[int, int, list[Use]]], ...] = (deque(), deque())
        for end in self.ends:  # near the wrap
            end.next_seq = end.expected = end.acknowledged_to = SEQ_MASK - 7

    side = st.integers(0, 1)

    @rule(side=side, use=st.sampled_from(Use))
    def queue(self, side: int, use: Use) -> None:
        """A record enters a queue if its reservation allows."""
        if self.ends[side].reserve(use):
            self.queues[side].append(use)

    @rule(side=side, most=st.integers(1, 4))
    def send(self, side: int, most: int) -> None:
        """A frame leaves with as much as credit allows, or only an acknowledgement."""
        end, queue = self.ends[side], self.queues[side]
        batch: list[Use] = []
        credit = end.credit
        while queue and len(batch) < most and (queue[0] is Use.RESULT or credit):
            credit -= queue[0] is not Use.RESULT
            batch.append(queue.popleft())
        seq = end.sent(batch) if batch else end.next_seq
        self.channels[side].append((seq, end.reported(), batch))

    @precondition(lambda self: self.channels[0] or self.channels[1])
    @rule(side=side)
    def arrive(self, side: int) -> None:
        """The oldest frame in a channel arrives; a conforming peer is never refused."""
        if self.channels[side]:
            seq, ack, batch = self.channels[side].popleft()
            end = self.ends[1 - side]
            end.check_seq(seq)
            end.acknowledged(ack)
            end.received(batch)

    @invariant()
    def credit_is_conserved(self) -> None:
        """Sum over all places where a window's credit can be."""
        for side in (0, 1):
            sender, receiver = self.ends[side], self.ends[1 - side]
            assert 0 <= sender.credit <= SMALL.window
            flying = sum(use is not Use.RESULT for _, _, batch in self.channels[side] for use in batch)
            consumed = sender.ordinary_in_flight - flying
            assert consumed >= receiver.consumed_ordinary, "consumed and not yet told: at least what the receiver owes"
            acks = [ack for _, ack, _ in self.channels[1 - side]]
            if not acks and not receiver.unreported:
                assert consumed == 0, "nothing under way that could return credit, so none may be missing"

    @invariant()
    def reservations_are_conserved(self) -> None:
        """A request's reservation waits in a queue, a channel, at the far end, or with its result on the way back."""
        for side in (0, 1):
            requests = sum(use is Use.REQUEST for use in self.queues[side])
            requests += sum(use is Use.REQUEST for _, _, batch in self.channels[side] for use in batch)
            results = sum(use is Use.RESULT for use in self.queues[1 - side])
            results += sum(use is Use.RESULT for _, _, batch in self.channels[1 - side] for use in batch)
            assert self.ends[side].outstanding == requests + results + self.ends[1 - side].owed
            assert 0 <= self.ends[side].outstanding <= SMALL.reserve

    def teardown(self) -> None:
        """Let everything through and answer every request: all credit is home, so nothing ever deadlocks."""
        for _ in range(40):
            for side in (0, 1):
                while self.ends[side].owed:
                    self.queue(side, Use.RESULT)
                self.send(side, 4)
            for side in (0, 1):
                while self.channels[side]:
                    self.arrive(side)
        for end, queue in zip(self.ends, self.queues, strict=True):
            assert not queue
            assert (end.credit, end.outstanding, end.owed) == (SMALL.window, 0, 0)


TwoEnds.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTwoEnds = TwoEnds.TestCase


@given(st.lists(st.tuples(st.integers(0, SEQ_MASK), st.integers(0, SEQ_MASK), st.lists(st.sampled_from(Use)))))
def test_any_frame_is_taken_or_refused(arriving: list[tuple[int, int, list[Use]]]) -> None:
    """A hostile peer's numbers cause violations and nothing else; credit stays within its bounds."""
    lane = LaneState(SMALL)
    lane.sent([Use.ORDINARY] * 3)
    for seq, ack, uses in arriving:
        try:
            lane.check_seq(seq)
            lane.acknowledged(ack)
            lane.received(uses)
        except Violation:
            pass
        assert 0 <= lane.credit <= SMALL.window
        assert 0 <= lane.outstanding <= SMALL.reserve
        assert 0 <= lane.owed <= SMALL.reserve
