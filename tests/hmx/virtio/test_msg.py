"""virtio-msg messages: header, ids, layouts, revisions, and what is refused (transport-msg.tex, "pr28")."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.errno import Errno
from hmx.virtio import msg
from hmx.virtio.msg import (
    AMP,
    ARGO,
    MESSAGES,
    PR28,
    REASONS,
    REVISIONS,
    BusId,
    Message,
    MessageError,
    MsgId,
    Reason,
    Tail,
)

# name: id, bus, who begins, request format, its tail, response format, its tail, mandatory.
TABLE: dict[str, tuple[Any, ...]] = {
    "GET_DEVICE_INFO": (0x02, False, "driver", "", "", "IIIIIHH", "", True),
    "GET_DEVICE_FEATURES": (0x03, False, "driver", "II", "", "II", "WORDS 1", True),
    "SET_DRIVER_FEATURES": (0x04, False, "driver", "II", "WORDS 1", "", "", True),
    "GET_CONFIG": (0x05, False, "driver", "II", "", "III", "BYTES 2", True),
    "SET_CONFIG": (0x06, False, "driver", "III", "BYTES 2", "III", "MAYBE_BYTES 2", True),
    "GET_DEVICE_STATUS": (0x07, False, "driver", "", "", "I", "", True),
    "SET_DEVICE_STATUS": (0x08, False, "driver", "I", "", "I", "", True),
    "GET_VQUEUE": (0x09, False, "driver", "I", "", "IIIIQQQ", "", True),
    "SET_VQUEUE": (0x0A, False, "driver", "IIIIQQQ", "", "", "", True),
    "RESET_VQUEUE": (0x0B, False, "driver", "I", "", "", "", True),
    "GET_SHM": (0x0C, False, "driver", "I", "", "III", "", False),
    "EVENT_CONFIG": (0x40, False, "device", "IIII", "MAYBE_BYTES 3", None, "", True),
    "EVENT_AVAIL": (0x41, False, "driver", "II", "", None, "", True),
    "EVENT_USED": (0x42, False, "device", "I", "", None, "", True),
    "GET_DEVICES": (0x02, True, "driver", "HH", "", "HHH", "BITS 1", True),
    "PING": (0x03, True, "either", "I", "", "I", "", True),
    "EVENT_DEVICE": (0x40, True, "device", "HH", "", None, "", True),
    "HELLO": (0x80, True, "driver", "IIIIQ", "", "IIIIQ", "", False),
}
OURS = {
    "ERROR": 0x81, "PUBLISH": 0xC0, "USED": 0xC1, "DATA": 0xC2, "SYNC": 0xC3, "SYNC_USED": 0xC4, "CREDIT": 0xC5,
}  # fmt: skip
# What a request (or event) and a response hold.
TYPES = {
    "GET_DEVICE_INFO": "Empty DeviceInfo", "GET_DEVICE_FEATURES": "BlockRange FeatureBlocks",
    "SET_DRIVER_FEATURES": "FeatureBlocks Empty", "GET_CONFIG": "ConfigRange ConfigData",
    "SET_CONFIG": "ConfigData ConfigData", "GET_DEVICE_STATUS": "Empty StatusValue",
    "SET_DEVICE_STATUS": "StatusValue StatusValue", "GET_VQUEUE": "QueueIndex QueueInfo",
    "SET_VQUEUE": "QueueSetup Empty", "RESET_VQUEUE": "QueueIndex Empty", "GET_SHM": "QueueIndex ShmInfo",
    "EVENT_CONFIG": "ConfigEvent", "EVENT_AVAIL": "AvailEvent", "EVENT_USED": "QueueIndex",
    "GET_DEVICES": "DeviceRange DeviceBitmap", "PING": "PingData PingData", "EVENT_DEVICE": "DeviceEvent",
    "HELLO": "HelloData HelloData",
}  # fmt: skip
FIELDS = {
    "DeviceInfo": "device_id vendor_id feature_bits config_size max_virtqueues admin_start admin_count",
    "BlockRange": "block blocks", "FeatureBlocks": "block blocks words", "ConfigRange": "offset length",
    "ConfigData": "generation offset length data", "StatusValue": "status", "QueueIndex": "queue",
    "QueueInfo": "queue max_size size reserved descriptors driver device",
    "QueueSetup": "queue reserved size reserved2 descriptors driver device", "ShmInfo": "region length address",
    "ConfigEvent": "status generation offset length data", "AvailEvent": "queue next_offset",
    "DeviceRange": "offset numbers", "DeviceBitmap": "offset numbers next_offset bitmap", "PingData": "data",
    "DeviceEvent": "dev_num state", "HelloData": "revision max_message features window instance", "Empty": "",
    "ErrorData": "msg_id reason errno",
}  # fmt: skip


def tail(layout: msg.Layout) -> str:
    return "" if layout.tail is Tail.NONE else f"{layout.tail.name} {layout.counted}"


def test_the_table() -> None:
    """Ids, directions, layouts."""
    found = {
        row.name: (
            int(row.id), row.bus, row.sender.value, row.request.format[1:], tail(row.request),
            row.response and row.response.format[1:], tail(row.response) if row.response else "", row.mandatory,
        )
        for row in MESSAGES
    }  # fmt: skip
    assert found == TABLE
    for row in MESSAGES:
        both = [row.request] if row.response is None else [row.request, row.response]
        assert " ".join(layout.type.__name__ for layout in both) == TYPES[row.name]
    layouts = [row.request for row in MESSAGES] + [row.response for row in MESSAGES if row.response]
    for layout in [*layouts, msg.ERROR_LAYOUT]:
        assert layout.type._fields == tuple(FIELDS[layout.type.__name__].split())
        assert layout.format.startswith("<")
        assert layout.tail is not Tail.NONE or not layout.counted
        assert len(layout.type._fields) == len(layout.format) - 1 + (layout.tail is not Tail.NONE)


def test_ids() -> None:
    """Bit 6 marks events, bit 7 what is ours; 0 and 1 are reserved."""
    assert {each.name: int(each) for each in MsgId} == {
        **{name: row[0] for name, row in TABLE.items() if not row[1]}, **OURS,
    }  # fmt: skip
    assert {each.name: int(each) for each in BusId} == {
        **{name: row[0] for name, row in TABLE.items() if row[1]}, "ERROR": 0x81,
    }  # fmt: skip
    for row in MESSAGES:
        assert bool(row.id & 0x40) == (row.response is None)
        assert bool(row.id & 0x80) == (row.name == "HELLO")
    assert (msg.EVENT_BIT, msg.IMPLEMENTATION_BIT) == (0x40, 0x80)
    assert [int(each) for each in msg.DeviceState] == [1, 2]


def test_sizes() -> None:
    """SET_VQUEUE is 48 bytes with its header, more than the 44 that every bus carries: a defect of the draft."""
    assert msg.row(MsgId.SET_VQUEUE).request.fixed == 40 and msg.MIN_MESSAGE == 44
    assert msg.row(MsgId.GET_DEVICE_INFO).response.fixed == 24  # type: ignore[union-attr]
    assert (msg.MAX_MESSAGE, msg.USUAL_MESSAGE) == (65535, 264)


def test_the_header() -> None:
    """type, msg_id, dev_num le16, token le16, msg_size le16: 8 bytes; 6 without a token before."""
    message = Message(1, 2, 0x0304, 0x0506, b"\x07")
    assert msg.pack_message(message, PR28) == bytes.fromhex("01 02 0403 0605 0900 07")
    assert msg.pack_message(message, AMP) == bytes.fromhex("01 02 0403 0700 07")
    assert msg.unpack_message(bytes.fromhex("01 02 0403 0700 07"), AMP) == message._replace(token=0)


def test_revisions() -> None:
    """Ours is marked; a number between two means the lower."""
    assert [(row.number, row.name, row.header, row.token, row.ours) for row in REVISIONS] == [
        (0, "amp", "<BBHH", False, False), (1, "pr28", "<BBHHH", True, False),
        (1 << 31 | 1, "argo", "<BBHHH", True, True),
    ]  # fmt: skip
    assert (AMP, PR28, ARGO) == REVISIONS
    assert [msg.revision(number) for number in (0, 1, 7, 1 << 31, 1 << 31 | 1, 0xFFFFFFFF)] == [
        AMP, PR28, PR28, PR28, ARGO, ARGO,
    ]  # fmt: skip
    assert msg.revision(-1) is None


def test_reasons() -> None:
    """Numbers and errnos of ERROR (experimental)."""
    assert [(int(row.reason), row.reason.name, row.errno) for row in REASONS] == [
        (1, "MALFORMED", Errno.EINVAL), (2, "UNSUPPORTED", Errno.ENOSYS), (3, "NO_DEVICE", Errno.ENODEV),
        (4, "NO_QUEUE", Errno.ENOENT), (5, "RANGE", Errno.EMSGSIZE), (6, "INVALID", Errno.EINVAL),
        (7, "STATE", Errno.EBUSY), (8, "REVISION", Errno.EOPNOTSUPP),
    ]  # fmt: skip


def test_reserved_bits_are_ignored() -> None:
    """Bits 2 to 7 of the type are for later (common message format)."""
    assert msg.unpack_message(b"\xfe\x03\0\0\0\0\x08\0").type == msg.MsgType.BUS
    assert msg.unpack_message(b"\xff\x03\0\0\0\0\x08\0") == (3, 3, 0, 0, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 7, b"\0\2\0\0\0\0\7\0", b"\0\2\0\0\0\0\0\0", b"\0\2\0\0\0\0\x09\0", b"\0\2\0\0\0\0\x08\0\0",
        b"\0\2\0\0\0\0\xff\xff",
    ],
)  # fmt: skip
def test_malformed_headers(data: bytes) -> None:
    """Too short, a size below the header's, beyond the end, before it."""
    with pytest.raises(MessageError) as error:
        msg.unpack_message(data)
    assert error.value.reason is Reason.MALFORMED


