"""One end of the conversation between a node and the broker in one epoch: three lanes, queues, frames; no
I/O.

The same class serves both ends.  Records are queued by :meth:`Session.offer`; :meth:`Session.flush` turns
what is ready into frames (at most 64 records or 64 KiB each, whatever has gathered since the last flush, no
timer) as far as credit goes; :meth:`Session.accept` judges a received frame and moves the lanes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Final

from broker import frames
from broker.envelope import Envelope, Use
from broker.fields import RecordError
from broker.frames import MAX_FRAME, MAX_RECORDS, Frame, FrameKind, Lane, LaneLimits
from broker.lanes import LaneState
from broker.records import Direction, Incoming, Outgoing, Rejoin, decode_frame
from broker.refusals import Refusal, Violation


class SendResult(IntEnum):
    """What became of a frame given to a transport."""

    SENT = 1
    AGAIN = 2  # no room now; offer the same frame later
    UNREACHABLE = 3  # the peer is not there


Send = Callable[[Sequence[bytes]], SendResult]

_EMPTY_BODY: Final = b"\x90"
# What a node says last is ["exit", ...] on the control lane: what the other lanes hold leaves before it.
_FLUSH_ORDER: Final = (Lane.EVENT, Lane.REQUEST, Lane.CONTROL)


class _LaneEnd:
    """A lane's numbers, and the records that wait for credit or for acknowledgement."""

    __slots__ = ("dropped", "queue", "queued_bytes", "sent", "state", "unacknowledging")

    def __init__(self, limits: LaneLimits) -> None:
        self.state = LaneState(limits)
        self.queue: deque[Outgoing] = deque()
        self.queued_bytes = 0
        self.sent: deque[Outgoing | None] = deque()  # unacknowledged; None: not to be sent again
        self.unacknowledging = False  # an acknowledgement did not leave
        self.dropped = 0

    def full(self, size: int) -> bool:
        limits = self.state.limits
        return len(self.queue) >= limits.queue_records or self.queued_bytes + size > limits.queue_bytes

    def batch(self) -> list[Outgoing]:
        """What the next frame takes from the front of the queue, which credit and size limits allow."""
        credit = self.state.credit
        if len(self.queue) == 1 and credit > 0:
            return [self.queue[0]]
        size = 0
        taken: list[Outgoing] = []
        for record in self.queue:
            cost = record.use is not Use.RESULT
            size += record.packed.size
            if cost > credit or len(taken) == MAX_RECORDS or (taken and size > MAX_FRAME - 3):
                break
            credit -= cost
            taken.append(record)
        return taken

    def commit(self, batch: Sequence[Outgoing]) -> int:
        """Move `batch` from the queue into flight; the number of its first record."""
        seq = self.state.sent([record.use for record in batch])
        for record in batch:
            self.queue.popleft()
            self.queued_bytes -= record.packed.size
            self.sent.append(record if record.rejoin is Rejoin.RESEND else None)
        return seq

    def ack_value(self) -> int:
        self.unacknowledging = False
        return self.state.reported()


