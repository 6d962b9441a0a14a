"""Stream sockets: how they end, by either side, by death, by a broken link.

Source: the stream half of OpenXT's Linux Argo driver, and the improvements that guest_node.drivers.stream, .listener
and .stream_table name.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guest_node.drivers.connector import connect
from guest_node.drivers.core import TICK
from guest_node.drivers.listener import listen
from guest_node.drivers.stream_table import State
from hmx.argo.abi import DOMID_ANY, Address
from hmx.errno import Errno
from tests.doubles.argo_rig import simulate
from tests.doubles.stream_net import PORT, Net, end_guest, errno_of, fill, rings_of


def test_data_before_the_rst_is_read_before_the_end() -> None:
    """The Linux driver answers EOF as soon as the RST is seen, and drops what is queued; here it is read first."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        await connected.send(b"last words")
        await connected.close()
        await asyncio.sleep(1)
        assert accepted._core.state is State.DISCONNECTED
        assert await accepted.receive() == b"last words"
        assert await accepted.receive() == b""
        assert await errno_of(accepted.send(b"x")) == Errno.EPIPE
        await net.close()

    simulate(main)


def test_close_does_not_wait_and_its_rst_arrives() -> None:
    """The peer's ring is full and nobody reads: close returns; the RST follows the data when there is room."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair(ring_len=4096, budget=5_000)
        sending = asyncio.create_task(connected.send(bytes(100_000)))
        await asyncio.sleep(0.1)
        assert not sending.done()
        await fill(net, 1, connected)
        loop = asyncio.get_running_loop()
        before = loop.time()
        await connected.close()
        await connected.close()
        assert loop.time() - before < 0.01
        assert await errno_of(sending) == Errno.EBADF
        assert rings_of(net, 1) != set()  # until the RST is out
        count = connected.bytes_sent
        assert len(await accepted.receive_exactly(count)) == count
        assert await accepted.receive() == b""
        await asyncio.sleep(0.1)
        assert rings_of(net, 1) == set()
        await net.close()

    simulate(main)


def test_a_closed_socket() -> None:
    """EBADF for every call; frames that still come for it are dropped, not queued."""

    async def main() -> None:
        net = await Net.make()
        async with (await net.pair())[0] as connected:
            await connected.send(b"x")
        assert await errno_of(connected.send(b"x")) == Errno.EBADF
        assert await errno_of(connected.receive()) == Errno.EBADF
        await connected.close()
        await net.close()

    simulate(main)


def test_close_ends_a_receive_in_another_task() -> None:
    """A task that waits on a socket that is closed under it is told."""

    async def main() -> None:
        net = await Net.make()
        _, accepted, _ = await net.pair()
        receiving = asyncio.create_task(accepted.receive())
        await asyncio.sleep(0.1)
        await accepted.close()
        assert await errno_of(receiving) == Errno.EBADF
        await net.close()

    simulate(main)


@pytest.mark.parametrize("budget", [1 << 20, 3000])
def test_a_writer_that_finds_its_peer_gone_leaves_the_readers_bytes(budget: int) -> None:
    """The peer wrote, closed and unregistered before this side looked: EPIPE, not a reset, and all bytes, then the end.
    With a small budget part of them still lies in the ring, behind it the RST: then the ring's absence is all that is
    known, and the bytes are not lost for that.
    """

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair(ring_len=8192)
        connected._core.budget = budget
        net.calls(1).handlers.clear()  # our side does not look
        data = bytes(range(250)) * 20
        await accepted.send(data)
        if budget < len(data):
            net[1].look()
            assert connected._core.held
        await accepted.close()
        assert rings_of(net, 2) == {(PORT, DOMID_ANY)}
        await net.rig.guests[2].unregister_ring(PORT, DOMID_ANY)
        expected = Errno.EPIPE if budget > len(data) else Errno.ECONNREFUSED
        assert await errno_of(connected.send(b"are you there?")) == expected
        net.calls(1).handlers.append(net[1]._virq)
        assert await connected.receive_exactly(len(data)) == data
        assert await connected.receive() == b""
        await net[1].close()

    simulate(main)


STATES = ["connecting", "backlog", "idle", "reading", "writing", "closing"]


@pytest.mark.parametrize("side", ["connector", "accepted"])
@pytest.mark.parametrize("state", STATES)
def test_a_peer_that_vanishes(side: str, state: str) -> None:
    """Its domain dies, in each state, and no RST comes: whoever waits is told within two ticks, nobody hangs, and the
    driver can still be closed.
    """

    async def main() -> None:
        net = await Net.make()
        mine, other = (1, 2) if side == "connector" else (2, 1)
        listener = await listen(net[2], PORT, ring_len=4096, budget=4096)
        loop = asyncio.get_running_loop()
        if state in ("connecting", "backlog"):
            task = asyncio.create_task(connect(net[1], Address(PORT, 2)))
            await asyncio.sleep(0.1)
            if side == "accepted":
                await end_guest(net, other)
                accepting = asyncio.create_task(listener.accept())
                await asyncio.sleep(1)
                assert not accepting.done()  # a dead peer is not accepted
                accepting.cancel()
            else:
                await end_guest(net, other)
                assert await errno_of(task) in (Errno.ETIMEDOUT, Errno.ECONNREFUSED)
            await asyncio.gather(task, return_exceptions=True)
            await net[mine].close()
            return
        accepting = asyncio.create_task(listener.accept())
        connected = await connect(net[1], Address(PORT, 2), ring_len=4096, budget=4096)
        accepted = await accepting
        here, there = (connected, accepted) if side == "connector" else (accepted, connected)
        await there.send(b"words before death")
        sending = None
        if state in ("writing", "closing"):
            sending = asyncio.create_task(here.send(bytes(100_000)))
            await asyncio.sleep(0.1)
            assert not sending.done()
            await fill(net, mine, here)
        if state == "closing":
            await here.close()
            assert len(net[mine].controls) == 1
        reading = None
        if state == "reading":
            assert await here.receive() == b"words before death"
            reading = asyncio.create_task(here.receive())
        await asyncio.sleep(0.1)
        await end_guest(net, other)
        died = loop.time()
        if state == "idle":
            assert await here.receive_exactly(18) == b"words before death"
            assert await errno_of(here.receive()) == Errno.ECONNRESET
        if reading is not None:
            assert await errno_of(reading) == Errno.ECONNRESET
            assert await errno_of(here.send(b"x")) == Errno.EPIPE
        if state == "writing" and sending is not None:
            assert await errno_of(sending) == Errno.ECONNREFUSED
            assert await here.receive() == b"words before death"
            assert await errno_of(here.receive()) == Errno.ECONNRESET
        if state == "closing" and sending is not None:
            assert await errno_of(sending) == Errno.EBADF
            await asyncio.sleep(2 * TICK)
            assert len(net[mine].controls) == 0
        assert loop.time() - died <= 2 * TICK + 0.01
        await net[mine].close()
        assert rings_of(net, mine) == set()

    simulate(main)


def test_a_corrupt_ring_ends_its_connections() -> None:
    """Nonsense in a ring means lost bytes: the streams that it carries end with EIO instead of skipping them."""

    async def main() -> None:
        net = await Net.make(3)
        connected, accepted, listener = await net.pair()
        accepting = asyncio.create_task(listener.accept())
        other = await connect(net[3], Address(PORT, 2))
        untouched = await accepting
        for driver, domid in ((net[1], 2), (net[2], 1)):
            for ring in driver.rings:
                if ring.partner == domid:
                    window = ring.memory.window
                    window.write(64 + window.load32(4), b"\x05" + bytes(15))
                    window.store32(4, (window.load32(4) + 64) % ring.memory.ring_len)
            driver._virq()
        await asyncio.sleep(0.1)
        for end in (connected, accepted):
            assert await errno_of(end.receive()) == Errno.EIO
        await other.send(b"fine")
        assert await untouched.receive() == b"fine"
        await net.close()

    simulate(main)


def test_closing_the_driver_closes_everything() -> None:
    """Sockets left open get their RST, tasks that wait are told, and the peer sees an orderly end."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, listener = await net.pair()
        await connected.send(b"bye")
        waiting = [asyncio.create_task(call) for call in (connected.receive(), listener.accept())]
        await asyncio.sleep(0.1)
        await net[1].close()
        assert await errno_of(waiting[0]) == Errno.EBADF
        assert await accepted.receive() == b"bye"
        assert await accepted.receive() == b""
        await net[2].close()
        assert await errno_of(waiting[1]) == Errno.EINVAL
        assert rings_of(net, 1) == rings_of(net, 2) == set()

    simulate(main)


