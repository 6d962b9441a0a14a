"""A guest's own grant table: which of its pages others may use.

Version 1 entries with a status word of their own (hmx/grants.py).  References are given out in contiguous runs, since a
grant-DMA address counts on from page to page.  Sources: Xen public/grant_table.h; Linux drivers/xen/grant-table.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guest_node.kernel.pages import PageAllocator
from guest_node.virtio.xen_calls import XenCalls
from hmx import grants
from hmx.grants import GrantFlag
from hmx.ioreq import GRANT_STATUS_INDEX
from hmx.memory import PAGE_SIZE

_BUSY: Final = GrantFlag.READING | GrantFlag.WRITING


class GrantTable:
    """`frames` pages of entries, placed in the guest's memory.  Raises XenRefused, MemoryError."""

    def __init__(self, xen: XenCalls, frames: int = 4) -> None:
        memory = xen.memory
        entries = frames * grants.ENTRIES_PER_FRAME
        statuses = -(-entries // grants.STATUSES_PER_FRAME)
        first = memory.pages.allocate(frames + statuses)
        for at in range(frames):
            xen.place_grant_frame(at, first + at)
        for at in range(statuses):
            xen.place_grant_frame(GRANT_STATUS_INDEX | at, first + frames + at)
        self._entries = memory.window(first * PAGE_SIZE, frames * PAGE_SIZE)
        self._status = memory.window((first + frames) * PAGE_SIZE, statuses * PAGE_SIZE)
        self._free = PageAllocator(entries)
        self._free.allocate(grants.RESERVED_ENTRIES - 1)  # the allocator keeps the first one itself

    def grant(self, domid: int, frames: Sequence[int], readonly: bool = False) -> int:
        """Let `domid` use pages; the first of as many references in a row.  MemoryError when there are none."""
        first = self._free.allocate(len(frames))
        flags = GrantFlag.PERMIT_ACCESS | (GrantFlag.READONLY if readonly else 0)
        for gref, frame in enumerate(frames, first):
            at = gref * grants.ENTRY.size
            self._entries.store32(at + 4, frame)
            self._entries.publish()  # the frame before the flags that make it count
            self._entries.store32(at, domid << 16 | flags)
        self._entries.publish()
        return first

    def revoke(self, first: int, count: int) -> bool:
        """Take references back.  False: some are in use; those stay with whom they were granted to, for ever, and are
        not given out again.
        """
        for gref in range(first, first + count):
            self._entries.store32(gref * grants.ENTRY.size, 0)
        self._entries.publish()
        free = True
        for gref in range(first, first + count):
            if self.busy(gref):
                free = False
            else:
                self._free.release(gref, 1)
        return free

    def busy(self, gref: int) -> bool:
        """Whether somebody uses the page."""
        word = self._status.load32(gref * grants.STATUS.size & ~3)
        return bool(word >> 16 * (gref & 1) & _BUSY)
