"""Envelope version 1, field by field, and which credit each kind takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec, envelope
from broker.envelope import Envelope, EnvelopeKind, Use
from broker.fields import RecordError

LAYOUT = [
    "ver", "kind", "cookie", "origin_epoch", "origin_seq", "src_path", "dst", "hops_left", "label", "op", "port_src",
    "port_dst", "msg_type", "offset", "length", "ret",
]  # fmt: skip
GOOD: dict[str, Any] = {
    "ver": 1, "kind": 1, "cookie": 2, "origin_epoch": 3, "origin_seq": 4, "src_path": ["hv0", 5], "dst": ["hv1", 6],
    "hops_left": 7, "label": "client_t", "op": 8, "port_src": 9, "port_dst": 10, "msg_type": 11, "offset": 12,
    "length": 13, "ret": -14,
}  # fmt: skip
U8, U32, U64 = 0xFF, 0xFFFFFFFF, (1 << 64) - 1
PATH_BAD = [
    "-x", "#2", "app#", "app#0", "app#02", "app#x", "app#2#3", "**", " ", "app\n",
    -1, 1 << 32, True, 1.5, b"hv0", None, ["hv0"]]  # fmt: skip
RANGES = [
    # field, lowest, highest
    ("kind", 1, 7), ("cookie", 0, U64), ("origin_epoch", 0, U64), ("origin_seq", 0, U64), ("hops_left", 0, U8),
    ("op", 0, U32), ("port_src", 0, U32), ("port_dst", 0, U32), ("msg_type", 0, U32), ("offset", 0, 1 << 24),
    ("length", 0, 1 << 24), ("ret", -(1 << 31), (1 << 31) - 1), ("ver", 1, 1),
]  # fmt: skip


def values(**changes: Any) -> list[Any]:
    return [{**GOOD, **changes}[name] for name in LAYOUT]


def test_layout_is_the_contract() -> None:
    """Names and order of contracts, wire: envelope version 1."""
    assert list(Envelope._fields) == LAYOUT
    assert [field.name for field in envelope.FIELDS] == LAYOUT
    assert LAYOUT[envelope.OFFSET_AT : envelope.LENGTH_AT + 1] == ["offset", "length"]
    assert (envelope.OFFSET_AT, envelope.LENGTH_AT) == (13, 14)
    checked = envelope.validate(values())
    assert checked == tuple(tuple(item) if isinstance(item, list) else item for item in values())


def test_kinds_and_their_credit() -> None:
    """Kinds in the contract's order; what is answered reserves room for its answer, and the answer uses that."""
    assert [(kind.name, int(kind)) for kind in EnvelopeKind] == [
        ("SEND", 1), ("RESULT", 2), ("QUERY", 3), ("WAKE", 4), ("INTERRUPT", 5), ("ENDPOINT_DIED", 6), ("CANCEL", 7),
    ]  # fmt: skip
    uses = [envelope.validate(values(kind=kind)).use for kind in EnvelopeKind]
    assert uses == [Use.REQUEST, Use.RESULT, Use.REQUEST, *[Use.ORDINARY] * 4]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_integer_fields(name: str, low: int, high: int) -> None:
    """Both ends of each range are allowed; the next value, a boolean, text and nil are not."""
    for value in (low, high):
        assert getattr(envelope.validate(values(**{name: value})), name) == value
    for wrong in (low - 1, high + 1, True, "1", None, 1.0, b"1"):
        with pytest.raises(RecordError) as caught:
            envelope.validate(values(**{name: wrong}))
        assert (caught.value.record, caught.value.field) == ("envelope", name)


@pytest.mark.parametrize("name", ["src_path", "dst"])
def test_paths(name: str) -> None:
    """A path is at most 32 names or domain ids."""
    for good in ([], ["hv0"], [0, U32], ["a"] * 32, ["", "hv0"], ["app#2", "hv0"], ["app#4294967295"], ["*"]):
        assert getattr(envelope.validate(values(**{name: good})), name) == tuple(good)
    for bad in ([item] for item in PATH_BAD):
        with pytest.raises(RecordError, match=name):
            envelope.validate(values(**{name: bad}))
    for whole in ("hv0", None, ["a"] * 33):
        with pytest.raises(RecordError, match=name):
            envelope.validate(values(**{name: whole}))


def test_a_path_that_was_seen_vouches_for_itself_only() -> None:
    """Paths found right are remembered by value; True equals 1 and is no domain id."""
    envelope.validate(values(src_path=["app", 1], dst=("hv1", "x")))
    for bad in (["app", True], ["app", 1.0]):
        with pytest.raises(RecordError, match="src_path"):
            envelope.validate(values(src_path=bad))
    for _ in range(5000):
        envelope.validate(values(src_path=[f"a{_}"]))
    assert envelope.validate(values(kind=EnvelopeKind.WAKE)).use is Use.ORDINARY


def test_label_and_length() -> None:
    """A label is text of at most 255 characters; an envelope has 16 fields."""
    envelope.validate(values(label="x" * 255))
    for bad in ("x" * 256, b"x", None):
        with pytest.raises(RecordError, match="label"):
            envelope.validate(values(label=bad))
    for wrong in (values()[:-1], [*values(), 0], []):
        with pytest.raises(RecordError, match="16 fields"):
            envelope.validate(wrong)


def test_pack_leaves_the_offset_open() -> None:
    """The frame's maker fills in the offset; the length is the payload's."""
    head, tail = envelope.pack(envelope.validate(values()), 99)
    assert codec.unpack_array(head + codec.pack(1000) + tail) == values(offset=1000, length=99)


def test_result_of() -> None:
    """An answer goes back where the request came from, with its cookie, origin and no payload; paths turn round."""
    request = envelope.validate(values())
    answer = envelope.result_of(request, -38)
    envelope.validate(answer)
    assert (answer.kind, answer.ret, answer.cookie) == (EnvelopeKind.RESULT, -38, request.cookie)
    assert (answer.src_path, answer.dst) == (request.dst[::-1], request.src_path[::-1])
    assert (answer.origin_epoch, answer.origin_seq) == (request.origin_epoch, request.origin_seq)
    assert (answer.offset, answer.length) == (0, 0)


JUNK = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.lists(st.integers())


@given(st.lists(JUNK, min_size=16, max_size=16), st.sets(st.integers(0, 15)))
def test_junk_fields_raise_nothing_but_record_errors(junk: list[Any], where: set[int]) -> None:
    """Hostile fields are normal."""
    mixed = [junk[i] if i in where else item for i, item in enumerate(values())]
    try:
        checked = envelope.validate(mixed)
    except RecordError:
        return
    assert checked.ver == 1
