"""vsock-ping: connect to a vsock-echo, or to the echo of the vsock-server itself, and measure round trips.

with: {device: 0, cid: 2, port: 7, count: 100, size: 64, within: 10s}

`device` counts the guest's vsock devices.  Context id 2 is the back end's own, as in VIRTIO; who has which is the
choice of the vsock-server.  `within` is how long a refused connection is tried again.
"""

from __future__ import annotations

import asyncio

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.front import WITHIN, started
from guest_node.programs.patience import give_up, reach
from guest_node.virtio.drivers.vsock import VsockDevice, VsockStream

HOST = 2
PORT = 7


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when an answer differs from what was sent."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "cid", "port", "count", "size", "within")
    cid, port = args.whole(arguments, "cid", HOST), args.whole(arguments, "port", PORT)
    count = args.whole(arguments, "count", 100, 1)
    size = args.size(arguments, "size", 64)
    within = args.seconds(arguments, "within", WITHIN)
    try:
        device = await started(guest, "vsock", VsockDevice)
        guest.result(cid=device.cid, peer=cid)
        stream = await reach(guest, lambda: device.connect(cid, port), within)
        return await _measure(guest, stream, count, size)
    except (OSError, EOFError) as exc:
        return give_up(guest, f"no round trips with port {port} of context {cid}", exc)


async def _measure(guest: Guest, stream: VsockStream, count: int, size: int) -> int:
    wrong, begin = 0, guest.time()
    for index in range(count):
        data = (index.to_bytes(8, "little") * (size // 8 + 1))[:size]
        await stream.send(data)
        wrong += await receive_exactly(stream, size) != data
    guest.result(count=count, size=size, bytes=2 * count * size, wrong=wrong, seconds=round(guest.time() - begin, 6))
    await stream.close()
    return int(wrong > 0)


async def receive_exactly(stream: VsockStream, size: int) -> bytes:
    """`size` bytes.  Raises EOFError where the stream ends before."""
    data = b""
    while len(data) < size:
        more = await stream.receive(size - len(data))
        if not more:
            raise asyncio.IncompleteReadError(data, size)
        data += more
    return data
