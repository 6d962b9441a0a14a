"""Property: a message is a Frame within the limits of the frame format, or FrameError; each of its records is what
its row of the vocabulary says, or RecordError.

Input: a choice, then the message: three parts by length prefixes, or a body and payload behind a header that is right.
"""

from __future__ import annotations

from broker import frames
from broker.frames import LIMITS, MAX_FRAME, MAX_RECORDS, FrameError, Lane, parse_frame
from broker.records import Direction, decode_frame
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
_DIRECTIONS = tuple(Direction)


def parts_of(choices: Choices, epoch: int = 7, seq: int = 0) -> list[bytes]:
    """A message: as it comes, or behind a header that is right for its records."""
    how = choices.u8()
    if how & 1:
        lane = 1 + (how >> 1) % 3
        kind = 1 + (how >> 3 & 3) % 3
        body = choices.take(_size(choices, how))
        count = body[0] & 15 if body and body[0] & 0xF0 == 0x90 else choices.u8()
        return [frames.pack_header(kind, lane, epoch, seq, 0, count), body, choices.take(choices.u8())]
    if how & 2:
        return [choices.take(32), choices.take(_size(choices, how)), choices.take(choices.u8())]
    return [choices.take(choices.u8()) for _ in range(choices.u8() & 7)]


def _size(choices: Choices, how: int) -> int:
    """Bytes of a body: seldom many, so that a mutated size leaves something for the messages behind it."""
    return choices.u16() & 0xFFF if how & 0x80 else choices.u8()


def one_input(data: bytes) -> None:
    """Parse one message both ways."""
    parts = parts_of(Choices(data))
    TALLY.count += 1
    try:
        frame = parse_frame(parts)
    except FrameError as error:
        assert len(str(error)) < 1000, "a refusal is short, whatever was sent"
        return
    assert len(frame.records) <= MAX_RECORDS
    assert len(parts[1]) <= MAX_FRAME and frame.lane in LIMITS and frame.kind
    for direction in _DIRECTIONS:
        good, bad = decode_frame(direction, frame)
        assert len(good) <= len(frame.records)
        assert sum(len(item.payload) for item in good) <= len(frame.payload)
        assert len(good) + len(bad) in (len(frame.records), len(frame.records) + 1)
        if frame.lane is not Lane.REQUEST:
            assert all(item.row is not None for item in good)
