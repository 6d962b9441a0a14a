"""SCSI over v4v datagrams as uXen's storage speaks it: a transfer header, then segments of whole 16-byte units.

Header, 32 bytes, little-endian: seq u64, then u32s: cdb_size, write_size, pagelist_size, read_size, sense_size, status.
A request has the CDB and then the data to write or a list of pages; its read_size and sense_size say how much it would
take back.  A reply has the same seq, and read data or sense data; a sense_size in it means that the command failed.
Whoever reads one believes no length before it has checked it against the datagram.

Source: uXen dm/hw/uxen_stor.c and its Linux storage driver.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("<QIIIIII")
UNIT: Final = 16
MAX_CDB: Final = 16
RING: Final = 1 << 20
"""Data bytes of the ring that each side has for a unit."""


class TransferError(ValueError):
    """What came is no transfer; what is to be sent does not fit one."""


class Request(NamedTuple):
    """One command: `read_size` and `sense_size` are what its sender has room for."""

    seq: int
    cdb: bytes
    data: bytes = b""
    pages: bytes = b""
    read_size: int = 0
    sense_size: int = 0


class Reply(NamedTuple):
    """What became of the command `seq`: a SCSI status, and data or, if it failed, sense."""

    seq: int
    status: int
    data: bytes = b""
    sense: bytes = b""


def rounded(size: int) -> int:
    """`size` in whole units."""
    return -(-size // UNIT) * UNIT


def reply_size(data: int) -> int:
    """Bytes of a reply that carries `data` bytes."""
    return HEADER.size + rounded(data)


def pack_request(request: Request) -> bytes:
    """The datagram of a request.  Raises TransferError for a CDB that has no room, or numbers over 32 bits."""
    if not 0 < len(request.cdb) <= MAX_CDB:
        raise TransferError(f"a CDB has 1 to {MAX_CDB} bytes, not {len(request.cdb)}")
    segments = (request.cdb, request.data, request.pages)
    return _pack(request.seq, [len(each) for each in segments], request.read_size, request.sense_size, 0, segments)


def pack_reply(reply: Reply) -> bytes:
    """The datagram of a reply."""
    segments = (reply.sense or reply.data,)
    sizes = (0, len(reply.sense)) if reply.sense else (len(reply.data), 0)
    return _pack(reply.seq, [0, 0, 0], *sizes, reply.status, segments)


def _pack(
    seq: int, outward: list[int], read_size: int, sense_size: int, status: int, segments: tuple[bytes, ...]
) -> bytes:
    try:
        header = HEADER.pack(seq, *outward, read_size, sense_size, status)
    except struct.error as error:
        raise TransferError(str(error)) from None
    return header + b"".join(each.ljust(rounded(len(each)), b"\0") for each in segments)


def unpack_request(datagram: bytes) -> Request:
    """The request in a datagram.  Raises TransferError."""
    seq, cdb_size, write_size, pagelist_size, read_size, sense_size, _ = _header(datagram)
    if not 0 < cdb_size <= MAX_CDB:
        raise TransferError(f"a CDB of {cdb_size} bytes")
    cdb, data, pages = _segments(datagram, (cdb_size, write_size, pagelist_size))
    return Request(seq, cdb, data, pages, read_size, sense_size)


def unpack_reply(datagram: bytes) -> Reply:
    """The reply in a datagram.  Raises TransferError."""
    seq, _, _, _, read_size, sense_size, status = _header(datagram)
    if sense_size:
        (sense,) = _segments(datagram, (sense_size,))
        return Reply(seq, status, b"", sense)
    (data,) = _segments(datagram, (read_size,))
    return Reply(seq, status, data)


def _header(datagram: bytes) -> tuple[int, ...]:
    if len(datagram) < HEADER.size:
        raise TransferError(f"a transfer of {len(datagram)} bytes has no header")
    return HEADER.unpack_from(datagram)


def _segments(datagram: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    """The segments behind the header; the padding of the last one may be missing."""
    found = []
    at = HEADER.size
    for size in sizes:
        if at + size > len(datagram):
            raise TransferError(f"a segment of {size} bytes at {at} in a transfer of {len(datagram)}")
        found.append(datagram[at : at + size])
        at += rounded(size)
    return found
