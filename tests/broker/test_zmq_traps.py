"""What ZeroMQ does by default and we rely on having avoided: real sockets, each trap with a deadline.

Measured on libzmq 4.3.5 / pyzmq 27; a release that behaves otherwise should be noticed here, not in a lab.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker.frames import MAX_PART
from broker.server import HIGH_WATER, MAX_PATH

pytestmark = pytest.mark.timeout(20)

Socket = zmq.Socket[bytes]
WAIT_S = 5.0


class Sockets:
    """Sockets of one context, all closed at the end of a test."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[Socket] = zmq.Context()
        self.endpoint = f"ipc://{directory}/z"
        self._made: list[Socket] = []

    def socket(self, kind: int, **options: Any) -> Socket:
        """A socket with LINGER 0 and `options`, lower-case names of ZeroMQ's."""
        socket = self.context.socket(kind)
        self._made.append(socket)
        for name, value in {"linger": 0, **options}.items():
            socket.setsockopt(getattr(zmq, name.upper()), value)
        return socket

    def close(self) -> None:
        for socket in self._made:
            socket.close(0)
        self.context.term()

    def bound(self, kind: int = zmq.ROUTER, **options: Any) -> Socket:
        socket = self.socket(kind, **options)
        socket.bind(self.endpoint)
        return socket

    def connected(self, kind: int = zmq.DEALER, **options: Any) -> Socket:
        socket = self.socket(kind, **options)
        socket.connect(self.endpoint)
        return socket


@pytest.fixture
def net(short_tmp_path: Path) -> Iterator[Sockets]:
    sockets = Sockets(short_tmp_path)
    try:
        yield sockets
    finally:
        sockets.close()


def receive(socket: Socket, wait_s: float = WAIT_S) -> list[bytes]:
    assert socket.poll(int(wait_s * 1000)), "nothing arrived in time"
    return socket.recv_multipart()


def introduce(router: Socket, dealer: Socket) -> bytes:
    """Let a dealer be known to a router: its routing id."""
    dealer.send(b"hello")
    return receive(router)[0]


def test_router_drops_silently_by_default(net: Sockets) -> None:
    """An unknown routing id: the send succeeds and nothing happens."""
    net.bound().send_multipart([b"nobody", b"lost"], zmq.DONTWAIT)


def test_router_mandatory_reports_unknown_peers(net: Sockets) -> None:
    """With ROUTER_MANDATORY the same is EHOSTUNREACH, also for a peer that was there and left."""
    router = net.bound(router_mandatory=1)
    with pytest.raises(zmq.ZMQError) as caught:
        router.send_multipart([b"nobody", b"x"], zmq.DONTWAIT)
    assert caught.value.errno == errno.EHOSTUNREACH == zmq.EHOSTUNREACH
    dealer = net.connected()
    routing_id = introduce(router, dealer)
    dealer.close()
    deadline = time.monotonic() + WAIT_S
    with pytest.raises(zmq.ZMQError) as caught:
        while time.monotonic() < deadline:
            router.send_multipart([routing_id, b"x"], zmq.DONTWAIT)
            time.sleep(0.01)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_router_loses_messages_to_a_slow_peer_by_default(net: Sockets) -> None:
    """A peer that does not read: the router drops beyond the high-water mark without an error."""
    router, dealer = net.bound(sndhwm=10), net.connected(rcvhwm=10)
    routing_id = introduce(router, dealer)
    for _ in range(20000):
        router.send_multipart([routing_id, bytes(100)], zmq.DONTWAIT)
    received = 0
    while dealer.poll(200):
        dealer.recv()
        received += 1
    assert received < 20000


def test_router_mandatory_says_again_to_a_slow_peer(net: Sockets) -> None:
    """With ROUTER_MANDATORY and DONTWAIT a full pipe is EAGAIN, and nothing that was accepted is lost."""
    router, dealer = net.bound(sndhwm=10, router_mandatory=1), net.connected(rcvhwm=10)
    routing_id = introduce(router, dealer)
    accepted = 0
    with pytest.raises(zmq.Again):
        while True:
            router.send_multipart([routing_id, b"%d" % accepted, bytes(1000)], zmq.DONTWAIT)
            accepted += 1
    received: list[int] = []
    while len(received) < accepted:
        received.append(int(receive(dealer)[0]))
    assert received == list(range(accepted)), "whole messages, in order"


def test_credit_stays_below_the_high_water_mark() -> None:
    """Our own windows, one record a frame in the worst case, and some acknowledgements, fit the pipe."""
    from broker.frames import LANES

    assert sum(row.window + row.reserve for row in LANES) <= HIGH_WATER


def test_a_second_dealer_with_a_taken_routing_id_is_mute(net: Sockets) -> None:
    """It connects, and nothing it sends ever arrives, without an error: so no node chooses its routing id."""
    router = net.bound(router_mandatory=1)
    first = net.connected(routing_id=b"same")
    assert introduce(router, first) == b"same"
    second = net.connected(routing_id=b"same")
    second.send(b"never arrives")
    assert not router.poll(300)
    router.send_multipart([b"same", b"reply"])
    assert receive(first) == [b"reply"]


