"""Frames: the 32-byte header to the bit, one array of records, payload apart; every fault has its reason."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec, frames
from broker.frames import FrameError, FrameKind, Lane, Packed, Reason, parse_frame

GOLDEN_HEADER = bytes.fromhex(
    "41524746"  # magic u32 @0: "ARGF"
    "01"  # major u8 @4
    "00"  # minor u8 @5
    "02"  # kind u8 @6: RECORDS
    "03"  # lane u8 @7: EVENT
    "0807060504030201"  # epoch u64 @8
    "44332211"  # seq u32 @16
    "88776655"  # ack u32 @20
    "0200"  # count u16 @24
    "0000"  # flags u16 @26
    "00000000"  # zero u32 @28
)
GOLDEN_BODY = b"\x92" + b"\x91\xa5ready" + b"\x92\xa9heartbeat\x07"


def golden(offset: int = 0, value: bytes = b"") -> list[bytes]:
    """The golden frame, with some header bytes replaced."""
    header = bytearray(GOLDEN_HEADER)
    header[offset : offset + len(value)] = value
    return [bytes(header), GOLDEN_BODY, b"bulk"]


def test_golden_bytes() -> None:
    """Header layout of the wire contract, field by field, little-endian."""
    records: list[list[Any]] = [["ready"], ["heartbeat", 7]]
    made = frames.pack_frame(
        FrameKind.RECORDS, Lane.EVENT, 0x0102030405060708, 0x11223344, 0x55667788, records, b"bulk"
    )
    assert made == golden()
    frame = parse_frame(golden())
    assert frame == frames.Frame(
        FrameKind.RECORDS, Lane.EVENT, 0x0102030405060708, 0x11223344, 0x55667788, records, memoryview(b"bulk")
    )


def test_numbers_of_lanes_kinds_and_limits() -> None:
    """Constants of the wire contract: control 1, request 2, event 3; 64 records, 64 KiB."""
    assert [(lane.name, lane.value) for lane in Lane] == [("CONTROL", 1), ("REQUEST", 2), ("EVENT", 3)]
    assert [(kind.name, kind.value) for kind in FrameKind] == [("HANDSHAKE", 1), ("RECORDS", 2), ("ACK", 3)]
    assert (frames.MAX_RECORDS, frames.MAX_FRAME, frames.MAX_PAYLOAD) == (64, 65536, 1 << 24)
    assert frames.HEADER.size == 32


LIMITS = [
    # lane, window, reserve, queue records, queue bytes, largest payload of a record, records per bare acknowledgement
    (Lane.CONTROL, 256, 0, 4096, 8 << 20, 1 << 20, 1),
    (Lane.REQUEST, 256, 256, 1024, 64 << 20, 16 << 20, 64),
    (Lane.EVENT, 256, 0, 1024, 1 << 20, 64 << 10, 64),
]


def test_lane_limits() -> None:
    """Both ends count by this table, so it is part of the protocol."""
    assert [tuple(row) for row in frames.LANES] == LIMITS


FAULTS = [
    (Reason.PARTS, []),
    (Reason.PARTS, golden()[:2]),
    (Reason.PARTS, [*golden(), b""]),
    (Reason.SHORT, [GOLDEN_HEADER[:31], GOLDEN_BODY, b""]),
    (Reason.SHORT, [GOLDEN_HEADER + b"\0", GOLDEN_BODY, b""]),
    (Reason.MAGIC, golden(0, b"ZMQ!")),
    (Reason.MAJOR, golden(4, b"\x02")),
    (Reason.MAJOR, golden(4, b"\x00")),
    (Reason.KIND, golden(6, b"\x00")),
    (Reason.KIND, golden(6, b"\x04")),
    (Reason.LANE, golden(7, b"\x00")),
    (Reason.LANE, golden(7, b"\x04")),
    (Reason.FLAGS, golden(26, b"\x01\x00")),
    (Reason.FLAGS, golden(26, b"\x00\x80")),
    (Reason.ZERO, golden(28, b"\x00\x00\x00\x01")),
    (Reason.COUNT, golden(24, b"\x00\x00")),
    (Reason.COUNT, golden(24, b"\x41\x00")),
    (Reason.MISMATCH, golden(24, b"\x01\x00")),
    (Reason.MISMATCH, golden(24, b"\x03\x00")),
    (Reason.BODY, [GOLDEN_HEADER, b"", b""]),
    (Reason.BODY, [GOLDEN_HEADER, b"\x80", b""]),
    (Reason.BODY, [GOLDEN_HEADER, b"\x92\x91\x80\x91\x80", b""]),
    (Reason.BODY, [GOLDEN_HEADER, GOLDEN_BODY + b"\x00", b""]),
    (Reason.RECORD, [GOLDEN_HEADER, b"\x92\x90\x91\x01", b""]),
    (Reason.RECORD, [GOLDEN_HEADER, b"\x92\x91\x01\x02", b""]),
    (Reason.BODY_SIZE, [GOLDEN_HEADER, bytes(frames.MAX_FRAME + 1), b""]),
    (Reason.PAYLOAD_SIZE, [GOLDEN_HEADER, GOLDEN_BODY, bytes(65537)]),
]


@pytest.mark.parametrize(("reason", "parts"), FAULTS, ids=[f"{i}-{row[0].name}" for i, row in enumerate(FAULTS)])
def test_every_fault_has_its_reason(reason: Reason, parts: list[bytes]) -> None:
    """A frame that is not well formed is refused with the rule that it broke, the value and what was expected."""
    with pytest.raises(FrameError) as caught:
        parse_frame(parts)
    assert caught.value.reason is reason
    assert reason.value in str(caught.value)
    assert str(caught.value.expected) in str(caught.value)


KIND_RULES = [
    # kind, lane, records, payload, accepted
    (FrameKind.HANDSHAKE, Lane.CONTROL, 1, b"", True),
    (FrameKind.HANDSHAKE, Lane.CONTROL, 1, b"x", False),
    (FrameKind.HANDSHAKE, Lane.CONTROL, 2, b"", False),
    (FrameKind.HANDSHAKE, Lane.CONTROL, 0, b"", False),
    (FrameKind.HANDSHAKE, Lane.REQUEST, 1, b"", False),
    (FrameKind.HANDSHAKE, Lane.EVENT, 1, b"", False),
    (FrameKind.RECORDS, Lane.CONTROL, 1, b"x", True),
    (FrameKind.RECORDS, Lane.REQUEST, 64, b"x", True),
    (FrameKind.RECORDS, Lane.EVENT, 64, b"", True),
    (FrameKind.RECORDS, Lane.EVENT, 65, b"", False),
    (FrameKind.RECORDS, Lane.CONTROL, 0, b"", False),
    (FrameKind.ACK, Lane.CONTROL, 0, b"", True),
    (FrameKind.ACK, Lane.REQUEST, 0, b"", True),
    (FrameKind.ACK, Lane.EVENT, 0, b"", True),
    (FrameKind.ACK, Lane.CONTROL, 1, b"", False),
    (FrameKind.ACK, Lane.CONTROL, 0, b"x", False),
]


@pytest.mark.parametrize(("kind", "lane", "count", "payload", "accepted"), KIND_RULES)
def test_what_each_kind_may_hold(kind: FrameKind, lane: Lane, count: int, payload: bytes, accepted: bool) -> None:
    """Handshakes are one record on the control lane; acknowledgements hold nothing; records come 1 to 64."""
    parts = frames.pack_frame(kind, lane, 1, 0, 0, [["ready"]] * count, payload)
    if accepted:
        assert parse_frame(parts).kind is kind
    else:
        with pytest.raises(FrameError):
            parse_frame(parts)


def test_payload_limits_by_lane() -> None:
    """A frame holds a record's largest payload on its lane, and not a byte more."""
    for lane, _, _, _, _, most, _ in LIMITS:
        parts = frames.pack_frame(FrameKind.RECORDS, lane, 1, 0, 0, [["x"]], bytes(most))
        assert len(parse_frame(parts).payload) == most
        with pytest.raises(FrameError):
            parse_frame([*parts[:2], bytes(most + 1)])


