"""A VirtIO transport without any distance: a front-end driver on a back-end model, deterministic.

Everything happens inside `kick` (or inside `step`, where requests are held), in the caller's order or in that of an
injected `random.Random`.  It is strict where a device may be: configuration beyond its end, a queue that is not there
and a request completed twice are errors of the test.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from guest_node.virtio.frontend import Buffer, DeviceBroken
from guest_node.virtio.model import Model
from hmx.virtio.chain import Chain, QueueFull, Segment, Used
from hmx.virtio.features import Feature, feature_set, refusal
from hmx.virtio.memory import BadAddress, FlatMemory
from hmx.virtio.queues import device_queue, driver_queue, gather, queue_area, scatter, total
from hmx.virtio.status import Status

RINGS = feature_set(
    Feature.VERSION_1, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.RING_PACKED, Feature.RING_RESET
)
_APART = 40  # bits: the distance of buffers in a queue's memory


def nothing() -> None:
    """An effect nobody waits for."""


class LoopRequest:
    """One chain, from its submission to its answer."""

    def __init__(self, home: LoopQueue, readable: bytes, writable: int, slots: int) -> None:
        self.queue = home.index
        self.readable: bytes | memoryview = readable
        self.writable = writable
        self.slots = slots
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.completed = False
        self._home = home

    def complete(self, written: bytes | memoryview = b"") -> None:
        if len(written) > self.writable:
            raise ValueError(f"{len(written)} bytes for a chain of {self.writable}")
        self._home.completed(self, bytes(written))

    def break_off(self) -> None:
        self.completed = True
        if not self.future.done():
            self.future.set_exception(DeviceBroken("the device was reset"))
            self.future.exception()  # seen: nobody need await it


class LoopQueue:
    """A queue of `size` descriptors; a chain takes one for each readable buffer and one for its writable part."""

    def __init__(self, transport: Loopback, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.free = size
        self.staged: list[LoopRequest] = []
        self.available: list[LoopRequest] = []
        self.outstanding: list[LoopRequest] = []
        self.kicks = 0
        self._transport = transport
        self._returned = asyncio.Event()

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        slots = len(readable) + (writable > 0)
        if not slots or not all(len(buffer) for buffer in readable):
            raise ValueError("an empty buffer")
        if slots > self.size:
            raise ValueError(f"{slots} buffers never fit into {self.size} descriptors")
        if slots > self.free:
            self._returned.clear()
            raise QueueFull
        self.free -= slots
        request = LoopRequest(self, b"".join(readable), writable, slots)
        self.staged.append(request)
        self.outstanding.append(request)
        return request.future

    async def kick(self) -> None:
        self._transport.check()
        self.kicks += 1
        self.available += self.staged
        self.staged.clear()
        self._transport.kicked(self)

    async def room(self) -> None:
        self._transport.check()
        await self._returned.wait()
        self._transport.check()

    def completed(self, request: LoopRequest, written: bytes) -> None:
        if request not in self.outstanding:
            return  # forgotten by a reset
        assert not request.completed, "a request completed twice"
        request.completed = True
        self.outstanding.remove(request)
        self.free += request.slots
        self._returned.set()
        self._transport.answered.append((self.index, written))
        if not request.future.done():
            request.future.set_result(self._transport.tamper(self.index, written))

    def pull(self) -> None:
        """The device sees what is available."""

    def forget(self) -> None:
        lost = self.outstanding
        self.outstanding, self.staged, self.available = [], [], []
        self.free = self.size
        self._returned.set()
        for request in lost:
            request.break_off()


class Loopback:
    """`model` as its driver sees it.

    `offered`: features beside the model's own.  `pieces`: the queues are real rings, whose buffers it cuts up.
    """

    def __init__(
        self,
        model: Model,
        *,
        offered: int = RINGS,
        hold: bool = False,
        shuffle: random.Random | None = None,
        queue_size: int | None = None,
        pieces: random.Random | None = None,
    ) -> None:
        self.model = model
        self.device_id = model.device_id
        self.on_config: Callable[[], None] = nothing
        self.offered = offered | model.features
        self.driver_features = 0
        self.hold = hold  # deliver on `step`, not on `kick`
        self.broken = False
        self.queues: dict[int, LoopQueue] = {}
        self.history: list[tuple[object, ...]] = []  # what the driver did with registers
        self.answered: list[tuple[int, bytes]] = []
        self.tamper: Callable[[int, bytes], bytes] = lambda _queue, written: written  # a device that lies
        self.refuse_features = False
        self._shuffle = shuffle
        self._pieces = pieces
        self._sizes = tuple(queue_size or size for size in model.queue_sizes)
        self._status = 0
        model.on_config = lambda: self.on_config()

    def check(self) -> None:
        if self.broken:
            raise DeviceBroken("the device wants a reset")

    def break_off(self) -> None:
        """The device needs a reset: what is outstanding fails."""
        self.broken = True
        for queue in self.queues.values():
            queue.forget()
        self.on_config()

    async def reset(self) -> None:
        self.history.append(("reset",))
        self.broken = False
        self._status = 0
        self.driver_features = 0
        queues, self.queues = self.queues, {}
        for queue in queues.values():
            queue.forget()
        self.model.reset()

    async def status(self) -> int:
        return self._status | (Status.DEVICE_NEEDS_RESET if self.broken else 0)

    async def set_status(self, status: int) -> int:
        self.history.append(("status", status))
        assert status & self._status == self._status, "a driver clears no status bit"
        fresh = status & ~self._status
        if fresh & Status.FEATURES_OK and (self.refuse_features or refusal(self.offered, self.driver_features, ())):
            status &= ~Status.FEATURES_OK
        self._status = status
        if fresh & Status.DRIVER_OK:
            self.model.start(self.driver_features)
            for queue in tuple(self.queues.values()):
                self.kicked(queue)
        return status

    async def device_features(self) -> int:
        self.check()
        return self.offered

    async def set_driver_features(self, features: int) -> None:
        self.history.append(("features", features))
        assert not self._status & Status.FEATURES_OK
        self.driver_features = features

    async def read_config(self, offset: int, size: int) -> bytes:
        self.check()
        config = self.model.config()
        assert 0 <= offset <= len(config) - size, f"configuration {offset}+{size} of {len(config)}"
        return config[offset : offset + size]

    async def write_config(self, offset: int, data: Buffer) -> bool:
        self.check()
        assert self._status & Status.FEATURES_OK, "configuration is written after FEATURES_OK"
        return self.model.write_config(offset, bytes(data))

    async def queue_max(self, index: int) -> int:
        self.check()
        return self._sizes[index] if index < len(self._sizes) else 0

    async def setup_queue(self, index: int, size: int) -> LoopQueue:
        self.check()
        self.history.append(("queue", index, size))
        assert self._status & Status.FEATURES_OK and not self._status & Status.DRIVER_OK
        assert 0 < size <= self._sizes[index]
        if self._pieces is None:
            queue = LoopQueue(self, index, size)
        else:
            queue = RingQueue(self, index, size, self._pieces)
        self.queues[index] = queue
        return queue

    async def reset_queue(self, index: int) -> None:
        self.history.append(("reset queue", index))
        self.queues.pop(index).forget()

    def kicked(self, queue: LoopQueue) -> None:
        if not self._status & Status.DRIVER_OK:
            return
        queue.pull()
        if self.hold:
            return
        while queue.available:
            self._deliver(queue)

    def step(self) -> bool:
        """Deliver one available request of the queues; whether there was one."""
        if self._status & Status.DRIVER_OK:
            for queue in self.queues.values():
                queue.pull()
        ready = [queue for queue in self.queues.values() if queue.available]
        if not ready or not self._status & Status.DRIVER_OK:
            return False
        self._deliver(self._shuffle.choice(ready) if self._shuffle else ready[0])
        return True

    async def run(self) -> None:
        """Let the driver's tasks and the device take turns until neither has anything to do."""
        idle = 0
        while idle < 10:
            await asyncio.sleep(0)
            idle = 0 if self.step() else idle + 1

    def _deliver(self, queue: LoopQueue) -> None:
        at = self._shuffle.randrange(len(queue.available)) if self._shuffle else 0
        self.model.request(queue.available.pop(at))


