"""Reaching a front end's memory by the proposed DMA operation: the hypervisor copies, nothing of a buffer is mapped.

Experimental, not upstream (hmx/ioreq.py, Dmop.DMA).  The areas of queues may be mapped by another way all the same
(`rings`), since looking at an index is not worth a hypercall; without one each look is a call of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from guest_node.virtio.access import MappedAccess
from guest_node.virtio.access_copied import CopiedAccess
from guest_node.virtio.xen_calls import XenCalls, XenRefused
from hmx.ioreq import DMA_MAX, DmaFlag, Dmop
from hmx.virtio.memory import BadAddress


class DmaAccess(CopiedAccess):
    """Addresses as the target's IOMMU has them for `endpoint`, or guest physical ones where it has none."""

    def __init__(self, xen: XenCalls, target: int, rings: MappedAccess | None = None, endpoint: int = 0) -> None:
        super().__init__(xen, target, rings, DMA_MAX)
        self._endpoint = endpoint

    def _steps(self, address: int, size: int) -> Iterable[tuple[int, int]]:
        return [(address + done, min(DMA_MAX, size - done)) for done in range(0, size, DMA_MAX)]

    def _copy(self, address: int, size: int, *, store: bool) -> None:
        if not 0 <= address < 1 << 64:
            raise BadAddress(address, size)
        self.counters.hypercalls += 1
        flags = DmaFlag.STORE if store else 0
        try:
            self._xen.dm_op(
                self._target, Dmop.DMA, address, size, flags, self._endpoint, second=(self._bounce, DMA_MAX)
            )
        except XenRefused:
            raise BadAddress(address, size) from None
        self.counters.copied_by_hypervisor += size
