"""Sizes, wraps and forms of both ring formats, with the block driver's chains (VIRTIO 1.4, 2.7, 2.8)."""

from __future__ import annotations

import random

import pytest

from guest_node.virtio.drivers.negotiate import Wants, negotiate
from hmx.virtio.blk import BlkType
from hmx.virtio.features import Feature, feature_set, has
from hmx.virtio.ids import DeviceId
from tests.virtio_qemu.conftest import SECTORS, Benches, contents
from tests.virtio_qemu.disk import Disk, cut, usual
from tests.virtio_qemu.transport import MmioQueue, MmioTransport, run

PACKED = feature_set(Feature.RING_PACKED)
INDIRECT = feature_set(Feature.RING_INDIRECT_DESC)
EVENT = feature_set(Feature.RING_EVENT_IDX)


@pytest.mark.parametrize("event", [0, EVENT], ids=["event index", "flags"])
@pytest.mark.parametrize(("rings", "size"), [(PACKED, 4), (PACKED, 64), (0, 3), (0, 4), (0, 5), (0, 7), (0, 64)])
def test_round_and_round(bench: Benches, rings: int, size: int, event: int) -> None:
    """Chains of two and three descriptors in rings of every size, odd ones too where they may be odd: they lie across
    the end of the ring in every way that there is.
    """
    disk = Disk(bench("disk").transport(entries=0), rings | event, size)
    chance = random.Random(size)
    for _ in range(60):
        sector = chance.randrange(SECTORS)
        writable = chance.choice([[513], [512, 1]])
        answer = run(disk.transport, disk.ask(usual(BlkType.IN, sector), writable))
        assert answer.data == contents()[512 * sector : 512 * sector + 512]


@pytest.mark.long
@pytest.mark.parametrize("rings", [PACKED, 0], ids=["split", "packed"])
def test_an_index_passes_65535(bench: Benches, rings: int) -> None:
    """Free-running indices wrap; a packed ring has none, and goes on as well (2.7.13.3)."""
    transport = bench("rng").transport(entries=0)
    queue = _entropy(transport, rings)

    async def many() -> None:
        for _ in range(65536 // 64 + 2):
            answers = [queue.submit((), 1) for _ in range(64)]
            await queue.kick()
            for answer in answers:
                assert len(await answer) == 1

    run(transport, many(), 60)


@pytest.mark.parametrize("rings", [PACKED, 0], ids=["split", "packed"])
def test_indirect_tables(bench: Benches, rings: int) -> None:
    """A chain of 17 descriptors in one of the ring's (2.7.5.3, 2.8.7)."""
    disk = Disk(bench("disk").transport(entries=32), rings, size=32)
    assert has(disk.features, Feature.RING_INDIRECT_DESC)
    ring = disk.queues[0].ring
    data = random.Random(5).randbytes(512)

    async def four() -> None:
        for _ in range(20):
            write = disk.start(cut(b"".join(usual(BlkType.OUT, 5, data)), [4, 4, 8, *[32] * 16]), [1])
            reads = [disk.start(cut(usual(BlkType.IN, sector)[0], [8, 8]), [100] * 5 + [12, 1]) for sector in (6, 7, 8)]
            assert ring.free == 28
            await disk.queues[0].kick()
            assert (await write).status == 0
            for sector, read in zip((6, 7, 8), reads, strict=True):
                assert (await read).data == contents()[512 * sector : 512 * sector + 512]

    run(disk.transport, four())
    assert disk.request(BlkType.IN, 5, room=512).data == data


@pytest.mark.parametrize("rings", [PACKED, 0], ids=["split", "packed"])
def test_a_chain_as_long_as_the_ring(bench: Benches, rings: int) -> None:
    """Without tables, N descriptors are the most (2.7.5, 2.8.16)."""
    disk = Disk(bench("disk").transport(entries=0), rings | INDIRECT, size=16)
    for _ in range(3):
        answer = run(disk.transport, disk.ask(cut(usual(BlkType.IN, 2)[0], [8, 8]), [64] * 7 + [32, 8, 8, 8, 4, 4, 1]))
        assert answer.data == contents()[1024:1536]


def _entropy(transport: MmioTransport, rings: int) -> MmioQueue:
    wants = Wants(DeviceId.RNG, 0, 0, (), rings)

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, 64)]

    run(transport, negotiate(transport, wants, setup))
    return transport.queues[0]
