"""One device of a VirtIO-Argo bus, as its driver sees it: guest_node.virtio.frontend.Transport.

Registers are virtio-msg requests, queues are ArgoQueues.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from errno import EPROTO
from typing import Final, Protocol, TypeVar

from guest_node.virtio.argo_driver_queue import ArgoQueue
from guest_node.virtio.argo_pack import Batch
from guest_node.virtio.frontend import Buffer, DeviceBroken
from hmx.errno import Errno
from hmx.virtio.argo import Update
from hmx.virtio.features import WINDOW_BITS, Feature, feature_set
from hmx.virtio.msg import ConfigEvent, DeviceInfo
from hmx.virtio.msg_client import Call, Caller
from hmx.virtio.status import Status

NOT_HERE: Final = feature_set(Feature.RING_INDIRECT_DESC, Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA)
"""Features that this transport has no use for: tables elsewhere would have to travel, and no kick is sent apart."""

CONFIG_PART: Final = 224  # configuration bytes asked for at once, so that the answer fits the smallest message
_POLL: Final = 0.01  # seconds between looks at a status that is not 0 yet


T = TypeVar("T")


class Bus(Protocol):
    """The connection, as a transport knows it."""

    connected: bool
    sessions: int
    window: int
    ring_len: int
    timeout: float

    @property
    def devices(self) -> dict[int, ArgoTransport]:
        """All devices of the bus."""

    async def connect(self) -> None:
        """Say HELLO unless that is so already."""

    async def call(self, call: Call[T]) -> T:
        """A request, and what its answer says."""

    async def flush(self, lonely: bool) -> None:
        """Send what the queues have to say."""

    def wake(self) -> None:
        """Send it soon."""

    async def close(self) -> None:
        """End the connection."""


def _nothing() -> None:
    """Nobody listens yet."""


class ArgoTransport:
    """A device; made by ArgoBus.  `number`: its device number on the bus."""

    def __init__(self, bus: Bus, number: int) -> None:
        self.bus = bus
        self.number = number
        self.device_id = 0
        self.info = DeviceInfo(0, 0, 0, 0, 0)
        self.on_config: Callable[[], None] = _nothing
        self.alone = False  # made by `connect`: the connection ends with it
        self._queues: dict[int, ArgoQueue] = {}
        self._features = 0
        self._blocks = 0
        self._generation = 0
        self._broken: DeviceBroken | None = None
        self._removed = False
        self._session = bus.sessions
        self._ask = Caller(number)

    # -- Transport ----

    async def reset(self) -> None:
        """Write status 0 and wait until the device has it; HELLO anew first where the back end was away."""
        self._end_queues(DeviceBroken(int(Errno.ECANCELED), "the device was reset"))
        if not self.bus.connected:
            try:
                await self.bus.connect()
            except DeviceBroken:
                raise
            except OSError as why:
                raise DeviceBroken(why.errno, why.strerror) from why
        if self._removed and self.bus.devices.get(self.number) is not self:
            raise self._broken or DeviceBroken(int(Errno.ENODEV), "the device was removed")
        if self._session != self.bus.sessions:
            was = self.device_id
            await self.identify()
            if self.device_id != was:
                other = f"device {self.number} is of type {self.device_id} now, not {was}"
                raise DeviceBroken(int(Errno.ENODEV), other)
            self._session = self.bus.sessions
        status = await self.bus.call(self._ask.set_status(0))
        end = asyncio.get_running_loop().time() + self.bus.timeout
        while status:
            if asyncio.get_running_loop().time() > end:
                raise DeviceBroken(int(Errno.ETIMEDOUT), f"the device keeps status {status:#x} after a reset")
            await asyncio.sleep(_POLL)
            status = await self.bus.call(self._ask.get_status())
        self._broken = None
        self._features = self._blocks = 0

    async def status(self) -> int:
        """The device status byte."""
        self._check()
        return await self.bus.call(self._ask.get_status())

    async def set_status(self, status: int) -> int:
        """Write the status; the resulting one.  0 is a reset."""
        if not status:
            await self.reset()
            return 0
        self._check()
        return await self.bus.call(self._ask.set_status(int(status)))

    async def device_features(self) -> int:
        """Everything that the device offers, without what this transport has no use for."""
        self._check()
        return await self.bus.call(self._ask.device_features(self.info.feature_bits // WINDOW_BITS)) & ~NOT_HERE

    async def set_driver_features(self, features: int) -> None:
        """Accept a subset.  It also decides the format of the queues."""
        self._check()
        needed = max(self.info.feature_bits, features.bit_length() + WINDOW_BITS - 1) // WINDOW_BITS
        self._blocks = max(self._blocks, needed)  # what an earlier call wrote is written over
        await self.bus.call(self._ask.set_driver_features(features, self._blocks))
        self._features = features

    async def read_config(self, offset: int, size: int) -> bytes:
        """Consistent bytes of the configuration, whatever its generation does meanwhile."""
        self._check()
        while True:
            parts: list[bytes] = []
            generations: set[int] = set()
            for at in range(offset, offset + size, CONFIG_PART):
                answer = await self.bus.call(self._ask.get_config(at, min(CONFIG_PART, offset + size - at)))
                generations.add(answer.generation)
                parts.append(answer.data)
            if len(generations) <= 1:
                self._generation = max(generations, default=self._generation)
                return b"".join(parts)

    async def write_config(self, offset: int, data: Buffer) -> bool:
        """Write configuration; False where the device refused it since it changed meanwhile."""
        self._check()
        answer = await self.bus.call(self._ask.set_config(self._generation, offset, bytes(data)))
        self._generation = answer.generation
        return answer.accepted

    async def queue_max(self, index: int) -> int:
        """The most descriptors of queue `index`; 0: there is no such queue."""
        self._check()
        if index >= self.info.max_virtqueues:
            return 0
        return (await self.bus.call(self._ask.get_queue(index))).max_size

    async def setup_queue(self, index: int, size: int) -> ArgoQueue:
        """Make queue `index` of at most `size` descriptors ready."""
        self._check()
        queues = sum(max(1, transport.info.max_virtqueues) for transport in self.bus.devices.values())
        share = self.bus.ring_len // max(1, queues)
        queue = ArgoQueue(self, self.number, index, size, self._features, self.bus.window, share)
        _, descriptors, driver, device = queue.layout
        before = self._queues.get(index)
        self._queues[index] = queue
        try:
            await self.bus.call(self._ask.set_queue(index, size, descriptors, driver, device))
        except DeviceBroken as broken:
            queue.end(broken)
            if self._queues.get(index) is queue:
                del self._queues[index]
                if before is not None:
                    self._queues[index] = before
            raise
        return queue

    async def reset_queue(self, index: int) -> None:
        """Stop one queue (feature RING_RESET); its requests are lost."""
        self._check()
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.end(DeviceBroken(int(Errno.ECANCELED), f"queue {index} was reset"))
        await self.bus.call(self._ask.reset_queue(index))

    # -- beyond Transport ----

    async def identify(self) -> None:
        """GET_DEVICE_INFO; for the bus."""
        self.info = await self.bus.call(self._ask.info())
        self.device_id = self.info.device_id

    async def close(self) -> None:
        """Reset the device; if it is alone, end the connection, too.  Idempotent."""
        try:
            if self.bus.connected and not self._removed:
                await self.reset()
        except OSError:
            pass  # there is nobody any more who could be told
        self._broken = self._broken or DeviceBroken(int(Errno.EBADF), "the device was closed")
        if self.alone:
            await self.bus.close()

    @property
    def under_way(self) -> int:
        """Chains that have not come back."""
        return sum(queue.under_way for queue in self._queues.values())

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    # -- for the queues ----

    async def flush(self, lonely: bool) -> None:
        """Send what the queues have to say."""
        await self.bus.flush(lonely)

    def wake(self) -> None:
        """Send it soon."""
        self.bus.wake()

    def broke(self, why: str) -> DeviceBroken:
        """The device broke a rule: it is of no use before a reset."""
        broken = DeviceBroken(EPROTO, f"device {self.number}, {why}")
        self.end(broken)
        return broken

    # -- for the bus ----

    def gather(self) -> list[Batch]:
        """What the queues have to say."""
        found = []
        for queue in list(self._queues.values()):
            batch = queue.gather()
            if batch is not None:
                found.append(batch)
        return found

    def receive(self, update: Update) -> int:
        """An update of one queue; how many chains it brought back."""
        queue = self._queues.get(update.queue)
        return 0 if queue is None else queue.receive(update)

    def config_event(self, event: ConfigEvent) -> None:
        """The configuration changed, or the device needs a reset."""
        if event.status & Status.DEVICE_NEEDS_RESET:
            self.end(DeviceBroken(int(Errno.EIO), f"device {self.number} says that it needs a reset"))
        self.on_config()

    def end(self, broken: DeviceBroken) -> None:
        """The device is of no use before a reset."""
        if self._broken is None:
            self._broken = broken
        self._end_queues(broken)

    def lost(self, broken: DeviceBroken) -> None:
        """The back end is gone."""
        fresh = self._broken is None
        self.end(broken)
        if fresh:
            self.on_config()

    def removed(self) -> None:
        """The device was unplugged."""
        self._removed = True
        self.end(DeviceBroken(int(Errno.ENODEV), f"device {self.number} was removed"))
        self.on_config()

    def _end_queues(self, broken: DeviceBroken) -> None:
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            queue.end(broken)
