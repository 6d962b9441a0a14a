"""The Argo stream protocol as an engine over `stream_table`: frames and calls in, frames and wake-ups out.

Specification: the stream half of OpenXT's Linux Argo driver.  Nothing here knows of rings, hypercalls,
tasks or clocks.  `Connection` is one socket; `Listener` and `Connector` stand behind rings and tell which
connection a frame belongs to.  Effects go to a `StreamSink`.

What the Linux driver does otherwise:

* Its receive queue is 3 frames for a whole ring, so one slow reader stops every connection of a listener.
  Here each connection may hold a budget of unread bytes; only beyond it a frame stays in the ring (nothing
  is lost: the ring fills and the sender waits), and the sockets of `stream` give each peer domain its own
  ring.
* Bytes queued when an RST arrives are read before the end of the stream is reported.
* Pending SYNs wait in a backlog of their own and are withdrawn only by the peer that sent them.
* A connector believes only frames of this message type from the address it connected to (Linux looks at the
  conid alone), and never answers RST by RST.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, Protocol

from guest_node.drivers.stream_table import (
    HEADER,
    HEADER_SIZE,
    MESSAGE_TYPE_STREAM,
    PRECEDENCE,
    ROWS,
    Action,
    Event,
    Flag,
    Machine,
    Row,
    State,
)
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.ring import used_by

DEFAULT_BUDGET: Final = 1 << 20  # bytes of ring space that one connection's unread frames would take
DEFAULT_BACKLOG: Final = 64

_CONTROL_FLAGS: Final = int(Flag.SYN | Flag.ACK | Flag.RST)
_KNOWN: Final = tuple((int(rule.flag), rule.event) for rule in PRECEDENCE if rule.known)
_UNKNOWN: Final = tuple((int(rule.flag), rule.event) for rule in PRECEDENCE if not rule.known)


class Identity(NamedTuple):
    """What tells a listener's connections apart."""

    domid: int
    port: int
    conid: int


class StreamSink(Protocol):
    """Where the engine's effects go.  Neither call may run the engine again before it returns."""

    def control(self, to: Address, source_port: int, flags: Flag, conid: int) -> None:
        """Send a frame of exactly 8 bytes, now or when there is room."""

    def changed(self, machine: Connection | Listener) -> None:
        """Whoever waits on `machine` should look at it again."""


class Nobody:
    """The sink of a machine that nobody uses yet."""

    def control(self, to: Address, source_port: int, flags: Flag, conid: int) -> None:
        """Nothing is sent."""

    def changed(self, machine: Connection | Listener) -> None:
        """Nobody waits."""


NOBODY: Final = Nobody()


def classify(flags: int, known: bool) -> Event | None:
    """The control event that a frame's flags mean, None if it carries data or an unused flag."""
    for mask, event in _KNOWN if known else _UNKNOWN:
        if flags & mask:
            return event
    return None


