"""door-peer: answer door-reports, check what they ask, and say by which door this guest reaches its hypervisor.

with: {port: 9, sessions: 1, ring: 128KiB-ish, from: GUEST}

`sessions` is how many door-reports are served before the program ends.  `from` restricts it to one guest, which needs
no mac-permissive.
"""

from __future__ import annotations

from guest_node.drivers.dgram import DatagramSocket
from guest_node.drivers.sockets import ANY
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.door_report import ANSWER, PORT, QUESTION, body, say_what_it_took, say_what_was_found
from guest_node.programs.patience import give_up
from hmx.argo.abi import Address


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when a question was not the one that had to come."""
    arguments = guest.arguments
    args.check_keys(arguments, "port", "sessions", "ring", "from")
    port = args.whole(arguments, "port", PORT, 1)
    sessions = args.whole(arguments, "sessions", 1, 1)
    ring = args.ring_size(arguments)
    source = args.peer(guest, "from", optional=True)
    say_what_was_found(guest)
    try:
        async with await guest.argo.datagram(port, partner=ANY if source is None else source, ring=ring) as socket:
            wrong = await _answer(guest, socket, sessions)
    except OSError as error:
        return give_up(guest, f"cannot answer at port {port}", error)
    say_what_it_took(guest)
    return int(wrong > 0)


async def _answer(guest: Guest, socket: DatagramSocket, sessions: int) -> int:
    """Serve `sessions` sessions; how many questions were wrong."""
    expected: dict[Address, int] = {}
    messages = moved = wrong = ended = 0
    while ended < sessions:
        payload, source, _ = await socket.receive()
        index = expected.get(source, 0)
        if payload:
            size = len(payload)
            wrong += payload != body(QUESTION, index, size)
            expected[source] = index + 1
            await socket.send_to(body(ANSWER, index, size), source)
            messages += 2
            moved += 2 * size
        else:
            expected.pop(source, None)
            ended += 1
            await socket.send_to(b"", source)
        guest.result(bytes=moved, messages=messages, sessions=ended, wrong=wrong)
    return wrong
