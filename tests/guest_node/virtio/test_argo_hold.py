"""Event suppression over VirtIO-Argo: it saves messages, and holds nothing up for good.

Source: docs/virtio-argo.md, event suppression; VIRTIO 1.4, 2.7.7 and 2.7.10 (split), 2.8.10 (packed).
"""

from __future__ import annotations

import asyncio
import struct

import pytest

from guest_node.virtio.argo_hold import LONGEST, Hold
from guest_node.virtio.argo_image import RingImage, plan_image
from guest_node.virtio.frontend import Queue
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import Feature, feature_set
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import KeepingModel, World

PACKED = feature_set(Feature.RING_PACKED)
EVENT_IDX = feature_set(Feature.RING_EVENT_IDX)


@pytest.mark.parametrize(
    ("features", "driver", "at", "word", "made", "later"),
    [
        # split, size 8: descriptors 0, available ring 128 (used_event 148), used ring 152 (avail_event 220)
        (0, True, 152, 0, 5, False),
        (0, True, 152, 1, 5, True),  # NO_NOTIFY
        (0, True, 220, 9, 5, False),  # no event index without EVENT_IDX
        (0, False, 128, 1, 5, True),  # NO_INTERRUPT
        (EVENT_IDX, True, 152, 1, 5, False),  # flags mean nothing with EVENT_IDX (event index 0 was passed)
        (EVENT_IDX, True, 220, 4, 5, False),  # reached by the entry that was just made
        (EVENT_IDX, True, 220, 5, 5, True),  # the next one is wanted
        (EVENT_IDX, True, 220, 12, 5, True),
        (EVENT_IDX, True, 220, 13, 5, False),  # further ahead than the queue is long: an old one
        (EVENT_IDX, True, 220, 2, 0xFFFE, True),  # modulo 2^16
        (EVENT_IDX, True, 220, 0xFFFD, 0xFFFE, False),
        (EVENT_IDX, False, 148, 7, 5, True),
        (EVENT_IDX, False, 148, 4, 5, False),
        # packed, size 8: descriptors 0, driver's events 128, device's 132; flags behind the position
        (PACKED, True, 134, 0, 0x8005, False),
        (PACKED, True, 134, 1, 0x8005, True),  # DISABLE
        (PACKED, True, 134, 2, 0x8005, False),  # DESC without EVENT_IDX
        (PACKED, False, 130, 1, 0x8005, True),
        (PACKED | EVENT_IDX, True, 134, 0, 0x8005, False),
        (PACKED | EVENT_IDX, True, 134, 1, 0x8005, True),
    ],
)
def test_what_the_other_side_wants(features: int, driver: bool, at: int, word: int, made: int, later: bool) -> None:
    """Flags, or with EVENT_IDX a position that lies ahead."""
    plan = plan_image(8, features)
    image = RingImage(plan.size)
    if features == EVENT_IDX and at == 152:
        image.store16(220, 0)
    image.store16(at, word)
    assert Hold(image, plan.layout, features, driver, lambda: None)._later(made) is later


@pytest.mark.parametrize(
    ("event", "made", "later"),
    [
        (0x8004, 0x8005, False),
        (0x8005, 0x8005, True),
        (0x8007, 0x8005, True),
        (0x0000, 0x8005, True),  # the next lap, whose counter is 0
        (0x0004, 0x8005, True),
        (0x0005, 0x8005, False),  # a whole queue ahead
        (0x8001, 0x0006, True),
        (0x8008, 0x8005, False),  # a slot that the queue does not have
    ],
)
def test_positions_of_a_packed_queue(event: int, made: int, later: bool) -> None:
    """VIRTIO 2.8.10: slot and wrap counter; ahead is less than one lap."""
    features = PACKED | EVENT_IDX
    plan = plan_image(8, features)
    image = RingImage(plan.size)
    image.store16(132, event)
    image.store16(134, 2)
    assert Hold(image, plan.layout, features, True, lambda: None)._later(made) is later


