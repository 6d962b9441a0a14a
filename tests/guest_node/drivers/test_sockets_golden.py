"""The calls of stream sockets against the golden table; bind and close of datagram sockets too."""

from __future__ import annotations

import asyncio

import pytest

from guest_node.drivers.connector import ConnectorSink, connect
from guest_node.drivers.dgram import DatagramSocket, datagram
from guest_node.drivers.listener import StreamListener, listen
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_fsm import connecting
from guest_node.drivers.stream_table import (
    DEFAULT_RING_LEN,
    FRAME_LIMIT,
    HEADER,
    MESSAGE_TYPE_STREAM,
    ROWS,
    Event,
    Flag,
    Machine,
    State,
)
from hmx.argo.abi import DOMID_ANY, Address, Op
from hmx.argo.calls import Outgoing
from hmx.errno import Errno
from tests.guest_node.drivers.golden_scene import (
    FAR,
    NEAR,
    PORT,
    Deaf,
    Scene,
    answer,
    blocked,
    cancel,
    core_of,
    error_of,
    play,
    state_of,
)
from tests.guest_node.drivers.golden_stream import Answer, GoldenRow, driven, expected

# -- bind ----------------------------------------------------------------------------------------------------


async def bind(scene: Scene, row: GoldenRow) -> Answer:
    stream = row.machine == "api"
    condition = row.condition
    port, partner, ring_len = PORT, FAR, 4096

    async def make(port: int, partner: int, ring_len: int = 4096) -> StreamListener | DatagramSocket:
        if stream:
            return await listen(scene.near, port, partner=partner, ring_len=ring_len)
        return await datagram(scene.near, port, partner=partner, ring_len=ring_len)

    if "aport 0" in condition:
        port = 0
    elif "pair already" in condition:
        await make(PORT, FAR)
    elif "another partner only" in condition:
        await make(PORT, NEAR)
    elif "used up" in condition:
        scene.near.rings._randomness = Constant(0x90000000)
        await make(0x90000000, FAR)
        await make(0xFFFFFFFE, FAR)
        port = 0
    elif "wildcard ring not permitted" in condition:
        partner = DOMID_ANY
    elif "partner domain missing" in condition:
        partner = 99
    elif "partner without Argo" in condition:
        scene.rig.kill(FAR)
    elif "128 rings" in condition:
        for other in range(128):
            await make(1000 + other, FAR, 48)
    elif "own domain without Argo" in condition:
        scene.calls.refuse = lambda op, _: -Errno.ENODEV if op is Op.REGISTER_RING else None
    lengths = [4096, 4048, 4064, 4080] if "mod 4096" in condition else [ring_len]
    before = scene.near_rings()
    error = 0
    picked = []
    for index, length in enumerate(lengths):
        try:
            picked.append((await make(port + index if port else 0, partner, length)).port)
        except OSError as exc:
            error = exc.errno or 0
    if error:
        assert scene.near_rings() == before
        return answer("IDLE", "-", "error", error=error)
    assert scene.near_rings() == before + len(lengths)
    effects = {"register-ring"}
    if not port:
        assert 0x80000000 <= picked[0] <= 0xF0000000
        effects.add("pick-port")
    return answer("BOUND", "-", *effects)


class Constant:
    """Randomness that has run out."""

    def __init__(self, value: int) -> None:
        self.value = value

    def getrandbits(self, k: int, /) -> int:
        return self.value


BIND_ROWS = driven(lambda row: row.event == "bind")


@pytest.mark.parametrize("row", BIND_ROWS, ids=str)
def test_bind(row: GoldenRow) -> None:
    """Ports, partners, and the hypervisor's refusals."""
    play(row, bind, mac_permissive="not permitted" not in row.condition)


# -- connect -------------------------------------------------------------------------------------------------


