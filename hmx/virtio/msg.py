"""virtio-msg messages: header, the tables of messages with their layouts, packing and unpacking.

Source: the public draft of the virtio-msg transport (transport-msg.tex, "pr28", December 2025).  Header and ids have
changed between drafts, so a `Revision` goes with every message.  What the draft lacks is ours, experimental, not
upstream, and has implementation-defined ids: HELLO, the ERROR response, and the data plane of VirtIO-Argo, whose
layouts are in hmx/virtio/argo.py.  All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, IntEnum, IntFlag
from typing import Any, Final, NamedTuple

from hmx.virtio.msg_payloads import (
    ERROR_LAYOUT,
    REASONS,
    AvailEvent,
    BlockRange,
    Buffer,
    ConfigData,
    ConfigEvent,
    ConfigRange,
    DeviceBitmap,
    DeviceEvent,
    DeviceInfo,
    DeviceRange,
    Empty,
    ErrorData,
    FeatureBlocks,
    HelloData,
    Layout,
    MessageError,
    PingData,
    QueueIndex,
    QueueInfo,
    QueueSetup,
    Reason,
    Refused,
    ShmInfo,
    StatusValue,
    Tail,
    errno_of,
    pack_payload,
    unpack_payload,
)

__all__ = [
    "AMP", "ARGO", "ERROR_LAYOUT", "EVENT_BIT", "IMPLEMENTATION_BIT", "MAX_MESSAGE", "MESSAGES", "MIN_MESSAGE", "PR28",
    "REASONS", "REVISIONS", "USUAL_MESSAGE", "AvailEvent", "BlockRange", "Buffer", "BusId", "ConfigData", "ConfigEvent",
    "ConfigRange", "DeviceBitmap", "DeviceEvent", "DeviceInfo", "DeviceRange", "DeviceState", "Empty", "ErrorData",
    "FeatureBlocks", "HelloData", "Layout", "Message", "MessageError", "MsgId", "MsgType", "PingData", "QueueIndex",
    "QueueInfo", "QueueSetup", "Reason", "Refused", "Revision", "Row", "Sender", "ShmInfo", "StatusValue", "Tail",
    "pack", "pack_error", "pack_message", "pack_payload", "pack_response", "revision", "row", "row_of",
    "unpack_message", "unpack_messages", "unpack_payload",
]  # fmt: skip


class MsgType(IntFlag):
    """Bits of the header's first byte; a receiver ignores the other six."""

    RESPONSE = 1
    BUS = 2


class MsgId(IntEnum):
    """Transport messages.  Bit 6: an event, that has no response.  Bit 7: implementation-defined."""

    GET_DEVICE_INFO = 0x02
    GET_DEVICE_FEATURES = 0x03
    SET_DRIVER_FEATURES = 0x04
    GET_CONFIG = 0x05
    SET_CONFIG = 0x06
    GET_DEVICE_STATUS = 0x07
    SET_DEVICE_STATUS = 0x08
    GET_VQUEUE = 0x09
    SET_VQUEUE = 0x0A
    RESET_VQUEUE = 0x0B
    GET_SHM = 0x0C
    EVENT_CONFIG = 0x40
    EVENT_AVAIL = 0x41
    EVENT_USED = 0x42
    ERROR = 0x81
    PUBLISH = 0xC0
    USED = 0xC1
    DATA = 0xC2
    SYNC = 0xC3
    SYNC_USED = 0xC4
    CREDIT = 0xC5


class BusId(IntEnum):
    """Bus messages; the same bits."""

    GET_DEVICES = 0x02
    PING = 0x03
    EVENT_DEVICE = 0x40
    HELLO = 0x80
    ERROR = 0x81


EVENT_BIT: Final = 0x40
IMPLEMENTATION_BIT: Final = 0x80


class DeviceState(IntEnum):
    """States in EVENT_DEVICE; 0x8000 and above are the implementation's."""

    READY = 1
    REMOVED = 2


class Sender(Enum):
    """Who begins."""

    DRIVER = "driver"
    DEVICE = "device"
    EITHER = "either"


class Row(NamedTuple):
    """One message.  `response` None: an event.  `mandatory`: every device has to know it."""

    id: IntEnum
    bus: bool
    sender: Sender
    request: Layout
    response: Layout | None
    mandatory: bool

    @property
    def name(self) -> str:
        """The draft's name."""
        return self.id.name