# -- behind a link that broke ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("size", [5, 300_000])
@pytest.mark.parametrize("unread", [False, True])
def test_an_unknown_outcome_resets_the_connection(arrived: bool, size: int, unread: bool) -> None:
    """-EIO (experimental): the frame arrived or not.  Neither is it sent again nor is anything sent behind it."""

    async def main() -> None:
        net = await Net.make()
        here, there, listener = await net.pair(budget=65536)
        if unread:  # bytes that this side has not read yet change nothing
            await there.send(b"y" * 60_000)
        calls: Any = net.calls(1)
        data = bytes(range(256)) * (size // 256 + 1)
        sendv = calls.sendv

        async def unknown(*arguments: Any) -> int:
            return -Errno.EIO if not arrived or await sendv(*arguments) >= 0 else -Errno.EAGAIN

        async def unknown_linked(messages: Any) -> list[int]:
            first = await unknown(*messages[0])
            return [first, *(-Errno.ECANCELED for _ in messages[1:])]

        calls.sendv, calls.sendv_linked = unknown, unknown_linked
        assert await errno_of(here.send(data[:size])) == Errno.ECONNRESET
        del calls.sendv, calls.sendv_linked
        assert await errno_of(here.send(b"more")) == Errno.EPIPE
        if unread:
            assert await here.receive_exactly(60_000) == b"y" * 60_000
        assert await errno_of(here.receive()) == Errno.ECONNRESET
        await here.close()
        got = b""
        with pytest.raises(ConnectionResetError):  # not the end of a stream: nobody takes this for the whole
            while more := await there.receive():
                got += more
        assert got == (data[: len(got)] if arrived else b"") and bool(got) == arrived
        await listener.close()
        await net.close()

    simulate(main)


def test_an_unknown_outcome_of_a_connect() -> None:
    """Nobody knows whether the other side has a connection: connect is reset, and an ACK that comes is answered."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        calls: Any = net.calls(1)
        linked = calls.sendv_linked

        async def unknown(messages: Any) -> list[int]:
            return [-Errno.EIO for _ in await linked(messages)]

        calls.sendv_linked = unknown
        assert await errno_of(connect(net[1], Address(PORT, 2))) == Errno.ECONNRESET
        del calls.sendv_linked
        await net.close()
        await listener.close()

    simulate(main)