class SparseMemory:
    """The memory of one queue: the rings from 0 on, and buffers far apart, each of which can be told from the rest."""

    def __init__(self, rings: int) -> None:
        self._rings = FlatMemory(bytearray(rings))
        self._buffers: dict[int, bytearray] = {}
        self._next = 1

    def allocate(self, data: bytes) -> int:
        """The address of a new buffer."""
        self._buffers[self._next] = bytearray(data)
        self._next += 1
        return self._next - 1 << _APART

    def release(self, address: int) -> None:
        del self._buffers[address >> _APART]

    def load16(self, address: int) -> int:
        return self._rings.load16(address)

    def store16(self, address: int, value: int) -> None:
        self._rings.store16(address, value)

    def read(self, address: int, size: int) -> memoryview:
        memory, at = self._at(address)
        return memory.read(at, size)

    def write(self, address: int, data: Buffer) -> None:
        memory, at = self._at(address)
        memory.write(at, data)

    def fence(self) -> None:
        """One thread."""

    def _at(self, address: int) -> tuple[FlatMemory, int]:
        if address < 1 << _APART:
            return self._rings, address
        buffer = self._buffers.get(address >> _APART)
        if buffer is None:
            raise BadAddress(address, 1)
        return FlatMemory(buffer), address & (1 << _APART) - 1


