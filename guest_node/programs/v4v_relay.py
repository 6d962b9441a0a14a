"""Storage units whose disks are elsewhere: between a guest's v4v and an Argo service.  Experimental, not upstream.

v4v reaches the device model's domain and no further.  So the device model has no disk here: it passes a unit's
transfers on, as they are, to the well-known service "storage", instance n for unit n, of its implicit destinations, and
the replies back.  The toolstack decides where that leads, live: to a domain beside it, or on another host.  While
nobody is there the unit has no v4v ring, and so does not show in the guest's port bitmap.  Commands that were under way
when the far side went fail with sense NOT READY.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from guest_node.drivers.dgram import DatagramSocket
from guest_node.guest import Guest
from guest_node.programs import scsi
from hmx.argo.abi import DOMID_ANY, Address, NotifyFlag
from hmx.services import port_of
from hmx.uxen_stor import Reply, TransferError, pack_reply, unpack_reply, unpack_request

LOOK_EVERY: Final = 0.1
"""Seconds between two looks whether the far side is there: Argo tells nobody when a ring appears."""

Count = Callable[[str, int], None]
Open = Callable[[], Awaitable[DatagramSocket]]


class Ends(NamedTuple):
    """How the two sockets of a unit are opened: towards the guest, and towards the disk."""

    near: Open
    far: Open


async def relay(guest: Guest, unit: int, ends: Ends, count: Count) -> None:
    """Wait until the disk of `unit` is there, and pass on until it is gone."""
    to = Address(port_of("storage", unit), DOMID_ANY)
    while not await _is_there(guest, to):  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(LOOK_EVERY)
    async with await ends.far() as far, await ends.near() as near:
        far.connect(to)
        way = _Way(near, far, count)
        count("shown", 1)
        both = asyncio.gather(way.outwards(), way.back())
        try:
            while not both.done() and await _is_there(guest, to):
                await asyncio.wait((both,), timeout=LOOK_EVERY)
        finally:
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)
        await way.end()


async def _is_there(guest: Guest, to: Address) -> bool:
    try:
        return bool((await guest.driver.probe(to)).flags & NotifyFlag.EXISTS)
    except OSError:  # it is not known whether: then it cannot be relied upon
        return False


class _Way:
    """Two sockets, and the commands that were passed on and not answered: their numbers, and who gave them."""

    def __init__(self, near: DatagramSocket, far: DatagramSocket, count: Count) -> None:
        self._near = near
        self._far = far
        self._count = count
        self._open: dict[int, Address] = {}

    async def outwards(self) -> None:
        """Pass requests on, until that fails."""
        while True:
            datagram, source, _ = await self._near.receive()
            try:
                seq = unpack_request(datagram).seq
            except TransferError:
                self._count("refused", 1)
                continue
            self._open[seq] = source
            try:
                await self._far.send_to(datagram)
            except OSError:  # what was not passed on is answered below, with all that are open
                return
            self._count("commands", 1)

    async def back(self) -> None:
        """Pass replies back."""
        while True:
            await self._answer((await self._far.receive()).payload)

    async def end(self) -> None:
        """What has come is passed back; what will not come has failed."""
        while (datagram := self._far.receive_now()) is not None:
            await self._answer(datagram.payload)
        for seq, source in self._open.items():
            sense = scsi.sense_of(scsi.NOT_READY)
            await _send(self._near, pack_reply(Reply(seq, scsi.Status.CHECK_CONDITION, sense=sense)), source)
            self._count("failed", 1)

    async def _answer(self, datagram: bytes) -> None:
        try:
            reply = unpack_reply(datagram)
        except TransferError:
            return  # nobody who holds the destination says that
        source = self._open.pop(reply.seq, None)
        if source is not None:
            self._count("bytes", len(reply.data))
            await _send(self._near, datagram, source)


async def _send(socket: DatagramSocket, reply: bytes, to: Address) -> None:
    """To a guest that has gone, or whose ring is too small, there is nothing to say."""
    try:
        await socket.send_to(reply, to)
    except OSError:
        return
