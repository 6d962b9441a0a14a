"""One link of a level: up to its parent or the fabric, or down to a child hypervisor.  Experimental, not upstream.

`Uplink` is what the owner provides.  It takes each envelope at most once, delivers what it took at most once and in
order, or loses it; after a loss the owner says that the link is down and, when it is usable again, up.  `Outlet` is the
level's end of it: what the link does not take now waits here in order.  Answers wait apart from all else: they have
room reserved at the link, and two levels whose requests wait for each other's answers would wait for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from broker.envelope import Envelope, EnvelopeKind

MAX_WAITING: Final = 4096  # envelopes of others in one outlet; its own operations are bounded where they start
_ANSWERS: Final = frozenset({EnvelopeKind.RESULT, EnvelopeKind.CANCEL})


class Uplink(Protocol):
    """Where envelopes go: the fabric, a parent's ring, a child's ring, or a test's list."""

    def send(self, envelope: Envelope, payload: bytes) -> bool:
        """Take an envelope and its payload.  False: no room, nothing was taken; the owner calls `Level.on_room` later.

        May deliver before it returns.
        """


class Waiting(NamedTuple):
    """An envelope that the link has not taken.

    `handed(True)` is asked when its turn has come, before the link has it, since the answer may be back before `send`
    returns: False means that it is not wanted any more.  `handed(False)` says that the link refused.
    """

    envelope: Envelope
    payload: bytes
    handed: Callable[[bool], bool] | None


class Outlet:
    """A link and what waits for it.  `link` None: nothing is attached there, the way is down."""

    __slots__ = ("_answers", "_others", "_sending", "link", "up")

    def __init__(self, link: Uplink | None) -> None:
        self.link = link
        self.up = link is not None
        self._answers: deque[Waiting] = deque()
        self._others: deque[Waiting] = deque()
        self._sending = False

    def __len__(self) -> int:
        return len(self._answers) + len(self._others)

    @property
    def full(self) -> bool:
        """No more envelopes of others fit."""
        return len(self._others) >= MAX_WAITING

    def put(self, envelope: Envelope, payload: bytes, handed: Callable[[bool], bool] | None = None) -> None:
        """Send, or keep behind what waits already.  The way must be up."""
        queue = self._answers if envelope.kind in _ANSWERS else self._others
        queue.append(Waiting(envelope, payload, handed))
        self.flush()

    def flush(self) -> None:
        """Send what waits, until the link has no room."""
        if self._sending:
            return  # the link delivered at once, and the receiver's answer came back through us
        self._sending = True
        try:
            while self.up and (queue := self._answers or self._others):
                item = queue.popleft()
                if not self._hand(item):
                    if self.up:
                        queue.appendleft(item)
                    return
        finally:
            self._sending = False

    def _hand(self, item: Waiting) -> bool:
        if self.link is None:
            return False
        if item.handed is not None and not item.handed(True):
            return True
        taken = self.link.send(item.envelope, item.payload)
        if not taken and item.handed is not None:
            item.handed(False)
        return taken

    def cut(self) -> list[Waiting]:
        """The link is down.  Returns what will not be sent, in order, and forgets it."""
        self.up = False
        waiting = [*self._answers, *self._others]
        self._answers.clear()
        self._others.clear()
        return waiting
