"""blk-copy and blk-write over a disk that fails when it is told to: what is repeated, and when they give up.

VIRTIO 1.4, 5.2.6.2: a write is volatile until a FLUSH that came after it has returned.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
from collections import Counter
from typing import Any

import pytest

from guest_node import devices
from guest_node.config import DeviceConfig
from guest_node.guest import Guest
from guest_node.programs import disks, load
from guest_node.programs.blk_write import body
from guest_node.programs.disks import Piece, pieces
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab

SIZE = 2 << 20


class Fails:
    """A disk whose unflushed writes are lost when it fails; `failures`: at which operation of a kind, from 1 on."""

    def __init__(self, data: bytes, failures: dict[tuple[str, int], int] | None = None) -> None:
        self.durable = bytearray(data)
        self.current = bytearray(data)
        self.counts: Counter[str] = Counter()
        self.failures = dict(failures or {})
        self.alive = True
        self.most = self.under_way = 0
        self.queues = 0

    @property
    def capacity(self) -> int:
        return len(self.current) // 512

    async def start(self) -> None:
        await self._operation("start")
        self.alive = True

    async def identity(self) -> bytes:
        return b"mine".ljust(20, b"\0")

    async def read(self, sector: int, sectors: int) -> bytes:
        await self._operation("read")
        return bytes(self.current[sector * 512 : (sector + sectors) * 512])

    async def write(self, sector: int, data: bytes) -> None:
        await self._operation("write")
        assert len(data) % 512 == 0
        self.current[sector * 512 : sector * 512 + len(data)] = data

    async def flush(self) -> None:
        await self._operation("flush")
        self.durable[:] = self.current

    async def _operation(self, kind: str) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            self.counts[kind] += kind == "start" or self.alive
            if (kind, self.counts[kind]) in self.failures:
                self.alive = False
                self.current[:] = self.durable
                raise OSError(self.failures.pop((kind, self.counts[kind])), "no such luck")
            if not self.alive and kind != "start":
                raise OSError(errno.EIO, "the device is broken")
        finally:
            self.under_way -= 1


class Transport:
    async def close(self) -> None:
        """Nothing to say goodbye to."""


def run(
    monkeypatch: pytest.MonkeyPatch, program: str, disk: Fails, arguments: dict[str, Any], file: bytes = b""
) -> tuple[int, Guest, Lab]:
    lab = Lab("app")
    lab.files["app"].inputs["file"] = file

    async def opening(_guest: Guest, _device: DeviceConfig) -> Any:
        return Transport()

    def made(_transport: Any, *, queues: int) -> Fails:
        disk.queues = queues
        return disk

    monkeypatch.setitem(devices.OPENERS, "virtio-argo", opening)
    monkeypatch.setattr(disks, "BlkDevice", made)
    target = load(f"builtin:{program}")

    async def main(guest: Guest) -> int | None:
        guest.devices = (DeviceConfig("blk", "storage", 0, 7, queues=4),)
        return await target(guest)

    codes = simulate(lambda: lab.run(app=(main, arguments, 0.0)))
    return codes["app"], lab.guests["app"], lab


def noise(size: int = SIZE) -> bytes:
    return random.Random(3).randbytes(size)


def test_pieces() -> None:
    """All of a range, the last piece smaller."""
    assert list(pieces(512, 2000, 1000)) == [Piece(512, 1000), Piece(1512, 488)]
    assert list(pieces(7, 7, 512)) == []


@pytest.mark.parametrize(("chunk", "depth"), [("64KiB", 8), (512, 1), ("100KiB", 3), ("4MiB", 8)])
def test_a_copy(monkeypatch: pytest.MonkeyPatch, chunk: int | str, depth: int) -> None:
    """The file is the disk, whatever the size of requests and however many are under way."""
    data = noise(300 * 1024 + 512)
    disk = Fails(data)
    code, guest, lab = run(monkeypatch, "blk-copy", disk, {"chunk": chunk, "depth": depth, "output": "x.img"})
    assert (code, lab.files["app"].outputs) == (0, {"x.img": data})
    found = guest.results
    assert (found["bytes"], found["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (found["identity"], found["resets"], disk.queues) == ("mine", 0, 4)
    assert disk.most <= depth and (depth == 1 or disk.most > 1 or chunk == "4MiB")


def test_a_copy_goes_on_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was, however often that is needed."""
    failures = {("read", number): errno.EIO for number in (1, 9, 20)}
    disk = Fails(noise(), failures)
    code, guest, lab = run(monkeypatch, "blk-copy", disk, {})
    assert (code, lab.files["app"].outputs) == (0, {"disk.img": noise()})
    assert (guest.results["resets"], disk.counts["start"]) == (3, 4)


