"""The volatile write-back cache of a block device: it dies with the process, as a disk's RAM does with the power.

Source: VIRTIO 1.4, 5.2.6.2: a write is volatile until a FLUSH that came after it has been completed.  Reads see what
is in the cache.  Nothing is clean before the store's flush has returned without an error: Linux drops the dirty pages
of a file whose fdatasync(2) failed, so data that had been given to the store must be given to it again.  What cannot be
given again - evicted before the failure, or a range that was zeroed or punched in the store - is lost; then no later
flush succeeds, since it would confirm what may not be there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import islice
from typing import Final

from guest_node.virtio.models.store import Buffer, Store

CACHE_SIZE: Final = 16 << 20  # bytes
BLOCK: Final = 4096
UNIT: Final = 512  # what a block is valid in
RUN_MAX: Final = 1 << 20  # bytes written to the store at once
_FULL: Final = (1 << (BLOCK // UNIT)) - 1
_EVICTED_AT_ONCE: Final = 16  # a full cache gives back one part of so many


class WriteBackCache:
    """A `Store` in front of `store` that holds at most `size` bytes of written data.

    Offsets and lengths are multiples of 512: what is not belongs to no sector, and is a ValueError.
    """

    def __init__(self, store: Store, size: int = CACHE_SIZE) -> None:
        self._store = store
        self._most = max(1, size // BLOCK)
        self._dirty: dict[int, bytes | bytearray] = {}  # by block number, the longest dirty first
        self._partial: dict[int, int] = {}  # of the dirty blocks: which units are valid, where not all are
        self._unrepeatable = False  # the store has unflushed changes that are not here any more
        self._lost = False  # ... and its flush failed then
        self.evictions = 0

    @property
    def size(self) -> int:
        """Bytes of the store."""
        return self._store.size

    @property
    def dirty(self) -> int:
        """Blocks of 4096 bytes that are not known to be on stable storage."""
        return len(self._dirty)

    def pread(self, offset: int, size: int) -> bytes:
        """What was written last, wherever it is."""
        dirty = self._dirty
        if not dirty:
            return self._store.pread(offset, size)
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        hits = [number for number in range(first, last + 1) if number in dirty]
        if not hits:
            return self._store.pread(offset, size)
        if len(hits) == last - first + 1 and self._partial.keys().isdisjoint(hits):
            data = b"".join([dirty[number] for number in hits])
            start = offset - first * BLOCK
            return data[start : start + size]
        under = self._store.pread(offset, size)
        if len(under) != size:
            return under
        result = bytearray(under)
        for number in hits:
            for start, end in _units(self._partial.get(number, _FULL)):
                low = max(offset, number * BLOCK + start)
                high = min(offset + size, number * BLOCK + end)
                if low < high:
                    base = number * BLOCK
                    result[low - offset : high - offset] = dirty[number][low - base : high - base]
        return bytes(result)

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Take `data`; the oldest blocks go to the store where there is no room.  Their error is this write's."""
        if offset % UNIT or len(data) % UNIT:
            raise ValueError(f"{len(data)} bytes at {offset} are not whole sectors")
        view = memoryview(data).toreadonly()
        at = 0
        while at < len(view):
            number, start = divmod(offset + at, BLOCK)
            count = min(BLOCK - start, len(view) - at)
            if number not in self._dirty and len(self._dirty) >= self._most:
                self._evict()
            self._take(number, start, view[at : at + count])
            at += count

    def flush(self) -> None:
        """All that was written before is on stable storage when this returns; if it raises, it is still dirty."""
        self._check_lost()
        self._drain(self._dirty)
        try:
            self._store.flush()
        except OSError:
            self._lost = self._unrepeatable
            raise
        self._dirty.clear()
        self._partial.clear()
        self._unrepeatable = False

    def punch(self, offset: int, size: int) -> None:
        """Discard the range in the store and here."""
        self._store.punch(offset, size)
        self._forget(offset, size)

    def zero(self, offset: int, size: int) -> None:
        """Zero the range in the store, and forget what was written there."""
        self._store.zero(offset, size)
        self._forget(offset, size)

    def _take(self, number: int, start: int, part: memoryview) -> None:
        if len(part) == BLOCK:
            self._dirty[number] = bytes(part)
            self._partial.pop(number, None)
            return
        block = self._dirty.get(number)
        valid = 0 if block is None else self._partial.get(number, _FULL)
        if not isinstance(block, bytearray):
            block = self._dirty[number] = bytearray(block or BLOCK)
        block[start : start + len(part)] = part
        self._set_valid(number, valid | _mask(start, start + len(part)))

    def _forget(self, offset: int, size: int) -> None:
        """What the store has since another call than pwrite: not here any more, and not repeatable."""
        self._unrepeatable = True
        end = offset + size
        first, last = offset // BLOCK, (end - 1) // BLOCK
        if last - first < len(self._dirty):
            hits = [number for number in range(first, last + 1) if number in self._dirty]
        else:
            hits = [number for number in self._dirty if first <= number <= last]
        for number in hits:
            base = number * BLOCK
            gone = _mask(max(offset - base, 0), min(end - base, BLOCK))
            self._set_valid(number, self._partial.get(number, _FULL) & ~gone)

    def _set_valid(self, number: int, valid: int) -> None:
        if valid == _FULL:
            self._partial.pop(number, None)
        elif valid:
            self._partial[number] = valid
        else:
            self._partial.pop(number, None)
            del self._dirty[number]

    def _evict(self) -> None:
        """Give the oldest blocks to the store, and their room to others."""
        oldest = list(islice(self._dirty, max(1, self._most // _EVICTED_AT_ONCE)))
        self._drain(oldest)
        self._unrepeatable = True
        self.evictions += len(oldest)
        for number in oldest:
            del self._dirty[number]
            self._partial.pop(number, None)

    def _drain(self, numbers: dict[int, bytes | bytearray] | list[int]) -> None:
        """Write blocks to the store in the order of their addresses, neighbours at once.  They stay dirty."""
        for offset, pieces in _runs(self._extents(sorted(numbers))):
            self._store.pwrite(offset, b"".join(pieces))

    def _extents(self, numbers: list[int]) -> Iterator[tuple[int, Buffer]]:
        for number in numbers:
            block = self._dirty[number]
            valid = self._partial.get(number)
            if valid is None:
                yield number * BLOCK, block
            else:
                view = memoryview(block)
                for start, end in _units(valid):
                    yield number * BLOCK + start, view[start:end]

    def _check_lost(self) -> None:
        if self._lost:
            raise OSError(errno.EIO, "data was given to the store before its flush failed: it may be lost")


def _mask(start: int, end: int) -> int:
    """The units from byte `start` to byte `end` of a block."""
    return (1 << (end // UNIT)) - (1 << (start // UNIT))


def _units(valid: int) -> Iterator[tuple[int, int]]:
    """The ranges of bytes that a mask of units stands for."""
    unit = 0
    while valid >> unit:
        if valid >> unit & 1:
            start = unit
            while valid >> unit & 1:
                unit += 1
            yield start * UNIT, unit * UNIT
        else:
            unit += 1


def _runs(extents: Iterator[tuple[int, Buffer]]) -> Iterator[tuple[int, list[Buffer]]]:
    """Join extents that follow one another, up to RUN_MAX bytes."""
    start, pieces, size = 0, list[Buffer](), 0
    for offset, data in extents:
        if pieces and (offset != start + size or size + len(data) > RUN_MAX):
            yield start, pieces
            pieces, size = [], 0
        if not pieces:
            start = offset
        pieces.append(data)
        size += len(data)
    if pieces:
        yield start, pieces
