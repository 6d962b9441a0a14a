"""vsock-echo: accept vsock connections and send back what comes.

with: {device: 0, port: 7, sessions: 1, within: 10s}

`device` counts the guest's vsock devices; `sessions` is how many connections are served before the program ends, 0 is
without end.
"""

from __future__ import annotations

import asyncio

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.front import started
from guest_node.programs.patience import give_up
from guest_node.programs.vsock_ping import PORT
from guest_node.virtio.drivers.vsock import VsockDevice, VsockStream


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "port", "sessions", "within")
    port = args.whole(arguments, "port", PORT)
    sessions = args.whole(arguments, "sessions", 1)
    try:
        device = await started(guest, "vsock", VsockDevice)
        guest.result(cid=device.cid)
        listener = device.listen(port)
        guest.log(f"vsock-echo: context {device.cid}, port {port}")
        async with asyncio.TaskGroup() as tasks:
            served = 0
            while not sessions or served < sessions:
                tasks.create_task(echo(guest, await listener.accept()))
                served += 1
    except OSError as exc:
        return give_up(guest, f"cannot listen at port {port}", exc)
    return 0


async def echo(guest: Guest, stream: VsockStream) -> None:
    """One connection to its end; it is counted in the report."""
    moved = 0
    try:
        while data := await stream.receive():
            await stream.send(data)
            moved += len(data)
        await stream.close()
    except OSError as exc:
        guest.log(f"a connection ended: {exc}")
    guest.result(bytes=guest.results.get("bytes", 0) + moved, sessions=guest.results.get("sessions", 0) + 1)
