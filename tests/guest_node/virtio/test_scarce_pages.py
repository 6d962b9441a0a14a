"""Buffers of virtio-mmio queues when the guest, or a device's arena, has few pages: a request waits for those that come
back, and fails with words where none can.
"""

from __future__ import annotations

import asyncio

import pytest

from guest_node.virtio.frontend import DeviceBroken
from guest_node.virtio.guarded import LEAST, Guarded
from guest_node.virtio.iommu_front import Arena
from guest_node.virtio.mmio_queue import MmioQueue, Placement
from guest_node.virtio.models.rng import RngModel
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import Feature, feature_set
from tests.guest_node.virtio.mmio_world import MIB, World, simulate

FEATURES = feature_set(Feature.VERSION_1, Feature.ACCESS_PLATFORM)


async def _silent(_value: int) -> None:
    """Nobody is there."""


async def scarce(world: World, pages: int) -> tuple[Placement, MmioQueue, MmioQueue]:
    """Two queues of one device, whose areas take a page each of an arena of so many."""
    await world.boot()
    memory = world.front.memory
    place = Placement(memory, None, 0, 0, Arena(memory.pages.allocate(pages), pages, 1 << 32))
    first, second = (MmioQueue(index, 8, FEATURES, place, _silent) for index in range(2))
    return place, first, second


def give_back(queue: MmioQueue) -> None:
    """As if the device had used the queue's oldest chain."""
    queue._answered(next(iter(queue._chains)), 0)


def test_a_request_that_finds_no_pages_is_told_when_nothing_is_under_way() -> None:
    """Waiting would have no end: ENOMEM, and which pages there are."""

    async def main(world: World) -> None:
        _, queue, _ = await scarce(world, 4)
        with pytest.raises(OSError, match="a request finds no pages in this guest: no 3 contiguous free pages") as told:
            queue.submit((), 3 * PAGE_SIZE)
        assert told.value.errno == Errno.ENOMEM
        queue.submit((), 2 * PAGE_SIZE)

    simulate(0, main)


def test_pages_that_another_queue_has_out_are_waited_for() -> None:
    """The queues of a device share its pages: whichever chain comes back makes room."""

    async def main(world: World) -> None:
        place, first, second = await scarce(world, 4)
        first.submit((), 2 * PAGE_SIZE)
        with pytest.raises(QueueFull):
            second.submit((), PAGE_SIZE)
        waiting = asyncio.create_task(second.room())
        await asyncio.sleep(0)
        assert not waiting.done() and place.under_way == 1
        give_back(first)
        await waiting
        second.submit((), PAGE_SIZE)
        assert place.under_way == 1

    simulate(0, main)


def test_who_waits_for_room_is_told_of_the_queues_end_only() -> None:
    """The other queue's waiters look again; nothing of a queue that ended counts as under way."""

    async def main(world: World) -> None:
        place, first, second = await scarce(world, 4)
        first.submit((), PAGE_SIZE)
        second.submit((), PAGE_SIZE)
        rooms = [asyncio.create_task(queue.room()) for queue in (first, second)]
        await asyncio.sleep(0)
        first.end(DeviceBroken(Errno.EIO, "gone"))
        await asyncio.gather(*rooms)
        assert place.under_way == 1
        with pytest.raises(OSError, match="gone"):
            await first.room()
        second.submit((), PAGE_SIZE)

    simulate(0, main)


def test_devices_behind_an_iommu_have_an_arena_each() -> None:
    """The IOMMU is started once, whoever comes first; a device that is opened again finds its arena."""

    async def main(world: World) -> None:
        await world.boot(memory=4 * MIB)
        guarded = Guarded(world.front)
        one, two = await asyncio.gather(guarded.arena(0), guarded.arena(1))
        assert one is await guarded.arena(0) and one is not two
        assert (one.pages, two.pages) == (LEAST, LEAST)
        assert {one.base, one.base + (LEAST + 1) * PAGE_SIZE} == {one.base, two.base}
        world.plug(RngModel(bytes), "guarded")
        for _ in range(2):
            transport = await world.open(0, arena=one)
            await transport.close()

    simulate(0, main, iommus=("front",))


@pytest.mark.parametrize(("mib", "pages"), [(1, 128), (16, 256), (128, 1024)])
def test_the_size_of_an_arena(mib: int, pages: int) -> None:
    """docs/ioreq.md: a sixteenth of the guest's pages, 128 to 1024."""

    async def main(world: World) -> None:
        await world.boot(memory=mib * MIB)
        assert (await Guarded(world.front).arena(0)).pages == pages

    simulate(0, main, iommus=("front",))


def test_a_guest_that_is_too_small_for_an_arena_is_told() -> None:
    """Not a MemoryError out of nowhere: the device, and the way out."""

    async def main(world: World) -> None:
        await world.boot(memory=MIB)
        guarded = Guarded(world.front)
        await guarded.arena(0)
        with pytest.raises(OSError, match="no arena for the device at window 1, give this guest more memory") as told:
            await guarded.arena(1)
        assert told.value.errno == Errno.ENOMEM

    simulate(0, main, iommus=("front",))
