"""What both formats of a virtqueue do, whatever it looks like in memory (VIRTIO 2.6, 2.7, 2.8)."""

from __future__ import annotations

import pytest

from hmx.virtio.chain import QueueBroken, Used
from hmx.virtio.queues import AnyDeviceQueue
from tests.hmx.virtio.queue_rig import EVENT, IN_ORDER, INDIRECT, PACKED, Rig, one

SPLIT = 0
either = pytest.mark.parametrize("form", [SPLIT, PACKED], ids=["split", "packed"])
in_either_order = pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any-order", "in-order"])
by_either_wish = pytest.mark.parametrize("wish", [0, EVENT], ids=["flags", "event-idx"])


def pushed(device: AnyDeviceQueue, *written: int) -> None:
    """The device pops as many chains and pushes them with these lengths."""
    for length in written:
        chain = device.pop()
        assert chain
        device.push(chain, length)


@either
def test_when_not_indirect(form: int) -> None:
    """One segment, more than a table holds, no tables, or no feature: descriptors of the ring (VIRTIO 2.7.5.3)."""
    for features, entries, count, slots in (
        (INDIRECT, 2, 1, 1),
        (INDIRECT, 2, 3, 3),
        (INDIRECT, 0, 2, 2),
        (0, 2, 2, 2),
    ):
        rig = Rig(4, form | features, entries=entries)
        driver = rig.driver()
        driver.add(one() * count, (), None)
        assert driver.free == 4 - slots
        driver.publish()
        assert not any(rig.is_indirect(index) for index in range(4))
        chain = rig.device().pop()
        assert chain and len(chain.readable) == count


@either
def test_two_segments_are_indirect(form: int) -> None:
    """The smallest chain that a table is for."""
    rig = Rig(4, form | INDIRECT, entries=2)
    driver = rig.driver()
    driver.add(one(), one(), None)
    driver.publish()
    assert driver.free == 3 and rig.is_indirect(0)


@either
@in_either_order
def test_a_device_returns_what_it_has(form: int, order: int) -> None:
    """Twice, something else, or too many bytes: the device's own mistake."""
    rig = Rig(4, form | order)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), one(513), None)
    driver.publish()
    chain = device.pop()
    assert chain and device.in_flight == 1
    for written in (-1, 514, 1 << 32):
        with pytest.raises(ValueError, match="room for 513"):
            device.push(chain, written)
    device.push(chain, 513)
    assert device.in_flight == 0
    with pytest.raises(ValueError, match="returned already"):
        device.push(chain, 0)
    with pytest.raises(ValueError, match="was not popped"):
        device.push(chain._replace(head=3), 0)


@either
def test_in_order_lengths(form: int) -> None:
    """A batch lies where its first chain would and names its last, which alone may not be used completely
    (VIRTIO 2.7.9, 2.8.8).
    """
    rig = Rig(8, form | IN_ORDER)
    driver, device = rig.driver(), rig.device()
    lengths = (8, 3, 8, 8, 0, 8)
    for token in range(6):
        driver.add((), one(), token)
    driver.publish()
    pushed(device, *lengths)
    device.publish()
    assert rig.returned(6) == [(0, 1, 3), (2, 4, 0), (5, 5, 8)]
    assert [driver.take() for _ in range(6)] == [Used(token, length) for token, length in enumerate(lengths)]


@either
@in_either_order
def test_giving_up(form: int, order: int) -> None:
    """All tokens that were not taken, in order, published or not; the queue is of no use after that."""
    rig = Rig(8, form | order)
    driver, device = rig.driver(), rig.device()
    for token in "abcd":
        driver.add(one(), (), token)
        if token != "d":
            driver.publish()
    pushed(device, 0)
    device.publish()
    assert driver.take() == Used("a", 0)
    assert driver.abandon() == ["b", "c", "d"]
    assert driver.outstanding == 0 and driver.abandon() == []
    for operation in (driver.take, driver.publish, lambda: driver.add(one(), (), "e")):
        with pytest.raises(QueueBroken, match="given up"):
            operation()


@either
@in_either_order
def test_giving_up_in_a_batch(form: int, order: int) -> None:
    """What came back and was not taken is given up too; nothing comes after that."""
    rig = Rig(4, form | order)
    driver, device = rig.driver(), rig.device()
    for token in range(3):
        driver.add(one(), (), token)
    driver.publish()
    pushed(device, 0, 0, 0)
    device.publish()
    assert driver.take() == Used(0, 0)
    assert driver.abandon() == [1, 2]
    with pytest.raises(QueueBroken, match="given up"):
        driver.take()


# -- who is notified ----


@either
@by_either_wish
@pytest.mark.parametrize("asked", [False, True])
def test_an_end_that_found_nothing_may_sleep(form: int, wish: int, asked: bool) -> None:
    """While notifications are wanted, as they are at first, whoever found nothing is told of the next; nothing is
    stored again without need.
    """
    rig = Rig(4, form | wish)
    driver, device = rig.driver(), rig.device()
    if asked:
        assert not driver.want_interrupts(True) and not device.want_notifications(True)
    for number in range(10):
        assert device.pop() is None and driver.take() is None
        before = len(rig.memory.writes)
        assert device.pop() is None and driver.take() is None
        assert len(rig.memory.writes) == before
        driver.add(one(), (), None)
        assert driver.publish(), number
        pushed(device, 0)
        assert device.publish(), number
        assert driver.take()


@either
@by_either_wish
def test_what_came_meanwhile(form: int, wish: int) -> None:
    """Asking answers True when something is there that was not taken (VIRTIO 2.7.14)."""
    rig = Rig(4, form | wish)
    driver, device = rig.driver(), rig.device()
    driver.add(one(), (), None)
    assert not device.want_notifications(True)
    driver.publish()
    assert device.want_notifications(True) and not device.want_notifications(False)
    chain = device.pop()
    assert chain and not device.want_notifications(True)
    device.push(chain, 0)
    assert not driver.want_interrupts(True)
    device.publish()
    assert driver.want_interrupts(True)
    assert driver.take() == Used(None, 0) and not driver.want_interrupts(True)
