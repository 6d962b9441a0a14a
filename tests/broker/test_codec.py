"""MessagePack as records use it: arrays of scalars; hostile bodies end in CodecError and cost little."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec

HOSTILE = {
    "empty map": b"\x91\x80",
    "map": b"\x91\x81\xa1a\x01",
    "map with integer key": b"\x91\x81\x01\x01",
    "map32": b"\x91\xdf\xff\xff\xff\xff",
    "empty ext": b"\x91\xc7\x00\x01",
    "fixext": b"\x91\xd4\x01\x00",
    "timestamp": b"\x91\xd6\xff\x00\x00\x00\x00",
    "timestamp of no length": b"\x91\xc7\x00\xff",
    "not an array": b"\x01",
    "nothing": b"",
    "two values": b"\x90\x90",
    "cut off": b"\x92\x01",
    "reserved byte": b"\x91\xc1",
    "not UTF-8": b"\x91\xa1\xff",
    "surrogate": b"\x91\xa3\xed\xa0\x80",
    "array beyond the limit": b"\xdc\x01\x01" + b"\x00" * 257,
    "array that claims 4 G items": b"\xdd\xff\xff\xff\xff",
    "string that claims 4 GiB": b"\x91\xdb\xff\xff\xff\xff",
    "binary that claims 4 GiB": b"\x91\xc6\xff\xff\xff\xff",
    "3000 arrays deep": b"\x91" * 3000 + b"\x90",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    """A body is one array without maps or extensions (contracts, wire: "arrays, never maps")."""
    with pytest.raises(codec.CodecError):
        codec.unpack_array(body)


def test_array_claims_do_not_cost_memory() -> None:
    """The decoder allocates an array when it reads its length: nested claims must stay below 4 MiB for a
    full body.
    """
    body = b"\xdc\x01\x00" * 21845
    tracemalloc.start()
    try:
        with pytest.raises(codec.CodecError):
            codec.unpack_array(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_list_or_a_codec_error(body: bytes) -> None:
    """Nothing else may leave the decoder, whatever arrives."""
    try:
        value = codec.unpack_array(body)
    except codec.CodecError:
        return
    assert isinstance(value, list)


SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
    | st.text(max_size=9) | st.binary(max_size=9)
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(st.lists(VALUES, max_size=6))
def test_round_trip(value: list[object]) -> None:
    """What may be sent arrives as it was."""
    assert codec.unpack_array(codec.pack(value)) == value
    header = codec.array_header(len(value))
    assert header + b"".join(codec.pack(item) for item in value) == codec.pack(value)
    assert header + codec.pack_items(value) == codec.pack(value)


@pytest.mark.parametrize("count", [0, 15, 16, 255, 256])
def test_array_header_is_what_the_packer_writes(count: int) -> None:
    """The two array forms used: fixarray up to 15 items, array16 beyond."""
    assert codec.array_header(count) == codec.pack([0] * count)[: 1 if count < 16 else 3]


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, object(), "\ud800", {1, 2}, [[[object()]]]])
def test_what_has_no_encoding_is_a_codec_error(value: object) -> None:
    """A mistake of a sender is a CodecError at the sender."""
    with pytest.raises(codec.CodecError):
        codec.pack(value)


def test_shallow() -> None:
    """At most 8 arrays within each other, no maps, no integers beyond 64 bits."""
    deep: object = 1
    for _ in range(8):
        deep = [deep]
    assert codec.shallow(deep)
    assert not codec.shallow([deep])
    assert codec.shallow([None, True, -(1 << 63), (1 << 64) - 1, 1.5, "a", b"b", []])
    for bad in ({}, [{}], 1 << 64, -(1 << 63) - 1, object(), [0] * 257):
        assert not codec.shallow(bad)


def test_show_is_bounded() -> None:
    """Messages quote what a peer sent without repeating all of it, however deep or long it is."""
    deep: object = 1
    for _ in range(1000):
        deep = [deep]
    assert len(codec.show(deep)) < 100
    assert len(codec.show(["x" * 1000] * 100)) < 400
