"""Packed virtqueues beyond the golden table: what each end writes where, and when (VIRTIO 2.8)."""

from __future__ import annotations

import pytest

from hmx.virtio.chain import QueueBroken, QueueFull, Used
from hmx.virtio.packed import off_wrap, position_of
from tests.hmx.virtio.queue_rig import (
    DESCRIPTORS,
    DEVICE,
    DRIVER,
    EVENT,
    IN_ORDER,
    IND,
    INDIRECT,
    PACKED,
    TABLES,
    A,
    N,
    Rig,
    U,
    W,
    one,
    segments,
)


def flags_at(slot: int) -> int:
    """The address of a descriptor's flags."""
    return DESCRIPTORS + 16 * slot + 14


def test_publish_is_one_step() -> None:
    """However many chains were added or pushed, one store of flags opens them, and it comes last (VIRTIO 2.8.6)."""
    rig = Rig(5, PACKED)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), one(), "a")
    driver.add(one(), (), "b")
    assert rig.descriptor(0)[3] == 0 and device.pop() is None
    assert rig.descriptor(1)[3] == W | A and rig.descriptor(2)[3] == A
    assert driver.publish()
    assert rig.memory.writes[-1] == (flags_at(0), 2)
    assert rig.descriptor(0)[3] == N | A
    chains = [device.pop(), device.pop(), device.pop()]
    assert [chain and (chain.head, chain.slots) for chain in chains] == [(0, 2), (1, 1), None]
    assert not driver.publish()
    for chain in chains[:2]:
        assert chain
        device.push(chain, 0)
    assert driver.take() is None
    assert device.publish()
    assert rig.memory.writes[-1] == (flags_at(0), 2)
    assert [driver.take(), driver.take(), driver.take()] == [Used("a", 0), Used("b", 0), None]
    assert not device.publish()


def test_the_order_of_accesses() -> None:
    """Fences: descriptors, fence, the first flags, fence, the other's wishes; and flags, fence, the rest
    (VIRTIO 2.8.20, 2.8.21).
    """
    rig = Rig(4, PACKED)
    names = {flags_at(0): "flags", DRIVER + 2: "driver event", DEVICE + 2: "device event"}
    log = rig.log(names)
    driver, device = rig.driver(), rig.device()
    log.clear()
    driver.add(one(), (), None)
    driver.publish()
    chain = device.pop()
    assert chain
    device.push(chain, 0)
    device.publish()
    driver.take()
    assert log == [
        "store entry", "fence", "store flags", "fence", "load device event",
        "load flags", "fence", "load entry",
        "store entry", "fence", "store flags", "fence", "load driver event",
        "load flags", "fence", "load entry",
    ]  # fmt: skip


@pytest.mark.parametrize("features", [PACKED, PACKED | EVENT])
def test_asking_and_looking(features: int) -> None:
    """A fence between the wish and the look at the next descriptor, or a notification is missed."""
    rig = Rig(4, features)
    log = rig.log({flags_at(0): "flags", DRIVER + 2: "wish", DEVICE + 2: "wish"})
    driver, device = rig.driver(), rig.device()
    position = ["store entry"] if features & EVENT else []
    for ask in (driver.want_interrupts, device.want_notifications):
        log.clear()
        assert not ask(True)
        assert log == [*position, "store wish", "fence", "load flags"]
        log.clear()
        assert not ask(True)
        assert log == ["fence", "load flags"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_laps(size: int) -> None:
    """Wrap counters, for sizes of any kind: chains of all lengths, across the end of the ring (VIRTIO 2.8.1)."""
    rig = Rig(size, PACKED)
    driver, device = rig.driver(), rig.device()
    position = 0
    for number in range(8 * size):
        count = 1 + number % size
        driver.add(one() * (count - 1), one(), number)
        assert driver.notification_data() == off_wrap(position, size)
        driver.publish()
        position = (position + count) % (2 * size)
        assert driver.notification_data() == off_wrap(position, size)
        chain = device.pop()
        assert chain and chain.slots == count and device.pop() is None
        device.push(chain, 5)
        assert driver.take() is None
        device.publish()
        assert driver.take() == Used(number, 5) and driver.take() is None
        assert driver.free == size
        assert device.position == off_wrap(position, size) * 0x1_0001


def test_positions() -> None:
    """Slot in 15 bits, wrap counter above them; a slot beyond the queue is none (reference: vhost GET_VRING_BASE)."""
    assert [off_wrap(position, 3) for position in range(6)] == [0x8000, 0x8001, 0x8002, 0, 1, 2]
    assert [position_of(off_wrap(position, 3), 3) for position in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="slot 3 of a queue of 3"):
        position_of(3, 3)
    rig = Rig(3, PACKED)
    for position in (0x8003_8000, 0x8000_8003, 0x7FFF_8000):
        with pytest.raises(QueueBroken, match="of a queue of 3"):
            rig.device(position)
    with pytest.raises(QueueBroken, match="more than 3 slots"):
        rig.device(0x8002_8000)
    assert rig.device(0x8000_0000).pop() is None


def test_a_position_is_where_another_goes_on() -> None:
    """Both positions travel: chains that the earlier end returned are gone, the next ones are there."""
    rig = Rig(3, PACKED)
    driver, device = rig.driver(), rig.device()
    for token in range(3):
        driver.add((), one(), token)
    driver.publish()
    for _ in range(2):
        chain = device.pop()
        assert chain
        device.push(chain, 1)
    device.publish()
    assert device.position == 0x8002_8002
    later = rig.device(device.position)
    chain = later.pop()
    assert chain and chain.head == 2
    later.push(chain, 1)
    later.publish()
    assert later.position == 0
    assert [driver.take() for _ in range(4)] == [Used(0, 1), Used(1, 1), Used(2, 1), None]


def test_a_full_queue() -> None:
    """Free descriptors are counted (VIRTIO 2.8.16); ids of buffers that came back are used again."""
    rig = Rig(3, PACKED)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), one(), 0)
    with pytest.raises(QueueFull):
        driver.add(one(), one(), 1)
    driver.add(one(), (), 1)
    assert (driver.free, driver.outstanding) == (0, 2)
    driver.publish()
    chains = [device.pop(), device.pop()]
    assert chains[1]
    device.push(chains[1], 0)
    device.publish()
    assert driver.take() == Used(1, 0)
    assert driver.free == 1
    driver.add(one(), (), 2)
    driver.publish()
    chain = device.pop()
    assert chain and chain.head != chains[0].head if chains[0] else False
    assert driver.free == 0


