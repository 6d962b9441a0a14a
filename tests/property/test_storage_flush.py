"""No FLUSH is answered before fdatasync has returned: from a driver over VirtIO-Argo to a file, and back.

Source: VIRTIO 1.4, 5.2.6.2; fdatasync(2).  The call is injected below the image, so that a test sees when it is made
and with what, and can let it fail.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from pathlib import Path

import pytest

from guest_node import images
from guest_node.virtio.argo_back import serve
from guest_node.virtio.drivers.blk import WANTS, BlkDevice
from guest_node.virtio.model import Request
from guest_node.virtio.models.blk import BlkModel
from guest_node.virtio.models.cache import WriteBackCache
from hmx.virtio.argo import Variant
from hmx.virtio.blk import BlkType
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import FORMATS, PORT, World

SECTORS = 48
SECTOR = 512
OK = b"\0"


class Fdatasync:
    """Where fdatasync(2) was: it notes when it is called, with which bytes in the file, and fails on demand."""

    def __init__(self, path: Path) -> None:
        self.log: list[str] = []
        self.errors: list[int] = []
        self.stable = b""
        self._path = path

    def __call__(self, _fd: int) -> None:
        self.log.append("fdatasync begins")
        given = self._path.read_bytes()
        if self.errors:
            raise OSError(self.errors.pop(), "fdatasync fails")
        self.stable = given
        self.log.append("fdatasync returned")


class Hasty(BlkModel):
    """Answers FLUSH at once, and carries it out a moment later."""

    def request(self, request: Request) -> None:
        if bytes(request.readable[:4]) == struct.pack("<I", BlkType.FLUSH):
            request.complete(OK)
            asyncio.get_running_loop().call_later(0.1, self._store.flush)
        else:
            super().request(request)


@pytest.fixture
def fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fdatasync:
    """Injected below an image of zeros, `disk.img`."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * SECTOR))
    made = Fdatasync(path)
    monkeypatch.setattr(os, "fdatasync", made)
    return made


async def served(path: Path, variant: Variant, avoid: int, model: type[BlkModel] = BlkModel) -> BlkDevice:
    """A started front end over VirtIO-Argo, whose back end keeps the image."""
    world = World()
    cache = WriteBackCache(images.FileStore(path / "disk.img", writable=True))
    await serve(await world.driver(2), PORT, lambda _client: model(cache))
    device = BlkDevice(await world.connect(variant=variant), wants=WANTS._replace(avoid=avoid))
    await device.start()
    return device


async def write_and_flush(device: BlkDevice, fdatasync: Fdatasync, turn: int) -> list[str]:
    """Four writers, each with a sector and a flush of its own; what was answered too early."""
    early: list[str] = []

    async def writer(sector: int) -> None:
        data = bytes([turn, sector]) * (SECTOR // 2)
        await device.write(sector, data)
        calls = fdatasync.log.count("fdatasync returned")
        await device.flush()
        if fdatasync.log.count("fdatasync returned") == calls:
            early.append(f"sector {sector}: no fdatasync has returned since")
        if fdatasync.stable[sector * SECTOR : (sector + 1) * SECTOR] != data:
            early.append(f"sector {sector} was not in the file when fdatasync was called")

    async with asyncio.TaskGroup() as group:
        for sector in range(4):
            group.create_task(writer(sector))
    return early


WAYS = [(variant, avoid) for variant in Variant for avoid in FORMATS]


@pytest.mark.parametrize(("variant", "avoid"), WAYS)
def test_no_flush_is_answered_before_fdatasync_returned(
    tmp_path: Path, fdatasync: Fdatasync, variant: Variant, avoid: int
) -> None:
    """From the driver to the file and back, over both data planes and both formats of virtqueues."""

    async def main() -> None:
        device = await served(tmp_path, variant, avoid)
        for turn in range(1, 6):
            assert await write_and_flush(device, fdatasync, turn) == []

    simulate(main)
    assert fdatasync.log.count("fdatasync begins") == fdatasync.log.count("fdatasync returned") >= 5


def test_a_flush_that_is_answered_too_early_is_noticed(tmp_path: Path, fdatasync: Fdatasync) -> None:
    """The same proof, of a back end that does not wait."""

    async def main() -> list[str]:
        device = await served(tmp_path, Variant.INLINE, 0, Hasty)
        return await write_and_flush(device, fdatasync, 1)

    assert "sector 0: no fdatasync has returned since" in simulate(main)


@pytest.mark.parametrize(("variant", "avoid"), WAYS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_fdatasync_is_the_flush_s(
    tmp_path: Path, fdatasync: Fdatasync, variant: Variant, avoid: int, number: int
) -> None:
    """IOERR, which is EIO to the driver; the next one writes the data again, since the kernel may have lost them."""

    async def main() -> None:
        device = await served(tmp_path, variant, avoid)
        data = b"x" * SECTOR
        await device.write(3, data)
        fdatasync.log.clear()
        fdatasync.errors.append(number)
        with pytest.raises(OSError, match="status 1") as error:
            await device.flush()
        assert error.value.errno == errno.EIO
        with (tmp_path / "disk.img").open("r+b") as file:
            file.truncate(0)  # the pages are lost, and nobody was told
            file.truncate(SECTORS * SECTOR)
        assert await device.read(3, 1) == data
        await device.flush()
        assert fdatasync.stable[3 * SECTOR : 4 * SECTOR] == data

    simulate(main)
    assert fdatasync.log == ["fdatasync begins"] * 2 + ["fdatasync returned"]
