"""A device behind a virtio-iommu that the hypervisor serves: it reaches its arena alone (VIRTIO 1.4, 5.13)."""

from __future__ import annotations

import asyncio

import pytest

from guest_node.virtio.access_foreign import ForeignAccess
from guest_node.virtio.drivers.blk import BlkDevice
from guest_node.virtio.drivers.rng import RngDevice
from guest_node.virtio.iommu_front import IommuDriver
from guest_node.virtio.mmio_front import MmioTransport
from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.rng import RngModel
from guest_node.virtio.models.store import MemoryStore
from guest_node.virtio.xen_calls import XenRefused
from hmx.ioreq import Dmop
from hmx.trap import Arch
from hmx.virtio.chain import Segment
from hmx.virtio.iommu import IommuStatus, Unmap
from hmx.virtio.memory import BadAddress
from tests.guest_node.virtio.mmio_world import BACK, FRONT, World, simulate

BOTH = pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64], ids=["x86", "arm"])
LAST = 7


async def iommu(world: World) -> tuple[IommuDriver, MmioTransport]:
    transport = await world.open(LAST)
    driver = IommuDriver(transport)
    await driver.start()
    return driver, transport


@BOTH
def test_a_disk_behind_an_iommu(arch: Arch) -> None:
    """Queues and buffers in one arena: the same driver and model, every byte copied by the hypervisor, nothing mapped.
    The IOMMU's own registers cost no round trip.
    """

    async def main(world: World) -> None:
        await world.boot()
        front, back = world.core.hvm(FRONT), world.core.hvm(BACK)
        assert front is not None and back is not None
        driver, _ = await iommu(world)
        assert front.counters.ioreqs == 0
        arena = await driver.arena(world.front.memory, 0, 64)
        device = world.plug(BlkModel(MemoryStore(64 * 512), BlkOptions(queue_size=16)), "guarded")
        transport = await world.open(0, arena=arena)
        blk = BlkDevice(transport)
        await blk.start()
        await blk.write(3, b"guarded!" * 128)
        assert await blk.read(3, 2) == b"guarded!" * 128
        assert device.trouble == "" and back.counters.pages_mapped == 0
        await transport.close()
        await driver.end(world.front.memory, 0, arena)

    simulate(1, main, arch, iommus=("front",))


def test_what_is_not_mapped_is_not_reached() -> None:
    """A guest physical address, another endpoint's, one that was unmapped: the device needs a reset."""

    async def main(world: World) -> None:
        await world.boot()
        driver, _ = await iommu(world)
        arena = await driver.arena(world.front.memory, 0, 16)
        device = world.plug(RngModel(bytes), "guarded")
        transport = await world.open(0, arena=arena)
        rng = RngDevice(transport)
        for bad in (arena.first * 4096, arena.base + 16 * 4096, arena.base - 1):
            await rng.start()
            noticed = asyncio.Event()
            transport.on_config = noticed.set
            queue = transport._queues[0]
            queue._queue.add((), [Segment(bad, 16)], 0)
            await queue.kick()
            await noticed.wait()
            assert device.trouble
        await rng.start()
        assert await rng.read(9) == bytes(9)
        request = Unmap(0, arena.base, arena.base + 16 * 4096 - 1)
        assert await driver.request(request) is IommuStatus.OK
        with pytest.raises(XenRefused, match="EACCES"):
            world.server.xen.dm_op(FRONT, Dmop.DMA, arena.base, 2, 0, 0, second=(8192, 64))
        hub = world.core.ioreqs
        assert hub is not None

    simulate(2, main, iommus=("front",))


def test_a_foreign_map_does_not_go_around_it() -> None:
    """A target with an IOMMU is not mapped by device models."""

    async def main(world: World) -> None:
        await world.boot()
        with pytest.raises(BadAddress):
            ForeignAccess(world.server.xen, FRONT).borrow([Segment(8192, 8)])

    simulate(3, main, iommus=("front",))


def test_a_reset_of_the_iommu_forgets_everything() -> None:
    """Its driver is gone, and so is what its devices may reach."""

    async def main(world: World) -> None:
        await world.boot()
        driver, transport = await iommu(world)
        arena = await driver.arena(world.front.memory, 0, 4)
        world.server.xen.dm_op(FRONT, Dmop.DMA, arena.base, 2, 0, 0, second=(8192, 64))
        await transport.reset()
        with pytest.raises(XenRefused, match="EACCES"):
            world.server.xen.dm_op(FRONT, Dmop.DMA, arena.base, 2, 0, 0, second=(8192, 64))
        await driver.start()
        await driver.arena(world.front.memory, 0, 4)

    simulate(4, main, iommus=("front",))
