"""Network devices at a switch, and their driver (VIRTIO 1.4, 5.1)."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Awaitable
from typing import Any

import pytest

from guest_node.virtio.drivers.net import WANTS, NetDevice
from guest_node.virtio.models.net import NetModel
from guest_node.virtio.models.switch import Switch
from hmx.virtio.features import feature_set, has
from hmx.virtio.net import NetFeature
from tests.doubles.virtio_loopback import Loopback

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number])


def frame(to: bytes, source: bytes, payload: bytes = b"payload") -> bytes:
    return to + source + b"\x88\xb5" + payload


class Net:
    """Stations 1, 2, ... at one switch."""

    def __init__(self, count: int = 2, avoid: tuple[int, ...] = (), buffers: int = 8, **options: Any) -> None:
        loopback = {key: options.pop(key) for key in ("pieces", "queue_size") if key in options}
        self.switch = Switch(lambda: 0.0)
        self.models = [NetModel(self.switch, mac(number + 1), **options) for number in range(count)]
        self.transports = [Loopback(model, **loopback) for model in self.models]
        wants = WANTS._replace(avoid=feature_set(*avoid))
        self.devices = [NetDevice(transport, buffers=buffers, wants=wants) for transport in self.transports]

    async def start(self) -> list[NetDevice]:
        for device in self.devices:
            await device.start()
        return self.devices


async def refused(operation: Awaitable[object]) -> int | None:
    with pytest.raises(OSError) as error:
        await operation
    return error.value.errno


@pytest.mark.parametrize("avoid", [(), (NetFeature.MRG_RXBUF,)])
@pytest.mark.parametrize("pieces", [None, 5])
def test_frames_between_guests(avoid: tuple[int, ...], pieces: int | None) -> None:
    """5.1.6: what one sends the other gets, byte by byte, whatever the descriptors."""

    async def main() -> None:
        net = Net(avoid=avoid, pieces=random.Random(pieces) if pieces else None)
        west, east = await net.start()
        assert has(west.features, NetFeature.MRG_RXBUF) == (not avoid)
        assert (west.mac, east.mac) == (mac(1), mac(2))
        assert await west.link_up()
        dice = random.Random(1)
        for size in (0, 1, 46, 1500, 1504):
            payload = dice.randbytes(size)
            await west.send(frame(BROADCAST, west.mac, payload))
            assert await east.receive() == frame(BROADCAST, west.mac, payload)
            await east.send(frame(west.mac, east.mac, payload))
            assert await west.receive() == frame(west.mac, east.mac, payload)

    asyncio.run(main())


def test_many_frames() -> None:
    """More than there are buffers, in order, as long as the reader keeps up."""

    async def main() -> None:
        west, east = await Net(buffers=4).start()
        for number in range(300):
            await west.send(frame(east.mac, west.mac, struct.pack("<I", number)))
            if number % 3 == 2:
                got = [await east.receive() for _ in range(3)]
                assert [struct.unpack("<I", one[14:])[0] for one in got] == [number - 2, number - 1, number]

    asyncio.run(main())


def test_a_guest_that_does_not_receive_loses_frames() -> None:
    """5.1.6.4: no buffer, no frame; counted, and the sender is not held up."""

    async def main() -> None:
        net = Net(buffers=4)
        west, east = await net.start()
        for number in range(10):
            await west.send(frame(east.mac, west.mac, bytes([number])))
        assert net.models[1].counters.no_buffer == 6
        assert net.models[1].port.counters.dropped == 6
        for number in range(4):
            assert (await east.receive())[14] == number
        await west.send(frame(east.mac, west.mac, b"\x63"))
        assert (await east.receive())[14] == 0x63

    asyncio.run(main())


def test_cancelling_loses_nothing() -> None:
    """A reader may give up and come back."""

    async def main() -> None:
        west, east = await Net().start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await east.receive()
        await west.send(frame(east.mac, west.mac))
        assert await east.receive() == frame(east.mac, west.mac)

    asyncio.run(main())


class Ask:
    """A chain of a hostile driver."""

    def __init__(self, queue: int, readable: bytes = b"", writable: int = 0) -> None:
        self.queue = queue
        self.readable: bytes | memoryview = readable
        self.writable = writable
        self.answer: bytes | None = None

    def complete(self, written: bytes | memoryview = b"") -> None:
        assert self.answer is None
        assert len(written) <= self.writable
        self.answer = bytes(written)


def ask(model: NetModel, queue: int, readable: bytes = b"", writable: int = 0) -> Ask:
    request = Ask(queue, readable, writable)
    model.request(request)
    return request


def tap(switch: Switch) -> list[bytes]:
    """What reaches another port."""
    got: list[bytes] = []

    def take(frame: bytes | memoryview) -> bool:
        got.append(bytes(frame))
        return True

    switch.attach("tap", take)
    return got


def live(mergeable: bool = True, merge: bool = True) -> tuple[Switch, NetModel]:
    switch = Switch(lambda: 0.0)
    model = NetModel(switch, mac(1), mergeable=mergeable)
    model.start(feature_set(NetFeature.MRG_RXBUF) if merge else 0)
    return switch, model


def test_the_header_of_a_received_frame() -> None:
    """5.1.6.4.1: 12 bytes, nothing set, num_buffers 1, with or without MRG_RXBUF."""
    for merge in (True, False):
        switch, model = live(merge=merge)
        buffer = ask(model, 0, b"", 1526)
        switch.attach("tap", lambda frame: True).send(frame(mac(1), mac(9)))
        assert buffer.answer == bytes(10) + b"\1\0" + frame(mac(1), mac(9))


def test_merged_buffers() -> None:
    """5.1.6.3.2, 5.1.6.4.1: with MRG_RXBUF a frame fills as many buffers as it needs, and says how many."""
    switch, model = live()
    tap = switch.attach("tap", lambda frame: True)
    buffers = [ask(model, 0, b"", 20) for _ in range(4)]
    packet = bytes(10) + b"\3\0" + frame(mac(1), mac(9), bytes(range(20)))
    tap.send(packet[12:])
    assert [buffer.answer for buffer in buffers] == [packet[:20], packet[20:40], packet[40:], None]
    tap.send(packet[12:])
    assert buffers[3].answer is None
    assert model.counters.no_buffer == 1
    assert tap.counters.frames_in == 2


def test_a_buffer_that_is_too_small() -> None:
    """5.1.6.3.1: without MRG_RXBUF a frame fits into one buffer or is lost; the buffer waits for a smaller one."""
    switch, model = live(merge=False)
    tap = switch.attach("tap", lambda frame: True)
    first, second = ask(model, 0, b"", 40), ask(model, 0, b"", 1526)
    tap.send(frame(mac(1), mac(9), bytes(20)))
    assert (first.answer, second.answer) == (None, None)
    assert model.counters.too_small == 1
    tap.send(frame(mac(1), mac(9), b""))
    assert first.answer is not None


@pytest.mark.parametrize(
    ("header", "counter"),
    [
        (b"", "malformed"),
        (bytes(11), "malformed"),
        (b"\1" + bytes(11), "offloads"),
        (b"\0\1" + bytes(10), "offloads"),
        (b"\0\x80" + bytes(10), "offloads"),
    ],
)
def test_packets_that_must_not_be_sent(header: bytes, counter: str) -> None:
    """5.1.6.2.1: no header, or an offload that was not negotiated: dropped, counted, and the chain comes back."""
    switch, model = live()
    got = tap(switch)
    data = header + (frame(BROADCAST, mac(1)) if len(header) == 12 else b"")
    assert ask(model, 1, data).answer == b""
    assert getattr(model.counters, counter) == 1
    assert got == []


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 13, frame(BROADCAST, mac(1), bytes(1505)), frame(BROADCAST, BROADCAST)]
)
def test_frames_that_are_none(data: bytes) -> None:
    """The switch refuses them; the device lives on."""
    switch, model = live()
    got = tap(switch)
    assert ask(model, 1, bytes(12) + data).answer == b""
    assert model.port.counters.refused == 1
    assert got == []
    ask(model, 1, bytes(12) + frame(BROADCAST, mac(1)))
    assert got == [frame(BROADCAST, mac(1))]


def test_chains_of_no_use() -> None:
    """A receive buffer without room for more than the header comes back."""
    _, model = live()
    for writable in (0, 12):
        assert ask(model, 0, b"", writable).answer == b""
    assert model.counters.malformed == 2


def test_the_link() -> None:
    """5.1.4.2: STATUS says whether the link is up, and a change is told; without it nothing goes through."""

    async def main() -> None:
        net = Net()
        west, east = await net.start()
        told: list[int] = []
        net.transports[1].on_config = lambda: told.append(1)
        net.models[1].set_link(False)
        net.models[1].set_link(False)
        assert told == [1]
        assert not await east.link_up()
        await west.send(frame(BROADCAST, west.mac))
        await east.send(frame(BROADCAST, east.mac))
        assert net.models[1].counters.link_down == 2
        net.models[1].set_link(True)
        await east.send(frame(BROADCAST, east.mac))
        assert (await west.receive())[6:12] == east.mac
        bare = await Net(avoid=(NetFeature.STATUS,)).start()
        assert await bare[0].link_up()

    asyncio.run(main())


def test_configuration() -> None:
    """5.1.4: mac, status, pairs, mtu; 5.1.3: what is offered."""
    switch = Switch(lambda: 0.0)
    model = NetModel(switch, mac(1), mtu=1400)
    assert model.config()[:12] == mac(1) + b"\1\0" + b"\1\0" + struct.pack("<H", 1400)
    assert model.features == feature_set(3, 5, 15, 16)
    assert NetModel(switch, mac(2), mergeable=False).features == feature_set(5, 16)
    for wrong in (bytes(6), BROADCAST, b"\x01" + bytes(5), bytes(5)):
        with pytest.raises(ValueError, match="address"):
            NetModel(switch, wrong)


def test_the_mtu() -> None:
    """5.1.4: a driver sends nothing larger."""

    async def main() -> None:
        (device, _) = await Net(mtu=100).start()
        assert device.mtu == 100
        await device.send(frame(BROADCAST, device.mac, bytes(104)))
        assert await refused(device.send(frame(BROADCAST, device.mac, bytes(105)))) == errno.EMSGSIZE
        assert await refused(device.send(bytes(13))) == errno.EMSGSIZE

    asyncio.run(main())


def test_a_guest_that_leaves() -> None:
    """2.1: after a reset it gets nothing, and its address is unknown; it can come back."""

    async def main() -> None:
        net = Net(3)
        west, east, third = await net.start()
        await east.send(frame(BROADCAST, east.mac))
        await third.receive()
        await net.transports[1].reset()
        assert not list(net.switch.addresses())
        assert await refused(east.receive()) == errno.EIO
        await west.send(frame(east.mac, west.mac))
        assert await third.receive() == frame(east.mac, west.mac)
        await east.start()
        await west.send(frame(east.mac, west.mac))
        assert await east.receive() == frame(east.mac, west.mac)
        net.models[1].close()
        assert len(net.switch.ports) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "written",
    [
        b"",
        bytes(11),
        bytes(12) + frame(mac(1), mac(2)),
        bytes(10) + b"\2\0" + frame(mac(1), mac(2)),
        bytes(10) + b"\xff\xff" + frame(mac(1), mac(2)),
        b"\1" + bytes(9) + b"\1\0" + frame(mac(1), mac(2)),
        b"\0\1" + bytes(8) + b"\1\0" + frame(mac(1), mac(2)),
        bytes(10) + b"\1\0" + bytes(13),
        bytes(10) + b"\1\0" + bytes(1600),
    ],
)
def test_what_a_device_says_is_checked(written: bytes) -> None:
    """5.1.6.4.2: no header, buffers that were not negotiated, offloads, frames of no size: passed over."""

    async def main() -> None:
        net = Net(avoid=(NetFeature.MRG_RXBUF,))
        west, east = await net.start()
        net.transports[1].tamper = lambda _queue, _written: written
        await west.send(frame(east.mac, west.mac, b"bad"))
        await asyncio.sleep(0)
        net.transports[1].tamper = lambda _queue, written: written
        await west.send(frame(east.mac, west.mac, b"good"))
        assert (await east.receive())[14:] == b"good"
        assert east.malformed == 1

    asyncio.run(main())


def test_a_frame_in_several_buffers() -> None:
    """5.1.6.4.2: the driver puts together what num_buffers says belongs together, and no more than it has posted."""

    async def main() -> None:
        net = Net()
        _, east = await net.start()
        whole = frame(mac(2), mac(1), bytes(range(60)))
        packet = bytes(10) + b"\3\0" + whole
        assert [east._take(part) for part in (packet[:30], packet[30:50], packet[50:])] == [(), (), (whole,)]
        assert east._take(bytes(10) + struct.pack("<H", 9) + whole) == ()
        assert east.malformed == 1

    asyncio.run(main())


def test_broken_and_not_started() -> None:
    """2.1.2: input/output errors."""

    async def main() -> None:
        net = Net()
        assert await refused(net.devices[0].receive()) == errno.ENOTCONN
        assert await refused(net.devices[0].send(bytes(60))) == errno.ENOTCONN
        west, _ = await net.start()
        waiting = asyncio.create_task(west.receive())
        await asyncio.sleep(0)
        net.transports[0].break_off()
        assert await refused(waiting) == errno.EIO
        assert await refused(west.send(bytes(60))) == errno.EIO

    asyncio.run(main())