_EMPTY: Final = Layout(Empty, "<")
_STATUS: Final = Layout(StatusValue, "<I")
_QUEUE: Final = Layout(QueueIndex, "<I")
_PING: Final = Layout(PingData, "<I")
_HELLO: Final = Layout(HelloData, "<IIIIQ")

MESSAGES: Final[tuple[Row, ...]] = (
    Row(MsgId.GET_DEVICE_INFO, False, Sender.DRIVER, _EMPTY, Layout(DeviceInfo, "<IIIIIHH"), True),
    Row(
        MsgId.GET_DEVICE_FEATURES, False, Sender.DRIVER,
        Layout(BlockRange, "<II"), Layout(FeatureBlocks, "<II", Tail.WORDS, 1), True,
    ),
    Row(MsgId.SET_DRIVER_FEATURES, False, Sender.DRIVER, Layout(FeatureBlocks, "<II", Tail.WORDS, 1), _EMPTY, True),
    Row(
        MsgId.GET_CONFIG, False, Sender.DRIVER,
        Layout(ConfigRange, "<II"), Layout(ConfigData, "<III", Tail.BYTES, 2), True,
    ),
    Row(
        MsgId.SET_CONFIG, False, Sender.DRIVER,
        Layout(ConfigData, "<III", Tail.BYTES, 2), Layout(ConfigData, "<III", Tail.MAYBE_BYTES, 2), True,
    ),
    Row(MsgId.GET_DEVICE_STATUS, False, Sender.DRIVER, _EMPTY, _STATUS, True),
    Row(MsgId.SET_DEVICE_STATUS, False, Sender.DRIVER, _STATUS, _STATUS, True),
    Row(MsgId.GET_VQUEUE, False, Sender.DRIVER, _QUEUE, Layout(QueueInfo, "<IIIIQQQ"), True),
    Row(MsgId.SET_VQUEUE, False, Sender.DRIVER, Layout(QueueSetup, "<IIIIQQQ"), _EMPTY, True),
    Row(MsgId.RESET_VQUEUE, False, Sender.DRIVER, _QUEUE, _EMPTY, True),
    Row(MsgId.GET_SHM, False, Sender.DRIVER, _QUEUE, Layout(ShmInfo, "<III"), False),
    Row(MsgId.EVENT_CONFIG, False, Sender.DEVICE, Layout(ConfigEvent, "<IIII", Tail.MAYBE_BYTES, 3), None, True),
    Row(MsgId.EVENT_AVAIL, False, Sender.DRIVER, Layout(AvailEvent, "<II"), None, True),
    Row(MsgId.EVENT_USED, False, Sender.DEVICE, _QUEUE, None, True),
    Row(
        BusId.GET_DEVICES, True, Sender.DRIVER,
        Layout(DeviceRange, "<HH"), Layout(DeviceBitmap, "<HHH", Tail.BITS, 1), True,
    ),
    Row(BusId.PING, True, Sender.EITHER, _PING, _PING, True),
    Row(BusId.EVENT_DEVICE, True, Sender.DEVICE, Layout(DeviceEvent, "<HH"), None, True),
    Row(BusId.HELLO, True, Sender.DRIVER, _HELLO, _HELLO, False),
)  # fmt: skip

_ROWS: Final = {(row.bus, int(row.id)): row for row in MESSAGES}


# -- revisions ----


class Revision(NamedTuple):
    """One state of the draft: the header, and whether what is ours may be sent.

    `number` is what HELLO carries; `token` whether the header has one.
    """

    number: int
    name: str
    header: str
    token: bool
    ours: bool
    source: str

    @property
    def header_size(self) -> int:
        """Bytes before the payload."""
        return struct.calcsize(self.header)


REVISIONS: Final[tuple[Revision, ...]] = (
    Revision(0, "amp", "<BBHH", False, False, "prototypes over shared-memory FIFOs, 2024"),
    Revision(1, "pr28", "<BBHHH", True, False, "transport-msg.tex, 1 December 2025"),
    Revision(0x80000001, "argo", "<BBHHH", True, True, "pr28 with HELLO, ERROR and a data plane: experimental"),
)
AMP, PR28, ARGO = REVISIONS
MIN_MESSAGE: Final = 44  # what every bus has to carry; less than a SET_VQUEUE of pr28, a defect of that draft
MAX_MESSAGE: Final = 0xFFFF  # what the header's size field can say
USUAL_MESSAGE: Final = 264  # the draft's recommended upper limit


