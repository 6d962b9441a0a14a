"""A node's link over real sockets: the edge-triggered descriptor, leaving, and outliving a broker."""

from __future__ import annotations

import asyncio
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker import client
from broker.client import JoinTimeout, ZmqLink
from broker.frames import LARGE, Lane
from broker.member import MemberState
from tests.broker.sockets import Net, listen, net_in, pump_until

CONTROL, REQUEST, EVENT = Lane
pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def net(short_tmp_path: Path) -> Iterator[Net]:
    with net_in(short_tmp_path) as net:
        yield net


def test_no_broker(net: Net) -> None:
    """JoinTimeout names the endpoint; what was sent meanwhile is not lost when a broker comes."""
    link = net.link()
    link.send(CONTROL, ["tell", "app", ["early"]])
    before = time.monotonic()
    with pytest.raises(JoinTimeout, match=net.endpoint):
        link.wait_joined(0.2)
    assert 0.2 <= time.monotonic() - before < 2
    assert link.member.state is MemberState.OUTSIDE, "no hello lies inside ZeroMQ, to reach a broker much later"
    heard = listen(link)
    net.server(epoch=3)
    assert link.wait_joined(8) == 3
    pump_until(lambda: heard == [["told", "app", ["early"]]], link)


def loop_of(link: ZmqLink, done: Any) -> None:
    """A node's main loop as its documentation says, without any timeout that could hide a lost edge."""
    with select.epoll() as epoll:
        epoll.register(link.fileno(), select.EPOLLIN)
        deadline = time.monotonic() + 8
        while not done():
            assert time.monotonic() < deadline
            if link.pump():
                continue
            if not done():
                assert epoll.poll(deadline - time.monotonic()), "the descriptor slept through a message"


def test_a_loop_on_the_descriptor_loses_no_edge(net: Net) -> None:
    """Ping-pong of a node with itself, each message sent from a callback: every arrival wakes the loop."""
    net.server()
    link = net.joined("app")
    count = 0

    def bounce(_lane: Lane, _record: object, _payload: object) -> None:
        nonlocal count
        count += 1
        link.send(CONTROL, ["tell", "app", ["ping", count]])
        if count % 3 == 0:
            assert not link.flush(), "inside a callback the pump around it flushes"

    link.on_record = bounce
    link.send(CONTROL, ["tell", "app", ["ping", 0]])
    loop_of(link, lambda: count >= 500)


def test_joining_needs_only_the_descriptor(net: Net) -> None:
    """A link made before its broker joins by edges alone."""
    link = net.link()
    assert not link.pump()
    net.server()
    loop_of(link, lambda: link.joined)


def test_flush_says_when_it_swallowed_an_edge(net: Net) -> None:
    """A send in the middle of a turn may consume the edge of an arrival: flush returns True, or the edge is there."""
    net.server()
    link = net.joined("app")
    heard = listen(link)
    for n in range(50):
        link.send(CONTROL, ["tell", "app", ["x", n]])
        more = link.flush()
        deadline = time.monotonic() + 8
        while len(heard) <= n:
            assert time.monotonic() < deadline
            time.sleep(0.002)
            link.send(CONTROL, ["heartbeat", n])
            more = link.flush() or more
            if more or select.select([link.fileno()], [], [], 0)[0]:
                more = link.pump()


class Reluctant:
    """A socket that refuses one frame and is writable again by the time its events are read."""

    closed = False

    def __init__(self) -> None:
        self.answers = [zmq.Again()]
        self.sent = 0

    def recv(self, _flags: int, copy: bool = True) -> bytes:
        raise zmq.Again

    def send(self, _part: object, flags: int) -> None:
        if self.answers:
            raise self.answers.pop()
        self.sent += not flags & int(zmq.SNDMORE)

    def getsockopt(self, _option: int) -> int:
        return zmq.POLLOUT


