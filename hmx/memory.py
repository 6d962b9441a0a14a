"""Guest memory, seen from both sides.

The hypervisor reaches a guest through `GuestMemory`: by guest virtual address and context for arguments and
buffers, by page frame number for rings. A range that cannot be reached yields `FAULT`, never an
exception. The guest reaches a page that it has registered through its `Window`, so that a guest whose
memory is only mirrored at the hypervisor can ship what changed. `MappedMemory` is a domain's RAM in one
mapping, where guest virtual equals guest physical address.

Page types follow Xen's p2m types as far as a guest copy or a ring registration can tell them apart.
"""

# ruff: noqa: ARG002  (a flat mapping has no use for the translation context that the interface passes)

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from mmap import mmap
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol

from hmx.errno import Errno
from hmx.shm import fence, load32, store32, words32

PAGE_SIZE: Final = 4096
PAGE_SHIFT: Final = 12
_PAGE_MASK: Final = PAGE_SIZE - 1
FIRMWARE_BASE: Final = 0xE_0000  # where a guest finds its ACPI tables or device tree: a PC's BIOS window
FIRMWARE_SIZE: Final = 0x2_0000
_RING_HEADER: Final = 64  # bytes before a ring's data area

FAULT: Final = None

Buffer = bytes | bytearray | memoryview


class PageType(IntEnum):
    """Kinds of page.  Lower-case names are those of recorded traces."""

    RAM_RW = 0
    RAM_RO = 1
    LOGDIRTY = 2
    MMIO_DIRECT = 3
    PAGED = 4
    SHARED = 5
    INVALID = 6
    GRANT = 7


class PageRule(NamedTuple):
    """What a page type permits: guest copies each way, and the error when a ring is registered on it."""

    page_type: PageType
    readable: bool
    writable: bool
    ring_error: Errno | None


PAGE_RULES: Final = (
    PageRule(PageType.RAM_RW, True, True, None),
    PageRule(PageType.RAM_RO, True, False, Errno.EINVAL),
    PageRule(PageType.LOGDIRTY, True, True, Errno.EAGAIN),
    PageRule(PageType.MMIO_DIRECT, False, False, Errno.EPERM),
    PageRule(PageType.PAGED, False, False, Errno.EAGAIN),
    PageRule(PageType.SHARED, False, False, Errno.EAGAIN),
    PageRule(PageType.INVALID, False, False, Errno.EINVAL),
    PageRule(PageType.GRANT, False, False, Errno.EINVAL),
)
_RULE_OF: Final = {rule.page_type: rule for rule in PAGE_RULES}


class Access(IntEnum):
    """What a translation is for."""

    READ = 0
    WRITE = 1


