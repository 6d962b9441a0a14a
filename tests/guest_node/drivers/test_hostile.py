"""Hostile peers: whatever arrives in a ring, the driver lives, and those who behave are served.

Source: the wire format of the stream protocol (nothing in it is authenticated but the source domain), and Xen's ring
format, of which a guest's own defects can spoil its copy.
"""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.drivers.connector import connect
from guest_node.drivers.dgram import MESSAGE_TYPE_DGRAM, datagram
from guest_node.drivers.listener import listen
from guest_node.drivers.stream_table import HEADER, MESSAGE_TYPE_STREAM
from hmx.argo.abi import RING_HEADER_SIZE, Address
from tests.doubles.argo_rig import Rig, simulate

VICTIM, ENEMY, FRIEND = 1, 2, 3
PORT, DGRAM_PORT = 80, 90

types = st.sampled_from([MESSAGE_TYPE_STREAM, MESSAGE_TYPE_STREAM, MESSAGE_TYPE_DGRAM, 0, 0xFFFFFFFF])
conids = st.sampled_from(["own", "own", 0, 1, 2, 0xFFFFFFFF])
flags = st.one_of(st.sampled_from([0, 0, 1, 2, 4, 1, 3, 5, 6, 7, 0x100, 0x200]), st.integers(0, 0xFFFFFFFF))
targets = st.sampled_from(["listener", "connector", "datagram", "nowhere"])
ports = st.sampled_from(["own", "own", 1, 2, PORT, DGRAM_PORT])


shots = st.lists(st.tuples(targets, types, flags, conids, ports, st.binary(max_size=40)), max_size=60)


@settings(max_examples=80)
@given(shots=shots, raw=st.binary(max_size=12), seed=st.integers(0, 1000))
def test_garbage_kills_nobody(
    shots: list[tuple[str, int, int, str | int, str | int, bytes]], raw: bytes, seed: int
) -> None:
    """An enemy with a connection each way sends anything to any port; a friend's stream and datagrams go on."""

    async def main() -> None:
        rig = Rig(seed)
        victim, enemy, friend = (rig.driver(domid) for domid in (VICTIM, ENEMY, FRIEND))
        for driver in (victim, enemy, friend):
            await driver.start()
        listener = await listen(victim, PORT, ring_len=8192, backlog=4)
        mail = await datagram(victim, DGRAM_PORT)
        foe_listener = await listen(enemy, PORT)

        async def accept_all() -> None:
            while True:
                reading.append(asyncio.create_task(drain(await listener.accept())))

        async def drain(connection: object) -> None:
            receive = connection.receive  # type: ignore[attr-defined]
            try:
                while data := await receive():
                    await connection.send(data)  # type: ignore[attr-defined]
            except OSError:
                pass

        reading: list[asyncio.Task[None]] = []
        accepting = asyncio.create_task(accept_all())
        foe = await connect(enemy, Address(PORT, VICTIM))
        foe_accepts = asyncio.create_task(foe_listener.accept())
        out = await connect(victim, Address(PORT, ENEMY))
        outer = await foe_accepts
        reading.append(asyncio.create_task(drain(out)))
        good = await connect(friend, Address(PORT, VICTIM))
        calls = rig.guests[ENEMY]
        for target, message_type, flag, conid, port, payload in shots:
            mine = outer if target == "connector" else foe
            to = {"listener": PORT, "connector": out.port, "datagram": DGRAM_PORT}.get(target, 12345)
            identity = mine._core.conid if conid == "own" else int(conid)
            source = mine.port if port == "own" else int(port)
            header = HEADER.pack(flag, identity)
            buffers = (raw,) if len(payload) == 3 else (header, payload)
            await calls.sendv(Address(to, VICTIM), source, buffers, message_type)
            if seed % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(1)
        assert victim.failure is None
        await good.send(b"still well")
        assert await good.receive_exactly(10) == b"still well"
        async with await datagram(friend, 7, partner=VICTIM) as friendly:
            while mail.receive_now() is not None:
                pass
            await friendly.send_to(b"hello", Address(DGRAM_PORT, VICTIM))
            assert (await mail.receive()).payload == b"hello"
        assert len(victim.controls) <= 1000
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        await victim.close()
        await asyncio.gather(*reading, return_exceptions=True)
        assert list(victim.rings) == []
        await enemy.close()
        await friend.close()

    simulate(main, limit=1000)


@settings(max_examples=80)
@given(
    noise=st.binary(min_size=1, max_size=200),
    at=st.integers(0, 200),
    tx=st.integers(0, 2**32 - 1),
    which=st.integers(0, 2),
)
def test_a_spoilt_ring_kills_nobody(noise: bytes, at: int, tx: int, which: int) -> None:
    """Random bytes over a ring of one's own, its tx_ptr included: the pump survives, and the other rings work on."""

    async def main() -> None:
        rig = Rig()
        near, far = rig.driver(VICTIM), rig.driver(FRIEND)
        await near.start()
        await far.start()
        listener = await listen(near, PORT, ring_len=1024, partner=FRIEND)
        mail = await datagram(near, DGRAM_PORT, partner=FRIEND, ring_len=1024)
        foreign = await listen(far, PORT, ring_len=1024)
        accepting = asyncio.create_task(foreign.accept())
        out = await connect(near, Address(PORT, FRIEND), ring_len=1024)
        await accepting
        ring = list(near.rings)[which]
        window = ring.memory.window
        window.write(RING_HEADER_SIZE + at, noise)
        window.store32(4, tx if tx % 2 else tx % 1024 // 16 * 16)
        near._virq()
        await asyncio.sleep(1)
        mail.receive_now()
        assert near.failure is None
        turns = near.counters.turns
        await asyncio.sleep(100)
        assert near.counters.turns - turns < 50
        other = await datagram(near, DGRAM_PORT + 1, partner=FRIEND, ring_len=1024)
        async with await datagram(far, 7, partner=VICTIM) as friendly:
            await friendly.send_to(b"hello", Address(DGRAM_PORT + 1, VICTIM))
            assert (await other.receive()).payload == b"hello"
        await out.close()
        await listener.close()
        await near.close()
        await far.close()

    simulate(main, limit=1000)


def test_a_flood_of_strangers_is_answered_within_limits() -> None:
    """Frames of unknown connections from a peer whose own ring is full: RSTs to it are queued up to a limit."""

    async def main() -> None:
        rig = Rig()
        victim, enemy = rig.driver(VICTIM), rig.driver(ENEMY)
        await victim.start()
        listener = await listen(victim, PORT)

        class Deaf:
            def receive(self, *_: object) -> bool:
                return False

            def lost(self, ring: object) -> None:
                pass

            def broken(self, cause: BaseException) -> None:
                pass

        await enemy.rings.bind(9, VICTIM, 48, Deaf())
        for conid in range(5000):
            frame = HEADER.pack(0, conid)
            assert await rig.guests[ENEMY].sendv(Address(PORT, VICTIM), 9, (frame, b"x"), MESSAGE_TYPE_STREAM) > 0
            if conid % 100 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert 200 <= len(victim.controls) <= 256
        assert victim.controls.dropped > 4000
        await listener.close()
        await victim.close(linger=0.1)

    simulate(main)
