"""What a node sees of the fabric: three lanes to send on, credit, and a callback for what arrives.

:class:`Link` is the whole interface.  Processes use :class:`broker.client.ZmqLink`; a lab inside one process
uses :class:`broker.fabric.MemoryFabric`, whose links pass through the same router core; :class:`MemoryLink`
is the bare pair, two ends without a router, that carries the same frames in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from broker.fields import Record
from broker.frames import Buffer, Lane, Parts, parse_frame
from broker.lanes import LaneState
from broker.records import Direction, encode
from broker.session import SendResult, Session

__all__ = ["LaneState", "Link", "MemoryLink", "OnRecord"]

OnRecord = Callable[[Lane, Record, Buffer], None]
"""Called with lane, record (a list; on the request lane an Envelope) and payload (valid for ever: nobody
reuses it).
"""


class Link(Protocol):
    """A node's connection to the fabric."""

    on_record: OnRecord

    def send(self, lane: Lane, record: Record, payload: Buffer = b"") -> bool:
        """Queue a record; it leaves with the next flush that finds credit, in order within its lane.

        False: the lane's bounded queue is full, or a request has no room reserved for its result; the record
        is dropped and counted.  RecordError: the record is not in the vocabulary, a mistake of the caller.
        """
        ...

    def credit(self, lane: Lane) -> int:
        """How many records sent now would leave with the next flush; on the request lane, requests."""
        ...

    def flush(self) -> bool:
        """Send what is ready.  True: input is waiting as well, pump before sleeping."""
        ...

    def pump(self) -> bool:
        """One bounded turn: receive, call `on_record`, send.  True: call again before sleeping."""
        ...


def _ignore(_lane: Lane, _record: Record, _payload: Buffer) -> None:
    """Nobody listens."""


class MemoryLink:
    """One of two ends joined in memory; nothing moves before a flush, nothing arrives before a pump."""

    def __init__(self, session: Session, outgoing: Direction) -> None:
        self.on_record: OnRecord = _ignore
        self.on_readable: Callable[[], None] = lambda: None
        self.session = session
        self._outgoing = outgoing
        self._inbox: deque[Parts] = deque()
        self._peer: MemoryLink | None = None

    @staticmethod
    def pair(epoch: int = 1) -> tuple[MemoryLink, MemoryLink]:
        """A node's end and a broker's end, in a session of `epoch`."""
        node = MemoryLink(Session(Direction.TO_NODE, epoch), Direction.TO_BROKER)
        broker = MemoryLink(Session(Direction.TO_BROKER, epoch), Direction.TO_NODE)
        node._peer, broker._peer = broker, node
        return node, broker

    def send(self, lane: Lane, record: Record, payload: Buffer = b"") -> bool:
        """Queue a record; see :class:`Link`."""
        return self.session.offer(lane, encode(self._outgoing, lane, record, payload))

    def credit(self, lane: Lane) -> int:
        """Records that would leave with the next flush."""
        return self.session.credit(lane)

    def flush(self) -> bool:
        """Move what has credit to the other end and tell it; True when this end has something to pump."""
        self.session.flush(self._transmit)
        return bool(self._inbox)

    def pump(self) -> bool:
        """Take what has arrived so far, call `on_record` for each record, flush."""
        for _ in range(len(self._inbox)):
            frame = parse_frame(self._inbox.popleft())
            good, bad = self.session.accept(frame)
            if bad:  # both ends are ours: this is a mistake in the program, not a hostile peer
                raise bad[0]
            for item in good:
                self.on_record(frame.lane, item.record, item.payload)
        return self.flush()

    def close(self) -> None:
        """Part the two ends: what either sends from now on waits for ever."""
        if self._peer is not None:
            self._peer._peer = None
            self._peer = None

    def _transmit(self, parts: Parts) -> SendResult:
        if self._peer is None:
            return SendResult.UNREACHABLE
        self._peer._inbox.append(list(parts))
        self._peer.on_readable()
        return SendResult.SENT
