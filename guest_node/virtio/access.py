"""How a back end reaches the memory of a front end: what all ways have in common.

A way is a `QueueMemory` whose addresses are those that the driver put into its rings.  `hold` makes the areas of a
queue reachable for as long as the queue lives, `borrow` and `give_back` the buffers of a chain while it is served.
What each costs is counted, apart for pages, bytes and hypercalls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from guest_node.virtio.xen_calls import XenCalls
from hmx.ioreq import EXTENDED_BASE
from hmx.memory import PAGE_SIZE
from hmx.shm import fence
from hmx.virtio.chain import Segment
from hmx.virtio.memory import BadAddress, Buffer, FlatMemory

_SHIFT: Final = PAGE_SIZE.bit_length() - 1
_OFFSET: Final = PAGE_SIZE - 1


@dataclass(slots=True)
class AccessCounters:
    """What reaching the front end's memory cost: pages, bytes by who copied them, hypercalls."""

    maps: int = 0
    unmaps: int = 0
    copied_by_back_end: int = 0
    copied_by_hypervisor: int = 0
    hypercalls: int = 0


class RemoteMemory(ABC):
    """One way.  Methods of a QueueMemory raise BadAddress, and so do `hold` and `borrow`."""

    maps_payload: bool
    """Whether the back end copies bytes of buffers itself, from mapped pages; else the hypervisor does."""

    def __init__(self) -> None:
        self.counters = AccessCounters()

    @abstractmethod
    def load16(self, address: int) -> int:
        """A little-endian u16 at an even address."""

    @abstractmethod
    def store16(self, address: int, value: int) -> None:
        """Store a u16 at an even address."""

    @abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """`size` bytes."""

    @abstractmethod
    def write(self, address: int, data: Buffer) -> None:
        """Store bytes."""

    def fence(self) -> None:
        """Order stores before against loads and stores after."""
        fence()

    @abstractmethod
    def hold(self, areas: Sequence[Segment]) -> None:
        """Make areas reachable until `drop`."""

    @abstractmethod
    def drop(self, areas: Sequence[Segment]) -> None:
        """The queue in these areas is no more."""

    @abstractmethod
    def borrow(self, segments: Sequence[Segment]) -> None:
        """The buffers of a chain are about to be used."""

    @abstractmethod
    def give_back(self, segments: Sequence[Segment]) -> None:
        """They are not used any more."""

    @abstractmethod
    def drop_all(self) -> None:
        """The device was reset: nothing is to stay mapped."""


def pages_of(segments: Iterable[Segment]) -> Iterator[int]:
    """The pages that segments touch, each once, in order.  BadAddress beyond 64 bits."""
    seen: dict[int, None] = {}
    for address, size in segments:
        if address < 0 or size < 0 or address + size > 1 << 64:
            raise BadAddress(address, size)
        for page in range(address >> _SHIFT, (address + max(size, 1) - 1 >> _SHIFT) + 1):
            seen[page] = None
    return iter(seen)


