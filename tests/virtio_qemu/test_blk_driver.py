"""The block driver as guests use it, on both sides and in both formats (VIRTIO 1.4, 5.2)."""

from __future__ import annotations

import errno
import random

import pytest

from guest_node.virtio.drivers.blk import WANTS, BlkDevice
from hmx.virtio.blk import BlkFeature
from hmx.virtio.features import Feature, feature_set, has
from tests.virtio_qemu.conftest import IDENTITY, SECTORS, Bench, Benches, contents
from tests.virtio_qemu.transport import MmioTransport, run

PACKED = feature_set(Feature.RING_PACKED)
EVENT = feature_set(Feature.RING_EVENT_IDX)
AVOID = {"packed": 0, "split": PACKED, "packed, flags": EVENT, "split, flags": PACKED | EVENT}
rings_of_all_kinds = pytest.mark.parametrize("rings", AVOID)


def start(
    found: Bench, rings: str = "packed", request_max: int = 1 << 17, more: int = 0
) -> tuple[MmioTransport, BlkDevice]:
    """A live device; `more`: features that are not accepted either."""
    transport = found.transport()
    wants = WANTS._replace(avoid=AVOID[rings] | more)
    device = BlkDevice(transport, queue_size=32, request_max=request_max, wants=wants)
    run(transport, device.start())
    return transport, device


@rings_of_all_kinds
def test_the_whole_disk(bench: Benches, rings: str) -> None:
    """Capacity, identity, and every byte, in one request and in many."""
    for request_max in (1 << 17, 1024):
        transport, device = start(bench("disk"), rings, request_max)
        assert (device.capacity, device.block_size, device.read_only) == (SECTORS, 512, False)
        assert run(transport, device.identity()) == IDENTITY.encode()
        assert run(transport, device.read(0, SECTORS)) == contents()


@rings_of_all_kinds
def test_random_writes(bench: Benches, rings: str) -> None:
    """Read back at once, and in the image after a flush."""
    found = bench("disk")
    transport, device = start(found, rings)
    wanted = bytearray(contents())
    chance = random.Random(rings)

    async def work() -> None:
        for turn in range(40):
            sector, count = chance.randrange(SECTORS - 8), chance.randrange(1, 9)
            data = chance.randbytes(512 * count)
            wanted[512 * sector : 512 * (sector + count)] = data
            await device.write(sector, data)
            assert await device.read(sector, count) == data
            if turn % 10 == 9:
                await device.flush()
                assert found.image() == bytes(wanted)

    run(transport, work())


@rings_of_all_kinds
def test_many_at_once_on_several_queues(bench: Benches, rings: str) -> None:
    """Requests that are placed before one kick, more of them than the rings hold."""
    found = bench("queues")
    transport, device = start(found, rings)
    assert device.queues == 3
    chance = random.Random(rings)

    async def work() -> None:
        order = list(range(SECTORS)) * 5
        chance.shuffle(order)
        pending = [(sector, await device.submit_read(sector, 1)) for sector in order]
        await device.kick()
        for sector, request in pending:
            assert await request == contents()[512 * sector : 512 * sector + 512]

    run(transport, work())


def test_zeroes_and_discard(bench: Benches) -> None:
    """WRITE_ZEROES with and without UNMAP; DISCARD leaves its neighbours alone."""
    found = bench("disk")
    transport, device = start(found)

    async def work() -> None:
        await device.write_zeroes(8, 4)
        await device.write_zeroes(20, 1, unmap=True)
        await device.discard(40, 4)
        await device.flush()

    run(transport, work())
    wanted = bytearray(contents())
    wanted[8 * 512 : 12 * 512] = bytes(4 * 512)
    wanted[20 * 512 : 21 * 512] = bytes(512)
    image = found.image()
    assert image[: 40 * 512] == wanted[: 40 * 512]
    assert image[44 * 512 :] == wanted[44 * 512 :]


def test_the_cache_mode(bench: Benches) -> None:
    """CONFIG_WCE: writeback is read and written in the configuration (5.2.5)."""
    found = bench("disk")
    transport, device = start(found)
    if not has(device.features, BlkFeature.CONFIG_WCE):
        pytest.fail("the cache mode cannot be switched")
    for on in (False, True, False):
        run(transport, device.set_writeback(on))
        assert run(transport, transport.read_config(32, 1)) == bytes([on])
        run(transport, device.write(3, bytes(512)))
        if not on:
            assert found.image()[3 * 512 : 4 * 512] == bytes(512)


def test_without_flush_writes_are_stable(bench: Benches) -> None:
    """A driver that did not take FLUSH has its data in the image when a write returns (5.2.6.2)."""
    found = bench("disk")
    transport, device = start(found, more=feature_set(BlkFeature.FLUSH, BlkFeature.CONFIG_WCE))
    run(transport, device.write(5, b"\x5a" * 512))
    assert found.image()[5 * 512 : 6 * 512] == b"\x5a" * 512


def test_a_read_only_disk(bench: Benches) -> None:
    """The driver does not even try."""
    found = bench("read-only")
    transport, device = start(found)
    assert device.read_only
    with pytest.raises(OSError, match="read-only") as refused:
        run(transport, device.write(0, bytes(512)))
    assert refused.value.errno == errno.EROFS
    assert run(transport, device.read(0, 8)) == contents()[:4096]


def test_start_again(bench: Benches) -> None:
    """One device, driven by one driver after another, in one format after another."""
    found = bench("disk")
    for rings in (*AVOID, *AVOID):
        transport, device = start(found, rings)
        assert run(transport, device.read(1, 2)) == contents()[512:1536]
        run(transport, transport.reset())
