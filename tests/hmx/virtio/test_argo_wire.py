"""The bytes of VirtIO-Argo's data plane: a layout that somebody else can implement, and a reader that believes nothing.

Source: docs/virtio-argo.md, whose tables and examples these are, written out by hand; virtio-msg for the header.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.virtio import argo
from hmx.virtio.argo import (
    BYE,
    BYE_FIELDS,
    DATA_PLANE,
    FLOWS,
    HEAD_SIZE,
    MESSAGE_TYPE_VIRTIO,
    PIECE_FIELDS,
    PIECE_SIZE,
    RANGE_FIELDS,
    RANGE_SIZE,
    UPDATE_FIELDS,
    Malformed,
    UpdateFlag,
    Variant,
    decode,
    flow_of,
    head,
    is_data,
    pack_bye,
    parse_bye,
)
from hmx.virtio.msg import MsgId

SYNC_IDS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4)


def test_the_constants() -> None:
    """Ids in the ranges that virtio-msg leaves to implementations; the Argo message type spells ViOA."""
    assert MESSAGE_TYPE_VIRTIO.to_bytes(4, "big") == b"ViOA"
    assert (DATA_PLANE, BYE) == (0xC0, 0xC0)
    assert [int(i) for i in (MsgId.PUBLISH, MsgId.USED, MsgId.DATA, MsgId.SYNC, MsgId.SYNC_USED)] == list(SYNC_IDS)
    assert [(int(v), v.name) for v in Variant] == [(0, "INLINE"), (1, "MIRROR")]
    assert [int(flag) for flag in UpdateFlag] == [1]


def test_the_layouts() -> None:
    """Offsets and sizes of all fields."""
    assert [tuple(f) for f in UPDATE_FIELDS] == [
        ("vq_index", 0, 4), ("flags", 4, 2), ("ranges", 6, 2), ("pieces", 8, 2), ("reserved", 10, 2),
        ("payload", 12, 4),
    ]  # fmt: skip
    assert [tuple(f) for f in RANGE_FIELDS] == [("offset", 0, 4), ("length", 4, 4)]
    assert [tuple(f) for f in PIECE_FIELDS] == [("handle", 0, 8), ("length", 8, 4), ("reserved", 12, 4)]
    assert [tuple(f) for f in BYE_FIELDS] == [("reason", 0, 4)]
    assert (HEAD_SIZE, RANGE_SIZE, PIECE_SIZE) == (24, 8, 16)


def test_the_flows() -> None:
    """What each variant sends, and whether bytes of buffers stand behind the changes."""
    assert [(int(f.variant), int(f.driver), int(f.device), f.joined) for f in FLOWS] == [
        (0, 0xC0, 0xC1, True),
        (1, 0xC3, 0xC4, False),
    ]
    assert flow_of(1) is FLOWS[1]
    with pytest.raises(KeyError):
        flow_of(2)


def test_a_message_byte_by_byte() -> None:
    """Header 8, update 16, ranges, pieces, bytes of the ranges; then the payload, which msg_size does not count."""
    data = head(MsgId.PUBLISH, 0x0102, 3, [(0x10, b"abcd"), (0x2000, b"ef")], [(1 << 40, 5), (7, 1)], more=True)
    assert data == (
        b"\x00\xc0\x02\x01\x00\x00" + struct.pack("<H", 24 + 16 + 32 + 6)
        + struct.pack("<IHHHHI", 3, 1, 2, 2, 0, 6)
        + struct.pack("<II", 0x10, 4) + struct.pack("<II", 0x2000, 2)
        + struct.pack("<QII", 1 << 40, 5, 0) + struct.pack("<QII", 7, 1, 0)
        + b"abcdef"
    )  # fmt: skip
    (update,) = decode(memoryview(data + b"HELLO!"))
    assert update[:4] == (0xC0, 0x0102, 3, True)
    assert [(offset, bytes(view)) for offset, view in update.ranges] == [(0x10, b"abcd"), (0x2000, b"ef")]
    assert [(handle, bytes(view)) for handle, view in update.pieces] == [(1 << 40, b"HELLO"), (7, b"!")]


def test_a_payload_may_exceed_sixteen_bits() -> None:
    """msg_size is a le16; the payload has 32 bits of its own."""
    payload = bytes(200_000)
    (update,) = decode(memoryview(head(MsgId.DATA, 0, 0, [], [(0, len(payload))]) + payload))
    assert len(update.pieces[0][1]) == 200_000
    assert len(head(MsgId.SYNC, 0, 0, [(0, bytes(65535 - 32))], [])) == 65535
    with pytest.raises(ValueError, match="65536"):
        head(MsgId.SYNC, 0, 0, [(0, bytes(65536 - 32))], [])


Made = list[tuple[int, int, int, bool, list[tuple[int, bytes]], list[tuple[int, bytes]]]]
UPDATES = st.lists(
    st.tuples(
        st.sampled_from(SYNC_IDS),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.booleans(),
        st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(max_size=20)), max_size=4),
        st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.binary(max_size=20)), max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@given(UPDATES)
def test_messages_one_behind_another(updates: Made) -> None:
    """Several messages may stand in one Argo message; each comes out as it went in."""
    data = b""
    for msg_id, dev_num, queue, more, ranges, pieces in updates:
        data += head(msg_id, dev_num, queue, ranges, [(h, len(b)) for h, b in pieces], more)
        data += b"".join(b for _, b in pieces)
    assert is_data(data)
    found = decode(memoryview(data))
    assert [
        (*u[:4], [(o, bytes(v)) for o, v in u.ranges], [(h, bytes(v)) for h, v in u.pieces]) for u in found
    ] == updates


@given(UPDATES, st.data())
def test_a_message_that_was_cut_is_none(updates: Made, draw: st.DataObject) -> None:
    """Whatever is missing at the end: what is whole stays, or all of it is refused; nothing is read beyond the end."""
    ends, data = [], b""
    for msg_id, dev_num, queue, more, ranges, pieces in updates:
        data += head(msg_id, dev_num, queue, ranges, [(h, len(b)) for h, b in pieces], more)
        data += b"".join(b for _, b in pieces)
        ends.append(len(data))
    cut = draw.draw(st.integers(0, len(data) - 1))
    if cut in ends:
        assert len(decode(memoryview(data[:cut]))) == ends.index(cut) + 1
    else:
        with pytest.raises(Malformed):
            decode(memoryview(data[:cut]))


GOOD = head(0xC0, 1, 2, [(4, b"ab")], [(8, 3)]) + b"xyz"


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"\1", "no message of the data plane"),  # a response
        (0, b"\2", "no message of the data plane"),  # a bus message
        (1, b"\xbf", "no message of the data plane"),
        (1, b"\xc5", "no message of the data plane"),
        (6, struct.pack("<H", 49), "the ranges of id 0xc0 end at 50, its size is 49"),
        (6, struct.pack("<H", 51), "does not fit"),
        (6, b"\0\0", "does not fit"),
        (6, b"\xff\xff", "does not fit"),
        (12, b"\2\0", "flags 0x2"),
        (14, b"\2\0", "does not fit"),  # its tables alone are longer than its size
        (14, b"\xff\xff", "does not fit"),
        (16, b"\0\0", "the ranges"),
        (16, b"\xff\xff", "does not fit"),
        (20, b"\2\0\0\0", "the pieces of id 0xc0 have 3 bytes, its payload 2"),
        (20, b"\4\0\0\0", "does not fit"),
        (28, b"\3\0\0\0", "the ranges"),
        (28, b"\xff\xff\xff\xff", "the ranges"),
        (40, b"\xff\xff\xff\xff", "the pieces"),
    ],
)
def test_what_contradicts_itself_is_refused(at: int, value: bytes, why: str) -> None:
    """Counts, lengths and sizes have to agree with each other and with what is there."""
    assert decode(memoryview(GOOD))
    wrong = GOOD[:at] + value + GOOD[at + len(value) :]
    with pytest.raises(Malformed, match=why):
        decode(memoryview(wrong))
    with pytest.raises(Malformed):
        decode(memoryview(GOOD + b"\0\xc0"))


@given(st.binary(max_size=120))
def test_noise_is_refused_or_harmless(noise: bytes) -> None:
    """Any bytes: Malformed, or updates that lie within them."""
    try:
        updates = decode(memoryview(noise))
    except Malformed:
        return
    for update in updates:
        assert sum(len(v) for _, v in update.ranges) + sum(len(v) for _, v in update.pieces) <= len(noise)


def test_what_is_of_the_data_plane() -> None:
    """A transport message with an id from C0 on: neither the bus's messages nor answers are."""
    assert is_data(GOOD) and is_data(b"\0\xff")
    for other in (b"", b"\0", b"\0\x05", b"\0\xbf", b"\2\xc0", b"\1\xc0"):
        assert not is_data(other)
    with pytest.raises(Malformed, match="empty"):
        decode(memoryview(b""))


def test_bye() -> None:
    """A reason, 0 or an errno."""
    assert pack_bye() == bytes(4) and pack_bye(107) == b"\x6b\0\0\0"
    assert parse_bye(b"\x6b\0\0\0") == 107
    for wrong in (b"", b"\0\0\0", bytes(5)):
        with pytest.raises(Malformed, match="BYE"):
            parse_bye(wrong)


def test_variants_have_names() -> None:
    """As a topology spells them."""
    assert Variant.named("inline") is Variant.INLINE and Variant.named("mirror") is Variant.MIRROR
    with pytest.raises(ValueError, match="inline, mirror"):
        Variant.named("INLINE")


def test_nothing_else_is_exported_by_accident() -> None:
    """The module is pure: bytes in, values out."""
    assert not [name for name in vars(argo) if name in ("socket", "asyncio", "time")]
