"""Split virtqueues beyond the golden table: what each end writes where, and when (VIRTIO 2.7)."""

from __future__ import annotations

import pytest

from hmx.virtio.chain import QueueBroken, QueueFull, Segment, Used
from tests.hmx.virtio.queue_rig import (
    DEVICE,
    DRIVER,
    EVENT,
    IN_ORDER,
    IND,
    INDIRECT,
    TABLES,
    N,
    Rig,
    W,
    one,
    segments,
)


def test_publish_is_one_step() -> None:
    """Chains are seen together, after `publish`; the index is the last that is written (VIRTIO 2.7.13.3)."""
    rig = Rig()
    driver, device = rig.driver(), rig.device()
    heads = [driver.add(one(), (), token) for token in "ab"]
    assert heads == [0, 1] and device.pop() is None
    assert driver.publish()
    assert rig.memory.writes[-1] == (DRIVER + 2, 2)
    chains = [device.pop(), device.pop(), device.pop()]
    assert [chain and chain.head for chain in chains] == [0, 1, None]
    assert not driver.publish(), "nothing new: no notification"
    for chain in chains[:2]:
        assert chain
        device.push(chain, 0)
    assert driver.take() is None
    assert device.publish()
    assert rig.memory.writes[-1] == (DEVICE + 2, 2)
    assert [driver.take(), driver.take(), driver.take()] == [Used("a", 0), Used("b", 0), None]
    assert not device.publish()


def test_the_order_of_accesses() -> None:
    """Fences: entries, fence, index, fence, the other's wishes; and index, fence, entries (VIRTIO 2.7.13, 2.7.14)."""
    rig = Rig()
    log = rig.log({DRIVER + 2: "avail.idx", DEVICE + 2: "used.idx", DRIVER: "avail.flags", DEVICE: "used.flags"})
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
        "store entry", "store entry", "fence", "store avail.idx", "fence", "load used.flags",
        "load avail.idx", "fence", "load entry", "load entry",
        "store entry", "fence", "store used.idx", "fence", "load avail.flags",
        "load used.idx", "fence", "load entry",
    ]  # fmt: skip


@pytest.mark.parametrize("features", [0, EVENT])
def test_asking_and_looking(features: int) -> None:
    """A fence between the wish and the look at the index, or a notification is missed (VIRTIO 2.7.14)."""
    rig = Rig(4, features)
    log = rig.log({DRIVER + 2: "avail.idx", DEVICE + 2: "used.idx", DRIVER: "avail.flags", DEVICE: "used.flags"})
    driver, device = rig.driver(), rig.device()
    wish = "entry" if features else "{}.flags"
    for ask, own, other in (
        (driver.want_interrupts, "avail", "used"),
        (device.want_notifications, "used", "avail"),
    ):
        log.clear()
        assert not ask(True)
        assert log == [f"store {wish}".format(own), "fence", f"load {other}.idx"]
        log.clear()
        assert not ask(True)
        assert log == ["fence", f"load {other}.idx"]


def test_a_full_queue() -> None:
    """Free descriptors are counted, not chains; they come back with a chain (VIRTIO 2.7.13.1)."""
    rig = Rig(4)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), one(), 0)
    driver.add(one(), (), 1)
    assert (driver.free, driver.outstanding) == (1, 2)
    with pytest.raises(QueueFull):
        driver.add(one(), one(), 2)
    driver.publish()
    chain = device.pop()
    assert chain and chain.slots == 2
    device.push(chain, 8)
    device.publish()
    assert driver.take() == Used(0, 8)
    assert (driver.free, driver.outstanding) == (3, 1)
    driver.add(one(), one(), 2)
    assert driver.free == 1


# -- indirect tables ----


def test_indirect() -> None:
    """A chain of several segments takes one descriptor, whose table links its entries in order (VIRTIO 2.7.5.3)."""
    rig = Rig(4, INDIRECT, entries=3)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), (), "direct")
    head = driver.add(segments([(0x10000, 16)]), segments([(0x11000, 512), (0x12000, 1)]), "indirect")
    assert driver.free == 2
    table = TABLES + 3 * 16 * head
    assert rig.descriptor(head) == (table, 48, IND, 0)
    assert [rig.descriptor(index, table) for index in range(3)] == [
        (0x10000, 16, N, 1),
        (0x11000, 512, W | N, 2),
        (0x12000, 1, W, 0),
    ]
    driver.publish()
    device.pop()
    chain = device.pop()
    assert chain and chain.slots == 1 and chain.head == head
    assert chain.readable == segments([(0x10000, 16)]) and chain.writable == segments([(0x11000, 512), (0x12000, 1)])


