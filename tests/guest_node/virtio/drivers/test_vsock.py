"""Sockets of guests and host through socket devices (VIRTIO 1.4, 5.10)."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from guest_node.virtio.drivers.vsock import REPLIES_MAX, VsockDevice, VsockStream
from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from guest_node.virtio.models.vsock import VsockHub, VsockModel
from hmx.virtio.chain import QueueFull
from hmx.virtio.vsock import HEADER_SIZE, VsockHeader
from tests.doubles.virtio_loopback import Loopback

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(limited())


class Guest:
    """One guest at a hub."""

    def __init__(self, hub: VsockHub, cid: int, **loopback: Any) -> None:
        self.model = hub.endpoint(cid)
        self.transport = Loopback(self.model, **loopback)
        self.device = VsockDevice(self.transport)


async def guests(hub: VsockHub, *cids: int, **loopback: Any) -> list[VsockDevice]:
    made = [Guest(hub, cid, **loopback).device for cid in cids]
    for device in made:
        await device.start()
    return made


async def refused(operation: Awaitable[object]) -> int | None:
    with pytest.raises(OSError) as error:
        await operation
    return error.value.errno


async def exactly(stream: VsockStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive()
        assert more, "the stream ended"
        data += more
    return data


async def echo(stream: VsockStream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    await stream.close()


@pytest.mark.parametrize("pieces", [None, 1])
def test_two_guests(pieces: int | None) -> None:
    """5.10.6: connect, both directions, more than the credit, close."""

    async def main() -> None:
        hub = VsockHub()
        dice = random.Random(pieces) if pieces else None
        west, east = await guests(hub, 3, 4, pieces=dice)
        assert (west.cid, east.cid) == (3, 4)
        listener = east.listen(7)
        stream = await west.connect(4, 7)
        peer = await listener.accept()
        assert peer.peer[0] == 3
        echoing = asyncio.create_task(echo(peer))
        data = random.Random(9).randbytes(600_000)
        sending = asyncio.create_task(stream.send(data))
        assert await exactly(stream, len(data)) == data
        await sending
        await stream.close()
        await echoing
        assert not hub.models[3]._flows
        assert not hub.models[4]._flows
        assert west.stack.broken == east.stack.broken == 0

    run(main)


def test_the_host_is_context_2() -> None:
    """7.1: the back end's own sockets, in both directions."""

    async def main() -> None:
        hub = VsockHub()
        (guest,) = await guests(hub, 5)
        listener = hub.host.listen(9)
        stream = await guest.connect(2, 9)
        peer = await listener.accept()
        assert peer.peer[0] == 5
        await stream.send(b"up")
        assert await peer.receive() == b"up"
        inner = guest.listen(1)
        down = await hub.host.connect(5, 1)
        accepted = await inner.accept()
        big = random.Random(2).randbytes(700_000)
        sending = asyncio.create_task(down.send(big))
        assert await exactly(accepted, len(big)) == big
        await sending
        await down.close()
        assert await accepted.receive() == b""

    run(main)


def test_nobody_there() -> None:
    """5.10.6.6: RST for a port without listener, a context without guest, a guest without driver, and for oneself."""

    async def main() -> None:
        hub = VsockHub()
        west, _ = await guests(hub, 3, 4)
        hub.endpoint(6)
        for cid, port in ((4, 7), (9, 7), (6, 7), (2, 7), (3, 7)):
            assert await refused(west.connect(cid, port)) == errno.ECONNREFUSED
        assert await refused(hub.host.connect(9, 1)) == errno.ECONNREFUSED
        assert await refused(hub.host.connect(4, 1)) == errno.ECONNREFUSED
        assert not hub.models[3]._flows

    run(main)


def test_a_listener_s_life() -> None:
    """A port has one listener, which refuses again when it is closed; connections live on."""

    async def main() -> None:
        west, east = await guests(VsockHub(), 3, 4)
        listener = east.listen(7)
        with pytest.raises(OSError) as error:
            east.listen(7)
        assert error.value.errno == errno.EADDRINUSE
        stream = await west.connect(4, 7)
        listener.close()
        assert await refused(west.connect(4, 7)) == errno.ECONNREFUSED
        peer = await listener.accept()
        await peer.send(b"still here")
        assert await stream.receive() == b"still here"
        east.listen(7)

    run(main)


