"""A whole fabric in one process: the router core with members joined in memory, for the inline runtime and
for tests.

No thread, no clock, no socket: the owner passes the time and decides when messages move.  Order is the order
in which members were connected; one seed therefore gives one history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from broker.binding import Binding
from broker.fields import Record
from broker.frames import Buffer, Lane, Parts
from broker.impair import Impairment
from broker.link import OnRecord
from broker.member import Identity, Member
from broker.operations import RELEASE_NS
from broker.router import RouterCore
from broker.session import SendResult


class FabricLink:
    """A member's end; a :class:`broker.link.Link` like any other."""

    def __init__(self, member: Member, routing_id: bytes, fabric: MemoryFabric, host: str = "") -> None:
        self.member = member
        self.host = host
        self.routing_id = routing_id
        self.on_readable: Callable[[], None] = lambda: None
        self._fabric = fabric
        self._inbox: deque[Parts] = deque()
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

    def receive(self, parts: Parts) -> SendResult:
        """The fabric delivers a message."""
        if not self._open:
            return SendResult.UNREACHABLE
        self._inbox.append(parts)
        self.on_readable()
        return SendResult.SENT

    def _transmit(self, parts: Parts) -> SendResult:
        self._fabric.submit(self.routing_id, parts)
        return SendResult.SENT


class MemoryFabric:
    """Router core and links of a lab in one process.

    `mint` makes attach tokens, 16 bytes each; a deterministic run passes one that draws from its seed, and
    `chance`, which impaired links draw from.  `binding` and `release_ns` are the core's.  Without `silence`
    nobody is shown as unresponsive: members whose owner says no heartbeats would be.

    What is under way on an impaired link arrives in time: after every :meth:`run` the owner asks for
    :meth:`next_deadline` and runs again then.
    """

    def __init__(
        self,
        *,
        token: bytes,
        mint: Callable[[], bytes],
        epoch: int = 1,
        binding: Binding | None = None,
        chance: Random | None = None,
        silence: bool = True,
        release_ns: int = RELEASE_NS,
    ) -> None:
        self.now_ns = 0
        self.log: list[tuple[object, ...]] = []
        self.on_readable: Callable[[], None] = lambda: None
        self._token = token
        self._mint = mint
        self._binding = binding
        self._chance = chance
        self._silence = silence
        self._release_ns = release_ns
        self._impairments: dict[tuple[str, str], Impairment] = {}
        self._links: dict[bytes, FabricLink] = {}
        self._inbox: deque[tuple[bytes, Parts]] = deque()
        self.core = self._new_core(epoch)

    def _new_core(self, epoch: int) -> RouterCore:
        core = RouterCore(
            token=self._token,
            epoch=epoch,
            sink=self,
            mint=self._mint,
            binding=self._binding,
            chance=self._chance,
            release_ns=self._release_ns,
        )
        core.switch.now_ns = self.now_ns
        for (a, b), impairment in self._impairments.items():
            core.impair(a, b, impairment)
        return core

    def impair(self, a: str, b: str, impairment: Impairment) -> None:
        """Impair the link between two hypervisors or two hosts from now on, restarts of the broker included."""
        self._impairments[a, b] = impairment
        self.core.impair(a, b, impairment)
        self.on_readable()

    def connect(self, kind: str, name: str, pid: int = 0, host: str = "") -> FabricLink:
        """A new link, from `host`; it says hello at its first flush."""
        routing_id = len(self._links).to_bytes(5, "big")
        link = FabricLink(Member(Identity(kind, name, self._token, pid)), routing_id, self, host)
        self._links[routing_id] = link
        return link

    def submit(self, routing_id: bytes, parts: Parts) -> None:
        """A message for the router, routed by the next run."""
        self._inbox.append((routing_id, parts))
        self.on_readable()

    def run(self, now_ns: int) -> None:
        """Route everything that was submitted; messages for links wait in their inboxes."""
        self.now_ns = now_ns
        while self._inbox:
            routing_id, parts = self._inbox.popleft()
            self.core.on_frame(routing_id, parts, now_ns, self._links[routing_id].host)
        if self._silence:
            self.core.on_tick(now_ns)
        else:
            self.core.on_time(now_ns)
        self.core.flush()

    def next_deadline(self) -> int | None:
        """When the next run is due though nothing is submitted, in ns; None: not by itself."""
        return self.core.next_deadline()

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

    def send(self, routing_id: bytes, parts: Parts) -> SendResult:
        """Deliver a frame of the core."""
        link = self._links.get(routing_id)
        return SendResult.UNREACHABLE if link is None else link.receive(parts)

    def event(self, code: str, *fields: object) -> None:
        """Keep an event of the core."""
        self.log.append((code, *fields))
