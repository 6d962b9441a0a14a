"""Payloads of virtio-msg messages: their values, their layouts, packing and unpacking.

Source: the public draft of the virtio-msg transport (transport-msg.tex, "pr28", December 2025).  Integers are
little-endian.  HelloData and ErrorData are ours, experimental, not upstream.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

from hmx.errno import Errno

Buffer = bytes | bytearray | memoryview


# -- why a message is refused ----


class Reason(IntEnum):
    """Why: in MessageError, and in ERROR responses (experimental, not upstream)."""

    MALFORMED = 1
    UNSUPPORTED = 2
    NO_DEVICE = 3
    NO_QUEUE = 4
    RANGE = 5
    INVALID = 6
    STATE = 7
    REVISION = 8


class ReasonRow(NamedTuple):
    """A reason, the errno that goes with it, and what it says."""

    reason: Reason
    errno: Errno
    meaning: str


REASONS: Final[tuple[ReasonRow, ...]] = (
    ReasonRow(Reason.MALFORMED, Errno.EINVAL, "sizes or fields contradict the layout"),
    ReasonRow(Reason.UNSUPPORTED, Errno.ENOSYS, "no such message, or not in this direction"),
    ReasonRow(Reason.NO_DEVICE, Errno.ENODEV, "no device has this number"),
    ReasonRow(Reason.NO_QUEUE, Errno.ENOENT, "the device has no queue of this index"),
    ReasonRow(Reason.RANGE, Errno.EMSGSIZE, "outside the configuration space, or an answer that is too long"),
    ReasonRow(Reason.INVALID, Errno.EINVAL, "a size or address that no queue may have"),
    ReasonRow(Reason.STATE, Errno.EBUSY, "not in this state, or without the feature"),
    ReasonRow(Reason.REVISION, Errno.EOPNOTSUPP, "no common revision"),
)
_ERRNO: Final = {row.reason: row.errno for row in REASONS}


def errno_of(reason: Reason) -> Errno:
    """The errno that goes with a reason."""
    return _ERRNO[reason]


class MessageError(Exception):
    """A message that is refused; `reason` says why, the text gives the values."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Refused(MessageError):
    """The other side answered with ERROR."""


# -- what payloads hold ----


class Empty(NamedTuple):
    """Nothing."""


class DeviceInfo(NamedTuple):
    """GET_DEVICE_INFO.  `feature_bits` is a multiple of 32."""

    device_id: int
    vendor_id: int
    feature_bits: int
    config_size: int
    max_virtqueues: int
    admin_start: int = 0
    admin_count: int = 0


class BlockRange(NamedTuple):
    """Feature blocks of 32 bits: the first, and how many."""

    block: int
    blocks: int


class FeatureBlocks(NamedTuple):
    """Feature blocks with their words."""

    block: int
    blocks: int
    words: tuple[int, ...]


class ConfigRange(NamedTuple):
    """Bytes of the configuration space."""

    offset: int
    length: int


class ConfigData(NamedTuple):
    """Bytes of the configuration space as they are in `generation`.  In an answer to SET_CONFIG `length` 0: refused."""

    generation: int
    offset: int
    length: int
    data: bytes = b""


class StatusValue(NamedTuple):
    """The device status."""

    status: int


class QueueIndex(NamedTuple):
    """A virtqueue."""

    queue: int


class QueueInfo(NamedTuple):
    """GET_VQUEUE.  `max_size` 0: there is no such queue; `size` 0: not configured."""

    queue: int
    max_size: int
    size: int
    reserved: int
    descriptors: int
    driver: int
    device: int


class QueueSetup(NamedTuple):
    """SET_VQUEUE."""

    queue: int
    reserved: int
    size: int
    reserved2: int
    descriptors: int
    driver: int
    device: int


class ShmInfo(NamedTuple):
    """GET_SHM.  `length` 0: there is no such region."""

    region: int
    length: int
    address: int


class ConfigEvent(NamedTuple):
    """EVENT_CONFIG.  Without data the driver reads again."""

    status: int
    generation: int
    offset: int = 0
    length: int = 0
    data: bytes = b""