def test_routing_ids_repeat_from_broker_to_broker(net: Sockets) -> None:
    """Generated ids are unique within one ROUTER only: a frame to an old id may reach another node, hence epochs."""
    script = (
        "import sys, zmq; c = zmq.Context(); r = c.socket(zmq.ROUTER); r.linger = 0; r.bind(sys.argv[1]);"
        "d = c.socket(zmq.DEALER); d.linger = 0; d.connect(sys.argv[1]); d.send(b'x');"
        "print(r.recv_multipart()[0].hex()); c.destroy()"
    )
    seen = {
        subprocess.run([sys.executable, "-c", script, net.endpoint + str(n)], capture_output=True, check=True).stdout
        for n in range(2)
    }  # fmt: skip
    assert len(seen) == 1


def test_dealer_without_a_broker_queues_by_default(net: Sockets) -> None:
    """1000 messages vanish into a queue for a broker that is not there, then EAGAIN."""
    dealer = net.connected()
    for _ in range(1000):
        dealer.send(b"x", zmq.DONTWAIT)
    with pytest.raises(zmq.Again):
        dealer.send(b"x", zmq.DONTWAIT)


def test_immediate_refuses_without_a_broker_and_resumes_with_one(net: Sockets) -> None:
    """IMMEDIATE: EAGAIN at once while nobody is connected; the descriptor shows when somebody is."""
    dealer = net.connected(immediate=1, reconnect_ivl=20)
    with pytest.raises(zmq.Again):
        dealer.send(b"x", zmq.DONTWAIT)
    router = net.bound()
    descriptor = int(dealer.getsockopt(zmq.FD))
    deadline = time.monotonic() + WAIT_S
    while not int(dealer.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0]
    dealer.send(b"x", zmq.DONTWAIT)
    assert receive(router)[1] == b"x"


def test_immediate_drops_unread_messages_when_the_connection_ends(net: Sockets) -> None:
    """What a DEALER with IMMEDIATE had received and not read is gone: a broker that leaves waits for
    acknowledgements.
    """
    arrived = {}
    for immediate in (0, 1):
        router, dealer = net.bound(), net.connected(immediate=immediate)
        assert dealer.poll(int(WAIT_S * 1000), zmq.POLLOUT)
        routing_id = introduce(router, dealer)
        router.send_multipart([routing_id, b"farewell"])
        router.close(1000)
        time.sleep(0.2)
        arrived[immediate] = bool(dealer.poll(0))
        dealer.close()
    assert arrived == {0: True, 1: False}


def test_linger_default_is_for_ever(net: Sockets) -> None:
    """A socket whose message nobody takes keeps context.term() waiting; LINGER 0 does not."""
    script = (
        "import sys, zmq; c = zmq.Context(); s = c.socket(zmq.DEALER); assert s.linger == -1;"
        "s.linger = int(sys.argv[2]); s.connect(sys.argv[1]); s.send(b'x'); s.close(); c.term()"
    )
    arguments = [sys.executable, "-c", script, net.endpoint]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([*arguments, "-1"], timeout=1, check=True)
    subprocess.run([*arguments, "0"], timeout=WAIT_S, check=True)


def test_linger_zero_loses_last_words(net: Sockets) -> None:
    """What was accepted and not yet written is gone: so farewells and exits wait to be acknowledged."""
    outcomes = {}
    for linger in (0, 5000):
        router, dealer = net.bound(rcvhwm=5), net.connected()
        introduce(router, dealer)
        for _ in range(100):  # more than pipe and kernel take while nobody reads
            dealer.send(bytes(100_000))
        dealer.close(linger)
        time.sleep(0.3)  # the close is carried out by another thread
        count = 0
        while router.poll(1000 if linger and count < 100 else 100):
            router.recv_multipart()
            count += 1
        outcomes[linger] = count
        router.close()
    assert outcomes[0] < outcomes[5000] == 100


@pytest.mark.parametrize("name", ["HELLO_MSG", "DISCONNECT_MSG", "HICCUP_MSG", "ROUTER_NOTIFY"])
def test_draft_options_do_not_exist(net: Sockets, name: str) -> None:
    """Released wheels have no DRAFT interface: nobody tells a ROUTER that a peer left, so nodes send heartbeats."""
    assert not zmq.DRAFT_API
    router = net.socket(zmq.ROUTER)
    value = 3 if name == "ROUTER_NOTIFY" else b"x"
    with pytest.raises(zmq.ZMQError) as caught:
        router.setsockopt(getattr(zmq, name), value)
    assert caught.value.errno == errno.EINVAL


def test_our_modules_use_no_draft_option() -> None:
    """No name of the DRAFT interface, and no user-chosen routing id or handover, in what we set."""
    for module in ("client.py", "server.py"):
        source = (Path(__file__).parents[2] / "broker" / module).read_text()
        for name in (
            "HELLO_MSG",
            "DISCONNECT_MSG",
            "HICCUP_MSG",
            "ROUTER_NOTIFY",
            "BUSY_POLL",
            "HANDOVER",
            "ROUTING_ID",
            "IDENTITY",
        ):
            assert f"zmq.{name}" not in source