class RingPages(Protocol):
    """The pages of a registered ring, as the hypervisor uses them; later changes of page types do not matter.

    `flat` is the data area as one writable view when the pages form a single extent and may be written
    directly; else None, and `copy_in` is the only way.
    """

    npages: int
    extents: tuple[tuple[int, int], ...]  # (guest physical address, bytes), in ring order
    flat: memoryview | None

    def load_rx(self) -> int:
        """The guest's rx_ptr, one load."""

    def load_tx(self) -> int:
        """The tx_ptr in guest memory, one load; matters at registration only."""

    def store_tx(self, value: int) -> None:
        """Publish tx_ptr: everything copied in before is visible first."""

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset` of the data area; it must not run over the area's end."""


class GuestMemory(Protocol):
    """The only way from the hypervisor to a domain's memory.

    `ctx` is the trap frame's context word: the root of the page tables in force, 0 for identity.
    """

    size: int

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:
        """`n` bytes at `va` as a view of live guest memory, or FAULT when any page cannot be read."""

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        """The structure at `va`, or FAULT."""

    def readable(self, ctx: int, va: int, n: int) -> int:
        """How many of `n` bytes at `va` can be read before the first faulting page."""

    def write(self, ctx: int, va: int, data: Buffer) -> bool:
        """Copy `data` to `va`, page by page; False at a faulting page, before which all HAS been written."""

    def ring(self, gfns: Sequence[int], pointers: int = 0) -> RingPages | int:
        """Take pages for a ring, or the negated errno of the first unfit page.

        `pointers`: where in the first page rx_ptr lies, with tx_ptr behind it (0: Argo, 20: v4v).
        """

    def translate(self, ctx: int, va: int, access: Access) -> int | None:
        """The guest physical address of `va`, or FAULT."""


def _extents(gfns: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Runs of consecutive page frames as (address, bytes)."""
    runs: list[tuple[int, int]] = []
    start = previous = gfns[0]
    for gfn in gfns[1:]:
        if gfn != previous + 1:
            runs.append((start * PAGE_SIZE, (previous + 1 - start) * PAGE_SIZE))
            start = gfn
        previous = gfn
    runs.append((start * PAGE_SIZE, (previous + 1 - start) * PAGE_SIZE))
    return tuple(runs)


class MappedRingPages:
    """Ring pages inside one mapping."""

    __slots__ = ("_ends", "_rx", "_tx", "_views", "_words", "extents", "flat", "npages")

    def __init__(self, view: memoryview, words: memoryview, gfns: Sequence[int], pointers: int = 0) -> None:
        self.npages = len(gfns)
        self.extents = _extents(gfns)
        self._words = words
        self._rx = (gfns[0] * PAGE_SIZE + pointers) // 4
        self._tx = self._rx + 1
        address, length = self.extents[0]
        views = [view[address + _RING_HEADER : address + length]]
        views += [view[a : a + n] for a, n in self.extents[1:]]
        self.flat: memoryview | None = views[0] if len(views) == 1 else None
        self._views = views
        ends, end = [], 0
        for extent in views:
            end += len(extent)
            ends.append(end)
        self._ends = ends  # offsets in the data area at which each extent ends

    def load_rx(self) -> int:
        """The guest's rx_ptr."""
        return load32(self._words, self._rx)

    def load_tx(self) -> int:
        """The tx_ptr in guest memory."""
        return load32(self._words, self._tx)

    def store_tx(self, value: int) -> None:
        """Publish tx_ptr after all that was copied in."""
        fence()
        store32(self._words, self._tx, value)

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset` of the data area."""
        flat = self.flat
        if flat is not None:
            flat[offset : offset + len(data)] = data
            return
        source = memoryview(data)
        index = bisect_right(self._ends, offset)
        done, total = 0, len(source)
        start = offset - (self._ends[index - 1] if index else 0)
        while done < total:
            view = self._views[index]
            step = min(total - done, len(view) - start)
            view[start : start + step] = source[done : done + step]
            done += step
            index += 1
            start = 0


class MappedMemory:
    """A domain's RAM over one writable buffer; address 0 of the buffer is guest physical (and virtual)
    address 0.

    `plain` is true while every page is ordinary RAM: then no call walks pages.
    """

    __slots__ = ("_odd", "_refuses_reference", "_view", "_words", "plain", "size")

    def __init__(self, buffer: bytearray | memoryview | mmap) -> None:
        self._view = memoryview(buffer).cast("B")
        self.size = len(self._view)
        if self.size % PAGE_SIZE or not self.size:
            raise ValueError(f"guest memory must be whole pages, not {self.size} bytes")
        self._words = words32(self._view)
        self._odd: dict[int, PageRule] = {}  # pages that are not ordinary RAM
        self._refuses_reference: set[int] = set()
        self.plain = True

    def set_page(self, gfn: int, page_type: PageType, *, nowrite: bool = False) -> None:
        """Change the type of page `gfn`; `nowrite` means that no ring may be registered on it.

        Raises ValueError when the domain has no such page.
        """
        if not 0 <= gfn < self.size >> PAGE_SHIFT:
            raise ValueError(f"page {gfn} is outside the domain")
        rule = _RULE_OF[page_type]
        if rule.readable and rule.writable and rule.ring_error is None:
            self._odd.pop(gfn, None)
        else:
            self._odd[gfn] = rule
        if nowrite:
            self._refuses_reference.add(gfn)
        else:
            self._refuses_reference.discard(gfn)
        self.plain = not self._odd

    def _reach(self, va: int, n: int, write: bool) -> int:
        """Bytes of the range before the first page that refuses the access."""
        end = min(va + n, self.size)
        if va >= end:
            return 0
        if not self.plain:
            odd = self._odd
            for gfn in range(va >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1):
                rule = odd.get(gfn)
                if rule is not None and not (rule.writable if write else rule.readable):
                    return max(0, (gfn << PAGE_SHIFT) - va)
        return end - va

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:
        """`n` bytes at `va`, or FAULT."""
        end = va + n
        if end > self.size or not (self.plain or self._reach(va, n, False) == n):
            return FAULT
        return self._view[va:end]

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        """The structure at `va`, or FAULT."""
        n = layout.size
        if va + n > self.size or not (self.plain or self._reach(va, n, False) == n):
            return FAULT
        return layout.unpack_from(self._view, va)

    def readable(self, ctx: int, va: int, n: int) -> int:
        """Bytes readable before the first fault."""
        return self._reach(va, n, False)

    def write(self, ctx: int, va: int, data: Buffer) -> bool:
        """Copy `data` to `va`; False when it reached a page that faults."""
        n = len(data)
        reach = self._reach(va, n, True)
        if reach == n:
            self._view[va : va + n] = data
            return True
        self._view[va : va + reach] = memoryview(data)[:reach]
        return False

    def ring(self, gfns: Sequence[int], pointers: int = 0) -> MappedRingPages | int:
        """Pages for a ring, or the negated errno of the first unfit one."""
        limit = self.size >> PAGE_SHIFT
        odd, refuses = self._odd, self._refuses_reference
        if odd or refuses or max(gfns) >= limit:
            for gfn in gfns:
                if gfn >= limit:
                    return -Errno.EINVAL
                rule = odd.get(gfn)
                if rule is not None and rule.ring_error is not None:
                    return -rule.ring_error
                if gfn in refuses:
                    return -Errno.EINVAL
        return MappedRingPages(self._view, self._words, gfns, pointers)

    def translate(self, ctx: int, va: int, access: Access) -> int | None:
        """The guest physical address of `va`, or FAULT."""
        return va if self._reach(va, 1, access is Access.WRITE) else FAULT


class Window:
    """A guest's way to pages that its hypervisor uses too: `size` bytes of guest memory from `gpa` on.

    Offsets are relative to `gpa`; words must be 4-aligned. After a batch of stores the guest calls
    `publish`: here a fence, for a guest on another host the moment when its changes travel.
    """

    __slots__ = ("_view", "_words", "gpa", "size")

    def __init__(self, buffer: bytearray | memoryview | mmap, gpa: int, size: int) -> None:
        if gpa % 4 or size % 4:
            raise ValueError("a window starts at, and holds, whole words")
        self.gpa = gpa
        self.size = size
        view = memoryview(buffer).cast("B")[gpa : gpa + size]
        if len(view) != size:
            raise ValueError(f"window {gpa:#x}+{size:#x} leaves the memory")
        self._view = view
        self._words = words32(view)

    def load32(self, offset: int) -> int:
        """The u32 at `offset`, one load."""
        return load32(self._words, offset >> 2)

    def store32(self, offset: int, value: int) -> None:
        """Store the u32 at `offset`, one store.  Order it after other stores with `publish`."""
        store32(self._words, offset >> 2, value)

    def read(self, offset: int, n: int) -> bytes:
        """A copy of `n` bytes."""
        return bytes(self._view[offset : offset + n])

    def read_into(self, offset: int, target: bytearray | memoryview) -> int:
        """Fill `target` from `offset` on; returns its length in bytes."""
        view = memoryview(target).cast("B")
        n = len(view)
        view[:] = self._view[offset : offset + n]
        return n

    def view(self, offset: int, n: int) -> memoryview:
        """A read-only view of `n` live bytes."""
        return self._view[offset : offset + n].toreadonly()

    def write(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset`."""
        n = len(data)
        self._view[offset : offset + n] = data

    def publish(self) -> None:
        """Make all stores so far visible to the hypervisor before any later one."""
        fence()