class Connection:
    """One stream socket: state, unread bytes, pending error.

    `inbox` holds the payloads of data frames in order; `unread` is what they would take in a ring, which is
    the unit of `budget` (so that a flood of one-byte frames costs memory in proportion).
    """

    __slots__ = (
        "_next",
        "budget",
        "conid",
        "error",
        "frames",
        "held",
        "inbox",
        "machine",
        "offset",
        "peer",
        "port",
        "sink",
        "state",
        "unread",
    )

    def __init__(
        self,
        machine: Machine,
        state: State,
        port: int,
        peer: Address,
        conid: int,
        sink: StreamSink,
        budget: int,
    ) -> None:
        self.machine = machine
        self.port = port
        self.peer = peer
        self.conid = conid
        self.sink = sink
        self.budget = budget
        self.inbox: deque[bytes] = deque()
        self.offset = 0  # bytes of inbox[0] that were read already
        self.unread = 0
        self.frames = 0  # data frames queued so far
        self.error = 0
        self.held = False  # a frame of this connection was left in the ring
        self._enter(state)

    @property
    def identity(self) -> Identity:
        """The key of this connection at a listener."""
        return Identity(self.peer.domid, self.peer.port, self.conid)

    def _enter(self, state: State) -> None:
        self.state = state
        self._next = _NEXT[self.machine, state]

    def step(self, event: Event, error: int = 0, payload: memoryview | None = None) -> Row:
        """Take one transition and return its row; `error` overrides the row's errno.

        Raises KeyError when the table has no such row.
        """
        row = self._next[event]
        if row.new_state is not self.state:
            self._enter(row.new_state)
        for action in row.actions:
            if action is Action.QUEUE:
                assert payload is not None
                self._queue(payload)
            elif action is Action.WAKE:
                self.sink.changed(self)
            elif action is Action.HOLD:
                self.held = True
            elif action is Action.FAIL:
                self.error = error or row.error
            elif action is Action.CLEAR_ERROR:
                self.error = 0
            else:
                self.sink.control(self.peer, self.port, _FLAG_OF[action], self.conid)
        return row

    def frame(self, flags: int, payload: memoryview) -> bool:
        """One frame of this connection, header included.  False: leave it in the ring."""
        event = classify(flags, known=True) if flags & _CONTROL_FLAGS else None
        if event is None:
            size = len(payload)
            if size == HEADER_SIZE:
                return True  # no bytes, no event
            full = self.inbox and self.unread + used_by(size) > self.budget
            event = Event.DATA_FULL if full else Event.DATA
        elif event is Event.SYN and len(payload) != HEADER_SIZE:
            event = Event.SYN_ODD
        return Action.HOLD not in self.step(event, 0, payload).actions

    def _queue(self, payload: memoryview) -> None:
        self.frames += 1
        self.inbox.append(bytes(payload[HEADER_SIZE:]))
        self.unread += used_by(len(payload))

    def take(self, limit: int) -> bytes:
        """At most `limit` unread bytes, not waiting: one frame or the rest of one; b"" if there is none."""
        inbox = self.inbox
        if not inbox:
            return b""
        head, offset = inbox[0], self.offset
        if len(head) - offset > limit:
            self.offset = offset + limit
            return head[offset : offset + limit]
        self._drop_head()
        return head[offset:] if offset else head

    def take_into(self, target: memoryview) -> int:
        """Fill `target` from unread bytes, without waiting; the number of bytes copied."""
        done, want = 0, len(target)
        while done < want and self.inbox:
            head, offset = self.inbox[0], self.offset
            step = min(len(head) - offset, want - done)
            target[done : done + step] = memoryview(head)[offset : offset + step]
            done += step
            if offset + step == len(head):
                self._drop_head()
            else:
                self.offset = offset + step
        return done

    def put_back(self, data: bytes) -> None:
        """Undo the last takes: `data` is to be read again, before everything else."""
        if self.offset:
            head = self.inbox[0]
            self.inbox[0] = rest = head[self.offset :]
            self.unread += used_by(HEADER_SIZE + len(rest)) - used_by(HEADER_SIZE + len(head))
            self.offset = 0
        self.inbox.appendleft(data)
        self.unread += used_by(HEADER_SIZE + len(data))

    def _drop_head(self) -> None:
        self.unread -= used_by(HEADER_SIZE + len(self.inbox.popleft()))
        self.offset = 0


