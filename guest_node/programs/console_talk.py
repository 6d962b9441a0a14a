"""console-talk: write lines to a console that echoes, and read them back.

with: {device: 0, count: 16, size: 64, within: 10s}

`device` counts the guest's console devices; `count` lines of `size` bytes, their ends included, go out one after the
other, each when the one before it has come back.  `within` is also how long an echo may take.
"""

from __future__ import annotations

import asyncio

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.front import WITHIN, started
from guest_node.programs.patience import give_up
from guest_node.virtio.drivers.console import ConsoleDevice


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when what comes back is not what was written."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "count", "size", "within")
    count = args.whole(arguments, "count", 16, 1)
    size = args.size(arguments, "size", 64, 2)
    within = args.seconds(arguments, "within", WITHIN)
    try:
        device = await started(guest, "console", ConsoleDevice)
        return await _talk(guest, device, count, size, within)
    except OSError as exc:
        return give_up(guest, "no talk with a console", exc)


async def _talk(guest: Guest, device: ConsoleDevice, count: int, size: int, within: float) -> int:
    wrong = 0
    begin = guest.time()
    for index in range(count):
        line = line_of(index, size)
        await device.write(line)
        heard = b""
        async with asyncio.timeout(within):
            while len(heard) < size:
                heard += await device.read()
        wrong += heard != line
        guest.result(lines=index + 1, bytes=2 * size * (index + 1), wrong=wrong)
    guest.result(seconds=round(guest.time() - begin, 6))
    return int(wrong > 0)


def line_of(index: int, size: int) -> bytes:
    """Line `index`: readable, of `size` bytes with its end."""
    words = b"line %d of many; " % index
    return (words * (size // len(words) + 1))[: size - 1] + b"\n"
