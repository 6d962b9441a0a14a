"""Stream sockets over vsock packets, without I/O: connections, their credit, and which packets are answered with RST.

Source: VIRTIO 1.4, 5.10.6.  A guest's driver and the host's side of a device are the same here: both send and get
packets.  A peer that breaks the rules of credit or of the states of a connection loses that connection, nothing else.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from hmx.virtio.vsock import Op, Shutdown, SocketType, VsockHeader, in_flight, peer_free, plausible, reset_for

U32: Final = 0xFFFFFFFF
BUFFER: Final = 262144  # bytes that a connection holds unread
PAYLOAD_MAX: Final = 4052  # bytes of a packet: with its header one page, which is what drivers post
BACKLOG: Final = 64
AUTOMATIC: Final = range(49152, 65536)
CONNECTIONS_MAX: Final = 4096
_BOTH: Final = Shutdown.RECEIVE | Shutdown.SEND

Key = tuple[int, int, int]
"""Own port, the peer's CID, the peer's port."""


class State(Enum):
    """Of a connection."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"  # SHUTDOWN with both bits is out; RST ends it
    CLOSED = "closed"


class Connection:
    """One end of a stream.  `changed` is called whenever there is something to read, to write or to notice."""

    def __init__(self, stack: VsockStack, key: Key, state: State) -> None:
        self.key = key
        self.state = state
        self.error = 0
        """Why it ended, an errno; 0 while it has not, or where it ended in good order."""
        self.changed: Callable[[], None] = _nothing
        self.ended = False  # the peer sends no more
        self.peer_receives = True
        self.peer_alloc = 0
        self.peer_fwd = 0
        self.tx_count = 0
        self.rx_count = 0
        self.forwarded = 0
        self.told = 0  # what the peer knows of `forwarded`
        self.unread: deque[bytes] = deque()
        self._stack = stack

    def room(self) -> int:
        """Bytes that may be written now."""
        if self.state is not State.OPEN or not self.peer_receives:
            return 0
        return peer_free(self.peer_alloc, self.peer_fwd, self.tx_count)

    def write(self, data: bytes | memoryview) -> int:
        """Send as much as there is credit for; how much that was.  EPIPE, or why it ended."""
        if self.state is not State.OPEN or not self.peer_receives:
            raise OSError(self.error or errno.EPIPE, "the stream takes no more")
        count = min(len(data), self.room())
        for at in range(0, count, PAYLOAD_MAX):
            part = bytes(data[at : min(at + PAYLOAD_MAX, count)])
            self.tx_count = self.tx_count + len(part) & U32
            self._stack.emit(self, Op.RW, part)
        return count

    def read(self, size: int) -> bytes:
        """At most `size` bytes that came; b"" where there are none."""
        if not self.unread:
            return b""
        data = self.unread.popleft()
        if len(data) > size:
            self.unread.appendleft(data[size:])
            data = data[:size]
        self.forwarded = self.forwarded + len(data) & U32
        if self.state is State.OPEN and in_flight(self.told, self.forwarded) >= self._stack.buffer // 4:
            self._stack.emit(self, Op.CREDIT_UPDATE)
        return data

    def close(self) -> None:
        """Neither send nor receive any more."""
        self.unread.clear()
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self._stack.emit(self, Op.SHUTDOWN, flags=_BOTH)
        elif self.state is State.CONNECTING:
            self.abort(errno.ECONNABORTED)

    def abort(self, why: int) -> None:
        """End it at once, with an RST."""
        if self.state is not State.CLOSED:
            self._stack.emit(self, Op.RST)
            self._stack.end(self, why)


