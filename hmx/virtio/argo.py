"""VirtIO-Argo on the wire: what the transport adds to virtio-msg.  Experimental, not upstream; docs/virtio-argo.md.

The control plane is virtio-msg (hmx/virtio/msg.py), one message in one Argo message, and BYE, a bus message that ends a
connection as HELLO begins one.  The data plane has no counterpart there, since virtio-msg leaves rings and buffers in
memory that both sides reach.  Here each side has its own copy of every virtqueue; what one side changes in its parts
travels as ranges, and the bytes of buffers as pieces:

    header 8 | update 16 | ranges 8 each | pieces 16 each | bytes of the ranges || payload: bytes of the pieces

`msg_size` of the header counts up to the double bar, so that a payload may exceed 16 bits.  Several such messages may
stand one behind another in one Argo message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any, Final, NamedTuple

from hmx.virtio.memory import Buffer
from hmx.virtio.msg import ARGO, MsgId
from hmx.virtio.rings import Field, struct_of

MESSAGE_TYPE_VIRTIO: Final = 0x56694F41
"""The message type of every Argo message of this transport ("ViOA")."""

DATA_PLANE: Final = 0xC0
"""Message ids from here on, of messages that are not the bus's, are those of this file."""

BYE: Final = 0xC0
"""A bus message (an implementation event): the sender ends the connection."""


class Variant(IntEnum):
    """How the data plane travels; bit n of HELLO's features stands for variant n; the answer has one."""

    INLINE = 0  # changes of the queue and bytes of the buffers in one message
    MIRROR = 1  # bytes first, then the changes, in messages of their own

    @classmethod
    def named(cls, name: str) -> Variant:
        """The variant with this name in lower case.  ValueError names those that there are."""
        for variant in cls:
            if variant.name.lower() == name:
                return variant
        raise ValueError(f"no variant {name!r}; there are {', '.join(v.name.lower() for v in cls)}")


class Flow(NamedTuple):
    """What a variant sends: the message with changes of a queue, from the driver and from the device, and whether bytes
    of buffers stand behind those changes.
    """

    variant: Variant
    driver: MsgId
    device: MsgId
    joined: bool


FLOWS: Final = (
    Flow(Variant.INLINE, MsgId.PUBLISH, MsgId.USED, True),
    Flow(Variant.MIRROR, MsgId.SYNC, MsgId.SYNC_USED, False),
)


class UpdateFlag(IntFlag):
    """Flags of an update."""

    MORE = 1  # changes of the same synchronisation follow: the queue is not to be looked at yet


UPDATE_FIELDS: Final = (
    Field("vq_index", 0, 4),
    Field("flags", 4, 2),
    Field("ranges", 6, 2),  # how many
    Field("pieces", 8, 2),  # how many
    Field("reserved", 10, 2),
    Field("payload", 12, 4),  # bytes: the sum of the pieces
)
RANGE_FIELDS: Final = (
    Field("offset", 0, 4),  # in the image of the queue
    Field("length", 4, 4),
)
PIECE_FIELDS: Final = (
    Field("handle", 0, 8),  # the address that the descriptor has for the first byte
    Field("length", 8, 4),
    Field("reserved", 12, 4),
)
BYE_FIELDS: Final = (Field("reason", 0, 4),)

_HEAD: Final = Struct(ARGO.header + struct_of(UPDATE_FIELDS).format.removeprefix("<"))
_RANGE: Final = struct_of(RANGE_FIELDS)
_PIECE: Final = struct_of(PIECE_FIELDS)
_BYE: Final = struct_of(BYE_FIELDS)

HEAD_SIZE: Final = _HEAD.size
RANGE_SIZE: Final = _RANGE.size
PIECE_SIZE: Final = _PIECE.size
MAX_MSG_SIZE: Final = 0xFFFF
_KNOWN_IDS: Final = frozenset({int(MsgId.DATA), *(int(i) for flow in FLOWS for i in (flow.driver, flow.device))})
_KNOWN_FLAGS: Final = sum(UpdateFlag)


class Malformed(Exception):
    """A message is none of this transport: what is wrong with it."""


class Update(NamedTuple):
    """One message of the data plane.

    `ranges`: (offset in the image of the queue, bytes); `pieces`: (handle, bytes).  The bytes are views of what was
    decoded.
    """

    msg_id: int
    dev_num: int
    queue: int
    more: bool
    ranges: list[tuple[int, memoryview]]
    pieces: list[tuple[int, memoryview]]


