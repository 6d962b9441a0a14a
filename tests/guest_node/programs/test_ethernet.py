"""Frames of net-ping and net-echo: local experimental ethertype 0x88B5 (IEEE 802), an agreement of ours."""

from __future__ import annotations

import pytest

from guest_node.programs.ethernet import BROADCAST, MOST, Kind, Message, pack, shown, unpack

ADA, BEN = bytes.fromhex("0200a0000001"), bytes.fromhex("0200a0000002")


def test_a_frame_byte_by_byte() -> None:
    """Addresses and type first, big-endian; then ours, little-endian; padded to the least length of a frame."""
    frame = pack(Message(BROADCAST, ADA, Kind.QUESTION, 0x01020304, b"hello"))
    assert frame.hex() == ("ffffffffffff0200a000000188b54145503101040302010500" + b"hello".hex()).ljust(120, "0")
    assert shown(ADA) == "02:00:a0:00:00:01"


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("size", [0, 1, 40, MOST])
def test_what_was_packed_is_unpacked(kind: Kind, size: int) -> None:
    """Every kind, with bodies up to the largest, whose frame has 1514 bytes."""
    message = Message(ADA, BEN, kind, 7, bytes(range(256)) * 6)
    message = message._replace(body=message.body[:size])
    assert unpack(pack(message)) == message
    assert len(pack(message)) == max(60, 14 + 11 + size) <= 1514


def test_frames_that_are_not_ours() -> None:
    """Cut, of another type, without our mark, of no kind, or shorter than they say: None, whatever they are."""
    good = pack(Message(ADA, BEN, Kind.ANSWER, 1, bytes(100)))
    for end in range(len(good)):
        assert unpack(good[:end]) is None
    for at, byte in ((12, 0x08), (14, 0x40), (18, 0), (18, 5)):
        assert unpack(good[:at] + bytes((byte,)) + good[at + 1 :]) is None
    assert unpack(good + b"trailer") == Message(ADA, BEN, Kind.ANSWER, 1, bytes(100))
