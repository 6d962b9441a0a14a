"""The one look at a frame of envelopes (`Session.take`) does what parsing and accepting it do, or nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import codec, frames
from broker.envelope import EnvelopeKind, Use, result_of
from broker.frames import HEADER, MAX_RECORDS, FrameError, Lane
from broker.records import Direction, encode
from broker.refusals import Violation
from broker.session import SendResult, Session
from tests.broker.support import envelope_of

KINDS = (EnvelopeKind.SEND, EnvelopeKind.QUERY, EnvelopeKind.WAKE, EnvelopeKind.ENDPOINT_DIED)


def state(session: Session) -> list[Any]:
    """Everything that a frame can move."""
    lane = session.lane(Lane.REQUEST)
    numbers = [getattr(lane, name) for name in lane.__slots__ if name not in ("limits", "_unacknowledged")]
    return [*numbers, lane.in_flight, session.frames_in, session.records_in, session.unsent, session.settled]


def pair() -> tuple[Session, Session]:
    """Two receivers in the same state: one request of theirs is under way, another one not yet acknowledged."""
    made = []
    for _ in range(2):
        session = Session(Direction.TO_BROKER, 1)
        for seq in (1, 2):
            session.offer(Lane.REQUEST, encode(Direction.TO_NODE, Lane.REQUEST, envelope_of("hv1/b", "hv0/a", seq)))
        session.flush(lambda _parts: SendResult.SENT)
        made.append(session)
    return made[0], made[1]


def message(kinds: list[EnvelopeKind], sizes: list[int], results: int = 0, ack: int = 1) -> list[bytes]:
    """A frame of a conforming peer: envelopes of these kinds and payloads, and before them so many results."""
    records = [result_of(envelope_of("hv1/b", "hv0/a", seq + 1), 0) for seq in range(results)]
    payload, offset = b"", 0
    for seq, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        records.append(envelope_of(seq=seq + 1, kind=kind, offset=offset, length=size))
        payload += bytes([seq]) * size
        offset += size
    return frames.pack_frame(
        frames.FrameKind.RECORDS, Lane.REQUEST, 1, 0, ack, [list(record) for record in records], payload
    )


def by_steps(session: Session, parts: list[bytes]) -> list[Any] | None:
    """What parsing and accepting give; None: a refusal."""
    try:
        good, bad = session.accept(frames.parse_frame(parts))
    except (FrameError, Violation):
        return None
    assert not bad
    return [(item.record, bytes(item.payload)) for item in good]


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=MAX_RECORDS), data=st.data(), results=st.integers(0, 2)
)
@settings(max_examples=60)
def test_what_it_takes_is_what_the_steps_take(kinds: list[EnvelopeKind], data: st.DataObject, results: int) -> None:
    """The same envelopes and payloads, and the same state afterwards: numbers, credit, room, counters."""
    kinds = kinds[: MAX_RECORDS - results]
    sizes = [data.draw(st.integers(0, 40)) for _ in kinds]
    parts = message(kinds, sizes, results, ack=data.draw(st.integers(0, 2)))
    one, other = pair()
    taken = one.take(parts)
    assert taken is not None
    assert [(envelope, bytes(payload)) for envelope, _, payload in taken] == by_steps(other, parts)
    assert [use for _, use, _ in taken] == [envelope.use for envelope, _, _ in taken]
    assert state(one) == state(other)


def header(parts: list[bytes], **changes: int) -> list[bytes]:
    """The message with other header fields."""
    fields = frames.Header._make(HEADER.unpack(parts[0]))._replace(**changes)
    return [HEADER.pack(*fields), *parts[1:]]


def body(parts: list[bytes], at: int, value: object) -> list[bytes]:
    """The message with another value in one field of its first record."""
    records = codec.unpack_array(parts[1])
    records[0][at] = value
    return [parts[0], codec.pack(records), parts[2]]


PLAIN = message([EnvelopeKind.SEND], [5])
REFUSED = {
    "two parts": PLAIN[:2],
    "four parts": [*PLAIN, b""],
    "a short header": [PLAIN[0][:-1], *PLAIN[1:]],
    "another magic": header(PLAIN, magic=1),
    "another major": header(PLAIN, major=2),
    "flags": header(PLAIN, flags=1),
    "zero": header(PLAIN, zero=1),
    "another epoch": header(PLAIN, epoch=2),
    "received before": header(PLAIN, seq=0xFFFFFFFF),
    "ahead": header(PLAIN, seq=1),
    "acknowledges too much": header(PLAIN, ack=3),
    "no records": header(PLAIN, records=0),
    "another count": header(PLAIN, records=2),
    "too many": message([EnvelopeKind.WAKE] * (MAX_RECORDS + 1), [0] * (MAX_RECORDS + 1)),
    "a body that is none": [PLAIN[0], b"\xc1", PLAIN[2]],
    "a large body": [PLAIN[0], PLAIN[1] + bytes(frames.MAX_FRAME), PLAIN[2]],
    "no array in it": [PLAIN[0], codec.pack([7]), PLAIN[2]],
    "a field that is wrong": body(PLAIN, 8, "l" * 256),
    "a field too many": [PLAIN[0], codec.pack([[*codec.unpack_array(PLAIN[1])[0], 0]]), PLAIN[2]],
    "an offset elsewhere": body(PLAIN, 13, 1),
    "a length beyond": body(PLAIN, 14, 6),
    "payload of nobody": body(PLAIN, 14, 4),
    "an unasked result": message([], [], results=3),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_takes_nothing_of_what_the_steps_refuse(case: str) -> None:
    """None, and all is as it was; the steps then say what is wrong."""
    one, other = pair()
    before = state(one)
    assert one.take(REFUSED[case]) is None
    assert state(one) == before
    assert by_steps(other, REFUSED[case]) is None


@pytest.mark.parametrize(
    "parts",
    [
        header(PLAIN, minor=1),
        frames.pack_frame(frames.FrameKind.ACK, Lane.REQUEST, 1, 0, 2, []),
        frames.pack_frame(frames.FrameKind.RECORDS, Lane.CONTROL, 1, 0, 0, [["ready"]]),
    ],
)
def test_what_is_rare_is_left_to_the_steps(parts: list[bytes]) -> None:
    """A newer minor version, an acknowledgement, another lane: not refused, and not taken here."""
    one, other = pair()
    assert one.take(parts) is None
    assert by_steps(other, parts) is not None


def test_an_overrun_is_not_taken() -> None:
    """Records beyond the window, requests beyond the room for their results: the steps end the session."""
    for kind in (EnvelopeKind.WAKE, EnvelopeKind.SEND):
        one, other = pair()
        for number in range(4):
            parts = header(message([kind] * MAX_RECORDS, [0] * MAX_RECORDS), seq=number * MAX_RECORDS)
            assert one.take(parts) is not None
            assert by_steps(other, parts) is not None
            if kind is EnvelopeKind.SEND:  # acknowledged, and not answered
                assert [one.lane(Lane.REQUEST).reported(), other.lane(Lane.REQUEST).reported()]
        more = header(message([kind], [0]), seq=4 * MAX_RECORDS)
        assert one.take(more) is None
        assert by_steps(other, more) is None
    assert Use.REQUEST is envelope_of().use
