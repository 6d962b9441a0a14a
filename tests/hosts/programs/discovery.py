"""Programs of the tests of discovery: one that looks what is there and tries it, one that is there while it is told to.

Both have `directory`, where the test looks and says so.
"""

import asyncio
import contextlib
import json
import os
from pathlib import Path

from guest_node.drivers.v4v import DM
from guest_node.guest import Guest
from guest_node.programs import scsi
from guest_node.programs.scsi import Opcode
from guest_node.programs.v4v_disk import Unit
from hmx.argo.abi import DOMID_ANY, Address, NotifyFlag
from hmx.services import port_of, service_of
from hmx.uxen_enum import STORAGE_PORT

LOOK_EVERY = 0.05
ANSWER_WITHIN = 5.0


async def watches(guest: Guest) -> None:
    """Look again and again by one path (`how`); write down each change, with what was answered by what is there."""
    log = os.open(
        Path(guest.arguments["directory"], f"seen-{guest.name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    last: dict[str, str] | None = None
    while True:
        answers = {
            name: (last or {}).get(name) or await ask(guest, name, address) for name, address in await look(guest)
        }
        if answers != last:
            last = answers
            os.write(log, json.dumps(answers).encode() + b"\n")
        await asyncio.sleep(LOOK_EVERY)


async def look(guest: Guest) -> list[tuple[str, Address]]:
    """Names and addresses of the services that are there."""
    if guest.arguments["how"] == "bitmap":
        return [(f"storage:{port - STORAGE_PORT}", Address(port, DM)) for port in await guest.v4v.storage_ports()]
    found = []
    for port in ports(guest):
        name, instance = service_of(port) or ("", 0)
        to = guest.arguments.get("to")
        address = Address(port, DOMID_ANY if to is None else guest.peers[to])
        with contextlib.suppress(OSError):
            if (await guest.driver.probe(address)).flags & NotifyFlag.EXISTS:
                found.append((f"{name}:{instance}", address))
    return found


def ports(guest: Guest) -> list[int]:
    """Where to look: at well-known ports, or at those that the firmware names."""
    if guest.arguments["how"] == "firmware":
        return [base + n for _, base, count in guest.probe["firmware"]["services"] for n in range(count)]
    return [port_of(name) for name in guest.arguments["services"]]


async def ask(guest: Guest, name: str, address: Address) -> str:
    """What is said there: its name, or what kind of disk it is; "" when nothing was said, and it is asked again."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            if guest.arguments["how"] == "bitmap":
                async with await guest.v4v.datagram(address.port, partner=DM, ring=1 << 16) as socket:
                    socket.connect(address)
                    command = bytes((Opcode.INQUIRY, 0, 0, 0, scsi.INQUIRY_SIZE, 0))
                    return (await Unit(socket).good(command, read=scsi.INQUIRY_SIZE))[16:24].decode()
            async with await guest.argo.datagram(ring=1 << 14) as plain:
                plain.connect(address)
                await plain.send_to(name.encode())
                return (await plain.receive()).payload.decode()
    except (OSError, TimeoutError) as error:
        guest.log(f"{name}: {type(error).__name__} {error}")
        return ""


async def offers(guest: Guest) -> None:
    """Answer at the ports of `services` with my name, while there is no file `unplugged-NAME`."""
    file = os.path.join(guest.arguments["directory"], f"unplugged-{guest.name}")

    def unplugged() -> bool:
        return os.path.exists(file)

    while True:
        while unplugged():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(LOOK_EVERY)
        async with contextlib.AsyncExitStack() as stack:
            tasks = []
            for name in guest.arguments["services"]:
                word, _, instance = name.partition(":")
                opened = await guest.argo.datagram(port_of(word, int(instance or 0)), ring=1 << 14)
                tasks.append(asyncio.ensure_future(answer(guest, await stack.enter_async_context(opened))))
            while not unplugged():  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answer(guest: Guest, socket: object) -> None:
    while True:
        payload, source, _ = await socket.receive()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            await socket.send_to(payload + b" by " + guest.name.encode(), source)  # type: ignore[attr-defined]
