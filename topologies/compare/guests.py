"""The programs of the guests that are compared: so many requests of one kind, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from guest_node.virtio.drivers.blk import BlkDevice
from guest_node.virtio.drivers.net import NetDevice
from hmx.virtio.blk import SECTOR

if TYPE_CHECKING:
    from guest_node.guest import Guest

WITHIN: Final = 10.0
GREETING: Final = 0.05
"""Seconds between the greetings of a guest that waits for frames."""
TYPE: Final = b"\x88\xb5"  # of frames: local experimental EtherType 1 (IEEE 802)
_BROADCAST: Final = b"\xff" * 6
_GREETING: Final = _BROADCAST + bytes(6) + TYPE + bytes(46)
_LEAVING: Final = 0.2  # seconds in which what was sent arrives


async def disk(guest: Guest) -> None:
    """Read or write `requests` requests of `size` bytes, `at_once` before the device is told."""
    arguments = guest.arguments
    size, at_once, count = arguments["size"], arguments["at_once"], arguments["requests"]
    device = BlkDevice(await guest.virtio("blk", within=WITHIN), queues=1)
    await device.start()
    data, sectors = bytes(size), size // SECTOR
    for _ in range(count // at_once):
        if arguments["kind"] == "write":
            pending = [await device.submit_write(n * sectors, data) for n in range(at_once)]
        else:
            pending = [await device.submit_read(n * sectors, sectors) for n in range(at_once)]
        await device.kick()
        for one in pending:
            await one


async def network(guest: Guest) -> None:
    """Send `requests` frames of `size` bytes to `far`, once that guest has greeted, one after the other."""
    size, count = guest.arguments["size"], guest.arguments["requests"]
    device = NetDevice(await guest.virtio("net", within=WITHIN))
    await device.start()
    peer = (await device.receive())[6:12]
    frame = (peer + device.mac + TYPE).ljust(size, b"\0")
    for _ in range(count):
        await device.send(frame)
        await device.receive()
    await asyncio.sleep(_LEAVING)


async def far(guest: Guest) -> None:
    """Greet until a frame comes, then acknowledge each by a small one, `requests` times."""
    device = NetDevice(await guest.virtio("net", within=WITHIN))
    await device.start()
    greeting = _BROADCAST + device.mac + _GREETING[12:]
    peer = b""
    for _ in range(guest.arguments["requests"]):
        while True:
            try:
                frame = await asyncio.wait_for(device.receive(), None if peer else GREETING)
                break
            except TimeoutError:
                await device.send(greeting)
        peer = frame[6:12]
        await device.send(peer + device.mac + _GREETING[12:])
    await asyncio.sleep(_LEAVING)
