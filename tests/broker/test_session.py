"""A session's queues and frames: coalescing without a timer, credit, back-pressure, acknowledgement, succession."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from broker import frames
from broker.frames import MAX_FRAME, MAX_RECORDS, Frame, FrameKind, Lane, Parts
from broker.records import Direction, encode
from broker.refusals import Refusal, Violation
from broker.session import SendResult, Session
from tests.broker.test_envelope import values

UP, DOWN = Direction.TO_BROKER, Direction.TO_NODE
CONTROL, REQUEST, EVENT = Lane


class Wire:
    """Collects what a session sends; refuses with `answer`."""

    def __init__(self) -> None:
        self.parts: deque[list[bytes]] = deque()
        self.answer = SendResult.SENT

    def __call__(self, parts: Parts) -> SendResult:
        if self.answer is SendResult.SENT:
            self.parts.append([bytes(part) for part in parts])
        return self.answer

    def take(self) -> list[Frame]:
        taken = [frames.parse_frame(parts) for parts in self.parts]
        self.parts.clear()
        return taken


def node() -> Session:
    return Session(DOWN, 1)


def broker() -> Session:
    return Session(UP, 1)


def offer(session: Session, record: Sequence[Any], payload: bytes = b"", lane: Lane = CONTROL) -> bool:
    outgoing = UP if session.incoming is DOWN else DOWN
    return session.offer(lane, encode(outgoing, lane, record, payload))


def move(source: Session, target: Session) -> list[Any]:
    """Flush one end into the other: the records that arrived."""
    wire = Wire()
    source.flush(wire)
    return [item.record for frame in wire.take() for item in target.accept(frame)[0]]


def test_what_is_ready_shares_a_frame() -> None:
    """At most 64 records a frame, and whatever gathered since the last flush leaves with it: no timer."""
    a, wire = node(), Wire()
    for n in range(MAX_RECORDS + 3):
        offer(a, ["event", "x", n])
    assert not wire.parts
    a.flush(wire)
    assert [len(frame.records) for frame in wire.take()] == [64, 3]


def test_a_frame_ends_at_64_kib() -> None:
    """Body and payload together stay within 64 KiB, unless one record alone is larger."""
    a, wire = node(), Wire()
    for size in (30000, 30000, 30000, 200000, 10):
        offer(a, ["tell", "b", ["x"]], bytes(size))
    a.flush(wire)
    sent = list(wire.parts)
    sizes = [len(parts[1]) + len(parts[2]) for parts in sent]
    assert [len(frame.records) for frame in wire.take()] == [2, 1, 1, 1]
    assert all(size <= MAX_FRAME for size in (sizes[0], sizes[1], sizes[3]))


def test_sequence_numbers_count_records() -> None:
    """seq is the number of a frame's first record; each lane counts for itself."""
    a, wire = node(), Wire()
    offer(a, ["ready"])
    offer(a, ["subscribe"])
    offer(a, ["event", "x"], lane=EVENT)
    a.flush(wire)
    offer(a, ["exit", 0, ""])
    a.flush(wire)
    assert [(frame.lane, frame.seq, len(frame.records)) for frame in wire.take()] == [
        (EVENT, 0, 1), (CONTROL, 0, 2), (CONTROL, 2, 1),
    ]  # fmt: skip


def test_control_records_leave_after_the_others() -> None:
    """What a node says last is exit: events and requests queued before it must not come after it."""
    a, wire = node(), Wire()
    offer(a, ["exit", 0, ""])
    offer(a, values(), lane=REQUEST)
    offer(a, ["event", "x"], lane=EVENT)
    a.flush(wire)
    assert [frame.lane for frame in wire.take()] == [EVENT, REQUEST, CONTROL]


def test_control_is_acknowledged_at_once_and_others_by_the_64() -> None:
    """A bare acknowledgement only when nothing of that lane goes back anyway, and on busy lanes only now and then."""
    a, b, wire = node(), broker(), Wire()
    offer(a, ["ready"])
    move(a, b)
    b.flush(wire)
    (ack,) = wire.take()
    assert (ack.kind, ack.lane, ack.ack, ack.seq) == (FrameKind.ACK, CONTROL, 1, 0)
    b.flush(wire)
    assert not wire.parts
    for n in range(64):
        assert not wire.parts
        offer(a, ["event", "x", n], lane=EVENT)
        move(a, b)
        b.flush(wire)
    assert [(frame.kind, frame.lane, frame.ack) for frame in wire.take()] == [(FrameKind.ACK, EVENT, 64)]
    offer(a, ["ready"])
    move(a, b)
    offer(b, ["shutdown"])
    b.flush(wire)
    assert [(frame.kind, frame.ack) for frame in wire.take()] == [(FrameKind.RECORDS, 2)]


