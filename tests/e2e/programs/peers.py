"""Programs of the tests of life and death: neighbours that write down what they see of each other, and misfits."""

import asyncio
import os
import socket

from guest_node.guest import Guest
from hmx.argo.abi import Address


def outside(guest: Guest, name: str, more: int = 0) -> int:
    """A file where the test looks, and which outlives the guest."""
    return os.open(os.path.join(guest.arguments["directory"], name), os.O_RDWR | os.O_CREAT | more, 0o600)


async def counts(guest: Guest) -> None:
    """Send a number every 20 ms to whoever `to` is now; write down each change of what comes of it, and the number."""
    last, number, sender = (0, ""), 0, await guest.argo.datagram()
    log = outside(guest, "seen-" + guest.name, os.O_APPEND)  # a later life goes on where the last one ended
    beats = outside(guest, "sent-" + guest.name)
    while True:
        domid = guest.peers[guest.arguments["to"]]
        try:
            await sender.send_to(number.to_bytes(8, "little"), Address(5, domid), wait=False)
            outcome = "ok"
        except OSError as error:
            outcome = os.strerror(error.errno or 0)
        number += outcome == "ok"
        os.pwrite(beats, b"%8d" % number, 0)
        if last != (domid, outcome):
            last = domid, outcome
            os.write(log, f"{domid} {outcome}\n".encode())
        await asyncio.sleep(0.02)


async def takes(guest: Guest) -> None:
    guest.log(f"domain {guest.domid} peers {dict(guest.peers)}")
    async with await guest.argo.datagram(5, ring=guest.arguments.get("ring", 65536)) as receiver:
        while True:
            await receiver.receive()


async def fails_twice(guest: Guest) -> None:
    lives = outside(guest, "lives")
    os.lseek(lives, 0, os.SEEK_END)
    os.write(lives, b"x")
    if os.fstat(lives).st_size < 3:
        raise ValueError("not yet")
    guest.result(lives=3)


async def second_life(guest: Guest) -> None:
    """Live on in the first life, even without a hypervisor; be through at once in the second."""
    lives = outside(guest, "lives-" + guest.name)
    os.lseek(lives, 0, os.SEEK_END)
    os.write(lives, b"x")
    if os.fstat(lives).st_size < 2:
        guest.log("first life")
        while True:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                pass
    guest.result(domid=guest.domid, peers=dict(guest.peers))


async def closes(guest: Guest) -> None:
    """Close its attach socket, the one SEQPACKET there is, and live on."""
    await asyncio.sleep(0.3)
    for fd in range(3, 100):
        try:
            found = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        seqpacket = found.type == socket.SOCK_SEQPACKET and found.family == socket.AF_UNIX
        found.close()
        if seqpacket:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
    await asyncio.sleep(1e6)


async def never_awaits(guest: Guest) -> None:
    while True:
        pass


async def waits(guest: Guest) -> None:
    await asyncio.sleep(1e6)
