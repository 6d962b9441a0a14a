"""v4v-disk: a guest of uXen that finds its storage units, and writes and reads them by SCSI over v4v.

with: {count: 16, blocks: 8, ring: 1MiB, within: 10s}

It reads the platform device's table, waits until every unit there shows in the port bitmap as well (the back end may
start later), and then, unit by unit: INQUIRY, READ CAPACITY, `count` writes of `blocks` blocks spread over the disk,
the same read back and compared, one read beyond the end, which must fail, and a stop.  The report says what was found,
what was moved, and how often line 7 was raised.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from guest_node.drivers.dgram import DatagramSocket
from guest_node.drivers.v4v import DM
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs import scsi
from guest_node.programs.patience import give_up
from guest_node.programs.scsi import Opcode, Status, cdb
from hmx.argo.abi import Address
from hmx.uxen_enum import STORAGE_PORT, DeviceType
from hmx.uxen_stor import RING, Reply, Request, TransferError, pack_request, unpack_reply

_LOOK_AGAIN: Final = 0.02  # seconds between two looks at the bitmap


class Unit:
    """One unit, over a socket that is connected to it."""

    def __init__(self, socket: DatagramSocket) -> None:
        self._socket = socket
        self._seq = 0

    async def command(self, command: bytes, data: bytes = b"", read: int = 0) -> Reply:
        """Carry out one command; its reply.  Raises TransferError for a reply that is none, or another command's."""
        self._seq += 1
        request = Request(self._seq, command, data, read_size=read, sense_size=scsi.SENSE_SIZE)
        await self._socket.send_to(pack_request(request))
        reply = unpack_reply((await self._socket.receive()).payload)
        if reply.seq != self._seq:
            raise TransferError(f"a reply to command {reply.seq} instead of {self._seq}")
        return reply

    async def good(self, command: bytes, data: bytes = b"", read: int = 0) -> bytes:
        """The data of a command that must succeed, `read` bytes of them.  Raises TransferError."""
        reply = await self.command(command, data, read)
        if reply.status != Status.GOOD or len(reply.data) != read:
            raise TransferError(f"{Opcode(command[0]).name}: status {reply.status}, {len(reply.data)} bytes")
        return reply.data


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when there are no units, an answer is wrong, or data differ."""
    arguments = guest.arguments
    args.check_keys(arguments, "count", "blocks", "ring", "within")
    count, blocks = args.whole(arguments, "count", 16, 1), args.whole(arguments, "blocks", 8, 1, 1024)
    ring = args.ring_size(arguments, default=RING)
    within = args.seconds(arguments, "within", 10.0)
    wrong = moved = 0
    try:
        ports = await _units(guest, within)
        for port in ports:
            async with await guest.v4v.datagram(port, partner=DM, ring=ring) as socket:
                socket.connect(Address(port, DM))
                unit_wrong, unit_moved = await _use(guest, Unit(socket), port - STORAGE_PORT, count, blocks)
            wrong += unit_wrong
            moved += unit_moved
            guest.result(bytes=moved, wrong=wrong)
    except (OSError, TransferError) as error:
        return give_up(guest, "no use of a storage unit", error)
    guest.result(line=guest.v4v.driver.counters.virqs, notification=guest.probe.get("notification"))
    return int(wrong > 0 or not ports)


async def _units(guest: Guest, within: float) -> tuple[int, ...]:
    """The v4v ports of the units that the table names, once the bitmap shows them all, or the time is over."""
    devices = await guest.v4v.devices()
    wanted = {STORAGE_PORT + each.instance for _, each in devices or () if each.type == DeviceType.STOR}
    table = [[slot, each.type, each.instance] for slot, each in devices or ()]
    deadline = guest.time() + within
    ports = await guest.v4v.storage_ports()
    while not wanted <= set(ports) and guest.time() < deadline:
        await asyncio.sleep(_LOOK_AGAIN)
        ports = await guest.v4v.storage_ports()
    guest.result(table=table, units=[port - STORAGE_PORT for port in ports])
    if missing := sorted(wanted - set(ports)):
        guest.log(f"in the table and not in the bitmap: {', '.join(map(hex, missing))}")
    return ports


async def _use(guest: Guest, unit: Unit, number: int, count: int, blocks: int) -> tuple[int, int]:
    """Everything that is done with one unit: how many reads were wrong, how many bytes were moved."""
    inquiry = await unit.good(bytes((Opcode.INQUIRY, 0, 0, 0, scsi.INQUIRY_SIZE, 0)), read=scsi.INQUIRY_SIZE)
    capacity = await unit.good(cdb(Opcode.READ_CAPACITY), read=8)
    last, block = int.from_bytes(capacity[:4], "big"), int.from_bytes(capacity[4:], "big")
    blocks = min(blocks, last + 1)
    count = min(count, (last + 1) // blocks)
    size, step = blocks * block, (last + 1) // count
    for index in range(count):
        await unit.good(cdb(Opcode.WRITE, index * step, blocks), body(number, index, size))
    wrong = 0
    for index in range(count):
        wrong += await unit.good(cdb(Opcode.READ, index * step, blocks), read=size) != body(number, index, size)
    beyond = await unit.command(cdb(Opcode.READ, last, 2), read=2 * block)
    wrong += (beyond.status, *scsi.read_sense(beyond.sense)[:2]) != (Status.CHECK_CONDITION, *scsi.ILLEGAL_ADDRESS[:2])
    await unit.good(cdb(Opcode.START_STOP_UNIT))
    guest.result(product=" ".join(inquiry[8:36].decode("ascii", "replace").split()), blocks=last + 1, block=block)
    return wrong, 2 * count * size


def body(unit: int, index: int, size: int) -> bytes:
    """The bytes of write `index` of a unit."""
    seed = hashlib.sha256(b"disk" + bytes((unit,)) + index.to_bytes(8, "little")).digest()
    return (seed * (size // len(seed) + 1))[:size]
