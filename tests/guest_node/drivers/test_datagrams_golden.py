"""Datagram sockets against the golden table: their calls, and what comes to a ring."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from guest_node.drivers.dgram import MESSAGE_TYPE_DGRAM, datagram
from guest_node.drivers.stream_table import MESSAGE_TYPE_STREAM
from hmx.argo.abi import Address
from hmx.errno import Errno
from tests.guest_node.drivers.golden_scene import FAR, NEAR, PORT, Scene, answer, blocked, cancel, error_of, play
from tests.guest_node.drivers.golden_stream import Answer, GoldenRow, driven


async def datagram_receive(scene: Scene, row: GoldenRow) -> Answer:
    socket = await datagram(scene.near, PORT)
    if row.state == "CONNECTED":
        socket.connect(Address(9, FAR))
    message_type = MESSAGE_TYPE_STREAM if row.event == "WRONG-TYPE" else MESSAGE_TYPE_DGRAM
    source_port, sender = 9, scene.far_calls
    if "source domain differs" in row.condition:
        sender = scene.rig.guest(3)
    elif "source port differs" in row.condition:
        source_port = 8
    payload = b"1234567" if row.event == "SHORT" else b"123456789"
    reading = asyncio.create_task(socket.receive()) if "rx pass" not in row.condition else None
    await asyncio.sleep(0)
    if reading is None:  # a reader that will not get to run: only its wake-up is of interest
        socket._reader = asyncio.get_running_loop().create_future()
    await sender.sendv(Address(PORT, NEAR), source_port, (payload,), message_type)
    await asyncio.sleep(0.1)
    (ring,) = scene.near.rings
    state = "CONNECTED" if socket.peer else "BOUND"
    if reading is None:
        assert socket._reader is not None
        effects = {"wake-reader"} if socket._reader.done() else set()
        if ring.consumer.available():
            effects.add("leave-in-ring")
        return answer(state, "-", *effects)
    if blocked(reading):
        await cancel(reading)
        return answer(state, "-", "leave-in-ring" if ring.consumer.available() else "consume")
    assert await reading == (payload, Address(source_port, sender.domid), len(payload))
    return answer(state, "-", "deliver")


async def datagram_send(scene: Scene, row: GoldenRow) -> Answer:
    condition = row.condition
    socket = await datagram(scene.near, 9, partner=FAR, ring_len=1024)
    peer = await datagram(scene.far, PORT, partner=NEAR, ring_len=512)
    to: Address | None = Address(PORT, FAR)
    if row.state == "CONNECTED":
        socket.connect(to)
        to = None if "no address" in condition else to
    elif condition == "no address":
        to = None
    size = (
        1009 if "own ring length" in condition and "fits" not in condition else 481 if "over peer" in condition else 480
    )
    scene.refuse_sends(condition)
    if "peer ring full" in condition or "asleep" in condition:
        await socket.send_to(bytes(400), to)
    scene.mark()
    # EBUSY is raised where the caller does not want to wait; a caller that waits is served by polling.
    wait = "wake-up queue" not in condition and "nonblocking" not in condition
    sending = asyncio.create_task(socket.send_to(bytes(size), to, wait=wait))
    await asyncio.sleep(0.1)
    effects = set()
    if "asleep" in condition:
        assert blocked(sending)
        if "SUFFICIENT" in condition:
            await peer.receive()
        else:
            await peer.close()
        await asyncio.sleep(2)
    error = 0
    if blocked(sending):
        effects.add("block")
    else:
        error = await error_of(sending)
        effects |= {"error"} if error else {"wake-writers", "resend"} if "asleep" in condition else {"return-all"}
        if error == Errno.EAGAIN and not len(scene.near.wakeups):
            effects.add("no-wake-record")
    result = answer("CONNECTED" if socket.peer else "BOUND", scene.sent(), *effects, error=error)
    await cancel(sending)
    return result


async def datagram_recv(scene: Scene, row: GoldenRow) -> Answer:
    socket = await datagram(scene.near, PORT, partner=FAR)
    if row.state == "CONNECTED":
        socket.connect(Address(9, FAR))
    if "empty" not in row.condition:
        await scene.far_calls.sendv(Address(PORT, NEAR), 9, (b"0123456789",), MESSAGE_TYPE_DGRAM)
        await asyncio.sleep(0.1)
    notifies = scene.calls.counts["notify"]
    limit = 4 if "longer than buffer" in row.condition else 100
    reading = asyncio.create_task(socket.receive(limit))
    await asyncio.sleep(0.1)
    effects = set()
    if blocked(reading):
        effects.add("block")
        await cancel(reading)
    else:
        got = await reading
        assert got.payload == b"0123456789"[:limit]
        assert got.size == 10  # both of Linux's answers: the length of the buffer, and with MSG_TRUNC the message's
        assert got.truncated == (limit < 10)
        (ring,) = scene.near.rings
        assert not ring.consumer.available()
        effects.add("consume")
        if scene.calls.counts["notify"] > notifies:
            effects.add("null-notify")
    return answer("CONNECTED" if socket.peer else "BOUND", "-", *effects)


async def datagram_connect(scene: Scene, row: GoldenRow) -> Answer:
    socket = await datagram(scene.near, PORT, partner=FAR)
    before = 0 if row.state == "IDLE" else scene.near_rings()
    first = Address(8, FAR) if row.state == "CONNECTED" else None
    socket.connect(first)
    socket.connect(None if "NULL" in row.condition else Address(9, FAR))
    effects = {"register-ring"} if scene.near_rings() > before else set()
    if socket.peer == Address(9, FAR):
        effects.add("set-peer")
    elif first is not None:
        effects.add("clear-peer")
    return answer("CONNECTED" if socket.peer else "BOUND", "-", *effects)


DATAGRAM: dict[str, Callable[[Scene, GoldenRow], Awaitable[Answer]]] = {
    "send": datagram_send,
    "recv": datagram_recv,
    "connect": datagram_connect,
}
DATAGRAM_ROWS = driven(lambda row: row.machine == "datagram-api" and row.event in DATAGRAM)


@pytest.mark.parametrize("row", DATAGRAM_ROWS, ids=str)
def test_datagram_calls(row: GoldenRow) -> None:
    """send, recv and connect of datagram sockets."""
    play(row, DATAGRAM[row.event])


@pytest.mark.parametrize("row", driven(lambda row: row.machine == "datagram-receive"), ids=str)
def test_datagram_receive(row: GoldenRow) -> None:
    """What comes to a datagram ring."""
    play(row, datagram_receive)


def test_every_row_of_a_datagram_call_is_driven() -> None:
    """No row of the table falls between the tests of this module and those of bind and close."""
    rows = {*DATAGRAM_ROWS, *driven(lambda row: row.event in ("bind", "close"))}
    assert driven(lambda row: row.machine == "datagram-api" and row not in rows) == []
