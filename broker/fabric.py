"""A whole fabric in one process: the router core with members joined in memory, for the inline runtime and
for tests.

No thread, no clock, no socket: the owner passes the time and decides when messages move.  Order is the order
in which members were connected; one seed therefore gives one history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from broker.fields import Record
from broker.frames import Buffer, Lane
from broker.link import OnRecord
from broker.member import Identity, Member
from broker.router import RouterCore
from broker.session import SendResult


class FabricLink:
    """A member's end; a :class:`broker.link.Link` like any other."""

    def __init__(self, member: Member, routing_id: bytes, fabric: MemoryFabric) -> None:
        self.member = member
        self.routing_id = routing_id
        self.on_readable: Callable[[], None] = lambda: None
        self._fabric = fabric
        self._inbox: deque[Sequence[bytes]] = deque()
        self._open = True

    @property
    def on_record(self) -> OnRecord:
        """Called with lane, record and payload of whatever arrives."""
        return self.member.on_record

    @on_record.setter
    def on_record(self, handler: OnRecord) -> None:
        self.member.on_record = handler

    def send(self, lane: Lane, record: Record, payload: Buffer = b"") -> bool:
        """Queue a record; see :class:`broker.link.Link`."""
        return self.member.send(lane, record, payload)

    def credit(self, lane: Lane) -> int:
        """Records that would leave with the next flush."""
        return self.member.credit(lane)

    def flush(self) -> bool:
        """Hand what is ready to the fabric, which routes it when it runs."""
        if self._open:
            self.member.flush(self._transmit, self._fabric.now_ns)
        return bool(self._inbox)

    def pump(self) -> bool:
        """Take what has arrived so far, run its callbacks, flush."""
        for _ in range(len(self._inbox)):
            self.member.on_frame(self._inbox.popleft(), self._fabric.now_ns)
        self.member.deliver()
        return self.flush()

    def close(self) -> None:
        """Vanish without a word, as a killed process does."""
        self._open = False
        self._inbox.clear()

    def receive(self, parts: Sequence[bytes]) -> SendResult:
        """The fabric delivers a message."""
        if not self._open:
            return SendResult.UNREACHABLE
        self._inbox.append(parts)
        self.on_readable()
        return SendResult.SENT

    def _transmit(self, parts: Sequence[bytes]) -> SendResult:
        self._fabric.submit(self.routing_id, parts)
        return SendResult.SENT


class MemoryFabric:
    """Router core and links of a lab in one process.

    `mint` makes attach tokens, 16 bytes each; a deterministic run passes one that draws from its seed.
    """

    def __init__(self, *, token: bytes, mint: Callable[[], bytes], epoch: int = 1) -> None:
        self.now_ns = 0
        self.log: list[tuple[object, ...]] = []
        self.on_readable: Callable[[], None] = lambda: None
        self._token = token
        self._mint = mint
        self._links: dict[bytes, FabricLink] = {}
        self._inbox: deque[tuple[bytes, Sequence[bytes]]] = deque()
        self.core = self._new_core(epoch)

    def _new_core(self, epoch: int) -> RouterCore:
        return RouterCore(token=self._token, epoch=epoch, sink=self, mint=self._mint)

    def connect(self, kind: str, name: str, pid: int = 0) -> FabricLink:
        """A new link; it says hello at its first flush."""
        routing_id = len(self._links).to_bytes(5, "big")
        link = FabricLink(Member(Identity(kind, name, self._token, pid)), routing_id, self)
        self._links[routing_id] = link
        return link

    def submit(self, routing_id: bytes, parts: Sequence[bytes]) -> None:
        """A message for the router, routed by the next run."""
        self._inbox.append((routing_id, parts))
        self.on_readable()

    def run(self, now_ns: int) -> None:
        """Route everything that was submitted; messages for links wait in their inboxes."""
        self.now_ns = now_ns
        while self._inbox:
            routing_id, parts = self._inbox.popleft()
            self.core.on_frame(routing_id, parts, now_ns)
        self.core.on_tick(now_ns)
        self.core.flush()

    def settle(self, now_ns: int) -> None:
        """Run router and links in turn until nothing moves any more."""
        self.run(now_ns)
        while [link for link in self._links.values() if link.pump()] or self._inbox:
            self.run(now_ns)

    def restart(self, epoch: int) -> None:
        """The broker dies and another takes its place: it knows nobody, and what was under way is lost."""
        self._inbox.clear()
        for link in self._links.values():
            link._inbox.clear()
        self.core = self._new_core(epoch)

    # ---- the core's sink ---------------------------------------------------------------------------------

    def send(self, routing_id: bytes, parts: Sequence[bytes]) -> SendResult:
        """Deliver a frame of the core."""
        link = self._links.get(routing_id)
        return SendResult.UNREACHABLE if link is None else link.receive(parts)

    def event(self, code: str, *fields: object) -> None:
        """Keep an event of the core."""
        self.log.append((code, *fields))
