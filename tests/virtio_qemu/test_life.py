"""Resets of devices and queues, queues that come and go, configuration that changes (VIRTIO 1.4, 2.4, 2.5, 2.6.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from guest_node.virtio.drivers.negotiate import Wants, negotiate
from guest_node.virtio.frontend import DeviceBroken
from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from hmx.virtio.features import Feature, feature_set, has
from hmx.virtio.ids import DeviceId
from hmx.virtio.mmio import CONFIG, Interrupt
from tests.virtio_qemu.boards import OurBoard, TheirBoard
from tests.virtio_qemu.conftest import Benches
from tests.virtio_qemu.qtest import PROGRAM, Qtest
from tests.virtio_qemu.transport import MmioQueue, MmioTransport, run

PACKED = feature_set(Feature.RING_PACKED)
RESET = feature_set(Feature.RING_RESET)
FORMATS = {"split": PACKED, "packed": 0}
LIVE = 0x0F


def bring_up(transport: MmioTransport, avoid: int = 0, size: int = 8) -> tuple[int, MmioQueue]:
    """An entropy device; its features and its queue."""

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, size)]

    features, _ = run(transport, negotiate(transport, Wants(DeviceId.RNG, 0, 0, (), avoid), setup))
    return features, transport.queues[0]


async def once(queue: MmioQueue, size: int = 8) -> bytes:
    """One request."""
    answer = queue.submit((), size)
    await queue.kick()
    return await answer


@pytest.mark.parametrize("rings", FORMATS)
def test_a_reset_with_buffers_outstanding(bench: Benches, rings: str) -> None:
    """They are lost, their memory is not touched any more, and the next driver begins at the start of its ring."""
    found = bench("rng")
    transport = found.transport()
    for _ in range(5):
        _, queue = bring_up(transport, FORMATS[rings])
        assert len(run(transport, once(queue))) == 8

        async def lose(queue: MmioQueue = queue) -> asyncio.Future[bytes]:
            answer = queue.submit((), 4000)
            queue.ring.publish()  # the device may or may not find it: nobody kicked
            await transport.reset()
            return answer

        answer = run(transport, lose())
        with pytest.raises(DeviceBroken):
            answer.result()
        assert transport.read("Status") == 0
        assert transport.read("InterruptStatus") == 0


@pytest.mark.parametrize("rings", FORMATS)
def test_a_device_does_nothing_before_driver_ok(bench: Benches, rings: str) -> None:
    """Not even when it is kicked (2.1)."""
    found = bench("rng")
    transport = found.transport()
    features = feature_set(Feature.VERSION_1) | (PACKED if rings == "packed" else 0)
    for status in (1, 3):
        transport.write("Status", status)
    run(transport, transport.set_driver_features(features))
    transport.write("Status", 0x0B)
    queue = run(transport, transport.setup_queue(0, 8))

    async def early() -> bytes:
        answer = queue.submit((), 8)
        queue.ring.publish()
        queue.notify()
        found.board.wait(0.01)
        assert queue.ring.take() is None
        assert transport.read("InterruptStatus") == 0
        transport.write("Status", LIVE)
        queue.notify()
        return await answer

    assert len(run(transport, early())) == 8


def test_queue_reset(bench: Benches) -> None:
    """One queue is stopped and comes back smaller, the device stays live.  QEMU 7.2 offers RING_RESET over mmio without
    having its register: there the queue stays ready, and a driver must not believe in it.
    """
    found = bench("rng")
    transport = found.transport()
    features, queue = bring_up(transport)
    assert has(features, Feature.RING_RESET)
    assert len(run(transport, once(queue))) == 8
    transport.write("QueueSel", 0)
    transport.write("QueueReset", 1)
    assert transport.read("QueueReset") == 0
    if found.side == "theirs":
        assert transport.read("QueueReady") == 1
        return
    assert transport.read("QueueReady") == 0
    run(transport, transport.reset_queue(0))
    fresh = run(transport, transport.setup_queue(0, 4))
    for _ in range(10):
        assert len(run(transport, once(fresh))) == 8
    assert transport.read("Status") == LIVE


@pytest.mark.parametrize("rings", FORMATS)
def test_a_queue_that_is_taken_away(bench: Benches, rings: str) -> None:
    """After QueueReady = 0 the device leaves the ring alone (4.2.2.1).  QEMU 7.2 goes on with it."""
    found = bench("rng")
    transport = found.transport()
    _, queue = bring_up(transport, FORMATS[rings])
    transport.write("QueueSel", 0)
    transport.write("QueueReady", 0)
    assert transport.read("QueueReady") == 0

    async def late() -> bool:
        queue.submit((), 8)
        queue.ring.publish()
        queue.notify()
        found.board.wait(0.05)
        return queue.ring.take() is not None

    assert run(transport, late()) == (found.side == "theirs")


def test_the_configuration_changes(side: str, tmp_path: Path) -> None:
    """A disk that grows: a new generation, the configuration bit of the interrupt, the new capacity (2.5, 3.2.1)."""
    if side == "ours":
        _ours_grows()
    elif PROGRAM is None:
        pytest.skip("qemu-system-arm is not installed")
    else:
        _theirs_grows(tmp_path)


def _ours_grows() -> None:
    model = Growing()
    board = OurBoard(model)
    transport = MmioTransport(board)
    _grows(transport, lambda: model.grow(128))


def _theirs_grows(directory: Path) -> None:
    image = directory / "disk"
    image.write_bytes(bytes(64 * 512))
    arguments = ["-global", "virtio-mmio.force-legacy=false"]
    arguments += ["-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={image}"]
    arguments += ["-device", "virtio-blk-device,bus=virtio-mmio-bus.0,drive=disk"]
    with Qtest(directory, arguments) as qemu:
        qemu.watch_interrupts()
        resize = {"node-name": "disk", "size": 128 * 512}
        _grows(MmioTransport(TheirBoard(qemu)), lambda: qemu.qmp("block_resize", **resize))


def _grows(transport: MmioTransport, grow: Callable[[], object]) -> None:
    changes = []
    transport.on_config = lambda: changes.append(transport.board.load(CONFIG, 4))

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, 8)]

    run(transport, negotiate(transport, Wants(DeviceId.BLK, 0, 0, ()), setup))
    assert transport.board.load(CONFIG, 4) == 64
    before = transport.read("ConfigGeneration")
    assert transport.read("ConfigGeneration") == before
    grow()
    transport.board.wait(0.05)
    assert transport.board.interrupt()
    assert transport.read("InterruptStatus") & Interrupt.CONFIG
    assert transport.service()
    assert changes == [128]
    assert transport.read("ConfigGeneration") != before
    assert transport.read("InterruptStatus") == 0


class Growing(BaseModel):
    """A disk without contents."""

    device_id: int = DeviceId.BLK
    queue_sizes: tuple[int, ...] = (8,)
    sectors = 64

    def config(self) -> bytes:
        return self.sectors.to_bytes(8, "little")

    def grow(self, sectors: int) -> None:
        self.sectors = sectors
        self.on_config()

    def request(self, request: Request) -> None:
        raise AssertionError("nobody asks")
