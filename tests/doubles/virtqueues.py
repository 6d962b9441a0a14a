"""Two ends of a virtqueue that run against each other: memory with store buffers, and parties that sleep and wake.

A store is seen by the other end some time later, at the latest when its end executes a fence: in order as on x86 (see
tests/doubles/tso.py), or in any order and two bytes at a time.  Between two accesses of one end the other may do
anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from hmx.virtio.chain import Chain, QueueFull, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import BadAddress, Buffer
from hmx.virtio.queues import AnyDeviceQueue, AnyDriverQueue, device_queue, driver_queue, queue_area, total
from hmx.virtio.split_device import SplitDevice
from hmx.virtio.split_driver import SplitDriver

CHOICES: Final = (Feature.RING_PACKED, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.IN_ORDER)
FEATURE_SETS: Final = tuple(sum(1 << bit for n, bit in enumerate(CHOICES) if chosen >> n & 1) for chosen in range(16))


class BufferedMemory:
    """What one end sees of `shared`.  `between` runs before each access; stores leave by chance, or with a fence."""

    def __init__(self, shared: bytearray, dice: random.Random, late: float, in_order: bool) -> None:
        self._shared = shared
        self._dice = dice
        self._late = late
        self._in_order = in_order
        self._stores: list[tuple[int, bytes]] = []
        self.between: Callable[[], None] = lambda: None

    def drain(self) -> None:
        """Let all stores out."""
        for address, data in self._stores:
            self._shared[address : address + len(data)] = data
        self._stores.clear()

    def _leak(self) -> None:
        """Let some stores out."""
        stores, dice = self._stores, self._dice
        for _ in range(dice.randint(1, len(stores))):
            chosen = 0 if self._in_order else dice.randrange(len(stores))
            address = stores[chosen][0]
            chosen = next(index for index, store in enumerate(stores) if store[0] == address)  # one place has one order
            address, data = stores.pop(chosen)
            self._shared[address : address + len(data)] = data

    def _access(self, address: int, size: int) -> None:
        if size < 0 or not 0 <= address <= len(self._shared) - size:
            raise BadAddress(address, size)
        self.between()
        if self._stores and self._dice.random() > self._late:
            self._leak()

    def read(self, address: int, size: int) -> bytes:
        self._access(address, size)
        found = bytearray(self._shared[address : address + size])
        for at, data in self._stores:
            for index, byte in enumerate(data, at - address):
                if 0 <= index < size:
                    found[index] = byte
        return bytes(found)

    def write(self, address: int, data: Buffer) -> None:
        self._access(address, len(data))
        if self._in_order:
            self._stores.append((address, bytes(data)))
        else:
            assert address % 2 == 0 and len(data) % 2 == 0
            self._stores += [(address + at, bytes(data[at : at + 2])) for at in range(0, len(data), 2)]

    def load16(self, address: int) -> int:
        if address & 1:
            raise BadAddress(address, 2)
        return int.from_bytes(self.read(address, 2), "little")

    def store16(self, address: int, value: int) -> None:
        if address & 1:
            raise BadAddress(address, 2)
        self.write(address, value.to_bytes(2, "little"))

    def fence(self) -> None:
        self.between()
        while self._stores:
            self._leak()
            self.between()


class Party:
    """One end: it works while it is awake, sleeps when the queue said that it may, and wakes when its bell rings.

    A lazy one wants notifications all the time, and sleeps when it found nothing.
    """

    def __init__(self, dice: random.Random, memory: BufferedMemory) -> None:
        self.dice = dice
        self.memory = memory
        self.asleep = self.bell = self.busy = False
        self.bells = 0
        self.lazy = dice.random() < 0.3
        self.other: Party = self
        memory.between = self._between

    def _between(self) -> None:
        """The other end's turn, in the middle of an operation of this one."""
        if self.dice.random() < 0.08 and not self.other.busy:
            self.other.turn()

    def ring(self) -> None:
        """A notification for this end."""
        self.bell = True
        self.bells += 1

    def turn(self) -> None:
        """Do one thing."""
        self.busy = True
        if self.bell:
            self.bell = self.asleep = False
        self.work()
        self.busy = False

    def work(self) -> None:
        raise NotImplementedError

    def show(self, publish: Callable[[], bool]) -> None:
        """Publish, and notify the other end if it asked for that."""
        if publish():
            self.other.ring()


