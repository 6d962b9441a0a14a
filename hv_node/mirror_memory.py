"""A guest's RAM at its hypervisor on another host: what the guest has shown of it.  Experimental, not upstream.

`MirrorMemory` is the domain's `GuestMemory` (hmx/memory.py): readable only where the guest has shown what is there.
Every word keeps its one writer: what the hypervisor writes into a registered ring is never taken from the guest.
Protocol: hmx/mirror.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, Final
from weakref import WeakSet

from hmx.memory import FAULT, Buffer, MappedMemory, MappedRingPages
from hmx.mirror import Batch, Changes, MirrorError, Ranges
from hmx.shm import load32, store32

MAX_SHOWN: Final = 1 << 12
"""Ranges that a guest may show for frames, and as many windows apart from one another."""
_RING_HEADER: Final = 64


class MirrorRingPages(MappedRingPages):
    """Ring pages of which is kept what the hypervisor wrote; `owned` are the ranges that it alone writes."""

    __slots__ = ("__weakref__", "_changes", "owned")

    def __init__(
        self, view: memoryview, words: memoryview, gfns: Sequence[int], pointers: int, changes: Changes
    ) -> None:
        super().__init__(view, words, gfns, pointers)
        self.flat = None  # a direct store would not be seen
        self._changes = changes
        first, length = self.extents[0]
        tx = first + pointers + 4
        data = (first + _RING_HEADER, first + length)
        self.owned = ((tx, tx + 4), data, *((at, at + size) for at, size in self.extents[1:]))

    def store_tx(self, value: int) -> None:
        """Publish tx_ptr, here and behind all data there."""
        super().store_tx(value)
        self._changes.word(self.owned[0][0])

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset` of the data area."""
        super().copy_in(offset, data)
        left = len(data)
        for start, end in self.owned[1:]:
            if not left:
                return
            size = end - start
            if offset >= size:
                offset -= size
                continue
            step = min(left, size - offset)
            self._changes.data(start + offset, step)
            left, offset = left - step, 0


class MirrorMemory(MappedMemory):
    """A domain's RAM as far as its guest has shown it: windows for good, other ranges as long as a frame needs them.

    Everything else faults.  Writes go anywhere and are kept in `changes` for the guest.
    """

    __slots__ = ("_count", "_known", "_pages", "_shown", "_windows", "changes")

    def __init__(self, size: int) -> None:
        super().__init__(bytearray(size))
        self.changes = Changes()
        self._windows = Ranges()
        self._shown: dict[object, tuple[tuple[int, int], ...]] = {}
        self._count = 0  # of ranges in it
        self._known: Ranges | None = None  # windows and shown ranges together
        self._pages: WeakSet[MirrorRingPages] = WeakSet()

    # -- what the core does ----

    def _present(self, va: int) -> int:
        """Bytes from `va` on that the guest has shown."""
        known = self._known
        if known is None:
            known = self._known = Ranges()
            for start, end in self._windows:
                known.add(start, end)
            for group in self._shown.values():
                for start, end in group:
                    known.add(start, end)
        return known.reach(va)

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:
        """`n` bytes at `va`, or FAULT."""
        return super().read(ctx, va, n) if self._present(va) >= n else FAULT

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        """The structure at `va`, or FAULT."""
        return super().unpack(layout, ctx, va) if self._present(va) >= layout.size else FAULT

    def readable(self, ctx: int, va: int, n: int) -> int:
        """Bytes readable before the first fault."""
        return min(super().readable(ctx, va, n), self._present(va))

    def write(self, ctx: int, va: int, data: Buffer) -> bool:
        """Copy `data` to `va`; False when it reached a page that faults."""
        reach = self._reach(va, len(data), True)
        if reach:
            self.changes.data(va, reach)
        return super().write(ctx, va, data)

    def ring(self, gfns: Sequence[int], pointers: int = 0) -> MappedRingPages | int:
        """Pages for a ring, or the negated errno of the first unfit one."""
        fit = super().ring(gfns, pointers)
        if isinstance(fit, int):
            return fit
        pages = MirrorRingPages(self._view, self._words, gfns, pointers, self.changes)
        self._pages.add(pages)
        return pages

    # -- what the guest says: each raises MirrorError ----

    def _inside(self, what: str, start: int, n: int) -> int:
        if not n or start + n > self.size:
            raise MirrorError(what, f"{n} bytes at {start:#x}; the domain has {self.size:#x}")
        return start + n

    def open(self, start: int, n: int) -> None:
        """The guest will touch these pages through a window."""
        if start % 4 or n % 4:
            raise MirrorError("WINDOW", f"{n} bytes at {start:#x}: no whole words")
        self._windows.add(start, self._inside("WINDOW", start, n))
        self._known = None
        if len(self._windows) > MAX_SHOWN:
            raise MirrorError("WINDOW", f"more than {MAX_SHOWN} apart from one another")

    def store(self, start: int, data: Buffer) -> None:
        """The guest wrote `data` through a window."""
        end = self._inside("STORE", start, len(data))
        if self._windows.reach(start) < len(data):
            raise MirrorError("STORE", f"{len(data)} bytes at {start:#x}, which no window covers")
        for low, high in self._owned(start, end):
            if self._view[low:high] != data[low - start : high - start]:
                raise MirrorError("STORE", f"changes what its hypervisor writes, at {low:#x}")
        self._view[start:end] = data

    def store_word(self, address: int, value: int) -> None:
        """The guest stored a u32 through a window."""
        if address % 4:
            raise MirrorError("WORDS", f"{address:#x} is not the address of a word")
        self._inside("WORDS", address, 4)
        if self._windows.reach(address) < 4:
            raise MirrorError("WORDS", f"{address:#x}, which no window covers")
        if load32(self._words, address >> 2) == value:
            return
        for low, _ in self._owned(address, address + 4):
            raise MirrorError("WORDS", f"changes what its hypervisor writes, at {low:#x}")
        store32(self._words, address >> 2, value)

    def take(self, start: int, data: Buffer) -> None:
        """What stands at `start` in the guest's RAM, for a frame to read; what we write there ourselves we know."""
        at, end = start, self._inside("READS", start, len(data))
        for low, high in sorted(self._owned(start, end)):
            if at < low:
                self._view[at:low] = data[at - start : low - start]
            at = max(at, high)
        if at < end:
            self._view[at:end] = data[at - start :]

    def show(self, key: object, ranges: Iterable[tuple[int, int]]) -> None:
        """Let these ranges be read until :meth:`hide`."""
        group = self._shown[key] = tuple(ranges)
        self._known = None
        self._count += len(group)
        if self._count > MAX_SHOWN:
            raise MirrorError("READS", f"more than {MAX_SHOWN} ranges for frames that are under way")

    def hide(self, key: object) -> None:
        """The frames of `key` are done."""
        group = self._shown.pop(key, None)
        if group:
            self._count -= len(group)
            self._known = None

    def ship(self, batch: Batch) -> bool:
        """Move changes into `batch`.  True: that was all."""
        return self.changes.take(batch, self._view, self._words)

    def place(self, at: int, data: Buffer) -> None:
        """Lay `data` into RAM before the guest starts."""
        self._view[at : at + len(data)] = data
        self.changes.data(at, len(data))

    def _owned(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that the hypervisor alone writes."""
        return [
            (max(start, low), min(end, high))
            for pages in self._pages
            for low, high in pages.owned
            if low < end and high > start
        ]
