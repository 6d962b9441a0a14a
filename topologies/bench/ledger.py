"""What every receiver does with what it gets: a running checksum over (sequence, payload).

A message is its sequence number (u64) followed by a body.  Bodies repeat, so for large ones the CRC of a body that
is byte for byte the expected one is looked up instead of computed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

STAMP: Final = struct.Struct("<Q")
DISTINCT: Final = 4
"""How many different bodies there are; message n has body n modulo this."""
DIRECT: Final = 512
"""Messages up to this size go through the CRC whole; larger ones by comparison with the expected body."""

PIECE: Final = 65536
"""Bytes of a body that are compared at once; a body repeats itself every four."""

_FOLD: Final = struct.Struct("<QI")


def body(size: int, sequence: int) -> bytes:
    """The body of message `sequence`: `size` bytes without the 8 of the sequence number."""
    word = zlib.crc32(b"body %d" % (sequence % DISTINCT)).to_bytes(4, "little")
    return (word * (size // 4 + 1))[: size - STAMP.size]


def stamp(message: bytearray, sequence: int) -> None:
    """Write the sequence number of a message."""
    STAMP.pack_into(message, 0, sequence)


class Ledger:
    """A running checksum over (sequence, payload) of messages of `size` bytes, and how many there were."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self.checksum = 0
        self._bodies = bodies(size)
        self._crcs = [zlib.crc32(memoryview(known)[STAMP.size :]) for known in self._bodies]
        self._pieces = [bytearray(body(PIECE + STAMP.size, sequence)) for sequence in range(DISTINCT)]

    def take_copy(self, message: memoryview, target: memoryview) -> None:
        """Copy one whole message of this ledger's size into `target` and account for the copy, a piece at a time: what
        was copied is looked at while it is still in a cache.
        """
        sequence = STAMP.unpack_from(message)[0]
        which, known = sequence % DISTINCT, True
        piece = self._pieces[which]
        target[: STAMP.size] = message[: STAMP.size]
        for at in range(STAMP.size, self.size, PIECE):
            end = min(at + PIECE, self.size)
            target[at:end] = message[at:end]
            known = known and (piece if end - at == PIECE else piece[: end - at]) == target[at:end]
        crc = self._crcs[which] if known else zlib.crc32(target[STAMP.size :])
        self.checksum = zlib.crc32(_FOLD.pack(sequence, crc), self.checksum)
        self.count += 1

    def take(self, message: bytes | bytearray | memoryview) -> None:
        """Account for one whole message, contiguous in memory."""
        if self.size <= DIRECT and len(message) == self.size:
            self.checksum = zlib.crc32(message, self.checksum)
        else:
            sequence = STAMP.unpack_from(message)[0] if len(message) >= STAMP.size else 0
            view = memoryview(message)[STAMP.size :]
            if self._is_known(sequence % DISTINCT, view):
                crc = self._crcs[sequence % DISTINCT]
            else:
                crc = zlib.crc32(view)
            self.checksum = zlib.crc32(_FOLD.pack(sequence, crc), self.checksum)
        self.count += 1

    def _is_known(self, which: int, view: memoryview) -> bool:
        """Whether `view` is body `which`, byte for byte, a piece at a time that stays in a cache.

        A bytearray compares by memcmp: every byte is looked at.
        """
        piece, size = self._pieces[which], self.size - STAMP.size
        if len(view) != size:
            return False
        whole = size - size % PIECE
        for at in range(0, whole, PIECE):
            if piece != view[at : at + PIECE]:
                return False
        return piece[: size - whole] == view[whole:]

    def take_all(self, messages: Sequence[bytes | bytearray | memoryview]) -> None:
        """Account for several whole messages, as `take` does for each."""
        if self.size <= DIRECT and all(len(message) == self.size for message in messages):
            self.checksum = zlib.crc32(b"".join(messages), self.checksum)
            self.count += len(messages)
        else:
            for message in messages:
                self.take(message)

    def expect(self, count: int) -> int:
        """The checksum after messages 0 to `count` - 1, in order, each exactly once."""
        checksum = 0
        for sequence in range(count):
            if self.size <= DIRECT:
                known = self._bodies[sequence % DISTINCT]
                stamp(known, sequence)
                checksum = zlib.crc32(known, checksum)
            else:
                checksum = zlib.crc32(_FOLD.pack(sequence, self._crcs[sequence % DISTINCT]), checksum)
        return checksum


def bodies(size: int) -> list[bytearray]:
    """One message of each body, its sequence number yet to be stamped."""
    return [bytearray(STAMP.size) + body(size, sequence) for sequence in range(DISTINCT)]
