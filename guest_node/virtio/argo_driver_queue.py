"""The driver's end of one virtqueue over VirtIO-Argo.

The queue lies in an image of this side's own (argo_image.py).  Buffers have no addresses: for the device to read they
are bytes of a stream, numbered from the queue's beginning; for the device to write each chain has a number in the upper
half of a 64-bit handle.  Credit: a chain counts with its bytes from `submit` until its answer is there, and what does
not fit the window, or this queue's share of our ring, is QueueFull until answers come; so a device's answers find room.
Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from guest_node.virtio.argo_hold import Hold
from guest_node.virtio.argo_image import RingImage, plan_image
from guest_node.virtio.argo_pack import Batch, Payload, Pieces
from guest_node.virtio.frontend import Buffer, DeviceBroken
from hmx.virtio.argo import HEAD_SIZE, PIECE_SIZE, RANGE_SIZE, Update
from hmx.virtio.chain import QueueBroken, QueueFull, QueueLayout
from hmx.virtio.memory import BadAddress
from hmx.virtio.queues import driver_queue
from hmx.virtio.rings import make_segment

HANDLE_BITS: Final = 32  # of a writable handle, the offset in the chain's answer
_MASK64: Final = (1 << 64) - 1
_MASK32: Final = (1 << 32) - 1
ANSWER_OVERHEAD: Final = 16 + HEAD_SIZE + PIECE_SIZE + 3 * RANGE_SIZE + 32  # ring bytes of an answer beside its bytes
REQUEST_OVERHEAD: Final = 64


class Owner(Protocol):
    """The transport, as its queues know it."""

    async def flush(self, fresh: int, lonely: bool) -> None:
        """Send what the queues have to say: `fresh` chains.  `lonely`: nothing else of that queue is under way."""

    def wake(self) -> None:
        """The same, from where nobody may wait."""

    def broke(self, why: str) -> DeviceBroken:
        """The device broke a rule: every queue of it ends with what this returns."""


class _Pending:
    """One chain under way: `data` is what has come of its answer."""

    __slots__ = ("answer", "cost", "data", "future", "number", "request", "room")

    def __init__(self, future: asyncio.Future[bytes], number: int, request: int, room: int) -> None:
        self.future = future
        self.number = number
        self.request = request
        self.room = room
        self.cost = room + ANSWER_OVERHEAD
        self.data: bytes | bytearray = b""


class ArgoQueue:
    """guest_node.virtio.frontend.Queue; made by ArgoTransport.setup_queue.

    `window`: the most bytes under way each way, and of one chain; `share`: bytes of our ring that answers may fill
    (a single chain may want more: its answer then comes in pieces).
    """

    def __init__(
        self, owner: Owner, dev_num: int, index: int, size: int, features: int, window: int, share: int
    ) -> None:
        plan = plan_image(size, features)
        self.size = size
        self.layout: QueueLayout = plan.layout
        self.window = window
        self.broken: DeviceBroken | None = None
        self._owner = owner
        self._dev_num = dev_num
        self._index = index
        self._areas = plan.device
        self._image = RingImage(plan.size)
        self._ring = driver_queue(plan.layout, features, self._image)
        self._image.forget()  # both sides begin with zeros
        self._hold = Hold(self._image, plan.layout, features, True, self._let_go)
        self._share = share
        self._future = asyncio.get_running_loop().create_future
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._stream = 0  # bytes for the device that were submitted: the address of the next one
        self._requests = 0  # bytes under way for the device
        self._answers = 0  # bytes of our ring that answers under way may take
        self._fresh = 0  # chains submitted since the last kick
        self._unsent = 0  # ... of them that were not sent
        self._payload: Payload = []
        self._kicked = False
        self._room: asyncio.Future[None] | None = None
        self._came_back = False  # a chain, since QueueFull was raised

    # -- Queue ----

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        """Add one chain.  The buffers must not change until the future is done: no copy of them is made."""
        if self.broken is not None:
            raise self.broken
        request = len(readable[0]) if len(readable) == 1 else sum(map(len, readable))
        if request > self.window or writable > self.window:
            raise ValueError(f"a chain of {request} and {writable} bytes; the device takes {self.window} each way")
        pendings = self._pending
        if pendings and (
            self._answers + writable + ANSWER_OVERHEAD > self._share
            or self._requests + request > self.window
            or self._answers - ANSWER_OVERHEAD * len(pendings) + writable > self.window
        ):
            self._came_back = False
            raise QueueFull(f"{self._requests} and {self._answers} bytes are under way")
        number, stream = self._number, self._stream
        pending = _Pending(self._future(), number, request, writable)
        read = (make_segment((stream, request)),) if request else ()
        write = (make_segment((number << HANDLE_BITS, writable)),) if writable else ()
        try:
            self._ring.add(read, write, pending)
        except QueueFull:
            self._came_back = False
            raise
        except QueueBroken as why:
            raise self._break(str(why)) from why
        self._number = number + 1 & _MASK32
        pendings[number] = pending
        self._answers += pending.cost
        self._fresh += 1
        if request:
            self._requests += request
            self._unsent += request
            self._payload += readable
            self._stream = stream + request & _MASK64
        return pending.future

    async def kick(self) -> None:
        """Make everything submitted available, and send it.  Raises DeviceBroken."""
        if self.broken is not None:
            raise self.broken
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, 0
        self._kicked = True
        await self._owner.flush(fresh, fresh == len(self._pending))
        if self.broken is not None:
            raise self.broken

    async def room(self) -> None:
        """Return when a chain has come back since the last submit that raised QueueFull.  Raises DeviceBroken."""
        while not self._came_back:
            if self.broken is not None:
                raise self.broken
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    # -- for the transport ----

    def gather(self) -> Batch | None:
        """What was kicked and not sent."""
        if not self._kicked or self.broken is not None:
            return None
        self._kicked = False
        self._fresh = 0
        try:
            self._ring.publish()
        except QueueBroken as why:
            self._break(str(why))
            return None
        if self._hold.holds(self._ring.notification_data()):
            return None
        pieces: Pieces = []
        payload, unsent = self._payload, self._unsent
        if unsent:
            pieces.append((self._stream - unsent & _MASK64, unsent))
            self._unsent, self._payload = 0, []
        return Batch(self._dev_num, self._index, self._image.changes(), pieces, payload)

    def receive(self, update: Update) -> int:
        """Apply what the device changed, and wake whoever got an answer; how many did."""
        if self.broken is not None:
            return 0
        try:
            for handle, data in update.pieces:
                self._arrived(handle, data)
            self._image.apply(update.ranges, self._areas)
            if update.more or not update.ranges:
                return 0
            count = self._take()
            self._hold.reconsider(self._ring.notification_data())
            return count
        except (QueueBroken, BadAddress) as why:
            self._break(str(why))
            return 0

    def _let_go(self) -> None:
        """What was held back is to be sent now."""
        if self.broken is None:
            self._kicked = True
            self._owner.wake()

    def _arrived(self, handle: int, data: memoryview) -> None:
        """Bytes of an answer: they come without gaps, from the first on."""
        pending = self._pending.get(handle >> HANDLE_BITS)
        if pending is None:
            raise QueueBroken(f"{len(data)} bytes for handle {handle:#x}, which is not under way")
        have = len(pending.data)
        if handle & _MASK32 != have or have + len(data) > pending.room:
            raise QueueBroken(
                f"{len(data)} bytes for handle {handle:#x}, after {have} bytes of an answer of at most {pending.room}"
            )
        if not have:
            pending.data = bytes(data)
        else:
            if isinstance(pending.data, bytes):
                pending.data = bytearray(pending.data)
            pending.data += data

    def _take(self) -> int:
        """Everything that the used ring says came back."""
        take, pendings = self._ring.take, self._pending
        count = 0
        while True:
            used = take()
            if used is None:
                break
            pending, written = used
            assert isinstance(pending, _Pending)
            data = pending.data
            if len(data) != written:
                if len(data) < written:
                    raise QueueBroken(f"{written} bytes are said to be written, {len(data)} of them came")
                data = data[:written]
            del pendings[pending.number]
            self._requests -= pending.request
            self._answers -= pending.cost
            count += 1
            if not pending.future.done():
                pending.future.set_result(bytes(data))
        if count:
            self._came_back = True
            self._wake()
        return count

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _break(self, why: str) -> DeviceBroken:
        return self._owner.broke(f"queue {self._index}: {why}")

    def end(self, cause: DeviceBroken) -> None:
        """Nothing comes any more: whoever waits is told `cause`."""
        if self.broken is not None:
            return
        self.broken = cause
        self._hold.end()
        pendings, self._pending = self._pending, {}
        self._unsent, self._payload = 0, []
        for pending in pendings.values():
            future = pending.future
            if not future.done():
                future.set_exception(cause)
                future.exception()  # nobody may be waiting any more
        self._wake()

    @property
    def under_way(self) -> int:
        """Chains that have not come back."""
        return len(self._pending)
