"""net-ping: exchange Ethernet frames with a net-echo, through the switch that both are on.

with: {device: 0, count: 100, size: 64, within: 10s}

`device` counts the guest's net devices.  Who echoes is found by a broadcast, repeated until somebody answers; the other
frames go to that address.  `size` is that of a frame's body.  A frame that is not answered is sent again: Ethernet
promises nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.ethernet import BROADCAST, MOST, Kind, Message, pack, shown, unpack
from guest_node.programs.front import WITHIN, started
from guest_node.programs.patience import give_up
from guest_node.virtio.drivers.net import NetDevice

AGAIN: Final = 0.25
"""Seconds after which a frame that was not answered is sent again."""
GOODBYES: Final = 4


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when nobody answers or an answer differs from the question."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "count", "size", "within")
    count = args.whole(arguments, "count", 100, 1)
    size = args.size(arguments, "size", 64)
    if size > MOST:
        raise args.ArgumentError("size", f"a frame has room for {MOST} bytes")
    within = args.seconds(arguments, "within", WITHIN)
    try:
        device = await started(guest, "net", NetDevice)
        return await _Pinger(guest, device, within).run(count, size)
    except OSError as exc:
        return give_up(guest, "no exchange of frames", exc)


def body(index: int, size: int) -> bytes:
    """The bytes of question `index`."""
    seed = hashlib.sha256(b"frame" + index.to_bytes(8, "little")).digest()
    return (seed * (size // len(seed) + 1))[:size]


class _Pinger:
    def __init__(self, guest: Guest, device: NetDevice, within: float) -> None:
        self._guest = guest
        self._device = device
        self._within = within
        self._repeated = 0

    async def run(self, count: int, size: int) -> int:
        """Find a peer, ask it `count` times, say goodbye."""
        guest = self._guest
        peer = (await self._ask(BROADCAST, 0, b"")).source
        guest.result(address=shown(self._device.mac), peer=shown(peer))
        self._repeated, wrong, begin = 0, 0, guest.time()
        for index in range(1, count + 1):
            answer = await self._ask(peer, index, body(index, size))
            wrong += answer.body != body(index, size) or answer.source != peer
        guest.result(
            count=count, size=size, bytes=2 * count * size, wrong=wrong, repeated=self._repeated,
            seconds=round(guest.time() - begin, 6),
        )  # fmt: skip
        for _ in range(GOODBYES):
            if await self._send_and_hear(Message(peer, self._device.mac, Kind.END), Kind.ENDED):
                break
        return int(wrong > 0)

    async def _ask(self, to: bytes, index: int, data: bytes) -> Message:
        """Ask until there is an answer.  Raises TimeoutError."""
        deadline = self._guest.time() + self._within
        question = Message(to, self._device.mac, Kind.QUESTION, index, data)
        while (answer := await self._send_and_hear(question, Kind.ANSWER)) is None:
            if self._guest.time() > deadline:
                raise TimeoutError(f"nobody answered frame {index} within {self._within:g} s")
            self._repeated += 1
        return answer

    async def _send_and_hear(self, message: Message, kind: Kind) -> Message | None:
        """Send a frame; what it is answered with, None if that takes too long.  Other frames are passed over."""
        await self._device.send(pack(message))
        try:
            async with asyncio.timeout(AGAIN):
                while True:
                    heard = unpack(await self._device.receive())
                    if heard is not None and (heard.kind, heard.number) == (kind, message.number):
                        return heard
        except TimeoutError:
            return None