class VsockStack:
    """The sockets of `cid`.  `send` gets every packet, its header packed with CIDs, ports and credit."""

    def __init__(self, cid: int, send: Callable[[VsockHeader, bytes], None], buffer: int = BUFFER) -> None:
        self.cid = cid
        self.buffer = buffer
        self.strays = 0
        """Packets for nobody."""
        self.broken = 0
        """Connections that ended since the peer broke the rules."""
        self._send = send
        self._connections: dict[Key, Connection] = {}
        self._listeners: dict[int, Callable[[Connection], bool]] = {}
        self._next_port = 0

    def listen(self, port: int, accept: Callable[[Connection], bool]) -> None:
        """`accept` gets each new connection; False refuses it.  EADDRINUSE."""
        if port in self._listeners:
            raise OSError(errno.EADDRINUSE, f"port {port} is taken")
        self._listeners[port] = accept

    def unlisten(self, port: int) -> None:
        """Nobody listens there any more; connections stay."""
        self._listeners.pop(port, None)

    def connect(self, cid: int, port: int) -> Connection:
        """Ask for a connection.  EADDRNOTAVAIL: no port is free."""
        key = (self._free_port(cid, port), cid, port)
        connection = self._connections[key] = Connection(self, key, State.CONNECTING)
        self.emit(connection, Op.REQUEST)
        return connection

    def packet(self, header: VsockHeader, payload: bytes) -> None:
        """A packet came whose shape is good (`hmx.virtio.vsock.unpack_packet`)."""
        connection = None
        if header.dst_cid == self.cid and header.type == SocketType.STREAM:
            key = (header.dst_port, header.src_cid, header.src_port)
            connection = self._connections.get(key)
            if connection is None and header.op == Op.REQUEST and self._accept(key, header):
                return
        if connection is None:
            self.strays += 1
            answer = reset_for(header)
            if answer is not None:
                self._send(answer, b"")
            return
        if header.op == Op.RST:
            self.end(connection, _RST_MEANS[connection.state])
        elif not self._credit(connection, header) or not self._carry_out(connection, header, payload):
            self.broken += 1
            connection.abort(errno.EPROTO)
        else:
            connection.changed()

    def transport_reset(self, cid: int) -> None:
        """Every connection is gone, without a word to the peers; listeners stay (5.10.6.7)."""
        self.fail(errno.ECONNRESET)
        self.cid = cid

    def fail(self, why: int) -> None:
        """The device is gone."""
        for connection in tuple(self._connections.values()):
            self.end(connection, why)

    def emit(self, connection: Connection, op: Op, payload: bytes = b"", flags: int = 0) -> None:
        """Send a packet of a connection, with its credit."""
        own_port, cid, port = connection.key
        connection.told = connection.forwarded
        header = VsockHeader(
            self.cid, cid, own_port, port, len(payload), SocketType.STREAM, op, flags, self.buffer, connection.forwarded
        )
        self._send(header, payload)

    def end(self, connection: Connection, why: int) -> None:
        """The connection is over; what came stays readable."""
        if connection.state is not State.CLOSED:
            connection.state = State.CLOSED
            connection.ended = True
            connection.error = connection.error or why
            self._connections.pop(connection.key, None)
            connection.changed()

    def _accept(self, key: Key, header: VsockHeader) -> bool:
        accept = self._listeners.get(header.dst_port)
        if accept is None or len(self._connections) >= CONNECTIONS_MAX:
            return False
        connection = Connection(self, key, State.OPEN)
        connection.peer_alloc, connection.peer_fwd = header.buf_alloc, 0
        if not accept(connection):
            return False
        self._connections[key] = connection
        self.emit(connection, Op.RESPONSE)
        return True

    def _credit(self, connection: Connection, header: VsockHeader) -> bool:
        """Take the peer's credit; False where it cannot be."""
        if not plausible(header.fwd_cnt, connection.tx_count, connection.peer_fwd):
            return False
        connection.peer_alloc, connection.peer_fwd = header.buf_alloc, header.fwd_cnt
        return True

    def _carry_out(self, connection: Connection, header: VsockHeader, payload: bytes) -> bool:
        """Whether the packet may come in this state."""
        connecting = connection.state is State.CONNECTING
        match header.op:
            case Op.RESPONSE:
                if not connecting:
                    return False
                connection.state = State.OPEN
            case Op.RW:
                return not connecting and self._data(connection, payload)
            case Op.SHUTDOWN:
                connection.ended |= bool(header.flags & Shutdown.SEND)
                connection.peer_receives &= not header.flags & Shutdown.RECEIVE
                if connection.ended and not connection.peer_receives:
                    # The peer is done in both directions: RST confirms it.
                    self.emit(connection, Op.RST)
                    self.end(connection, errno.ECONNREFUSED if connecting else 0)
            case Op.CREDIT_REQUEST:
                self.emit(connection, Op.CREDIT_UPDATE)
            case Op.REQUEST:
                return False
        return True

    def _data(self, connection: Connection, payload: bytes) -> bool:
        connection.rx_count = connection.rx_count + len(payload) & U32
        if connection.ended or in_flight(connection.forwarded, connection.rx_count) > self.buffer:
            return False
        if connection.state is State.CLOSING:
            connection.forwarded = connection.rx_count  # nobody will read it
        elif payload:
            connection.unread.append(bytes(payload))
        return True

    def _free_port(self, cid: int, port: int) -> int:
        if len(self._connections) < CONNECTIONS_MAX:
            for step in range(len(AUTOMATIC)):
                own = AUTOMATIC[(self._next_port + step) % len(AUTOMATIC)]
                if (own, cid, port) not in self._connections and own not in self._listeners:
                    self._next_port = (self._next_port + step + 1) % len(AUTOMATIC)
                    return own
        raise OSError(errno.EADDRNOTAVAIL, "no port is free")


_RST_MEANS: Final = {
    State.CONNECTING: errno.ECONNREFUSED,
    State.OPEN: errno.ECONNRESET,
    State.CLOSING: 0,
    State.CLOSED: 0,
}


def _nothing() -> None:
    """Nobody looks yet."""
