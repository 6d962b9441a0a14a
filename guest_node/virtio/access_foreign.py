"""Reaching a front end's memory by foreign mapping: a device model's right over its whole target.

Pages are mapped by XENMEM_add_to_physmap_batch, as many as are needed in one call, and unmapped one by one, since
XENMEM_remove_from_physmap takes one.  Sources: Xen public/memory.h; Linux drivers/xen/privcmd.c, xlate_mmu.c.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest_node.virtio.access import MappedAccess
from guest_node.virtio.xen_calls import MAP_BATCH, XenCalls, XenRefused
from hmx.memory import PAGE_SIZE
from hmx.virtio.memory import BadAddress


class ForeignAccess(MappedAccess):
    """Guest physical addresses of domain `target`."""

    def __init__(self, xen: XenCalls, target: int, keep: bool = False) -> None:
        super().__init__(xen, target, keep)
        self._frames: dict[int, int] = {}

    def _map(self, pages: Sequence[int]) -> None:
        bad: int | None = None
        for start in range(0, len(pages), MAP_BATCH):
            pairs = [(self.frame(), page) for page in pages[start : start + MAP_BATCH]]
            self.counters.hypercalls += 1
            try:
                errors = self._xen.map_foreign(self._target, pairs)
            except XenRefused:
                errors = [-1] * len(pairs)
            for (frame, page), error in zip(pairs, errors, strict=True):
                if error:
                    self.free_frame(frame)
                    bad = page if bad is None else bad
                else:
                    self.counters.maps += 1
                    self._frames[page] = frame
                    self._mapped[page] = page * PAGE_SIZE
            if bad is not None:
                raise BadAddress(bad * PAGE_SIZE, PAGE_SIZE)

    def _unmap(self, pages: Sequence[int]) -> None:
        for page in pages:
            del self._mapped[page]
            frame = self._frames.pop(page)
            self.counters.hypercalls += 1
            self._xen.unmap(frame)
            self.counters.unmaps += 1
            self.free_frame(frame)
