"""Stream sockets: who is connected to whom, and when.

Source: the stream half of OpenXT's Linux Argo driver, and the improvements that guest_node.drivers.stream, .listener
and .stream_table name.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guest_node.drivers.connector import connect
from guest_node.drivers.listener import listen
from hmx.argo.abi import DOMID_ANY, Address, Op
from hmx.errno import Errno
from tests.doubles.argo_rig import simulate
from tests.doubles.stream_net import PORT, Net, errno_of, rings_of


def test_connected_means_accepted() -> None:
    """The ACK is accept's: a SYN in the backlog leaves the connector waiting."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(1)
        assert not connecting.done()
        accepted = await listener.accept()
        connected = await connecting
        assert connected.peer == Address(PORT, 2)
        assert accepted.peer == Address(connected.port, 1)
        assert accepted.port == PORT
        await net.close()

    simulate(main)


def test_accept_gives_each_peer_a_ring_before_the_ack() -> None:
    """Argo prefers a ring for one partner to the wildcard ring; it must stand before the peer may send data."""

    async def main() -> None:
        net = await Net.make(3)
        calls = net.calls(2)
        order: list[object] = []

        def note(op: Op, detail: Any) -> None:
            order.append(detail if op is Op.REGISTER_RING else op.name if op is Op.SENDV else None)

        listener = await listen(net[2], PORT)
        calls.refuse = note
        for client in (1, 3, 1):
            accepting = asyncio.create_task(listener.accept())
            await connect(net[client], Address(PORT, 2))
            await accepting
        steps = [step for step in order if step is not None]
        assert steps == [(PORT, 1), "SENDV", (PORT, 3), "SENDV", "SENDV"]  # the second of domain 1 shares its ring
        assert rings_of(net, 2) == {(PORT, DOMID_ANY), (PORT, 1), (PORT, 3)}
        await net.close()

    simulate(main)


def test_a_peers_ring_goes_with_its_last_connection() -> None:
    """Sharers are counted; what lies in the ring at that moment, a new SYN of the same peer, is not lost."""

    async def main() -> None:
        net = await Net.make()
        one, first, listener = await net.pair()
        accepting = asyncio.create_task(listener.accept())
        two = await connect(net[1], Address(PORT, 2))
        second = await accepting
        await first.close()
        assert (PORT, 1) in rings_of(net, 2)
        third = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        net.calls(2).handlers.clear()  # the SYN lies in the ring unseen
        await asyncio.sleep(0.1)
        await second.close()
        assert (PORT, 1) not in rings_of(net, 2)
        accepted = await listener.accept()
        connected = await third
        await connected.send(b"hello")
        assert (PORT, 1) in rings_of(net, 2)
        net[2]._virq()
        assert await accepted.receive() == b"hello"
        for connection in (one, two):
            assert await connection.receive() == b""
        await net.close()

    simulate(main)


def test_without_a_ring_of_its_own_a_connection_shares_the_listeners() -> None:
    """128 rings are all a domain may have: the 129th peer is served through the shared ring."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        net.calls(2).refuse = lambda op, _: -Errno.ENOSPC if op is Op.REGISTER_RING else None
        accepting = asyncio.create_task(listener.accept())
        connected = await connect(net[1], Address(PORT, 2))
        accepted = await accepting
        assert listener.shared_fallbacks == 1
        assert rings_of(net, 2) == {(PORT, DOMID_ANY)}
        await connected.send(b"x" * 100_000)
        assert len(await accepted.receive_exactly(100_000)) == 100_000
        await listener.close()
        assert rings_of(net, 2) == {(PORT, DOMID_ANY)}  # still needed
        await connected.send(b"after")
        assert await accepted.receive() == b"after"
        await accepted.close()
        assert rings_of(net, 2) == set()
        await net.close()

    simulate(main)


def test_accepted_connections_outlive_their_listener() -> None:
    """And keep its port: another wildcard listener there would see none of that peer's SYNs."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, listener = await net.pair()
        await listener.close()
        await connected.send(b"still here")
        assert await accepted.receive() == b"still here"
        assert await errno_of(listen(net[2], PORT)) == Errno.EADDRINUSE
        await accepted.close()
        again = await listen(net[2], PORT)
        await again.close()
        await net.close()

    simulate(main)


def test_a_cancelled_accept_loses_no_peer() -> None:
    """Whenever accept is cancelled, while it registers the peer's ring above all, the next accept has that peer."""

    async def main(delay: float) -> None:
        net = await Net.make(seed=5)
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        net.rig.suspend = 0.95
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(delay)
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        net.rig.suspend = 0.0
        accepted = accepting.result() if not accepting.cancelled() else await listener.accept()
        connected = await connecting
        await connected.send(b"x")
        assert await accepted.receive() == b"x"
        await net.close()

    for delay in (0.0, 0.0001, 0.001, 0.003, 0.01, 0.03):
        simulate(main, delay)


