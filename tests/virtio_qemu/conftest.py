"""Every test here runs twice: against a device of this project ("ours") and against QEMU's ("theirs")."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.rng import RngModel
from guest_node.virtio.models.store import MemoryStore
from tests.virtio_qemu.boards import OurBoard, TheirBoard
from tests.virtio_qemu.qtest import PROGRAM, Qtest
from tests.virtio_qemu.transport import MmioTransport

IDENTITY: Final = "argosy-test"
SECTORS: Final = 64


class Device(NamedTuple):
    """A device that both sides have; `slot` is its window in QEMU."""

    slot: int
    disk: bool = True
    read_only: bool = False
    queues: int = 1


DEVICES: Final = {
    "rng": Device(0, disk=False),
    "disk": Device(1),
    "read-only": Device(2, read_only=True),
    "queues": Device(3, queues=3),
}


@cache
def contents() -> bytes:
    """What every disk holds when a test begins: tests/golden/virtio.md."""
    return bytes((index // 512 + index) % 251 for index in range(512 * SECTORS))


class Bench(NamedTuple):
    """One device under test."""

    side: str
    board: OurBoard | TheirBoard
    image: Callable[[], bytes]
    """What the disk holds now, not counting what waits in a cache."""

    def transport(self, entries: int = 16) -> MmioTransport:
        """A driver's view of it."""
        return MmioTransport(self.board, entries)


Benches = Callable[[str], Bench]


def _qemu_arguments(directory: Path) -> list[str]:
    found = ["-global", "virtio-mmio.force-legacy=false"]
    for name, device in DEVICES.items():
        bus = f"bus=virtio-mmio-bus.{device.slot}"
        if not device.disk:
            found += ["-device", f"virtio-rng-device,{bus},packed=on"]
            continue
        image = directory / name
        image.write_bytes(contents())
        only = "on" if device.read_only else "off"
        found += ["-blockdev", f"driver=raw,node-name={name},read-only={only},discard=unmap,file.driver=file,"
                  f"file.filename={image}"]  # fmt: skip
        found += ["-device", f"virtio-blk-device,{bus},drive={name},serial={IDENTITY},packed=on,"
                  f"num-queues={device.queues}"]  # fmt: skip
    return found


@pytest.fixture(scope="session")
def _qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Qtest, Path]]:
    if PROGRAM is None:
        pytest.skip("qemu-system-arm is not installed")
    directory = tmp_path_factory.mktemp("qemu")
    with Qtest(directory, _qemu_arguments(directory)) as qemu:
        qemu.watch_interrupts()
        yield qemu, directory


@pytest.fixture(params=["ours", "theirs"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(side: str, request: pytest.FixtureRequest) -> Iterator[Benches]:
    """Devices by name, after a reset and with the same disks."""
    used: list[Bench] = []

    def make(name: str) -> Bench:
        used.append(_ours(name) if side == "ours" else _theirs(name, *request.getfixturevalue("_qemu")))
        return used[-1]

    yield make
    for found in used:
        found.board.store(0x70, 4, 0)


def _ours(name: str) -> Bench:
    device = DEVICES[name]
    if not device.disk:
        return Bench("ours", OurBoard(RngModel(random.Random(1).randbytes)), bytes)
    store = MemoryStore(512 * SECTORS, contents())
    options = BlkOptions(IDENTITY.encode(), device.read_only, device.queues)
    return Bench("ours", OurBoard(BlkModel(store, options)), lambda: store.pread(0, store.size))


def _theirs(name: str, qemu: Qtest, directory: Path) -> Bench:
    device = DEVICES[name]
    board = TheirBoard(qemu, device.slot)
    board.store(0x70, 4, 0)
    if device.disk:
        (directory / name).write_bytes(contents())
    return Bench("theirs", board, (directory / name).read_bytes)