def test_a_newer_minor_may_use_flags_that_we_do_not_know() -> None:
    """Unknown major is refused; what a newer minor adds in flags is passed over; the zero word stays zero."""
    newer = bytearray(GOLDEN_HEADER)
    newer[5] = 1
    newer[26:28] = b"\xff\xff"
    assert len(parse_frame([bytes(newer), GOLDEN_BODY, b""]).records) == 2
    single = bytearray(newer)
    single[24:26] = b"\x01\x00"
    assert parse_frame([bytes(single), b"\x91\x91\xa5ready", b""]).records == [["ready"]]
    newer[28] = 1
    with pytest.raises(FrameError):
        parse_frame([bytes(newer), GOLDEN_BODY, b""])


def test_assemble_places_payloads_in_order() -> None:
    """An (offset, length) reference is filled in when the frame is made: offsets touch, in record order."""
    tail = codec.pack(3)
    packed = [
        Packed(b"\x93\xa1a", tail, b"abc"),
        Packed(b"\x91\xa1b"),
        Packed(b"\x93\xa1c", tail, memoryview(b"def")),
    ]
    frame = parse_frame(frames.assemble(Lane.REQUEST, 5, 9, 2, packed))
    assert frame.records == [["a", 0, 3], ["b"], ["c", 3, 3]]
    assert (frame.epoch, frame.seq, frame.ack, frame.lane) == (5, 9, 2, Lane.REQUEST)
    assert bytes(frame.payload) == b"abcdef"


RECORDS = st.lists(
    st.lists(st.none() | st.integers(-(1 << 31), 1 << 31) | st.text(max_size=8) | st.binary(max_size=8), min_size=1),
    min_size=1,
    max_size=64,
)  # fmt: skip
U32 = st.integers(0, 0xFFFFFFFF)


@given(st.sampled_from(Lane), st.integers(0, (1 << 64) - 1), U32, U32, RECORDS, st.binary(max_size=100))
def test_round_trip(lane: Lane, epoch: int, seq: int, ack: int, records: list[list[Any]], payload: bytes) -> None:
    """Any frame that can be made is read as it was made."""
    frame = parse_frame(frames.pack_frame(FrameKind.RECORDS, lane, epoch, seq, ack, records, payload))
    assert frame == frames.Frame(FrameKind.RECORDS, lane, epoch, seq, ack, records, memoryview(payload))


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_random_parts_raise_nothing_but_frame_errors(parts: list[bytes]) -> None:
    """Hostile bytes are normal."""
    with pytest.raises(FrameError):
        parse_frame(parts)


@given(st.integers(0, 31), st.integers(0, 255), st.binary(max_size=60), st.binary(max_size=60))
def test_nearly_right_frames_raise_nothing_but_frame_errors(at: int, value: int, body: bytes, payload: bytes) -> None:
    """One byte of the header changed, body and payload at random: parsed or refused."""
    header = bytearray(GOLDEN_HEADER)
    header[at] = value
    for candidate in (body, GOLDEN_BODY, GOLDEN_BODY + body):
        try:
            frame = parse_frame([bytes(header), candidate, payload])
        except FrameError:
            continue
        assert len(frame.records) == struct.unpack_from("<H", header, 24)[0]
