"""What a device can do to a driver's end of a virtqueue, and what memory can do to either end.

A broken queue stays broken, whatever the memory says later: only a reset, which makes a new end, revives it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hmx.virtio.chain import Chain, QueueBroken, Used
from hmx.virtio.memory import BadAddress, Buffer, FlatMemory
from hmx.virtio.queues import AnyDriverQueue, device_queue, driver_queue, queue_area
from tests.hmx.virtio.queue_rig import (
    DESCRIPTORS,
    EVENT,
    IN_ORDER,
    INDIRECT,
    PACKED,
    A,
    Rig,
    U,
    W,
    WatchedMemory,
    broken,
    one,
)

# -- a driver and its device ----


def later(driver: AnyDriverQueue) -> tuple[Callable[[], object], ...]:
    """What fails too once the queue is broken."""
    return lambda: driver.want_interrupts(True), lambda: driver.add(one(), (), None)


def test_elements_that_break_a_rule() -> None:
    """Ids that are not outstanding, lengths beyond what is writable, indexes beyond what is out (VIRTIO 2.7.8)."""
    for elements, words in (
        ([(4, 0)], "returned chain 4, which it does not have"),
        ([(0x1_0000, 0)], "returned chain 65536"),
        ([(2, 0)], "returned chain 2"),  # the second descriptor of chain 1
        ([(3, 0)], "returned chain 3"),
        ([(0, 1)], "wrote 1 bytes into chain 0, which has room for 0"),
        ([(1, 514)], "wrote 514 bytes into chain 1, which has room for 513"),
        ([(1, 0xFFFF_FFFF)], "4294967295 bytes"),
        ([(0, 0), (1, 0), (0, 0)], "from 0 to 3, though at most 2"),
    ):
        rig = Rig(4)
        driver = rig.driver()
        driver.add(one(), (), "a")
        driver.add(one(), one(513), "b")
        driver.publish()
        rig.use(*elements)
        broken(words, driver.take, driver.publish, *later(driver))
    rig = Rig(4)
    driver = rig.driver()
    for _ in range(2):
        driver.add(one(), (), None)
    driver.publish()
    rig.use((0, 0), (0, 0))
    assert driver.take()
    broken("returned chain 0, which it does not have", driver.take)


def test_what_came_before_is_not_taken_either() -> None:
    """A broken queue is broken as a whole: elements behind the bad one stay where they are."""
    rig = Rig(4)
    driver = rig.driver()
    for _ in range(2):
        driver.add(one(), (), None)
    driver.publish()
    rig.use((0, 1), (1, 0))
    broken("wrote 1 bytes into chain 0", driver.take)
    rig.used_idx = 0
    rig.use((0, 0), (1, 0))
    broken("wrote 1 bytes into chain 0", driver.take)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("features", [0, IN_ORDER])
def test_a_chain_that_was_not_published(packed: bool, features: int) -> None:
    """A device that returns what it was not given."""
    rig = Rig(4, features | (PACKED if packed else 0))
    driver = rig.driver()
    driver.add(one(), (), "a")
    driver.publish()
    driver.add(one(), (), "b")
    rig.use((1, 0))
    rig.describe(0, 0, 0, 1, A | U)
    broken("1, which it does not have", driver.take)
    rig = Rig(4, features | (PACKED if packed else 0))
    driver = rig.driver()
    driver.add(one(), (), "a")
    rig.use((0, 0))
    rig.describe(0, 0, 0, 0, A | U)
    broken("at most 0" if not packed else "0, which it does not have", driver.take)


def test_a_batch_is_within_the_index() -> None:
    """IN_ORDER: an element for the third buffer while the index grew by two (VIRTIO 2.7.9)."""
    rig = Rig(4, IN_ORDER)
    driver = rig.driver()
    for token in range(4):
        driver.add(one(), (), token)
    driver.publish()
    rig.use((2, 0), (0, 0))
    broken("chain 2, number 3 in order, though only 2 were used", driver.take)
    rig = Rig(8, IN_ORDER)
    driver = rig.driver()
    for token in range(6):
        driver.add(one(), (), token)
    driver.publish()
    rig.use((1, 0), (0, 0))
    assert [driver.take(), driver.take(), driver.take()] == [Used(0, 0), Used(1, 0), None]
    rig.use((4, 0), (0, 0))
    broken("chain 4, number 3 in order, though only 2 were used", driver.take)
    rig = Rig(4, IN_ORDER)
    driver = rig.driver()
    for token in range(4):
        driver.add((), one(), token)
    driver.publish()
    rig.use((1, 9), (0, 0))
    broken("wrote 9 bytes into chain 1", driver.take)


def test_packed_descriptors_that_break_a_rule() -> None:
    """Ids that are not outstanding, lengths beyond what is writable (VIRTIO 2.8.2, 2.8.4)."""
    for (size, identity, flags), words in (
        ((0, 2, 0), "returned buffer 2"),
        ((0, 0xFFFF, W), "returned buffer 65535"),
        ((1, 0, W), "wrote 1 bytes into buffer 0, which has room for 0"),
        ((514, 1, W), "wrote 514 bytes into buffer 1, which has room for 513"),
    ):
        rig = Rig(4, PACKED)
        driver = rig.driver()
        driver.add(one(), (), "a")
        driver.add(one(), one(513), "b")
        driver.publish()
        rig.describe(0, 0, size, identity, flags | A | U)
        broken(words, driver.take, driver.publish, *later(driver))
    rig = Rig(4, PACKED)
    driver = rig.driver()
    for _ in range(2):
        driver.add(one(), (), None)
    driver.publish()
    rig.describe(0, 0, 0, 0, A | U)
    rig.describe(1, 0, 0, 0, A | U)
    assert driver.take()
    broken("returned buffer 0, which it does not have", driver.take)


def test_a_driver_believes_itself() -> None:
    """What a device scribbles over descriptors, tables and the available ring changes nothing."""
    for features in (0, INDIRECT, PACKED, PACKED | INDIRECT):
        rig = Rig(4, features, entries=4)
        driver, device = rig.driver(), rig.device()
        driver.add(one(), one(513), "token")
        driver.publish()
        chain = device.pop()
        assert chain
        rig.bytes[DESCRIPTORS : DESCRIPTORS + 64] = b"\xff" * 64 if not features & PACKED else bytes(64)
        device.push(chain, 7)
        device.publish()
        assert driver.take() == Used("token", 7)
        assert driver.free == 4


# -- memory that goes away ----


class Vanishing(WatchedMemory):
    """Memory that ends, when it is told so."""

    gone = False

    def read(self, address: int, size: int) -> memoryview:
        if self.gone:
            raise BadAddress(address, size)
        return super().read(address, size)

    def load16(self, address: int) -> int:
        if self.gone:
            raise BadAddress(address, 2)
        return super().load16(address)

    def store16(self, address: int, value: int) -> None:
        if self.gone:
            raise BadAddress(address, 2)
        super().store16(address, value)

    def write(self, address: int, data: Buffer) -> None:
        if self.gone:
            raise BadAddress(address, len(data))
        super().write(address, data)


@pytest.mark.parametrize(
    "features", [0, PACKED, INDIRECT, PACKED | INDIRECT, EVENT, PACKED | EVENT, IN_ORDER, PACKED | IN_ORDER]
)
def test_memory_that_is_not_there(features: int) -> None:
    """Every operation that meets a bad address breaks the queue, and nothing else comes out (a revoked grant, a page
    that was taken away).
    """

    def ends() -> tuple[Vanishing, Rig]:
        rig = Rig(4, features, entries=4)
        memory = Vanishing(rig.bytes)
        rig.memory = memory
        return memory, rig

    def ready(steps: int) -> list[Callable[[], object]]:
        """A queue after some steps, whose memory goes away; what may be tried then."""
        memory, rig = ends()
        driver, device = rig.driver(), rig.device()
        chain: Chain | None = None
        for step in range(steps):
            match step:
                case 0:
                    driver.add(one(), one(), None)
                case 1:
                    driver.publish()
                case 2:
                    chain = device.pop()
                case 3:
                    assert chain
                    device.push(chain, 0)
                case 4:
                    device.publish()
        memory.gone = True
        tries: list[Callable[[], object]] = [
            lambda: driver.add(one(), one(), None), driver.take, device.pop, lambda: driver.want_interrupts(True),
            lambda: driver.want_interrupts(False), lambda: device.want_notifications(True),
            lambda: device.want_notifications(False),
        ]  # fmt: skip
        if steps == 1:
            tries.append(driver.publish)
        if steps == 3 and chain and features in (0, EVENT, INDIRECT):
            tries.append(lambda: device.push(chain, 0))
        if steps == 4:
            tries.append(device.publish)
        return tries

    for steps in range(6):
        for index in range(len(ready(steps))):
            broken("outside the memory", ready(steps)[index])


def test_a_layout_outside_memory() -> None:
    """A device finds out with its first look, a driver when it zeroes the queue."""
    for features in (0, PACKED):
        area = queue_area(4, features, 1 << 40)
        memory = FlatMemory(bytearray(64))
        device = device_queue(area.layout, features, memory)
        broken("outside", device.pop)
        with pytest.raises(ValueError, match="outside"):
            driver_queue(area.layout, features, memory)
    area = queue_area(4, 0, 1 << 40)
    with pytest.raises(QueueBroken, match="outside"):
        device_queue(area.layout, 0, FlatMemory(bytearray(64)), 0)