def revision(number: int) -> Revision | None:
    """The highest revision that we know and that is not above `number`, or None."""
    return max((row for row in REVISIONS if row.number <= number), key=lambda row: row.number, default=None)


# -- messages ----


class Message(NamedTuple):
    """One message; `type` without the reserved bits.  `payload` may be a view of what was received."""

    type: int
    msg_id: int
    dev_num: int
    token: int
    payload: Buffer

    @property
    def bus(self) -> bool:
        """A bus message, not one of the transport."""
        return bool(self.type & MsgType.BUS)

    @property
    def response(self) -> bool:
        """An answer, not a request or an event."""
        return bool(self.type & MsgType.RESPONSE)

    @property
    def event(self) -> bool:
        """One that has no answer."""
        return bool(self.msg_id & EVENT_BIT)


def row_of(message: Message) -> Row:
    """The row of a standard message (or HELLO).  Raises MessageError for others, those of the data plane too."""
    row = _ROWS.get((message.bus, message.msg_id))
    if row is None:
        kind = "bus" if message.bus else "transport"
        raise MessageError(Reason.UNSUPPORTED, f"{kind} message {message.msg_id:#04x}")
    return row


def pack_message(message: Message, which: Revision = ARGO) -> bytes:
    """The bytes of a message.  ValueError: too long for the header's size field."""
    size = which.header_size + len(message.payload)
    if size > MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes; at most {MAX_MESSAGE} can be said")
    head = (message.type, message.msg_id, message.dev_num, *((message.token,) if which.token else ()), size)
    return struct.pack(which.header, *head) + bytes(message.payload)


def _split(data: Buffer, which: Revision) -> tuple[Message, int]:
    if len(data) < which.header_size:
        raise MessageError(Reason.MALFORMED, f"{len(data)} bytes are no header")
    kind, msg_id, dev_num, *tokens, size = struct.unpack_from(which.header, data)
    if not which.header_size <= size <= len(data):
        raise MessageError(Reason.MALFORMED, f"message {msg_id:#04x} says {size} bytes, there are {len(data)}")
    kind &= MsgType.RESPONSE | MsgType.BUS
    return Message(kind, msg_id, dev_num, tokens[0] if tokens else 0, data[which.header_size : size]), size


def unpack_message(data: Buffer, which: Revision = ARGO) -> Message:
    """The one message that `data` is.  Raises MessageError."""
    message, size = _split(data, which)
    if size != len(data):
        raise MessageError(Reason.MALFORMED, f"{len(data) - size} bytes behind message {message.msg_id:#04x}")
    return message


def unpack_messages(data: Buffer, which: Revision = ARGO) -> Iterator[Message]:
    """The messages one behind another in `data`, as views of it.  Raises MessageError where they stop being so."""
    view = memoryview(data)
    while view:
        message, size = _split(view, which)
        yield message
        view = view[size:]


def pack(row: Row, values: tuple[Any, ...], dev_num: int = 0, token: int = 0, which: Revision = ARGO) -> bytes:
    """A request or event of `row`."""
    kind = MsgType.BUS if row.bus else 0
    return pack_message(Message(kind, row.id, dev_num, token, pack_payload(row.request, values)), which)


def pack_response(request: Message, values: tuple[Any, ...], which: Revision = ARGO) -> bytes:
    """The answer to a request: its id, device and token."""
    layout = row_of(request).response
    if layout is None:
        raise ValueError(f"message {request.msg_id:#04x} is an event")
    kind = request.type | MsgType.RESPONSE
    return pack_message(request._replace(type=kind, payload=pack_payload(layout, values)), which)


def pack_error(request: Message, reason: Reason, which: Revision = ARGO) -> bytes | None:
    """The ERROR answer to a request, or None where nobody may answer: events, answers, revisions without ERROR."""
    if not which.ours or request.response or request.event:
        return None
    payload = pack_payload(ERROR_LAYOUT, ErrorData(request.msg_id, reason, errno_of(reason)))
    answer = request._replace(type=request.type | MsgType.RESPONSE, msg_id=MsgId.ERROR, payload=payload)
    return pack_message(answer, which)


def row(message_id: MsgId | BusId) -> Row:
    """The row of a standard message by its id."""
    return _ROWS[isinstance(message_id, BusId), int(message_id)]
