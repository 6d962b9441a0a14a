"""Envelopes cut into chunks and put together again (hmx/nested.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.nested import CHUNK_HEADER
from hv_node.uplinks.wire import Assembler, Whole, WireError
from tests.hv_node.uplinks.rig import envelope


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(CHUNK_HEADER.size + 1, 400))
def test_what_was_cut_comes_out_whole(payloads: list[bytes], limit: int) -> None:
    """Whatever the chunks' size, every envelope arrives with its payload and the payload's length."""
    assembler, got, seq = Assembler(), [], 0
    for number, payload in enumerate(payloads):
        for message in Whole(envelope(number), payload).chunks(seq, limit):
            assert len(message) <= limit
            found = assembler.look(message)
            assembler.take(message)
            seq += 1
            if found is not None:
                got.append(found)
    assert [payload for _, payload in got] == payloads
    assert [found.cookie for found, _ in got] == list(range(len(payloads)))
    assert [found.length for found, _ in got] == [len(payload) for payload in payloads]


def test_looking_changes_nothing() -> None:
    """A chunk that could not be passed on is sent again, and is as good then."""
    (message,) = Whole(envelope(1), b"x").chunks(0, 4096)
    assembler = Assembler()
    assert assembler.look(message) == assembler.look(message)
    assembler.take(message)
    with pytest.raises(WireError, match="expected 1"):
        assembler.look(message)


def _bent(message: bytes, **fields: int) -> bytes:
    names = ("seq", "total", "offset", "head")
    values = dict(zip(names, CHUNK_HEADER.unpack_from(message), strict=True)) | fields
    return CHUNK_HEADER.pack(*(values[name] for name in names)) + message[CHUNK_HEADER.size :]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seq": 1}, "expected 0"),
        ({"head": 0}, "an envelope of 0 bytes"),
        ({"head": 1 << 17, "total": 1 << 18}, "an envelope of 131072"),
        ({"total": 1 << 31}, "in a whole of 2147483648"),
        ({"total": 3, "head": 3}, "bytes at 0 of 3"),
        ({"offset": 4}, "at 4 of"),
        ({"head": 5}, "incomplete"),
    ],
)
def test_a_chunk_that_is_none_is_refused(fields: dict[str, int], words: str) -> None:
    """Whoever is at the other end may write what it likes."""
    (message,) = Whole(envelope(1), b"payload").chunks(0, 4096)
    with pytest.raises(WireError, match=words):
        Assembler().look(_bent(message, **fields))


@given(st.binary(max_size=200))
def test_no_bytes_do_worse(data: bytes) -> None:
    """Nothing but WireError leaves."""
    assembler = Assembler()
    try:
        assembler.look(data)
    except WireError:
        assembler.skip(data)
    else:
        assembler.take(data)


def test_a_payload_must_be_as_long_as_the_envelope_says() -> None:
    """Else two levels would disagree about an operation's bytes."""
    (message,) = Whole(envelope(1), b"payload").chunks(0, 4096)
    longer = _bent(message, total=len(message) - CHUNK_HEADER.size + 1) + b"!"
    with pytest.raises(WireError, match="a payload of 7 bytes"):
        Assembler().look(longer)
