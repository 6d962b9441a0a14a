"""The programs of the guests that are compared: so many requests of one kind, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from guest_node.drivers.v4v import DM
from guest_node.programs.scsi import Opcode, cdb
from guest_node.programs.v4v_disk import Unit
from guest_node.virtio.access import RemoteMemory
from guest_node.virtio.access_dma import DmaAccess
from guest_node.virtio.access_foreign import ForeignAccess
from guest_node.virtio.drivers.blk import BlkDevice
from guest_node.virtio.drivers.net import NetDevice
from guest_node.virtio.xen_calls import XenCalls
from hmx.argo.abi import Address
from hmx.uxen_stor import RING
from hmx.virtio.blk import SECTOR
from hmx.virtio.chain import Segment

if TYPE_CHECKING:
    from guest_node.guest import Guest
    from guest_node.virtio.frontend import Transport

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
    transport = await guest.virtio("blk", within=WITHIN)
    device = BlkDevice(transport, queues=1)
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
    _report(guest, transport)


async def network(guest: Guest) -> None:
    """Send `requests` frames of `size` bytes to `far`, once that guest has greeted, one after the other."""
    size, count = guest.arguments["size"], guest.arguments["requests"]
    transport = await guest.virtio("net", within=WITHIN)
    device = NetDevice(transport)
    await device.start()
    peer = (await device.receive())[6:12]
    frame = (peer + device.mac + TYPE).ljust(size, b"\0")
    for _ in range(count):
        await device.send(frame)
        await device.receive()
    _report(guest, transport)
    await asyncio.sleep(_LEAVING)


async def far(guest: Guest) -> None:
    """Greet until a frame comes, then acknowledge each by a small one, `requests` times."""
    transport = await guest.virtio("net", within=WITHIN)
    device = NetDevice(transport)
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
    _report(guest, transport)
    await asyncio.sleep(_LEAVING)


async def units(guest: Guest) -> None:
    """The same of a storage unit over v4v, as uXen's guests have it: SCSI in datagrams."""
    arguments = guest.arguments
    size, count = arguments["size"], arguments["requests"]
    while not (ports := await guest.v4v.storage_ports()):  # noqa: ASYNC110  (nobody signals it)
        await asyncio.sleep(GREETING)
    async with await guest.v4v.datagram(ports[0], partner=DM, ring=RING) as socket:
        socket.connect(Address(ports[0], DM))
        unit, data, blocks = Unit(socket), bytes(size), size // SECTOR
        for _ in range(count):
            if arguments["kind"] == "write":
                await unit.good(cdb(Opcode.WRITE, 0, blocks), data)
            else:
                await unit.good(cdb(Opcode.READ, 0, blocks), read=size)
        await unit.good(cdb(Opcode.START_STOP_UNIT))


def _report(guest: Guest, transport: Transport) -> None:
    """How often the device was notified by more than a message, which the hypervisor counts."""
    guest.result(notifies=getattr(transport, "notifies", 0))


async def watched(guest: Guest) -> None:
    """Be looked into until it is over."""
    await asyncio.sleep(guest.arguments["requests"] * 0.01 + _LEAVING)


async def peek(guest: Guest) -> None:
    """Read `size` bytes of another domain's memory, `requests` times, each time somewhere else."""
    arguments, front, kernel = guest.arguments, guest.fronts[0], guest.kernel
    assert kernel is not None, "a guest that runs has a kernel"
    xen = XenCalls(kernel)
    access: RemoteMemory
    access = ForeignAccess(xen, front.domid) if front.access == "foreign" else DmaAccess(xen, front.domid)
    for index in range(arguments["requests"]):
        place = Segment((index + 1) * 4096 + 1234, arguments["size"])
        access.borrow([place])
        access.read(*place)
        access.give_back([place])
    guest.result(copied_by_back_end=access.counters.copied_by_back_end)