class RingQueue(LoopQueue):
    """A queue in real rings; `pieces` cuts each buffer into descriptors at random places."""

    def __init__(self, transport: Loopback, index: int, size: int, pieces: random.Random) -> None:
        super().__init__(transport, index, size)
        features = transport.driver_features
        area = queue_area(size, features, entries=size)
        self.memory = SparseMemory(area.end)
        self.driver = driver_queue(area.layout, features, self.memory, area.indirect)
        self.device = device_queue(area.layout, features, self.memory)
        self._chains: dict[int, Chain] = {}  # by id of the request at the device
        self._pieces = pieces

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        if not len(readable) + (writable > 0) or not all(len(buffer) for buffer in readable):
            raise ValueError("an empty buffer")
        request = LoopRequest(self, b"".join(readable), writable, 0)
        reads = self._segments(bytes(request.readable))
        writes = self._segments(bytes(writable))
        while True:
            try:
                self.driver.add(reads, writes, (request, reads, writes))
                break
            except QueueFull:
                if len(reads) + len(writes) > 2:  # fewer pieces may fit
                    reads, writes = self._whole(reads), self._whole(writes)
                    continue
                self._returned.clear()
                raise
        self.outstanding.append(request)
        return request.future

    async def kick(self) -> None:
        self._transport.check()
        self.kicks += 1
        self.driver.publish()
        self._transport.kicked(self)

    def pull(self) -> None:
        """The device looks at the ring."""
        while (chain := self.device.pop()) is not None:
            request = LoopRequest(self, gather(self.memory, chain.readable), total(chain.writable), 0)
            self._chains[id(request)] = chain
            self.available.append(request)

    def completed(self, request: LoopRequest, written: bytes) -> None:
        chain = self._chains.pop(id(request), None)
        if chain is None:
            assert not request.completed, "a request completed twice"
            return
        request.completed = True
        scatter(self.memory, chain.writable, written)
        self.device.push(chain, len(written))
        self.device.publish()
        self._transport.answered.append((self.index, written))
        while (used := self.driver.take()) is not None:
            self._returned.set()
            self._answer(used)

    def forget(self) -> None:
        for request_id in tuple(self._chains):
            del self._chains[request_id]
        super().forget()

    def _answer(self, used: Used) -> None:
        assert isinstance(used.token, tuple)
        request, reads, writes = used.token
        data = b"".join(bytes(self.memory.read(*segment)) for segment in writes)[: used.written]
        for address, _ in (*reads, *writes):
            self.memory.release(address)
        self.outstanding.remove(request)
        if not request.future.done():
            request.future.set_result(self._transport.tamper(self.index, data))

    def _segments(self, data: bytes) -> list[Segment]:
        cuts = sorted({0, len(data), *(self._pieces.randint(0, len(data)) for _ in range(self._pieces.randrange(3)))})
        return [Segment(self.memory.allocate(data[a:b]), b - a) for a, b in pairwise(cuts)]

    def _whole(self, segments: list[Segment]) -> list[Segment]:
        if len(segments) < 2:
            return segments
        data = b"".join(bytes(self.memory.read(*segment)) for segment in segments)
        for address, _ in segments:
            self.memory.release(address)
        return [Segment(self.memory.allocate(data), len(data))]