def test_out_of_order() -> None:
    """Used descriptors lie where the next used one goes, whichever buffer they name; each side skips as many slots as
    that buffer had (VIRTIO 2.8.6).
    """
    rig = Rig(6, PACKED)
    driver, device = rig.driver(), rig.device()
    for token, count in enumerate((3, 1, 2)):
        driver.add((), one() * count, token)
    driver.publish()
    chains = [chain for _ in range(3) if (chain := device.pop())]
    for chain, slot in zip(chains[::-1], (0, 2, 3), strict=True):
        device.push(chain, 1)
        device.publish()
        assert rig.descriptor(slot)[1:] == (1, chain.head, W | A | U)
    assert [driver.take() for _ in range(4)] == [Used(2, 1), Used(1, 1), Used(0, 1), None]
    assert driver.free == 6


def test_a_length_without_the_flag() -> None:
    """VIRTIO 2.8.4 lets drivers ignore it; QEMU never sets WRITE in a used descriptor, so a length that can be is
    believed, as Linux does; one that cannot be counts as nothing, and breaks nothing.
    """
    for length, expected in ((0, 0), (7, 7), (8, 8), (9, 0), (0xFFFF_FFFF, 0)):
        rig = Rig(4, PACKED)
        driver = rig.driver()
        identity = driver.add((), one(8), "token")
        driver.publish()
        rig.describe(0, 0, length, identity, A | U)
        assert driver.take() == Used("token", expected)


def test_indirect() -> None:
    """Consecutive entries in which only WRITE is set; one slot (VIRTIO 2.8.7)."""
    rig = Rig(4, PACKED | INDIRECT, entries=3)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), (), "direct")
    head = driver.add(segments([(0x10000, 16)]), segments([(0x11000, 512), (0x12000, 1)]), "indirect")
    assert driver.free == 2
    table = TABLES + 3 * 16 * head
    assert rig.descriptor(1) == (table, 48, head, IND | A)
    assert [rig.descriptor(index, table) for index in range(3)] == [
        (0x10000, 16, 0, 0),
        (0x11000, 512, 0, W),
        (0x12000, 1, 0, W),
    ]
    driver.publish()
    device.pop()
    chain = device.pop()
    assert chain and chain.slots == 1 and chain.head == head
    assert chain.readable == segments([(0x10000, 16)]) and chain.writable == segments([(0x11000, 512), (0x12000, 1)])
    device.push(chain, 513)
    device.publish()
    assert driver.take() == Used("indirect", 513)


def test_a_table_is_bounded() -> None:
    """As many entries as the largest queue has descriptors, no more: it is read as a whole."""
    for count, good in ((32768, True), (32769, False)):
        rig = Rig(2, PACKED | INDIRECT)
        for index in range(count):
            rig.describe(index, 0x1000, 1, 0, 0, 0x20000)
        rig.describe(0, 0x20000, 16 * count, 0, IND | A)
        if good:
            chain = rig.device().pop()
            assert chain and len(chain.readable) == count
        else:
            with pytest.raises(QueueBroken, match="has 524304 bytes"):
                rig.device().pop()


def test_in_order_waits() -> None:
    """Chains pushed early wait for those before them; a batch has one descriptor, at the place of its first
    (VIRTIO 2.8.8).
    """
    rig = Rig(6, PACKED | IN_ORDER)
    driver, device = rig.driver(), rig.device()
    for token, count in enumerate((2, 1, 2, 1)):
        driver.add((), one() * count, token)
    driver.publish()
    first, second, third, fourth = (chain for _ in range(4) if (chain := device.pop()))
    device.push(third, 16)
    device.push(second, 8)
    assert not device.publish() and driver.take() is None
    device.push(first, 16)
    assert device.publish()
    assert rig.descriptor(0)[1:] == (16, third.head, W | A | U)
    assert [rig.descriptor(slot)[3] & U for slot in range(1, 6)] == [0] * 5
    assert driver.take() == Used(0, 16)
    assert driver.want_interrupts(True), "two more came with it"
    assert driver.take() == Used(1, 8)
    assert driver.want_interrupts(True), "one more"
    assert driver.take() == Used(2, 16)
    assert not driver.want_interrupts(True) and driver.take() is None
    device.push(fourth, 8)
    assert device.publish()
    assert rig.descriptor(5)[1:] == (8, fourth.head, W | A | U)
    assert driver.take() == Used(3, 8) and driver.free == 6