class Listener:
    """A listening port: its backlog of SYNs and the connections that were accepted from it.

    One `Listener` stands behind all rings of its port, the shared one and those of single peers.
    """

    __slots__ = ("_next", "backlog", "budget", "connections", "pending", "port", "sink", "state")

    def __init__(
        self,
        port: int,
        sink: StreamSink = NOBODY,
        *,
        backlog: int = DEFAULT_BACKLOG,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        if backlog < 1:
            raise ValueError(f"a backlog holds at least one SYN, not {backlog}")
        self.port = port
        self.sink = sink
        self.backlog = backlog
        self.budget = budget
        self.pending: dict[Identity, None] = {}  # SYNs not yet accepted, oldest first
        self.connections: dict[tuple[int, int, int], Connection] = {}
        self.state = State.LISTENING
        self._next = _NEXT[Machine.LISTENER, State.LISTENING]

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message from a ring of this port.  False: leave it there."""
        if message_type != MESSAGE_TYPE_STREAM or len(payload) < HEADER_SIZE:
            return True
        flags, conid = HEADER.unpack_from(payload)
        connection = self.connections.get((source_domid, source_port, conid))
        if connection is not None:
            return connection.frame(flags, payload)
        who = Identity(source_domid, source_port, conid)
        event = classify(flags, known=False) or Event.OTHER
        if event is Event.SYN:
            event = self._syn_event(who, len(payload))
        self._step(event, who)
        return True

    def _syn_event(self, who: Identity, size: int) -> Event:
        if size != HEADER_SIZE:
            return Event.SYN_ODD
        if self.state is State.LISTENING:
            if who in self.pending:
                return Event.SYN_AGAIN
            if len(self.pending) >= self.backlog:
                return Event.SYN_FULL
        return Event.SYN

    def _step(self, event: Event, who: Identity | None = None) -> tuple[Row, Connection | None]:
        row = self._next[event]
        if row.new_state is not self.state:
            self.state = row.new_state
            self._next = _NEXT[Machine.LISTENER, row.new_state]
        taken: Connection | None = None
        for action in row.actions:
            if action is Action.WAKE:
                self.sink.changed(self)
            elif action is Action.RESET_SYNS:
                for waiting in self.pending:
                    self._reset(waiting)
                self.pending.clear()
            elif action is Action.TAKE_SYN:
                taken = self._take()
            elif who is not None:
                self._frame_action(action, who)
        return row, taken

    def _frame_action(self, action: Action, who: Identity) -> None:
        if action is Action.QUEUE_SYN:
            self.pending[who] = None
        elif action is Action.FORGET_SYN:
            self.pending.pop(who, None)
        elif action is Action.REPLY_RST:
            self._reset(who)

    def _reset(self, who: Identity) -> None:
        self.sink.control(Address(who.port, who.domid), self.port, Flag.RST, who.conid)

    def _take(self) -> Connection | None:
        for who in self.pending:
            del self.pending[who]
            peer = Address(who.port, who.domid)
            connection = Connection(Machine.ACCEPTED, State.OPENING, self.port, peer, who.conid, self.sink, self.budget)
            self.connections[who] = connection
            return connection
        return None

    def accept(self) -> tuple[int, Connection | None]:
        """(errno or 0, the connection of the oldest pending SYN or None).

        It is in state OPENING: make a ring for its peer, then `step(Event.READY)` sends the ACK.
        """
        row, taken = self._step(Event.ACCEPT)
        return row.error, taken

    def close(self) -> None:
        """Stop listening: RST to each pending SYN.  Accepted connections stay."""
        self._step(Event.CLOSE)

    def forget(self, connection: Connection) -> None:
        """A closed connection's frames are nobody's from now on."""
        self.connections.pop(connection.identity, None)


class Connector:
    """The ring of one connecting socket.

    `answers`: (port, domain id) that its frames come from.  Who connects by an implicit destination (experimental)
    knows neither: whoever sends its conid first is the peer, and nobody else after that.
    """

    __slots__ = ("answers", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        peer = connection.peer
        self.answers = None if peer.domid == DOMID_ANY else (peer.port, peer.domid)

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message from the connector's ring.  False: leave it there."""
        connection = self.connection
        if message_type != MESSAGE_TYPE_STREAM or len(payload) < HEADER_SIZE or connection.state is State.CLOSED:
            return True
        flags, conid = HEADER.unpack_from(payload)
        source = source_port, source_domid
        if conid == connection.conid and self.answers in (None, source):
            self.answers = source
            return connection.frame(flags, payload)
        event = classify(flags, known=False) or Event.OTHER
        if event is Event.SYN and len(payload) != HEADER_SIZE:
            event = Event.SYN_ODD
        for action in _STRANGER[event].actions:
            if action is Action.REPLY_RST:
                connection.sink.control(Address(source_port, source_domid), connection.port, Flag.RST, conid)
        return True


def connecting(
    port: int, peer: Address, conid: int, sink: StreamSink = NOBODY, budget: int = DEFAULT_BUDGET
) -> Connection:
    """A socket bound to `port` that is about to connect to `peer`; `step(Event.CONNECT)` sends the SYN."""
    return Connection(Machine.CONNECTOR, State.BOUND, port, peer, conid, sink, budget)


_FLAG_OF: Final = {Action.SEND_SYN: Flag.SYN, Action.SEND_ACK: Flag.ACK, Action.SEND_RST: Flag.RST}


def _index(rows: tuple[Row, ...]) -> dict[tuple[Machine, State], dict[Event, Row]]:
    index: dict[tuple[Machine, State], dict[Event, Row]] = {}
    for row in rows:
        entry = index.setdefault((row.machine, row.state), {})
        if row.event in entry:
            raise ValueError(f"two rows for {row.machine.name} {row.state.name} {row.event.name}")
        entry[row.event] = row
    return index


_NEXT: Final = _index(ROWS)
_STRANGER: Final = _NEXT[Machine.STRANGER, State.BOUND]
