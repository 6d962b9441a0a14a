"""Property: an array is an Envelope whose every field is in its range, or RecordError; what is accepted survives
packing and reading again, and so does its answer.

Input: one MessagePack array.
"""

from __future__ import annotations

from broker import codec, envelope
from broker.codec import CodecError
from broker.envelope import FIELDS, Use
from broker.fields import RecordError
from tests.fuzz.targets import Tally

TALLY = Tally()


def one_input(data: bytes) -> None:
    """Judge one array."""
    TALLY.count += 1
    try:
        values = codec.unpack_array(data)
    except CodecError:
        return
    try:
        found = envelope.validate(values)
    except RecordError as error:
        assert len(str(error)) < 1000
        return
    assert len(found) == len(FIELDS)
    assert found.use in Use
    head, tail = envelope.pack(found, found.length)
    again = envelope.validate(codec.unpack_array(head + codec.pack(found.offset) + tail))
    assert again == found
    answer = envelope.result_of(found, -1)
    assert envelope.validate(list(answer)) == answer and answer.use is Use.RESULT
