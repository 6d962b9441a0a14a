"""Datagram sockets: what the golden table does not say.

Source: the datagram half of OpenXT's Linux Argo driver.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dgram import MESSAGE_TYPE_DGRAM, DatagramSocket, datagram
from hmx.argo.abi import Address
from hmx.argo.calls import Outgoing
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, simulate


async def two(rig: Rig) -> tuple[ArgoDriver, ArgoDriver]:
    drivers = rig.driver(1), rig.driver(2)
    for driver in drivers:
        await driver.start()
    return drivers


async def pair(rig: Rig) -> tuple[DatagramSocket, DatagramSocket]:
    near, far = await two(rig)
    return await datagram(near, 10, ring_len=1024), await datagram(far, 20, ring_len=1024)


def test_datagrams_keep_their_boundaries_and_order() -> None:
    """Each send is one receive, the empty one too, whatever wraps around the ring's end."""

    async def main() -> None:
        here, there = await pair(Rig())
        sizes = [0, 1, 15, 16, 17, 100, 500, 992, 3, 992, 0, 77]
        for size in sizes:
            data = bytes(range(256)) * 4
            assert await here.send_to(data[:size], Address(20, 2)) == size
            got = await there.receive()
            assert got == (data[:size], Address(10, 1), size)
            assert not got.truncated

    simulate(main)


def test_a_full_ring_holds_the_sender_up_and_loses_nothing() -> None:
    """Nobody receives: the messages stay in the ring, the sender waits, and all of them come in order."""

    async def main() -> None:
        here, there = await pair(Rig(4))
        count = 200

        async def send() -> None:
            for number in range(count):
                await here.send_to(number.to_bytes(2, "little") * 30, Address(20, 2))

        sending = asyncio.create_task(send())
        await asyncio.sleep(10)
        assert not sending.done()
        with pytest.raises(BlockingIOError):
            await here.send_to(bytes(500), Address(20, 2), wait=False)
        for number in range(count):
            assert (await there.receive()).payload == number.to_bytes(2, "little") * 30
        await sending
        assert there.receive_now() is None

    simulate(main)


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 99, 100, 101])
def test_truncation_is_told(limit: int) -> None:
    """The full length is there, whatever was cut, and wherever the ring wraps."""

    async def main() -> None:
        here, there = await pair(Rig())
        data = bytes(range(100))
        for _ in range(30):
            await here.send_to(data, Address(20, 2))
            got = await there.receive(limit)
            assert got.payload == data[:limit]
            assert (got.size, got.truncated) == (100, limit < 100)

    simulate(main)


def test_a_flood_that_never_ends_does_not_trap_the_reader() -> None:
    """While messages of another type are dropped, others of the kind arrive: one look ends with what was there."""

    async def main() -> None:
        rig = Rig()
        _, there = await pair(rig)
        assert there._ring is not None
        ring = there._ring
        junk = Outgoing(Address(20, 2), 1, (b"junk",), 0)

        class Endless:
            """A consumer into whose ring a message comes for each that is taken."""

            def __init__(self, real: Any) -> None:
                self.real = real
                self.taken = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

            def consume(self) -> None:
                self.real.consume()
                self.taken += 1
                assert self.taken < 100, "trapped"
                assert rig.guests[1]._sendv(junk) == 4

        for _ in range(5):
            assert rig.guests[1]._sendv(junk) == 4
        endless: Any = Endless(ring.consumer)
        ring.consumer = endless
        assert there.receive_now() is None
        assert endless.taken == 5

    simulate(main)


def test_a_closed_socket_and_a_second_reader() -> None:
    """EBADF for every call, and for a task that waits; two readers at once are a mistake."""

    async def main() -> None:
        here, there = await pair(Rig())
        waiting = asyncio.create_task(there.receive())
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="another task"):
            await there.receive()
        await there.close()
        await there.close()
        for call in (waiting, there.receive(), there.send_to(b"", Address(10, 1))):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno == Errno.EBADF
        with pytest.raises(ConnectionRefusedError):
            await here.send_to(b"x", Address(20, 2))

    simulate(main)


def test_a_corrupt_ring_loses_its_datagrams_only() -> None:
    """rx := tx, as the Linux driver recovers; what comes afterwards is received."""

    async def main() -> None:
        here, there = await pair(Rig())
        await here.send_to(b"lost", Address(20, 2))
        assert there._ring is not None
        there._ring.memory.window.write(64, b"\xff\xff")
        assert there.receive_now() is None
        await here.send_to(b"found", Address(20, 2))
        assert (await there.receive()).payload == b"found"
        assert there._driver.rings.counters.corrupt == 1

    simulate(main)


def test_closing_the_driver_tells_a_reader() -> None:
    """A task in receive does not hang when the guest ends."""

    async def main() -> None:
        here, _ = await pair(Rig())
        waiting = asyncio.create_task(here.receive())
        await asyncio.sleep(0.1)
        await here._driver.close()
        with pytest.raises(OSError):
            await waiting

    simulate(main)


def test_the_type_on_the_wire() -> None:
    """No header: the message is the datagram, of type 0x6447724D."""

    async def main() -> None:
        rig = Rig()
        here, _ = await pair(rig)
        rig.guests[1].sent = []
        await here.send_to(b"payload", Address(20, 2))
        assert rig.guests[1].sent == [(Address(20, 2), 10, b"payload", MESSAGE_TYPE_DGRAM)]

    simulate(main)