def test_a_receiver_that_does_not_read() -> None:
    """5.10.6.3: no more goes out than the peer has room for, and it goes on when there is room again."""

    async def main() -> None:
        west, east = await guests(VsockHub(), 3, 4)
        listener = east.listen(7)
        stream = await west.connect(4, 7)
        peer = await listener.accept()
        sending = asyncio.create_task(stream.send(bytes(400_000)))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not sending.done()
        assert sum(map(len, peer._connection.unread)) == 262144
        assert await exactly(peer, 400_000) == bytes(400_000)
        await sending

    run(main)


def test_both_send_and_neither_reads() -> None:
    """5.10.6.1: two guests with small rings that send to each other at once do not wait for ever."""

    async def main() -> None:
        hub = VsockHub(pending_max=10_000)
        west, east = await guests(hub, 3, 4, queue_size=4)
        listener = east.listen(7)
        streams = [await west.connect(4, 7) for _ in range(4)]
        peers = [await listener.accept() for _ in range(4)]
        size = 300_000

        async def both(stream: VsockStream) -> None:
            sending = asyncio.create_task(stream.send(bytes(size)))
            assert await exactly(stream, size) == bytes(size)
            await sending

        await asyncio.gather(*(both(stream) for stream in streams + peers))
        assert west.stack.broken == east.stack.broken == 0

    run(main)


def test_a_guest_that_dies() -> None:
    """5.10.6.6: its peers get RST, and it can come back."""

    async def main() -> None:
        hub = VsockHub()
        west, east = await guests(hub, 3, 4)
        listener = east.listen(7)
        host = hub.host.listen(1)
        stream = await west.connect(4, 7)
        upward = await west.connect(2, 1)
        peer, top = await listener.accept(), await host.accept()
        await west.close()
        hub.models[3].reset()
        for one in (peer, top):
            assert await refused(one.receive()) == errno.ECONNRESET
            assert await refused(one.send(b"x")) == errno.ECONNRESET
        for one in (stream, upward):
            assert await refused(one.receive()) == errno.ECONNRESET
        assert await refused(west.connect(4, 7)) == errno.ENOTCONN
        await west.start()
        again = await west.connect(4, 7)
        await again.send(b"back")
        assert await (await listener.accept()).receive() == b"back"
        hub.models[3].close()
        assert 3 not in hub.models
        with pytest.raises(OSError, match="taken"):
            hub.endpoint(4)
        for cid in (0, 1, 2, 0xFFFFFFFF, 1 << 32):
            with pytest.raises(ValueError, match="CID"):
                VsockModel(hub, cid)

    run(main)


def test_a_broken_device() -> None:
    """2.1.2: every stream says EIO."""

    async def main() -> None:
        hub = VsockHub()
        guest = Guest(hub, 3)
        await guest.device.start()
        hub.host.listen(1)
        stream = await guest.device.connect(2, 1)
        guest.transport.break_off()
        assert await refused(stream.receive()) == errno.EIO
        assert await refused(guest.device.connect(2, 1)) == errno.ENOTCONN

    run(main)


def test_transport_reset() -> None:
    """5.10.6.7: connections die on both sides, the CID is read again, listeners survive."""

    async def main() -> None:
        hub = VsockHub()
        west, east = await guests(hub, 3, 4)
        listener, inner = east.listen(7), west.listen(8)
        stream = await west.connect(4, 7)
        peer = await listener.accept()
        hub.models[3].transport_reset(33)
        assert await refused(stream.receive()) == errno.ECONNRESET
        assert await refused(peer.receive()) == errno.ECONNRESET
        for _ in range(20):
            await asyncio.sleep(0)
        assert west.cid == 33
        assert await refused(east.connect(3, 8)) == errno.ECONNREFUSED
        again = await east.connect(33, 8)
        assert (await inner.accept()).peer[0] == 4
        await again.close()
        with pytest.raises(OSError, match="taken"):
            hub.models[33].transport_reset(4)

    run(main)


class Raw:
    """A guest that says what it likes: packets by hand, through a live model."""

    def __init__(self, hub: VsockHub, cid: int = 3, buffers: int = 8, size: int = 4096) -> None:
        self.model = hub.endpoint(cid)
        self.model.start(0)
        self.cid = cid
        self.got: list[tuple[VsockHeader, bytes]] = []
        self.done = 0
        self.size = size
        self.post(buffers)

    def post(self, count: int) -> None:
        for _ in range(count):
            self.model.request(_Buffer(self, 0, b"", self.size))

    def send(self, op: int, port: int = 1, *, cid: int = 2, data: bytes = b"", **fields: int) -> None:
        values = {"src_cid": self.cid, "dst_cid": cid, "src_port": 100, "dst_port": port, "len": len(data), "type": 1}
        header = VsockHeader(**{**values, "op": op, "buf_alloc": 1000, **fields})
        self.model.request(_Buffer(self, 1, header.pack() + data, 0))

    def ops(self) -> list[int]:
        got, self.got = self.got, []
        return [header.op for header, _ in got]


