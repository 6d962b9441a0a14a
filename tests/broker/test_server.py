"""The broker over real sockets: joining, refusals, telling, attaching, floods, slow and dying nodes, its own end."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from broker import frames, router
from broker.client import JoinRefused
from broker.config import BrokerConfig
from broker.frames import MAX_PART, FrameKind, Lane
from broker.node import EXIT_ENDPOINT, main
from broker.server import LOG_FIRST, EndpointError, Server
from tests.broker.sockets import Net, eventually, listen, net_in, pump_until
from tests.broker.support import TOKEN, handshake, hello_record

CONTROL, REQUEST, EVENT = Lane
pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def net(short_tmp_path: Path) -> Iterator[Net]:
    with net_in(short_tmp_path) as net:
        yield net


def answer(dealer: zmq.Socket[bytes]) -> frames.Frame:
    assert dealer.poll(8000), "no answer"
    return frames.parse_frame(dealer.recv_multipart())


def test_two_nodes_tell_each_other(net: Net) -> None:
    """By name, both ways, with payload, in order."""
    net.server()
    a, b = net.joined("a"), net.joined("b", "hypervisor")
    heard = listen(a)
    payloads: list[bytes] = []

    def echo(_lane: Lane, record: object, payload: frames.Buffer) -> None:
        assert isinstance(record, list)
        payloads.append(bytes(payload))
        b.send(CONTROL, ["tell", record[1], ["echo", *record[2][1:]]])

    b.on_record = echo
    for n in range(200):
        a.send(CONTROL, ["tell", "b", ["x", n]], b"%d" % n)
    pump_until(lambda: len(heard) == 200, a, b)
    assert heard == [["told", "b", ["echo", n]] for n in range(200)]
    assert payloads == [b"%d" % n for n in range(200)]


def test_wrong_token(net: Net) -> None:
    """Refused in words; the right token is welcome afterwards."""
    net.server()
    with pytest.raises(JoinRefused, match="does not show this lab's token") as caught:
        net.joined(token=b"not the token")
    assert caught.value.code == "WRONG_TOKEN"
    net.joined()


@pytest.mark.parametrize("where", ["header", "hello"])
def test_wrong_version(net: Net, where: str) -> None:
    """A node of another major version is told which one is spoken here."""
    net.server()
    dealer = net.dealer()
    parts = handshake(hello_record(major=2 if where == "hello" else 1))
    if where == "header":
        parts[0] = parts[0][:4] + b"\x02" + parts[0][5:]
    dealer.send_multipart(parts)
    ((name, code, _),) = answer(dealer).records
    assert (name, code) == ("refused", "WRONG_VERSION")


def test_duplicate_name(net: Net) -> None:
    """The second is refused with the holder's kind and pid; the first goes on."""
    net.server()
    first = net.joined("app", pid=1234)
    with pytest.raises(JoinRefused, match="held by guest pid 1234") as caught:
        net.joined("app", "hypervisor", pid=5678)
    assert caught.value.code == "NAME_IN_USE"
    heard = listen(first)
    first.send(CONTROL, ["tell", "app", ["me"]])
    pump_until(lambda: bool(heard), first)


MALFORMED = {
    "no parts": [b""],
    "one part": [b"junk"],
    "short header": [b"junk", b"", b""],
    "wrong magic": [bytes(32), b"\x90", b""],
    "twenty parts": [b"x"] * 20,
    "count mismatch": [frames.pack_header(2, 1, 1, 0, 0, 2), b"\x91\x91\xa5ready", b""],
    "huge nesting": [frames.pack_header(2, 1, 1, 0, 0, 1), b"\x91" * 60000, b""],
    "a body of 1 MiB": [frames.pack_header(2, 1, 1, 0, 0, 1), bytes(1 << 20), b""],
}


def test_malformed_frames(net: Net) -> None:
    """Each is answered with a refusal, and the same connection may join afterwards."""
    server = net.server()
    dealer = net.dealer()
    for parts in MALFORMED.values():
        dealer.send_multipart(parts)
        frame = answer(dealer)
        assert frame.kind is FrameKind.HANDSHAKE
        assert frame.records[0][:2] == ["refused", "MALFORMED_FRAME"]
    dealer.send_multipart(handshake(hello_record()))
    assert answer(dealer).records == [["welcome", 1, "app"]]
    assert server.core.counters["refused.MALFORMED_FRAME"] == len(MALFORMED)


