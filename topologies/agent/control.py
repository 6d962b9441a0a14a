"""The agent's control socket: others of the same user ask what runs, or ask for the end.

An AF_UNIX stream in the socket directory; one JSON object per line.  ``{"op": "state"}`` is answered with
the state; ``{"op": "down"}`` with progress records while the lab goes down and the outcome at its end.  The
kernel says who is at the other end (SO_PEERCRED); only the lab's own user, or root, is served.  Nobody can
make the agent wait: what a client does not read stays in a bounded buffer, and a client whose buffer is full
is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_REQUEST = 1 << 17
MAX_BACKLOG = 4 << 20
MAX_CLIENTS = 64

_UCRED = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


class LineWriter:
    """Writes lines to a descriptor without ever waiting for its reader."""

    def __init__(self, fd: int, limit: int = MAX_BACKLOG) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.broken = False
        self._limit = limit
        self._pending = bytearray()

    @property
    def pending(self) -> bool:
        """Whether something waits for the reader."""
        return bool(self._pending) and not self.broken

    def write(self, record: Mapping[str, Any]) -> None:
        """Send a record as one line, or keep it until the reader has room."""
        if self.broken:
            return
        if len(self._pending) > self._limit:
            self.broken = True
            return
        self._pending += json.dumps(record, default=repr).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what the reader has room for."""
        while self._pending and not self.broken:
            try:
                sent = os.write(self.fd, memoryview(self._pending)[:65536])
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            del self._pending[:sent]


class Client:
    """One connection to the control socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.writer = LineWriter(connection.fileno())
        self._received = bytearray()

    def request(self) -> dict[str, Any] | None:
        """The request that has arrived, None while it is incomplete.

        Raises:
            ConnectionError: the client left.
            ValueError: it is no request.
        """
        try:
            data = self.connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError
        self._received += data
        line, newline, _rest = bytes(self._received).partition(b"\n")
        if not newline:
            if len(self._received) >= MAX_REQUEST:
                raise ValueError(f"a request has at most {MAX_REQUEST} bytes")
            return None
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("a request is a JSON object")
        return found


class ControlSocket:
    """Listens, and owns the connections.  `watch` and `unwatch` tell the owner's loop what to look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(os.fspath(path))
        self.listener.listen(16)
        self.clients: dict[int, Client] = {}

    def accept(self) -> Client | None:
        """A new client that may ask, or None."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return None
        if len(self.clients) >= MAX_CLIENTS or peer_uid(connection) not in (os.geteuid(), 0):
            connection.close()
            return None
        connection.setblocking(False)
        client = self.clients[connection.fileno()] = Client(connection)
        return client

    def drop(self, client: Client) -> None:
        """Close a client."""
        self.clients.pop(client.connection.fileno(), None)
        client.connection.close()

    def close(self) -> None:
        """Close everything."""
        for client in list(self.clients.values()):
            self.drop(client)
        self.listener.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel saw it when the connection was made."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(found)[1])


# ---- the asking side --------------------------------------------------------------------------------------


def ask(
    path: Path,
    op: str,
    on_record: Callable[[dict[str, Any]], None],
    timeout: float | None,
    fields: Mapping[str, Any] | None = None,
) -> bool:
    """Send a request to an agent and pass each answer on until the agent closes.

    Args:
        path: the control socket.
        op: what is asked.
        on_record: called with every line that comes back.
        timeout: seconds that the agent may be silent; None for as long as it takes.
        fields: what else the request holds.

    Returns:
        False when no agent listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        try:
            connection.sendall(json.dumps({"op": op, **(fields or {})}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    on_record(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # it went down while it spoke; what was heard counts
    return True
