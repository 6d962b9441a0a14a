"""Block requests of every kind and cut (VIRTIO 1.4, 5.2.6), in both formats of the ring."""

from __future__ import annotations

import random
import struct

import pytest

from hmx.virtio.blk import BlkFeature, BlkStatus, BlkType
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import Feature, feature_set, has
from tests.virtio_qemu.conftest import IDENTITY, SECTORS, Benches, contents
from tests.virtio_qemu.disk import Answer, Disk, cut, usual
from tests.virtio_qemu.transport import run

PACKED = feature_set(Feature.RING_PACKED)
FORMATS = {"split": PACKED, "packed": 0}
OK, IOERR, UNSUPP = BlkStatus.OK, BlkStatus.IOERR, BlkStatus.UNSUPP
rings_of_both_formats = pytest.mark.parametrize("rings", FORMATS)


@rings_of_both_formats
def test_every_block(bench: Benches, rings: str) -> None:
    """What the driver reads is the image, byte for byte."""
    disk = Disk(bench("disk").transport(), FORMATS[rings])
    for sector in range(0, SECTORS, 8):
        answer = disk.request(BlkType.IN, sector, room=4096)
        assert answer == Answer(OK, contents()[512 * sector : 512 * sector + 4096], 4097)


@rings_of_both_formats
def test_writes_are_in_the_image_after_a_flush(bench: Benches, rings: str) -> None:
    """A write that was answered and flushed is in the file; what lies beside it is untouched."""
    found = bench("disk")
    disk = Disk(found.transport(), FORMATS[rings])
    wanted = bytearray(contents())
    chance = random.Random(7)
    for _ in range(40):
        sector, count = chance.randrange(SECTORS - 4), chance.randrange(1, 5)
        data = chance.randbytes(512 * count)
        wanted[512 * sector : 512 * (sector + count)] = data
        assert disk.request(BlkType.OUT, sector, data) == Answer(OK, b"", 1)
        assert disk.request(BlkType.IN, sector, room=512 * count).data == data
    assert disk.request(BlkType.FLUSH) == Answer(OK, b"", 1)
    assert found.image() == bytes(wanted)


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ([16], [513]),
        ([8, 8], [512, 1]),
        ([1] * 16, [512, 1]),
        ([4, 4, 8], [1, 510, 1, 1]),
        ([16], [500, 13]),
        ([15, 1], [256, 257]),
    ],
)
@rings_of_both_formats
def test_a_read_in_any_cut(bench: Benches, rings: str, readable: list[int], writable: list[int]) -> None:
    """The header may be split, the status may share a descriptor with data (2.7.4.1, 5.2.6)."""
    disk = Disk(bench("disk").transport(), FORMATS[rings], size=32)
    chain = cut(usual(BlkType.IN, 3)[0], readable)
    answer = run(disk.transport, disk.ask(chain, writable))
    assert answer == Answer(OK, contents()[3 * 512 : 4 * 512], 513)


@pytest.mark.parametrize("readable", [[528], [16, 512], [10, 100, 418], [16, 1, 255, 256], [8, 8, 511, 1]])
@rings_of_both_formats
def test_a_write_in_any_cut(bench: Benches, rings: str, readable: list[int]) -> None:
    """Header and data are one stream."""
    found = bench("disk")
    disk = Disk(found.transport(), FORMATS[rings])
    data = random.Random(3).randbytes(512)
    chain = cut(b"".join(usual(BlkType.OUT, 9, data)), readable)
    assert run(disk.transport, disk.ask(chain, [1])) == Answer(OK, b"", 1)
    disk.request(BlkType.FLUSH)
    assert found.image()[9 * 512 : 10 * 512] == data


def test_the_identity(bench: Benches) -> None:
    """20 bytes, padded with NUL.  QEMU 7.2 writes one NUL and leaves the rest as it was, which it counts as written."""
    found = bench("disk")
    disk = Disk(found.transport())
    answer = disk.request(BlkType.GET_ID, room=20)
    assert (answer.status, answer.written) == (OK, 21)
    if found.side == "ours":
        assert answer.data == IDENTITY.encode().ljust(20, b"\0")
    else:
        assert answer.data.split(b"\0")[0] == IDENTITY.encode()


