"""ping-pong: measure round trips to an echo.

with: {to: GUEST, port: 7, service: NAME, instance: 0, kind: stream, count: 1000, size: 64, ring: SIZE, within: 10s}

`kind` is stream or datagram.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from guest_node.drivers.dgram import DatagramSocket
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.echo import DEFAULT_PORT
from guest_node.programs.patience import give_up, reach
from hmx.argo.abi import Address

RoundTrip = Callable[[bytes], Awaitable[bytes]]


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when an answer differs from what was sent."""
    arguments = guest.arguments
    args.check_keys(arguments, "to", "port", "service", "instance", "kind", "count", "size", "ring", "within")
    to = args.destination(guest, DEFAULT_PORT)
    count = args.whole(arguments, "count", 1000, 1)
    size = args.size(arguments, "size", 64)
    ring = args.ring_size(arguments)
    within = args.seconds(arguments, "within", 10.0)
    measure = _stream if args.choice(arguments, "kind", ("stream", "datagram")) == "stream" else _datagrams
    try:
        return await measure(guest, to, count, size, ring, within)
    except (OSError, asyncio.IncompleteReadError) as exc:
        return give_up(guest, f"no round trips with {args.told(arguments)}", exc)


async def _stream(guest: Guest, to: Address, count: int, size: int, ring: int, within: float) -> int:
    connection = await reach(guest, lambda: guest.argo.connect(to.domid, to.port, ring=ring), within)
    async with connection:

        async def round_trip(data: bytes) -> bytes:
            await connection.send(data)
            return await connection.receive_exactly(len(data))

        return await _measure(guest, round_trip, count, size)


async def _datagrams(guest: Guest, to: Address, count: int, size: int, ring: int, within: float) -> int:
    async with await guest.argo.datagram(partner=to.domid, ring=ring) as socket:
        socket.connect(to)

        async def round_trip(data: bytes) -> bytes:
            await socket.send_to(data)
            return (await socket.receive()).payload

        await reach(guest, lambda: _first(socket), within)
        code = await _measure(guest, round_trip, count, size)
        await round_trip(b"")  # ends the session
        return code


async def _first(socket: DatagramSocket) -> None:
    """The first datagram may find nobody there."""
    await socket.send_to(b"?")
    await socket.receive()


async def _measure(guest: Guest, round_trip: RoundTrip, count: int, size: int) -> int:
    times: list[float] = []
    begin = guest.time()
    for index in range(count):
        data = index.to_bytes(8, "little") * (size // 8 + 1)
        sent = guest.time()
        answer = await round_trip(data[:size])
        times.append(guest.time() - sent)
        if answer != data[:size]:
            guest.log(f"round trip {index}: {len(answer)} bytes came back that differ from the {size} sent")
            guest.result(mismatch=index)
            return 1
    elapsed = guest.time() - begin
    times.sort()
    guest.result(
        count=count,
        size=size,
        bytes=2 * count * size,
        messages=2 * count,
        seconds=round(elapsed, 6),
        p50_us=round(_percentile(times, 50) * 1e6, 1),
        p99_us=round(_percentile(times, 99) * 1e6, 1),
    )
    return 0


def _percentile(ordered: list[float], percent: int) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
