"""The sockets and the driver core against the golden table: calls, datagrams, the interrupt pass and the
notify pass.

Source: tests/golden/stream.csv, written from the specification of the Linux Argo driver without sight of
the code. Each row is brought about on a real Argo core; what is compared is the state, the frames that went
out, the effects that can be seen, and the error.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from guest_node.drivers.connector import ConnectorSink, connect
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dgram import MESSAGE_TYPE_DGRAM, DatagramSocket, datagram
from guest_node.drivers.listener import StreamListener, listen
from guest_node.drivers.rings import DriverRing
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
from hmx.argo.abi import DOMID_ANY, MAX_NOTIFY_ENTRIES, RING_HEADER_SIZE, RX_PTR, TX_PTR, Address, NotifyFlag, Op
from hmx.argo.calls import Outgoing, SpaceAnswer, SpaceQuery
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate
from tests.guest_node.drivers.golden_stream import Answer, GoldenRow, driven, expected

PORT = 80
NEAR, FAR = 1, 2
Observe = Callable[[GoldenRow], Awaitable[Answer]]


class Scene:
    """Two guests with drivers, ours and the peer's; `mark()` begins to record what we send."""

    def __init__(self, **options: Any) -> None:
        self.rig = Rig(**options)
        self.near = self.rig.driver(NEAR)
        self.far = self.rig.driver(FAR)
        self.calls: RigCalls = self.rig.guests[NEAR]
        self.far_calls: RigCalls = self.rig.guests[FAR]

    async def start(self) -> None:
        await self.near.start()
        await self.far.start()

    async def stop(self) -> None:
        for driver in (self.near, self.far):
            calls = driver.calls
            assert isinstance(calls, RigCalls)
            if not calls.dead:
                await driver.close()

    def mark(self) -> None:
        self.calls.sent = []

    def sent(self) -> str:
        names = []
        for _, _, data, message_type in self.calls.sent or []:
            if message_type == MESSAGE_TYPE_STREAM:
                flags, _ = HEADER.unpack_from(data)
                names.append(str(Flag(flags).name) if flags else "DATA")
            else:
                names.append("DATA")
        return "+".join(names) or "-"

    def near_rings(self) -> int:
        argo = self.calls.domain.argo
        return len(argo.rings) if argo is not None else 0

    async def pair(
        self, state: str, *, near_ring: int = 65536, far_ring: int = 65536
    ) -> tuple[StreamConnection, StreamConnection]:
        """A connection; our end is the connector's or the accepted one."""
        if state == "ACCEPTED":
            server, client, lens = self.near, self.far, (near_ring, far_ring)
        else:
            server, client, lens = self.far, self.near, (far_ring, near_ring)
        domid = NEAR if state == "ACCEPTED" else FAR
        other = FAR if state == "ACCEPTED" else NEAR
        self.listener = await listen(server, PORT, partner=other, ring_len=lens[0])
        accepting = asyncio.create_task(self.listener.accept())
        connected = await connect(client, Address(PORT, domid), ring_len=lens[1])
        accepted = await accepting
        return (accepted, connected) if state == "ACCEPTED" else (connected, accepted)

    def refuse_sends(self, errno: int) -> None:
        """From now on the hypervisor answers our sends with `errno`."""
        self.calls.refuse = lambda op, _: -errno if op is Op.SENDV else None

    def freeze_far(self) -> None:
        """The peer no longer reacts: its rings fill."""
        self.far_calls.handlers.clear()

    def wake_far(self) -> None:
        self.far_calls.handlers.append(self.far._virq)
        self.far._virq()


def state_of(socket: StreamConnection) -> str:
    return socket._core.state.name


def core_of(socket: StreamConnection) -> Any:
    return socket._core


def play(row: GoldenRow, observe: Callable[[Scene, GoldenRow], Awaitable[Answer]], **options: Any) -> None:
    """Bring `row` about and compare."""

    async def main() -> None:
        scene = Scene(**options)
        await scene.start()
        answer = await observe(scene, row)
        assert answer == expected(row)
        await scene.stop()

    simulate(main, limit=60)


def answer(state: str, sends: str, *effects: str, error: int = 0) -> Answer:
    return Answer(state, sends, frozenset(effects), Errno(error).name if error else "-")


async def error_of(call: Awaitable[Any]) -> int:
    try:
        await call
    except OSError as exc:
        return exc.errno or -1
    return 0