def test_an_oversized_part_harms_only_its_sender(net: Net) -> None:
    """Beyond MAXMSGSIZE the connection is cut: the node is lost to the others, and may come again."""
    net.server()
    agent = net.joined("agent", "agent")
    heard = listen(agent)
    agent.send(CONTROL, ["subscribe"])
    dealer = net.dealer()
    dealer.send_multipart(handshake(hello_record()))
    assert answer(dealer).records[0][0] == "welcome"
    dealer.send_multipart([bytes(32), bytes(MAX_PART + 1), b""])

    def lost() -> bool:
        agent.send(CONTROL, ["tell", "app", ["are you there?"]])
        return any(record[:2] == ["node", "app"] and record[3] == "lost" for record in heard)

    pump_until(lost, agent)
    deadline = time.monotonic() + 8
    said = [["told"]]
    while said[0][0] == "told" and time.monotonic() < deadline:  # the agent's question, asked before it was cut
        # What is sent while it reconnects may be lost with the old connection.
        dealer.send_multipart(handshake(hello_record()))
        if dealer.poll(100):
            said = answer(dealer).records
    assert said == [["welcome", 1, "app"]]


def test_attach_token_flow(net: Net) -> None:
    """guest attaches, hypervisor is granted a fresh token, guest is told where and gets the same token."""
    net.server()
    hypervisor, guest = net.joined("hv0", "hypervisor"), net.joined("app")
    heard = listen(guest)
    tokens: list[bytes] = []

    def grant(_lane: Lane, record: object, _payload: object) -> None:
        match record:
            case ["told", "broker", ["grant", str(name), bytes(token)]]:
                tokens.append(token)
                hypervisor.send(CONTROL, ["tell", name, ["granted", "/run/attach", token]])

    hypervisor.on_record = grant
    for _ in range(2):
        guest.send(CONTROL, ["attach", "hv0"])
    pump_until(lambda: len(heard) == 2, hypervisor, guest)
    assert heard == [["told", "hv0", ["granted", "/run/attach", token]] for token in tokens]
    assert len({*tokens}) == 2
    assert all(len(token) == 16 for token in tokens)


def test_a_killed_node_gives_up_its_name_at_once(net: Net) -> None:
    """SIGKILL closes the connection: the next hello of that name finds nobody holding it."""
    net.server()
    script = (
        "import sys, time; from broker.client import ZmqLink\n"
        "link = ZmqLink(sys.argv[1], kind='guest', name='app', token=sys.argv[2].encode()); link.wait_joined(8)\n"
        "open(sys.argv[3], 'w').close(); time.sleep(60)"
    )
    mark = net.path.with_name("joined")
    process = net.process(script, net.endpoint, TOKEN.decode(), str(mark))
    assert eventually(mark.exists, process)
    with pytest.raises(JoinRefused, match=f"pid {process.pid}"):
        net.joined("app")
    process.kill()
    process.wait()
    assert net.joined("app").joined


