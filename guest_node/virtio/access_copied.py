"""Reaching a front end's memory by the hypervisor's copies: what grants that are copied and the DMA call share.

Looking at an index is not worth a hypercall, so the areas of queues may be mapped by another way.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from guest_node.kernel.pages import pages_for
from guest_node.virtio.access import MappedAccess, RemoteMemory, pages_of
from guest_node.virtio.xen_calls import XenCalls
from hmx.memory import PAGE_SIZE
from hmx.virtio.chain import Segment
from hmx.virtio.memory import Buffer


class CopiedAccess(RemoteMemory):
    """Ways by which the hypervisor copies buffers.  `rings` maps the areas of queues; without, they are copied too."""

    maps_payload = False

    def __init__(self, xen: XenCalls, target: int, rings: MappedAccess | None, bounce: int) -> None:
        """`bounce`: bytes of our memory that a copy goes through."""
        super().__init__()
        self._xen = xen
        self._target = target
        self._rings = rings
        if rings is not None:
            rings.counters = self.counters
        self._held: set[int] = set()
        self._bounce = xen.memory.pages.allocate(pages_for(bounce)) * PAGE_SIZE

    @abstractmethod
    def _steps(self, address: int, size: int) -> Iterable[tuple[int, int]]:
        """(address, bytes) of the copies that a range takes.  BadAddress for one that cannot be."""

    @abstractmethod
    def _copy(self, address: int, size: int, *, store: bool) -> None:
        """Copy a step between there and the bounce buffer.  BadAddress."""

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
        """By as few copies as the bounce buffer allows; pages of a queue by their mapping."""
        ring = self._ring(address)
        if ring is not None:
            return ring.read(address, size)
        return b"".join([self._fetch(at, length) for at, length in self._steps(address, size)])

    def write(self, address: int, data: Buffer) -> None:
        """The same."""
        ring = self._ring(address)
        if ring is not None:
            ring.write(address, data)
            return
        view = memoryview(data)
        for at, length in self._steps(address, len(data)):
            self._store(at, view[at - address : at - address + length])

    def _fetch(self, address: int, size: int) -> bytes:
        self._copy(address, size, store=False)
        return bytes(self._xen.memory.buffer[self._bounce : self._bounce + size])

    def _store(self, address: int, data: Buffer) -> None:
        self._xen.memory.buffer[self._bounce : self._bounce + len(data)] = data
        self._copy(address, len(data), store=True)

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
