"""One round of one peer: the same messages, the same ledger, another way between two processes.

Each end is a process of its own, forked for the round; what stands between them (a proxy, a hypervisor) is one
more.  The receiver proves the round as Argo's does: every message once, in order, by checksum.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import zmq

from topologies.bench import nbd
from topologies.bench.figures import median
from topologies.bench.labs import messages
from topologies.bench.ledger import DISTINCT, STAMP, Ledger, bodies, stamp
from topologies.bench.rows import Kind, Row
from topologies.bench.transports import (
    FORK,
    Endpoint,
    Eventfds,
    Iceoryx2,
    MpQueue,
    Seqpacket,
    Transport,
    Unavailable,
    ZmqDirect,
    ZmqProxied,
    copy_buffers,
)
from topologies.bench.zmq_hv import ZmqHypervisor

WITHIN: Final = 60.0
_UNSTAMPED: Final = frozenset({"eventfd-pingpong"})

PEERS: Final[dict[str, Callable[[Row, str], Transport]]] = {
    "zmq-proxy": lambda row, directory: ZmqProxied(directory, zmq.ROUTER),  # noqa: ARG005
    "zmq-forwarder": lambda row, directory: ZmqProxied(directory, zmq.DEALER),  # noqa: ARG005
    "zmq-proxy-curve": lambda row, directory: ZmqProxied.secured(zmq.ROUTER),  # noqa: ARG005
    "zmq-pair": lambda row, directory: ZmqDirect(directory, zmq.PAIR, zmq.PAIR),  # noqa: ARG005
    "zmq-dealer-router": lambda row, directory: ZmqDirect(directory, zmq.DEALER, zmq.ROUTER),  # noqa: ARG005
    "zmq-hv": lambda row, directory: ZmqHypervisor(directory, row.size, row.ring),
    "uds-seqpacket": lambda row, directory: Seqpacket(row.size),  # noqa: ARG005
    "mp-queue": lambda row, directory: MpQueue(),  # noqa: ARG005
    "iceoryx2": lambda row, directory: Iceoryx2(directory, row.size),
    "eventfd-pingpong": lambda row, directory: Eventfds(),  # noqa: ARG005
}
SHARES: Final = {"zmq-hv": 0.25, "mp-queue": 0.5}
"""Peers that are much slower get fewer messages, so that their rounds are not much longer."""


class PeerFailed(Exception):
    """A peer's round came to nothing, or does not prove itself."""


def measure(name: str, row: Row, scale: float = 1.0) -> float:
    """One round of peer `name` beside `row`, in the row's unit.  Raises Unavailable, PeerFailed."""
    if name == "memcpy":
        return memcpy(row, scale)
    count, warm = messages(row, scale * SHARES.get(name, 1.0))
    with tempfile.TemporaryDirectory(prefix="argosy-peer-") as directory:
        if name == nbd.SERVER:
            try:
                return row.rate(nbd.measure(row.size, count, warm, row.window, directory))
            except nbd.NbdFailed as problem:
                raise PeerFailed(str(problem)) from None
        transport = PEERS[name](row, directory)
        with contextlib.closing(transport):
            if row.unit == "us":
                return _latency(name, transport, row, count, warm)
            return _rate(name, transport, row, count, warm)


