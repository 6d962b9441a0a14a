"""The agreement between net-ping and net-echo: Ethernet frames of a local type; experimental, not upstream.

    destination, source 6 bytes each; type 0x88B5 (IEEE 802, local experimental ethertype 1), big-endian
    b"AEP1", kind u8, number u32, length u16, little-endian; the body; zeros up to the least length of a frame, 60

QUESTION is answered by ANSWER with the same number and body.  END says that no more questions come, ENDED that this was
heard.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

BROADCAST: Final = b"\xff" * 6
ETHERTYPE: Final = 0x88B5
MAGIC: Final = b"AEP1"
LEAST: Final = 60
MTU: Final = 1500
_ADDRESSES: Final = Struct(">6s6sH")
_MESSAGE: Final = Struct("<4sBIH")
MOST: Final = MTU - _MESSAGE.size
"""Bytes of the largest body."""


class Kind(IntEnum):
    """What a frame says."""

    QUESTION = 1
    ANSWER = 2
    END = 3
    ENDED = 4


class Message(NamedTuple):
    """One frame of ours: from whom to whom, and what it says."""

    to: bytes
    source: bytes
    kind: Kind
    number: int = 0
    body: bytes = b""


def pack(message: Message) -> bytes:
    """The frame."""
    head = _ADDRESSES.pack(message.to, message.source, ETHERTYPE)
    frame = head + _MESSAGE.pack(MAGIC, message.kind, message.number, len(message.body)) + message.body
    return frame.ljust(LEAST, b"\0")


def unpack(frame: bytes) -> Message | None:
    """What a frame says, None for one that is not ours."""
    if len(frame) < _ADDRESSES.size + _MESSAGE.size:
        return None
    to, source, ethertype = _ADDRESSES.unpack_from(frame)
    magic, kind, index, length = _MESSAGE.unpack_from(frame, _ADDRESSES.size)
    body = frame[_ADDRESSES.size + _MESSAGE.size :][:length]
    if ethertype != ETHERTYPE or magic != MAGIC or len(body) != length or kind not in Kind.__members__.values():
        return None
    return Message(to, source, Kind(kind), index, body)


def shown(address: bytes) -> str:
    """An address as people write it."""
    return address.hex(":")
