"""What the sectors of a disk may hold, known from what its driver asked for and what was answered.

Source: VIRTIO 1.4, 5.2.6.2.  A FLUSH that was answered without an error covers every write that had been answered
before the FLUSH was submitted: those are on stable storage.  Of a sector, stable storage has the newest covered write,
or any that was not answered before that one was submitted; so one that is under way, failed, or was answered too late
for the FLUSH may be there or not, each sector for itself.  A read sees the newest write that was answered before it
was submitted, or any that was not answered before that one was submitted.

Only order counts: the calls of a `DiskModel` come in the order in which the driver acted, and what was answered is told
after it was answered, what is submitted before it is.  That makes the model weaker than the truth by what happens in
between, and never stronger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Value = bytes | int
"""What a sector holds: its bytes, or whatever stands for them.  Every write has its own, so that it is known again."""


class Wrong(NamedTuple):
    """A sector that holds what it may not."""

    where: str
    sector: int
    found: Value
    allowed: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.where}: sector {self.sector} holds {_short(self.found)}, not {_shorts(self.allowed)}"


@dataclass(slots=True)
class _Write:
    """One value that was written to one sector."""

    value: Value
    begin: int
    end: int | None = None
    """When it was over, with or without effect; None: it may still take effect."""
    sure: bool = False
    """It was answered without an error, and the device has not lost its memory since: reads see it, or a newer one."""
    covered: bool = False
    discard: bool = False
    """It is a discard: the sector may be what this says, or what it was."""


class _Request(NamedTuple):
    """A request under way."""

    begin: int
    sector: int
    sectors: int
    writes: tuple[_Write, ...]


class DiskModel:
    """A disk of `sectors` sectors that all hold `initial`, which is stable."""

    def __init__(self, sectors: int, initial: Value | Sequence[Value]) -> None:
        held = list(initial) if not isinstance(initial, (bytes, int)) else [initial] * sectors
        if len(held) != sectors:
            raise ValueError(f"{len(held)} values for {sectors} sectors")
        self.size = sectors
        self._now = 0
        self._requests: dict[int, _Request] = {}
        self._sectors = [[_Write(value, 0, 0, True, True)] for value in held]  # what may be there
        self._uncovered: list[tuple[int, _Write]] = []  # sure, waiting for a flush

    # ---- what the driver does; the begin of each request gives its number ----

    def write_begins(self, sector: int, values: Sequence[Value]) -> int:
        """A write of `values` from `sector` on is about to be submitted."""
        begin = self._tick()
        writes = tuple(_Write(value, begin) for value in values)
        for at, write in enumerate(writes, sector):
            self._sectors[at].append(write)
        self._requests[begin] = _Request(begin, sector, len(writes), writes)
        return begin

    def write_ends(self, request: int, ok: bool = True) -> None:
        """It was answered.  With an error: each sector is old or new."""
        asked, now = self._requests.pop(request), self._tick()
        for at, write in enumerate(asked.writes, asked.sector):
            write.end = now
            if ok and not write.discard and not self._discarded_since(at, write.begin):
                write.sure = True
                self._uncovered.append((at, write))

    def discard_begins(self, sector: int, values: Sequence[Value]) -> int:
        """A DISCARD is about to be submitted: a sector may become its value, or lose what is volatile of it, or
        neither.  `write_ends` ends it.

        The specification allows anything; a back end that makes holes, or does nothing, knows nothing else.
        """
        begin = self.write_begins(sector, values)
        for write in self._requests[begin].writes:
            write.discard = True
        gone = range(sector, sector + len(values))
        for at, write in self._uncovered:
            write.sure &= at not in gone
        self._uncovered = [(at, write) for at, write in self._uncovered if write.sure]
        return begin

    def flush_begins(self) -> int:
        """A FLUSH is about to be submitted."""
        begin = self._tick()
        self._requests[begin] = _Request(begin, 0, 0, ())
        return begin

    def flush_ends(self, request: int, ok: bool = True) -> None:
        """It was answered.  With an error, nothing is known."""
        asked = self._requests.pop(request)
        self._tick()
        if not ok:
            return
        left = []
        for at, write in self._uncovered:
            if write.end is None or write.end >= asked.begin:
                left.append((at, write))
            else:
                write.covered = True
                self._sectors[at] = [other for other in self._sectors[at] if not _before(other, write)]
        self._uncovered = left

    def read_begins(self, sector: int, count: int) -> int:
        """A read is about to be submitted."""
        begin = self._tick()
        self._requests[begin] = _Request(begin, sector, count, ())
        return begin

    def read_ends(self, request: int, values: Sequence[Value] | None) -> list[Wrong]:
        """It was answered with `values`, or None for an error; what should not have been among them."""
        asked = self._requests.pop(request)
        self._tick()
        if values is None:
            return []
        if len(values) != asked.sectors:
            raise ValueError(f"{len(values)} values for {asked.sectors} sectors")
        wrong = []
        for at, value in enumerate(values, asked.sector):
            allowed = self._visible(at, asked.begin)
            if value not in allowed:
                wrong.append(Wrong("a read", at, value, allowed))
        return wrong

    def reset(self, *, lost: bool = False) -> None:
        """The device was reset, by this driver or by another after this one died: what was under way is over.

        `lost`: what was volatile may be gone, since the back end died in between.
        """
        now = self._tick()
        for request in self._requests.values():
            for write in request.writes:
                write.end = now
        self._requests.clear()
        if lost:
            for _, write in self._uncovered:
                write.sure = False
            self._uncovered.clear()

    # ---- what may be there ----

    def possible(self, sector: int) -> tuple[Value, ...]:
        """What stable storage may hold, the oldest first."""
        return tuple(write.value for write in self._sectors[sector])

    def wrong(self, image: Sequence[Value], where: str = "the image") -> list[Wrong]:
        """The sectors of an image, which was left by a crash, that hold what they may not."""
        if len(image) != self.size:
            raise ValueError(f"an image of {len(image)} sectors, for a disk of {self.size}")
        pairs = enumerate(zip(image, self._sectors, strict=True))
        return [
            Wrong(where, at, value, self.possible(at))
            for at, (value, writes) in pairs
            if all(value != write.value for write in writes)
        ]

    def unsure(self) -> int:
        """How many sectors may hold more than one value: those on which a check of an image bites less."""
        return sum(len(writes) > 1 for writes in self._sectors)

    def _visible(self, sector: int, since: int) -> tuple[Value, ...]:
        """What a read that was submitted at `since` may see."""
        writes = self._sectors[sector]
        seen = [write for write in writes if write.sure and write.end is not None and write.end < since]
        return tuple(write.value for write in writes if not any(_before(write, newer) for newer in seen))

    def _discarded_since(self, sector: int, begin: int) -> bool:
        """Whether a discard of the sector has been under way since then, and may have come later."""
        writes = self._sectors[sector]
        return any(write.discard and (write.end is None or write.end > begin) for write in writes)

    def _tick(self) -> int:
        self._now += 1
        return self._now


def _before(write: _Write, other: _Write) -> bool:
    """Whether `write` was over when `other` began: where `other` is, `write` is not."""
    return write.end is not None and write.end < other.begin


def _short(value: Value) -> str:
    if isinstance(value, int):
        return str(value)
    return value.hex() if len(value) <= 8 else f"{value[:8].hex()}..."


def _shorts(values: Sequence[Value]) -> str:
    return " or ".join(_short(value) for value in values)
