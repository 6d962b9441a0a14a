"""The driver's end of a virtqueue in the guest's own memory: where it lies, its buffers, and who waits for what.

Source: VIRTIO 1.4, 2.6 to 2.9.  Buffers are copied into pages of the guest that the device can reach: a program's bytes
lie outside its guest's RAM.  Whoever reaches those pages from elsewhere is counted there, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.pages import pages_for
from guest_node.virtio.frontend import Buffer, DeviceBroken
from guest_node.virtio.grant_table import GrantTable
from guest_node.virtio.iommu_front import Arena
from hmx.errno import Errno
from hmx.grants import dma_address
from hmx.memory import PAGE_SIZE
from hmx.virtio.chain import QueueBroken, QueueFull, Segment
from hmx.virtio.features import Feature, has
from hmx.virtio.memory import FlatMemory
from hmx.virtio.queues import driver_queue, notification, queue_area, queue_bytes

_TABLE: Final = 8  # descriptors of a chain's indirect table, where that was negotiated and nothing else asked for


class Piece(NamedTuple):
    """Pages of the guest as the device knows them: first frame, how many, the device's address, first grant."""

    frame: int
    pages: int
    address: int
    gref: int | None


class Placement:
    """Where queues and buffers of one device come from: anywhere, or an arena behind an IOMMU; with grants, granted to
    whom.
    """

    def __init__(
        self, memory: GuestMemoryView, grants: GrantTable | None, backend: int, entries: int, arena: Arena | None
    ) -> None:
        self.memory = memory
        self.entries = entries
        self.stuck = 0  # pages that the back end still used when they were revoked: they are lost
        self.under_way = 0  # chains of all queues
        self._waiting: list[asyncio.Future[None]] = []  # for one of them to come back
        self._arena = arena
        self._grants = grants
        self._backend = backend

    def take(self, size: int, granted: bool, readonly: bool = False) -> Piece:
        """Pages for `size` bytes.  MemoryError when there are none."""
        pages = pages_for(size)
        if granted and self._arena is not None:
            frame = self._arena.take(pages)
            return Piece(frame, pages, self._arena.address(frame), None)
        frame = self.memory.pages.allocate(pages)
        if not granted or self._grants is None:
            return Piece(frame, pages, frame * PAGE_SIZE, None)
        try:
            gref = self._grants.grant(self._backend, range(frame, frame + pages), readonly)
        except MemoryError:
            self.memory.pages.release(frame, pages)
            raise
        return Piece(frame, pages, dma_address(gref), gref)

    def give_back(self, piece: Piece) -> None:
        """The device has no business there any more.  Pages that it still has in use are not used again."""
        if piece.gref is not None and self._grants is not None and not self._grants.revoke(piece.gref, piece.pages):
            self.stuck += piece.pages
        elif self._arena is not None and piece.address != piece.frame * PAGE_SIZE:
            self._arena.give_back(piece.frame, piece.pages)
        else:
            self.memory.pages.release(piece.frame, piece.pages)

    def room(self) -> asyncio.Future[None]:
        """Done when a chain of any queue has come back: they share the pages."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return waiter

    def came_back(self) -> None:
        """A chain has."""
        self.under_way -= 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class _Chain:
    """One submission: its pages and who waits for the answer."""

    __slots__ = ("answer", "future", "pieces", "writable")

    def __init__(self, future: asyncio.Future[bytes], pieces: list[Piece], answer: int, writable: int) -> None:
        self.future = future
        self.pieces = pieces
        self.answer = answer  # guest physical address of the writable part
        self.writable = writable


class MmioQueue:
    """A `Queue` of guest_node.virtio.frontend.  `notify(value)` writes QueueNotify."""

    def __init__(
        self, index: int, size: int, features: int, place: Placement, notify: Callable[[int], Awaitable[None]]
    ) -> None:
        if not has(features, Feature.RING_PACKED):
            size = 1 << size.bit_length() - 1
        self.index = index
        self.size = size
        self._features = features
        self._place = place
        self._notify = notify
        self._granted = has(features, Feature.ACCESS_PLATFORM)
        entries = (place.entries or _TABLE) if has(features, Feature.RING_INDIRECT_DESC) else 0
        self._area = place.take(queue_bytes(size, features, entries), self._granted)
        start, length = self._area.frame * PAGE_SIZE, self._area.pages * PAGE_SIZE
        memory = FlatMemory(place.memory.buffer[start : start + length], self._area.address)
        area = queue_area(size, features, self._area.address, entries)
        self.layout = area.layout
        self._queue = driver_queue(area.layout, features, memory, area.indirect)
        self._chains: dict[int, _Chain] = {}
        self._next = 0
        self._room: list[asyncio.Future[None]] = []
        self._why: DeviceBroken | None = None
        self._queue.want_interrupts(True)

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        """One chain: a segment for each readable buffer, one for what the device writes.  OSError ENOMEM: no chain can
        come back that would make room.
        """
        if self._why is not None:
            raise DeviceBroken(self._why.errno, self._why.strerror)
        pieces: list[Piece] = []
        buffers = [buffer for buffer in readable if len(buffer)]
        ram, answer = self._place.memory.buffer, 0
        inputs: list[Segment] = []
        outputs: list[Segment] = []
        try:
            if buffers:
                piece = self._place.take(sum(map(len, buffers)), self._granted, readonly=True)
                pieces.append(piece)
                at = 0
                for buffer in buffers:
                    start = piece.frame * PAGE_SIZE + at
                    ram[start : start + len(buffer)] = buffer
                    inputs.append(Segment(piece.address + at, len(buffer)))
                    at += len(buffer)
            if writable:
                piece = self._place.take(writable, self._granted)
                pieces.append(piece)
                answer = piece.frame * PAGE_SIZE
                outputs.append(Segment(piece.address, writable))
            token, self._next = self._next, self._next + 1
            self._queue.add(inputs, outputs, token)
        except BaseException as error:
            for piece in pieces:
                self._place.give_back(piece)
            if isinstance(error, MemoryError):
                if not self._place.under_way:
                    raise OSError(Errno.ENOMEM, f"a request finds no pages in this guest: {error}") from None
                raise QueueFull("the guest has no pages left for buffers") from None
            raise
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._chains[token] = _Chain(future, pieces, answer, writable)
        self._place.under_way += 1
        return future

    async def kick(self) -> None:
        """Publish, and write QueueNotify if the device wants that."""
        if self._why is None and self._queue.publish():
            await self._notify(notification(self.index, self._queue, self._features))

    async def room(self) -> None:
        """Until a chain comes back."""
        if self._why is not None:
            raise DeviceBroken(self._why.errno, self._why.strerror)
        waiter = self._place.room()
        self._room = [*(waiting for waiting in self._room if not waiting.done()), waiter]
        await waiter

    def collect(self) -> None:
        """An interrupt said that buffers were used."""
        try:
            while self._why is None:
                while (used := self._queue.take()) is not None:
                    self._answered(used.token, used.written)
                if not self._queue.want_interrupts(True):
                    return
        except QueueBroken as why:
            self.end(DeviceBroken(Errno.EIO, f"queue {self.index}: {why}"))

    def _answered(self, token: object, written: int) -> None:
        assert isinstance(token, int)
        chain = self._chains.pop(token)
        data = bytes(self._place.memory.buffer[chain.answer : chain.answer + written])
        for piece in chain.pieces:
            self._place.give_back(piece)
        if not chain.future.done():
            chain.future.set_result(data)
        self._place.came_back()

    def end(self, why: DeviceBroken) -> None:
        """The queue is no more: who waits is told why, and its pages are given back."""
        if self._why is not None:
            return
        self._why = why
        for chain in self._chains.values():
            for piece in chain.pieces:
                self._place.give_back(piece)
            self._place.came_back()
            if not chain.future.done():
                chain.future.set_exception(DeviceBroken(why.errno, why.strerror))
                chain.future.exception()  # whoever does not wait any more is not reminded of it
        self._chains.clear()
        self._place.give_back(self._area)
        for waiter in self._room:
            if not waiter.done():
                waiter.set_exception(DeviceBroken(why.errno, why.strerror))
        self._room.clear()
