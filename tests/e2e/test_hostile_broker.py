"""Hostile peers of a broker process, next to two nodes that tell each other things (contracts 7).

What the nodes say arrives, all of it, once and in order; the broker's memory holds; it goes down as ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker.client import ZmqLink
from broker.frames import MAX_PAYLOAD, Buffer, Lane
from broker.server import HIGH_WATER, TURN, TURN_BYTES, Server
from broker.session import SendResult
from tests.broker.sockets import Net, net_in, pump_until
from tests.broker.support import TOKEN
from tests.e2e.broker_attacks import ATTACKS

pytestmark = pytest.mark.timeout(60)
TELLS = 400
SECONDS = 1.5
"""At least so long the nodes speak under attack."""
GROWTH = 64 << 20
"""Bytes that a hostile peer may make the broker hold."""
GROWTH_OF_LARGE_PARTS = 256 << 20
"""The same for one that sends parts of 16 MiB: the server reads a few of them ahead (broker.server.READ_AHEAD)."""
HOSTILE = "import sys; from tests.e2e.broker_attacks import main; main(*sys.argv[1:])"


@pytest.fixture
def net(short_tmp_path: Path) -> Iterator[Net]:
    with net_in(short_tmp_path) as net:
        yield net


def memory(pid: int, what: str) -> int:
    """VmRSS, what a process holds, or VmHWM, the most that it ever held; in bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


class Talk:
    """`a` tells `b` numbered things with payload, and `b` tells them back."""

    def __init__(self, net: Net) -> None:
        self.a, self.b = net.joined("a"), net.joined("b", "hypervisor")
        self.returned: list[int] = []
        self.hostile: list[int] = []
        self.said = 0
        self.a.on_record = self._at_a
        self.b.on_record = self._at_b

    def _at_a(self, _lane: Lane, record: Any, payload: Buffer) -> None:
        match [*record]:
            case ["told", "b", ["echo", int(n)]] if bytes(payload) == b"%d" % n:
                self.returned.append(n)
            case ["busy", "b", _]:  # b's queue is full of what others told it: said again, as a node does
                self._again([*record][2][1])

    def _at_b(self, _lane: Lane, record: Any, payload: Buffer) -> None:
        match [*record]:
            case ["told", "a", ["x", n]]:
                self.b.send(Lane.CONTROL, ["tell", "a", ["echo", n]], bytes(payload))
            case ["told", "hostile", ["hostile", int(n)]]:
                self.hostile.append(n)

    def _again(self, n: int) -> None:
        self.a.send(Lane.CONTROL, ["tell", "b", ["x", n]], b"%d" % n)

    def exchange(self, count: int) -> None:
        """So many more round trips, some under way at once."""
        end = self.said + count
        while self.said < end:
            burst = min(8, end - self.said)
            for _ in range(burst):
                self._again(self.said)
                self.said += 1
            pump_until(lambda: len(self.returned) >= self.said, self.a, self.b)
        assert sorted(self.returned) == [*range(self.said)], "each once"


def attacked(net: Net, attack: str, tells: int = TELLS) -> Talk:
    """Let two nodes talk under attack, then take the broker down."""
    broker = net.broker_process()
    agent: ZmqLink = net.joined("agent", "agent")
    talk = Talk(net)
    talk.exchange(50)
    before = memory(broker.pid, "VmHWM")
    attacker = net.process(HOSTILE, attack, net.endpoint, TOKEN.decode())
    begin = time.monotonic()
    while talk.said < 50 + tells or time.monotonic() < begin + SECONDS:
        talk.exchange(40)
        agent.heartbeat()
        agent.pump()
    assert attacker.poll() is None, "the attack goes on"
    growth = memory(broker.pid, "VmHWM") - before
    assert growth < (GROWTH_OF_LARGE_PARTS if attack in ("large", "oversized") else GROWTH), f"{growth >> 20} MiB"
    agent.send(Lane.CONTROL, ["shutdown"])
    pump_until(lambda: broker.poll() is not None, agent, talk.a, talk.b)
    assert broker.returncode == 0
    assert not net.path.exists()
    return talk


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"replay", "flood"}))
def test_the_others_are_served(net: Net, attack: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What each does, tests/e2e/broker_attacks.py says."""
    talk = attacked(net, attack)
    assert talk.hostile == [], "nothing of it is passed on"
    assert "Traceback" not in capfd.readouterr().err, "refused by a rule, not by an accident"


def test_what_is_read_ahead_is_bounded(net: Net) -> None:
    """ZeroMQ reads for a broker that has no time just now: a few messages of each peer, not all that come."""
    server = Server(net.endpoint, token=TOKEN, epoch=1)  # bound, and not serving
    try:
        before = memory(os.getpid(), "VmRSS")
        net.process(HOSTILE, "large", net.endpoint, TOKEN.decode())
        time.sleep(SECONDS)
        read = memory(os.getpid(), "VmRSS") - before
        assert MAX_PAYLOAD < read < GROWTH_OF_LARGE_PARTS, f"{read >> 20} MiB"
    finally:
        server.close()


def test_a_turn_takes_few_of_the_largest(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded in messages and in bytes: what comes endlessly, small or large, leaves time for everybody else."""
    sizes: list[int] = []
    server = Server(net.endpoint, token=TOKEN, epoch=1)
    try:
        for size, most in ((0, TURN), (TURN_BYTES // 2, 3), (MAX_PAYLOAD, 1)):
            parts = [b"id", b"", b"", bytes(size)]
            monkeypatch.setattr("broker.server.receive_parts", lambda *_, parts=parts: parts)
            monkeypatch.setattr(server.core, "on_frame", lambda _id, parts, *_: sizes.append(len(parts[-1])))
            monkeypatch.setattr(server, "_readable", lambda: True)
            server._receive(0)
            assert sizes == [size] * most
            sizes.clear()
    finally:
        server.close()


def test_a_peer_that_reads_nothing_never_blocks_the_broker(net: Net) -> None:
    """Whatever it acknowledged unread: its pipe is full, the frame waits, and the next one is served."""
    server = Server(net.endpoint, token=TOKEN, epoch=1)
    try:
        dealer = net.dealer()
        dealer.setsockopt(zmq.RCVHWM, 10)
        dealer.send(b"here I am")
        assert server._router.poll(5000)
        routing_id, _ = server._router.recv_multipart()
        answers = [server.send(routing_id, [bytes(1 << 16)]) for _ in range(4 * HIGH_WATER)]
        assert answers[0] is SendResult.SENT
        assert answers[-1] is SendResult.AGAIN
    finally:
        server.close()


def test_a_replayed_record_is_not_heard_twice(net: Net) -> None:
    """Each thing that the peer said is told once and in order, however often its frames come."""
    talk = attacked(net, "replay")
    assert talk.hostile
    assert talk.hostile == [*range(len(talk.hostile))]


def test_a_flood_beyond_the_window(net: Net) -> None:
    """Credit that a peer does not have ends its session; in between it may have filled the other's queue: `busy`."""
    talk = attacked(net, "flood", tells=80)
    assert talk.hostile
