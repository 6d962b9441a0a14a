"""Broker frames: what one message between a node and the broker looks like, bit for bit.

A frame is `[header][body][payload]`; on the broker's socket a routing id stands before it.  Header, 32
bytes, little-endian: magic u32 @0, major u8 @4, minor u8 @5, kind u8 @6, lane u8 @7, epoch u64 @8, seq u32
@16, ack u32 @20, count u16 @24, flags u16 @26, zero u32 @28.  Body: one MessagePack array of `count`
records, each an array.  Payload: bulk bytes of the records, concatenated in their order; a record holds
(offset, length).

`seq` numbers records, not frames: it is the number of the frame's first record in its lane, modulo 2^32, and
`ack` is the number of the next record that the sender of the frame expects in that lane.  Header flags are
reserved: they must be zero up to our minor version, a newer minor may set them and is read without them.

Whatever arrives here may be hostile.  Every refusal is a :class:`FrameError` with fields; nothing else
leaves :func:`parse_frame`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

from broker import codec

Buffer = bytes | bytearray | memoryview
Parts = Sequence[bytes | memoryview]
"""A message: header, body, payload."""

MAGIC: Final = 0x46475241  # "ARGF"
MAJOR: Final = 1
MINOR: Final = 0
HEADER: Final = struct.Struct("<IBBBBQIIHHI")

MAX_RECORDS: Final = 64
"""Records in one frame."""
MAX_FRAME: Final = 65536
"""Bytes of one frame's body, and what a sender coalesces of body and payload together."""
MAX_PAYLOAD: Final = 1 << 24
"""Bytes of one frame's payload: the largest Argo ring bounds the largest Argo message."""
LARGE: Final = 16384
"""Bytes of a payload that are not copied where it can be helped; copying fewer costs less than avoiding it."""
MAX_PART: Final = MAX_PAYLOAD + 4096
"""What a socket accepts as one message part; anything longer cannot be a frame."""
SEQ_MASK: Final = 0xFFFFFFFF


class Lane(IntEnum):
    """Independent streams between a node and the broker, each with its own sequence, acknowledgement and credit."""

    CONTROL = 1
    REQUEST = 2
    EVENT = 3


class LaneLimits(NamedTuple):
    """What a lane holds.  Protocol constants: both ends use the same table, nothing is negotiated."""

    lane: Lane
    window: int  # records sent and not acknowledged
    reserve: int  # requests sent whose result has not come
    queue_records: int  # records waiting for credit
    queue_bytes: int  # their size, payload included
    max_payload: int  # of one record
    ack_after: int  # records consumed before a frame is sent only to say so


LANES: Final = (
    LaneLimits(Lane.CONTROL, 256, 0, 4096, 1 << 23, 1 << 20, 1),
    LaneLimits(Lane.REQUEST, 256, 256, 1024, 1 << 26, MAX_PAYLOAD, 64),
    LaneLimits(Lane.EVENT, 256, 0, 1024, 1 << 20, 1 << 16, 64),
)
LIMITS: Final = {row.lane: row for row in LANES}


class FrameKind(IntEnum):
    """What a frame is for: joining and being refused, carrying numbered records, or only acknowledging."""

    HANDSHAKE = 1
    RECORDS = 2
    ACK = 3


class KindRule(NamedTuple):
    """What a frame of a kind may hold."""

    kind: FrameKind
    lanes: tuple[Lane, ...]
    min_records: int
    max_records: int
    payload: bool


KINDS: Final = (
    KindRule(FrameKind.HANDSHAKE, (Lane.CONTROL,), 1, 1, False),
    KindRule(FrameKind.RECORDS, (Lane.CONTROL, Lane.REQUEST, Lane.EVENT), 1, MAX_RECORDS, True),
    KindRule(FrameKind.ACK, (Lane.CONTROL, Lane.REQUEST, Lane.EVENT), 0, 0, False),
)
_RULES: Final = {int(row.kind): row for row in KINDS}
_LANES: Final = {int(lane): lane for lane in Lane}
_RECORDS: Final = _RULES[FrameKind.RECORDS]
_REGULAR: Final = {(MAGIC, MAJOR, MINOR, int(FrameKind.RECORDS), int(lane)): LIMITS[lane] for lane in _RECORDS.lanes}
"""What headers of our version begin with when they carry records: most frames."""


