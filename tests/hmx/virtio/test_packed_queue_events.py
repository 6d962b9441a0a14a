"""Who is notified in a packed virtqueue: event suppression structures (VIRTIO 2.8.10)."""

from __future__ import annotations

from tests.hmx.virtio.queue_rig import (
    DESC,
    DISABLE,
    DRIVER,
    ENABLE,
    EVENT,
    PACKED,
    Rig,
    one,
)


def test_events() -> None:
    """ENABLE and DISABLE; with EVENT_IDX the position of the next descriptor (VIRTIO 2.8.10)."""
    for features in (PACKED, PACKED | EVENT):
        rig = Rig(3, features)
        driver, device = rig.driver(), rig.device()
        assert not driver.want_interrupts(False) and not device.want_notifications(False)
        assert (rig.driver_event[2], rig.device_event[2]) == (DISABLE, DISABLE)
        for position in range(7):
            driver.add(one(), (), None)
            assert not driver.publish()
            chain = device.pop()
            assert chain
            device.push(chain, 0)
            assert not device.publish()
            assert driver.take()
            assert not driver.want_interrupts(True) and not device.want_notifications(True)
            where = ((position + 1) % 3, 1 - (position + 1) // 3 % 2, DESC) if features & EVENT else (0, 0, ENABLE)
            assert (rig.driver_event, rig.device_event) == (where, where)
            driver.want_interrupts(False)
            device.want_notifications(False)


def test_events_that_make_no_sense() -> None:
    """A reserved value, DESC without EVENT_IDX, a slot that is not there: one notification too many does no harm."""
    for features, event in (
        (PACKED, (0, 1, 3)),
        (PACKED, (2, 1, DESC)),
        (PACKED | EVENT, (3, 0, DESC)),
        (PACKED | EVENT, (3, 1, DESC)),
        (PACKED | EVENT, (0, 1, 3)),
    ):
        rig = Rig(3, features)
        driver, device = rig.driver(), rig.device()
        rig.device_event = rig.driver_event = event
        driver.add(one(), (), None)
        assert driver.publish()
        chain = device.pop()
        assert chain
        device.push(chain, 0)
        assert device.publish()


def test_a_wish_is_told_once() -> None:
    """Flags change when the wish does; with EVENT_IDX a new position is one store."""
    rig = Rig(4, PACKED | EVENT)
    driver, device = rig.driver(), rig.device()
    driver.want_interrupts(True)
    assert rig.memory.writes == [(DRIVER, 2), (DRIVER + 2, 2)]
    driver.want_interrupts(True)
    assert len(rig.memory.writes) == 2
    driver.add(one(), (), None)
    driver.publish()
    chain = device.pop()
    assert chain
    device.push(chain, 0)
    device.publish()
    driver.take()
    rig.memory.writes.clear()
    driver.want_interrupts(True)
    assert rig.memory.writes == [(DRIVER, 2)]
    for wanted in (False, False):
        driver.want_interrupts(wanted)
    assert rig.memory.writes == [(DRIVER, 2), (DRIVER + 2, 2)]
