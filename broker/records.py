"""The control vocabulary: every record that nodes and the broker say to each other, as a table.

One row per record and direction: its fields, the lanes it may travel on, who may say it, and what becomes of
it when the broker is restarted before acknowledging it.  Everything received is checked against this table,
and everything sent too, so that a mistake shows at the sender with the names of record and field.

A record is an array whose first item is its name.  A record that may carry bulk bytes ends, when it does,
with two more fields: (offset, length) within the frame's payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from broker import codec, envelope
from broker.envelope import Envelope, Use
from broker.fields import (
    ANY,
    CODE,
    I32,
    IMPAIRMENT,
    KIND,
    NAME,
    PEER_STATE,
    RECORD,
    SECRET,
    TEXT,
    U8,
    U32,
    U64,
    Field,
    FieldType,
    Record,
    RecordError,
    check_fields,
)
from broker.frames import LIMITS, MAX_FRAME, MAX_PAYLOAD, Buffer, Frame, Lane, Packed


class Direction(IntEnum):
    """Which way a record travels."""

    TO_BROKER = 1
    TO_NODE = 2


class Rejoin(IntEnum):
    """What becomes of a record that the broker had not acknowledged when the session ended."""

    DROP = 1  # it belonged to that session
    RESEND = 2  # sent again in the next session, perhaps a second time
    STANDING = 3  # a declaration: repeated in every later session


class Row(NamedTuple):
    """One record of the vocabulary."""

    name: str
    direction: Direction
    fields: tuple[Field, ...] = ()
    rest: FieldType | None = None  # type of any number of further fields
    lanes: tuple[Lane, ...] = (Lane.CONTROL,)
    senders: tuple[str, ...] = ()  # kinds of node that may say it; none named: all
    payload: bool = False
    rejoin: Rejoin = Rejoin.RESEND


_UP, _DOWN = Direction.TO_BROKER, Direction.TO_NODE
_BOTH: Final = (Lane.CONTROL, Lane.EVENT)

VOCABULARY: Final = (
    Row("hello", _UP, (Field("major", U8), Field("minor", U8), Field("kind", KIND), Field("name", NAME),
        Field("token", SECRET), Field("pid", U32), Field("epoch_seen", U64)), rejoin=Rejoin.DROP),
    Row("ready", _UP, rejoin=Rejoin.STANDING),
    Row("exit", _UP, (Field("code", I32), Field("reason", TEXT))),
    Row("heartbeat", _UP, (Field("n", U64),), rejoin=Rejoin.DROP),
    Row("subscribe", _UP, rejoin=Rejoin.STANDING),
    Row("tell", _UP, (Field("to", NAME), Field("record", RECORD)), payload=True),
    Row("event", _UP, (Field("code", CODE),), ANY, _BOTH),
    Row("attach", _UP, (Field("hypervisor", NAME),), senders=("guest", "hypervisor")),
    Row("gone", _UP, (Field("name", NAME), Field("code", I32), Field("reason", TEXT), Field("pid", U32)),
        senders=("agent",)),
    Row("shutdown", _UP, senders=("agent",)),
    Row("impair", _UP, (Field("a", NAME), Field("b", NAME), Field("impairment", IMPAIRMENT)), senders=("agent",)),
    Row("relabel", _UP, (Field("round", U64), Field("labels", RECORD)), senders=("agent",)),
    Row("welcome", _DOWN, (Field("epoch", U64), Field("name", NAME)), rejoin=Rejoin.DROP),
    Row("refused", _DOWN, (Field("code", CODE), Field("message", TEXT)), rejoin=Rejoin.DROP),
    Row("told", _DOWN, (Field("from", NAME), Field("record", RECORD)), payload=True),
    Row("nobody", _DOWN, (Field("to", NAME), Field("record", RECORD))),
    Row("busy", _DOWN, (Field("to", NAME), Field("record", RECORD))),
    Row("node", _DOWN, (Field("name", NAME), Field("kind", KIND), Field("state", CODE),
        Field("detail", TEXT)), rejoin=Rejoin.DROP),
    Row("event", _DOWN, (Field("from", NAME), Field("code", CODE)), ANY, _BOTH),
    Row("shutdown", _DOWN),
    Row("peer", _DOWN, (Field("name", NAME), Field("state", PEER_STATE), Field("epoch", U64),
        Field("pid", U32)), rejoin=Rejoin.DROP),
    Row("relabelled", _DOWN, (Field("round", U64),)),
    Row("impaired", _DOWN, (Field("a", NAME), Field("b", NAME), Field("impairment", IMPAIRMENT))),
)  # fmt: skip
_ROWS: Final = {(row.direction, row.name): row for row in VOCABULARY}
_EXTENT: Final = (Field("offset", U32), Field("length", U32))


class Incoming(NamedTuple):
    """A received record that is what its row says: without its payload reference, which became `payload`."""

    row: Row | None  # None: an envelope
    record: Record
    payload: memoryview


class Outgoing(NamedTuple):
    """A record on its way out: encoded, with the credit it takes and what a new session does with it."""

    packed: Packed
    use: Use
    rejoin: Rejoin


_NO_PAYLOAD: Final = memoryview(b"")
_SHORT: Final = MAX_FRAME // 2


def lookup(direction: Direction, lane: Lane, record: Record) -> Row:
    """The row of a record that travels on `lane`.  RecordError when there is none."""
    name = record[0] if record else None
    row = _ROWS.get((direction, name)) if isinstance(name, str) else None
    if row is None:
        known = ", ".join(sorted(known for way, known in _ROWS if way == direction))
        raise RecordError("record", "name", name, f"one of {known}")
    if lane not in row.lanes:
        raise RecordError(row.name, "lane", lane.name, " or ".join(allowed.name for allowed in row.lanes))
    return row


def _check(row: Row, values: Sequence[object]) -> None:
    fixed = len(row.fields)
    if len(values) >= codec.MAX_ARRAY - 2:
        raise RecordError(row.name, "length", len(values) + 1, f"below {codec.MAX_ARRAY - 1} items")
    if len(values) < fixed or (row.rest is None and len(values) > fixed):
        more = "" if row.rest is None else " or more"
        raise RecordError(row.name, "length", len(values) + 1, f"{fixed + 1}{more} items")
    check_fields(row.name, row.fields, values[:fixed])
    if row.rest is not None:
        check_fields(row.name, [Field("fields", row.rest)] * (len(values) - fixed), values[fixed:])


def encode(direction: Direction, lane: Lane, record: Record, payload: Buffer = b"") -> Outgoing:
    """Check and encode a record for sending.  RecordError when it, or its size, is not allowed there."""
    try:
        if lane is Lane.REQUEST:
            return encode_envelope(record, payload)
        row = lookup(direction, lane, record)
        if len(payload) > (LIMITS[lane].max_payload if row.payload else 0):
            raise RecordError(row.name, "payload", len(payload), f"at most {LIMITS[lane].max_payload} bytes here")
        _check(row, record[1:])
        if len(payload) == 0:
            packed = Packed(codec.pack(list(record)))
        else:
            head = codec.array_header(len(record) + 2) + codec.pack_items(record)
            packed = Packed(head, codec.pack(len(payload)), payload)
        return Outgoing(_bounded(row.name, packed), Use.ORDINARY, row.rejoin)
    except codec.CodecError as error:
        raise RecordError(codec.show(record[0]), "record", record, f"encodable ({error})") from None


def encode_envelope(record: Record, payload: Buffer, hops_left: int | None = None) -> Outgoing:
    """Check and encode an envelope, with other hops if any.  RecordError when it, or its size, is not allowed."""
    checked = envelope.validate(record)
    if len(payload) > MAX_PAYLOAD:
        raise RecordError("envelope", "payload", len(payload), f"at most {MAX_PAYLOAD} bytes")
    head, tail = envelope.pack(checked, len(payload), hops_left)
    packed = Packed(head, tail, payload)
    if len(head) > _SHORT:
        _bounded("envelope", packed)
    return Outgoing(packed, envelope.USES[checked[envelope.KIND_AT]], Rejoin.DROP)


def _bounded(name: str, packed: Packed) -> Packed:
    size = packed.size - len(packed.payload)
    if size > MAX_FRAME - 3:
        raise RecordError(name, "size", size, f"at most {MAX_FRAME - 3} bytes, payload apart")
    return packed


class PayloadReader:
    """Hands out a frame's payload front to back: references must be in order, touching, and cover all of it.

    So no byte is referred to twice, and what a frame makes its receiver handle is what was sent.
    """

    def __init__(self, payload: memoryview, at: int = 0) -> None:
        self._payload = payload
        self._at = at

    def take(self, name: str, offset: int, length: int) -> memoryview:
        """The next `length` bytes, which must start at `offset`."""
        if offset != self._at:
            raise RecordError(name, "offset", offset, f"{self._at}, where the payload before it ended")
        if length > len(self._payload) - offset:
            raise RecordError(name, "length", length, f"within the {len(self._payload)} bytes of payload")
        self._at += length
        return self._payload[offset : offset + length]

    def finish(self) -> None:
        """Every byte must have been taken."""
        if self._at != len(self._payload):
            raise RecordError("frame", "payload", len(self._payload), f"{self._at} bytes, what its records refer to")


def decode(direction: Direction, lane: Lane, record: list[Any], reader: PayloadReader) -> Incoming:
    """Check a received record.  RecordError names record, field and value."""
    if lane is Lane.REQUEST:
        checked: Envelope = envelope.validate(record)
        return Incoming(None, checked, reader.take("envelope", checked.offset, checked.length))
    row = lookup(direction, lane, record)
    payload = _NO_PAYLOAD
    if row.payload and len(record) == len(row.fields) + 3:
        check_fields(row.name, _EXTENT, record[-2:])
        payload = reader.take(row.name, record[-2], record[-1])
        record = record[:-2]
    _check(row, record[1:])
    return Incoming(row, record, payload)


def decode_envelopes(frame: Frame) -> list[Incoming]:
    """All records of a frame of the request lane.  RecordError for the first that is not right."""
    payload = frame.payload
    good: list[Incoming] = []
    at = 0
    for record in frame.records:
        checked = envelope.validate(record)
        end = at + checked.length
        if checked.offset != at or end > len(payload):
            PayloadReader(payload, at).take("envelope", checked.offset, checked.length)  # says what is wrong
        good.append(Incoming(None, checked, payload[at:end]))
        at = end
    if at != len(payload):
        raise RecordError("frame", "payload", len(payload), f"{at} bytes, what its records refer to")
    return good


def decode_frame(direction: Direction, frame: Frame) -> tuple[list[Incoming], list[RecordError]]:
    """Check all records of a frame: those that are right, in order, and an error for each that is not."""
    reader = PayloadReader(frame.payload)
    good: list[Incoming] = []
    bad: list[RecordError] = []
    for record in frame.records:
        try:
            good.append(decode(direction, frame.lane, record, reader))
        except RecordError as error:
            bad.append(error)
    if not bad:
        try:
            reader.finish()
        except RecordError as error:
            bad.append(error)
    return good, bad