def test_the_descriptor_is_edge_triggered(net: Sockets) -> None:
    """A send swallows the edge of a message that has arrived: the descriptor sleeps, EVENTS knows."""
    router, dealer = net.bound(), net.connected()
    routing_id = introduce(router, dealer)
    descriptor = int(dealer.getsockopt(zmq.FD))
    dealer.getsockopt(zmq.EVENTS)
    router.send_multipart([routing_id, b"one"])
    assert select.select([descriptor], [], [], WAIT_S)[0]
    time.sleep(0.02)  # a send looks at incoming commands no more than once a millisecond or so
    dealer.send(b"x")
    assert not select.select([descriptor], [], [], 0.1)[0], "who waits on the descriptor now waits for ever"
    assert int(dealer.getsockopt(zmq.EVENTS)) & zmq.POLLIN
    assert dealer.recv(zmq.DONTWAIT) == b"one"


def test_reading_events_arms_the_next_edge(net: Sockets) -> None:
    """After EVENTS showed nothing, the next message wakes the descriptor: the loop may sleep."""
    router, dealer = net.bound(), net.connected()
    routing_id = introduce(router, dealer)
    descriptor = int(dealer.getsockopt(zmq.FD))
    for n in range(50):
        while int(dealer.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            dealer.recv(zmq.DONTWAIT)
        router.send_multipart([routing_id, b"%d" % n])
        assert select.select([descriptor], [], [], WAIT_S)[0], f"message {n} did not wake the descriptor"


def test_binding_steals_an_ipc_path(net: Sockets) -> None:
    """A second bind to a live ipc:// path succeeds and takes its place: so the broker looks first."""
    first, second = net.bound(), net.bound()
    net.connected().send(b"x")
    assert receive(second)[1] == b"x"
    assert not first.poll(100)


def test_ipc_paths_end_at_107_bytes(net: Sockets, short_tmp_path: Path) -> None:
    """AF_UNIX takes 107 bytes and a zero; one more is an error that says so."""
    stem = f"{short_tmp_path}/"
    longest = stem + "x" * (MAX_PATH - len(stem))
    net.socket(zmq.ROUTER).bind(f"ipc://{longest}")
    assert os.path.exists(longest)
    with pytest.raises(zmq.ZMQError) as caught:
        net.socket(zmq.ROUTER).bind(f"ipc://{longest}x")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_maxmsgsize_cuts_the_connection(net: Sockets) -> None:
    """A part beyond MAXMSGSIZE never arrives; its sender's connection is cut and it comes back as a new peer."""
    router, dealer = net.bound(maxmsgsize=1000), net.connected(reconnect_ivl=20)
    routing_id = introduce(router, dealer)
    dealer.send(bytes(1001))
    deadline = time.monotonic() + WAIT_S
    while True:
        assert time.monotonic() < deadline
        dealer.send(b"small")
        if router.poll(50):
            new_id, data = router.recv_multipart()
            assert data == b"small"
            if new_id != routing_id:
                return


def test_our_largest_part_is_accepted(net: Sockets) -> None:
    """MAXMSGSIZE as we set it leaves room for the largest payload."""
    from broker.frames import MAX_PAYLOAD

    router, dealer = net.bound(maxmsgsize=MAX_PART), net.connected()
    dealer.send(bytes(MAX_PAYLOAD))
    assert len(receive(router)[1]) == MAX_PAYLOAD < MAX_PART


def test_zmtp_heartbeats_do_not_see_a_busy_process(net: Sockets) -> None:
    """A peer that computes answers ZMTP pings from its I/O thread, a stopped one does not: so heartbeats
    come from a node's own loop, and mean that it runs.
    """
    router = net.bound(heartbeat_ivl=100, heartbeat_timeout=900)
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    script = (
        "import sys, zmq; c = zmq.Context(); s = c.socket(zmq.DEALER); s.connect(sys.argv[1]); s.send(b'x')\n"
        "while True: pass"
    )
    process = subprocess.Popen([sys.executable, "-c", script, net.endpoint])
    try:
        receive(router, 10)
        assert not monitor.poll(1500), "a spinning peer was taken for dead"
        process.send_signal(signal.SIGSTOP)
        assert monitor.poll(int(WAIT_S * 1000)), "a stopped peer was not noticed"
    finally:
        process.kill()
        process.wait()
        router.disable_monitor()
        monitor.close()


def test_nothing_of_zeromq_runs_before_a_context_is_made() -> None:
    """Our modules make no context at import: a forkserver that preloads them forks a single thread."""
    script = (
        "import os, broker.client, broker.server, broker.node, broker.fabric\n"
        "assert len(os.listdir('/proc/self/task')) == 1, 'threads at import'\n"
        "import zmq; context = zmq.Context(); context.socket(zmq.PAIR).close()\n"
        "assert len(os.listdir('/proc/self/task')) > 1, 'a context has threads'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=WAIT_S, cwd=Path(__file__).parents[2])
