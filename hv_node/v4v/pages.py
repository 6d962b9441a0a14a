"""The pages of a registered v4v ring: Argo's ring pages, with rx_ptr and tx_ptr where v4v keeps them.

The data area starts at byte 64 in both, so that messages are copied in as Argo copies them.  v4v accepts a ring whose
header leaves it short of pages by less than one header; what would lie behind the last page does not exist, and
`capacity` says where that is.
"""

from __future__ import annotations

from hmx.argo.abi import RING_HEADER_SIZE
from hmx.memory import PAGE_SIZE, GuestMemory, RingPages
from hmx.v4v.abi import RX_PTR


class V4vPages:
    """Pages `gfns` of `memory`, in ring order."""

    __slots__ = ("_pages", "capacity", "gfns", "load_rx", "store_tx")

    def __init__(self, pages: RingPages, gfns: tuple[int, ...]) -> None:
        self._pages = pages
        self.load_rx = pages.load_rx
        self.store_tx = pages.store_tx
        self.gfns = gfns
        self.capacity = len(gfns) * PAGE_SIZE - RING_HEADER_SIZE

    def copy_in(self, at: int, data: bytes | memoryview, ring_len: int) -> int:
        """Copy `data` to `at` of a data area of `ring_len` bytes, past its end to its start.  Where it goes on, or -1.

        That may be the area's very end.  -1: a page is missing, before which all HAS been copied.
        """
        head = ring_len - at
        if len(data) <= head:
            return at + len(data) if self._copy(at, data) else -1
        rest = data[head:]
        return len(rest) if self._copy(at, data[:head]) and self._copy(0, rest) else -1

    def _copy(self, at: int, data: bytes | memoryview) -> bool:
        room = max(self.capacity - at, 0)
        self._pages.copy_in(at, data[:room])
        return len(data) <= room


def take_pages(memory: GuestMemory, gfns: tuple[int, ...]) -> V4vPages | int:
    """The pages for a ring, or the negated errno of the first unfit one."""
    pages = memory.ring(gfns, RX_PTR)
    return pages if isinstance(pages, int) else V4vPages(pages, gfns)
