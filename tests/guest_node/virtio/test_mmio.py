"""virtio-mmio through IOREQ, end to end: drivers, transport, device model and every way of access (VIRTIO 1.4, 4.2)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict

import pytest

from guest_node.virtio.drivers.blk import WANTS as BLK_WANTS
from guest_node.virtio.drivers.blk import BlkDevice
from guest_node.virtio.drivers.negotiate import Wants
from guest_node.virtio.drivers.rng import WANTS, RngDevice
from guest_node.virtio.frontend import DeviceBroken
from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.rng import RngModel
from guest_node.virtio.models.store import MemoryStore
from hmx.trap import Arch
from hmx.virtio.chain import Segment
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.mmio import OFFSETS
from hmx.virtio.status import Status
from tests.guest_node.virtio.mmio_world import BACK, FRONT, WAYS, World, simulate

SECTORS = 256

FORMATS = {"split": feature_set(Feature.RING_PACKED), "packed": 0}
BOTH = pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64], ids=["x86", "arm"])


def wants(avoid: int) -> Wants:
    return WANTS._replace(avoid=avoid)


@BOTH
@pytest.mark.parametrize("ring", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_an_entropy_device_by_every_way(way: str, ring: str, arch: Arch) -> None:
    """The same driver and model; what the driver got is what the model gave."""

    async def main(world: World) -> None:
        await world.boot()
        given = random.Random(5)
        device = world.plug(RngModel(given.randbytes), way)
        transport = await world.open(grants=way.startswith("grant"))
        assert transport.device_id == 4
        rng = RngDevice(transport, wants(FORMATS[ring]))
        await rng.start()
        expected = random.Random(5)
        for size in (1, 100, 4096, 3000):
            assert await rng.read(size) == expected.randbytes(size)
        assert device.faults == [] and device.trouble == ""
        await transport.close()
        hvm = world.core.hvm(2)
        assert hvm is not None
        assert hvm.counters.pages_mapped == hvm.counters.pages_unmapped
        assert (hvm.counters.pages_mapped > 0) == (way != "dma-only")

    simulate(3, main, arch)


def disk(data: bytes = b"") -> BlkModel:
    return BlkModel(MemoryStore(SECTORS * 512, data), BlkOptions(queue_size=16))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ring", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_by_every_way(way: str, ring: str, seed: int) -> None:
    """Reads and writes of several pages, several outstanding, in any interleaving: the disk has what was written."""

    async def main(world: World) -> None:
        await world.boot()
        data = bytearray(random.Random(seed).randbytes(SECTORS * 512))
        device = world.plug(disk(bytes(data)), way)
        transport = await world.open(grants=way.startswith("grant"))
        blk = BlkDevice(transport, wants=BLK_WANTS._replace(avoid=FORMATS[ring]))
        await blk.start()
        assert blk.capacity == SECTORS
        chance = random.Random(seed + 1)
        for _ in range(4):
            sectors = [chance.randrange(SECTORS - 20) for _ in range(3)]
            found = await asyncio.gather(*(blk.read(sector, 19) for sector in sectors))
            assert found == [bytes(data[sector * 512 : (sector + 19) * 512]) for sector in sectors]
            sector, size = chance.randrange(SECTORS - 20), chance.randrange(1, 18)
            new = chance.randbytes(size * 512)
            await blk.write(sector, new)
            data[sector * 512 : (sector + size) * 512] = new
        await blk.flush()
        assert await blk.read(0, 40) == data[: 40 * 512]
        assert device.faults == [] and device.trouble == ""
        await transport.close()
        back = world.core.hvm(BACK)
        assert back is not None and back.counters.pages_mapped == back.counters.pages_unmapped

    simulate(seed, main)


READ_COSTS = {
    # way: pages mapped, pages unmapped, bytes copied by the hypervisor, by the back end, hypercalls of the access
    "foreign": (3, 3, 0, 16 + 4096 + 1, 4),
    "foreign-kept": (3, 0, 0, 16 + 4096 + 1, 1),
    "grant-map": (3, 3, 0, 16 + 4096 + 1, 3),
    "grant-copy": (0, 0, 16 + 4096 + 1, 0, 2),
    "dma": (0, 0, 16 + 4096 + 1, 0, 2),
}
"""Of the first 4 KiB read: the header's page, and two for data and status behind one another.

