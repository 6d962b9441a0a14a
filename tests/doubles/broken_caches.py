"""Write-back caches of block devices that break their word, each in a way of its own, for tests that must notice."""

from __future__ import annotations

from typing import Final

from guest_node.virtio.models.cache import WriteBackCache
from guest_node.virtio.models.store import Buffer

SECTOR: Final = 512


class NeverDrains(WriteBackCache):
    """Answers FLUSH without draining."""

    def flush(self) -> None:
        return None


class DrainsOnly(WriteBackCache):
    """Drains, and leaves the rest to the kernel."""

    def flush(self) -> None:
        self._drain(self._dirty)
        self._dirty.clear()
        self._partial.clear()


class SyncsOnly(WriteBackCache):
    """Calls fdatasync, for what it has not drained."""

    def flush(self) -> None:
        self._store.flush()


class ConfirmsFailures(WriteBackCache):
    """Answers FLUSH as if fdatasync had returned."""

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


class ForgetsFailures(WriteBackCache):
    """Says that fdatasync failed, once; then nothing is dirty."""

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._dirty.clear()
            self._partial.clear()
            self._lost = self._unrepeatable = False
            raise


class ForgetsEvictions(WriteBackCache):
    """Does not know that what was evicted before a failure is lost."""

    def _check_lost(self) -> None:
        return None


class DropsAWrite(WriteBackCache):
    """Every fifth."""

    count = 0

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.count += 1
        if self.count % 5:
            super().pwrite(offset, data)


class DropsASector(WriteBackCache):
    """The last one of a long write."""

    def pwrite(self, offset: int, data: Buffer) -> None:
        super().pwrite(offset, data[:-SECTOR] if len(data) > SECTOR else data)


class WritesASectorWrong(WriteBackCache):
    """One byte of one sector."""

    def pwrite(self, offset: int, data: Buffer) -> None:
        wrong = bytearray(data)
        wrong[-1] ^= len(data) > SECTOR
        super().pwrite(offset, wrong)


class WritesElsewhere(WriteBackCache):
    """What should begin at an odd multiple of eight sectors begins one sector before."""

    def pwrite(self, offset: int, data: Buffer) -> None:
        super().pwrite(offset - SECTOR if offset // SECTOR % 16 == 8 else offset, data)


class ReadsTheStore(WriteBackCache):
    """Reads past the cache."""

    def pread(self, offset: int, size: int) -> bytes:
        return self._store.pread(offset, size)


class ZeroesLater(WriteBackCache):
    """What was written before stays in the cache and comes after the zeros."""

    def zero(self, offset: int, size: int) -> None:
        self._store.zero(offset, size)
        self._unrepeatable = True


class RepeatsAWrite(WriteBackCache):
    """An old write comes a second time, after a flush."""

    _old: tuple[int, bytes] | None = None

    def pwrite(self, offset: int, data: Buffer) -> None:
        super().pwrite(offset, data)
        self._old = self._old or (offset, bytes(data))

    def flush(self) -> None:
        super().flush()
        if self._old is not None:
            super().pwrite(*self._old)


BROKEN: Final[tuple[type[WriteBackCache], ...]] = (
    NeverDrains, DrainsOnly, SyncsOnly, ConfirmsFailures, ForgetsFailures, ForgetsEvictions, DropsAWrite, DropsASector,
    WritesASectorWrong, WritesElsewhere, ReadsTheStore, ZeroesLater, RepeatsAWrite,
)  # fmt: skip
"""All of them."""
