"""net-echo: answer net-pings, over the switch that both are on.

with: {device: 0, sessions: 1, within: 10s}

`sessions` is how many net-pings say that they have ended before this ends; 0 is without end.
"""

from __future__ import annotations

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.ethernet import Kind, Message, pack, shown, unpack
from guest_node.programs.front import started
from guest_node.programs.patience import give_up
from guest_node.virtio.drivers.net import NetDevice

ANSWERS = {Kind.QUESTION: Kind.ANSWER, Kind.END: Kind.ENDED}


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    args.check_keys(guest.arguments, "device", "sessions", "within")
    sessions = args.whole(guest.arguments, "sessions", 1)
    try:
        device = await started(guest, "net", NetDevice)
        guest.log(f"net-echo: answering at {shown(device.mac)}")
        guest.result(address=shown(device.mac))
        await _answer(guest, device, sessions)
    except OSError as exc:
        return give_up(guest, "no exchange of frames", exc)
    return 0


async def _answer(guest: Guest, device: NetDevice, sessions: int) -> None:
    frames = others = 0
    ended: set[bytes] = set()
    while not sessions or len(ended) < sessions:
        heard = unpack(await device.receive())
        if heard is None or heard.kind not in ANSWERS:
            others += 1
            continue
        await device.send(pack(Message(heard.source, device.mac, ANSWERS[heard.kind], heard.number, heard.body)))
        if heard.kind is Kind.END:
            ended.add(heard.source)
        frames += 1
        guest.result(frames=frames, others=others, sessions=len(ended))