def test_a_socket_that_becomes_writable_between_two_looks(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read of EVENTS swallows that edge too: pump asks to be called again, and not once more than needed."""
    link = net.link()
    socket = Reluctant()
    with monkeypatch.context() as patch:
        patch.setattr(link, "_socket", socket)
        assert (link.pump(), socket.sent) == (True, 0)
        assert (link.pump(), socket.sent) == (False, 1)
        assert (link.pump(), socket.sent) == (False, 1)


def test_a_turn_is_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most TURN frames a pump; True says that more is there, so a flood starves nobody else in the loop."""
    net.server()
    monkeypatch.setattr(client, "TURN", 1)
    link = net.joined("app")
    other = net.joined("other")
    heard = listen(link)
    for n in range(5):
        other.send(CONTROL, ["tell", "app", ["x", n]])
        other.flush()
        assert other.drain(8)
    pump_until(lambda: link.pump(), other)
    before = len(heard)
    assert before < 5
    loop_of(link, lambda: len(heard) == 5)


def test_asyncio(net: Net) -> None:
    """In an asyncio loop: a reader on the descriptor that pumps until nothing is left."""
    net.server()
    link = net.joined("app")

    def turn() -> None:
        while link.pump():
            pass

    async def talk() -> None:
        arrived = asyncio.Event()
        link.on_record = lambda _lane, _record, _payload: arrived.set()
        loop = asyncio.get_running_loop()
        loop.add_reader(link.fileno(), turn)
        async with asyncio.timeout(8):
            for n in range(100):
                link.send(CONTROL, ["tell", "app", ["x", n]])
                if link.flush():
                    loop.call_soon(turn)
                await arrived.wait()
                arrived.clear()
        loop.remove_reader(link.fileno())

    asyncio.run(talk())


def test_leave(net: Net) -> None:
    """Exit is acknowledged before the socket closes, so results said before it are with the broker too."""
    server = net.server()
    agent, app = net.joined("agent", "agent"), net.joined("app")
    heard = listen(agent)
    agent.send(CONTROL, ["subscribe"])
    agent.drain(8)
    app.send(CONTROL, ["event", "result", "app", "{}"])
    app.send(EVENT, ["event", "telemetry", 1])
    assert app.leave(3, "program raised")
    assert server.core.nodes["app"].record == ["node", "app", "guest", "exited", "exit 3: program raised"]
    pump_until(lambda: heard[-1][3] == "exited", agent)
    said = [list(record) for record in heard if record[1] == "app"]
    assert ["event", "app", "telemetry", 1] in said
    assert said.index(["event", "app", "result", "app", "{}"]) < len(said) - 1
    app.close()
    assert not app.pump()
    assert not app.flush()


def test_leave_without_a_broker_is_bounded(net: Net) -> None:
    """Nobody acknowledges: False after the time given."""
    before = time.monotonic()
    assert not net.link().leave(0, "done", timeout=0.2)
    assert time.monotonic() - before < 2


def test_silent_ns(net: Net) -> None:
    """A living broker is heard at every heartbeat; before the welcome nobody was."""
    link = net.link()
    assert link.silent_ns() is None
    net.server()
    link.wait_joined(8)
    time.sleep(0.1)
    silent = link.silent_ns()
    assert silent is not None
    assert silent >= 100_000_000
    link.heartbeat()
    pump_until(lambda: (link.silent_ns() or 0) < 100_000_000, link)


def test_nodes_outlive_their_broker(net: Net) -> None:
    """SIGKILL of the broker, a new one of the next epoch: nodes find it by themselves, with state, in order."""
    process = net.broker_process(epoch=1)
    agent, app = net.joined("agent", "agent"), net.joined("app")
    heard = listen(agent)
    events: list[tuple[str, object]] = []
    app.member.on_disconnected = lambda reason: events.append(("disconnected", reason))
    app.member.on_welcome = lambda epoch: events.append(("welcome", epoch))
    agent.send(CONTROL, ["subscribe"])
    app.send(CONTROL, ["ready"])
    app.drain(8)
    process.kill()
    process.wait()
    app.send(CONTROL, ["event", "result", "app", "{}"])
    for _ in range(3):
        app.heartbeat()
        app.pump()
    heard.clear()
    net.broker_process(epoch=2)

    def both_back() -> bool:
        agent.heartbeat()
        app.heartbeat()
        return ["event", "app", "result", "app", "{}"] in heard

    pump_until(both_back, agent, app)
    assert (agent.member.epoch, app.member.epoch) == (2, 2)
    assert [event[0] for event in events] == ["disconnected", "welcome"]
    pump_until(lambda: any(record[:4] == ["node", "app", "guest", "ready"] for record in heard), agent, app)


def test_a_stopped_broker_delays_and_loses_nothing(net: Net) -> None:
    """SIGSTOP, records, SIGCONT: the session is the same, everything arrives in order."""
    process = net.broker_process()
    a, b = net.joined("a"), net.joined("b")
    heard = listen(b)
    disconnected: list[str] = []
    a.member.on_disconnected = disconnected.append
    process.send_signal(signal.SIGSTOP)
    for n in range(1000):
        assert a.send(CONTROL, ["tell", "b", ["x", n]])
        a.pump()
    process.send_signal(signal.SIGCONT)
    pump_until(lambda: len(heard) == 1000, a, b)
    assert [record[2][1] for record in heard] == list(range(1000))
    assert disconnected == []


def test_a_large_part_is_not_copied_on_its_way_through() -> None:
    """What was received as a part and leaves as it is shares its memory; what was cut out of one is sent right."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://large")
        other.connect("inproc://large")
        large = bytes(range(256)) * (LARGE // 256)
        client.send_parts(one, [b"head", large])
        head, part = client.receive_parts(other, 4)
        assert (head, type(part)) == (b"head", memoryview)
        assert isinstance(part, memoryview)
        assert client._uncopied(part[:]) is part.obj
        assert client._uncopied(part[1:]) is not part.obj
        client.send_parts(other, [b"head", part])
        client.send_parts(other, [part[1:]])
        client.send_parts(other, [large[1:]])
        received = [client.receive_parts(one, 4) for _ in range(3)]
        assert [[bytes(each) for each in parts] for parts in received] == [[b"head", large], [large[1:]], [large[1:]]]
        assert [type(parts[-1]) for parts in received] == [memoryview, bytes, bytes]
        assert bytes(part) == large, "sending it did not take it away"
