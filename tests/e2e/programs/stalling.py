"""Programs of the transfer tests: both sides work in random sizes and stall at random.

with: {bytes: N, port: 7, ring: LEN, stall: PROBABILITY}, and `to` for the sender.  Each reports `sha256` and `bytes`.
"""

import asyncio
import hashlib

from guest_node.guest import Guest

LARGEST = 100_000
LONGEST_STALL = 0.02


async def maybe_stall(guest: Guest) -> None:
    if guest.random.random() < guest.arguments.get("stall", 0.02):
        await asyncio.sleep(guest.random.random() * LONGEST_STALL)


async def send(guest: Guest) -> int:
    left = guest.arguments["bytes"]
    digest = hashlib.sha256()
    while True:
        try:
            connection = await guest.argo.connect(guest.peers[guest.arguments["to"]], 7, ring=guest.arguments["ring"])
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    async with connection:
        while left:
            data = guest.random.randbytes(min(left, guest.random.randint(1, LARGEST)))
            digest.update(data)
            await connection.send(data)
            left -= len(data)
            await maybe_stall(guest)
        theirs = await connection.receive_exactly(32)
    guest.result(sha256=digest.hexdigest(), bytes=guest.arguments["bytes"])
    return 0 if theirs == digest.digest() else 1


async def receive(guest: Guest) -> int:
    left = guest.arguments["bytes"]
    digest = hashlib.sha256()
    async with await guest.argo.listen(7, ring=guest.arguments["ring"]) as listener:
        connection = await listener.accept()
        async with connection:
            while left:
                data = await connection.receive(min(left, guest.random.randint(1, LARGEST)))
                if not data:
                    return 2
                digest.update(data)
                left -= len(data)
                await maybe_stall(guest)
            await connection.send(digest.digest())
            # The sender closes first: its end of stream says that it has the digest.
            await connection.receive(1)
    guest.result(sha256=digest.hexdigest(), bytes=guest.arguments["bytes"])
    return 0