async def connect_call(scene: Scene, row: GoldenRow) -> Answer:
    near, condition = scene.near, row.condition
    sink = Deaf(takes="full ring" not in condition)
    if "listener ring" not in condition and "missing" not in condition:
        ring = await scene.far.rings.bind(PORT, NEAR, 48, sink)
        if not sink.takes:
            fill = Outgoing(Address(PORT, FAR), 1, (bytes(16),), 0)
            assert await scene.calls.sendv(*fill) == 16
    if "hypercall fails" in condition:
        scene.refuse_sends(condition)
    if row.state == "IDLE" and "peer domain missing" in condition:
        error = await error_of(connect(near, Address(PORT, 99)))
        return answer("IDLE", "-", "error", error=error)
    before = scene.near_rings()
    core = connecting(0x80000000, Address(PORT, FAR), 77)
    socket = StreamConnection(near, core)
    bound = await near.rings.bind(core.port, FAR, 4096, ConnectorSink(socket, core))
    if row.state == "BOUND":
        before = scene.near_rings()
    scene.mark()
    opening = asyncio.create_task(socket.open(5.0))
    await asyncio.sleep(1)
    if row.state in ("CONNECTED", "DISCONNECTED"):
        scene.mark()
        if "ACK came" in condition or "RST came" in condition:
            flag = Flag.ACK if "ACK" in condition else Flag.RST
            reply = HEADER.pack(flag, 77)
            await scene.far_calls.sendv(Address(core.port, NEAR), PORT, (reply,), MESSAGE_TYPE_STREAM)
        else:
            assert blocked(opening)
            await asyncio.sleep(3.9)
            assert blocked(opening)
            await asyncio.sleep(0.2)
            scene.mark()  # the RST that withdraws the SYN belongs to the timeout's own row
        await asyncio.sleep(0.1)
    effects = {"register-ring"} if scene.near_rings() > before and row.state == "IDLE" else set()
    if blocked(opening):
        effects.add("block")
        if not scene.calls.sent:
            assert len(near.controls) == 1
            effects.add("queue-syn-locally")
        error = 0
    else:
        error = await error_of(opening)
        effects = {"error"} if error else {"return-0"}
    result = answer(state_of(socket), scene.sent(), *effects, error=error)
    await cancel(opening)
    await socket.close()
    await near.rings.unbind(bound)
    assert row.state == "IDLE" or "full ring" not in condition or ring.held
    return result


CONNECT_ROWS = driven(lambda row: row.machine == "api" and row.event == "connect")


@pytest.mark.parametrize("row", CONNECT_ROWS, ids=str)
def test_connect(row: GoldenRow) -> None:
    """What a connect call does, meets and returns."""
    play(row, connect_call)


@pytest.mark.parametrize("row", driven(lambda row: row.event == "timeout"), ids=str)
def test_timeout(row: GoldenRow) -> None:
    """The step that the 5 s timer makes.  That it is 5 s is seen in the row `timer fired` of connect."""
    (step,) = [r for r in ROWS if (r.machine, r.event) == (Machine.CONNECTOR, Event.TIMEOUT)]
    assert step.state is State[row.state]
    sends = "+".join(action.name.removeprefix("SEND_") for action in step.actions if action.name.startswith("SEND_"))
    effects = ["set-pending-error"] if any(action.name == "FAIL" for action in step.actions) else []
    assert answer(step.new_state.name, sends or "-", *effects, error=step.error) == expected(row)


# -- listen and accept ---------------------------------------------------------------------------------------


async def listen_call(scene: Scene, row: GoldenRow) -> Answer:
    listener = await listen(scene.near, PORT, partner=FAR)
    return answer(listener._core.state.name, "-")


async def accept_call(scene: Scene, row: GoldenRow) -> Answer:
    listener = await listen(scene.near, PORT, partner=FAR)
    syns = 0 if "queue empty" in row.condition else 5 if "was full" in row.condition else 1
    for conid in range(syns):
        syn = HEADER.pack(Flag.SYN, conid)
        await scene.far_calls.sendv(Address(PORT, NEAR), 9, (syn,), MESSAGE_TYPE_STREAM)
    await scene.far.rings.bind(9, NEAR, 4096, Deaf())
    await asyncio.sleep(0.1)
    scene.mark()
    before, queued = scene.near_rings(), len(listener._core.pending)
    accepting = asyncio.create_task(listener.accept())
    await asyncio.sleep(0.1)
    effects = set()
    if blocked(accepting):
        effects.add("block")
    else:
        assert state_of(await accepting) == "ACCEPTED"
        assert not next(iter(scene.near.rings)).held
        if len(listener._core.pending) == queued - 1:
            effects.add("dequeue-syn")
        if scene.near_rings() == before:
            effects.add("share-ring")
    result = answer(listener._core.state.name, scene.sent(), *effects)
    await cancel(accepting)
    return result


LISTEN_ROWS = driven(lambda row: row.machine == "api" and row.event == "listen")
ACCEPT_ROWS = driven(lambda row: row.machine == "api" and row.event == "accept")


@pytest.mark.parametrize("row", LISTEN_ROWS, ids=str)
def test_listen(row: GoldenRow) -> None:
    """A listener listens."""
    play(row, listen_call)


@pytest.mark.parametrize("row", ACCEPT_ROWS, ids=str)
def test_accept(row: GoldenRow) -> None:
    """accept answers the oldest SYN, or waits.  (Here of a listener for one partner, whose ring is that
    peer's alone.)
    """
    play(row, accept_call)


