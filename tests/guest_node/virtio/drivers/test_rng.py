"""The entropy device, model and driver (VIRTIO 1.4, 5.4)."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from guest_node.virtio.drivers.rng import WANTS, RngDevice
from guest_node.virtio.models.rng import RngModel
from hmx.virtio.features import Feature, feature_set, has
from tests.doubles.virtio_loopback import Loopback


def start(**options: int) -> tuple[Loopback, RngDevice, RngModel]:
    model = RngModel(random.Random(1).randbytes, **options)
    transport = Loopback(model)
    return transport, RngDevice(transport), model


def test_random_bytes_arrive() -> None:
    """5.4.6: the driver gets what the device drew, each byte once."""

    async def main() -> None:
        _, device, model = start()
        await device.start()
        assert await device.read(100) + await device.read(28) == random.Random(1).randbytes(128)
        assert model.answered == 128
        assert model.refused == 0

    asyncio.run(main())


def test_short_answers_are_continued() -> None:
    """5.4.6.2: a device need not fill a buffer."""

    async def main() -> None:
        transport, device, _ = start(answer_max=7)
        await device.start()
        assert len(await device.read(50)) == 50
        assert [len(written) for _, written in transport.answered] == [7] * 7 + [1]

    asyncio.run(main())


@pytest.mark.parametrize("lie", [b"", bytes(60)])
def test_an_answer_of_a_wrong_length_is_an_error(lie: bytes) -> None:
    """5.4.6.2: at least one byte; 2.7.8: at most the buffer."""

    async def main() -> None:
        transport, device, _ = start()
        await device.start()
        transport.tamper = lambda _queue, _written: lie
        with pytest.raises(OSError) as error:
            await device.read(50)
        assert error.value.errno == errno.EIO

    asyncio.run(main())


def test_a_broken_device_is_an_input_output_error() -> None:
    """2.1.2: a driver expects no answer of a device that needs a reset; a reset revives it."""

    async def main() -> None:
        transport, device, _ = start()
        with pytest.raises(OSError) as error:
            await device.read(1)
        assert error.value.errno == errno.ENOTCONN
        await device.start()
        transport.break_off()
        with pytest.raises(OSError) as error:
            await device.read(1)
        assert error.value.errno == errno.EIO
        await device.start()
        assert len(await device.read(1)) == 1

    asyncio.run(main())


def test_a_chain_without_room_is_counted() -> None:
    """5.4.6.1: buffers of this queue are device-writable; another chain comes back empty."""

    async def main() -> None:
        transport, device, model = start()
        await device.start()
        queue = transport.queues[0]
        answer = queue.submit((b"x",), 0)
        await queue.kick()
        assert await answer == b""
        assert model.refused == 1

    asyncio.run(main())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_in_real_rings(packed: bool, hold: bool) -> None:
    """2.7, 2.8: buffers in any number of descriptors, either format."""

    async def main() -> None:
        model = RngModel(random.Random(1).randbytes, answer_max=52)
        avoid = feature_set() if packed else feature_set(Feature.RING_PACKED)
        transport = Loopback(model, pieces=random.Random(2), hold=hold, queue_size=4)
        device = RngDevice(transport, WANTS._replace(avoid=avoid))
        await device.start()
        assert has(device.features, Feature.RING_PACKED) == packed
        reading = asyncio.create_task(device.read(500))
        await transport.run()
        assert await reading == random.Random(1).randbytes(500)

    asyncio.run(main())
