"""The broker's shell: one ROUTER, a plain poll loop, and nothing of its own to decide.

The ROUTER is used without trusting its defaults.  ROUTER_MANDATORY makes an unknown or vanished peer an
error (EHOSTUNREACH) where the default drops in silence, and a full pipe EAGAIN; sends never wait; LINGER is
0, so that closing never hangs; MAXMSGSIZE and a short read-ahead bound what a peer can make us hold.  The
high-water mark of sends is far above what credit lets a conforming peer have under way, and is never relied
on.  Routing ids are the socket's own: no node chooses one, so none can take another's.  No option of the
DRAFT interface is used: released wheels do not have it.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import stat
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Final

import zmq

from broker.client import receive_parts
from broker.frames import MAX_PART
from broker.router import RouterCore
from broker.session import SendResult

TURN: Final = 256
"""Messages taken before what they cause is sent."""
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


class Server:
    """Moves messages between a ROUTER socket and a :class:`broker.router.RouterCore`, whose sink it is."""

    def __init__(self, endpoint: str, *, token: bytes, epoch: int) -> None:
        self.endpoint = endpoint
        self.core = RouterCore(token=token, epoch=epoch, sink=self, mint=lambda: os.urandom(16))
        self._stop = False
        self._logged: Counter[str] = Counter()
        self._path = ipc_path(endpoint)
        if self._path is not None:
            _check_free(endpoint, self._path)
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
        self._bind()

    def _bind(self) -> None:
        before = os.umask(0o177)
        try:
            self._router.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._path = None  # not ours to remove
            self.close()
            raise EndpointError(self.endpoint, str(error)) from None
        finally:
            os.umask(before)

    def serve(self) -> None:
        """Route until the core is told to shut down, by the agent or by :meth:`stop`, and nodes know of it."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_in.fileno(), zmq.POLLIN)
        tick_ns = time.monotonic_ns()
        self.core.on_tick(tick_ns)
        leave_ns: int | None = None
        while leave_ns is None or not (self.core.settled or tick_ns >= leave_ns):
            now_ns = time.monotonic_ns()
            wait_ms = max(0, tick_ns + TICK_NS - now_ns + 999_999) // 1_000_000
            if any(fd == self._wake_in.fileno() for fd, _ in poller.poll(wait_ms)):
                self._drain_wake()
            now_ns = time.monotonic_ns()
            self._receive(now_ns)
            if now_ns - tick_ns >= TICK_NS:
                tick_ns = now_ns
                self.core.on_tick(now_ns)
            if self._stop:
                self.core.shutdown()
            self.core.flush()
            if self.core.stopping and leave_ns is None:
                leave_ns = now_ns + FAREWELL_NS

    def stop(self) -> None:
        """Shut down at the next turn of the loop.  May be called from a signal handler or another thread."""
        self._stop = True
        with contextlib.suppress(OSError):
            self._wake_out.send(b"\0")

    def close(self) -> None:
        """Close the socket at once; its file is gone afterwards.  May be called twice."""
        if not self._router.closed:
            self._router.close(0)
            self._context.term()
            self._wake_in.close()
            self._wake_out.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

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
                routing_id, *parts = receive_parts(self._router, 5)
            except zmq.Again:
                return
            size += sum(map(len, parts))
            try:
                self.core.on_frame(routing_id, parts, now_ns)
            except Exception:  # a mistake of ours: one message is lost, the lab goes on
                self.core.counters["internal_errors"] += 1
                self._log(traceback.format_exc())

    # ---- the core's sink ---------------------------------------------------------------------------------

    def send(self, routing_id: bytes, parts: Sequence[bytes]) -> SendResult:
        """Hand a frame to the socket."""
        try:
            self._router.send_multipart([routing_id, *parts], zmq.DONTWAIT)
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