class DriverParty(Party):
    """Adds random chains, takes what comes back, and knows what it must be."""

    def __init__(self, dice: random.Random, memory: BufferedMemory, queue: AnyDriverQueue, longest: int) -> None:
        super().__init__(dice, memory)
        self.queue = queue
        self.longest = longest
        self.adding = True
        self.added: list[tuple[tuple[Segment, ...], tuple[Segment, ...]]] = []  # by token
        self.written: dict[int, int] = {}  # by token: what the device said that it wrote
        self.taken: list[int] = []

    def add(self) -> None:
        """Add a chain if there is room."""
        dice = self.dice
        count = dice.randint(1, self.longest)
        border = dice.randint(0, count)
        # The address says which chain and which segment it is.
        token = len(self.added)
        pieces = [Segment(token << 16 | index, dice.choice((1, 8, 512, 4096))) for index in range(count)]
        try:
            self.queue.add(pieces[:border], pieces[border:], token)
        except QueueFull:
            return
        self.added.append((tuple(pieces[:border]), tuple(pieces[border:])))

    def take(self) -> bool:
        """Take one used buffer; whether there was one."""
        used = self.queue.take()
        if used is None:
            return False
        token = used.token
        assert isinstance(token, int)
        assert token not in self.taken, "returned twice"
        assert self.written.get(token) == used.written, "the device did not say that"
        self.taken.append(token)
        return True

    def work(self) -> None:
        """One step: application and interrupt handler mixed."""
        choice = self.dice.random()
        if choice < 0.45 and self.adding:
            self.add()
        elif choice < 0.6:
            self.show(self.queue.publish)
        elif self.asleep:
            return
        elif choice < 0.7:
            if not self.lazy:
                self.queue.want_interrupts(False)
        elif choice < 0.9:
            self.take()
        else:
            self.sleep()

    def sleep(self) -> None:
        """Take everything, then sleep unless something came meanwhile."""
        while True:
            while self.take():
                pass
            if self.lazy or not self.queue.want_interrupts(True):
                self.asleep = True
                return


class DeviceParty(Party):
    """Pops chains, completes them in any order, or in turn."""

    def __init__(self, dice: random.Random, memory: BufferedMemory, queue: AnyDeviceQueue, driver: DriverParty) -> None:
        super().__init__(dice, memory)
        self.queue = queue
        self.driver = driver
        self.held: list[Chain] = []
        self.popped = 0
        self.in_turn = dice.random() < 0.3
        driver.other, self.other = self, driver

    def pop(self) -> bool:
        """Pop one chain; whether there was one.  It must be the next that the driver added."""
        chain = self.queue.pop()
        if chain is None:
            return False
        assert (chain.readable, chain.writable) == self.driver.added[self.popped]
        self.popped += 1
        self.held.append(chain)
        return True

    def push(self) -> None:
        """Return one chain."""
        chain = self.held.pop(0 if self.in_turn else self.dice.randrange(len(self.held)))
        room = total(chain.writable)
        written = self.dice.choice((room, room, self.dice.randint(0, room)))
        token = (chain.readable + chain.writable)[0].address >> 16
        self.driver.written[token] = written
        self.queue.push(chain, written)

    def work(self) -> None:
        """One step: request loop and completions mixed."""
        choice = self.dice.random()
        if choice < 0.3:
            if self.held:
                self.push()
        elif choice < 0.5:
            self.show(self.queue.publish)
        elif self.asleep:
            return
        elif choice < 0.6:
            if not self.lazy:
                self.queue.want_notifications(False)
        elif choice < 0.9:
            self.pop()
        else:
            self.sleep()

    def sleep(self) -> None:
        """Pop everything, then sleep unless something came meanwhile."""
        while True:
            while self.pop():
                pass
            if self.lazy or not self.queue.want_notifications(True):
                self.asleep = True
                return


def play(seed: int, features: int, size: int, steps: int, *, entries: int = 4, index: int = 0) -> DriverParty:
    """A history of `steps` steps, then both ends finish.  `index`: where the free-running indexes begin (split)."""
    dice = random.Random(seed)
    area = queue_area(size, features, 16, entries)
    shared = bytearray(area.end)
    shared[:] = b"\xa5" * len(shared)  # the driver zeroes what must be zero
    late = dice.choice((0.0, 0.5, 0.95))
    in_order = dice.random() < 0.5
    memories = [BufferedMemory(shared, dice, late, in_order) for _ in range(2)]
    queue = driver_queue(area.layout, features, memories[0], area.indirect)
    memories[0].drain()
    longest = min(size, dice.choice((1, 3, 6)))
    driver = DriverParty(dice, memories[0], queue, longest)
    other = device_queue(area.layout, features, memories[1])
    if index:
        assert isinstance(queue, SplitDriver) and isinstance(other, SplitDevice)
        start(queue, other, shared, area.layout, index)
        queue.want_interrupts(True)
        other.want_notifications(True)
    device = DeviceParty(dice, memories[1], other, driver)
    for _ in range(steps):
        dice.choice((driver, device)).turn()
    finish(driver, device)
    return driver


def start(driver: SplitDriver, device: SplitDevice, content: bytearray, layout: QueueLayout, index: int) -> None:
    """As if `index` buffers had come and gone."""
    for end in (driver, device):
        end._made = end._shown = end._next = end._seen = index
    for at in (layout.driver + 2, layout.device + 2):
        content[at : at + 2] = index.to_bytes(2, "little")


def finish(driver: DriverParty, device: DeviceParty) -> None:
    """No new chains; nobody polls.  What was published must come back, by notifications alone."""
    parties = (driver, device)
    for party in parties:
        party.memory.between = lambda: None
    driver.adding = False
    driver.show(driver.queue.publish)
    for _ in range(len(driver.added) + 10):
        for party in parties:
            if party.bell:
                party.bell = party.asleep = False
            if not party.asleep:
                party.sleep()
            party.memory.drain()
        if device.held:
            device.push()
        device.show(device.queue.publish)
        device.memory.drain()
    assert device.popped == len(driver.added), "the device missed a notification"
    assert len(driver.taken) == len(driver.added), "the driver missed a notification"
    assert driver.queue.free == driver.queue.size and driver.queue.outstanding == 0
    assert device.queue.in_flight == 0
