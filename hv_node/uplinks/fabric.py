"""The uplink of an L0: the request lane of its link to the broker."""

from __future__ import annotations

from broker.envelope import Envelope
from broker.frames import Lane
from broker.link import Link


class FabricUplink:
    """Envelopes over a link.  After a refusal, `room` says when it is worth trying again."""

    def __init__(self, link: Link) -> None:
        self.refused = 0
        self._link = link
        self._waiting = False

    def send(self, envelope: Envelope, payload: bytes) -> bool:
        """Queue an envelope; it leaves with the link's next flush.  False: no session, or no room."""
        if self._link.send(Lane.REQUEST, envelope, payload):
            return True
        self.refused += 1
        self._waiting = True
        return False

    def room(self) -> bool:
        """Whether something was refused and there is room now; asked once after every pump."""
        if not self._waiting or not self._link.credit(Lane.REQUEST):
            return False
        self._waiting = False
        return True
