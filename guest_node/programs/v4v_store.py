"""v4v-store: the storage back end of the domain that runs uXen's device models, a disk in memory for each unit.

with: {serves: {GUEST: [0, 1]}, blocks: 2048, ring: 1MiB, over: v4v | argo, disks: memory | far, sessions: 1}

Unit n of a guest is a datagram socket at v4v port 0xD0000+n whose partner is that guest; it shows in the guest's port
bitmap from the moment it is there.  A unit ends when its guest stops it (START STOP UNIT), the program when all have
ended.  A datagram that is no transfer is counted and not answered; page lists, by which a device model reads a guest's
memory itself, are refused, for no domain maps another one's memory here.

The disks may be on another host than the guest (experimental): its device model runs this with `disks: far`, the store
there with `over: argo`, serving the device model's domain at the same ports of Argo (guest_node/programs/v4v_relay.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Final

from guest_node.drivers.dgram import DatagramSocket
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs import scsi
from guest_node.programs.patience import give_up
from guest_node.programs.v4v_relay import Ends, Open, relay
from hmx.argo.abi import Address
from hmx.uxen_enum import MAX_UNITS, STORAGE_PORT
from hmx.uxen_stor import HEADER, RING, Reply, TransferError, pack_reply, unpack_request

_SLACK: Final = 64  # ring bytes beside a reply: message header, the slot that stays free, roundings


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when v4v is not there or a ring is refused."""
    arguments = guest.arguments
    args.check_keys(arguments, "serves", "blocks", "ring", "over", "disks", "sessions")
    units = list(_units(guest))
    sessions = args.whole(arguments, "sessions", 1)
    over_argo = args.choice(arguments, "over", ("v4v", "argo")) == "argo"
    far = args.choice(arguments, "disks", ("memory", "far")) == "far"
    if far and (over_argo or len({unit for _, unit in units}) < len(units)):
        raise args.ArgumentError("disks", "far disks have v4v guests, and each unit once: there is one storage:n")
    blocks = args.whole(arguments, "blocks", 2048, 1, 1 << 21)
    ring = args.ring_size(arguments, default=RING)
    counted = {"commands": 0, "failed": 0, "refused": 0, "bytes": 0, **({"shown": 0} if far else {})}

    def count(what: str, more: int) -> None:
        counted[what] += more

    async def keep(domid: int, unit: int) -> None:
        ended = 0
        while not sessions or ended < sessions:
            sockets = guest.argo if over_argo else guest.v4v
            near = partial(sockets.datagram, STORAGE_PORT + unit, partner=domid, ring=ring)
            if far:
                await relay(guest, unit, Ends(near, partial(guest.argo.datagram, ring=ring)), count)
            else:
                await _serve(near, scsi.Disk(blocks), ring, counted)
            ended += 1

    try:
        async with asyncio.TaskGroup() as tasks:
            for domid, unit in units:
                tasks.create_task(keep(domid, unit))
    except ExceptionGroup as group:
        first = group.exceptions[0]
        if not isinstance(first, OSError):
            raise
        return give_up(guest, "cannot serve a storage unit", first)
    guest.result(units=len(units), **counted)
    if not over_argo:
        guest.result(line=guest.v4v.driver.counters.virqs)
    return 0


def _units(guest: Guest) -> Iterator[tuple[int, int]]:
    """(domain id, unit) of everything that is to be served."""
    serves = guest.arguments.get("serves")
    if not isinstance(serves, dict) or not serves:
        raise args.ArgumentError("serves", "write a map such as {GUEST: [0, 1]}")
    for name, units in serves.items():
        if name not in guest.peers:
            names = ", ".join(guest.peers) or "none"
            raise args.ArgumentError("serves", f"{name!r} is no guest on this hypervisor [valid: {names}]")
        if not isinstance(units, list) or not units:
            raise args.ArgumentError("serves", f"{name}: write a list of units such as [0, 1]")
        for unit in units:
            if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < MAX_UNITS:
                raise args.ArgumentError("serves", f"{name}: {unit!r} is no unit from 0 to {MAX_UNITS - 1}")
            yield guest.peers[name], unit


async def _serve(near: Open, disk: scsi.Disk, ring: int, counted: dict[str, int]) -> None:
    async with await near() as socket:
        while not disk.stopped:
            datagram, source, _ = await socket.receive()
            try:
                request = unpack_request(datagram)
            except TransferError:
                counted["refused"] += 1
                continue
            room = min(request.read_size, ring - HEADER.size - _SLACK)
            if request.pages:
                result = scsi.Result(scsi.Status.CHECK_CONDITION, sense=scsi.sense_of(scsi.ILLEGAL_FIELD))
            else:
                result = disk.execute(request.cdb, request.data, room)
            counted["commands"] += 1
            counted["failed"] += result.status != scsi.Status.GOOD
            counted["bytes"] += len(result.data) + len(request.data)
            reply = Reply(request.seq, result.status, result.data, result.sense)
            await _answer(socket, pack_reply(reply), source)


async def _answer(socket: DatagramSocket, reply: bytes, to: Address) -> None:
    """Send a reply.  To a guest that has gone, or whose ring is too small for it, there is nothing to say."""
    try:
        await socket.send_to(reply, to)
    except OSError:
        return
