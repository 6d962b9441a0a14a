"""Sequence, acknowledgement and credit of one lane at one end, without I/O.

Credit is counted in records.  A sender may have `window` of them unacknowledged; an acknowledgement is given
when the receiver has consumed a record, and returns its credit.  A request also reserves room for its result
at the requester, at most `reserve` at a time: the result then needs no credit of its own, and so can always
be sent.  The reservation is taken when the request enters the queue, so a queue never waits for anything but
acknowledgements, which depend on nothing: requests crossing requests cannot deadlock, and no record has to
overtake another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from broker.envelope import Use
from broker.frames import SEQ_MASK, LaneLimits
from broker.refusals import Refusal, Violation

_REQUEST: Final = Use.REQUEST  # looked up once: a member of an enumeration costs more than a global
_RESULT: Final = Use.RESULT


class LaneState:
    """One end of one lane.  Every method either moves the state or raises and leaves it as it was."""

    __slots__ = (
        "_unacknowledged",
        "acknowledged_to",
        "consumed_ordinary",
        "expected",
        "limits",
        "next_seq",
        "ordinary_in_flight",
        "outstanding",
        "owed",
    )

    def __init__(self, limits: LaneLimits) -> None:
        self.limits = limits
        self.next_seq = 0
        self.ordinary_in_flight = 0
        self.outstanding = 0  # requests of ours without their result
        self.expected = 0  # number of the next record from the peer
        self.acknowledged_to = 0  # `expected` when the peer was last told
        self.consumed_ordinary = 0  # of the records since then, those that used the peer's window
        self.owed = 0  # requests of the peer that we have not answered
        self._unacknowledged: deque[bool] = deque()  # in order sent; True: used our window

    @property
    def credit(self) -> int:
        """Records that the window still takes."""
        return self.limits.window - self.ordinary_in_flight

    @property
    def request_credit(self) -> int:
        """Requests for whose results there is room."""
        return self.limits.reserve - self.outstanding

    @property
    def in_flight(self) -> int:
        """Records sent and not acknowledged, results included."""
        return len(self._unacknowledged)

    @property
    def unreported(self) -> int:
        """Records consumed that the peer has not been told of."""
        return (self.expected - self.acknowledged_to) & SEQ_MASK

    @property
    def ack_due(self) -> bool:
        """Whether enough was consumed for an acknowledgement of its own."""
        return self.unreported >= self.limits.ack_after

    def reserve(self, use: Use) -> bool:
        """Take the reservation that a record entering the queue needs.  False: there is none, do not queue it."""
        if use is Use.REQUEST:
            if self.request_credit <= 0:
                return False
            self.outstanding += 1
        elif use is Use.RESULT:
            if self.owed <= 0:
                return False
            self.owed -= 1
        return True

    def sent(self, uses: Sequence[Use]) -> int:
        """Number the records of one frame and charge them.  The number of the first.  ValueError without credit."""
        charged = [use is not _RESULT for use in uses]
        cost = sum(charged)
        if cost > self.credit:
            raise ValueError(f"{cost} records to send, credit for {self.credit}")
        seq = self.next_seq
        self.next_seq = (seq + len(charged)) & SEQ_MASK
        self.ordinary_in_flight += cost
        self._unacknowledged.extend(charged)
        return seq

    def acknowledged(self, ack: int) -> int:
        """The peer expects record `ack` next: how many records that newly acknowledges."""
        waiting = self._unacknowledged
        count = (ack - self.next_seq + len(waiting)) & SEQ_MASK
        if not count:
            return 0
        if count > len(waiting):
            raise Violation(
                Refusal.BAD_ACK, f"acknowledged up to {ack}, sent up to {self.next_seq}, {len(waiting)} open"
            )
        for _ in range(count):
            self.ordinary_in_flight -= waiting.popleft()
        return count

    def check_seq(self, seq: int) -> None:
        """A frame of the peer starts at `seq`.  Violation: REPLAYED when it lies behind, SEQ_GAP ahead."""
        ahead = (seq - self.expected) & SEQ_MASK
        if ahead == 0:
            return
        code = Refusal.SEQ_GAP if ahead <= SEQ_MASK // 2 else Refusal.REPLAYED
        raise Violation(code, f"lane {self.limits.lane.name} expected record {self.expected}, got {seq}")

    def received(self, uses: Sequence[Use]) -> None:
        """Account for the records of a frame in sequence.  Violation when the peer had no credit."""
        if self.receive(uses):
            return
        results, requests = uses.count(_RESULT), uses.count(_REQUEST)
        if results > self.outstanding:
            first = [at for at, use in enumerate(uses) if use is _RESULT][self.outstanding]
            raise Violation(Refusal.UNASKED_RESULT, f"record {self.expected + first} of {self.limits.lane.name}")
        ordinary, owed = self.consumed_ordinary + len(uses) - results, self.owed + requests
        detail = f"{ordinary} of {self.limits.window} records, {owed} of {self.limits.reserve} requests"
        raise Violation(Refusal.OVERRUN, f"lane {self.limits.lane.name}: {detail}")

    def receive(self, uses: Sequence[Use]) -> bool:
        """The same, without a word about what is wrong: False, and nothing has changed."""
        results = uses.count(_RESULT)
        outstanding, owed = self.outstanding - results, self.owed + uses.count(_REQUEST)
        ordinary = self.consumed_ordinary + len(uses) - results
        if outstanding < 0 or ordinary > self.limits.window or owed > self.limits.reserve:
            return False
        self.expected, self.consumed_ordinary = (self.expected + len(uses)) & SEQ_MASK, ordinary
        self.outstanding, self.owed = outstanding, owed
        return True

    def reopened(self) -> None:
        """A result that was received answered nothing: the request whose room it took still waits for its own."""
        self.outstanding += 1

    def reported(self) -> int:
        """A frame is about to tell the peer what was consumed: the value for its `ack` field."""
        self.acknowledged_to = self.expected
        self.consumed_ordinary = 0
        return self.expected