class Session:
    """One end, one epoch.  `incoming` is the direction of the records that this end receives."""

    def __init__(self, incoming: Direction, epoch: int, limits: Sequence[LaneLimits] = frames.LANES) -> None:
        self.incoming = incoming
        self.epoch = epoch
        self.frames_in = self.frames_out = self.records_in = self.records_out = 0
        self._limits = limits
        by_lane = {row.lane: row for row in limits}
        self._lanes = {lane: _LaneEnd(by_lane[lane]) for lane in _FLUSH_ORDER}
        self._held: list[bytes] | None = None

    def lane(self, lane: Lane) -> LaneState:
        """The numbers of one lane, for reading."""
        return self._lanes[lane].state

    def queued(self, lane: Lane) -> int:
        """Records of `lane` that wait for a flush or for credit."""
        return len(self._lanes[lane].queue)

    @property
    def dropped(self) -> int:
        """Records that were offered and not queued."""
        return sum(end.dropped for end in self._lanes.values())

    def credit(self, lane: Lane) -> int:
        """Records that would leave with the next flush if they were offered now; on a lane with
        reservations, the requests among them.
        """
        end = self._lanes[lane]
        free = max(0, end.state.credit - len(end.queue))
        return min(free, end.state.request_credit) if end.state.limits.reserve else free

    def offer(self, lane: Lane, record: Outgoing) -> bool:
        """Queue a record.  False, and counted: the queue is full, or there is no reservation for its use."""
        end = self._lanes[lane]
        if end.full(record.packed.size) or not end.state.reserve(record.use):
            end.dropped += 1
            return False
        end.queue.append(record)
        end.queued_bytes += record.packed.size
        return True

    def accept(self, frame: Frame) -> tuple[list[Incoming], list[RecordError]]:
        """Take a frame of the peer: its good records in order, and what was wrong with the others.

        Violation: the frame as a whole is refused.  After REPLAYED the session is as it was; after anything
        else it is over.
        """
        if frame.epoch != self.epoch:
            raise Violation(Refusal.STALE_EPOCH, f"epoch {frame.epoch}, here it is {self.epoch}")
        end = self._lanes[frame.lane]
        end.state.check_seq(frame.seq)
        for _ in range(end.state.acknowledged(frame.ack)):
            end.sent.popleft()
        self.frames_in += 1
        if frame.kind is FrameKind.ACK:
            return [], []
        good, bad = decode_frame(self.incoming, frame)
        if frame.lane is Lane.REQUEST:
            if bad:  # what an unreadable envelope would have reserved is unknown, so the accounts cannot go on
                raise Violation(Refusal.MALFORMED_FRAME, str(bad[0]))
            end.state.received([item.record.use for item in good if isinstance(item.record, Envelope)])
        else:
            end.state.received([Use.ORDINARY] * len(frame.records))
        self.records_in += len(frame.records)
        return good, bad

    def flush(self, send: Send) -> SendResult:
        """Give `send` every frame that credit allows, then acknowledgements that are due and had no frame to
        ride.

        AGAIN: the transport took no more; the frame that it refused is kept and goes first next time.
        """
        if self._held is not None:
            result = send(self._held)
            if result is not SendResult.SENT:
                return result
            self._held = None
        for lane, end in self._lanes.items():
            while end.queue and (batch := end.batch()):
                seq = end.commit(batch)
                packed = [record.packed for record in batch]
                parts = frames.assemble(lane, self.epoch, seq, end.ack_value(), packed)
                self.frames_out += 1
                self.records_out += len(batch)
                result = send(parts)
                if result is not SendResult.SENT:
                    self._held = parts
                    return result
        return self._acknowledge(send)

    def _acknowledge(self, send: Send) -> SendResult:
        for lane, end in self._lanes.items():
            state = end.state
            if end.unacknowledging or (state.expected != state.acknowledged_to and state.ack_due):
                result = send(self._ack_frame(lane))
                if result is not SendResult.SENT:
                    end.unacknowledging = True
                    return result
                self.frames_out += 1
        return SendResult.SENT

    @property
    def unsent(self) -> bool:
        """Whether a flush has something to try."""
        if self._held is not None:
            return True
        for end in self._lanes.values():
            state = end.state
            if end.queue or end.unacknowledging or (state.expected != state.acknowledged_to and state.ack_due):
                return True
        return False

    def probe(self, send: Send) -> SendResult:
        """Send something harmless, to learn whether the transport still reaches the peer."""
        if self._held is None:
            result = send(self._ack_frame(Lane.CONTROL))
            self._lanes[Lane.CONTROL].unacknowledging |= result is not SendResult.SENT
            return result
        result = send(self._held)
        if result is SendResult.SENT:
            self._held = None
        return result

    def _ack_frame(self, lane: Lane) -> list[bytes]:
        end = self._lanes[lane]
        header = frames.pack_header(FrameKind.ACK, lane, self.epoch, end.state.next_seq, end.ack_value(), 0)
        return [header, _EMPTY_BODY, b""]

    @property
    def settled(self) -> bool:
        """Whether nothing of the control lane is queued or unacknowledged: the peer has handled all that was said."""
        control = self._lanes[Lane.CONTROL]
        return self._held is None and not control.queue and not control.state.in_flight

    def successor(self, epoch: int, first: Iterable[Outgoing] = ()) -> Session:
        """The session after this one: `first`, then the control records that were not acknowledged, in
        order.

        They may therefore be delivered twice.  Events that never left are kept as well.  Requests are not
        repeated here: whoever owns the operation knows whether to repeat it, and names it so that a repeat
        is recognised.
        """
        after = Session(self.incoming, epoch, self._limits)
        for declaration in first:
            after.offer(Lane.CONTROL, declaration)
        end = self._lanes[Lane.CONTROL]
        for record in (*end.sent, *end.queue):
            if record is not None and record.rejoin is Rejoin.RESEND:
                after.offer(Lane.CONTROL, record)
        for event in self._lanes[Lane.EVENT].queue:
            after.offer(Lane.EVENT, event)
        return after