Foreign pages are mapped by one call and unmapped by one each.  Granted ones: a call maps what may be written, a second
the header's page, which is granted to be read only; one call unmaps all.  Copies: the header in, data and status out.
"""


@pytest.mark.parametrize("way", READ_COSTS)
def test_what_a_4_kib_read_costs(way: str) -> None:
    """Round trips: kick, interrupt status, acknowledgement.  The rest by the way of access."""

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(disk(), way)
        transport = await world.open(grants=way.startswith("grant"))
        blk = BlkDevice(transport, wants=BLK_WANTS._replace(avoid=feature_set(Feature.RING_INDIRECT_DESC)))
        await blk.start()
        front, back = world.core.hvm(FRONT), world.core.hvm(BACK)
        assert front is not None and back is not None
        counters = device.access.counters
        ioreqs, before, copied = front.counters.ioreqs, asdict(counters), back.counters.bytes_copied
        mapped, unmapped = back.counters.pages_mapped, back.counters.pages_unmapped
        await blk.read(0, 8)
        assert front.counters.ioreqs - ioreqs == 3
        spent = {name: value - before[name] for name, value in asdict(counters).items()}
        assert (
            spent["maps"], spent["unmaps"], spent["copied_by_hypervisor"], spent["copied_by_back_end"],
            spent["hypercalls"],
        ) == READ_COSTS[way]  # fmt: skip
        assert back.counters.bytes_copied - copied == READ_COSTS[way][2]
        assert back.counters.pages_mapped - mapped == READ_COSTS[way][0]
        assert back.counters.pages_unmapped - unmapped == READ_COSTS[way][1]
        assert transport.interrupts == 1

    simulate(1, main)


def test_one_kick_and_one_interrupt_serve_many_requests() -> None:
    """What was submitted before a kick is one notification; what was answered in one go is one interrupt."""

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(disk())
        transport = await world.open()
        blk = BlkDevice(transport)
        await blk.start()
        front = world.core.hvm(FRONT)
        assert front is not None
        before = front.counters.ioreqs
        pending = [await blk.submit_read(sector, 1) for sector in range(4)]
        await blk.kick()
        for each in pending:
            await each
        assert device.requests == 4
        assert front.counters.ioreqs - before == 3

    simulate(2, main)


def test_indirect_descriptors_go_the_same_ways() -> None:
    """A table lies in the queue's own area; its chains are served like others."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(disk(bytes(range(256)) * 2 * SECTORS))
        blk = BlkDevice(await world.open(indirect=4))
        await blk.start()
        assert await blk.read(3, 2) == bytes(range(256)) * 4

    simulate(0, main)


def test_two_devices_share_a_server() -> None:
    """Each has its window, line and queues."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(disk(b"\x11" * 512), index=0)
        world.plug(RngModel(lambda n: b"\x22" * n), index=1)
        blk, rng = BlkDevice(await world.open(0)), RngDevice(await world.open(1))
        await asyncio.gather(blk.start(), rng.start())
        found = await asyncio.gather(blk.read(0, 1), rng.read(100))
        assert tuple(found) == (b"\x11" * 512, b"\x22" * 100)

    simulate(4, main)


def test_nobody_at_a_window() -> None:
    """All ones are no magic."""

    async def main(world: World) -> None:
        await world.boot()
        with pytest.raises(DeviceBroken, match="no virtio-mmio device"):
            await world.open()

    simulate(0, main)


def test_without_the_right_there_is_no_server() -> None:
    """XSM dm privilege comes from the topology: create_ioreq_server is -EPERM."""

    async def main(world: World) -> None:
        with pytest.raises(OSError, match="EPERM"):
            await world.boot()

    simulate(0, main, trusted=False)


def test_a_device_is_revived_by_a_reset() -> None:
    """Close and open again: mappings end with the reset, the next driver starts from the beginning."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(disk())
        for byte in (1, 2, 3):
            transport = await world.open()
            blk = BlkDevice(transport)
            await blk.start()
            await blk.write(0, bytes([byte]) * 512)
            assert await blk.read(0, 1) == bytes([byte]) * 512
            await transport.close()
            await transport.close()

    simulate(0, main)


def test_the_back_ends_death_is_seen() -> None:
    """The vCPU that waits goes on, reads are all ones, requests end in an error: nothing hangs."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(disk())
        transport = await world.open()
        blk = BlkDevice(transport)
        await blk.start()
        world.close()
        waiting = asyncio.ensure_future(blk.read(0, 1))
        await asyncio.sleep(1)
        assert not waiting.done()
        world.machine.destroy_domain(BACK)
        await asyncio.sleep(1)
        with pytest.raises(DeviceBroken, match="is gone"):
            await transport.status()
        waiting.cancel()

    simulate(5, main)


def test_a_request_nobody_waits_for_any_more_comes_back_all_the_same() -> None:
    """A cancelled future: its chain is taken back, and the queue goes on."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(RngModel(lambda n: bytes(n)))
        transport = await world.open()
        rng = RngDevice(transport)
        await rng.start()
        queue = transport._queues[0]
        free = world.front.memory.pages.free_pages()
        future = queue.submit((), 8)
        await queue.kick()
        future.cancel()
        await asyncio.sleep(1)
        assert world.front.memory.pages.free_pages() == free
        assert await rng.read(5) == bytes(5)

    simulate(6, main)


