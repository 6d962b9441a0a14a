"""Two guests that play ping-pong and a third that attacks: programs of tests/e2e/test_hostile.py.

`ping` measures round trips in peace, then beside a neighbour that only computes, then under attack: the same number
each time, and every byte is checked.  with: {to: GUEST, attacker: GUEST, trips: N}; `poke: true` also sends to the
attacker's ring (port 7) between round trips.
"""

import asyncio
from typing import Any

from guest_node.guest import Guest
from hmx.argo.abi import Address

PORT = 7
SIGNAL = 99
SIZE = 256
TYPE = 0xABCD


async def pong(guest: Guest) -> int:
    async with await guest.argo.listen(PORT, ring=65536) as listener, await listener.accept() as connection:
        while data := await connection.receive(4096):
            await connection.send(data)
    return 0


async def ping(guest: Guest) -> int:
    trips = guest.arguments["trips"]
    attacker = guest.peers[guest.arguments["attacker"]]
    poked: set[int] = set()
    while True:
        try:
            connection = await guest.argo.connect(guest.peers[guest.arguments["to"]], PORT, ring=65536)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    async with connection:
        await measure(guest, connection, trips // 4)  # everybody is warm
        quiet = await measure(guest, connection, trips)
        await begin(guest, attacker, b"compute")
        busy = await measure(guest, connection, trips)
        await begin(guest, attacker, b"attack")
        await asyncio.sleep(0.05)
        calls: Any = guest.driver.calls if guest.arguments.get("poke") else None
        loud: list[float] = []
        for _ in range(10):
            loud += await measure(guest, connection, trips // 10)
            if calls is not None:
                for _ in range(20):
                    poked.add(await calls.sendv(Address(PORT, attacker), 5, [b"x" * 500], TYPE))
    guest.result(quiet_us=p50(quiet), busy_us=p50(busy), loud_us=p50(loud), trips=len(loud), poked=sorted(poked))
    return 0


async def measure(guest: Guest, connection: Any, trips: int) -> list[float]:
    """Seconds of each round trip.  ValueError when a byte differs."""
    times = []
    for _ in range(trips):
        data = guest.random.randbytes(SIZE)
        sent = guest.time()
        await connection.send(data)
        if await connection.receive_exactly(SIZE) != data:
            raise ValueError("other bytes came back than were sent")
        times.append(guest.time() - sent)
    return times


def p50(times: list[float]) -> float:
    return round(sorted(times)[len(times) // 2] * 1e6, 1)


async def begin(guest: Guest, attacker: int, what: bytes) -> None:
    """Tell the attacker to begin something, and hear that it does."""
    async with await guest.argo.datagram(partner=attacker) as socket:
        while True:
            try:
                await socket.send_to(what, Address(SIGNAL, attacker))
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
        await socket.receive()
