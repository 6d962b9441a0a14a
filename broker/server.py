"""The broker's shell: one ROUTER, a plain poll loop, and nothing of its own to decide.

The ROUTER is used without trusting its defaults.  ROUTER_MANDATORY makes an unknown or vanished peer an
error (EHOSTUNREACH) where the default drops in silence, and a full pipe EAGAIN; sends never wait; LINGER is
0, so that closing never hangs; MAXMSGSIZE and a short read-ahead bound what a peer can make us hold.  The
high-water mark of sends is far above what credit lets a conforming peer have under way, and is never relied
on.  Routing ids are the socket's own: no node chooses one, so none can take another's.  No option of the
DRAFT interface is used: released wheels do not have it.

One ROUTER may listen at several endpoints: `ipc://` for the broker's own host, where the directory's mode is
the guard, and `tcp://` for others, where CURVE is, with an allow-list of keys that this loop itself answers
for (:mod:`broker.zap`).  ZeroMQ fixes a listener's mechanism when it is bound, so both live on one socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket as sockets
import stat
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Sequence
from random import Random
from typing import Final

import zmq

from broker import zap
from broker.binding import Binding
from broker.client import KEEPALIVE, content, send_parts
from broker.config import BrokerConfig
from broker.frames import MAX_PART, Parts
from broker.keys import ServerCurve
from broker.operations import RELEASE_NS
from broker.router import RouterCore
from broker.session import SendResult

TURN: Final = 256
"""Messages taken before what they cause is sent."""
MAX_PARTS: Final = 5
"""Parts of a message that are kept: routing id, those of a frame, and one more, so that too many are seen."""
TURN_BYTES: Final = 1 << 20
"""Bytes taken before that: copying the largest parts costs milliseconds each."""
TICK_NS: Final = 100_000_000
HIGH_WATER: Final = 1024
READ_AHEAD: Final = 8
"""Messages that ZeroMQ reads of a peer before we take them; then the peer waits.  Nothing is lost, and a peer that
sends the largest parts cannot make us hold more than so many of them."""
FAREWELL_NS: Final = 300_000_000
"""How long a broker that shuts down waits for its nodes to acknowledge that.  They read what is waiting only while
the connection stands, so a linger on our side would not do."""
PROBE_S: Final = 1.0
MAX_PATH: Final = 107
"""Bytes of a path that AF_UNIX takes."""
MAX_HOSTS: Final = 4096
"""Connections whose host is remembered before those that nobody joined over are forgotten."""
_SAME_HOST: Final = re.compile(r"(localhost)?(:\d+){3}")  # what ZeroMQ shows of an AF_UNIX peer: user, group, process
_DONTWAIT: Final = int(zmq.DONTWAIT)  # operators of pyzmq's flags make objects
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
LOG_FIRST: Final = 20
LOG_EVERY: Final = 1000


class EndpointError(Exception):
    """The broker cannot listen where it was told to: the endpoint, and why."""

    def __init__(self, endpoint: str, why: str) -> None:
        self.endpoint = endpoint
        super().__init__(f"cannot listen at {endpoint}: {why}")


def ipc_path(endpoint: str) -> str | None:
    """The file of an `ipc://` endpoint; None for another transport."""
    return endpoint.removeprefix("ipc://") if endpoint.startswith("ipc://") else None


def _check_free(endpoint: str, path: str) -> None:
    """ZeroMQ would unlink whatever lies at `path`, even a live listener's socket, and bind there."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise EndpointError(endpoint, f"the path has {length} bytes, AF_UNIX takes {MAX_PATH}")
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise EndpointError(endpoint, "there is a file that is no socket")
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_S)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nothing there, or what a killed broker left behind
    except OSError as error:
        raise EndpointError(endpoint, str(error)) from None
    raise EndpointError(endpoint, "somebody listens there already")


def _property(frame: zmq.Frame, name: str) -> str:
    """A property of a message's connection; "" when it has none of that name."""
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, UnicodeDecodeError):
        return ""