class AvailEvent(NamedTuple):
    """EVENT_AVAIL.  `next_offset` is 0 unless NOTIFICATION_DATA was negotiated."""

    queue: int
    next_offset: int = 0


class DeviceRange(NamedTuple):
    """GET_DEVICES: so many device numbers from `offset` on; both multiples of 8."""

    offset: int
    numbers: int


class DeviceBitmap(NamedTuple):
    """Which devices there are: bit n of `bitmap`, least significant first, is `offset` + n.

    `next_offset` 0: there are none beyond.
    """

    offset: int
    numbers: int
    next_offset: int
    bitmap: bytes


class PingData(NamedTuple):
    """PING, both ways."""

    data: int


class DeviceEvent(NamedTuple):
    """EVENT_DEVICE."""

    dev_num: int
    state: int


class HelloData(NamedTuple):
    """HELLO, both ways (experimental, not upstream): the highest revision that the sender speaks, the answer being the
    one to use; bytes of the longest message that the sender takes; transport feature bits; bytes that its ring for
    these messages holds; a number that changes when the sender has lost all that it knew.
    """

    revision: int
    max_message: int
    features: int
    window: int
    instance: int


class ErrorData(NamedTuple):
    """ERROR (experimental, not upstream): which request was refused, why, and the errno, positive."""

    msg_id: int
    reason: int
    errno: int


# -- layouts ----


class Tail(Enum):
    """What follows the fixed fields, and how the field that counts it does so."""

    NONE = "nothing"
    BYTES = "bytes"
    MAYBE_BYTES = "all bytes or none"
    WORDS = "le32 words"
    BITS = "bytes, counted in bits"


class Layout(NamedTuple):
    """A payload: the type of its values, the struct format of the fixed part, and what follows, which the value of
    number `counted` counts.
    """

    type: Any
    format: str
    tail: Tail = Tail.NONE
    counted: int = 0

    @property
    def fixed(self) -> int:
        """Bytes of the fixed part."""
        return struct.calcsize(self.format)


def pack_payload(layout: Layout, values: tuple[Any, ...]) -> bytes:
    """The bytes of a payload, the tail being the last value.  ValueError: it contradicts its count."""
    if layout.tail is Tail.NONE:
        return struct.pack(layout.format, *values)
    *fixed, tail = values
    if layout.tail is Tail.WORDS:
        tail = struct.pack(f"<{len(tail)}I", *tail)
    if not _agrees(layout, fixed[layout.counted], len(tail)):
        raise ValueError(f"{layout.type.__name__} counts {fixed[layout.counted]}, the rest is {len(tail)} bytes")
    return struct.pack(layout.format, *fixed) + bytes(tail)


def unpack_payload(layout: Layout, payload: Buffer) -> Any:
    """The values of a payload, of the layout's type.  Raises MessageError where sizes do not agree."""
    fixed, tail = layout.fixed, len(payload) - layout.fixed
    if tail < 0 or (tail and layout.tail is Tail.NONE):
        raise MessageError(Reason.MALFORMED, f"{layout.type.__name__} has {fixed} bytes, not {len(payload)}")
    values = struct.unpack_from(layout.format, payload)
    if layout.tail is Tail.NONE:
        return layout.type(*values)
    if not _agrees(layout, values[layout.counted], tail):
        counted = values[layout.counted]
        raise MessageError(Reason.MALFORMED, f"{layout.type.__name__} counts {counted}, has {tail} bytes")
    rest = payload[fixed:]
    return layout.type(*values, struct.unpack(f"<{tail // 4}I", rest) if layout.tail is Tail.WORDS else bytes(rest))


def _agrees(layout: Layout, count: int, size: int) -> bool:
    match layout.tail:
        case Tail.WORDS:
            return size == 4 * count
        case Tail.BITS:
            return count % 8 == 0 and size == count // 8
        case Tail.MAYBE_BYTES:
            return size in (0, count)
        case _:
            return size == count


ERROR_LAYOUT: Final = Layout(ErrorData, "<HHI")  # of the response that takes the place of any other
