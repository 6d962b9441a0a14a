"""The two sides of every test here: a device of this project and one of QEMU, each as a `Board`."""

from __future__ import annotations

from typing import Final

from guest_node.virtio.model import Model
from hmx.virtio.chain import Chain, QueueBroken
from hmx.virtio.control import DeviceControl, Effects
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.memory import FlatMemory
from hmx.virtio.mmio import MmioRegisters
from hmx.virtio.queues import AnyDeviceQueue, device_queue, gather, scatter, total
from tests.virtio_qemu.qtest import RAM_BASE, RAM_SIZE, USABLE, Qtest, QtestMemory

OUR_RAM: Final = 8 << 20
RINGS: Final = feature_set(Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.RING_PACKED, Feature.RING_RESET)
MMIO_BASE: Final = 0x0A00_0000  # of QEMU's machine "virt": 32 windows
MMIO_STEP: Final = 0x200
MMIO_LINE: Final = 16  # shared peripheral interrupt of the first


class OurRequest:
    """One chain at a model."""

    def __init__(self, board: OurBoard, queue: int, ring: AnyDeviceQueue, chain: Chain) -> None:
        self.queue = queue
        self.readable: bytes | memoryview = gather(board.memory, chain.readable)
        self.writable = total(chain.writable)
        self._board, self._ring, self._chain = board, ring, chain

    def complete(self, written: bytes | memoryview = b"") -> None:
        self._board.completed(self.queue, self._ring, self._chain, written)


class OurBoard:
    """A model behind our registers and our queues, all in one thread: a kick returns when it has been served."""

    def __init__(self, model: Model, features: int = RINGS) -> None:
        self.usable = range(USABLE, USABLE + OUR_RAM)
        self.memory = FlatMemory(bytearray(OUR_RAM), USABLE)
        self.model = model
        self.raises = 0
        self._level = False
        self._rings: dict[int, AnyDeviceQueue] = {}
        effects = Effects(
            on_start=model.start,
            on_run=self._run,
            on_reset=self._reset,
            on_queue=self._queue,
            on_queue_reset=lambda index: self._rings.pop(index, None),
            on_kick=lambda index, _data: self._serve(index),
        )
        self.control = DeviceControl(model, features, effects)
        self.registers = MmioRegisters(self.control, self._interrupt)
        model.on_config = self.control.config_changed

    def load(self, offset: int, size: int) -> int:
        return self.registers.load(offset, size)

    def store(self, offset: int, size: int, value: int) -> None:
        self.registers.store(offset, size, value)

    def interrupt(self) -> bool:
        return self._level

    def wait(self, seconds: float) -> bool:
        return False

    def _interrupt(self, level: bool) -> None:
        self.raises += level and not self._level
        self._level = level

    def _reset(self) -> None:
        self._rings.clear()
        self.model.reset()

    def _run(self, running: bool) -> None:
        if running:
            for index in tuple(self._rings):
                self._serve(index)

    def _queue(self, index: int, ready: bool) -> None:
        self._rings.pop(index, None)
        if ready:
            try:
                layout = self.control.queues[index].layout()
                self._rings[index] = device_queue(layout, self.control.negotiated, self.memory)
            except QueueBroken as broken:
                self.control.needs_reset(str(broken))

    def _serve(self, index: int) -> None:
        ring = self._rings[index]
        try:
            while True:
                while (chain := ring.pop()) is not None:
                    self.model.request(OurRequest(self, index, ring, chain))
                if not ring.want_notifications(True):
                    return
        except QueueBroken as broken:
            self.control.needs_reset(str(broken))

    def completed(self, index: int, ring: AnyDeviceQueue, chain: Chain, written: bytes | memoryview) -> None:
        if self._rings.get(index) is not ring:
            return  # forgotten by a reset
        try:
            scatter(self.memory, chain.writable, written)
            ring.push(chain, len(written))
            if ring.publish():
                self.control.used(index)
        except QueueBroken as broken:
            self.control.needs_reset(str(broken))


class TheirBoard:
    """Window `slot` of a QEMU, whose memory it shares with the others."""

    def __init__(self, qemu: Qtest, slot: int = 0) -> None:
        self.qemu = qemu
        self.usable = range(USABLE, RAM_BASE + RAM_SIZE)
        self.memory = QtestMemory(qemu)
        self._base = MMIO_BASE + slot * MMIO_STEP
        self._line = MMIO_LINE + slot

    @property
    def raises(self) -> int:
        return self.qemu.raises

    def load(self, offset: int, size: int) -> int:
        return self.qemu.load(self._base + offset, size)

    def store(self, offset: int, size: int, value: int) -> None:
        self.qemu.store(self._base + offset, size, value)

    def interrupt(self) -> bool:
        return self._line in self.qemu.raised

    def wait(self, seconds: float) -> bool:
        self.qemu.wait(seconds)
        return True
