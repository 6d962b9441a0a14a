"""The agreement between file-send and file-receive, on top of a stream; experimental, not upstream.

    sender    b"AFT1", name length u16, file size u64, the name in UTF-8; the file; its SHA-256 (32 bytes)
    receiver  b"AFV1", verdict u8 (1: as sent), SHA-256 of what it got (32 bytes)

All numbers little-endian.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

MAGIC: Final = b"AFT1"
VERDICT_MAGIC: Final = b"AFV1"
HEADER: Final = Struct("<4sHQ")
VERDICT: Final = Struct("<4sB32s")
DIGEST_SIZE: Final = 32
NAME_LIMIT: Final = 1024
DEFAULT_PORT: Final = 5001
CHUNK: Final = 256 * 1024


class TransferError(Exception):
    """The other side does not keep to the agreement."""


class Verdict(NamedTuple):
    """What the receiver says."""

    ok: bool
    digest: bytes


def pack_header(name: str, size: int) -> bytes:
    """The header for a file; a name that is too long is cut."""
    encoded = name.encode()[:NAME_LIMIT].decode(errors="ignore").encode()
    return HEADER.pack(MAGIC, len(encoded), size) + encoded


def unpack_header(data: bytes) -> tuple[int, int]:
    """(name length, file size).  Raises TransferError."""
    magic, name_length, size = HEADER.unpack(data)
    if magic != MAGIC:
        raise TransferError(f"the sender speaks another protocol: it began with {magic!r}")
    if name_length > NAME_LIMIT:
        raise TransferError(f"a file name of {name_length} bytes; at most {NAME_LIMIT} are allowed")
    return name_length, size


def pack_verdict(verdict: Verdict) -> bytes:
    """The receiver's answer."""
    return VERDICT.pack(VERDICT_MAGIC, verdict.ok, verdict.digest)


def unpack_verdict(data: bytes) -> Verdict:
    """The receiver's answer.  Raises TransferError."""
    magic, ok, digest = VERDICT.unpack(data)
    if magic != VERDICT_MAGIC:
        raise TransferError(f"the receiver speaks another protocol: it answered {magic!r}")
    return Verdict(ok == 1, digest)
