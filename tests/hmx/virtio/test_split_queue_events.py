"""Who is notified in a split virtqueue: flags and event indexes (VIRTIO 2.7.7, 2.7.10)."""

from __future__ import annotations

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