# -- stream send ---------------------------------------------------------------------------------------------


async def send_call(scene: Scene, row: GoldenRow) -> Answer:
    condition = row.condition
    if row.state in ("BOUND", "CONNECTING"):
        (step,) = [
            r for r in ROWS if (r.machine, r.state, r.event) == (Machine.CONNECTOR, State[row.state], Event.SEND)
        ]
        return answer(step.new_state.name, "-", "error", error=step.error)
    size, far_ring, near_ring = 1, 65536, 65536
    if "1..32748" in condition:
        size = FRAME_LIMIT
        far_ring = DEFAULT_RING_LEN
    elif "32749..65496" in condition:
        size, far_ring = 2 * FRAME_LIMIT, DEFAULT_RING_LEN
    elif "peer ring length 32784" in condition:
        size, far_ring = FRAME_LIMIT, 32784
    elif "own ring length" in condition:
        size, near_ring = 1000, 1000 // 16 * 16
    state = "CONNECTED" if row.state == "DISCONNECTED" else row.state
    mine, other = await scene.pair(state, near_ring=near_ring, far_ring=far_ring)
    if row.state == "DISCONNECTED":
        await other.close()
        await asyncio.sleep(0.1)
        assert state_of(mine) == "DISCONNECTED"
    full = "full" in condition or "asleep" in condition
    if full:
        scene.freeze_far()
        filler = asyncio.create_task(mine.send(bytes(100_000)))
        await asyncio.sleep(0.1)
        assert blocked(filler)
        await cancel(filler)
        scene.mark()
        sending = asyncio.create_task(mine.send(bytes(20_000)))
    else:
        scene.mark()
        sending = asyncio.create_task(mine.send(bytes(size)))
    await asyncio.sleep(0.1)
    effects: set[str] = set()
    if "asleep" in condition:
        assert blocked(sending)
        scene.mark()
        await provoke(scene, mine, other, condition)
        await asyncio.sleep(2)
    if blocked(sending):
        effects.add("block")
        result = answer(state_of(mine), scene.sent(), *effects)
    else:
        error = await error_of(sending)
        sends = scene.sent()
        if error:
            effects.add("error")
        elif "asleep" in condition:
            effects |= {"wake-writers", "resend"}
            assert sends.startswith("DATA")
            sends = "DATA"  # as many as it takes: the sleeping send is long
        else:
            effects.add("return-all")
            if sends.count("DATA") > 1 and "own ring" not in condition and far_ring == DEFAULT_RING_LEN:
                effects.add("split")
        result = answer(state_of(mine), sends, *effects, error=error)
    await cancel(sending)
    return result


async def provoke(scene: Scene, mine: StreamConnection, other: StreamConnection, condition: str) -> None:
    """What happens to a sender that sleeps for lack of room."""
    if "SUFFICIENT" in condition:
        scene.wake_far()
    elif "RST came" in condition:
        rst = HEADER.pack(Flag.RST, core_of(mine).conid)
        await scene.far_calls.sendv(Address(mine.port, NEAR), mine.peer.port, (rst,), MESSAGE_TYPE_STREAM)
    else:
        scene.rig.kill(FAR)
    await asyncio.sleep(0)


SEND_ROWS = driven(lambda row: row.machine == "api" and row.event == "send")


@pytest.mark.parametrize("row", SEND_ROWS, ids=str)
def test_send(row: GoldenRow) -> None:
    """What a send call does, meets and returns."""
    play(row, send_call)


# -- stream receive ------------------------------------------------------------------------------------------


async def recv_call(scene: Scene, row: GoldenRow) -> Answer:
    condition = row.condition
    if row.state == "BOUND":
        (step,) = [r for r in ROWS if (r.machine, r.state, r.event) == (Machine.CONNECTOR, State.BOUND, Event.RECEIVE)]
        return answer(step.new_state.name, "-", "error", error=step.error)
    state = "CONNECTED" if row.state == "DISCONNECTED" else row.state
    mine, other = await scene.pair(state)
    core = core_of(mine)
    effects: set[str] = set()
    if "queue was full" in condition:
        core.budget = 100
    if "queue empty" not in condition:
        await other.send(b"a" * 60)
        await other.send(b"b" * 60)
    if row.state == "DISCONNECTED":
        await other.close()
    await asyncio.sleep(0.1)
    assert state_of(mine) == row.state
    notifies = scene.calls.counts["notify"]
    scene.mark()
    if "spans two" in condition or "WAITALL" in condition:
        count = 100 if "spans" in condition else 200
        receiving = asyncio.create_task(mine.receive_exactly(count))
    else:
        receiving = asyncio.create_task(mine.receive(60))
    await asyncio.sleep(0.1)
    if blocked(receiving):
        effects.add("block")
        if "WAITALL" in condition:
            assert not core.inbox
            effects.add("dequeue-bytes")
    else:
        data = await receiving
        if not data:
            effects.add("return-0-eof")
        elif len(data) > 60:
            effects.add("dequeue-bytes-across-frames")
        else:
            effects.add("dequeue-bytes")
    if "queue was full" in condition:
        assert list(core.inbox) == [b"b" * 60]
        effects.add("rx-restart")
        if scene.calls.counts["notify"] > notifies:
            effects.add("null-notify")
    result = answer(state_of(mine), scene.sent(), *effects)
    await cancel(receiving)
    return result