def head(
    msg_id: int,
    dev_num: int,
    queue: int,
    ranges: Sequence[tuple[int, Buffer]],
    pieces: Sequence[tuple[int, int]],
    more: bool = False,
) -> bytes:
    """A message of the data plane up to its payload, which the caller lets follow.

    `ranges` are (offset, bytes), `pieces` are (handle, length of its bytes in the payload).  ValueError when it would
    be larger than its 16-bit size says, 65535 bytes.
    """
    parts: list[Buffer] = [b""]
    size = HEAD_SIZE + RANGE_SIZE * len(ranges) + PIECE_SIZE * len(pieces)
    payload = 0
    for offset, data in ranges:
        parts.append(_RANGE.pack(offset, len(data)))
    for handle, length in pieces:
        parts.append(_PIECE.pack(handle, length, 0))
        payload += length
    for _, data in ranges:
        parts.append(data)
        size += len(data)
    if size > MAX_MSG_SIZE:
        raise ValueError(f"an update of {size} bytes; {MAX_MSG_SIZE} is the most")
    parts[0] = _HEAD.pack(
        0, msg_id, dev_num, 0, size, queue, UpdateFlag.MORE if more else 0, len(ranges), len(pieces), 0, payload
    )
    return b"".join(parts)


def is_data(message: Buffer) -> bool:
    """Whether an Argo message begins with one of the data plane."""
    return len(message) >= 2 and not message[0] and message[1] >= DATA_PLANE


def decode(message: memoryview) -> list[Update]:
    """The messages of the data plane that an Argo message consists of.  Raises Malformed."""
    found: list[Update] = []
    at, end = 0, len(message)
    while at < end:
        if end - at < HEAD_SIZE:
            raise Malformed(f"{end - at} bytes are no message of the data plane: its head has {HEAD_SIZE}")
        kind, msg_id, dev_num, _, size, queue, flags, ranges, pieces, _, payload = _HEAD.unpack_from(message, at)
        if kind or msg_id not in _KNOWN_IDS:
            raise Malformed(f"type {kind:#x}, id {msg_id:#x} is no message of the data plane")
        tables = HEAD_SIZE + RANGE_SIZE * ranges + PIECE_SIZE * pieces
        if flags & ~_KNOWN_FLAGS or tables > size or at + size + payload > end:
            raise Malformed(
                f"id {msg_id:#x} of {size} bytes with {ranges} ranges, {pieces} pieces, flags {flags:#x} and a payload "
                f"of {payload} bytes does not fit the {end - at} bytes that are left"
            )
        middle = at + HEAD_SIZE + RANGE_SIZE * ranges
        behind = at + tables
        stop = at + size
        changed, behind = _cut(message, _RANGE.iter_unpack(message[at + HEAD_SIZE : middle]), behind)
        if behind != stop:
            raise Malformed(f"the ranges of id {msg_id:#x} end at {behind - at}, its size is {size}")
        carried, behind = _cut(message, _PIECE.iter_unpack(message[middle : at + tables]), stop)
        if behind != stop + payload:
            raise Malformed(f"the pieces of id {msg_id:#x} have {behind - stop} bytes, its payload {payload}")
        found.append(Update(msg_id, dev_num, queue, bool(flags & UpdateFlag.MORE), changed, carried))
        at = behind
    if not found:
        raise Malformed("an empty message")
    return found


def _cut(message: memoryview, rows: Iterator[Any], at: int) -> tuple[list[tuple[int, memoryview]], int]:
    """The bytes of a table's rows, which follow one another from `at` on; and where they end, if need be behind it."""
    found = []
    for row in rows:
        end = at + row[1]
        found.append((row[0], message[at:end]))
        at = end
    return found, at


def misplaced(update: Update, flow: Flow, sync: MsgId) -> str | None:
    """Why no side of this flow whose changes come as `sync` sends this message, or None."""
    if update.msg_id == MsgId.DATA:
        return "changes of a queue in DATA" if update.ranges else None
    if update.msg_id != sync:
        return f"message {update.msg_id:#x} in variant {flow.variant.name.lower()}, where {sync:#x} was due"
    if update.pieces and not flow.joined:
        return f"bytes of buffers in message {update.msg_id:#x}"
    return None


def pack_bye(reason: int = 0) -> bytes:
    """BYE's payload; `reason` is 0, or the errno for which the sender ends the connection."""
    return _BYE.pack(reason)


def parse_bye(payload: Buffer) -> int:
    """The reason of a BYE.  Raises Malformed."""
    if len(payload) != _BYE.size:
        raise Malformed(f"BYE of {len(payload)} bytes in place of {_BYE.size}")
    reason: int = _BYE.unpack(payload)[0]
    return reason


def flow_of(variant: int) -> Flow:
    """The flow of a variant.  KeyError for none of ours."""
    return _FLOWS[variant]


_FLOWS: Final = {int(flow.variant): flow for flow in FLOWS}