@pytest.mark.parametrize(
    ("features", "driver", "at", "seen", "more", "event"),
    [
        (EVENT_IDX, False, 220, 0xFFFE, 4, 2),
        (EVENT_IDX, True, 148, 7, 3, 10),
        (PACKED | EVENT_IDX, False, 132, 0x8006, 4, 0x0002),
        (PACKED | EVENT_IDX, False, 132, 0x0006, 4, 0x8002),
        (PACKED | EVENT_IDX, True, 128, 0x8001, 2, 0x8003),
    ],
)
def test_asking_for_later(features: int, driver: bool, at: int, seen: int, more: int, event: int) -> None:
    """The own event index, ahead of what was seen; taken back with 0."""
    plan = plan_image(8, features)
    image = RingImage(plan.size)
    hold = Hold(image, plan.layout, features, driver, lambda: None)
    hold.ask(seen, 0)
    assert image.changes() == [], "the queue says by itself that it wants the next one"
    hold.ask(seen, more)
    assert image.changes() == [(at, struct.pack("<H", event))]
    hold.ask(seen, 0)
    assert image.changes() == [(at, struct.pack("<H", seen))]
    hold.ask(seen, 0)
    assert image.changes() == []
    without = Hold(image, plan.layout, features & ~EVENT_IDX, driver, lambda: None)
    without.ask(seen, more)
    assert image.changes() == []


def test_nothing_waits_for_ever() -> None:
    """A wish that is not taken back ends after a while; one that is, at once."""

    async def main() -> None:
        plan = plan_image(8, EVENT_IDX)
        image = RingImage(plan.size)
        released: list[float] = []
        now = asyncio.get_running_loop().time
        hold = Hold(image, plan.layout, EVENT_IDX, True, lambda: released.append(now()))
        image.store16(220, 5)
        assert hold.holds(1) and hold.holds(2)
        start = now()
        await asyncio.sleep(1)
        assert released == [pytest.approx(start + LONGEST)]
        assert not hold.holds(2) and hold.holds(3)
        hold.reconsider(3)
        assert len(released) == 1
        image.store16(220, 2)
        hold.reconsider(3)
        assert len(released) == 2 and not hold.holds(3)
        image.store16(220, 7)
        assert hold.holds(4)
        hold.end()
        await asyncio.sleep(1)
        assert len(released) == 2

    simulate(main)


async def fill(queue: Queue) -> list[asyncio.Future[bytes]]:
    futures = []
    while True:
        try:
            futures.append(queue.submit((), 64))
        except QueueFull:
            await queue.kick()
            return futures


@pytest.mark.parametrize(
    ("avoid", "most"), [(0, 8), (PACKED, 8), (EVENT_IDX, 64), (PACKED | EVENT_IDX, 64)]
)
def test_buffers_that_nobody_waits_for_are_not_told_of_one_by_one(avoid: int, most: int) -> None:
    """A receiving queue: while the device has many buffers, those that are given back share messages."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((64,)))
        transport, (_, (queue,)) = await world.device(avoid=avoid, size=64)
        futures = await fill(queue)
        await asyncio.sleep(0.01)
        kept = world.models[0].kept  # type: ignore[union-attr]
        assert len(kept) == len(futures) == 64
        before = transport.bus.traffic.sent  # type: ignore[attr-defined]
        for packet in range(64):
            kept.pop(0).complete(packet.to_bytes(2, "little"))
            assert await futures.pop(0) == packet.to_bytes(2, "little")
            futures.append(queue.submit((), 64))
            await queue.kick()
        spent = transport.bus.traffic.sent - before  # type: ignore[attr-defined]
        assert spent <= most and (most < 64 or spent == 64)
        await asyncio.sleep(1)
        assert len(kept) == 64, "the last ones were told of after a while"

    simulate(main)


@pytest.mark.parametrize("avoid", [0, PACKED])
def test_a_device_that_runs_short_asks_at_once(avoid: int) -> None:
    """Fewer than half of the buffers: the wish is taken back with the next answer, and all that waited comes."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((16,)))
        _, (_, (queue,)) = await world.device(avoid=avoid, size=16)
        futures = await fill(queue)
        await asyncio.sleep(0.01)
        kept = world.models[0].kept  # type: ignore[union-attr]
        kept.pop(0).complete(b"a")
        assert await futures.pop(0) == b"a"
        futures.append(queue.submit((), 64))
        await queue.kick()
        await asyncio.sleep(0.01)
        assert len(kept) == 15, "it waits"
        for _ in range(9):
            kept.pop(0).complete(b"b")
        await asyncio.sleep(0.01)
        assert len(kept) == 7, "it came at once"

    simulate(main)