def test_discard_and_write_zeroes(bench: Benches) -> None:
    """Zeroes read back as zeroes; a discarded range is nobody's business; the rest stays."""
    found = bench("disk")
    disk = Disk(found.transport())
    assert has(disk.features, BlkFeature.DISCARD)
    assert disk.request(BlkType.WRITE_ZEROES, 0, struct.pack("<QII", 8, 4, 0)) == Answer(OK, b"", 1)
    assert disk.request(BlkType.WRITE_ZEROES, 0, struct.pack("<QII", 14, 1, 1)) == Answer(OK, b"", 1)
    assert disk.request(BlkType.DISCARD, 0, struct.pack("<QII", 32, 8, 0)) == Answer(OK, b"", 1)
    disk.request(BlkType.FLUSH)
    wanted = bytearray(contents())
    wanted[8 * 512 : 12 * 512] = bytes(4 * 512)
    wanted[14 * 512 : 15 * 512] = bytes(512)
    image = found.image()
    assert image[: 32 * 512] == wanted[: 32 * 512]
    assert image[40 * 512 :] == wanted[40 * 512 :]


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "status"),
    [
        (BlkType.IN, SECTORS, b"", 512, IOERR),
        (BlkType.IN, SECTORS - 1, b"", 1024, IOERR),
        (BlkType.IN, 1 << 55, b"", 512, IOERR),
        (BlkType.IN, (1 << 64) - 1, b"", 512, IOERR),
        (BlkType.IN, 0, b"", 100, IOERR),
        (BlkType.OUT, SECTORS, bytes(512), 0, IOERR),
        (BlkType.OUT, SECTORS - 1, bytes(1024), 0, IOERR),
        (BlkType.OUT, 1 << 55, bytes(512), 0, IOERR),
        (BlkType.OUT, 0, bytes(100), 0, IOERR),
        (BlkType.DISCARD, 0, struct.pack("<QII", 8, 4, 1), 0, UNSUPP),
        (BlkType.DISCARD, 0, struct.pack("<QII", 8, 4, 2), 0, UNSUPP),
        (BlkType.DISCARD, 0, struct.pack("<QII", SECTORS - 2, 4, 0), 0, IOERR),
        (BlkType.WRITE_ZEROES, 0, struct.pack("<QII", 8, 4, 2), 0, UNSUPP),
        (BlkType.WRITE_ZEROES, 0, struct.pack("<QII", SECTORS - 2, 4, 0), 0, IOERR),
        (BlkType.SECURE_ERASE, 0, struct.pack("<QII", 8, 4, 0), 0, UNSUPP),
        (BlkType.ZONE_RESET_ALL, 0, b"", 0, UNSUPP),
        (99, 0, b"", 0, UNSUPP),
    ],
)
def test_requests_that_fail(bench: Benches, kind: int, sector: int, data: bytes, room: int, status: int) -> None:
    """The status says why; the disk is untouched and goes on."""
    found = bench("disk")
    disk = Disk(found.transport())
    assert disk.request(kind, sector, data, room).status == status
    assert disk.request(BlkType.IN, 0, room=512).data == contents()[:512]
    disk.request(BlkType.FLUSH)
    assert found.image() == contents()


def test_a_request_of_the_legacy_interface(bench: Benches) -> None:
    """SCSI commands and FLUSH_OUT are unknown to a modern device; QEMU calls the first malformed, the second FLUSH."""
    found = bench("disk")
    disk = Disk(found.transport())
    assert disk.request(2).status == (UNSUPP if found.side == "ours" else IOERR)
    assert disk.request(5).status == (UNSUPP if found.side == "ours" else OK)


def test_a_read_only_disk(bench: Benches) -> None:
    """It says so, refuses what writes, and is flushed and read as any other."""
    found = bench("read-only")
    disk = Disk(found.transport())
    assert has(disk.features, BlkFeature.RO)
    assert disk.request(BlkType.OUT, 0, bytes(512)).status == IOERR
    assert disk.request(BlkType.IN, 1, room=512).data == contents()[512:1024]
    assert disk.request(BlkType.FLUSH).status == OK
    assert found.image() == contents()


@rings_of_both_formats
def test_many_requests_at_once(bench: Benches, rings: str) -> None:
    """As many as the ring holds, again and again, each with its own answer, whatever their order."""
    disk = Disk(bench("disk").transport(), FORMATS[rings] | feature_set(Feature.RING_INDIRECT_DESC), size=16)
    image = contents()
    chance = random.Random(11)

    async def all_of_them() -> None:
        for _ in range(12):
            asked = []
            while True:
                sector = chance.randrange(SECTORS)
                try:
                    asked.append((sector, disk.start(usual(BlkType.IN, sector), [512, 1])))
                except QueueFull:
                    break
            assert len(asked) == 5  # of 3 descriptors
            await disk.queues[0].kick()
            for sector, answer in asked:
                assert await answer == Answer(OK, image[512 * sector : 512 * sector + 512], 513)

    run(disk.transport, all_of_them())


@rings_of_both_formats
def test_several_queues(bench: Benches, rings: str) -> None:
    """Each is served, also when all have work."""
    disk = Disk(bench("queues").transport(), FORMATS[rings], queues=3)

    async def all_of_them() -> None:
        for round_ in range(10):
            answers = [disk.start(usual(BlkType.IN, 3 * round_ + queue), [512, 1], queue) for queue in range(3)]
            for queue in disk.queues:
                await queue.kick()
            for index, answer in enumerate(answers):
                at = 512 * (3 * round_ + index)
                assert (await answer).data == contents()[at : at + 512]

    run(disk.transport, all_of_them())
