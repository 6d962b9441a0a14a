"""Stream sockets: what a program may rely on.

Source: the stream half of OpenXT's Linux Argo driver, and the improvements that guest_node.drivers.stream, .listener
and .stream_table name.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.drivers.connector import connect
from guest_node.drivers.core import TICK, ArgoDriver
from guest_node.drivers.framing import batch_limit, frame_limit
from guest_node.drivers.listener import StreamListener, listen
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_table import (
    DEFAULT_RING_LEN,
    FRAME_LIMIT,
    HEADER,
    HEADER_SIZE,
    MESSAGE_TYPE_STREAM,
    Flag,
    State,
)
from hmx.argo.abi import DOMID_ANY, Address, Op
from hmx.argo.ring import max_message_size, used_by
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate

PORT = 80


class Net:
    """Guests 1..n with started drivers."""

    def __init__(self, rig: Rig, count: int) -> None:
        self.rig = rig
        self.drivers = {domid: rig.driver(domid) for domid in range(1, count + 1)}

    @classmethod
    async def make(cls, count: int = 2, **options: Any) -> Net:
        net = cls(Rig(**options), count)
        for driver in net.drivers.values():
            await driver.start()
        return net

    def __getitem__(self, domid: int) -> ArgoDriver:
        return self.drivers[domid]

    def calls(self, domid: int) -> RigCalls:
        return self.rig.guests[domid]

    async def pair(
        self, client: int = 1, server: int = 2, **options: Any
    ) -> tuple[StreamConnection, StreamConnection, StreamListener]:
        """(the connector's end, the accepted end, the listener)"""
        ring_len = options.pop("ring_len", 65536)
        listener = await listen(self[server], PORT, ring_len=ring_len, **options)
        accepting = asyncio.create_task(listener.accept())
        connected = await connect(self[client], Address(PORT, server), ring_len=ring_len)
        return connected, await accepting, listener

    async def close(self) -> None:
        """Every driver ends, and nothing is left: no ring, no page, no task."""
        for domid, driver in self.drivers.items():
            if not self.calls(domid).dead:
                await driver.close()
                argo = self.calls(domid).domain.argo
                assert argo is not None
                assert argo.rings == {}
                assert list(driver.rings) == []
                assert len(driver.wakeups) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


def rings_of(net: Net, domid: int) -> set[tuple[int, int]]:
    argo = net.calls(domid).domain.argo
    return set(argo.rings) if argo is not None else set()


async def fill(net: Net, sender: int, socket: StreamConnection) -> None:
    """Fill what room is left in the peer's ring with frames that carry nothing: not even a control frame fits."""
    filler = HEADER.pack(0, socket._core.conid)
    while await net.calls(sender).sendv(socket.peer, socket.port, (filler,), MESSAGE_TYPE_STREAM) > 0:
        pass


async def errno_of(call: Any) -> int:
    with pytest.raises(OSError) as caught:
        await call
    return caught.value.errno or -1


# -- connect and accept ------------------------------------------------------------------------------------------


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


# -- sending -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_len", [48, 64, 80, 112, 1024, 4096, 16384, 65536, 130976, 130992, 262144])
def test_frames_fit_the_peers_ring(ring_len: int) -> None:
    """Small rings get smaller frames instead of EMSGSIZE; big sends arrive whole through any ring."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair(ring_len=ring_len)
        data = bytes(range(256)) * (40 if ring_len < 1024 else 1200)
        net.calls(1).sent = []
        sending = asyncio.create_task(connected.send(data))
        assert await accepted.receive_exactly(len(data)) == data
        await sending
        sizes = [len(frame) - HEADER_SIZE for _, _, frame, _ in net.calls(1).sent or []]
        limit = frame_limit(max_message_size(ring_len))
        assert max(sizes) <= limit <= FRAME_LIMIT
        assert sum(sizes) == len(data)
        assert connected.frames_sent == len(sizes) == accepted.frames_received
        assert connected.bytes_sent == len(data) == accepted.bytes_received
        await net.close()

    simulate(main)


@given(st.integers(min_value=3, max_value=1048575).map(lambda slots: slots * 16))
def test_frame_limits(ring_len: int) -> None:
    """A frame fits an empty ring, never exceeds the protocol's 32748, and a batch of them fits too, or is one."""
    largest = max_message_size(ring_len)
    limit = frame_limit(largest)
    assert 1 <= limit <= FRAME_LIMIT
    assert limit + HEADER_SIZE <= largest
    batch = batch_limit(largest)
    assert batch >= 1
    assert batch == 1 or batch * used_by(limit + HEADER_SIZE) < ring_len
    if ring_len >= DEFAULT_RING_LEN:
        assert limit == FRAME_LIMIT
    elif limit >= 512 and ring_len >= 4096:
        assert batch == 4


def test_a_ring_that_shrinks_between_asking_and_sending() -> None:
    """EMSGSIZE makes the sender ask again; nothing is sent twice."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        connected._probed = True
        connected._limit, connected._largest_batch = FRAME_LIMIT, 3
        refused: list[int] = []
        real_ring = 20_000

        def shrunk(op: Op, detail: Any) -> int | None:
            if op is Op.SENDV and sum(len(part) for part in detail.buffers) > real_ring:
                refused.append(1)
                return -Errno.EMSGSIZE
            return None

        net.calls(1).refuse = shrunk
        data = bytes(range(251)) * 400
        sending = asyncio.create_task(connected.send(data))
        assert await accepted.receive_exactly(len(data)) == data
        await sending
        assert refused == [1]
        await net.close()

    simulate(main)


def test_a_frame_that_is_never_small_enough_is_an_error() -> None:
    """EMSGSIZE that asking does not explain is raised, not retried."""

    async def main() -> None:
        net = await Net.make()
        connected, _, _ = await net.pair()
        net.calls(1).refuse = lambda op, _: -Errno.EMSGSIZE if op is Op.SENDV else None
        assert await errno_of(connected.send(bytes(5000))) == Errno.EMSGSIZE
        net.calls(1).refuse = lambda op, _: None
        await connected.close()
        await net.close()

    simulate(main)


def test_sends_of_several_tasks_do_not_mix() -> None:
    """Each send stays in one piece, whatever its size and the ring's."""

    async def main() -> None:
        net = await Net.make(seed=3)
        net.rig.suspend = 0.2
        connected, accepted, _ = await net.pair(ring_len=4096)
        parts = [bytes([n]) * (n * 1777 + 1) for n in range(12)]
        total = sum(map(len, parts))
        senders = [asyncio.create_task(connected.send(part)) for part in parts]
        data = await accepted.receive_exactly(total)
        await asyncio.gather(*senders)
        runs = [(key, len(list(group))) for key, group in itertools.groupby(data)]
        assert sorted(runs) == [(n, n * 1777 + 1) for n in range(12)]
        net.rig.suspend = 0.0
        await net.close()

    simulate(main)


@pytest.mark.parametrize("delay", [0.0, 0.0001, 0.0005, 0.002, 0.01, 0.05])
def test_a_cancelled_send_has_sent_whole_frames(delay: float) -> None:
    """A prefix of the data, in whole frames, counted; the next send follows it."""

    async def main() -> None:
        net = await Net.make(seed=int(delay * 1e5))
        connected, accepted, _ = await net.pair(ring_len=4096, budget=10_000)
        data = bytes(range(256)) * 400
        net.rig.suspend = 0.5
        sending = asyncio.create_task(connected.send(data))
        await asyncio.sleep(delay)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        count = connected.bytes_sent
        assert count < len(data)
        frames = connected.frames_sent
        limit = frame_limit(max_message_size(4096))
        assert count == frames * limit
        after = asyncio.create_task(connected.send(b"and then"))
        assert await accepted.receive_exactly(count + 8) == data[:count] + b"and then"
        await after
        net.rig.suspend = 0.0
        await net.close()

    simulate(main)


def test_a_batch_that_stops_in_the_middle_goes_on_there() -> None:
    """The first refused frame and everything behind it is sent again, once; what was taken is not."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair(ring_len=8192)
        refusals = iter([None, None, -Errno.EAGAIN, None, -Errno.EBUSY, -Errno.ENOMEM, None, -Errno.EAGAIN])

        def sometimes(op: Op, detail: Any) -> int | None:
            return next(refusals, None) if op is Op.SENDV and detail.buffers[0][:4] == bytes(4) else None

        net.calls(1).refuse = sometimes
        data = bytes(range(250)) * 100
        sending = asyncio.create_task(connected.send(data))
        assert await accepted.receive_exactly(len(data)) == data
        await sending
        await net.close()

    simulate(main)


def test_data_waits_for_the_ack() -> None:
    """When the ACK had to be queued (the peer's ring was full), data sent on the new connection goes behind it."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2), ring_len=64))
        await asyncio.sleep(0.1)
        (ring,) = net[1].rings
        ring.held = True  # nobody reads at the connector, and its ring is filled
        filler = HEADER.pack(0, 1)
        while await net.calls(2).sendv(Address(ring.port, 1), 9, (filler,), MESSAGE_TYPE_STREAM) > 0:
            pass
        accepted = await listener.accept()
        sending = asyncio.create_task(accepted.send(b"data"))
        await asyncio.sleep(0.1)
        assert not connecting.done()
        assert not sending.done()
        net.calls(2).sent = []
        net[1].resume(ring)
        connected = await connecting
        await sending
        assert await connected.receive() == b"data"
        flags = [HEADER.unpack_from(frame)[0] for _, _, frame, _ in net.calls(2).sent or []]
        assert flags == [Flag.ACK, 0]
        await net.close()

    simulate(main)


def test_data_never_overtakes_a_queued_ack() -> None:
    """Room appears, and a send comes before the driver has noticed it: the queued ACK goes first all the same."""

    async def main() -> None:
        net = await Net.make()
        listener = await listen(net[2], PORT)
        connecting = asyncio.create_task(connect(net[1], Address(PORT, 2), ring_len=64))
        await asyncio.sleep(0.1)
        (ring,) = net[1].rings
        ring.held = True
        filler = HEADER.pack(0, 1)
        while await net.calls(2).sendv(Address(ring.port, 1), 9, (filler,), MESSAGE_TYPE_STREAM) > 0:
            pass
        accepted = await listener.accept()
        net.calls(2).sent = []
        ring.held = False
        net[1].rings.receive_pass()  # there is room now, and nobody has been told
        sending = asyncio.create_task(accepted.send(b"data"))
        await asyncio.sleep(0.01)
        net[1].kick()
        await sending
        assert [HEADER.unpack_from(frame)[0] for _, _, frame, _ in net.calls(2).sent or []] == [Flag.ACK, 0]
        assert await (await connecting).receive() == b"data"
        await net.close()

    simulate(main)


def test_batches_are_cut_to_the_ring() -> None:
    """Frames that cannot fit are not copied to guest memory in vain: at most one batch of the ring's size a wake-up."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        calls, offered = net.calls(1), 0
        real = calls.sendv_linked

        async def counting(messages: Any) -> list[int]:
            nonlocal offered
            offered += len(messages)
            return await real(messages)

        calls.sendv_linked = counting  # type: ignore[method-assign]
        sending = asyncio.create_task(connected.send(bytes(1 << 20)))
        await accepted.receive_exactly(1 << 20)
        await sending
        assert connected.frames_sent <= offered <= 2 * connected.frames_sent
        await net.close()

    simulate(main)


def test_empty_sends() -> None:
    """No frame without bytes; the state is looked at all the same."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        net.calls(1).sent = []
        await connected.send(b"")
        assert net.calls(1).sent == []
        await accepted.close()
        await asyncio.sleep(0.1)
        assert await errno_of(connected.send(b"")) == Errno.EPIPE
        await net.close()

    simulate(main)


# -- receiving ---------------------------------------------------------------------------------------------------


def test_the_ways_to_receive() -> None:
    """At most n, exactly n, into a buffer; across frames and within one."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        for part in (b"abcdef", b"ghi", b"jklmnopq"):
            await connected.send(part)
        assert await accepted.receive(2) == b"ab"
        assert await accepted.receive() == b"cdef"
        assert await accepted.receive_exactly(5) == b"ghijk"
        buffer = bytearray(b"------")
        assert await accepted.receive_into(buffer) == 6
        assert buffer == b"lmnopq"
        waiting = asyncio.create_task(accepted.receive_into(buffer))
        await asyncio.sleep(0.1)
        await connected.send(b"rs")
        assert await waiting == 2
        assert await accepted.receive_into(bytearray()) == 0
        assert await accepted.receive_exactly(0) == b""
        with pytest.raises(ValueError, match="cannot receive 0"):
            await accepted.receive(0)
        await connected.send(b"tu")
        await connected.close()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await accepted.receive_exactly(5)
        assert caught.value.partial == b"tu"
        assert await accepted.receive() == b""
        assert await accepted.receive_into(buffer) == 0
        assert accepted.bytes_received == 21
        await net.close()

    simulate(main)


@given(
    frames=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20),
    takes=st.lists(st.tuples(st.sampled_from(["take", "into", "back"]), st.integers(1, 60)), max_size=40),
)
def test_the_inbox_is_a_byte_stream(frames: list[bytes], takes: list[tuple[str, int]]) -> None:
    """However frames are taken, and put back, the bytes come in order; and what is unread is counted as in a ring."""
    from guest_node.drivers.stream_fsm import NOBODY, Connection
    from guest_node.drivers.stream_table import Machine

    connection = Connection(Machine.ACCEPTED, State.ACCEPTED, 1, Address(2, 3), 4, NOBODY, 1 << 20)
    for payload in frames:
        assert connection.frame(0, memoryview(HEADER.pack(0, 4) + payload))
    got = b""
    for how, amount in takes:
        if how == "take":
            got += connection.take(amount)
        elif how == "into":
            buffer = bytearray(amount)
            got += bytes(buffer[: connection.take_into(memoryview(buffer))])
        elif got:
            amount = min(amount, len(got))
            connection.put_back(got[-amount:])
            got = got[:-amount]
    while data := connection.take(1 << 20):
        got += data
    assert got == b"".join(frames)
    assert connection.unread == 0
    assert connection.frames == len(frames)


def test_a_cancelled_receive_loses_nothing() -> None:
    """What receive_exactly had collected when it was cancelled is there for the next call."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair()
        await connected.send(b"abc")
        receiving = asyncio.create_task(accepted.receive_exactly(10))
        await asyncio.sleep(0.1)
        await connected.send(b"de")
        await asyncio.sleep(0.1)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        assert accepted.bytes_received == 0
        await connected.send(b"fghijk")
        assert await accepted.receive_exactly(11) == b"abcdefghijk"
        assert accepted._core.unread == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await accepted.receive()
        await net.close()

    simulate(main)


def test_one_reader_at_a_time() -> None:
    """Two tasks that read one stream would each get pieces: the second is told."""

    async def main() -> None:
        net = await Net.make()
        _, accepted, _ = await net.pair()
        first = asyncio.create_task(accepted.receive())
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="another task is receiving"):
            await accepted.receive()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await net.close()

    simulate(main)


def test_a_slow_reader_stalls_no_other_peer() -> None:
    """Three peers send without end to one server that reads two of them: those two are not held up, the third's bytes
    wait (a budget's worth, and a ring's), and none is lost when it is read at last.
    """

    async def main() -> None:
        net = await Net.make(4)
        listener = await listen(net[4], PORT, ring_len=16384, budget=50_000)
        ends: dict[int, tuple[StreamConnection, StreamConnection]] = {}
        for domid in (1, 2, 3):
            accepting = asyncio.create_task(listener.accept())
            connected = await connect(net[domid], Address(PORT, 4))
            ends[domid] = connected, await accepting
        data = bytes(range(256)) * 2000
        senders = {domid: asyncio.create_task(end[0].send(data)) for domid, end in ends.items()}
        for domid in (1, 2):
            assert await ends[domid][1].receive_exactly(len(data)) == data
        await asyncio.sleep(1)
        assert [senders[domid].done() for domid in (1, 2, 3)] == [True, True, False]
        held = ends[3][1]._core
        assert held.held
        assert 40_000 < held.unread <= 50_000
        sent = ends[3][0].bytes_sent
        assert sent <= 50_000 + 16_384
        # A new peer is not held up either: the listener's own ring carries SYNs only.
        accepting = asyncio.create_task(listener.accept())
        again = await connect(net[2], Address(PORT, 4))
        assert (await accepting).peer.port == again.port
        assert await ends[3][1].receive_exactly(len(data)) == data
        await senders[3]
        await net.close()

    simulate(main)


def test_a_reader_that_goes_on_lets_frames_in_before_it_runs_dry() -> None:
    """The ring is opened again when half of the budget is free, so that sender and reader overlap."""

    async def main() -> None:
        net = await Net.make()
        connected, accepted, _ = await net.pair(ring_len=16384, budget=32_768)
        sending = asyncio.create_task(connected.send(bytes(200_000)))
        await asyncio.sleep(0.1)
        assert accepted._core.held
        stuck = connected.bytes_sent
        await accepted.receive_exactly(20_000)
        await asyncio.sleep(0.1)
        assert connected.bytes_sent > stuck
        await accepted.receive_exactly(180_000)
        await sending
        await net.close()

    simulate(main)


def test_a_slow_reader_on_a_shared_ring_stalls_it_and_loses_nothing() -> None:
    """The fallback: with one ring for all, the budget delays the stall; closing the slow one ends it."""

    async def main() -> None:
        net = await Net.make(3)
        listener = await listen(net[3], PORT, ring_len=16384, budget=20_000)
        net.calls(3).refuse = lambda op, _: -Errno.ENOMEM if op is Op.REGISTER_RING else None
        ends = []
        for domid in (1, 2):
            accepting = asyncio.create_task(listener.accept())
            connected = await connect(net[domid], Address(PORT, 3))
            ends.append((connected, await accepting))
        data = bytes(100_000)
        slow = asyncio.create_task(ends[0][0].send(data))
        await asyncio.sleep(0.1)
        fast = asyncio.create_task(ends[1][0].send(data))
        receiving = asyncio.create_task(ends[1][1].receive_exactly(len(data)))
        await asyncio.sleep(5)
        assert not receiving.done()
        await ends[0][1].close()
        assert await receiving == data
        await fast
        assert await errno_of(slow) in (Errno.EPIPE, Errno.ECONNREFUSED)
        await net.close()

    simulate(main)


# -- the end -----------------------------------------------------------------------------------------------------


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


async def end_guest(net: Net, domid: int) -> None:
    """The domain dies with everything that runs in it."""
    net.rig.kill(domid)
    driver = net[domid]
    if driver._timer is not None:
        driver._timer.cancel()
    assert driver._pump is not None
    driver._pump.cancel()
    await asyncio.wait([driver._pump])


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


@settings(max_examples=25)
@given(seed=st.integers(min_value=0, max_value=2**20), count=st.integers(min_value=2, max_value=8))
def test_many_connections_interleaved(seed: int, count: int) -> None:
    """Connections open, talk both ways in random pieces and close, all at once, while hypercalls suspend and VIRQs are
    late: each stream is what its other end sent, and at the end nothing is left.
    """

    async def main() -> None:
        net = await Net.make(4, seed=seed)
        rng, rig = net.rig.random, net.rig
        rig.suspend, rig.late_virq = 0.2, 0.2
        listener = await listen(
            net[1], PORT, ring_len=rng.choice([1024, 4096, 16384]), budget=rng.choice([1, 5000, 1 << 20])
        )

        async def server() -> None:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(count):
                    tasks.create_task(serve(await listener.accept()))

        async def serve(connection: StreamConnection) -> None:
            async with connection:
                while data := await connection.receive(rng.randrange(1, 5000)):
                    await pause()
                    await connection.send(data)

        async def client(domid: int) -> None:
            await pause()
            async with await connect(
                net[domid], Address(PORT, 1), ring_len=rng.choice([512, 4096]), timeout=1000
            ) as connection:
                for _ in range(rng.randrange(6)):
                    data = rng.randbytes(rng.randrange(1, 3000))
                    sending = asyncio.create_task(connection.send(data))
                    got = b""
                    while len(got) < len(data):
                        got += await connection.receive(rng.randrange(1, 3000))
                        await pause()
                    await sending
                    assert got == data

        async def pause() -> None:
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.01)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server())
            for _ in range(count):
                tasks.create_task(client(rng.randrange(1, 5)))
        rig.suspend = rig.late_virq = 0.0
        await net.close()

    simulate(main, limit=100_000)


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