class _Buffer:
    def __init__(self, owner: Raw, queue: int, readable: bytes, writable: int) -> None:
        self.owner = owner
        self.queue = queue
        self.readable: bytes | memoryview = readable
        self.writable = writable

    def complete(self, written: bytes | memoryview = b"") -> None:
        assert len(written) <= self.writable
        if self.queue == 0:
            data = bytes(written)
            self.owner.got.append((VsockHeader.unpack(data), data[HEADER_SIZE:]))
        else:
            self.owner.done += 1


def listening(hub: VsockHub) -> Raw:
    hub.host.listen(1)
    raw = Raw(hub)
    raw.send(REQUEST)
    assert raw.ops() == [RESPONSE]
    return raw


@pytest.mark.parametrize(
    ("op", "fields", "answers"),
    [
        (REQUEST, {"dst_port": 2}, [RST]),
        (RW, {"src_port": 5}, [RST]),
        (SHUTDOWN, {"src_port": 5}, [RST]),
        (CREDIT_REQUEST, {"src_port": 5}, [RST]),
        (RST, {"src_port": 5}, []),
        (RW, {"type": 2}, [RST]),
        (REQUEST, {"type": 77, "src_port": 5}, [RST]),
        (RST, {"type": 77}, []),
        (REQUEST, {}, [RST]),
        (RESPONSE, {}, [RST]),
        (CREDIT_REQUEST, {}, [CREDIT_UPDATE]),
        (CREDIT_UPDATE, {}, []),
        (CREDIT_UPDATE, {"fwd_cnt": 1}, [RST]),
        (SHUTDOWN, {"flags": 3}, [RST]),
        (SHUTDOWN, {"flags": 1}, []),
        (0, {}, []),
        (9, {}, []),
        (RW, {"src_cid": 4}, []),
        (RW, {"len": 1}, []),
        (RW, {"dst_cid": (1 << 32) + 2}, []),
    ],
)
def test_answers(op: int, fields: dict[str, int], answers: list[int]) -> None:
    """5.10.6: what is answered with RST, what with credit, what not at all; an RST never is."""

    async def main() -> None:
        raw = listening(VsockHub())
        raw.send(op, port=1, cid=2, data=b"", **fields)
        assert raw.ops() == answers
        assert raw.done == 2

    run(main)


def test_more_than_the_credit() -> None:
    """5.10.6.3: a peer that sends more than it was told there is room for loses the connection."""

    async def main() -> None:
        hub = VsockHub(buffer=1000)
        raw = listening(hub)
        raw.send(RW, data=bytes(1000))
        assert raw.ops() == []
        raw.send(RW, data=b"x")
        assert raw.ops() == [RST]
        assert hub.stack.broken == 1

    run(main)


def test_data_after_the_end() -> None:
    """5.10.6.5: SHUTDOWN with bit 1 says that there is no more."""

    async def main() -> None:
        raw = listening(VsockHub())
        raw.send(SHUTDOWN, flags=2)
        raw.send(RW, data=b"x")
        assert raw.ops() == [RST]

    run(main)


def test_half_a_shutdown() -> None:
    """5.10.6.5: a peer that sends no more still receives, and the other way round."""

    async def main() -> None:
        hub = VsockHub()
        listener = hub.host.listen(1)
        raw = Raw(hub)
        raw.send(REQUEST)
        raw.send(RW, data=b"last")
        raw.send(SHUTDOWN, flags=2)
        stream = await listener.accept()
        assert await stream.receive() == b"last"
        assert await stream.receive() == b""
        await stream.send(b"answer")
        assert raw.got[-1][1] == b"answer"
        raw.send(SHUTDOWN, flags=1)
        assert raw.ops()[-1] == RST
        assert await refused(stream.send(b"x")) == errno.EPIPE

    run(main)


def test_closing_waits_for_the_peer_and_not_for_ever() -> None:
    """1.11: SHUTDOWN with both bits, then RST when the peer has confirmed or a time has passed."""

    async def main() -> None:
        hub = VsockHub()
        listener = hub.host.listen(1)
        raw = Raw(hub)
        raw.send(REQUEST)
        stream = await listener.accept()
        closing = asyncio.create_task(stream.close())
        await asyncio.sleep(0)
        assert raw.ops() == [RESPONSE, SHUTDOWN]
        raw.send(RW, data=b"on its way")
        assert not closing.done()
        raw.send(RST)
        await closing
        raw.send(REQUEST)
        stream = await listener.accept()
        await stream.close(timeout=0.01)
        assert raw.ops() == [RESPONSE, SHUTDOWN, RST]

    run(main)


