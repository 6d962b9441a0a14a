"""A node's link to the broker over ZeroMQ: one DEALER, created in the process that uses it, driven by its
owner's loop.

The socket's descriptor (ZMQ_FD) is edge-triggered and says only "something changed": after every send, every
receive and before every sleep EVENTS must be read and acted on.  :meth:`ZmqLink.pump` does all of that; an
owner calls it once in every turn of its loop, sleeps only when it returned False, and wakes when
:meth:`ZmqLink.fileno` is readable.

The DEALER has ZMQ_IMMEDIATE set: while no broker is connected nothing is queued inside ZeroMQ, but in the
member's bounded queues, which know what is worth sending to the next broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from broker.fields import Record
from broker.frames import LARGE, MAX_PART, Buffer, Lane, Parts
from broker.keys import ClientCurve
from broker.link import OnRecord
from broker.member import Identity, Member, MemberState
from broker.monitor import Monitor
from broker.refusals import Refusal
from broker.session import SendResult

TURN: Final = 64
"""Frames received in one turn."""
RECONNECT_MS: Final = 20
RECONNECT_MAX_MS: Final = 500
HANDSHAKE_MS: Final = 5000
KEEPALIVE: Final = ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 1), (zmq.TCP_KEEPALIVE_INTVL, 1),
                    (zmq.TCP_KEEPALIVE_CNT, 5), (zmq.TCP_MAXRT, 10_000), (zmq.HANDSHAKE_IVL, HANDSHAKE_MS))  # fmt: skip
"""For tcp: a host that vanished is noticed within 6 to 10 s.  The kernel answers for a process that is stopped, which
therefore keeps its connection, as ZMTP's own heartbeats would not let it."""
# Plain integers: operators of pyzmq's flags make objects.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT) | int(zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
WATCH_NS: Final = 100_000_000
"""How often the transport is asked whether handshakes fail, while there is a session."""
LOOK_S: Final = 0.1
"""A blocking helper looks at least so often whether a hello is to be repeated."""