class MappedAccess(RemoteMemory):
    """Ways that map pages.  With `keep`, what was mapped once stays mapped until a reset; else the pages of a chain's
    buffers are unmapped when it is done.
    """

    maps_payload = True
    most: int = 1 << 16
    """Pages that one chain may touch."""

    def __init__(self, xen: XenCalls, target: int, keep: bool = False) -> None:
        super().__init__()
        self._xen = xen
        self._target = target
        self._keep = keep
        self._mapped: dict[int, int] = {}  # page of the front end's addresses -> its place in the front end's RAM
        self._users: Counter[int] = Counter()
        self._region = xen.memory.extended
        self._flat: FlatMemory | None = None

    @abstractmethod
    def _map(self, pages: Sequence[int]) -> None:
        """Map pages, entering each in `_mapped`; BadAddress for one that cannot be, those before it may stay."""

    @abstractmethod
    def _unmap(self, pages: Sequence[int]) -> None:
        """Unmap pages that are mapped."""

    def _ram(self) -> FlatMemory:
        """The front end's RAM as our silicon reaches it: mapped pages only.  BadAddress if it is not there any more."""
        if self._flat is None:
            ram = self._xen.memory.foreign(self._target)
            if ram is None:
                raise BadAddress(0, 0)
            self._flat = FlatMemory(ram)
        return self._flat

    def is_mapped(self, page: int) -> bool:
        """Whether a page of the front end's addresses is mapped."""
        return page in self._mapped

    def frame(self) -> int:
        """A free frame of our own address space."""
        return (EXTENDED_BASE >> _SHIFT) + self._region.allocate(1)

    def free_frame(self, frame: int) -> None:
        """It is free again."""
        self._region.release(frame - (EXTENDED_BASE >> _SHIFT), 1)

    # -- what is mapped ----

    def hold(self, areas: Sequence[Segment]) -> None:
        """Map what is not yet mapped."""
        self._take(areas)

    def drop(self, areas: Sequence[Segment]) -> None:
        """Unmap what nobody else uses."""
        self._release(areas)

    def borrow(self, segments: Sequence[Segment]) -> None:
        """The same, for a chain."""
        self._take(segments)

    def give_back(self, segments: Sequence[Segment]) -> None:
        """The same, for a chain."""
        self._release(segments)

    def drop_all(self) -> None:
        """Unmap everything."""
        self._users.clear()
        self._unmap(list(self._mapped))

    def _take(self, segments: Sequence[Segment]) -> None:
        pages = list(pages_of(segments))
        if len(pages) > self.most:
            raise BadAddress(pages[0] << _SHIFT, len(pages) << _SHIFT)
        lacking = [page for page in pages if page not in self._mapped]
        if lacking:
            try:
                self._map(lacking)
            except BadAddress:
                self._unmap([page for page in lacking if page in self._mapped])
                raise
        self._users.update(pages)

    def _release(self, segments: Sequence[Segment]) -> None:
        gone = []
        for page in pages_of(segments):
            if page not in self._users:
                continue  # a reset came in between
            self._users[page] -= 1
            if not self._users[page]:
                del self._users[page]
                if not self._keep:
                    gone.append(page)
        self._unmap(gone)

    # -- QueueMemory ----

    def _at(self, address: int, size: int) -> int:
        """Where a few bytes within one page lie in RAM."""
        page = self._mapped.get(address >> _SHIFT)
        if page is None or (address & _OFFSET) + size > PAGE_SIZE:
            raise BadAddress(address, size)
        return page + (address & _OFFSET)

    def load16(self, address: int) -> int:
        """In one access."""
        return self._ram().load16(self._at(address, 2))

    def store16(self, address: int, value: int) -> None:
        """In one access."""
        self._ram().store16(self._at(address, 2), value)

    def read(self, address: int, size: int) -> bytes:
        """Page by page; pages that are not mapped are, for this one access (tables of indirect descriptors)."""
        lent = self._lend(address, size)
        ram = self._ram()
        parts = [bytes(ram.read(at, length)) for at, length in self._pieces(address, size)]
        self._unmap(lent)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, address: int, data: Buffer) -> None:
        """Page by page."""
        lent = self._lend(address, len(data))
        ram, view, done = self._ram(), memoryview(data), 0
        for at, length in self._pieces(address, len(data)):
            ram.write(at, view[done : done + length])
            done += length
        self._unmap(lent)

    def _lend(self, address: int, size: int) -> list[int]:
        pages = list(pages_of([Segment(address, size)]))
        lacking = [page for page in pages if page not in self._mapped]
        if lacking:
            if len(lacking) > self.most:
                raise BadAddress(address, size)
            try:
                self._map(lacking)
            except BadAddress:
                self._unmap([page for page in lacking if page in self._mapped])
                raise
        return [] if self._keep else lacking

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """(place in RAM, bytes) of each part of a range, neighbours joined."""
        start, length = 0, 0
        while size:
            step = min(size, PAGE_SIZE - (address & _OFFSET))
            at = self._mapped[address >> _SHIFT] + (address & _OFFSET)
            if length and at == start + length:
                length += step
            else:
                if length:
                    yield start, length
                start, length = at, step
            address += step
            size -= step
        if length:
            yield start, length