def blocked(task: asyncio.Task[Any]) -> bool:
    return not task.done()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


class Deaf:
    """A sink that takes what comes and does nothing; or takes nothing."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.frames: list[tuple[int, int, bytes]] = []

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        if self.takes:
            self.frames.append((source_port, source_domid, bytes(payload)))
        return self.takes

    def lost(self, ring: DriverRing) -> None:
        pass

    def broken(self, cause: BaseException) -> None:
        pass


async def connect_call(scene: Scene, row: GoldenRow) -> Answer:
    near, condition = scene.near, row.condition
    sink = Deaf(takes="full ring" not in condition)
    if "listener ring" not in condition and "missing" not in condition:
        ring = await scene.far.rings.bind(PORT, NEAR, 48, sink)
        if not sink.takes:
            fill = Outgoing(Address(PORT, FAR), 1, (bytes(16),), 0)
            assert await scene.calls.sendv(*fill) == 16
    if "hypercall fails" in condition:
        for words, errno in (
            ("peer domain missing", Errno.ESRCH),
            ("(SILO)", Errno.EPERM),
            ("(FLASK)", Errno.EACCES),
            ("wake-up queue", Errno.EBUSY),
            ("own domain without", Errno.ENODEV),
        ):
            if words in condition:
                scene.refuse_sends(errno)
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


# -- datagrams -----------------------------------------------------------------------------------------------


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
    for words, errno in (
        ("no ring at destination", Errno.ECONNREFUSED),
        ("peer domain missing", Errno.ESRCH),
        ("(SILO)", Errno.EPERM),
        ("(FLASK)", Errno.EACCES),
        ("wake-up queue", Errno.EBUSY),
        ("own domain without", Errno.ENODEV),
    ):
        if words in condition:
            scene.refuse_sends(errno)
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


# -- the interrupt pass --------------------------------------------------------------------------------------


async def rx_pass(scene: Scene, row: GoldenRow) -> Answer:
    if row.state == "DGRAM":
        socket = await datagram(scene.near, PORT, partner=FAR)
        port = PORT
        socket._reader = asyncio.get_running_loop().create_future()
    else:
        mine, other = await scene.pair("CONNECTED" if row.state == "CONNECTOR" else "ACCEPTED")
        port = mine.port
        if "cannot queue" in row.condition:
            core_of(mine).budget = 100
        if row.event == "interrupt":
            for _ in range(3):
                await other.send(bytes(60))
    (ring,) = scene.near.rings
    if row.event == "corrupt":
        window, tx = ring.memory.window, ring.memory.window.load32(TX_PTR)
        window.write(RING_HEADER_SIZE + tx, b"\x05\0\0\0" + bytes(12))  # a message shorter than its header
        window.store32(TX_PTR, tx + 64)
        scene.near._virq()
        await asyncio.sleep(0.1)
        if row.state == "DGRAM":
            # the pump leaves datagrams to their reader, and the reader recovers
            assert socket.receive_now() is None
        same = window.load32(RX_PTR) == window.load32(TX_PTR) == tx + 64
        return answer(row.state, "-", *(["rx-set-to-tx"] if same else []))
    if row.state == "DGRAM":
        await scene.far_calls.sendv(Address(port, NEAR), 9, (b"x",), MESSAGE_TYPE_DGRAM)
    await asyncio.sleep(0.1)
    effects = set()
    if not ring.consumer.available():
        effects.add("process-until-empty")
    else:
        effects.add("leave-in-ring")
        if row.state == "DGRAM":
            assert socket._reader is not None
            effects |= {"wake-reader"} if socket._reader.done() else set()
        elif ring.held:
            effects.add("stop-ring-pass")
    return answer(row.state, "-", *effects)


@pytest.mark.parametrize("row", driven(lambda row: row.machine == "rx-pass"), ids=str)
def test_rx_pass(row: GoldenRow) -> None:
    """What the pass over the rings does to each kind of ring."""
    play(row, rx_pass)


# -- the notify pass -----------------------------------------------------------------------------------------


class Scripted(RigCalls):
    """Calls whose answers are written down: each send and each query takes the next."""

    results: list[int]
    flags: list[int]
    asked: list[list[SpaceQuery]]

    async def sendv_linked(self, messages: Any) -> list[int]:
        outcome = []
        for message in messages:
            outcome.append(self.results.pop(0))
            if outcome[-1] >= 0:
                assert self.sent is not None
                self.sent.append((message.dst, message.src_port, bytes(message.buffers[0]), message.message_type))
        return outcome

    async def notify(self, entries: Any) -> tuple[int, list[SpaceAnswer]]:
        self.asked.append(list(entries))
        assert len(entries) <= MAX_NOTIFY_ENTRIES
        return 0, [SpaceAnswer(self.flags.pop(0) if self.flags else 0, 1000) for _ in entries]


FLAG_WORDS = {
    "EXISTS and SUFFICIENT": NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT,
    "EXISTS without SUFFICIENT": NotifyFlag.EXISTS,
    "not EXISTS": NotifyFlag(0),
}


@pytest.mark.parametrize("row", driven(lambda row: row.machine == "notify-pass"), ids=str)
def test_notify_pass(row: GoldenRow) -> None:
    """What becomes of those who wait for room when the hypervisor answers."""

    async def main() -> None:
        rig = Rig()
        calls = Scripted(rig, NEAR, 8 << 20)
        calls.results, calls.flags, calls.asked, calls.sent = [], [], [], []
        driver = ArgoDriver(calls, random.Random(1))
        await driver.start()
        await asyncio.sleep(0.01)
        if row.state == "inline":
            observed = await inline(calls, driver, row)
        elif row.state == "waiter":
            observed = await waiter(calls, driver, row)
        elif "over 256" in row.condition:
            observed = await many(calls, driver)
        else:
            driver.rings.freed = True  # something was consumed, nobody waits
            driver.kick()
            await asyncio.sleep(0.01)
            observed = answer("-", "-", *(["notify-with-0-entries"] if calls.asked == [[]] else []))
        assert observed == expected(row)

    simulate(main, limit=10)


async def inline(calls: Scripted, driver: ArgoDriver, row: GoldenRow) -> Answer:
    words = [word.strip() for word in row.condition.split(";")]
    flag = Flag[words[0].removeprefix("pending ")]
    to = Address(PORT, FAR)
    calls.results = [-Errno.EAGAIN]
    driver.controls.post(Outgoing(to, 9, (HEADER.pack(flag, 1),), MESSAGE_TYPE_STREAM), lambda errno, waited: None)
    await asyncio.sleep(0.01)
    assert not calls.results
    calls.flags = [FLAG_WORDS[words[1]]]
    if len(words) > 2:
        calls.results = [{"send works": 8, "send gives EAGAIN": -Errno.EAGAIN}.get(words[2], -Errno.EPERM)]
    driver._virq()
    await asyncio.sleep(0.01)
    assert not calls.results
    assert calls.asked == [[SpaceQuery(to, 8)]]
    kept = len(driver.controls) == 1
    sent = "+".join(str(Flag(HEADER.unpack(data)[0]).name) for _, _, data, _ in calls.sent or []) or "-"
    return answer("-", sent, "keep-entry" if kept else "drop-entry")


async def waiter(calls: Scripted, driver: ArgoDriver, row: GoldenRow) -> Answer:
    calls.flags = [FLAG_WORDS[row.condition]]
    future = driver.want_space(Address(PORT, FAR), 100)
    await asyncio.sleep(0.01)
    if not future.done():
        assert len(driver.wakeups) == 1
        return answer("-", "-", "keep-entry")
    assert len(driver.wakeups) == 0
    return answer("-", "-", "drop-entry", "wake-writers")


async def many(calls: Scripted, driver: ArgoDriver) -> Answer:
    calls.flags = [FLAG_WORDS["EXISTS and SUFFICIENT"]] * 600
    futures = [driver.want_space(Address(port, FAR), 100) for port in range(600)]
    await asyncio.wait(futures)
    assert sorted(len(entries) for entries in calls.asked) == [88, 256, 256]
    assert not len(driver.wakeups)
    return answer("-", "-", "nothing-processed" if not calls.asked else "all-processed")


def test_every_row_of_these_machines_is_driven() -> None:
    """No row of the table falls between the tests of this module."""
    here = [BIND_ROWS, CONNECT_ROWS, LISTEN_ROWS, ACCEPT_ROWS, SEND_ROWS, RECV_ROWS, CLOSE_ROWS, DATAGRAM_ROWS]
    rows = {row for group in here for row in group}
    missing = driven(lambda row: row.machine in ("api", "datagram-api") and row not in rows and row.event != "timeout")
    assert missing == []