def test_several_messages() -> None:
    """One behind another, each as long as it says; what is wrong is found where it stands."""
    first, second = (
        msg.pack(msg.row(MsgId.EVENT_USED), msg.QueueIndex(1), 3),
        msg.pack(msg.row(BusId.PING), (7,), token=2),
    )
    assert list(msg.unpack_messages(first + second)) == [
        (0, 0x42, 3, 0, struct.pack("<I", 1)), (2, 3, 0, 2, struct.pack("<I", 7)),
    ]  # fmt: skip
    assert list(msg.unpack_messages(b"")) == []
    found = msg.unpack_messages(first + second[:-1])
    assert next(found).dev_num == 3
    with pytest.raises(MessageError):
        next(found)


def test_too_long() -> None:
    """A size that the header cannot say."""
    message = Message(0, 5, 0, 0, bytes(65527))
    assert len(msg.pack_message(message)) == 65535
    with pytest.raises(ValueError, match="65536"):
        msg.pack_message(message._replace(payload=bytes(65528)))


def row_id(row: msg.Row) -> str:
    return row.name


@pytest.mark.parametrize("row", MESSAGES, ids=row_id)
def test_payload_sizes_are_exact(row: msg.Row) -> None:
    """A byte less or more, and a count that contradicts the size, are refused."""
    for layout in (row.request, row.response):
        if layout is None:
            continue
        good = bytes(layout.fixed)
        values = msg.unpack_payload(layout, good)
        assert msg.pack_payload(layout, values) == good
        for bad in (good + b"\0", good[:-1]):
            if bad != good:
                with pytest.raises(MessageError) as error:
                    msg.unpack_payload(layout, bad)
                assert error.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("layout", "fixed", "count", "sizes"),
    [
        (msg.row(MsgId.SET_DRIVER_FEATURES).request, (5,), 3, {12}),
        (msg.row(MsgId.SET_CONFIG).request, (5, 6), 3, {3}),
        (msg.row(MsgId.SET_CONFIG).response, (5, 6), 3, {0, 3}),
        (msg.row(MsgId.EVENT_CONFIG).request, (5, 6, 7), 3, {0, 3}),
        (msg.row(MsgId.GET_CONFIG).response, (5, 6), 3, {3}),
        (msg.row(BusId.GET_DEVICES).response, (8,), 24, {3}),
        (msg.row(BusId.GET_DEVICES).response, (8,), 25, set()),
        (msg.row(BusId.GET_DEVICES).response, (8,), 31, set()),
    ],
)
def test_counts(layout: msg.Layout, fixed: tuple[int, ...], count: int, sizes: set[int]) -> None:
    """Words, bytes, bits; data of EVENT_CONFIG and of a SET_CONFIG response may be left out."""
    more = (0,) if layout.type is msg.DeviceBitmap else ()
    head = struct.pack(layout.format, *fixed, count, *more)
    good = set()
    for size in range(20):
        words = layout.tail is Tail.WORDS
        rest: Any = (0,) * (size // 4) if words else bytes(size)
        try:
            found = msg.unpack_payload(layout, head + bytes(size))
        except MessageError:
            if not words or size % 4 == 0:
                with pytest.raises(ValueError):
                    msg.pack_payload(layout, (*fixed, count, *more, rest))
        else:
            good.add(size)
            assert found[-1] == rest and msg.pack_payload(layout, found) == head + bytes(size)
    assert good == sizes


def test_unknown_messages() -> None:
    """Standard ids that do not exist, and those of the data plane, which have tables of their own."""
    for bus, number in (
        (0, 0),
        (0, 1),
        (0, 0x0D),
        (0, 0x43),
        (2, 4),
        (2, 0x05),
        (0, 0xC0),
        (0, 0x80),
        (0, 0x81),
        (2, 0xFF),
    ):
        with pytest.raises(MessageError) as error:
            msg.row_of(Message(bus, number, 0, 0, b""))
        assert error.value.reason is Reason.UNSUPPORTED


def test_responses_repeat_id_device_and_token() -> None:
    """A device copies the token (common message format)."""
    request = msg.unpack_message(msg.pack(msg.row(MsgId.GET_DEVICE_STATUS), (), 9, 0x1234))
    response = msg.unpack_message(msg.pack_response(request, (15,)))
    assert response.response and not response.event
    assert response == (1, 7, 9, 0x1234, b"\x0f\0\0\0")
    with pytest.raises(ValueError, match="event"):
        msg.pack_response(Message(0, 0x41, 0, 0, b""), ())


def test_errors() -> None:
    """ERROR takes the place of the response, names the request, and is sent in our revision only (experimental)."""
    request = Message(0, 5, 9, 0x1234, b"")
    answer = msg.pack_error(request, Reason.RANGE)
    assert answer is not None
    message = msg.unpack_message(answer)
    assert message[:4] == (1, 0x81, 9, 0x1234)
    assert msg.unpack_payload(msg.ERROR_LAYOUT, message.payload) == (5, 5, 90)
    assert msg.pack_error(request, Reason.RANGE, PR28) is None
    assert msg.pack_error(request._replace(type=1), Reason.RANGE) is None, "no answer to an answer"
    assert msg.pack_error(request._replace(msg_id=0x41), Reason.RANGE) is None, "none to an event"


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """Are a message, which packs to the same but for reserved bits, or MessageError."""
    for which in REVISIONS:
        try:
            message = msg.unpack_message(data, which)
        except MessageError:
            continue
        assert msg.pack_message(message, which) == bytes((data[0] & 3,)) + data[1:]
