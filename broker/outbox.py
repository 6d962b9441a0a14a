"""Envelopes that wait at the broker for one node: in order for each source, the sources taking turns.

What waits is bounded without losing a request.  Requests are at most as many as a source's lane reserves room
for.  Of the signals, which take no room, a WAKE that is waiting stands for all that are like it, and a source
whose signals still exceed the limit is told that its link broke, upon which it says again what matters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from broker.envelope import Envelope, EnvelopeKind, Use
from broker.frames import Lane
from broker.operations import Operation
from broker.records import Outgoing
from broker.session import Session

MAX_SIGNALS: Final = 1024
"""Envelopes without an answer that may wait, of one source for one node."""

Mark = tuple[object, ...]


class Held(NamedTuple):
    """An envelope on its way through the broker: encoded; for a request or result, of which operation."""

    outgoing: Outgoing
    operation: Operation | None = None
    mark: Mark | None = None  # of a WAKE: what it has in common with those that it stands for


def mark_of(envelope: Envelope) -> Mark | None:
    """The mark of a WAKE, None of everything else."""
    if envelope.kind != EnvelopeKind.WAKE:
        return None
    return (envelope.src_path, envelope.dst, envelope.op, envelope.port_src, envelope.port_dst)


class Outbox:
    """What waits for one node.  `counters` counts what is merged."""

    def __init__(self, counters: Counter[str]) -> None:
        self.stalled = False  # the session's queue had no room for the next one's bytes
        self._counters = counters
        self._queues: dict[str, deque[Held]] = {}
        self._turn: deque[str] = deque()
        self._marks: dict[str, set[Mark]] = {}
        self._signals: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def put(self, source: str, held: Held) -> bool:
        """Take an envelope of `source`.  False: too many signals of it wait, and this one is not taken."""
        if held.operation is None:
            marks = self._marks.setdefault(source, set())
            if held.mark in marks:
                self._counters["wakes_merged"] += 1
                return True
            if self._signals.get(source, 0) >= MAX_SIGNALS:
                return False
            self._signals[source] = self._signals.get(source, 0) + 1
            if held.mark is not None:
                marks.add(held.mark)
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
        if not queue:
            self._turn.append(source)
        queue.append(held)
        return True

    def move(self, session: Session) -> Iterator[Held]:
        """Move what the node's credit allows into its session; yields each one moved."""
        lane = session.lane(Lane.REQUEST)
        blocked = 0
        self.stalled = False
        while blocked < len(self._turn) and session.queued(Lane.REQUEST) < lane.credit:
            source = self._turn[0]
            queue = self._queues[source]
            held = queue[0]
            if held.outgoing.use is Use.REQUEST and lane.request_credit <= 0:
                blocked += 1
                self._turn.rotate(-1)
                continue
            if not session.offer(Lane.REQUEST, held.outgoing):
                self.stalled = True
                return
            blocked = 0
            queue.popleft()
            self._turn.popleft()
            if queue:
                self._turn.append(source)
            self._left(source, held)
            yield held

    def take(self, source: str, signals_only: bool = False) -> list[Held]:
        """Take away what waits of `source`, or its signals."""
        queue = self._queues.pop(source, deque())
        taken = [held for held in queue if held.operation is None or not signals_only]
        kept = deque(held for held in queue if held.operation is not None and signals_only)
        for held in taken:
            self._left(source, held)
        if kept:
            self._queues[source] = kept
        elif source in self._turn:
            self._turn.remove(source)
        return taken

    @property
    def waits(self) -> bool:
        """Whether anything does."""
        return bool(self._turn)

    @property
    def sources(self) -> list[str]:
        """Of whom something waits."""
        return list(self._turn)

    def _left(self, source: str, held: Held) -> None:
        if held.operation is None:
            self._signals[source] -= 1
            if held.mark is not None:
                self._marks[source].discard(held.mark)
