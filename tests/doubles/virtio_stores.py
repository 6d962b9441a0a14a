"""Stores for block devices that record what was done, lose what was not flushed, and fail on demand."""

from __future__ import annotations

import errno
from collections.abc import Callable

from guest_node.virtio.models.store import Buffer, MemoryStore


class JournalStore(MemoryStore):
    """A store whose changes are volatile until `flush` has returned, as those of a file are until fdatasync has.

    `log`: what was called, in order.  `fail`: called with the name of an operation before it is carried out; it may
    raise.  `stable`: what a crash of the machine leaves; flushing that fails makes nothing stable, and forgets
    what was to be flushed, as Linux does.
    """

    def __init__(self, size: int, data: Buffer = b"") -> None:
        self.log: list[tuple[object, ...]] = []
        self.fail: Callable[[str], None] = lambda _operation: None
        super().__init__(size, data)
        self.stable = bytearray(super().pread(0, size))
        self._unflushed: set[int] = set()  # sectors
        self.log.clear()

    def pread(self, offset: int, size: int) -> bytes:
        self.log.append(("pread", offset, size))
        self.fail("pread")
        return super().pread(offset, size)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.log.append(("pwrite", offset, len(data)))
        if hasattr(self, "stable"):
            self.fail("pwrite")
            self._touch(offset, len(data))
        super().pwrite(offset, data)

    def flush(self) -> None:
        self.log.append(("fdatasync begins",))
        touched, self._unflushed = self._unflushed, set()
        self.fail("flush")
        for sector in touched:
            place = slice(sector * 512, sector * 512 + 512)
            self.stable[place] = self._bytes[place]
        self.log.append(("fdatasync returned",))

    def punch(self, offset: int, size: int) -> None:
        self.log.append(("punch", offset, size))
        self.fail("punch")
        self._touch(offset, size)
        MemoryStore.zero(self, offset, size)

    def zero(self, offset: int, size: int) -> None:
        self.log.append(("zero", offset, size))
        self.fail("zero")
        self._touch(offset, size)
        super().zero(offset, size)

    def calls(self, *names: str) -> list[tuple[object, ...]]:
        """The log, of these operations."""
        return [entry for entry in self.log if entry[0] in names]

    def _touch(self, offset: int, size: int) -> None:
        self._unflushed.update(range(offset // 512, (offset + size + 511) // 512))


def failing(*operations: str, times: int = 1) -> Callable[[str], None]:
    """A `fail` that lets the next `times` calls of these operations fail."""
    left = times

    def fail(operation: str) -> None:
        nonlocal left
        if operation in operations and left:
            left -= 1
            raise OSError(errno.EIO, f"{operation} fails")

    return fail
