"""The console, model and driver (VIRTIO 1.4, 5.3)."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from guest_node.virtio.drivers.console import WANTS, ConsoleDevice
from guest_node.virtio.models.console import ConsoleModel, echo_console
from hmx.virtio.console import ConsoleFeature
from hmx.virtio.features import feature_set
from tests.doubles.virtio_loopback import Loopback


class Host:
    """What sits behind a console."""

    def __init__(self, **options: Any) -> None:
        self.seen = bytearray()
        self.takes = True
        self.rooms = 0
        self.model = ConsoleModel(self.output, 100, 40, **options)
        self.model.on_room = self.room
        self.transport = Loopback(self.model)
        self.device = ConsoleDevice(self.transport)

    def output(self, data: bytes) -> bool:
        if self.takes:
            self.seen += data
        return self.takes

    def room(self) -> None:
        self.rooms += 1


def test_out_and_in() -> None:
    """5.3.6: bare bytes, in order, in both directions."""

    async def main() -> None:
        host = Host()
        host.model.feed(b"before ")
        await host.device.start()
        await host.device.write(b"hello")
        await host.device.write(bytes(10_000))
        assert host.seen == b"hello" + bytes(10_000)
        assert len([queue for queue, _ in host.transport.answered if queue == 1]) == 1 + 3
        host.model.feed(b"the start")
        assert await host.device.read() + await host.device.read() == b"before the start"
        assert (host.model.bytes_in, host.model.bytes_out) == (16, 10_005)

    asyncio.run(main())


@pytest.mark.parametrize("pieces", [None, 3])
def test_an_echo(pieces: int | None) -> None:
    """More than all buffers hold comes back whole, since the console takes no more than it can give back."""

    async def main() -> None:
        model = echo_console(input_max=2000)
        dice = random.Random(pieces) if pieces else None
        device = ConsoleDevice(Loopback(model, pieces=dice))
        await device.start()
        data = random.Random(4).randbytes(100_000)
        writing = asyncio.create_task(device.write(data))
        heard = b""
        async with asyncio.timeout(20):
            while len(heard) < len(data):
                heard += await device.read()
            await writing
        assert heard == data

    asyncio.run(main())


def test_output_that_the_host_does_not_take() -> None:
    """It stays with the driver, and keeps its order."""

    async def main() -> None:
        host = Host()
        await host.device.start()
        host.takes = False
        first = asyncio.create_task(host.device.write(b"one "))
        await asyncio.sleep(0.01)
        host.takes = True
        second = asyncio.create_task(host.device.write(b"two"))
        await asyncio.sleep(0.01)
        assert not first.done()
        assert not second.done()
        host.model.resume()
        await first
        await second
        assert host.seen == b"one two"

    asyncio.run(main())


def test_input_that_the_driver_does_not_take() -> None:
    """It waits up to a bound; the host is told when there is room again, and nothing is lost."""

    async def main() -> None:
        host = Host(input_max=100)
        fed = 0
        while host.model.feed(bytes([fed]) * 30):
            fed += 1
        assert fed == 4
        assert host.rooms == 0
        await host.device.start()
        assert host.rooms == 1
        heard = b""
        while len(heard) < 120:
            heard += await host.device.read()
        assert heard == b"".join(bytes([number]) * 30 for number in range(4))
        assert host.rooms == 1

    asyncio.run(main())


def test_the_size() -> None:
    """5.3.4: columns and rows, and a notification when they change."""

    async def main() -> None:
        host = Host()
        told = []
        host.transport.on_config = lambda: told.append(1)
        host.model.resize(90, 41)
        assert not told
        await host.device.start()
        assert await host.device.size() == (90, 41)
        host.model.resize(7, 300)
        assert told == [1]
        assert await host.device.size() == (7, 300)
        bare = Loopback(ConsoleModel(host.output))
        without = ConsoleDevice(bare, wants=WANTS._replace(avoid=feature_set(ConsoleFeature.SIZE)))
        await without.start()
        assert await without.size() is None

    asyncio.run(main())


def test_emergency_writes() -> None:
    """5.3.5: the low byte of emerg_wr is printed, without queues; nothing else can be written."""

    async def main() -> None:
        host = Host()
        assert host.model.write_config(8, b"!\0\0\0")
        await host.device.start()
        await host.device.emergency_write(ord("?"))
        assert host.seen == b"!?"
        for offset, data in ((8, b"x"), (0, b"xxxx"), (9, b"xxxx"), (8, b"xxxxx")):
            assert not host.model.write_config(offset, data)
        without = ConsoleDevice(
            Loopback(ConsoleModel(host.output)), wants=WANTS._replace(avoid=feature_set(ConsoleFeature.EMERG_WRITE))
        )
        await without.start()
        with pytest.raises(OSError) as error:
            await without.emergency_write(1)
        assert error.value.errno == errno.EOPNOTSUPP

    asyncio.run(main())


def test_a_reset_forgets() -> None:
    """2.1: what waited is gone, in both directions; the host may feed again."""

    async def main() -> None:
        host = Host(input_max=10)
        await host.device.start()
        host.takes = False
        writing = asyncio.create_task(host.device.write(b"held"))
        await asyncio.sleep(0.01)
        await host.transport.reset()
        with pytest.raises(OSError) as error:
            await writing
        assert error.value.errno == errno.EIO
        host.model.start(0)
        assert host.model.feed(bytes(10))
        assert not host.model.feed(b"x")
        host.model.reset()
        assert host.rooms == 1
        host.takes = True
        host.model.resume()
        assert host.seen == b""
        with pytest.raises(OSError) as error:
            await host.device.read()
        await host.device.start()
        host.model.feed(b"new")
        assert await host.device.read() == b"new"

    asyncio.run(main())


def test_chains_of_no_use() -> None:
    """A buffer for input without room, and a queue that is not there."""

    async def main() -> None:
        host = Host()
        await host.device.start()
        queue = host.transport.queues[0]
        answer = queue.submit((b"x",), 0)
        await queue.kick()
        assert await answer == b""
        assert host.model.refused == 1
        empty = host.transport.queues[1].submit((), 5)
        await host.transport.queues[1].kick()
        assert await empty == b""

    asyncio.run(main())


def test_before_the_start() -> None:
    """There is no device to talk to."""

    async def main() -> None:
        device = Host().device
        for operation in (device.read(), device.write(b"x")):
            with pytest.raises(OSError) as error:
                await operation
            assert error.value.errno == errno.ENOTCONN

    asyncio.run(main())


def test_configuration() -> None:
    """5.3.4: cols, rows, max_nr_ports."""
    assert Host().model.config() == bytes.fromhex("6400 2800 01000000 00000000")
    assert Host().model.features == feature_set(0, 2)


def test_more_bytes_than_a_buffer_has() -> None:
    """2.7.8: a device that says so lies, and nothing of it is believed."""

    async def main() -> None:
        host = Host()
        await host.device.start()
        host.transport.tamper = lambda queue, written: bytes(1025) if queue == 0 else written
        host.model.feed(b"a lie")
        host.transport.tamper = lambda _queue, written: written
        host.model.feed(b"the truth")
        assert await host.device.read() == b"the truth"

    asyncio.run(main())
