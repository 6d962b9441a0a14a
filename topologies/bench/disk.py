"""The disk of the `virtio-blk` rows: what it holds, which reads a round makes, and the programs of its two guests.

Every sector holds its own number and a checksum of it, over and over, so what is read shows where it came from.  The
same sequence of reads is verified in the same way on VirtIO-Argo and beside it (nbd.py): every byte is compared
with a table, and the sector numbers found in the data are summed up.
"""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING

from topologies.bench.inbox import Meter, cpu_ns, identity

if TYPE_CHECKING:
    from guest_node.guest import Guest
    from guest_node.virtio.argo_bus import ArgoBus
    from guest_node.virtio.drivers.blk import Pending

SECTOR = 512
DISK_SIZE = 16 << 20
IMAGE = "disk.img"
PID = "pid"  # a file of the back end's
SEED = 0x5EED

_MARK = Struct("<II")
NUMBER = Struct("<I")  # the sector's, with which it begins


def sector(number: int) -> bytes:
    """The 512 bytes of one sector."""
    mark = _MARK.pack(number, zlib.crc32(b"sector %d" % number))
    return mark * (SECTOR // len(mark))


def content() -> bytes:
    """The whole disk."""
    return b"".join([sector(number) for number in range(DISK_SIZE // SECTOR)])


def blocks(size: int) -> list[bytearray]:
    """The disk in blocks of `size` bytes; a bytearray compares with whatever holds bytes by memcmp."""
    disk = content()
    return [bytearray(disk[at : at + size]) for at in range(0, DISK_SIZE, size)]


def reads(size: int, count: int) -> list[int]:
    """Which blocks of `size` bytes a round reads, one after the other: the same ones in every round."""
    return random.Random(SEED).choices(range(DISK_SIZE // size), k=count)


def checksum(size: int, count: int) -> int:
    """The sum of the first sector numbers of all reads of a round."""
    return sum(reads(size, count)) * (size // SECTOR)


async def serve_disk(guest: Guest) -> int:
    """The back end: builtin:blk-server, which says who it is."""
    from guest_node.programs import blk_server

    identity(guest)
    output = guest.files.create_output(PID)
    output.write(b"%d" % os.getpid())
    output.commit()
    return await blk_server.main(guest)


async def read_disk(guest: Guest) -> None:
    """Read `count` blocks of `size` bytes with at most `window` of them under way, which leave in two halves."""
    from guest_node.virtio.drivers.blk import BlkDevice

    arguments = guest.arguments
    size, count, warm, depth = arguments["size"], arguments["count"], arguments["warm"], arguments["window"]
    bus = await _connect(guest, arguments["ring"])
    disk = BlkDevice(bus.devices[min(bus.devices)])
    await disk.start()
    known, places = blocks(size), reads(size, count)
    each, step = size // SECTOR, depth // 2
    submit, kick = disk.submit_read, disk.kick
    meter, back = Meter(identity(guest)), _back_end(guest)
    flying: deque[tuple[int, Pending]] = deque()
    done = placed = total = began = timed = 0
    number = NUMBER.unpack_from
    while done < count:
        for place in places[placed : placed + step]:
            flying.append((place, await submit(place * each, each)))
        placed = min(count, placed + step)
        await kick()
        if placed - done + step <= depth and placed < count:
            continue
        if not timed and done >= warm:
            timed = count - done
            meter.begin()
            began = cpu_ns(back)
        for _ in range(min(step, len(flying))):
            place, pending = flying.popleft()
            data = await pending
            if known[place] != data:
                raise ValueError(f"block {place} of {size} bytes is not what the disk holds")
            total += number(data)[0]
            done += 1
    guest.result(**meter.read(), back_end_cpu_ns=cpu_ns(back) - began, timed=timed, completed=done, checksum=total)
    guest.result(frames=bus.traffic.sendv, eagain=bus.traffic.refused)
    await bus.close()


async def _connect(guest: Guest, ring: int) -> ArgoBus:
    """Who serves the disk of the topology, once somebody does; with a ring of our choice."""
    from guest_node.devices import NOT_YET, find
    from guest_node.virtio.argo_front import discover
    from hmx.argo.abi import DOMID_ANY, Address

    device = find(guest.devices, "blk")
    while True:
        try:
            return await discover(guest.driver, Address(device.port, DOMID_ANY), variant=device.variant, ring_len=ring)
        except OSError as problem:
            if problem.errno not in NOT_YET:
                raise
        await asyncio.sleep(0.01)


def _back_end(guest: Guest) -> int:
    """Its pid."""
    with guest.files.open_input(f"run/nodes/receiver/{PID}") as told:
        return int(told.read())
