"""What a block device keeps its sectors in: a file that a shell opened, or memory.

A model knows neither paths nor file descriptors.  The five operations are those of a file under Linux: pread(2),
pwrite(2), fdatasync(2), and fallocate(2) with PUNCH_HOLE or ZERO_RANGE.
"""

from __future__ import annotations

import errno
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Store(Protocol):
    """Bytes at offsets.  Every method raises OSError; what a failed one changed is old or new, byte by byte."""

    @property
    def size(self) -> int:
        """In bytes; it does not change."""

    def pread(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.  Fewer mean an error that the store did not see: a shortened file."""

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Store all of `data`.  It need not last before `flush`."""

    def flush(self) -> None:
        """Return when all that was written, punched and zeroed before is on stable storage: fdatasync."""

    def punch(self, offset: int, size: int) -> None:
        """The range is of no use to anybody: its bytes are undefined from now on.  It may do nothing."""

    def zero(self, offset: int, size: int) -> None:
        """The range reads as zeros."""


class MemoryStore:
    """A store of `size` bytes in memory, all zero or with the first of them from `data`."""

    def __init__(self, size: int, data: Buffer = b"") -> None:
        self._bytes = bytearray(size)
        self.pwrite(0, data)

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._bytes)

    def pread(self, offset: int, size: int) -> bytes:
        """A copy of the range."""
        return bytes(self._bytes[self._checked(offset, size) : offset + size])

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Store all of `data`."""
        self._bytes[self._checked(offset, len(data)) : offset + len(data)] = data

    def flush(self) -> None:
        """Memory is as stable as it gets."""

    def punch(self, offset: int, size: int) -> None:
        """The range reads as zeros, as a hole in a file does."""
        self.zero(offset, size)

    def zero(self, offset: int, size: int) -> None:
        """The range reads as zeros."""
        start = self._checked(offset, size)
        self._bytes[start : start + size] = bytes(size)

    def _checked(self, offset: int, size: int) -> int:
        if not 0 <= offset <= len(self._bytes) - size or size < 0:
            raise OSError(errno.EINVAL, f"{size} bytes at {offset} are not in a store of {len(self._bytes)}")
        return offset
