"""Both ends of a virtqueue over memory that somebody else writes into, and what must hold whatever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hmx.virtio.chain import Chain, QueueBroken, QueueFull, Segment
from hmx.virtio.memory import Buffer, FlatMemory
from hmx.virtio.queues import device_queue, driver_queue, queue_area, total
from hmx.virtio.split_device import SplitDevice
from hmx.virtio.split_driver import SplitDriver
from tests.doubles.virtqueues import start


class CountedMemory(FlatMemory):
    """Memory that counts accesses, so that an operation without end is found."""

    __slots__ = ("left",)

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(buffer)
        self.left = 0

    def _count(self) -> None:
        self.left -= 1
        assert self.left > 0, "an operation without end"

    def load16(self, address: int) -> int:
        self._count()
        return super().load16(address)

    def store16(self, address: int, value: int) -> None:
        self._count()
        super().store16(address, value)

    def read(self, address: int, size: int) -> memoryview:
        self._count()
        return super().read(address, size)

    def write(self, address: int, data: Buffer) -> None:
        self._count()
        super().write(address, data)


MOST_ACCESSES: Final = 40_000
"""One operation reads at most the largest queue's worth of an indirect table."""


class Scribbled:
    """Both ends over one memory that somebody else writes into, one operation at a time.

    Each operation ends, and raises nothing but QueueBroken; what an end gives is what it may give.
    """

    def __init__(self, features: int, size: int, index: int = 0) -> None:
        self.area = queue_area(size, features, 16, 4)
        self.size, self.features = size, features
        self.content = bytearray(self.area.end + 48)
        self.memory = CountedMemory(self.content)
        self.memory.left = MOST_ACCESSES
        self.driver = driver_queue(self.area.layout, features, self.memory, self.area.indirect)
        self.device = device_queue(self.area.layout, features, self.memory)
        if index and isinstance(self.driver, SplitDriver) and isinstance(self.device, SplitDevice):
            start(self.driver, self.device, self.content, self.area.layout, index)
        self.broken: dict[object, str] = {}
        self.room: dict[int, int] = {}  # by token: writable bytes of what the driver added and did not take
        self.tokens = 0
        self.held: list[Chain] = []

    def reset_device(self) -> None:
        """A new device's end, over the memory as it is."""
        self.broken.pop(self.device, None)
        self.device = device_queue(self.area.layout, self.features, self.memory)
        self.held.clear()

    def reset(self) -> None:
        """Both ends anew; the driver zeroes the queue."""
        self.memory.left = MOST_ACCESSES
        self.broken.clear()
        self.room.clear()
        self.driver = driver_queue(self.area.layout, self.features, self.memory, self.area.indirect)
        self.reset_device()

    def _run(self, end: object, operation: Callable[[], None]) -> None:
        self.memory.left = MOST_ACCESSES
        was = self.broken.get(end)
        why = None
        try:
            operation()
        except QueueBroken as error:
            why = self.broken[end] = str(error)
        assert why != "", "no reason"
        assert was in (None, why), "a broken queue works again, or is broken for another reason"

    def drive(self, choice: int, count: int, border: int) -> None:
        """One operation of the driver."""
        driver = self.driver
        border = min(border, count)

        def add() -> None:
            pieces = [Segment(64 * each, 16 << each % 4) for each in range(count)]
            try:
                driver.add(pieces[:border], pieces[border:], self.tokens)
            except QueueFull:
                return
            except ValueError:
                assert not 0 < count <= self.size
                return
            self.room[self.tokens] = total(pieces[border:])
            self.tokens += 1

        def take() -> None:
            used = driver.take()
            if used is not None:
                assert isinstance(used.token, int)
                assert 0 <= used.written <= self.room.pop(used.token), "returned twice, or too long"

        def publish() -> None:
            assert driver.publish() in (True, False)

        def want() -> None:
            assert driver.want_interrupts(bool(border & 1)) in (True, False)

        operations = (add, take, publish, take, want, take)
        self._run(driver, operations[choice % 6])
        assert driver.outstanding == len(self.room)
        assert 0 <= driver.free <= self.size

    def serve(self, choice: int, which: int) -> None:
        """One operation of the device."""
        device = self.device

        def pop() -> None:
            chain = device.pop()
            if chain is None:
                return
            pieces = chain.readable + chain.writable
            assert 0 < sum(each.size for each in pieces) <= 1 << 32 and all(each.size for each in pieces)
            assert 0 < chain.slots <= self.size
            self.held.append(chain)
            assert len({each.head for each in self.held}) == len(self.held) == device.in_flight <= self.size

        def push() -> None:
            chain = self.held.pop(which % len(self.held))
            room = min(total(chain.writable), 0xFFFF_FFFF)
            device.push(chain, (0, room, room // 2)[which % 3])

        def publish() -> None:
            assert device.publish() in (True, False)

        def want() -> None:
            assert device.want_notifications(bool(which & 1)) in (True, False)

        operations = (pop, push if self.held else pop, publish, pop, want, pop)
        self._run(device, operations[choice % 6])

    def scribble(self, at: int, data: bytes) -> None:
        """Somebody writes."""
        at %= len(self.content)
        data = data[: len(self.content) - at]
        self.content[at : at + len(data)] = data
