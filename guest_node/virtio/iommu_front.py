"""The driver of a virtio-iommu, and memory that devices behind it may reach.

Source: VIRTIO 1.4, 5.13.  A device's queues and buffers come from one arena of the guest's pages, which is mapped once,
as Linux' swiotlb keeps them together: submitting a request waits for nobody, and the device reaches the arena alone.
"""

from __future__ import annotations

import errno
from typing import Final

from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.pages import PageAllocator
from guest_node.virtio.drivers.negotiate import Wants, negotiate, queues_of
from guest_node.virtio.frontend import Queue, Transport
from hmx.memory import PAGE_SIZE
from hmx.virtio.features import feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.iommu import (
    FEATURES,
    TAIL_SIZE,
    Attach,
    Detach,
    IommuFeature,
    IommuStatus,
    Map,
    MapFlag,
    Request,
    Unmap,
    pack_request,
    unpack_tail,
)
from hmx.virtio.layout import LayoutError

QUEUE_SIZE: Final = 16
FIRST_IOVA: Final = 1 << 32  # of the first arena: no guest physical address, so that none is taken for the other
WANTS: Final = Wants(DeviceId.IOMMU, required=feature_set(IommuFeature.MAP_UNMAP), wanted=0, rows=FEATURES)


class IommuDriver:
    """`start` it, then make arenas."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: Queue | None = None
        self._next = FIRST_IOVA

    async def start(self) -> None:
        """Initialise the device.  Raises OSError."""

        async def setup(_features: int) -> list[Queue]:
            return await queues_of(self._transport, 1, QUEUE_SIZE)

        _, (self._queue,) = await negotiate(self._transport, WANTS, setup)

    async def request(self, request: Request) -> IommuStatus:
        """One request; IOERR if the device does not answer it."""
        if self._queue is None:
            raise OSError(errno.ENOTCONN, "the IOMMU is not started")
        answer = self._queue.submit([pack_request(request)], TAIL_SIZE)
        await self._queue.kick()
        try:
            return unpack_tail(await answer)
        except LayoutError:
            return IommuStatus.IOERR

    async def _must(self, request: Request) -> None:
        status = await self.request(request)
        if status is not IommuStatus.OK:
            raise OSError(errno.EIO, f"{type(request).__name__} was answered {status.name}")

    async def arena(self, memory: GuestMemoryView, endpoint: int, pages: int) -> Arena:
        """Memory for the device that is `endpoint`, in a domain of its own.  Raises OSError, MemoryError."""
        first = memory.pages.allocate(pages)
        base, self._next = self._next, self._next + (pages + 1) * PAGE_SIZE
        try:
            await self._must(Attach(endpoint, endpoint))
            end = base + pages * PAGE_SIZE - 1
            await self._must(Map(endpoint, base, end, first * PAGE_SIZE, int(MapFlag.READ | MapFlag.WRITE)))
        except OSError:
            memory.pages.release(first, pages)
            raise
        return Arena(first, pages, base)

    async def end(self, memory: GuestMemoryView, endpoint: int, arena: Arena) -> None:
        """Take an arena back: its device has been reset."""
        await self._must(Unmap(endpoint, arena.base, arena.base + arena.pages * PAGE_SIZE - 1))
        await self._must(Detach(endpoint, endpoint))
        memory.pages.release(arena.first, arena.pages)


class Arena:
    """`pages` frames from `first` on, at `base` in the device's addresses."""

    def __init__(self, first: int, pages: int, base: int) -> None:
        self.first = first
        self.pages = pages
        self.base = base
        self._free = PageAllocator(pages + 1)  # which keeps its own first

    def take(self, pages: int) -> int:
        """The first of so many frames.  MemoryError when there are none."""
        return self.first + self._free.allocate(pages) - 1

    def give_back(self, frame: int, pages: int) -> None:
        """They are free again."""
        self._free.release(frame - self.first + 1, pages)

    def address(self, frame: int) -> int:
        """What the device calls a frame."""
        return self.base + (frame - self.first) * PAGE_SIZE
