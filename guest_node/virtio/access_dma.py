"""Reaching a front end's memory by the proposed DMA operation: the hypervisor copies, nothing of a buffer is mapped.

Experimental, not upstream (hmx/ioreq.py, Dmop.DMA).  The areas of queues may be mapped by another way all the same
(`rings`), since looking at an index is not worth a hypercall; without one each look is a call of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest_node.kernel.pages import pages_for
from guest_node.virtio.access import MappedAccess, RemoteMemory, pages_of
from guest_node.virtio.xen_calls import XenCalls, XenRefused
from hmx.ioreq import DMA_MAX, DmaFlag, Dmop
from hmx.memory import PAGE_SIZE
from hmx.virtio.chain import Segment
from hmx.virtio.memory import BadAddress, Buffer


class DmaAccess(RemoteMemory):
    """Addresses as the target's IOMMU has them for `endpoint`, or guest physical ones where it has none."""

    maps_payload = False

    def __init__(self, xen: XenCalls, target: int, rings: MappedAccess | None = None, endpoint: int = 0) -> None:
        super().__init__()
        self._xen = xen
        self._target = target
        self._endpoint = endpoint
        self._rings = rings
        if rings is not None:
            rings.counters = self.counters
        self._held: set[int] = set()
        self._bounce = xen.memory.pages.allocate(pages_for(DMA_MAX)) * PAGE_SIZE

    def _ring(self, address: int) -> MappedAccess | None:
        return self._rings if address // PAGE_SIZE in self._held else None

    def load16(self, address: int) -> int:
        """By the mapping of the queue, or by a copy."""
        ring = self._ring(address)
        return ring.load16(address) if ring is not None else int.from_bytes(self._fetch(address, 2), "little")

    def store16(self, address: int, value: int) -> None:
        """The same."""
        ring = self._ring(address)
        if ring is not None:
            ring.store16(address, value)
        else:
            self._store(address, value.to_bytes(2, "little"))

    def read(self, address: int, size: int) -> bytes:
        """By copies of at most DMA_MAX bytes; pages of a queue by their mapping."""
        ring = self._ring(address)
        if ring is not None:
            return ring.read(address, size)
        return b"".join([self._fetch(at, length) for at, length in _steps(address, size)])

    def write(self, address: int, data: Buffer) -> None:
        """The same."""
        ring = self._ring(address)
        if ring is not None:
            ring.write(address, data)
            return
        for at, length in _steps(address, len(data)):
            self._store(at, memoryview(data)[at - address : at - address + length])

    def _fetch(self, address: int, size: int) -> bytes:
        self._copy(address, size, 0)
        return bytes(self._xen.memory.buffer[self._bounce : self._bounce + size])

    def _store(self, address: int, data: Buffer) -> None:
        self._xen.memory.buffer[self._bounce : self._bounce + len(data)] = data
        self._copy(address, len(data), DmaFlag.STORE)

    def _copy(self, address: int, size: int, flags: int) -> None:
        if not 0 <= address < 1 << 64:
            raise BadAddress(address, size)
        self.counters.hypercalls += 1
        try:
            self._xen.dm_op(
                self._target, Dmop.DMA, address, size, flags, self._endpoint, second=(self._bounce, DMA_MAX)
            )
        except XenRefused:
            raise BadAddress(address, size) from None
        self.counters.copied_by_hypervisor += size

    def hold(self, areas: Sequence[Segment]) -> None:
        """Map the areas of a queue, if there is a way to."""
        if self._rings is not None:
            self._rings.hold(areas)
            self._held.update(pages_of(areas))

    def drop(self, areas: Sequence[Segment]) -> None:
        """Unmap them."""
        if self._rings is not None:
            self._rings.drop(areas)
            self._held = {page for page in self._held if self._rings.is_mapped(page)}

    def borrow(self, segments: Sequence[Segment]) -> None:
        """Nothing to do: an address is judged when it is used."""

    def give_back(self, segments: Sequence[Segment]) -> None:
        """Nothing to do."""

    def drop_all(self) -> None:
        """Unmap all queues."""
        self._held.clear()
        if self._rings is not None:
            self._rings.drop_all()


def _steps(address: int, size: int) -> list[tuple[int, int]]:
    return [(address + done, min(DMA_MAX, size - done)) for done in range(0, size, DMA_MAX)]
