"""The proof: megabytes through a 64 KiB ring pair, in random sizes, with both sides stalling at random.

Source: what a stream promises; sizes and stalls come from a fixed seed, so that a failure can be seen again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from guest_node.drivers.connector import connect
from guest_node.drivers.listener import listen
from guest_node.drivers.stream import StreamConnection
from hmx.argo.abi import Address
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, simulate

RING = 65536
PORT = 80


async def stall(rng: random.Random) -> None:
    """Sometimes a while, mostly not."""
    if rng.random() < 0.1:
        await asyncio.sleep(rng.random() * 0.05)


async def produce(connection: StreamConnection, total: int, seed: int) -> str:
    """Send `total` random bytes in random pieces, then the end of the stream; their SHA-256."""
    rng, digest = random.Random(seed), hashlib.sha256()
    left = total
    while left:
        size = min(left, rng.choice([1, 7, 64, 1000, 4096, 32748, 32749, 65536, 200_000]) + rng.randrange(16))
        data = rng.randbytes(size)
        digest.update(data)
        await connection.send(data)
        left -= size
        await stall(rng)
    return digest.hexdigest()


async def consume(connection: StreamConnection, total: int, seed: int) -> str:
    """Receive `total` bytes in random ways; their SHA-256."""
    rng, digest = random.Random(seed), hashlib.sha256()
    buffer = memoryview(bytearray(100_000))
    left = total
    while left:
        size = min(left, rng.choice([1, 100, 5000, 40_000, 100_000]))
        way = rng.randrange(3)
        if way == 0:
            data: bytes | memoryview = await connection.receive(size)
        elif way == 1:
            data = await connection.receive_exactly(size)
        else:
            data = buffer[: await connection.receive_into(buffer[:size])]
        digest.update(data)
        left -= len(data)
        await stall(rng)
    return digest.hexdigest()


async def transfer(total: int, seed: int, budget: int) -> None:
    rig = Rig(seed)
    near, far = rig.driver(1), rig.driver(2)
    await near.start()
    await far.start()
    rig.suspend, rig.late_virq = 0.02, 0.05
    busy = random.Random(seed)
    for calls in rig.guests.values():
        # Now and then the hypervisor's queue of waiters is "full": the driver must poll.
        calls.refuse = lambda op, _: -Errno.EBUSY if op.name == "SENDV" and busy.random() < 0.01 else None
    listener = await listen(far, PORT, ring_len=RING, budget=budget)
    accepting = asyncio.create_task(listener.accept())
    connected = await connect(near, Address(PORT, 2), ring_len=RING, budget=budget)
    accepted = await accepting
    sums = await asyncio.gather(
        produce(connected, total, seed),
        consume(accepted, total, seed + 1),
        produce(accepted, total // 4, seed + 2),
        consume(connected, total // 4, seed + 3),
    )
    assert sums[0] == sums[1]
    assert sums[2] == sums[3]
    rig.suspend = rig.late_virq = 0.0
    for calls in rig.guests.values():
        calls.refuse = lambda op, _: None
    assert connected.bytes_sent == accepted.bytes_received == total
    assert connected.frames_sent == accepted.frames_received
    await connected.close()
    assert await accepted.receive() == b""
    await near.close()
    await far.close()


@pytest.mark.parametrize("budget", [1, 100_000, 1 << 20])
@pytest.mark.parametrize("seed", [1, 2])
def test_4_mib_through_a_64_kib_ring_pair(seed: int, budget: int) -> None:
    """Both ways at once, with back-pressure by a full ring alone (budget 1) up to the default budget."""
    simulate(transfer, 4 << 20, seed, budget, limit=100_000)


@pytest.mark.long
def test_256_mib_through_a_64_kib_ring_pair() -> None:
    """The same, long enough for every counter and pointer to wrap thousands of times."""
    simulate(transfer, 256 << 20, 3, 100_000, limit=1e7)
