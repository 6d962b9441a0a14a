"""Programs of the tests of the patch panel: one that is led, one that listens, one that tries everything."""

import asyncio
import contextlib
import os
from pathlib import Path

from guest_node.guest import Guest
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import SpaceQuery
from hmx.errno import Errno

PORT = 7  # service echo
HIDDEN = (PORT, 5001, 0xD0100, 0xD0000)  # where those listen who must not be reached
TYPE = 0x6447724D
TOGETHER = 64
ENTRIES = 256


def outside(guest: Guest, name: str, more: int = 0) -> int:
    """A file where the test looks."""
    return os.open(os.path.join(guest.arguments["directory"], name), os.O_RDWR | os.O_CREAT | more, 0o600)


async def files(guest: Guest, pattern: str, count: int) -> None:
    """Wait until other guests have made so many files."""
    while len(list(Path(guest.arguments["directory"]).glob(pattern))) < count:  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.1)


async def asks(guest: Guest) -> None:
    """Send to a service, or to `to`, every 10 ms; write down each change of what comes of it."""
    log = outside(guest, "seen-" + guest.name, os.O_APPEND)
    last, sender = "", await guest.argo.datagram()
    to = guest.arguments.get("to")
    while True:
        domid = DOMID_ANY if to is None else guest.peers[to]
        try:
            await sender.send_to(b"x", Address(PORT, domid), wait=False)
            outcome = "ok"
        except OSError as error:
            outcome = os.strerror(error.errno or 0)
        if last != outcome:
            last = outcome
            os.write(log, f"{outcome}\n".encode())
        await asyncio.sleep(0.01)


async def hears(guest: Guest) -> None:
    """Count what arrives."""
    beats, number = outside(guest, "sent-" + guest.name), 0
    async with await guest.argo.datagram(PORT, ring=65536) as receiver:
        os.pwrite(beats, b"%8d" % number, 0)
        while True:
            await receiver.receive()
            number += 1
            os.pwrite(beats, b"%8d" % number, 0)


async def hides(guest: Guest) -> None:
    """Listen at many ports until it is over; tell what came, which is nothing."""
    heard = 0
    sockets = [await guest.argo.datagram(port, ring=4096) for port in HIDDEN]

    async def listen(socket: object) -> None:
        nonlocal heard
        with contextlib.suppress(OSError):  # closed: it is over
            while True:
                await socket.receive()  # type: ignore[attr-defined]
                heard += 1
                guest.result(heard=heard)

    guest.result(heard=0)
    tasks = [asyncio.ensure_future(listen(socket)) for socket in sockets]
    os.close(outside(guest, "hides-" + guest.name))
    await files(guest, "over", 1)
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def tries(guest: Guest) -> int:
    """Every domain id, random ports, by sendv, notify and register: whatever is not -ESRCH is told."""
    calls, chance = guest.driver.calls, guest.random
    domids, ports = guest.arguments["domids"], guest.arguments["ports"]
    other: dict[str, int] = {}
    tried = 0
    await files(guest, "hides-*", 3)

    def note(what: str, found: object) -> None:
        other[f"{what} {found}"] = other.get(f"{what} {found}", 0) + 1

    async def send(address: Address) -> None:
        nonlocal tried
        tried += 1
        ret = await calls.sendv(address, 9, (b"x",), TYPE)
        if ret != -Errno.ESRCH:
            note("sendv", ret)

    async def send_all(addresses: list[Address]) -> None:
        for at in range(0, len(addresses), TOGETHER):
            await asyncio.gather(*map(send, addresses[at : at + TOGETHER]))

    step = max(1, 0x10000 // domids)
    everybody = range(0, 0x10000, step)
    await send_all([Address(port, domid) for domid in everybody for port in (HIDDEN[domid // step % len(HIDDEN)],)])
    await send_all([Address(port, domid) for domid in range(1, 8) for port in HIDDEN])
    await send_all([Address(chance.randrange(1 << 32), DOMID_ANY) for _ in range(ports // 2)])
    await send_all([Address(chance.randrange(1 << 32), chance.randrange(0x4100)) for _ in range(ports // 2)])
    asked = [Address(port, domid) for domid in everybody for port in HIDDEN[:1]]
    asked += [Address(chance.choice(HIDDEN), chance.randrange(0x4100)) for _ in range(ports // 4)]
    for at in range(0, len(asked), ENTRIES):
        ret, answers = await calls.notify([SpaceQuery(address, 1) for address in asked[at : at + ENTRIES]])
        tried += len(answers)
        if ret or any(answer.flags for answer in answers):
            note("notify", ret)
    ring = calls.allocate_ring(4096)
    for domid in (0, 1, 2, 3, 4, 0x4000, 0x4001, 0x4002, 0x4003):
        ret = await calls.register_ring(ring, 77, domid)
        if ret != -Errno.ESRCH:
            note("register", ret)
    told = [seen["domid"] for seen in guest.probe["hypervisors"] if seen["domid"] is not None]
    guest.result(tried=tried, other=other, peers=dict(guest.peers), told=told, own=guest.domid)
    os.close(outside(guest, "over"))
    return len(other)
