"""Page frames of a guest: who owns which part of its RAM.

A guest's RAM is one buffer, guest physical = offset.  Frame 0 is never given out, so that a null pointer points at
nothing.
"""

from __future__ import annotations

from typing import Final

from hmx.memory import PAGE_SIZE

FIRST_FRAME: Final = 1


class PageAllocator:
    """First fit over runs of free frames, ordered by address; neighbours coalesce when freed."""

    __slots__ = ("_free", "frames")

    def __init__(self, frames: int) -> None:
        """Manage `frames` page frames; the first is reserved."""
        if frames <= FIRST_FRAME:
            raise ValueError(f"a guest of {frames} pages has none to give")
        self.frames = frames
        self._free: list[tuple[int, int]] = [(FIRST_FRAME, frames - FIRST_FRAME)]

    def allocate(self, count: int) -> int:
        """The first frame of `count` contiguous ones.  MemoryError when no run is long enough."""
        for at, (first, length) in enumerate(self._free):
            if length >= count:
                if length == count:
                    del self._free[at]
                else:
                    self._free[at] = (first + count, length - count)
                return first
        raise MemoryError(
            f"no {count} contiguous free pages in a guest of {self.frames} pages ({self.free_pages()} free)"
        )

    def reserve(self, first: int, count: int) -> None:
        """Take `count` frames from `first` on for good.  ValueError when any is given out or outside."""
        for at, (start, length) in enumerate(self._free):
            if start <= first and first + count <= start + length:
                left, right = (start, first - start), (first + count, start + length - first - count)
                self._free[at : at + 1] = [run for run in (left, right) if run[1]]
                return
        raise ValueError(f"page frames {first} to {first + count - 1} are not free")

    def release(self, first: int, count: int) -> None:
        """Give `count` frames from `first` back."""
        runs = sorted([*self._free, (first, count)])
        merged = [runs[0]]
        for start, length in runs[1:]:
            last, last_length = merged[-1]
            if start < last + last_length:
                raise ValueError(f"page frame {start} is freed twice")
            if start == last + last_length:
                merged[-1] = (last, last_length + length)
            else:
                merged.append((start, length))
        self._free = merged

    def free_pages(self) -> int:
        """Frames not given out."""
        return sum(length for _, length in self._free)


def pages_for(size: int) -> int:
    """Frames that hold `size` bytes."""
    return -(-size // PAGE_SIZE)
