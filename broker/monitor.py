"""What ZeroMQ's monitor says of a client's handshakes, made into one clear error.

A socket whose handshake fails would try again for ever and say nothing.  A key that is refused, or a peer
that speaks another mechanism, will not be better next time: the first such event is the end.  A handshake
that merely ends, which is all that a client with a wrong server key sees, also happens when a broker dies in
the middle of it: three in a row are the end.  Which of the last two a client without keys sees is a race.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import zmq


class FailureRow(NamedTuple):
    """An event of the monitor, how many in a row are believed, and what they mean."""

    event: zmq.Event
    limit: int
    meaning: str


FAILURES: Final = (
    FailureRow(zmq.Event.HANDSHAKE_FAILED_AUTH, 1, "this host's key is not on the broker's list"),
    FailureRow(zmq.Event.HANDSHAKE_FAILED_PROTOCOL, 1, "the two sides do not use the same security mechanism"),
    FailureRow(
        zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, 3,
        "the other side ended the handshake: its key is not the one expected, it wants one, or it is no broker",
    ),
)  # fmt: skip
_MESSAGE: Final = struct.Struct("=HI")  # event and value; the endpoint is the next part
_ROWS: Final = {int(row.event): row for row in FAILURES}
EVENTS: Final = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | (zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
)


class Monitor:
    """Watches the handshakes of one socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._watched = socket
        self._events: zmq.Socket[bytes] = socket.get_monitor_socket(int(EVENTS))
        self._failed = 0

    def failure(self) -> str | None:
        """Why connecting is hopeless; None as long as it is not."""
        while True:
            try:
                message = self._events.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return None
            row = _ROWS.get(_MESSAGE.unpack(message[0])[0])
            self._failed = 0 if row is None else self._failed + 1
            if row is not None and self._failed >= row.limit:
                return row.meaning

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self._events.close(0)  # or the context would wait for it
