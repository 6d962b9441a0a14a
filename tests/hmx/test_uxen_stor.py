"""Storage transfers of uXen: header, segments, and lengths that lie (uXen dm/hw/uxen_stor.c, Linux storage driver)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.uxen_stor import (
    HEADER,
    MAX_CDB,
    RING,
    UNIT,
    Reply,
    Request,
    TransferError,
    pack_reply,
    pack_request,
    reply_size,
    rounded,
    unpack_reply,
    unpack_request,
)


def test_the_numbers() -> None:
    """A header of 32 bytes, segments of whole 16-byte units, CDBs of at most 16 bytes, rings of 1 MiB."""
    assert (HEADER.size, UNIT, MAX_CDB, RING) == (32, 16, 16, 1 << 20)
    assert [rounded(size) for size in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert reply_size(17) == 64


def test_a_request_byte_by_byte() -> None:
    """seq u64, sizes of CDB, write, page list, read, sense, and status; then CDB, data, pages, each rounded up."""
    packed = pack_request(Request(0x0102030405060708, b"\x2a" * 10, b"DATA", b"P" * 17, 512, 18))
    assert packed[:8] == bytes(range(8, 0, -1))
    assert [int.from_bytes(packed[at : at + 4], "little") for at in range(8, 32, 4)] == [10, 4, 17, 512, 18, 0]
    assert packed[32:48] == b"\x2a" * 10 + bytes(6)
    assert packed[48:64] == b"DATA" + bytes(12)
    assert packed[64:] == b"P" * 17 + bytes(15)


def test_a_reply_has_data_or_sense() -> None:
    """sense_size over 0 means that the command failed: sense data stand where read data would."""
    assert pack_reply(Reply(7, 0, b"abc")) == HEADER.pack(7, 0, 0, 0, 3, 0, 0) + b"abc" + bytes(13)
    assert pack_reply(Reply(7, 2, b"", b"s" * 18)) == HEADER.pack(7, 0, 0, 0, 0, 18, 2) + b"s" * 18 + bytes(14)
    assert unpack_reply(HEADER.pack(7, 0, 0, 0, 3, 2, 2) + b"se" + bytes(14)) == Reply(7, 2, b"", b"se")


@given(
    st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=16), st.binary(max_size=80), st.binary(max_size=40),
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_requests_go_back_and_forth(
    seq: int, cdb: bytes, data: bytes, pages: bytes, read_size: int, sense_size: int
) -> None:
    """Unpacking undoes packing."""
    request = Request(seq, cdb, data, pages, read_size, sense_size)
    assert unpack_request(pack_request(request)) == request


@pytest.mark.parametrize("request_", [Request(1, b""), Request(1, bytes(17)), Request(1, b"\0", read_size=1 << 32)])
def test_what_cannot_be_sent(request_: Request) -> None:
    """A CDB has 1 to 16 bytes, sizes have 32 bits."""
    with pytest.raises(TransferError):
        pack_request(request_)


@pytest.mark.parametrize("datagram", [
    b"", bytes(31), HEADER.pack(1, 0, 0, 0, 0, 0, 0), HEADER.pack(1, 17, 0, 0, 0, 0, 0) + bytes(32),
    HEADER.pack(1, 6, 17, 0, 0, 0, 0) + bytes(32), HEADER.pack(1, 6, 0xFFFFFFFF, 0, 0, 0, 0) + bytes(64),
    HEADER.pack(1, 6, 0xFFFFFFF0, 0x20, 0, 0, 0) + bytes(64), HEADER.pack(1, 6, 0, 1, 0, 0, 0) + bytes(16),
])  # fmt: skip
def test_requests_that_lie(datagram: bytes) -> None:
    """No length is believed: not over 16 for a CDB, not past the datagram, not by wrapping at 32 bits."""
    with pytest.raises(TransferError):
        unpack_request(datagram)


@pytest.mark.parametrize("datagram", [
    b"", HEADER.pack(1, 0, 0, 0, 1, 0, 0), HEADER.pack(1, 0, 0, 0, 0, 19, 2) + bytes(18),
    HEADER.pack(1, 0, 0, 0, 0xFFFFFFFF, 0, 0) + bytes(64),
])  # fmt: skip
def test_replies_that_lie(datagram: bytes) -> None:
    """The same of replies."""
    with pytest.raises(TransferError):
        unpack_reply(datagram)


@given(st.binary(max_size=120))
def test_anything_is_a_transfer_or_an_error(datagram: bytes) -> None:
    """Never another exception, and never a byte that was not in the datagram."""
    try:
        request = unpack_request(datagram)
    except TransferError:
        return
    assert len(request.cdb) + len(request.data) + len(request.pages) <= len(datagram) - HEADER.size
