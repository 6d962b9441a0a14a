"""A device behind virtio-mmio registers: control state, queues in the front end's memory, and the model behind them.

Nothing that the front end writes raises here: what breaks a rule ends in DEVICE_NEEDS_RESET.  What a kick asks for is
done by `pump`, after whoever kicked has been let go on.  Source: VIRTIO 1.4, 4.2, 2.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guest_node.virtio.access import RemoteMemory
from guest_node.virtio.model import Model
from hmx.virtio.chain import Chain, QueueBroken, QueueLayout, Segment
from hmx.virtio.control import DeviceControl, Effects
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.memory import BadAddress
from hmx.virtio.mmio import OFFSETS, MmioRegisters
from hmx.virtio.queues import device_queue, format_of, gather, scatter, total
from hmx.virtio.rings import part_size

OFFERED: Final = feature_set(
    Feature.VERSION_1,
    Feature.RING_INDIRECT_DESC,
    Feature.RING_EVENT_IDX,
    Feature.RING_PACKED,
    Feature.NOTIFICATION_DATA,
    Feature.RING_RESET,
)
"""What this transport and its queues can do.  A back end that reaches its front end by grants adds ACCESS_PLATFORM."""
_ACK: Final = OFFSETS["InterruptACK"]


def areas_of(layout: QueueLayout, features: int) -> list[Segment]:
    """The three parts of a queue."""
    parts = format_of(features).parts
    return [
        Segment(address, part_size(part, layout.size)) for part, address in zip(parts, layout[1:], strict=True)
    ]


class MmioRequest:
    """A chain on its way through the model."""

    __slots__ = ("_chain", "_owner", "queue", "readable", "writable")

    def __init__(self, owner: BackQueue, chain: Chain, readable: bytes) -> None:
        self.queue = owner.index
        self.readable: bytes | memoryview = readable
        self.writable = total(chain.writable)
        self._owner: BackQueue | None = owner
        self._chain = chain

    def complete(self, written: bytes | memoryview = b"") -> None:
        """Return the chain.  ValueError for more bytes than it has room for; a second time, nothing."""
        if len(written) > self.writable:
            raise ValueError(f"{len(written)} bytes for a chain with room for {self.writable}")
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.complete(self._chain, written)


class BackQueue:
    """One queue of a device."""

    def __init__(self, device: MmioDevice, index: int, layout: QueueLayout, features: int) -> None:
        self.index = index
        self._device = device
        self._access = device.access
        self._areas = areas_of(layout, features)
        self._ended = False
        self._access.hold(self._areas)
        try:
            self._ring = device_queue(layout, features, self._access)
        except BaseException:
            self._access.drop(self._areas)
            raise

    def run(self) -> None:
        """Serve every chain that is available.  Raises QueueBroken, BadAddress."""
        device, access = self._device, self._access
        while not self._ended and device.control.running:
            chain = self._ring.pop()
            if chain is None:
                if not self._ring.want_notifications(True):
                    return
                continue
            access.borrow((*chain.readable, *chain.writable))
            readable = gather(access, chain.readable) if chain.readable else b""
            if access.maps_payload:
                access.counters.copied_by_back_end += len(readable)
            device.serve(MmioRequest(self, chain, readable))

    def complete(self, chain: Chain, written: bytes | memoryview) -> None:
        """A request was answered."""
        if self._ended:
            return
        access = self._access
        try:
            scatter(access, chain.writable, written)
            if access.maps_payload:
                access.counters.copied_by_back_end += len(written)
            access.give_back((*chain.readable, *chain.writable))
            self._ring.push(chain, len(written))
        except (QueueBroken, BadAddress) as why:
            self._device.broke(f"queue {self.index}: {why}")
            return
        self._device.answered(self)

    def publish(self) -> bool:
        """Show what was answered; whether the driver wants to be told."""
        try:
            return not self._ended and self._ring.publish()
        except (QueueBroken, BadAddress) as why:
            self._device.broke(f"queue {self.index}: {why}")
            return False

    def end(self) -> None:
        """The queue is no more."""
        self._ended = True
        self._access.drop(self._areas)


class MmioDevice:
    """`model` behind registers.  `line(level)` drives its interrupt; `soon()` asks that `pump` be called.

    `access` reaches the front end's memory.  `features`: what is offered beyond the model's own.  `faults` are what the
    model raised; `trouble` says why the device last needed a reset.
    """

    def __init__(
        self,
        model: Model,
        access: RemoteMemory,
        line: Callable[[bool], None],
        soon: Callable[[], None],
        features: int = OFFERED,
    ) -> None:
        self.access = access
        self.faults: list[BaseException] = []
        self.trouble = ""
        self.requests = 0
        self._model = model
        self._line = line
        self._soon = soon
        self._up = False
        self._acknowledged = False
        self._queues: dict[int, BackQueue] = {}
        self._kicked: dict[int, None] = {}
        self._answered: dict[BackQueue, None] = {}
        self._pumping = False
        effects = Effects(
            on_start=model.start,
            on_run=self._run,
            on_reset=self._reset,
            on_queue=self._queue,
            on_queue_reset=self._queue_reset,
            on_kick=self._kick,
        )
        self.control = DeviceControl(model, features, effects)
        self._registers = MmioRegisters(self.control, self._interrupt)
        model.on_config = self.control.config_changed

    def load(self, offset: int, size: int) -> int:
        """The front end reads."""
        return self._registers.load(offset, size)

    def store(self, offset: int, size: int, value: int) -> None:
        """The front end writes."""
        self._acknowledged = offset == _ACK
        self._registers.store(offset, size, value)
        self._acknowledged = False

    def pump(self) -> None:
        """Serve the queues that were kicked, and show the front end what was answered."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._kicked:
                index = next(iter(self._kicked))
                del self._kicked[index]
                queue = self._queues.get(index)
                if queue is not None:
                    try:
                        queue.run()
                    except (QueueBroken, BadAddress) as why:
                        self.broke(f"queue {index}: {why}")
            self._flush()
        finally:
            self._pumping = False

    def _flush(self) -> None:
        while self._answered:
            queue = next(iter(self._answered))
            del self._answered[queue]
            if queue.publish():
                self.control.used(queue.index)

    def serve(self, request: MmioRequest) -> None:
        """Give a request to the model."""
        self.requests += 1
        try:
            self._model.request(request)
        except Exception as defect:
            self.faults.append(defect)
            self.broke(f"the device failed: {defect!r}")

    def answered(self, queue: BackQueue) -> None:
        """There is something to show: now if we are at it, else soon."""
        self._answered[queue] = None
        if not self._pumping:
            self._soon()

    def broke(self, why: str) -> None:
        """The driver broke a rule, or the device cannot go on."""
        self.trouble = why
        self.control.needs_reset(why)

    def close(self) -> None:
        """The front end is gone, or the device is."""
        self.control.reset()

    # -- effects ----

    def _interrupt(self, level: bool) -> None:
        """Drive the line.  A cause that remains after an acknowledgement makes a new edge."""
        if level and self._up and self._acknowledged:
            self._line(False)
            self._line(True)
        elif level != self._up:
            self._up = level
            self._line(level)

    def _run(self, running: bool) -> None:
        if running:
            self._kicked.update(dict.fromkeys(self._queues))
            self._soon()

    def _kick(self, index: int, _data: int) -> None:
        self._kicked[index] = None
        self._soon()

    def _queue(self, index: int, ready: bool) -> None:
        self._queue_reset(index)
        if ready:
            features = self.control.negotiated
            try:
                layout = self.control.queues[index].layout()
                self._queues[index] = BackQueue(self, index, layout, features)
            except (QueueBroken, BadAddress) as why:
                self.broke(f"queue {index}: {why}")

    def _queue_reset(self, index: int) -> None:
        self._kicked.pop(index, None)
        queue = self._queues.pop(index, None)
        if queue is not None:
            self._answered.pop(queue, None)
            queue.end()

    def _reset(self) -> None:
        for index in list(self._queues):
            self._queue_reset(index)
        self._model.reset()
        self.access.drop_all()