def test_a_connection_that_nobody_answers() -> None:
    """A time limit, and an RST for what may still come."""

    async def main() -> None:
        hub = VsockHub()
        raw = Raw(hub)
        assert await refused(hub.host.connect(3, 7, timeout=0.01)) == errno.ETIMEDOUT
        assert raw.ops() == [REQUEST, RST]

    run(main)


def test_packets_are_cut_to_the_buffers() -> None:
    """5.10.6.4: a stream has no boundaries; each part says its own length."""

    async def main() -> None:
        hub = VsockHub()
        listener = hub.host.listen(1)
        raw = Raw(hub, size=HEADER_SIZE + 10)
        raw.send(REQUEST)
        await (await listener.accept()).send(bytes(range(25)))
        parts = raw.got[1:]
        assert [(header.len, len(data)) for header, data in parts] == [(10, 10), (10, 10), (5, 5)]
        assert b"".join(data for _, data in parts) == bytes(range(25))
        assert raw.model._pending_size == 0

    run(main)


def test_a_receiver_without_buffers_stops_its_senders() -> None:
    """5.10.6.1: what waits is bounded; the sender's packets are read again when there is room."""

    async def main() -> None:
        hub = VsockHub(pending_max=1000)
        sender, receiver = Raw(hub, 3), Raw(hub, 4, buffers=0)
        for _ in range(50):
            sender.send(RW, cid=4, data=bytes(100))
        held = 50 - sender.done
        assert held
        assert receiver.model._pending_size < 1200
        sender.send(RST, cid=4)
        receiver.post(60)
        assert sender.done == 51
        assert len(receiver.got) == 50
        assert receiver.model._pending_size == 0

    run(main)


def test_a_guest_that_does_not_take_its_answers() -> None:
    """The same where the packets wait for the sender itself."""

    async def main() -> None:
        hub = VsockHub(pending_max=1000)
        raw = Raw(hub, buffers=0)
        for _ in range(100):
            raw.send(RW)
        assert raw.done < 100
        assert raw.model._pending_size < 1100
        raw.model.reset()
        raw.model.start(0)
        assert raw.model._pending_size == 0

    run(main)


def test_rst_for_nothing_costs_nothing() -> None:
    """A flood of them does not fill the queue of a guest that takes nothing."""

    async def main() -> None:
        hub = VsockHub(pending_max=1000)
        sender, receiver = Raw(hub, 3), Raw(hub, 4, buffers=0)
        for port in range(200):
            sender.send(RST, cid=4, port=port)
        assert sender.done == 200
        assert receiver.model._pending_size == 0

    run(main)


def test_buffers_that_are_too_small() -> None:
    """A buffer that holds no packet comes back, counted."""

    async def main() -> None:
        hub = VsockHub()
        raw = Raw(hub, size=HEADER_SIZE, buffers=0)
        with pytest.raises(ValueError, match="header"):
            raw.post(1)
        assert raw.model.malformed == 1

    run(main)


def test_the_loopback_is_as_small_as_asked() -> None:
    """What the test of small rings relies on."""

    async def main() -> None:
        guest = Guest(VsockHub(), 3, queue_size=4)
        await guest.device.start()
        queue = guest.transport.queues[1]
        with pytest.raises(QueueFull):
            for _ in range(5):
                queue.submit((b"x",), 0)

    run(main)


class Flood(BaseModel):
    """A device that fills every buffer with a packet for a port without listener, and takes no packet."""

    device_id: int = 19
    queue_sizes: tuple[int, ...] = (32, 8, 4)

    def __init__(self) -> None:
        super().__init__()
        self.filled = 0

    def config(self) -> bytes:
        return (3).to_bytes(8, "little")

    def request(self, request: Request) -> None:
        if request.queue == 0:
            self.filled += 1
            request.complete(VsockHeader(2, 3, self.filled, 7, 0, 1, REQUEST).pack())


def test_a_device_that_takes_no_answers() -> None:
    """5.10.6.1: answers wait in the driver, and beyond a bound it receives nothing more."""

    async def main() -> None:
        model = Flood()
        device = VsockDevice(Loopback(model))
        await device.start()
        for _ in range(3000):
            await asyncio.sleep(0)
        assert REPLIES_MAX < model.filled < REPLIES_MAX + 100
        await device.close()

    run(main)
