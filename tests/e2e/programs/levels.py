"""Programs of the tests of levels: what a sender is told must not depend on where the receiver is."""

import asyncio
import errno
from collections.abc import Awaitable

from guest_node.drivers.dgram import DatagramSocket
from guest_node.guest import Guest
from hmx.argo.abi import Address

PORT = 6
RING = 4096


async def told(sending: Awaitable[int]) -> str:
    """What a send ends with: a size, or the name of an errno."""
    try:
        return str(await sending)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


async def asks(guest: Guest) -> None:
    """Send what is refused in every way, fill the receiver's ring, and wait for room in it."""
    domid = guest.peers[guest.arguments["to"]]
    async with await guest.argo.datagram() as sender:

        def send(size: int, port: int = PORT, to: int = domid, *, wait: bool = False) -> Awaitable[int]:
            return sender.send_to(bytes(size), Address(port, to), wait=wait)

        while True:  # until the receiver is there
            if await told(send(1)) != "ECONNREFUSED":
                break
            await asyncio.sleep(0.02)
        answers = {
            "no such domain": await told(send(1, to=0x3ABC)),
            "no such port": await told(send(1, 99)),
            "larger than the ring": await told(send(RING)),
        }
        sent = 0
        while (answer := await told(send(1000))) == "1000":
            sent += 1
        answers["full"] = answer
        answers["room"] = await told(send(1000, wait=True))
        guest.result(answers=answers, sent=sent)
        while True:
            if await told(send(0)) == "0":
                break
            await asyncio.sleep(0.02)


async def holds(guest: Guest) -> None:
    """Open a small ring, look away for a while, then take everything up to an empty message."""
    async with await guest.argo.datagram(PORT, ring=RING) as receiver:
        await asyncio.sleep(guest.arguments.get("idle", 1.0))
        guest.result(taken=await _drain(receiver))


async def _drain(receiver: DatagramSocket) -> list[int]:
    sizes = []
    while size := len((await receiver.receive()).payload):
        sizes.append(size)
    return sizes