RECV_ROWS = driven(lambda row: row.machine == "api" and row.event == "recv")


@pytest.mark.parametrize("row", RECV_ROWS, ids=str)
def test_recv(row: GoldenRow) -> None:
    """What a receive call returns."""
    play(row, recv_call)


# -- close ---------------------------------------------------------------------------------------------------


async def close_call(scene: Scene, row: GoldenRow) -> Answer:
    condition = row.condition
    if row.machine == "datagram-api":
        socket = await datagram(scene.near, PORT, partner=FAR)
        socket.connect(Address(PORT, FAR) if row.state == "CONNECTED" else None)
        await socket.close()
        return answer("closed", "-", "keep-ring" if scene.near_rings() else "unregister-ring")
    if row.state == "LISTENING":
        return await close_listener(scene, row)
    if row.state == "BOUND":
        core = connecting(0x80000000, Address(PORT, FAR), 77)
        bound_socket = StreamConnection(scene.near, core)
        ring = await scene.near.rings.bind(core.port, FAR, 4096, ConnectorSink(bound_socket, core))
        bound_socket.attach((ring,), lambda: None, lambda: scene.near.rings.unbind(ring))
        scene.mark()
        await bound_socket.close()
        return answer("closed", scene.sent(), "keep-ring" if scene.near_rings() else "unregister-ring")
    if row.state == "CONNECTING":
        await scene.far.rings.bind(PORT, NEAR, 4096, Deaf())
        opening = asyncio.create_task(connect(scene.near, Address(PORT, FAR)))
        await asyncio.sleep(0.1)
        scene.mark()
        await cancel(opening)
        return answer("closed", scene.sent(), "keep-ring" if scene.near_rings() else "unregister-ring")
    accepted = row.state == "ACCEPTED" or "accepted fd" in condition
    mine, other = await scene.pair("ACCEPTED" if accepted else "CONNECTED")
    if accepted and "last user" in condition:
        await scene.listener.close()
    if row.state == "DISCONNECTED":
        await other.close()
        await asyncio.sleep(0.1)
        assert state_of(mine) == "DISCONNECTED"
    scene.mark()
    await mine.close()
    assert core_of(mine).state is State.CLOSED
    return answer("closed", scene.sent(), "keep-ring" if scene.near_rings() else "unregister-ring")


async def close_listener(scene: Scene, row: GoldenRow) -> Answer:
    listener = await listen(scene.near, PORT, partner=FAR)
    await scene.far.rings.bind(9, NEAR, 4096, Deaf())
    syns = 0 if row.condition.startswith("no SYN") else int(row.condition[0])
    accepts = 0 if "no accepted" in row.condition else 1
    for conid in range(syns + accepts):
        syn = HEADER.pack(Flag.SYN, conid)
        await scene.far_calls.sendv(Address(PORT, NEAR), 9, (syn,), MESSAGE_TYPE_STREAM)
    await asyncio.sleep(0.1)
    for _ in range(accepts):
        await listener.accept()
    scene.mark()
    await listener.close()
    return answer("closed", scene.sent(), "keep-ring" if scene.near_rings() else "unregister-ring")


CLOSE_ROWS = driven(lambda row: row.event == "close")


@pytest.mark.parametrize("row", CLOSE_ROWS, ids=str)
def test_close(row: GoldenRow) -> None:
    """Who is told, and whether the ring stays."""
    play(row, close_call)


def test_every_row_of_a_stream_call_is_driven() -> None:
    """No row of the table falls between the tests of this module."""
    here = [BIND_ROWS, CONNECT_ROWS, LISTEN_ROWS, ACCEPT_ROWS, SEND_ROWS, RECV_ROWS, CLOSE_ROWS]
    rows = {row for group in here for row in group}
    missing = driven(lambda row: row.machine == "api" and row not in rows and row.event != "timeout")
    assert missing == []
