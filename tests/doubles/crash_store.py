"""A store that dies in any of its calls, and what is left of it then: as of a file when its process or machine dies."""

from __future__ import annotations

import errno
import random

from guest_node.virtio.models.store import Buffer

SECTOR = 512


class Died(BaseException):
    """The process, or its machine, is no more: nobody catches this."""


class CrashStore:
    """The page cache and the disk below it.

    A process that dies leaves the page cache.  A machine that dies leaves of each sector what was stable, or anything
    that was written to it since: the kernel writes back when it likes.  A `flush` that fails makes nothing stable, and
    the kernel never tries again, so that later ones cannot either (as Linux does with dirty pages whose write failed).
    No sector is ever torn; a call that is cut short changes some sectors and others not.
    """

    def __init__(self, image: bytes, chance: random.Random) -> None:
        self._pages = bytearray(image)
        self._stable = bytearray(image)
        self._since: dict[int, list[bytes]] = {}  # by sector: what was written since it was stable
        self._dirty: set[int] = set()  # what the next flush makes stable
        self._chance = chance
        self.die_in: int | None = None
        """After how many more calls that change anything it dies; 0: in the next."""
        self.fails = ""
        """The operation whose next call fails."""
        self.flushes = 0

    @property
    def size(self) -> int:
        return len(self._pages)

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self._pages[offset : offset + size])

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._change("pwrite", offset, bytes(data))

    def zero(self, offset: int, size: int) -> None:
        self._change("zero", offset, bytes(size))

    def punch(self, offset: int, size: int) -> None:
        self._change("punch", offset, bytes(size))

    def flush(self) -> None:
        last, failed = self._called("flush")
        for sector in sorted(self._dirty):
            if not failed and (not last or self._chance.random() < 0.5):
                del self._since[sector]
                self._stable[sector * SECTOR : (sector + 1) * SECTOR] = self._page(sector)
        self._dirty.clear()
        if last:
            raise Died
        if failed:
            raise OSError(errno.EIO, "fdatasync fails")
        self.flushes += 1

    def left(self, *, machine: bool) -> bytes:
        """What the next life finds: after the death of the process, or of the machine with it."""
        if not machine:
            return bytes(self._pages)
        found = bytearray(self._stable)
        for sector, values in self._since.items():
            at = sector * SECTOR
            found[at : at + SECTOR] = self._chance.choice([bytes(found[at : at + SECTOR]), *values])
        return bytes(found)

    def _change(self, operation: str, offset: int, data: bytes) -> None:
        last, failed = self._called(operation)
        for at in range(0, len(data), SECTOR):
            if (last or failed) and self._chance.random() < 0.5:
                continue
            sector = (offset + at) // SECTOR
            self._pages[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
            self._since.setdefault(sector, []).append(data[at : at + SECTOR])
            self._dirty.add(sector)
        if last:
            raise Died
        if failed:
            raise OSError(errno.EIO, f"{operation} fails")

    def _called(self, operation: str) -> tuple[bool, bool]:
        """Whether this is the last call, and whether it fails."""
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in < 0:
                return True, False
        failed = operation == self.fails
        if failed:
            self.fails = ""
        return False, failed

    def _page(self, sector: int) -> bytes:
        return bytes(self._pages[sector * SECTOR : (sector + 1) * SECTOR])