class JoinRefused(Exception):
    """The broker will not have this node: `code` of :class:`broker.refusals.Refusal`, and the broker's words."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class JoinTimeout(TimeoutError):
    """No broker answered in time."""


def content(frame: zmq.Frame) -> bytes | memoryview:
    """What a part holds; a large one is not copied."""
    return frame.buffer if len(frame) >= LARGE else frame.bytes


def receive_parts(socket: zmq.Socket[bytes], most: int) -> list[bytes | memoryview]:
    """One whole message without waiting, at most `most` parts of it kept.  Raises zmq.Again when there is none."""
    frame = socket.recv(_DONTWAIT, copy=False)  # it knows whether more follows; asking the socket costs as much again
    parts = [content(frame)]
    while frame.more:
        frame = socket.recv(_DONTWAIT, copy=False)
        if len(parts) < most:
            parts.append(content(frame))
    return parts


def send_parts(socket: zmq.Socket[bytes], parts: Parts) -> None:
    """One whole message without waiting: `send_multipart` for parts that are bytes.  Raises what it does.

    ZeroMQ takes or refuses a message with its first part; those after it are not refused for lack of room.
    """
    send, last = socket.send, len(parts) - 1
    for part in parts[:last]:
        send(part, _MORE)
    end = parts[last]
    send(end if type(end) is bytes else _uncopied(end), _DONTWAIT)


def _uncopied(part: bytes | memoryview) -> Any:
    """What was received as a part and is sent on as it is, without a copy; anything else as it is."""
    frame: Any = part.obj if isinstance(part, memoryview) else None
    return frame if isinstance(frame, zmq.Frame) and len(frame) == len(part) else part


class ZmqLink:
    """A node's :class:`broker.link.Link` over a ZeroMQ endpoint.

    Joining starts with the first flush or pump.  `epoch`: the broker's epoch known at start; older ones are
    not believed.  `curve`: keys, for a broker on another host; a handshake that cannot succeed is a refusal
    (HANDSHAKE_FAILED) like the broker's own, and is not tried again.  Callbacks (`on_record`, and
    `on_welcome`, `on_disconnected`, `on_refused` of `member`) run inside :meth:`pump`; they may send, and what
    they send leaves in the same pump.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        kind: str,
        name: str,
        token: bytes,
        epoch: int = 0,
        pid: int | None = None,
        curve: ClientCurve | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.member = Member(Identity(kind, name, token, os.getpid() if pid is None else pid), epoch)
        self._pumping = False
        self._full = False  # the socket refused a frame of the last flush
        self._busy = True  # what the last look at EVENTS showed
        self._watched_ns = 0
        self._beats = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._monitor: Monitor | None = None
        if endpoint.startswith("tcp://"):
            self._secure(curve)
        self._socket.connect(endpoint)
        self._fd = int(self._socket.getsockopt(zmq.FD))

    def _secure(self, curve: ClientCurve | None) -> None:
        self._monitor = Monitor(self._socket)
        for option, value in KEEPALIVE:
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.IPV6, int("[" in self.endpoint))
        if curve is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.pair.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, curve.pair.secret)

    @property
    def on_record(self) -> OnRecord:
        """Called with lane, record and payload of whatever arrives."""
        return self.member.on_record

    @on_record.setter
    def on_record(self, handler: OnRecord) -> None:
        self.member.on_record = handler

    @property
    def joined(self) -> bool:
        """Whether there is a session now."""
        return self.member.state is MemberState.JOINED

    def fileno(self) -> int:
        """The descriptor to wait on for reading.  Never read it; call :meth:`pump`."""
        return self._fd

    def send(self, lane: Lane, record: Record, payload: Buffer = b"") -> bool:
        """Queue a record; see :class:`broker.link.Link`."""
        return self.member.send(lane, record, payload)

    def credit(self, lane: Lane) -> int:
        """Records that would leave with the next flush; 0 without a session."""
        return self.member.credit(lane)

    def heartbeat(self) -> None:
        """Say that the owner's loop runs.  Every 500 ms, from that loop; leaves with the next flush or pump."""
        self._beats += 1
        self.member.send(Lane.CONTROL, ["heartbeat", self._beats])

    def silent_ns(self) -> int | None:
        """How long the broker has not been heard; None before it was.  It answers heartbeats: over 2 s is odd."""
        return None if self.member.heard_ns is None else time.monotonic_ns() - self.member.heard_ns

    # ---- the owner's loop --------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Send what is ready now.  True: input is waiting that the descriptor will not announce again."""
        if self._pumping or self._socket.closed:  # in a callback: the pump around it flushes
            return False
        if not self.member.unsent:
            return self._busy  # the socket is as it was when it was looked at last
        self._send(time.monotonic_ns())
        return self._more()

    def pump(self) -> bool:
        """One turn: at most 64 frames in, their callbacks, then out.  True: call again before sleeping."""
        if self._pumping or self._socket.closed:
            return False
        now_ns = self._take()
        self._send(now_ns)
        return self._more()

    def receive(self) -> bool:
        """The first half of :meth:`pump`: what came is called out, and what that causes leaves with the next flush.
        True: call again before sleeping.
        """
        if self._pumping or self._socket.closed:
            return False
        self._take()
        return self._more()

    def _take(self) -> int:
        """At most 64 frames in, and their callbacks; when that began."""
        self._pumping = True
        try:
            now_ns = time.monotonic_ns()
            for _ in range(TURN):
                try:
                    self.member.on_frame(receive_parts(self._socket, 4), now_ns)
                except zmq.Again:
                    break
                if not int(self._socket.getsockopt(_EVENTS)) & _POLLIN:  # an exception would cost more
                    break
            if now_ns - self._watched_ns >= WATCH_NS or not self.joined:
                self._watched_ns = now_ns
                self._watch()
            self.member.deliver()
        finally:
            self._pumping = False
        return now_ns

    def _watch(self) -> None:
        """Give up when the transport will never let us in."""
        why = None if self._monitor is None else self._monitor.failure()
        if why is not None and self.member.refusal is None:
            self._socket.disconnect(self.endpoint)
            self.member.turn_away(Refusal.HANDSHAKE_FAILED, f"{self.endpoint}: {why}")

    def _send(self, now_ns: int) -> None:
        self._full = False
        self.member.flush(self._transmit, now_ns)

    def _more(self) -> bool:
        """Reading EVENTS arms the next edge; whatever it shows now will not be announced again."""
        events = int(self._socket.getsockopt(_EVENTS))
        self._busy = bool(events & _POLLIN) or (self._full and bool(events & _POLLOUT))
        return self._busy

    def _transmit(self, parts: Parts) -> SendResult:
        try:
            send_parts(self._socket, parts)
        except zmq.Again:
            self._full = True
            return SendResult.AGAIN
        return SendResult.SENT

    # ---- blocking helpers, for before and after the loop -------------------------------------------------

    def wait_joined(self, timeout: float) -> int:
        """Say hello and wait for the answer, at most `timeout` seconds: the broker's epoch.

        JoinRefused: the broker's refusal.  JoinTimeout: no answer.  What arrives meanwhile is called out.
        """
        if not self._pump_until(timeout, lambda: self.joined or self.member.refusal is not None):
            raise JoinTimeout(f"no broker answered at {self.endpoint} within {timeout:g} s")
        if self.member.refusal is not None:
            raise JoinRefused(*self.member.refusal)
        return self.member.epoch

    def drain(self, timeout: float) -> bool:
        """Pump until every control record was acknowledged, at most `timeout` seconds.  Whether they were."""
        return self._pump_until(timeout, lambda: self.member.settled)

    def leave(self, code: int, reason: str, timeout: float = 1.0) -> bool:
        """Say exit, wait at most `timeout` seconds until the broker knows or has left itself, close.

        False: the time was over, and nobody may know why this node ended.
        """
        self.send(Lane.CONTROL, ["exit", code, reason])
        done = self.drain(timeout)
        self.close()
        return done

    def _pump_until(self, timeout: float, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + timeout
        while True:
            more = self.pump()
            if done():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not more:
                flags = zmq.POLLIN | zmq.POLLOUT if self._full else zmq.POLLIN
                self._socket.poll(int(min(left, LOOK_S) * 1000) + 1, flags)

    def close(self) -> None:
        """Close socket and context at once; what was not sent is lost.  May be called twice."""
        if not self._socket.closed:
            if self._monitor is not None:
                self._monitor.close()
            self._socket.close(0)
            self._context.term()