def receive_parts(
    router: zmq.Socket[bytes], most: int, known: Container[bytes], meet: Callable[[bytes, zmq.Frame], None]
) -> list[bytes | memoryview]:
    """One whole message without waiting, at most `most` parts of it kept.  Raises zmq.Again when there is none.

    `meet` sees the first part of a message over a connection that is not `known`: with it come the connection's
    properties.  They are the same every time and cost a look, so once is enough.
    """
    receive = router.recv
    frame = receive(_DONTWAIT, copy=False)  # it knows whether more follows; asking the socket costs as much again
    routing_id = frame.bytes
    new = routing_id not in known
    parts: list[bytes | memoryview] = [routing_id]
    while frame.more:
        frame = receive(_DONTWAIT, copy=False)
        if new:
            meet(routing_id, frame)
            new = False
        if len(parts) < most:
            parts.append(content(frame))
    return parts


class Server:
    """Moves messages between a ROUTER socket and a :class:`broker.router.RouterCore`, whose sink it is."""

    def __init__(
        self,
        endpoint: str,
        *,
        token: bytes,
        epoch: int,
        endpoints: Sequence[str] = (),
        curve: ServerCurve | None = None,
        host: str = "",
        binding: Binding | None = None,
        chance: Random | None = None,
        release_ns: int = RELEASE_NS,
    ) -> None:
        self.endpoints = [endpoint, *endpoints]  # as bound: a port `*` has become a number
        self.core = RouterCore(
            token=token,
            epoch=epoch,
            sink=self,
            mint=lambda: os.urandom(16),
            binding=binding,
            chance=chance,
            release_ns=release_ns,
        )
        self._host = host
        self._hosts: dict[bytes, str] = {}
        self._stop = False
        self._logged: Counter[str] = Counter()
        self._paths: list[str] = []
        for each in self.endpoints:
            path = ipc_path(each)
            if path is not None:
                _check_free(each, path)
        self._wake_in, self._wake_out = sockets.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_PART)
        self._router.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._router.setsockopt(zmq.RCVHWM, READ_AHEAD)
        self._curve = curve
        self._allow = zap.AllowList(() if curve is None else curve.allowed)
        self._zap = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        if curve is not None:  # before anything is bound: a CURVE server without a handler lets everybody in
            self._zap.bind(zap.ENDPOINT)
        self.endpoints = [self._bind(each) for each in self.endpoints]

    @classmethod
    def of(cls, config: BrokerConfig) -> Server:
        """The server that a configuration describes.  EndpointError: it cannot listen."""
        server = cls(
            config.endpoint,
            token=config.token,
            epoch=config.epoch,
            endpoints=config.endpoints,
            curve=config.curve,
            host=config.host,
            binding=config.binding,
            chance=Random(config.seed),
            release_ns=config.release_ns,
        )
        for a, b, impairment in config.impair:
            server.core.impair(a, b, impairment)
        return server

    def _bind(self, endpoint: str) -> str:
        """Listen at `endpoint`.  The endpoint as it is bound."""
        path = ipc_path(endpoint)
        before = os.umask(0o177)
        try:
            if path is None:
                self._guard(endpoint)
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(endpoint, str(error)) from None
        finally:
            os.umask(before)
        if path is not None:
            self._paths.append(path)
            return endpoint
        bound = self._router.getsockopt(zmq.LAST_ENDPOINT)
        return bound.rstrip(b"\0").decode() if isinstance(bound, bytes) else endpoint

    def _guard(self, endpoint: str) -> None:
        """Set what endpoints bound from now on are protected by."""
        for option, value in KEEPALIVE:
            self._router.setsockopt(option, value)
        self._router.setsockopt(zmq.IPV6, int("[" in endpoint))
        if self._curve is not None:
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt(zmq.CURVE_SECRETKEY, self._curve.pair.secret)
            self._router.setsockopt(zmq.ZAP_DOMAIN, zap.DOMAIN)

    def serve(self) -> None:
        """Route until the core is told to shut down, by the agent or by :meth:`stop`, and nodes know of it."""
        # zmq.Poller would look at every socket several times a turn; their descriptors say when to look.
        poller = select.poll()
        router, zap_fd, wake = (int(self._router.getsockopt(zmq.FD)), int(self._zap.getsockopt(zmq.FD)),
                                self._wake_in.fileno())  # fmt: skip
        for fd in (router, zap_fd, wake):
            poller.register(fd, select.POLLIN)
        busy = True  # the router has, or may have, what its descriptor does not announce
        tick_ns = time.monotonic_ns()
        self.core.on_tick(tick_ns)
        leave_ns: int | None = None
        while leave_ns is None or not (self.core.settled or tick_ns >= leave_ns):
            now_ns = time.monotonic_ns()
            due_ns = min(tick_ns + TICK_NS, self.core.next_deadline() or tick_ns + TICK_NS)
            wait_ms = 0 if busy else max(0, due_ns - now_ns + 999_999) // 1_000_000
            ready = [fd for fd, _ in poller.poll(wait_ms)]
            if wake in ready:
                self._drain_wake()
            now_ns = time.monotonic_ns()
            if zap_fd in ready:
                self._let_in()
            self._receive(now_ns)
            if (self.core.next_deadline() or now_ns + 1) <= now_ns:
                self.core.on_time(now_ns)
            if now_ns - tick_ns >= TICK_NS:
                tick_ns = now_ns
                self.core.on_tick(now_ns)
            if self._stop:
                self.core.shutdown()
            self.core.flush()
            # ZMQ_FD is edge-triggered: what came while we received and sent is seen here or never.
            busy = self._readable()
            if self.core.stopping and leave_ns is None:
                leave_ns = now_ns + FAREWELL_NS

    def stop(self) -> None:
        """Shut down at the next turn of the loop.  May be called from a signal handler or another thread."""
        self._stop = True
        with contextlib.suppress(OSError):
            self._wake_out.send(b"\0")

    def close(self) -> None:
        """Close the sockets at once; their files are gone afterwards.  May be called twice."""
        if not self._router.closed:
            self._router.close(0)
            self._zap.close(0)
            self._context.term()
            self._wake_in.close()
            self._wake_out.close()
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_in.recv(64):
                pass

    def _receive(self, now_ns: int) -> None:
        size = 0
        for _ in range(TURN):
            if size > TURN_BYTES:
                return
            try:
                first, *parts = receive_parts(self._router, MAX_PARTS, self._hosts, self._remember)
            except zmq.Again:
                return
            routing_id = bytes(first)
            size += sum(map(len, parts))
            try:
                self.core.on_frame(routing_id, parts, now_ns, self._hosts.get(routing_id, ""))
            except Exception:  # a mistake of ours: one message is lost, the lab goes on
                self.core.counters["internal_errors"] += 1
                self._log(traceback.format_exc())
            if not self._readable():  # an exception would cost more
                return

    def _readable(self) -> bool:
        return bool(int(self._router.getsockopt(_EVENTS)) & _POLLIN)

    def _remember(self, routing_id: bytes, frame: zmq.Frame) -> None:
        if len(self._hosts) >= MAX_HOSTS:
            self._hosts = {known: host for known, host in self._hosts.items() if self.core.joined_over(known)}
        self._hosts[routing_id] = self._host_of(frame)

    def _host_of(self, frame: zmq.Frame) -> str:
        """The host of a message: whose key it showed, our own for a local connection, "" if nothing tells."""
        host = _property(frame, "User-Id")
        if host:
            return host
        return self._host if _SAME_HOST.fullmatch(_property(frame, "Peer-Address")) else ""

    def _let_in(self) -> None:
        """Answer who may connect."""
        for _ in range(TURN):
            try:
                request = self._zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            answer = self._allow.answer(request)
            self.core.counters["handshakes"] += 1
            if answer[2] != zap.Status.ACCEPTED.value.encode():
                self.core.refused_connection(request[3].decode("ascii", "replace") if len(request) > 3 else "?")
            self._zap.send_multipart(answer)

    # ---- the core's sink ---------------------------------------------------------------------------------

    def send(self, routing_id: bytes, parts: Parts) -> SendResult:
        """Hand a frame to the socket."""
        try:
            send_parts(self._router, [routing_id, *parts])
        except zmq.Again:
            return SendResult.AGAIN
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendResult.UNREACHABLE
        return SendResult.SENT

    def event(self, code: str, *fields: object) -> None:
        """One line of log, fewer when a code repeats: who sends garbage does not fill the disk."""
        key = f"{code} {fields[0]}" if fields else code
        self._logged[key] += 1
        count = self._logged[key]
        if code != "refused" or count <= LOG_FIRST or count % LOG_EVERY == 0:
            words = " ".join(str(field) for field in fields).encode("unicode_escape").decode()
            repeated = f" (the {count}th)" if count > LOG_FIRST and code == "refused" else ""
            self._log(f"broker: {code} {words}{repeated}")

    @staticmethod
    def _log(text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the lab
            print(text, file=sys.stderr, flush=True)
