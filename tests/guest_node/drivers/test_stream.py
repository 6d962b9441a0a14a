"""Stream sockets: what is sent, and what is received of it.

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
from guest_node.drivers.framing import batch_limit, frame_limit
from guest_node.drivers.listener import listen
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
from hmx.argo.abi import Address, Op
from hmx.argo.ring import max_message_size, used_by
from hmx.errno import Errno
from tests.doubles.argo_rig import simulate
from tests.doubles.stream_net import PORT, Net, errno_of

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
