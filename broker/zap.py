"""Who may connect over CURVE: the answers of RFC 27/ZAP, without I/O.

The broker answers in its own loop: one request at a time, from an allow-list of public keys.  The User-Id of
an accepted connection is the host whose key it showed; ZeroMQ attaches it to every message of the connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from zmq.utils import z85

ENDPOINT: Final = "inproc://zeromq.zap.01"
"""Where ZeroMQ looks for the handler, fixed by the RFC; one to a context."""
VERSION: Final = b"1.0"
DOMAIN: Final = b"argosy"
_PREFIX: Final = 6  # version, request id, domain, address, routing id, mechanism


class Status(StrEnum):
    """What a request is answered."""

    ACCEPTED = "200"
    REFUSED = "400"
    BROKEN = "500"


class AllowList:
    """Public keys (Z85) and the hosts that hold them."""

    def __init__(self, allowed: Sequence[tuple[bytes, str]]) -> None:
        self._hosts = {z85.decode(key): host for key, host in allowed}
        self.accepted = self.refused = 0

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply to a request, frame by frame.  Whatever is not a request of this domain for CURVE is refused."""
        number = request[1] if len(request) > 1 else b""
        status, text, host = self._judge(request)
        if status is Status.ACCEPTED:
            self.accepted += 1
        else:
            self.refused += 1
        return [VERSION, number, status.value.encode(), text, host.encode(), b""]

    def _judge(self, request: Sequence[bytes]) -> tuple[Status, bytes, str]:
        if len(request) < _PREFIX or request[0] != VERSION:
            return Status.BROKEN, b"not a request of ZAP 1.0", ""
        if request[2] != DOMAIN or request[5] != b"CURVE" or len(request) != _PREFIX + 1:
            return Status.REFUSED, b"only CURVE is accepted here", ""
        host = self._hosts.get(request[_PREFIX])
        if host is None:
            return Status.REFUSED, b"this key is not on the list", ""
        return Status.ACCEPTED, b"OK", host
