"""Sets of addresses as disjoint inclusive ranges: neighbours become one, as in Xen's common/rangeset.c."""

from __future__ import annotations

from bisect import bisect_right


class TooManyRanges(Exception):
    """The set would need more ranges than it may have."""


class Ranges:
    """A set of at most `limit` ranges after merging."""

    __slots__ = ("_limit", "_ranges")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranges: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def contains(self, first: int, last: int) -> bool:
        """Whether every address from `first` to `last` is in the set."""
        at = bisect_right(self._ranges, (first, 1 << 64)) - 1
        return at >= 0 and last <= self._ranges[at][1]

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any address from `first` to `last` is in the set."""
        at = bisect_right(self._ranges, (last, 1 << 64)) - 1
        return at >= 0 and self._ranges[at][1] >= first

    def add(self, first: int, last: int) -> None:
        """Add a range that overlaps none.  TooManyRanges leaves the set as it was."""
        kept = []
        for start, end in self._ranges:
            if end + 1 == first:
                first = start
            elif start == last + 1:
                last = end
            else:
                kept.append((start, end))
        self._become([*kept, (first, last)])

    def remove(self, first: int, last: int) -> None:
        """Remove a range that is contained.  TooManyRanges leaves the set as it was."""
        kept = []
        for start, end in self._ranges:
            if start <= first and last <= end:
                kept += [(start, first - 1)] * (start < first) + [(last + 1, end)] * (last < end)
            else:
                kept.append((start, end))
        self._become(kept)

    def _become(self, ranges: list[tuple[int, int]]) -> None:
        if len(ranges) > self._limit:
            raise TooManyRanges
        self._ranges = sorted(ranges)