EXPRESS: Final = HEADER.pack(MAGIC, MAJOR, MINOR, FrameKind.RECORDS, Lane.REQUEST, 0, 0, 0, 0, 0, 0)[:8]
"""What the header of a frame of envelopes begins with."""
REST: Final = struct.Struct("<QIIHHI")
"""The header behind those 8 bytes: epoch, seq, ack, count, flags, zero."""


class Header(NamedTuple):
    """The 32 bytes before a body, field by field."""

    magic: int
    major: int
    minor: int
    kind: int
    lane: int
    epoch: int
    seq: int
    ack: int
    records: int
    flags: int
    zero: int


class Frame(NamedTuple):
    """A frame that was found well formed.  Its records are arrays; what is in them is not yet judged."""

    kind: FrameKind
    lane: Lane
    epoch: int
    seq: int
    ack: int
    records: list[list[Any]]
    payload: memoryview


class Reason(StrEnum):
    """Why a frame was refused."""

    PARTS = "wrong number of parts"
    SHORT = "header is not 32 bytes"
    MAGIC = "wrong magic"
    MAJOR = "wrong major version"
    KIND = "unknown kind"
    LANE = "lane not allowed"
    FLAGS = "reserved flags"
    ZERO = "reserved word not zero"
    COUNT = "record count not allowed"
    BODY_SIZE = "body too large"
    PAYLOAD_SIZE = "payload too large"
    BODY = "body is not an array"
    MISMATCH = "header and body disagree on the record count"
    RECORD = "record is not an array"


class FrameError(ValueError):
    """A frame is not well formed: which rule it broke, what it had, what was expected."""

    def __init__(self, reason: Reason, value: object, expected: object) -> None:
        self.reason = reason
        self.value = value
        self.expected = expected
        super().__init__(f"{reason.value}: {codec.show(value)}, expected {expected}")


class Packed:
    """A record on its way out: encoded but for the payload offset, which is known only when a frame is
    assembled.

    Without payload reference `head` is the whole record and `tail` is None; else the offset is encoded
    between them.  `size`: bytes in a frame, the offset counted at its longest.
    """

    __slots__ = ("head", "payload", "size", "tail")

    def __init__(self, head: bytes, tail: bytes | None = None, payload: Buffer = b"") -> None:
        self.head = head
        self.tail = tail
        self.payload = payload
        self.size = len(head) + (0 if tail is None else len(tail) + 5) + len(payload)


def pack_header(kind: int, lane: int, epoch: int, seq: int, ack: int, count: int) -> bytes:
    """The header of a frame in our version."""
    return HEADER.pack(MAGIC, MAJOR, MINOR, kind, lane, epoch, seq, ack, count, 0, 0)


def pack_frame(
    kind: FrameKind,
    lane: Lane,
    epoch: int,
    seq: int,
    ack: int,
    records: Sequence[Sequence[Any]],
    payload: bytes = b"",
) -> list[bytes]:
    """A frame of records that already refer to `payload` by their own (offset, length) fields, if at all."""
    return [pack_header(kind, lane, epoch, seq, ack, len(records)), codec.pack(list(records)), payload]


def whole_bytes(buffer: Buffer) -> bytes:
    """The buffer's bytes; not copied where it shows the whole of some."""
    if type(buffer) is memoryview and type(buffer.obj) is bytes and buffer.nbytes == len(buffer.obj):
        return buffer.obj
    return bytes(buffer)


_ONE_RECORD: Final = codec.array_header(1)
_NO_OFFSET: Final = codec.pack(0)


