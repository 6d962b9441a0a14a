"""vsock-server: the back end of vsock devices: all front ends reach each other, and an echo of its own at context 2.

with: {cids: {GUEST: 5}, port: 7, service: vsock, instance: 0, sessions: 1, ring: 1MiB, from: GUEST}

`cids` says which guest has which context id; others get free ones from 3 on, in the order in which they come.  The echo
listens at `port`.  `sessions` is how many front ends say goodbye before the program ends, 0 is without end.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any, Final

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.back import ARGUMENTS, Front, serve_until_left
from guest_node.programs.vsock_ping import PORT
from guest_node.virtio.models.vsock import VsockHub, VsockModel
from guest_node.virtio.vsock_streams import VsockListener, VsockStream

FIRST: Final = 3
MOST: Final = 0xFFFF_FFFE


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    arguments = guest.arguments
    args.check_keys(arguments, "cids", "port", *ARGUMENTS)
    cids = _cids(arguments)
    hub = VsockHub()
    models: dict[Front, VsockModel] = {}

    def join(front: Front) -> VsockModel:
        names = {domid: name for name, domid in guest.peers.items()}
        wanted = cids.get(names.get(front.domid, ""))
        model = models[front] = hub.endpoint(_free(hub, set(cids.values())) if wanted is None else wanted)
        guest.log(f"domain {front.domid} is context {model.cid}")
        return model

    def leave(front: Front) -> None:
        model = models.pop(front, None)
        if model is not None:
            model.close()

    listener = hub.host.listen(args.whole(arguments, "port", PORT))
    echo = asyncio.create_task(_echo(guest, listener))
    try:
        return await serve_until_left(guest, "vsock", join, leave=leave)
    finally:
        echo.cancel()
        await asyncio.gather(echo, return_exceptions=True)


def _cids(arguments: Any) -> dict[str, int]:
    """Context ids by guest."""
    found = arguments.get("cids", {})
    if not isinstance(found, dict):
        raise args.ArgumentError("cids", "write a map such as {GUEST: 5}")
    for name, cid in found.items():
        if isinstance(cid, bool) or not isinstance(cid, int) or not FIRST <= cid <= MOST:
            raise args.ArgumentError("cids", f"{name}: {cid!r} is no context id of a guest: they start at {FIRST}")
    if len(set(found.values())) < len(found):
        raise args.ArgumentError("cids", "each guest has a context id of its own")
    return found


def _free(hub: VsockHub, taken: set[int]) -> int:
    """A context id that nobody has or will have.  Raises OSError where there is none."""
    for cid in range(FIRST, FIRST + len(hub.models) + len(taken) + 1):
        if cid not in hub.models and cid not in taken:
            return cid
    raise OSError(errno.EADDRNOTAVAIL, "no context id is free")


async def _echo(guest: Guest, listener: VsockListener) -> None:
    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(_serve(guest, await listener.accept()))


async def _serve(guest: Guest, stream: VsockStream) -> None:
    try:
        while data := await stream.receive():
            await stream.send(data)
            guest.result(echoed=guest.results.get("echoed", 0) + len(data))
        await stream.close()
    except OSError as exc:
        guest.log(f"a connection of context {stream.peer[0]} ended: {exc}")
