"""Who is notified in a split virtqueue: flags and event indexes (VIRTIO 2.7.7, 2.7.10)."""

from __future__ import annotations

import pytest

from hmx.virtio.chain import Used
from tests.hmx.virtio.queue_rig import (
    DRIVER,
    EVENT,
    Rig,
    one,
)


def test_asking_for_no_event() -> None:
    """With EVENT_IDX there is no flag to say no with: the event goes to where the other was long ago (VIRTIO 2.7.7)."""
    rig = Rig(4, EVENT)
    driver, device = rig.driver(), rig.device()
    assert not driver.want_interrupts(True) and not device.want_notifications(True)
    assert not driver.want_interrupts(False) and not device.want_notifications(False)
    assert (rig.used_event, rig.avail_event) == (0xFFFF, 0xFFFF)
    for _ in range(3):
        driver.add(one(), (), None)
        assert not driver.publish()
        chain = device.pop()
        assert chain
        device.push(chain, 0)
        assert not device.publish()
    assert driver.take()
    assert driver.want_interrupts(True), "two are there"
    assert rig.used_event == 1
    driver.want_interrupts(False)
    assert rig.used_event == 0
    driver.want_interrupts(True)
    assert rig.used_event == 1, "again, though nothing was taken since"


@pytest.mark.parametrize("features", [0, EVENT])
def test_an_end_that_found_nothing_may_sleep(features: int) -> None:
    """While notifications are wanted, as they are at first, whoever found nothing is told of the next; nothing is
    stored again without need.
    """
    rig = Rig(4, features)
    driver, device = rig.driver(), rig.device()
    for number in range(6):
        assert device.pop() is None and driver.take() is None
        before = len(rig.memory.writes)
        assert device.pop() is None and driver.take() is None
        assert len(rig.memory.writes) == before
        driver.add(one(), (), None)
        assert driver.publish(), number
        chain = device.pop()
        assert chain
        device.push(chain, 0)
        assert device.publish(), number
        assert driver.take()


def test_flags_are_told_once() -> None:
    """A wish that is already in memory is not stored again."""
    rig = Rig(4)
    driver = rig.driver()
    driver.want_interrupts(False)
    driver.want_interrupts(False)
    assert rig.memory.writes == [(DRIVER, 2)] and rig.avail_flags == 1
    driver.want_interrupts(True)
    driver.want_interrupts(True)
    assert rig.memory.writes == [(DRIVER, 2)] * 2 and rig.avail_flags == 0


def test_what_came_meanwhile() -> None:
    """Asking answers True when something is there that was not taken (VIRTIO 2.7.14)."""
    for features in (0, EVENT):
        rig = Rig(4, features)
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