def assemble(lane: Lane, epoch: int, seq: int, ack: int, packed: Sequence[Packed]) -> Parts:
    """A RECORDS frame of already encoded records; fills in each payload offset."""
    if len(packed) == 1:  # most often
        (only,) = packed
        whole = _ONE_RECORD + only.head if only.tail is None else _ONE_RECORD + only.head + _NO_OFFSET + only.tail
        header = HEADER.pack(MAGIC, MAJOR, MINOR, FrameKind.RECORDS, lane, epoch, seq, ack, 1, 0, 0)
        data = b"" if only.tail is None else only.payload
        return [header, whole, data if type(data) is memoryview and len(data) >= LARGE else whole_bytes(data)]
    body = [codec.array_header(len(packed))]
    payload: list[Buffer] = []
    offset = 0
    for record in packed:
        body.append(record.head)
        if record.tail is not None:
            body.append(codec.pack(offset))
            body.append(record.tail)
            payload.append(record.payload)
            offset += len(record.payload)
    header = pack_header(FrameKind.RECORDS, lane, epoch, seq, ack, len(packed))
    return [header, b"".join(body), b"".join(payload)]


def _lane_limits(lane: int, rule: KindRule) -> LaneLimits:
    known = _LANES.get(lane)
    if known is None or known not in rule.lanes:
        raise FrameError(Reason.LANE, lane, f"one of {[int(item) for item in rule.lanes]} for {rule.kind.name}")
    return LIMITS[known]


def _check_header(header: Header) -> tuple[KindRule, LaneLimits]:
    if header.magic != MAGIC:
        raise FrameError(Reason.MAGIC, header.magic, MAGIC)
    if header.major != MAJOR:
        raise FrameError(Reason.MAJOR, header.major, MAJOR)
    rule = _RULES.get(header.kind)
    if rule is None:
        raise FrameError(Reason.KIND, header.kind, [int(kind) for kind in FrameKind])
    limits = _lane_limits(header.lane, rule)
    if header.flags and header.minor <= MINOR:
        raise FrameError(Reason.FLAGS, header.flags, 0)
    if header.zero:
        raise FrameError(Reason.ZERO, header.zero, 0)
    if not rule.min_records <= header.records <= rule.max_records:
        raise FrameError(Reason.COUNT, header.records, f"{rule.min_records} to {rule.max_records}")
    return rule, limits


def parse_frame(parts: Parts) -> Frame:
    """Check a received message and take it apart.  Raises FrameError, and nothing else, for whatever is wrong."""
    if len(parts) != 3:
        raise FrameError(Reason.PARTS, len(parts), 3)
    head, body, payload = parts
    if len(head) != HEADER.size:
        raise FrameError(Reason.SHORT, len(head), HEADER.size)
    header = Header._make(HEADER.unpack(head))
    rule, limits = _RECORDS, _REGULAR.get(header[:5])
    if limits is None or header.flags or header.zero or not 0 < header.records <= MAX_RECORDS:
        rule, limits = _check_header(header)
    if len(body) > MAX_FRAME:
        raise FrameError(Reason.BODY_SIZE, len(body), f"at most {MAX_FRAME}")
    most = max(limits.max_payload, MAX_FRAME) if rule.payload else 0
    if len(payload) > most:
        raise FrameError(Reason.PAYLOAD_SIZE, len(payload), f"at most {most}")
    try:
        records = codec.unpack_array(body)
    except codec.CodecError as error:
        raise FrameError(Reason.BODY, str(error), f"{header.records} records") from None
    if len(records) != header.records:
        raise FrameError(Reason.MISMATCH, len(records), header.records)
    for record in records:
        if type(record) is not list or not record:
            raise FrameError(Reason.RECORD, record, "an array with at least one item")
    return Frame(rule.kind, limits.lane, header.epoch, header.seq, header.ack, records, memoryview(payload))
