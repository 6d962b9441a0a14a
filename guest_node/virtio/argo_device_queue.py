"""The device's end of one virtqueue over VirtIO-Argo.

What the driver sends is applied to this side's image; chains are popped there, get the bytes that came for them, and go
to the model.  The driver is not trusted: bytes must come in the order of the stream that their addresses number, never
more than the window holds, and whatever else is wrong is QueueBroken.  Answers collect until the outbox asks for them.
Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from guest_node.virtio.argo_hold import Hold
from guest_node.virtio.argo_image import RingImage, plan_image
from guest_node.virtio.argo_pack import Batch, Payload, Pieces
from guest_node.virtio.model import Request
from hmx.virtio.argo import Update
from hmx.virtio.chain import Chain, QueueBroken
from hmx.virtio.features import Feature, has
from hmx.virtio.memory import BadAddress, Buffer
from hmx.virtio.queues import device_queue
from hmx.virtio.rings import offset_of
from hmx.virtio.split import RING_FIELDS

INDEX: Final = offset_of(RING_FIELDS, "idx")
_MASK64: Final = (1 << 64) - 1
_CRUMBS: Final = 4096


class Host(Protocol):
    """The device, as its queues know it."""

    def serve(self, request: Request) -> None:
        """Give a request to the model."""

    def answered(self, queue: DeviceSide) -> None:
        """`queue` has something to say."""

    def broke(self, why: str) -> None:
        """The driver broke a rule."""


class ArgoRequest:
    """guest_node.virtio.model.Request."""

    __slots__ = ("_chain", "_owner", "queue", "readable", "writable")

    def __init__(self, owner: DeviceSide, chain: Chain, readable: bytes | memoryview, writable: int) -> None:
        self.queue = owner.index
        self.readable = readable
        self.writable = writable
        self._owner: DeviceSide | None = owner
        self._chain = chain

    def complete(self, written: bytes | memoryview = b"") -> None:
        """Return the chain with these bytes.  ValueError for more than there is room for, RuntimeError when done."""
        owner = self._owner
        if owner is None:
            raise RuntimeError("this request was completed before")
        if len(written) > self.writable:
            raise ValueError(f"{len(written)} bytes for a chain with room for {self.writable}")
        self._owner = None
        owner.complete(self._chain, len(self.readable), written)


class DeviceSide:
    """One queue of `size` descriptors; ValueError for a size that the format does not allow."""

    def __init__(self, host: Host, dev_num: int, index: int, size: int, features: int, window: int) -> None:
        plan = plan_image(size, features)
        self.index = index
        self._host = host
        self._dev_num = dev_num
        self._size = size
        self._window = window
        self._areas = plan.driver
        self._used_index = plan.layout.device + INDEX
        self._image = RingImage(plan.size)
        self._ring = device_queue(plan.layout, features, self._image)
        self._hold = Hold(self._image, plan.layout, features, False, self._let_go)
        self._packed = has(features, Feature.RING_PACKED)
        self._ended = False
        self._stream: deque[memoryview] = deque()  # what came and no chain has taken
        self._at = 0  # bytes of its first part that chains have taken
        self._came = 0  # position in the stream of the next byte that comes
        self._taken = 0  # ... that a chain takes
        self._held = 0  # bytes that came and were not answered
        self._room = 0  # bytes that chains under way have room for
        self._pushed = False
        self._pieces: Pieces = []
        self._payload: Payload = []

    def receive(self, update: Update) -> bool:
        """Apply what the driver changed.  Whether chains may have become available.  Raises QueueBroken."""
        try:
            for handle, data in update.pieces:
                if handle != self._came:
                    raise QueueBroken(f"bytes from {handle:#x} of the stream on came where {self._came:#x} was due")
                self._held += len(data)
                if self._held > self._window:
                    raise QueueBroken(f"{self._held} bytes under way; the window is {self._window}")
                if data:
                    self._keep(bytes(data))
                    self._came = handle + len(data) & _MASK64
            self._image.apply(update.ranges, self._areas)
            self._hold.reconsider(self._shown())
        except BadAddress as why:
            raise QueueBroken(str(why)) from None
        return bool(update.ranges) and not update.more

    def _keep(self, data: bytes) -> None:
        """Append to the stream.  Crumbs are joined: each piece costs more memory than its bytes."""
        stream = self._stream
        if stream and len(data) + len(stream[-1]) <= _CRUMBS:
            data = bytes(stream.pop()) + data
        stream.append(memoryview(data))

    def run(self, running: Callable[[], bool]) -> None:
        """Serve every chain that is available, as long as `running()`.  Raises QueueBroken."""
        pop, serve = self._ring.pop, self._host.serve
        try:
            while not self._ended and running():
                chain = pop()
                if chain is None:
                    return
                _, _, readable, writable = chain
                size = 0
                for address, length in readable:
                    if address != self._taken + size & _MASK64:
                        raise QueueBroken(f"a buffer at {address:#x} of the stream; {self._taken + size:#x} is next")
                    size += length
                room = 0
                for _, length in writable:
                    room += length
                self._room += room
                if self._room > self._window:
                    raise QueueBroken(f"chains with room for {self._room} bytes; the window is {self._window}")
                serve(ArgoRequest(self, chain, self._take(size) if size else b"", room))
        except BadAddress as why:
            raise QueueBroken(str(why)) from None

    def _take(self, size: int) -> bytes | memoryview:
        """The next `size` bytes of the stream, at least one."""
        if size > (self._came - self._taken & _MASK64):
            raise QueueBroken(f"a chain of {size} bytes; {self._came - self._taken & _MASK64} came")
        self._taken = self._taken + size & _MASK64
        stream, at = self._stream, self._at
        first = stream[0]
        end = at + size
        if end < len(first):
            self._at = end
            return first[at:end]
        stream.popleft()
        self._at = 0
        if end == len(first):
            return first[at:] if at else first
        parts = [first[at:]]
        size = end - len(first)
        while size:
            part = stream[0]
            if len(part) > size:
                part = part[:size]
                self._at = size
            else:
                stream.popleft()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def complete(self, chain: Chain, request: int, written: Buffer) -> None:
        """A request was answered."""
        if self._ended:
            return
        length = len(written)
        try:
            self._ring.push(chain, length)
        except QueueBroken as why:
            self._host.broke(str(why))
            return
        self._held -= request
        left = length
        for address, size in chain.writable:
            self._room -= size
            if left:
                size = min(size, left)
                self._pieces.append((address, size))
                left -= size
        if length:
            self._payload.append(written if isinstance(written, bytes) else bytes(written))
        if not self._pushed:
            self._pushed = True
            self._host.answered(self)

    def gather(self) -> Batch | None:
        """What was answered and not sent."""
        if not self._pushed or self._ended:
            return None
        self._pushed = False
        try:
            self._ring.publish()
        except QueueBroken as why:
            self._host.broke(str(why))
            return None
        if self._hold.holds(self._shown()):
            return None
        # While the model has plenty, new buffers need not be told of one by one.
        plenty = 2 * self._ring.in_flight >= self._size > 3
        self._hold.ask(self._ring.position & 0xFFFF, self._size // 4 if plenty else 0)
        pieces, payload = self._pieces, self._payload
        if pieces:
            self._pieces, self._payload = [], []
        return Batch(self._dev_num, self.index, self._image.changes(), pieces, payload)

    def _shown(self) -> int:
        """How far the used ring is filled, as the driver may see it."""
        position = self._ring.position
        return position >> 16 if self._packed else self._image.load16(self._used_index)

    def _let_go(self) -> None:
        """What was held back is to be sent now."""
        if not self._ended and not self._pushed:
            self._pushed = True
            self._host.answered(self)

    def end(self) -> None:
        """The queue is no more: what is completed later does nothing."""
        self._ended = True
        self._hold.end()
        self._stream.clear()
        self._pieces, self._payload = [], []

    @property
    def in_flight(self) -> int:
        """Chains that the model has."""
        return self._ring.in_flight