def test_a_flood_of_junk_does_not_stop_the_others(net: Net) -> None:
    """One peer sends as fast as it can and reads nothing: two nodes still talk, the broker's memory holds."""
    server = net.server()
    a, b = net.joined("a"), net.joined("b")
    heard = listen(b)
    dealer = net.dealer()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            try:
                dealer.send_multipart([b"junk", b"", b""], zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for n in range(50):
            a.send(CONTROL, ["tell", "b", ["x", n]])
            pump_until(lambda n=n: len(heard) > n, a, b)  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert server.core.counters["refused.MALFORMED_FRAME"] > 100
    assert [record[2][1] for record in heard] == list(range(50))


def test_a_node_that_does_not_read(net: Net) -> None:
    """What was accepted for it arrives in order when it reads again; the rest came back as busy; others are
    served.
    """
    net.server()
    a, slow, other = net.joined("a"), net.joined("slow"), net.joined("other")
    answers, heard, served = listen(a), listen(slow), listen(other)
    total = frames.LIMITS[CONTROL].window + frames.LIMITS[CONTROL].queue_records + 50
    sent = 0
    while sent < total:
        sent += a.credit(CONTROL) > 0 and a.send(CONTROL, ["tell", "slow", ["x", sent]])
        a.pump()
    a.send(CONTROL, ["tell", "other", ["x"]])
    pump_until(lambda: bool(served), a, other)
    pump_until(lambda: len(answers) >= 50, a)
    pump_until(lambda: len(heard) == total - 50, slow)
    assert [record[2][1] for record in heard] == list(range(total - 50))
    assert [record[0] for record in answers] == ["busy"] * 50


def test_silence_is_noticed_by_the_loop(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ticks its core (with a shorter silence here): unresponsive, and ready again at the next
    heartbeat.
    """
    monkeypatch.setattr(router, "SILENCE_NS", 300_000_000)
    net.server()
    agent, app = net.joined("agent", "agent"), net.joined("app")
    heard = listen(agent)
    agent.send(CONTROL, ["subscribe"])
    app.send(CONTROL, ["ready"])
    app.flush()

    def shown(state: str) -> bool:
        agent.heartbeat()
        return any(record[:2] == ["node", "app"] and record[3] == state for record in heard)

    pump_until(lambda: shown("unresponsive"), agent)
    heard.clear()
    app.heartbeat()
    pump_until(lambda: shown("ready"), agent, app)


def test_a_mistake_in_the_core_costs_one_message(net: Net, capfd: pytest.CaptureFixture[str]) -> None:
    """An exception is logged and counted; the loop goes on."""
    server = net.server()
    on_frame = server.core.on_frame

    def fail(*arguments: object) -> None:
        server.core.on_frame = on_frame  # type: ignore[method-assign]
        raise RuntimeError("a mistake")

    server.core.on_frame = fail  # type: ignore[method-assign, assignment]
    net.dealer().send(b"x")
    assert eventually(lambda: server.core.counters["internal_errors"] == 1)
    net.joined()
    assert "RuntimeError: a mistake" in capfd.readouterr().err


def test_the_log_is_bounded_and_escaped(net: Net, capfd: pytest.CaptureFixture[str]) -> None:
    """Who repeats a fault a thousand times fills no disk; what a node says breaks no line."""
    server = net.server()
    for _ in range(1500):
        server.event("refused", "WRONG_TOKEN", "a stranger", "words")
    server.event("node", "app", "guest", "exited", "exit 1: two\nlines \x1b[31m")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == LOG_FIRST + 2
    assert lines[0] == "broker: refused WRONG_TOKEN a stranger words"
    assert lines[-2].endswith("(the 1000th)")
    assert lines[-1] == r"broker: node app guest exited exit 1: two\nlines \x1b[31m"


# ---- endpoints -------------------------------------------------------------------------------------------


def test_the_socket_is_private_and_goes_with_the_broker(net: Net, short_tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; no file is left."""
    before = os.umask(0)
    try:
        server = Server(net.endpoint, token=TOKEN, epoch=1)
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(net.path.stat().st_mode) == 0o600
    server.close()
    server.close()
    assert list(short_tmp_path.iterdir()) == []


def test_an_endpoint_in_use_is_refused(net: Net) -> None:
    """A live broker keeps its endpoint; ZeroMQ alone would hand it to the second."""
    net.server()
    with pytest.raises(EndpointError, match="somebody listens there already"):
        Server(net.endpoint, token=TOKEN, epoch=2)
    net.joined()


def test_a_dead_brokers_socket_is_taken_over(net: Net) -> None:
    """What a killed broker left behind does not stop the next."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(net.path))
    assert net.path.exists()
    net.server()
    net.joined()


@pytest.mark.parametrize(
    ("path", "words"), [("file", "no socket"), ("no/such/dir", "No such file"), ("x" * 107, "107")]
)
def test_endpoints_that_cannot_be(net: Net, path: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A regular file, a missing directory, too long a path: said in words, exit code 4, nothing removed."""
    net.path.with_name("file").touch()
    endpoint = f"ipc://{net.path.parent}/{path}"
    with pytest.raises(EndpointError, match=words):
        Server(endpoint, token=TOKEN, epoch=1)
    assert main(BrokerConfig("lab", endpoint, TOKEN, 1, ".")) == EXIT_ENDPOINT == 4
    assert words in capfd.readouterr().err
    assert net.path.with_name("file").exists()


# ---- the broker's own end --------------------------------------------------------------------------------


def test_shutdown_by_the_agent_ends_the_process(net: Net) -> None:
    """Every node is told, the exit code is 0, no socket file is left."""
    process = net.broker_process()
    agent, app = net.joined("agent", "agent"), net.joined("app")
    heard = listen(app)
    agent.send(CONTROL, ["tell", "broker", ["shutdown"]])
    pump_until(lambda: ["shutdown"] in heard, agent, app)
    assert process.wait(8) == 0
    assert not net.path.exists()
    assert app.leave(0, "done"), "nobody is left who could acknowledge: no waiting"


def test_sigterm_ends_the_process(net: Net) -> None:
    """The same by signal, although the loop is asleep."""
    process = net.broker_process()
    app = net.joined("app")
    heard = listen(app)
    process.send_signal(signal.SIGTERM)
    pump_until(lambda: ["shutdown"] in heard, app)
    assert process.wait(8) == 0
    assert not net.path.exists()