@pytest.mark.parametrize("program", ["blk-copy", "blk-write"])
def test_a_disk_that_is_away_for_a_while(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """It is looked for for `within` seconds; then the first error is what the report says."""
    for tries, code in ((20, 0), (200, 1)):
        failures = {("read", 3): errno.EIO, **{("start", number): errno.ECONNREFUSED for number in range(2, tries)}}
        disk = Fails(noise(), failures)
        done, guest, lab = run(monkeypatch, program, disk, {"within": "10s"})
        assert done == code
        assert ("no such luck" in guest.results.get("error", "")) == bool(code)
        assert lab.files["app"].open_outputs == set()
        if code:
            assert disk.counts["start"] == pytest.approx(10 / disks.AGAIN, abs=3)


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_an_error_that_stays(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """A disk that fails at the same place four times, although each reset succeeds, is given up."""
    disk = Fails(noise(), {(operation, number): errno.EIO for number in range(1, 1000)})
    code, guest, _ = run(monkeypatch, "blk-copy" if operation == "read" else "blk-write", disk, {"depth": 1})
    assert (code, disk.counts["start"]) == (1, 4)
    assert "no such luck" in guest.results["error"]


@pytest.mark.parametrize("failed", [(), ("write", 7), ("write", 20), ("flush", 1), ("flush", 2), ("read", 2)])
def test_a_file_is_written(monkeypatch: pytest.MonkeyPatch, failed: tuple[str, int] | tuple[()]) -> None:
    """All of it, its last sector filled up, and nothing else; what a failure lost before its flush is written again."""
    before, data = noise(), random.Random(4).randbytes((1 << 20) + 300 * 1024 + 100)
    disk = Fails(before, {failed: errno.EIO} if failed else {})
    code, guest, _ = run(monkeypatch, "blk-write", disk, {"file": "file", "offset": 1024}, data)
    written = data + bytes(-len(data) % 512)
    assert code == 0
    assert disk.durable == before[:1024] + written + before[1024 + len(written) :]
    found = guest.results
    assert (found["bytes"], found["wrong"], found["resets"]) == (len(written), 0, int(bool(failed)))
    assert found["sha256"] == hashlib.sha256(written).hexdigest()
    assert disk.counts["flush"] >= 2


def test_a_pattern_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block has its own content."""
    disk = Fails(bytes(SIZE))
    code, guest, _ = run(monkeypatch, "blk-write", disk, {"offset": "64KiB", "count": 100, "size": "1KiB"})
    written = b"".join(body(index, 1024) for index in range(100))
    assert code == 0 and len({body(index, 1024) for index in range(100)}) == 100
    assert disk.durable == bytes(65536) + written + bytes(SIZE - 65536 - len(written))
    assert guest.results["sha256"] == hashlib.sha256(written).hexdigest()


def test_what_is_read_back_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps something else: exit code 1, and how many pieces are wrong."""

    class Forgets(Fails):
        async def write(self, sector: int, data: bytes) -> None:
            await super().write(sector, data if sector != 16 else bytes(len(data)))

    code, guest, _ = run(monkeypatch, "blk-write", Forgets(noise()), {"count": 10})
    assert (code, guest.results["wrong"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"offset": 100}, "offset: 100 bytes are no whole sectors"),
        ({"size": 1000}, "size: 1000 bytes are no whole sectors"),
        ({"size": 100}, "size: 100 is no size of at least 512 bytes"),
        ({"depth": 0}, "depth: 0 is no whole number"),
    ],
)
def test_arguments_that_cannot_be(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str) -> None:
    """Named, with what would be right."""
    with pytest.raises(ExceptionGroup) as caught:
        run(monkeypatch, "blk-write", Fails(noise()), arguments)
    assert words in str(caught.value.exceptions[0])


def test_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written of what does not fit."""
    disk = Fails(bytes(SIZE))
    code, guest, _ = run(monkeypatch, "blk-write", disk, {"offset": SIZE - 4096, "count": 2})
    assert (code, disk.counts["write"]) == (1, 0)
    assert "beyond the end of the disk" in guest.results["error"]