def test_credit_stops_a_sender() -> None:
    """A receiver that acknowledges nothing gets a window and no more; what waits is bounded."""
    a, wire = node(), Wire()
    limits = frames.LIMITS[EVENT]
    assert a.credit(EVENT) == limits.window
    accepted = sum(offer(a, ["event", "x", n], lane=EVENT) for n in range(limits.queue_records + 100))
    assert accepted == limits.queue_records
    assert a.dropped == 100
    a.flush(wire)
    assert sum(len(frame.records) for frame in wire.take()) == limits.window
    assert a.credit(EVENT) == 0
    assert a.queued(EVENT) == limits.queue_records - limits.window


def test_queues_are_bounded_in_bytes() -> None:
    """A few large records fill a queue as many small ones do."""
    a = node()
    accepted = sum(offer(a, ["tell", "b", ["x"]], bytes(1 << 20)) for _ in range(20))
    assert accepted == 7
    assert offer(a, ["ready"])


def test_a_request_reserves_room_for_its_result() -> None:
    """256 requests may wait for their results; the 257th is not queued; a result returns the reservation."""
    a, b = node(), broker()
    assert sum(offer(a, values(), lane=REQUEST) for _ in range(300)) == 256
    assert a.credit(REQUEST) == 0
    assert not offer(b, values(kind=2), lane=REQUEST), "a result that nobody asked for"
    assert len(move(a, b)) == 256
    assert move(b, a) == []
    assert (a.lane(REQUEST).credit, a.credit(REQUEST)) == (256, 0)
    assert offer(a, values(kind=4), lane=REQUEST), "a wake waits for nothing and reserves nothing"
    assert offer(b, values(kind=2), lane=REQUEST)
    assert len(move(b, a)) == 1
    assert a.credit(REQUEST) == 1


def test_results_leave_although_the_window_is_full() -> None:
    """The far side never reads: its requests are answered all the same."""
    a, b = node(), broker()
    offer(a, values(), lane=REQUEST)
    move(a, b)
    for _ in range(256):
        offer(b, values(kind=4), lane=REQUEST)
    wire = Wire()
    b.flush(wire)
    wire.take()
    assert b.lane(REQUEST).credit == 0
    offer(b, values(kind=2), lane=REQUEST)
    b.flush(wire)
    assert [frame.records[0][1] for frame in wire.take() if frame.records] == [2]


def test_a_refused_frame_goes_first_next_time() -> None:
    """AGAIN from the transport loses nothing, reorders nothing and numbers nothing twice."""
    a, b, wire = node(), broker(), Wire()
    offer(a, ["event", "x", 1])
    wire.answer = SendResult.AGAIN
    assert a.flush(wire) is SendResult.AGAIN
    offer(a, ["event", "x", 2])
    assert a.flush(wire) is SendResult.AGAIN
    assert a.probe(wire) is SendResult.AGAIN
    wire.answer = SendResult.SENT
    assert a.probe(wire) is SendResult.SENT
    assert a.flush(wire) is SendResult.SENT
    got = [item.record[2] for frame in wire.take() for item in b.accept(frame)[0]]
    assert got == [1, 2]


def test_a_refused_acknowledgement_is_sent_later() -> None:
    """A lost acknowledgement would be lost credit."""
    a, b, wire = node(), broker(), Wire()
    offer(a, ["ready"])
    move(a, b)
    wire.answer = SendResult.AGAIN
    assert b.flush(wire) is SendResult.AGAIN
    assert b.probe(wire) is SendResult.AGAIN
    wire.answer = SendResult.SENT
    b.flush(wire)
    assert [frame.ack for frame in wire.take()] == [1]
    assert b.probe(wire) is SendResult.SENT
    assert wire.take()[0].kind is FrameKind.ACK