def test_a_cancelled_accept_leaves_its_peer_to_another_task() -> None:
    """The peer that a cancelled accept had in hand is given to a task that waits in accept already."""

    async def main() -> None:
        net = await Net.make(seed=9)
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        net.rig.suspend = 0.95
        first = asyncio.create_task(listener.accept())
        await asyncio.sleep(0)
        second = asyncio.create_task(listener.accept())
        await asyncio.sleep(0)
        first.cancel()
        accepted = await asyncio.wait_for(second, 1)
        assert first.cancelled()
        assert accepted.peer == Address((await connecting).port, 1)
        net.rig.suspend = 0.0
        await net.close()

    simulate(main)


def test_a_listener_that_closes_lets_go_of_peers_that_no_accept_returned() -> None:
    """A cancelled accept had acknowledged them: they get their RST, and their ring goes."""

    async def main() -> None:
        net = await Net.make(seed=9)
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        net.rig.suspend = 0.95
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(0)
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        assert accepting.cancelled()
        net.rig.suspend = 0.0
        connected = await connecting
        await listener.close()
        assert await connected.receive() == b""
        assert rings_of(net, 2) == set()
        await net.close()

    simulate(main)


def test_a_listener_that_closes_refuses_those_who_wait() -> None:
    """RST to each pending SYN; a task in accept gets EINVAL; later connects find no ring."""

    async def main() -> None:
        net = await Net.make(4)
        listener = await listen(net[2], PORT)
        connecting = [asyncio.create_task(connect(net[domid], Address(PORT, 2))) for domid in (1, 3, 4)]
        await asyncio.sleep(0.1)
        await listener.close()
        await listener.close()
        for task in connecting:
            assert await errno_of(task) == Errno.ECONNREFUSED
        assert asyncio.get_running_loop().time() < 1
        assert await errno_of(listener.accept()) == Errno.EINVAL
        assert await errno_of(connect(net[1], Address(PORT, 2))) == Errno.ECONNREFUSED
        listener = await listen(net[2], PORT)
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(0.1)
        await listener.close()
        assert await errno_of(accepting) == Errno.EINVAL
        await net.close()

    simulate(main)


def test_a_timeout_is_called_one_and_withdraws_the_syn() -> None:
    """5 s by the loop's clock, ETIMEDOUT, and no dead connection for accept to return."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises(TimeoutError):
            await connect(net[1], Address(PORT, 2))
        assert loop.time() - before == pytest.approx(5.0)
        await asyncio.sleep(0.1)
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(1)
        assert not accepting.done()
        connected = await connect(net[1], Address(PORT, 2), timeout=1)
        assert (await accepting).peer == Address(connected.port, 1)
        await net.close()

    simulate(main)


def test_a_cancelled_connect_withdraws_its_syn() -> None:
    """A task that gives up leaves no ring here and no SYN there."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        task = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        assert len(listener._core.pending) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert len(listener._core.pending) == 0
        assert rings_of(net, 1) == set()
        await net.close()

    simulate(main)


def test_a_peer_that_dies_in_the_backlog_is_not_accepted() -> None:
    """Its ring is gone when the ACK is sent: accept goes on to the next."""

    async def main() -> None:
        net = await Net.make(3)
        listener = await listen(net[2], PORT)
        dead = asyncio.create_task(connect(net[1], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        living = asyncio.create_task(connect(net[3], Address(PORT, 2)))
        await asyncio.sleep(0.1)
        net.rig.kill(1)
        dead.cancel()
        accepted = await listener.accept()
        assert accepted.peer.domid == 3
        await living
        net[1]._pump.cancel()  # type: ignore[union-attr]
        await asyncio.gather(dead, return_exceptions=True)
        if net[1]._timer is not None:
            net[1]._timer.cancel()
        await accepted.close()
        await net[2].close()

    simulate(main)


def test_a_peer_that_closes_at_once_is_accepted() -> None:
    """Its connect succeeded, so accept returns it, even if its RST is there before accept does."""

    async def main() -> None:
        for seed in range(20):
            net = await Net.make(seed=seed)
            listener = await listen(net[2], PORT)
            net.rig.suspend = 0.9

            async def come_and_go(net: Net = net) -> None:
                await (await connect(net[1], Address(PORT, 2))).close()

            going = asyncio.create_task(come_and_go())
            accepted = await listener.accept()
            assert await accepted.receive() == b""
            await going
            net.rig.suspend = 0.0
            await net.close()

    simulate(main)


def test_loopback() -> None:
    """A domain may talk to itself by its real id."""

    async def main() -> None:
        net = await Net.make(1)
        connected, accepted, _ = await net.pair(1, 1)
        await connected.send(b"to myself" * 10_000)
        assert await accepted.receive_exactly(90_000) == b"to myself" * 10_000
        await accepted.send(b"and back")
        assert await connected.receive() == b"and back"
        await net.close()

    simulate(main)