def memcpy(row: Row, scale: float) -> float:
    """Copies a second of the row's size, between two shared mappings, in Python: one slice assignment each."""
    source, target = copy_buffers(row.size)
    count = max(50, int(row.sends * scale))
    for _ in range(count // 10):
        target[:] = source
    began = time.monotonic_ns()
    for _ in range(count):
        target[:] = source
    return count / ((time.monotonic_ns() - began) / 1e9)


def _rate(name: str, transport: Transport, row: Row, count: int, warm: int) -> float:
    def send(endpoint: Endpoint, _report: Connection) -> None:
        for message in _messages(row.size, count):
            endpoint.send(message)
        endpoint.flush()

    def receive(endpoint: Endpoint, report: Connection) -> None:
        ledger, began = Ledger(row.size), 0
        for index in range(count):
            if index == warm:
                began = time.monotonic_ns()
            ledger.take(endpoint.receive())
        wall = time.monotonic_ns() - began
        report.send((wall, ledger.count, ledger.checksum))

    wall, dequeued, checksum = _run(name, transport, send, receive)
    assert isinstance(wall, int)
    if (dequeued, checksum) != (count, Ledger(row.size).expect(count)):
        raise PeerFailed(f"{name}: {dequeued} messages of {count}, or wrong ones")
    return (count - warm) / (wall / 1e9)


def _latency(name: str, transport: Transport, row: Row, count: int, warm: int) -> float:
    """The median in us: of round trips, or of one way for a row that measures one way."""
    one_way = row.kind is Kind.SYNC

    def send(endpoint: Endpoint, report: Connection) -> None:
        samples = []
        for message in _messages(row.size, count):
            began = time.monotonic_ns()
            endpoint.send(message)
            answer = endpoint.receive()
            ended = STAMP.unpack_from(answer)[0] if one_way else time.monotonic_ns()
            samples.append((ended - began) / 1000)
        report.send((median(samples[warm:]),))

    def receive(endpoint: Endpoint, _report: Connection) -> None:
        ledger, echo = Ledger(row.size), bytearray(row.size)
        for _ in range(count):
            message = endpoint.receive()
            now = time.monotonic_ns()
            if one_way:
                answer = bytearray(STAMP.pack(now))
            else:
                echo[: len(message)] = message
                answer = echo
            if name not in _UNSTAMPED:
                ledger.take(message)
            endpoint.send(answer)
        if name not in _UNSTAMPED and ledger.checksum != Ledger(row.size).expect(count):
            raise PeerFailed(f"{name}: wrong messages")

    return float(_run(name, transport, send, receive)[0])


def _messages(size: int, count: int) -> Iterator[bytearray]:
    """The messages of a round.  One buffer is stamped anew for each; a transport has copied it when it returns."""
    kept = bodies(size)
    for sequence in range(count):
        message = kept[sequence % DISTINCT]
        stamp(message, sequence)
        yield message


Part = Callable[[Endpoint, Connection], None]


def _run(name: str, transport: Transport, send: Part, receive: Part) -> tuple[Any, ...]:
    """Fork both ends and the helpers; what one end reports.  The ends stay until it has been heard."""
    ours, theirs = FORK.Pipe(duplex=False)
    stay, leave = FORK.Pipe(duplex=False)

    def end(make: Callable[[], Endpoint], part: Part) -> Callable[[], None]:
        def run() -> None:
            leave.close()
            endpoint = make()  # lives until we leave: a socket that closes may drop what it has not delivered
            part(endpoint, theirs)
            theirs.close()
            stay.poll(None)  # until the parent closes its end

        return run

    helpers = [_fork(helper) for helper in transport.helpers]
    ends = [_fork(end(transport.receiver, receive)), _fork(end(transport.sender, send))]
    theirs.close()
    stay.close()
    try:
        return _await_report(name, ours, ends)
    finally:
        leave.close()
        ours.close()
        for pid in (*ends, *helpers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _await_report(name: str, ours: Connection, ends: list[int]) -> tuple[Any, ...]:
    """The report; PeerFailed as soon as an end has ended without one."""
    until = time.monotonic() + WITHIN
    while not ours.poll(0.1):
        if any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in ends):
            raise PeerFailed(f"an end of {name} failed")
        if time.monotonic() >= until:
            raise PeerFailed(f"{name} took more than {WITHIN:g} s")
    try:
        found: tuple[Any, ...] = ours.recv()
    except EOFError:
        raise PeerFailed(f"{name} ended without a result") from None
    return found


def _fork(part: Callable[[], None]) -> int:
    """Run `part` in a child of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        part()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


__all__ = ["PEERS", "PeerFailed", "Unavailable", "measure", "memcpy"]
