"""door-report: say by which door and notification this guest reaches its hypervisor, and prove it to a door-peer.

with: {to: GUEST, port: 9, count: 64, size: 256, burst: 8, ring: 128KiB-ish, within: 10s}

It sends `count` datagrams, up to `burst` ahead of the answers, and checks each answer, which it can compute.  An empty
datagram ends the session.  The report has what the kernel's probe found, and how often the guest trapped and was
interrupted.
"""

from __future__ import annotations

import hashlib
from typing import Final

from guest_node.drivers.dgram import DatagramSocket
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.patience import give_up, reach
from hmx.argo.abi import Address

PORT: Final = 9
QUESTION: Final = b"question"
ANSWER: Final = b"answer"
_COUNTS: Final = {
    "traps": "traps", "interrupts": "interrupts_delivered", "spurious": "interrupts_spurious",
}  # fmt: skip


def body(kind: bytes, index: int, size: int) -> bytes:
    """The bytes of message `index` of a session: nobody who has not sent or computed them can guess them."""
    seed = hashlib.sha256(kind + index.to_bytes(8, "little")).digest()
    return (seed * (size // len(seed) + 1))[:size]


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when an answer is not the one that had to come."""
    arguments = guest.arguments
    args.check_keys(arguments, "to", "port", "count", "size", "burst", "ring", "within")
    domid = args.peer(guest, "to")
    assert domid is not None
    to = Address(args.whole(arguments, "port", PORT, 1), domid)
    count = args.whole(arguments, "count", 64, 1)
    size = args.size(arguments, "size", 256)
    burst = args.whole(arguments, "burst", 8, 1)
    ring = args.ring_size(arguments)
    within = args.seconds(arguments, "within", 10.0)
    say_what_was_found(guest)
    try:
        async with await guest.argo.datagram(partner=domid, ring=ring) as socket:
            socket.connect(to)
            await reach(guest, lambda: socket.send_to(body(QUESTION, 0, size)), within)
            wrong = await _ask(socket, count, size, burst)
            await socket.send_to(b"")
            await socket.receive()  # the other's report counts this session
    except OSError as error:
        return give_up(guest, f"no exchange with {arguments['to']}", error)
    guest.result(count=count, bytes=2 * count * size, messages=2 * count, wrong=wrong)
    say_what_it_took(guest)
    return int(wrong > 0)


async def _ask(socket: DatagramSocket, count: int, size: int, burst: int) -> int:
    """Questions 1 to `count` - 1, and `count` answers; how many of these were wrong."""
    sent, wrong = 1, 0
    for index in range(count):
        while sent < min(index + burst, count):
            await socket.send_to(body(QUESTION, sent, size))
            sent += 1
        wrong += (await socket.receive()).payload != body(ANSWER, index, size)
    return wrong


def say_what_was_found(guest: Guest) -> None:
    """Report what the probe chose; the whole of it is the guest's `probe` in `argosy inspect --probe`."""
    found = guest.probe
    door = found.get("chosen")
    guest.result(
        door=door,
        instruction=next((row["instruction"] for row in found.get("doors", ()) if row["door"] == door), None),
        notification=found.get("notification"),
        hypervisors=[seen["name"] for seen in found.get("hypervisors", ())],
    )
    if found.get("said"):
        guest.result(said=found["said"])


def say_what_it_took(guest: Guest) -> None:
    """Report how often the guest trapped and was interrupted up to now."""
    counted = guest.counters().get("arch", {})
    guest.result(**{name: counted[key] for name, key in _COUNTS.items() if key in counted})
