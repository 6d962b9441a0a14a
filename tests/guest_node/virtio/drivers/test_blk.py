"""The block driver on the block model, and on devices that lie (VIRTIO 1.4, 5.2)."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from guest_node.virtio.drivers.blk import WANTS, BlkDevice, Pending
from guest_node.virtio.drivers.negotiate import NegotiationFailed
from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.cache import WriteBackCache
from hmx.virtio.blk import BlkFeature
from hmx.virtio.features import Feature, feature_set, has
from tests.doubles.virtio_loopback import Loopback
from tests.doubles.virtio_stores import JournalStore, failing

SECTORS = 2048


class Rig:
    """A disk with its driver."""

    def __init__(self, options: BlkOptions | None = None, avoid: tuple[int, ...] = (), **loopback: Any) -> None:
        self.store = JournalStore(SECTORS * 512, random.Random(3).randbytes(SECTORS * 512))
        self.model = BlkModel(WriteBackCache(self.store), options)
        self.transport = Loopback(self.model, **loopback)
        self.wants = WANTS._replace(avoid=feature_set(*avoid))

    def device(self, **options: int) -> BlkDevice:
        return BlkDevice(self.transport, wants=self.wants, **options)

    async def started(self, **options: int) -> BlkDevice:
        device = self.device(**options)
        await device.start()
        return device


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


async def refused(operation: Awaitable[object]) -> int | None:
    """The errno of what fails."""
    with pytest.raises(OSError) as error:
        await operation
    return error.value.errno


def test_every_operation() -> None:
    """5.2.6: read, write, flush, discard, write zeroes and identity; sectors of 512 bytes."""

    async def main() -> None:
        rig = Rig(BlkOptions(identity=b"a disk", block_size=4096))
        device = await rig.started()
        assert (device.capacity, device.block_size, device.queues, device.read_only) == (SECTORS, 4096, 1, False)
        assert await device.identity() == b"a disk"
        before = rig.store.pread(0, 5 * 512)
        await device.write(1, b"x" * 1024)
        assert await device.read(0, 5) == before[:512] + b"x" * 1024 + before[1536:]
        await device.flush()
        assert bytes(rig.store.stable[512:1536]) == b"x" * 1024
        await device.write_zeroes(1, 1)
        await device.write_zeroes(4, 1, unmap=True)
        await device.discard(2, 2)
        assert await device.read(1, 1) + await device.read(4, 1) == bytes(1024)
        assert rig.store.calls("zero", "punch") == [("zero", 512, 512), ("zero", 2048, 512), ("punch", 1024, 1024)]

    run(main)


def requests(rig: Rig) -> list[int]:
    """Lengths of the answers, in order."""
    return [len(written) for _, written in rig.transport.answered]


@pytest.mark.parametrize(
    ("options", "driver", "answers"),
    [
        (BlkOptions(), {"request_max": 4096}, [4097, 4097, 1025]),
        (BlkOptions(size_max=1536), {}, [1537] * 6 + [1025]),
        (BlkOptions(size_max=1 << 20), {"request_max": 4096}, [4097, 4097, 1025]),
        (BlkOptions(), {}, [18 * 512 + 1]),
    ],
)
def test_large_requests_are_split(options: BlkOptions, driver: dict[str, int], answers: list[int]) -> None:
    """5.2.4: no segment beyond size_max; nothing beyond what the transport takes."""

    async def main() -> None:
        rig = Rig(options)
        device = await rig.started(**driver)
        count = sum(answers) // 512
        assert await device.read(7, count) == rig.store.pread(7 * 512, count * 512)
        assert requests(rig) == answers
        data = random.Random(4).randbytes(count * 512)
        await device.write(9, data)
        assert requests(rig)[len(answers) :] == [1] * len(answers)
        assert await device.read(9, count) == data

    run(main)


def test_ranges_are_split() -> None:
    """5.2.6.1: at most max_*_sectors in a segment and max_*_seg segments in a request."""

    async def main() -> None:
        rig = Rig(BlkOptions(segment_sectors=10, segments=2))
        device = await rig.started()
        await device.write_zeroes(5, 45)
        assert requests(rig) == [1, 1, 1]
        assert rig.store.calls("zero") == [
            ("zero", at * 512, count * 512) for at, count in ((5, 10), (15, 10), (25, 10), (35, 10), (45, 5))
        ]

    run(main)


def test_one_kick_for_many() -> None:
    """2.7.13: requests are placed first and made available together."""

    async def main() -> None:
        rig = Rig()
        device = await rig.started()
        pending = [await device.submit_read(at, 1) for at in range(20)]
        pending.append(await device.submit_write(100, b"y" * 512))
        pending.append(await device.submit_flush())
        queue = rig.transport.queues[0]
        assert queue.kicks == 0
        assert not rig.transport.answered
        await device.kick()
        assert queue.kicks == 1
        assert b"".join([await one for one in pending[:20]]) == rig.store.pread(0, 20 * 512)
        assert [await one for one in pending[20:]] == [b"", b""]
        await device.kick()
        assert queue.kicks == 1

    run(main)


def test_queues_take_turns() -> None:
    """5.2.2: any queue for any request, as many as the driver wants of those there are."""

    async def main() -> None:
        rig = Rig(BlkOptions(queues=4))
        device = await rig.started()
        assert device.queues == 4
        for at in range(8):
            await device.read(at, 1)
        assert [queue for queue, _ in rig.transport.answered] == [0, 1, 2, 3] * 2
        assert (await rig.started(queues=2)).queues == 2
        rig.wants = WANTS._replace(avoid=feature_set(BlkFeature.MQ))
        assert (await rig.started()).queues == 1

    run(main)


def test_a_full_queue_is_waited_for() -> None:
    """2.7.13: more requests than descriptors, in any order of completion, whole and intact."""

    async def main() -> None:
        rig = Rig(queue_size=4, hold=True, shuffle=random.Random(5))
        device = await rig.started()

        async def one(at: int) -> None:
            assert await device.read(at, 3) == rig.store.pread(at * 512, 1536)

        tasks = [asyncio.create_task(one(at)) for at in range(50)]
        await rig.transport.run()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)

    run(main)


@pytest.mark.parametrize("packed", [False, True])
def test_in_real_rings(packed: bool) -> None:
    """2.7, 2.8, 5.2.6: headers, data and status in any descriptors, completed in any order."""

    async def main() -> None:
        avoid = () if packed else (int(Feature.RING_PACKED),)
        rig = Rig(
            BlkOptions(queues=2), avoid,
            hold=True, shuffle=random.Random(6), pieces=random.Random(7), queue_size=8,
        )  # fmt: skip
        device = await rig.started()
        assert has(device.features, Feature.RING_PACKED) == packed
        dice = random.Random(8)
        mirror = bytearray(rig.store.pread(0, SECTORS * 512))

        async def client(first: int) -> None:
            for _ in range(12):
                at, count = first + dice.randrange(60), dice.randint(1, 4)
                if dice.random() < 0.5:
                    data = dice.randbytes(count * 512)
                    await device.write(at, data)
                    mirror[at * 512 : (at + count) * 512] = data
                else:
                    assert await device.read(at, count) == mirror[at * 512 : (at + count) * 512]
            await device.flush()

        tasks = [asyncio.create_task(client(at * 64)) for at in range(6)]
        await rig.transport.run()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert rig.store.stable == mirror

    run(main)


def test_errors_of_the_device() -> None:
    """5.2.6: IOERR is EIO; the device lives on."""

    async def main() -> None:
        rig = Rig()
        device = await rig.started()
        rig.store.fail = failing("pread")
        assert await refused(device.read(0, 1)) == errno.EIO
        assert len(await device.read(0, 1)) == 512
        await device.write(0, bytes(512))
        rig.store.fail = failing("flush")
        assert await refused(device.flush()) == errno.EIO
        await device.flush()

    run(main)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (b"", errno.EIO),
        (bytes(512), errno.EIO),
        (bytes(514), errno.EIO),
        (bytes(512) + b"\1", errno.EIO),
        (bytes(512) + b"\2", errno.EOPNOTSUPP),
        (bytes(512) + b"\3", errno.EIO),
        (bytes(512) + b"\xff", errno.EIO),
    ],
)
def test_what_a_device_says_is_checked(answer: bytes, number: int) -> None:
    """2.7.8, 5.2.6: a length other than asked for, a status other than OK."""

    async def main() -> None:
        rig = Rig()
        device = await rig.started()
        rig.transport.tamper = lambda _queue, _written: answer
        assert await refused(device.read(0, 1)) == number

    run(main)


def test_a_part_that_fails_fails_the_whole_once_all_are_back() -> None:
    """The buffer of a write belongs to the device until every part of it was answered."""

    async def main() -> None:
        rig = Rig(hold=True)
        device = await rig.started(request_max=512)
        pending = await device.submit_write(0, bytes(3 * 512))
        await device.kick()
        waiting = asyncio.create_task(refused(pending))
        rig.transport.tamper = lambda _queue, _written: b"\1"
        for left in (2, 1, 0):
            assert not waiting.done()
            assert rig.transport.step()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(rig.transport.queues[0].outstanding) == left
        assert await waiting == errno.EIO

    run(main)


def test_a_device_that_breaks_and_one_that_comes_back() -> None:
    """2.1.2: what was outstanding is lost, an input/output error; `start` revives the device."""

    async def main() -> None:
        rig = Rig(hold=True)
        device = rig.device()
        assert await refused(device.read(0, 1)) == errno.EINVAL
        device.capacity = 1
        assert await refused(device.read(0, 1)) == errno.ENOTCONN
        await device.start()
        reading = asyncio.create_task(refused(device.read(0, 1)))
        await asyncio.sleep(0)
        rig.transport.break_off()
        assert await reading == errno.EIO
        assert await refused(device.read(0, 1)) == errno.EIO
        assert await refused(device.refresh()) == errno.EIO
        rig.transport.hold = False
        await device.start()
        assert len(await device.read(0, 1)) == 512

    run(main)


def test_what_the_driver_refuses_itself() -> None:
    """5.2.6.1: no request beyond the capacity, no write to a read-only disk, none that was not negotiated."""

    async def main() -> None:
        device = await Rig().started()
        for sector, count in ((-1, 1), (0, 0), (0, SECTORS + 1), (SECTORS, 1)):
            assert await refused(device.read(sector, count)) == errno.EINVAL
            assert await refused(device.discard(sector, count)) == errno.EINVAL
        assert await refused(device.write(0, b"x" * 511)) == errno.EINVAL
        assert await refused(device.write(SECTORS, bytes(512))) == errno.EINVAL
        frozen = Rig(BlkOptions(read_only=True))
        device = await frozen.started()
        assert device.read_only
        for operation in (device.write(0, bytes(512)), device.discard(0, 1), device.write_zeroes(0, 1)):
            assert await refused(operation) == errno.EROFS
        bare = await Rig(avoid=(BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES, BlkFeature.CONFIG_WCE)).started()
        for operation in (bare.discard(0, 1), bare.write_zeroes(0, 1), bare.set_writeback(False)):
            assert await refused(operation) == errno.EOPNOTSUPP

    run(main)


def test_without_flush_there_is_nothing_to_flush() -> None:
    """5.2.6.2: every write is stable already."""

    async def main() -> None:
        rig = Rig(avoid=(BlkFeature.FLUSH, BlkFeature.CONFIG_WCE))
        device = await rig.started()
        await device.write(0, b"x" * 512)
        assert bytes(rig.store.stable[:512]) == b"x" * 512
        answers = len(rig.transport.answered)
        await device.flush()
        assert len(rig.transport.answered) == answers

    run(main)


def test_the_cache_mode() -> None:
    """5.2.5: CONFIG_WCE switches between write-back and write-through."""

    async def main() -> None:
        rig = Rig()
        device = await rig.started()
        await device.set_writeback(False)
        await device.write(0, b"x" * 512)
        assert bytes(rig.store.stable[:512]) == b"x" * 512
        await device.set_writeback(True)
        await device.write(0, b"y" * 512)
        assert bytes(rig.store.stable[:512]) == b"x" * 512
        rig.store.fail = failing("flush")
        assert await refused(device.set_writeback(False)) == errno.EIO

    run(main)


@pytest.mark.parametrize(
    ("offset", "value"), [(34, b"\0\0"), (8, struct.pack("<I", 511)), (36, bytes(4)), (40, bytes(4)), (48, bytes(4))]
)
def test_a_configuration_that_cannot_be(offset: int, value: bytes) -> None:
    """5.2.4: no queue, segments that hold no sector, ranges of nothing: the driver gives the device up."""

    async def main() -> None:
        rig = Rig(BlkOptions(queues=2, size_max=4096))
        honest = rig.model.config
        rig.model.config = lambda: honest()[:offset] + value + honest()[offset + len(value) :]  # type: ignore[method-assign]
        with pytest.raises(NegotiationFailed, match="setup"):
            await rig.started()
        assert rig.transport.history[-1] == ("status", 11 | 128)

    run(main)


def test_a_capacity_that_changes() -> None:
    """5.2.4, 2.5: the driver reads it again when it is told to."""

    async def main() -> None:
        rig = Rig()
        device = await rig.started()
        rig.model.capacity = 10
        assert await device.refresh() == 10
        assert await refused(device.read(10, 1)) == errno.EINVAL

    run(main)


def test_nothing_is_nothing() -> None:
    """A request of no parts is done."""

    async def main() -> None:
        assert await Pending([]) == b""

    run(main)
