"""Envelopes as Argo messages between a nested hypervisor and its parent: cut into chunks, put together again.

The layout is that of hmx/nested.py; the envelope's bytes are those of the fabric (broker/envelope.py).  Whoever is at
the other end may be hostile: every refusal is a `WireError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from broker import codec
from broker.envelope import Envelope, EnvelopeKind, validate
from broker.fields import RecordError
from broker.frames import MAX_PAYLOAD
from hmx.nested import CHUNK_HEADER, ChunkHeader

MAX_HEAD: Final = 1 << 16
ANSWERS: Final = frozenset({EnvelopeKind.RESULT, EnvelopeKind.CANCEL})
"""Kinds that are taken where nothing else is: as many as were asked for, and two levels full of requests would wait for
each other's answers for ever.
"""
_SEQ: Final = 0xFFFF_FFFF


class WireError(ValueError):
    """These bytes are not the next chunk of an envelope."""


class Whole:
    """One envelope and its payload on the way out: what is left of it to be sent."""

    __slots__ = ("data", "head", "sent")

    def __init__(self, envelope: Envelope, payload: bytes | memoryview) -> None:
        head = codec.pack(list(envelope._replace(offset=0, length=len(payload))))
        self.head = len(head)
        self.data = head + payload
        self.sent = 0

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return len(self.data)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.sent == len(self.data)

    def chunk(self, seq: int, limit: int) -> tuple[bytes, memoryview]:
        """The next chunk, at most `limit` bytes with its header, and the header; call `took` when it has left."""
        body = memoryview(self.data)[self.sent : self.sent + limit - CHUNK_HEADER.size]
        return CHUNK_HEADER.pack(seq & _SEQ, len(self.data), self.sent, self.head), body

    def took(self, body: memoryview) -> None:
        """That chunk is on its way."""
        self.sent += len(body)

    def chunks(self, seq: int, limit: int) -> Iterator[bytes]:
        """All that is left, as messages numbered from `seq` on."""
        while not self.done:
            header, body = self.chunk(seq, limit)
            self.took(body)
            seq += 1
            yield header + body


def header_of(message: bytes | memoryview) -> ChunkHeader:
    """The header of a chunk.  WireError when it is shorter than that."""
    if len(message) <= CHUNK_HEADER.size:
        raise WireError(f"a chunk of {len(message)} bytes")
    return ChunkHeader._make(CHUNK_HEADER.unpack_from(message, 0))


class Assembler:
    """Puts the chunks of one direction together."""

    def __init__(self) -> None:
        self.expected = 0  # seq of the next chunk
        self._parts: list[bytes] = []
        self._size = 0
        self._shape = (0, 0)  # total and head of the whole that is under way

    def look(self, message: bytes | memoryview) -> tuple[Envelope, bytes] | None:
        """What the chunk `message` completes; None when more is to come.  Changes nothing: `take` does.  WireError."""
        seq, total, offset, head = header_of(message)
        body = message[CHUNK_HEADER.size :]
        if seq != self.expected:
            raise WireError(f"chunk {seq}, expected {self.expected}")
        if not 0 < head <= min(total, MAX_HEAD) or total > MAX_HEAD + MAX_PAYLOAD:
            raise WireError(f"an envelope of {head} bytes in a whole of {total}")
        if offset != self._size or (offset and (total, head) != self._shape) or offset + len(body) > total:
            raise WireError(f"{len(body)} bytes at {offset} of {total}, where {self._size} are there")
        if offset + len(body) < total:
            return None
        data = b"".join((*self._parts, body))
        try:
            envelope = validate(codec.unpack_array(data[:head]))
        except (codec.CodecError, RecordError) as error:
            raise WireError(str(error)) from None
        if (envelope.offset, envelope.length) != (0, total - head):
            raise WireError(f"a payload of {envelope.length} bytes at {envelope.offset}, not {total - head} at 0")
        return envelope, data[head:]

    def take(self, message: bytes | memoryview) -> None:
        """The chunk that was looked at last is consumed."""
        _, total, offset, head = header_of(message)
        self.expected = (self.expected + 1) & _SEQ
        size = len(message) - CHUNK_HEADER.size
        if offset + size == total:
            self._parts, self._size = [], 0
        else:
            self._parts.append(bytes(message[CHUNK_HEADER.size :]))
            self._size, self._shape = offset + size, (total, head)

    def skip(self, message: bytes | memoryview) -> None:
        """The chunk was refused for good: it, and the whole that it belongs to, is forgotten."""
        if len(message) >= CHUNK_HEADER.size and CHUNK_HEADER.unpack_from(message, 0)[0] == self.expected:
            self.expected = (self.expected + 1) & _SEQ
        self._parts, self._size = [], 0
