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

from broker import codec, frames
from broker.envelope import KIND_AT, USES, Envelope, Use, at_once
from broker.fields import RecordError
from broker.frames import (
    EXPRESS,
    HEADER,
    MAX_FRAME,
    MAX_PAYLOAD,
    MAX_RECORDS,
    REST,
    SEQ_MASK,
    Frame,
    FrameKind,
    Lane,
    LaneLimits,
    Parts,
)
from broker.lanes import LaneState
from broker.records import Direction, Incoming, Outgoing, Rejoin, decode_envelopes, decode_frame
from broker.refusals import Refusal, Violation


class SendResult(IntEnum):
    """What became of a frame given to a transport."""

    SENT = 1
    AGAIN = 2  # no room now; offer the same frame later
    UNREACHABLE = 3  # the peer is not there


Send = Callable[[Parts], SendResult]

_ORDINARY: Final = Use.ORDINARY  # looked up once: a member of an enumeration costs more than a global
_RESULT: Final = Use.RESULT
_SENT: Final = SendResult.SENT
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

    def batch(self) -> list[Outgoing]:
        """What the next frame takes from the front of the queue, which credit and size limits allow."""
        credit = self.state.credit
        if len(self.queue) == 1 and credit > 0:
            return [self.queue[0]]
        size = 0
        taken: list[Outgoing] = []
        for record in self.queue:
            cost = record.use is not _RESULT
            size += record.packed.size
            if cost > credit or len(taken) == MAX_RECORDS or (taken and size > MAX_FRAME - 3):
                break
            credit -= cost
            taken.append(record)
        return taken

    def commit(self, batch: Sequence[Outgoing]) -> int:
        """Move `batch` from the queue into flight; the number of its first record."""
        seq = self.state.sent([record.use for record in batch])
        take, keep = self.queue.popleft, self.sent.append
        for record in batch:
            take()
            self.queued_bytes -= record.packed.size
            keep(record if record.rejoin is Rejoin.RESEND else None)
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
        self._requests = self._lanes[Lane.REQUEST]
        self._held: Parts | None = None
        self._work = False  # a flush has something to try

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
        size, limits = record.packed.size, end.state.limits
        full = len(end.queue) >= limits.queue_records or end.queued_bytes + size > limits.queue_bytes
        if full or (record.use is not _ORDINARY and not end.state.reserve(record.use)):
            end.dropped += 1
            return False
        end.queue.append(record)
        end.queued_bytes += size
        self._work = True
        return True

    def accept(self, frame: Frame) -> tuple[list[Incoming], list[RecordError]]:
        """Take a frame of the peer: its good records in order, and what was wrong with the others.

        Violation: the frame as a whole is refused.  After REPLAYED the session is as it was; after anything
        else it is over.
        """
        if frame.epoch != self.epoch:
            raise Violation(Refusal.STALE_EPOCH, f"epoch {frame.epoch}, here it is {self.epoch}")
        end = self._lanes[frame.lane]
        state, sent = end.state, end.sent
        if frame.seq != state.expected:
            state.check_seq(frame.seq)
        for _ in range(state.acknowledged(frame.ack)):
            sent.popleft()
        self.frames_in += 1
        if frame.kind is FrameKind.ACK:
            return [], []
        bad: list[RecordError] = []
        if frame.lane is Lane.REQUEST:
            try:
                good = decode_envelopes(frame)
            except RecordError as error:  # what it would have reserved is unknown, so the accounts cannot go on
                raise Violation(Refusal.MALFORMED_FRAME, str(error)) from None
            state.received([USES[item.record[KIND_AT]] for item in good])
        else:
            good, bad = decode_frame(self.incoming, frame)
            state.received([Use.ORDINARY] * len(frame.records))
        self.records_in += len(frame.records)
        if state.ack_due:
            self._work = True
        return good, bad

    def take(self, parts: Parts) -> list[tuple[Envelope, Use, memoryview]] | None:
        """The envelopes of a frame that is as most are: in our version and epoch, in sequence, with credit, all right.

        None: it is anything else.  Then nothing has changed, and :func:`broker.frames.parse_frame` and :meth:`accept`
        judge it: this does what they do for such a frame, in one look.
        """
        if len(parts) != 3:
            return None
        head, body, payload = parts
        if len(head) != HEADER.size or head[:8] != EXPRESS or len(body) > MAX_FRAME or len(payload) > MAX_PAYLOAD:
            return None
        epoch, seq, ack, count, flags, zero = REST.unpack_from(head, 8)
        end = self._requests
        state = end.state
        if seq != state.expected or epoch != self.epoch or flags or zero or not 0 < count <= MAX_RECORDS:
            return None
        in_flight = state.in_flight
        acknowledged = (ack - state.next_seq + in_flight) & SEQ_MASK
        if acknowledged > in_flight:
            return None
        try:
            records = codec.unpack_array(body)
        except codec.CodecError:
            return None
        if len(records) != count:
            return None
        size, at, view = len(payload), 0, memoryview(payload)
        taken: list[tuple[Envelope, Use, memoryview]] = []
        for record in records:
            checked = at_once(record) if type(record) is list else None
            if checked is None or checked.offset != at:
                return None
            begin, at = at, at + checked.length
            taken.append((checked, USES[checked.kind], view[begin:at]))
        if at != size or not state.receive([use for _, use, _ in taken]):
            return None
        if acknowledged:
            state.acknowledged(ack)
            for _ in range(acknowledged):
                end.sent.popleft()
        self.frames_in += 1
        self.records_in += count
        if state.ack_due:
            self._work = True
        return taken

    def flush(self, send: Send) -> SendResult:
        """Give `send` every frame that credit allows, then acknowledgements that are due and had no frame to
        ride.

        AGAIN: the transport took no more; the frame that it refused is kept and goes first next time.
        """
        if self._held is not None:
            result = send(self._held)
            if result is not SendResult.SENT:
                self._work = True
                return result
            self._held = None
        waiting = False
        for lane, end in self._lanes.items():
            queue = end.queue
            while queue and (batch := end.batch()):
                seq = end.commit(batch)
                parts = frames.assemble(lane, self.epoch, seq, end.ack_value(), [record.packed for record in batch])
                self.frames_out += 1
                self.records_out += len(batch)
                result = send(parts)
                if result is not _SENT:
                    self._held = parts
                    return result
            waiting = waiting or bool(queue)
            state = end.state
            if end.unacknowledging or (state.expected != state.acknowledged_to and state.ack_due):
                result = send(self._ack_frame(lane))
                if result is not SendResult.SENT:
                    end.unacknowledging = True
                    return result
                self.frames_out += 1
        self._work = waiting
        return _SENT

    @property
    def unsent(self) -> bool:
        """Whether a flush has something to try."""
        return self._work

    def probe(self, send: Send) -> SendResult:
        """Send something harmless, to learn whether the transport still reaches the peer."""
        if self._held is None:
            result = send(self._ack_frame(Lane.CONTROL))
            if result is not SendResult.SENT:
                self._lanes[Lane.CONTROL].unacknowledging = self._work = True
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
