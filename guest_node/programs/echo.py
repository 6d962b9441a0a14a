"""echo: send back what comes.

with: {port: 7, service: NAME, instance: 0, kind: stream | datagram, sessions: 1, ring: 128KiB-ish, from: GUEST}

`sessions` is how many connections are served (datagrams: how many empty datagrams, each of which ends a
session) before the program ends; 0 is without end.  `from` restricts it to one guest, which needs no
mac-permissive.
"""

from __future__ import annotations

import asyncio

from guest_node.drivers.sockets import ANY
from guest_node.drivers.stream import StreamConnection
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.patience import give_up

DEFAULT_PORT = 7


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    arguments = guest.arguments
    args.check_keys(arguments, "port", "service", "instance", "kind", "sessions", "ring", "from")
    port = args.own_port(guest, DEFAULT_PORT)
    sessions = args.whole(arguments, "sessions", 1)
    ring = args.ring_size(arguments)
    source = args.peer(guest, "from", optional=True)
    partner = ANY if source is None else source
    serve = _streams if args.choice(arguments, "kind", ("stream", "datagram")) == "stream" else _datagrams
    try:
        await serve(guest, port, partner, ring, sessions)
    except PermissionError as exc:
        return give_up(guest, f"cannot listen at port {port}", exc)
    return 0


async def _streams(guest: Guest, port: int, partner: int, ring: int, sessions: int) -> None:
    listener = await guest.argo.listen(port, partner=partner, ring=ring)
    guest.log(f"echo: streams at port {port}")
    async with listener, asyncio.TaskGroup() as tasks:
        served = 0
        while not sessions or served < sessions:
            tasks.create_task(_serve(guest, await listener.accept()))
            served += 1


async def _serve(guest: Guest, connection: StreamConnection) -> None:
    async with connection:
        try:
            while data := await connection.receive():
                await connection.send(data)
        except ConnectionError as exc:
            guest.log(f"echo: {exc}")  # the peer went away before it had read everything: its business
    guest.result(
        bytes=guest.results.get("bytes", 0) + connection.bytes_sent,
        messages=guest.results.get("messages", 0) + connection.frames_sent,
        sessions=guest.results.get("sessions", 0) + 1,
    )


async def _datagrams(guest: Guest, port: int, partner: int, ring: int, sessions: int) -> None:
    count = total = served = 0
    async with await guest.argo.datagram(port, partner=partner, ring=ring) as socket:
        guest.log(f"echo: datagrams at port {port}")
        while not sessions or served < sessions:
            payload, source, _ = await socket.receive()
            try:
                await socket.send_to(payload, source)
            except ConnectionRefusedError as exc:
                guest.log(f"echo: {exc}")  # whoever asked does not listen
            count += 1
            total += len(payload)
            if not payload:
                served += 1
            guest.result(bytes=total, messages=count, sessions=served)