def test_a_full_queue_of_tables() -> None:
    """Every head has a table of its own, so all of them can be out at once; never more segments than the queue has
    descriptors (VIRTIO 2.7.5.3.1).
    """
    rig = Rig(4, INDIRECT, entries=8)
    driver, device = rig.driver(), rig.device()
    for token in range(4):
        driver.add(segments([(token << 8, 1), (token << 8 | 1, 1)]), (), token)
        table = TABLES + 8 * 16 * token
        assert rig.descriptor(0, table)[2:] == (N, 1) and rig.descriptor(1, table)[2:] == (0, 0)
    with pytest.raises(QueueFull):
        driver.add(one(), (), None)
    with pytest.raises(ValueError, match="5 segments"):
        driver.add(one() * 5, (), None)
    driver.publish()
    for token in range(4):
        chain = device.pop()
        assert chain and chain.readable == segments([(token << 8, 1), (token << 8 | 1, 1)])


def test_a_table_is_bounded() -> None:
    """A table longer than the queue is taken, as drivers make them; one beyond the largest queue is not."""
    rig = Rig(2, INDIRECT)
    count = 40000
    for index in range(count):
        rig.describe(index, 0x1000, 1, N if index + 1 < count else 0, index + 1 & 0xFFFF, 0x20000)
    rig.describe(0, 0x20000, 16 * count, IND, 0)
    rig.offer(0)
    with pytest.raises(QueueBroken, match="more than 32768 links"):
        rig.device().pop()
    rig.describe(32767, 0x1000, 1, 0, 0, 0x20000)
    chain = rig.device().pop()
    assert chain and len(chain.readable) == 32768


# -- in order ----


def test_in_order_waits() -> None:
    """Chains pushed early wait for those before them; a batch has one element, at the place of its first
    (VIRTIO 2.7.9).
    """
    rig = Rig(4, IN_ORDER)
    driver, device = rig.driver(), rig.device()
    for token in range(4):
        driver.add((), one(), token)
    driver.publish()
    chains = [device.pop() for _ in range(4)]
    assert all(chains)
    first, second, third, fourth = (chain for chain in chains if chain)
    device.push(third, 8)
    device.push(second, 8)
    assert not device.publish() and rig.used_idx == 0 and driver.take() is None
    assert device.in_flight == 2
    device.push(first, 8)
    assert device.publish() and rig.used_idx == 3
    assert rig.used(0) == (third.head, 8)
    assert rig.used(1) == rig.used(2) == (0, 0)
    assert [driver.take() for _ in range(4)] == [Used(0, 8), Used(1, 8), Used(2, 8), None]
    device.push(fourth, 8)
    device.publish()
    assert rig.used(3) == (fourth.head, 8)
    assert driver.take() == Used(3, 8) and driver.free == 4


def test_in_order_descriptors() -> None:
    """Whatever sizes come and go, descriptors are used in ring order (VIRTIO 2.7.5)."""
    rig = Rig(8, IN_ORDER)
    driver, device = rig.driver(), rig.device()
    expected = 0
    for round_ in range(20):
        count = 1 + round_ % 5
        head = driver.add(one() * count, (), None)
        assert head == expected
        for index in range(count - 1):
            assert rig.descriptor((head + index) % 8)[2:] == (N, (head + index + 1) % 8)
        expected = (head + count) % 8
        driver.publish()
        chain = device.pop()
        assert chain
        device.push(chain, 0)
        device.publish()
        assert driver.take()


# -- positions, ends ----


def test_a_position_is_where_another_goes_on() -> None:
    """The index up to which chains were popped; the used index comes from the queue."""
    rig = Rig(4)
    driver, device = rig.driver(), rig.device()
    for token in range(3):
        driver.add((), one(), token)
    driver.publish()
    for _ in range(2):
        chain = device.pop()
        assert chain
        device.push(chain, 1)
    device.publish()
    assert (device.position, device.in_flight) == (2, 0)
    later = rig.device(device.position)
    chain = later.pop()
    assert chain and chain.head == 2
    later.push(chain, 1)
    later.publish()
    assert [driver.take() for _ in range(4)] == [Used(0, 1), Used(1, 1), Used(2, 1), None]
    with pytest.raises(QueueBroken):
        rig.device(9).pop()


def test_one_segment_may_be_anywhere() -> None:
    """Addresses are the driver's business: a device end hands on what stands there."""
    rig = Rig(1)
    driver, device = rig.driver(), rig.device()
    piece = Segment((1 << 64) - 1, 0xFFFF_FFFF)
    driver.add([piece], (), None)
    driver.publish()
    chain = device.pop()
    assert chain and chain.readable == (piece,)
