"""Which guests answer at once what comes to them from elsewhere.  No I/O, no clock.

An exact round trip between hosts is four messages: a send and its result each way.  A guest that answers as soon as
it is reached puts its own send on the same way as the result that its hypervisor owes.  If the result waits for it,
both travel in one frame, and what each process on the way does for a frame is done half as often.  Whoever sent waits
for the answer anyway.

So results wait a little for guests that have answered every time lately, and for nobody else: one that does something
else, or takes longer, is not waited for until it has answered soon enough again, several times in a row.
"""

from __future__ import annotations

from typing import Final

SURE: Final = 3
"""Answers in a row after which the next one is waited for."""
SOON_NS: Final = 1_000_000
"""What is soon enough, and so how long anything waits at most."""


class Promptness:
    """By domain id.  Every `now_ns` is of one monotonic clock."""

    def __init__(self) -> None:
        self._reached: dict[int, int] = {}  # guests that have not acted since, and when
        self._answers: dict[int, int] = {}  # in a row

    def reached(self, domid: int, now_ns: int) -> bool:
        """A message from elsewhere lies in a ring of a guest: whether its answer is worth waiting for."""
        if domid in self._reached:
            self._answers.pop(domid, None)  # it did nothing about the last one
        self._reached[domid] = now_ns
        return self._answers.get(domid, 0) >= SURE

    def acted(self, domid: int, now_ns: int) -> None:
        """A guest submitted something."""
        since = self._reached.pop(domid, None)
        if since is None:
            return
        if now_ns - since <= SOON_NS:
            self._answers[domid] = self._answers.get(domid, 0) + 1
        else:
            self._answers.pop(domid, None)

    def gone(self, domid: int) -> None:
        """There is no such guest any more."""
        self._reached.pop(domid, None)
        self._answers.pop(domid, None)