BAD_FRAMES = [
    # what is changed in a good frame, the violation
    ({"epoch": 2}, Refusal.STALE_EPOCH),
    ({"epoch": 0}, Refusal.STALE_EPOCH),
    ({"seq": 2}, Refusal.SEQ_GAP),
    ({"seq": 0}, Refusal.REPLAYED),
    ({"ack": 1}, Refusal.BAD_ACK),
]


@pytest.mark.parametrize(("changes", "code"), BAD_FRAMES)
def test_frames_out_of_order_are_violations(changes: dict[str, int], code: Refusal) -> None:
    """Epoch, sequence and acknowledgement of every frame are checked; a replay leaves the session as it was."""
    b = broker()

    def frame(**fields: int) -> Frame:
        numbers = {"epoch": 1, "seq": 1, "ack": 0, **fields}
        parts = frames.pack_frame(
            FrameKind.RECORDS, CONTROL, numbers["epoch"], numbers["seq"], numbers["ack"], [["ready"]]
        )
        return frames.parse_frame(parts)

    b.accept(frame(seq=0))
    with pytest.raises(Violation) as caught:
        b.accept(frame(**changes))
    assert caught.value.code is code
    if code is Refusal.REPLAYED:
        b.accept(frame())


def test_a_bad_envelope_ends_the_session() -> None:
    """Its credit cannot be known, so the accounts cannot go on; a bad control record only loses itself."""
    b = broker()
    control = frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 0, 0, [["nonsense"], ["ready"]])
    good, bad = b.accept(frames.parse_frame(control))
    assert ([item.record for item in good], len(bad)) == ([["ready"]], 1)
    broken = frames.pack_frame(FrameKind.RECORDS, REQUEST, 1, 0, 0, [values(kind=99)])
    with pytest.raises(Violation) as caught:
        b.accept(frames.parse_frame(broken))
    assert caught.value.code is Refusal.MALFORMED_FRAME


def test_a_flood_beyond_credit_is_an_overrun() -> None:
    """257 records without an acknowledgement between them: the sender ignored its credit."""
    b = broker()
    for n in range(4):
        batch = [["event", "x"]] * 64
        b.accept(frames.parse_frame(frames.pack_frame(FrameKind.RECORDS, EVENT, 1, 64 * n, 0, batch)))
    with pytest.raises(Violation) as caught:
        b.accept(frames.parse_frame(frames.pack_frame(FrameKind.RECORDS, EVENT, 1, 256, 0, [["event", "x"]])))
    assert caught.value.code is Refusal.OVERRUN


def test_settled_means_acknowledged() -> None:
    """Nothing queued, refused by the transport, or unacknowledged on the control lane."""
    a, b, wire = node(), broker(), Wire()
    history = [a.settled]
    offer(a, ["ready"])
    history.append(a.settled)
    for answer in (SendResult.AGAIN, SendResult.SENT):
        wire.answer = answer
        a.flush(wire)
        history.append(a.settled)
    for frame in wire.take():
        b.accept(frame)
    move(b, a)
    history.append(a.settled)
    assert history == [True, False, False, False, True]


def test_the_successor_repeats_what_was_not_acknowledged() -> None:
    """Control records in order, declarations first; heartbeats, requests and events under way are not repeated."""
    a, b, wire = node(), broker(), Wire()
    offer(a, ["event", "acknowledged"])
    move(a, b)
    move(b, a)
    offer(a, ["tell", "x", ["under way"]], b"bulk")
    offer(a, ["heartbeat", 1])
    offer(a, ["ready"])
    offer(a, ["event", "under way"], lane=EVENT)
    offer(a, values(), lane=REQUEST)
    a.flush(wire)
    offer(a, ["event", "queued"])
    offer(a, ["event", "queued event"], lane=EVENT)
    after = a.successor(2, [encode(UP, CONTROL, ["ready"])])
    wire = Wire()
    after.flush(wire)
    sent = [(frame.lane, frame.epoch, frame.seq, frame.records) for frame in wire.take()]
    assert sent == [
        (EVENT, 2, 0, [["event", "queued event"]]),
        (CONTROL, 2, 0, [["ready"], ["tell", "x", ["under way"], 0, 4], ["event", "queued"]]),
    ]
    assert after.credit(REQUEST) == 256