@pytest.mark.parametrize("way", WAYS)
def test_addresses_that_are_not_there_break_the_device_only(way: str) -> None:
    """A descriptor beyond RAM, or that nobody granted: DEVICE_NEEDS_RESET and a configuration interrupt; a reset
    revives it.  Nothing stays mapped.
    """

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(RngModel(lambda n: bytes(n)), way)
        transport = await world.open(grants=way.startswith("grant"))
        rng = RngDevice(transport, wants(feature_set(Feature.RING_PACKED)))
        for bad in (1 << 40, (1 << 64) - 4, 1 << 63 | 99 << 12, (1 << 63) - 1):
            await rng.start()
            queue = transport._queues[0]
            noticed = asyncio.Event()
            transport.on_config = noticed.set
            queue._queue.add((), [Segment(bad, 16)], 0)
            await queue.kick()
            await noticed.wait()
            assert await transport.status() & Status.DEVICE_NEEDS_RESET
            assert device.trouble
        await rng.start()
        assert await rng.read(3) == bytes(3)
        await transport.close()
        back = world.core.hvm(BACK)
        assert back is not None and back.counters.pages_mapped == back.counters.pages_unmapped

    simulate(7, main)


@pytest.mark.parametrize("seed", range(6))
def test_a_front_end_that_scribbles_over_its_rings(seed: int) -> None:
    """Random bytes in the queue and random register writes: the device may want a reset, its process goes on."""

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(disk(), "foreign" if seed & 1 else "dma")
        transport = await world.open()
        chance = random.Random(seed)
        names = list(OFFSETS)
        for _ in range(10):
            blk = BlkDevice(transport, wants=BLK_WANTS._replace(avoid=FORMATS["packed" if seed & 2 else "split"]))
            await blk.start()
            queue = transport._queues[0]
            at, size = queue._area.frame * 4096, queue._area.pages * 4096
            for _ in range(3):
                world.front.memory.buffer[at : at + size] = chance.randbytes(size)
                await transport.store("QueueNotify", 0)
                await transport.store(chance.choice(names[:-1]), chance.getrandbits(32))
            await transport.reset()
        assert device.faults == []
        blk = BlkDevice(transport)
        await blk.start()
        assert await blk.read(0, 1) == bytes(512)
        back = world.core.hvm(BACK)
        assert back is not None and world.core.hvm(FRONT) is not None

    simulate(seed, main)


def test_a_device_that_cannot_take_a_queue_says_so() -> None:
    """Before DRIVER_OK no interrupt tells of NEEDS_RESET: the driver looks at the status when it made a queue."""

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(RngModel(bytes))
        world.core.ioreqs._rights = frozenset()  # type: ignore[union-attr]  # from now on nothing can be mapped
        transport = await world.open()
        with pytest.raises(DeviceBroken, match="refuses queue 0"):
            await RngDevice(transport).start()
        assert "queue 0" in device.trouble

    # The line and the answers need no right that is looked at again but for dm_op: nothing is raised before DRIVER_OK.
    simulate(0, main)


@BOTH
@pytest.mark.parametrize("notification", ["virq", "line", "vector-per-cpu"])
def test_whatever_tells_of_argo(arch: Arch, notification: str) -> None:
    """Event channels of I/O requests are there beside every way to be told of Argo's messages."""

    async def main(world: World) -> None:
        await world.boot(notification=notification)
        world.plug(RngModel(lambda n: b"x" * n))
        rng = RngDevice(await world.open())
        await rng.start()
        assert await rng.read(70) == b"x" * 70

    simulate(1, main, arch, notifications=("line", "vector-per-cpu") if notification != "virq" else ())


def test_every_vcpu_has_a_slot_of_its_own() -> None:
    """A device driven from the second vCPU."""

    async def main(world: World) -> None:
        await world.boot(vcpus=2)
        world.plug(disk(), index=0)
        world.plug(RngModel(lambda n: b"y" * n), index=1)
        blk, rng = BlkDevice(await world.open(0)), RngDevice(await world.open(1, vcpu=1))
        await asyncio.gather(blk.start(), rng.start())
        for _ in range(5):
            await asyncio.gather(blk.write(0, bytes(512)), rng.read(9))

    simulate(8, main)
