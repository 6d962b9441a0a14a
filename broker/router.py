"""The broker's core: who is in the lab, who may say what, and where it goes.  No socket, no clock.

The owner passes in every received message with the routing id that its socket gave it and the time, calls
:meth:`RouterCore.on_tick` now and then, and :meth:`RouterCore.flush` when it has nothing more to pass in;
the core writes frames and events to the sink it was given.  Nothing that a peer sends raises out of the
core: a frame or record that is not right is refused with a code, counted, logged and shown to subscribers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker import frames, lifecycle
from broker.binding import Binding
from broker.envelope import Envelope, Use
from broker.fields import Record, RecordError
from broker.frames import Buffer, Frame, FrameError, FrameKind, Lane, Parts, Reason
from broker.handlers import HANDLERS
from broker.hello import judge_words
from broker.impair import Impairment, earliest
from broker.lifecycle import SHOWN, Node, State, Stimulus
from broker.mirrored import MIRROR, MirrorLines
from broker.operations import RELEASE_NS
from broker.records import Direction, Incoming, Outgoing, encode
from broker.refusals import ENDS, Ends, Refusal, Violation
from broker.session import SendResult, Session
from broker.switch import BROKER, Switch

if TYPE_CHECKING:
    from random import Random

MAX_NODES: Final = 1024
SILENCE_NS: Final = 2_000_000_000
"""A node not heard for so long is shown as unresponsive."""
PROBE_NS: Final = 1_000_000_000
"""A silent node is probed this often, to learn whether its connection is gone."""
MAX_DETAIL: Final = 4096
MAX_UNHEARD: Final = 256
"""Control-lane events kept while nobody subscribes: after a restart of the broker a result may come before the
agent does."""


class Sink(Protocol):
    """Where the core writes its effects."""

    def send(self, routing_id: bytes, parts: Parts) -> SendResult:
        """Hand a frame to the transport; never blocks."""
        ...

    def event(self, code: str, *fields: object) -> None:
        """Something worth a line in the broker's log."""
        ...


class RouterCore:
    """The router of one lab in one epoch.

    `token`: the lab's secret, which every hello must show.  `mint`: makes a 16-byte attach token,
    unguessable.  `binding` says what each host may say, `chance` draws what impaired links need, and
    `release_ns` is how long the room of a request that nobody will answer stays reserved.
    """

    def __init__(
        self,
        *,
        token: bytes,
        epoch: int,
        sink: Sink,
        mint: Callable[[], bytes],
        binding: Binding | None = None,
        chance: Random | None = None,
        release_ns: int = RELEASE_NS,
    ) -> None:
        self.epoch = epoch
        self.nodes: dict[str, Node] = {}
        self.counters: Counter[str] = Counter()
        self.stopping = False
        self._token = token
        self._sink = sink
        self.mint = mint
        self._peers: dict[bytes, Node] = {}
        self._dirty: dict[str, Node] = {}
        self.unheard: deque[Record] = deque(maxlen=MAX_UNHEARD)
        self._ticked_ns: int | None = None
        self.switch = Switch(self, binding, chance, release_ns)
        self.mirrored = MirrorLines(chance, self.switch.judge.hosts, self.counters, self._arrived)

    # ---- what the owner calls ----------------------------------------------------------------------------

    def on_frame(self, routing_id: bytes, parts: Parts, now_ns: int, host: str = "") -> None:
        """A message arrived over the connection `routing_id`, which is from `host`; "": the transport does not know."""
        self.counters["frames_in"] += 1
        self.switch.now_ns = now_ns
        node = self._peers.get(routing_id)
        taken = None if node is None else node.session.take(parts)
        if node is not None and taken is not None:
            self._on_envelopes(node, taken, now_ns)
            return
        try:
            frame = frames.parse_frame(parts)
        except FrameError as error:
            wrong_version = error.reason is Reason.MAJOR
            self._refuse(routing_id, Refusal.WRONG_VERSION if wrong_version else Refusal.MALFORMED_FRAME, str(error))
            if node is not None:
                self._cut(node, f"malformed frame: {error}")
            return
        if frame.kind is FrameKind.HANDSHAKE:
            self._on_hello(routing_id, frame, now_ns, host)
        elif node is None:
            self._refuse(routing_id, Refusal.HELLO_FIRST, f"a {frame.kind.name} frame on lane {frame.lane.name}")
        else:
            self._on_session_frame(node, frame, now_ns)

    def on_tick(self, now_ns: int) -> None:
        """Time passed: look for silent nodes.  Call several times a second."""
        asleep = 0 if self._ticked_ns is None else now_ns - self._ticked_ns
        self._ticked_ns = now_ns
        self.on_time(now_ns)
        for node in [node for node in self.nodes.values() if node.live]:
            if asleep > PROBE_NS:  # we were stopped, not they
                node.heard_ns += asleep
            silent = now_ns - node.heard_ns
            if silent < SILENCE_NS or now_ns - node.probed_ns < PROBE_NS:
                continue
            node.probed_ns = now_ns
            if not self._reachable(node):
                self._cut(node, "its connection is gone")
            else:
                self.move(node, Stimulus.SILENT, f"not heard for {silent / 1e9:.1f} s")

    def on_time(self, now_ns: int) -> None:
        """Time passed for what is under way on impaired links.  Due at :meth:`next_deadline`."""
        self.switch.on_time(now_ns)
        self.mirrored.on_time(now_ns)

    def next_deadline(self) -> int | None:
        """When :meth:`on_time` is due; None: not before something else happens."""
        return earliest(self.switch.next_deadline(), self.mirrored.next_deadline())

    def flush(self) -> None:
        """Send what is ready.  What a peer's transport does not take now stays queued for the next flush."""
        blocked: dict[str, Node] = {}
        while self._dirty:  # losing a peer is news for others
            ready, self._dirty = self._dirty, {}
            for name, node in ready.items():
                wanted = node.live and (node.session.unsent or node.missed or self.switch.waits(node))
                if not wanted:
                    continue
                result = self.flush_node(node)
                if result is SendResult.AGAIN:
                    self.counters["again"] += 1
                    blocked[name] = node
                elif result is SendResult.UNREACHABLE:
                    self._cut(node, "its connection is gone")
        self._dirty = blocked

    def shutdown(self) -> None:
        """Tell every node that the broker leaves; the owner sees `stopping` and ends its loop."""
        if not self.stopping:
            self.stopping = True
            for node in self.nodes.values():
                self.say(node, ["shutdown"])

    def refused_connection(self, address: str) -> None:
        """The transport turned away a peer at `address` before it could say anything."""
        self.count_refusal(None, Refusal.HANDSHAKE_FAILED, f"{address}: its key is not on the list of this lab's hosts")

    def joined_over(self, routing_id: bytes) -> bool:
        """Whether a node joined over that connection and has not left."""
        return routing_id in self._peers

    @property
    def settled(self) -> bool:
        """Whether every live node acknowledged all that it was told."""
        return all(node.session.settled for node in self.nodes.values() if node.live)

    # ---- frames ------------------------------------------------------------------------------------------

    def flush_node(self, node: Node) -> SendResult:
        """Send what is ready for one node."""
        send = partial(self._send, node.routing_id)
        while True:
            stalled = self.switch.pump(node)
            result = node.session.flush(send)
            if not stalled or result is not SendResult.SENT:
                break
        if result is SendResult.SENT and node.missed and not node.session.queued(Lane.CONTROL):
            missed, node.missed = node.missed, 0
            self.snapshot(node)
            self.say(node, ["event", BROKER, "missed", missed])
        return result

    def _send(self, routing_id: bytes, parts: Parts) -> SendResult:
        self.counters["frames_out"] += 1
        return self._sink.send(routing_id, parts)

    def _handshake(self, routing_id: bytes, attempt: int, record: Record) -> SendResult:
        """Send a record outside any session; `attempt` says which hello it answers, 0 for none."""
        return self._send(
            routing_id, frames.pack_frame(FrameKind.HANDSHAKE, Lane.CONTROL, self.epoch, 0, attempt, [record])
        )

    def _refuse(self, routing_id: bytes, code: Refusal, detail: str, attempt: int = 0) -> None:
        self.count_refusal(self._peers.get(routing_id), code, detail)
        if self._handshake(routing_id, attempt, ["refused", code.value, detail]) is not SendResult.SENT:
            self.counters["refusals_unsent"] += 1

    def report(self, node: Node, code: Refusal, detail: str) -> None:
        """Refuse a record of `node`; the session goes on."""
        self.count_refusal(node, code, detail)
        self.say(node, ["refused", code.value, detail])

    def count_refusal(self, node: Node | None, code: Refusal, detail: str) -> None:
        """Count a refusal; the log and subscribers hear of it."""
        who = "a stranger" if node is None else node.name
        self.counters[f"refused.{code.value}"] += 1
        self._sink.event("refused", code.value, who, detail)
        self.to_subscribers(Lane.EVENT, ["event", BROKER, "refused", code.value, who, detail])

    def _on_session_frame(self, node: Node, frame: Frame, now_ns: int) -> None:
        try:
            good, bad = node.session.accept(frame)
        except Violation as violation:
            if ENDS[violation.code] is Ends.RECORD:
                self.report(node, violation.code, violation.detail)
            else:
                self._refuse(node.routing_id, violation.code, violation.detail)
                self._cut(node, str(violation))
            return
        self._heard(node, now_ns)
        for error in bad:
            self.report(node, Refusal.MALFORMED_RECORD, str(error))
        for item in good:
            if not node.live:
                return
            self._dispatch(node, frame.lane, item)

    def _on_envelopes(self, node: Node, taken: Sequence[tuple[Envelope, Use, Buffer]], now_ns: int) -> None:
        """The envelopes of a frame as most are."""
        self._heard(node, now_ns)
        for envelope, use, payload in taken:
            if not node.live:
                return
            self.counters["records_in"] += 1
            self.switch.on_envelope(node, envelope, use, payload)

    def _heard(self, node: Node, now_ns: int) -> None:
        node.heard_ns = now_ns
        if node.state in lifecycle.SILENT:
            self.move(node, Stimulus.HEARD, f"pid {node.pid}, heard again")
        self._dirty[node.name] = node

    def _dispatch(self, node: Node, lane: Lane, item: Incoming) -> None:
        self.counters["records_in"] += 1
        if isinstance(item.record, Envelope):
            self.switch.on_envelope(node, item.record, item.record.use, item.payload)
            return
        row = item.row
        if row is None or (row.senders and node.kind not in row.senders):
            self.report(node, Refusal.NOT_ALLOWED, f"{item.record[0]!r} from a {node.kind}")
            return
        try:
            HANDLERS[row.name](self, node, lane, item)
        except RecordError as error:  # it grew beyond a frame when the broker added the sender's name
            self.report(node, Refusal.MALFORMED_RECORD, str(error))

    # ---- names -------------------------------------------------------------------------------------------

    def _on_hello(self, routing_id: bytes, frame: Frame, now_ns: int, host: str) -> None:
        record, attempt = frame.records[0], frame.seq
        refusal = self._judge_hello(routing_id, record, host)
        if refusal is not None:
            self._refuse(routing_id, *refusal, attempt)
            return
        _, _, _, kind, name, _, pid, epoch_seen = record
        node = self.nodes.get(name)
        if node is None:
            node = self._new_node(name)
        if node.live:
            self.switch.on_left(node, for_good=False)
            node.session = node.session.successor(self.epoch)
            self._peers.pop(node.routing_id, None)
        else:
            node.session = Session(Direction.TO_BROKER, self.epoch)
        node.kind, node.pid, node.routing_id = kind, pid, routing_id
        node.heard_ns, node.subscribed, node.missed = now_ns, False, 0
        self._peers[routing_id] = node
        self._dirty[name] = node
        self.counters["hellos"] += 1
        again = f", was in epoch {epoch_seen}" if epoch_seen else ""
        self.move(node, Stimulus.HELLO, f"pid {pid}{again}", announce=True)
        if self._handshake(routing_id, attempt, ["welcome", self.epoch, name]) is SendResult.UNREACHABLE:
            self._cut(node, "its connection is gone")
        else:
            self.switch.on_joined(node)

    def _judge_hello(self, routing_id: bytes, record: list[Any], host: str) -> tuple[Refusal, str] | None:
        """Why this hello is refused; None: it is welcome.  A holder whose connection is gone yields."""
        refusal = judge_words(record, self._token)
        if refusal is not None:
            return refusal
        _, _, _, kind, name, _, pid, epoch_seen = record
        if name == BROKER:
            return Refusal.NAME_RESERVED, f"no node may be called {BROKER!r}"
        stranger = self.switch.judge.hello(name, host)
        if stranger is not None:
            return stranger
        if epoch_seen > self.epoch:
            return Refusal.STALE_EPOCH, f"this broker is of epoch {self.epoch}, the node saw {epoch_seen}"
        joined = self._peers.get(routing_id)
        if joined is not None and joined.name != name:
            return Refusal.NOT_ALLOWED, f"this connection already joined as {joined.name!r}"
        holder = self.nodes.get(name)
        if holder is None:
            full = len(self.nodes) >= MAX_NODES and all(node.live for node in self.nodes.values())
            return (Refusal.TOO_MANY_NODES, f"{MAX_NODES} nodes") if full else None
        same = (holder.kind, holder.pid) == (kind, pid) and epoch_seen == self.epoch
        if not holder.live or holder.routing_id == routing_id or same:
            return None
        if not self._reachable(holder):
            self._cut(holder, "its connection is gone")
            return None
        held = f"{holder.kind} pid {holder.pid}, {SHOWN[holder.state]}"
        return Refusal.NAME_IN_USE, f"{name!r} is held by {held}; refused to {kind} pid {pid}"

    def _new_node(self, name: str) -> Node:
        if len(self.nodes) >= MAX_NODES:
            del self.nodes[next(node.name for node in self.nodes.values() if not node.live)]
        node = self.nodes[name] = Node(name, self.epoch)
        return node

    def _reachable(self, node: Node) -> bool:
        return node.session.probe(partial(self._send, node.routing_id)) is not SendResult.UNREACHABLE

    def move(self, node: Node, stimulus: Stimulus, detail: str, announce: bool = False) -> None:
        """Apply a stimulus; subscribers hear of it when it changes what is shown, or when `announce` asks."""
        before, was_live = node.state, node.live
        node.state = lifecycle.NEXT.get((before, stimulus), before)
        if not node.live:
            self._peers.pop(node.routing_id, None)
        if node.state is not before or announce:
            node.detail = detail[:MAX_DETAIL]
            self._sink.event("node", node.name, node.kind, SHOWN[node.state], node.detail)
            self.to_subscribers(Lane.CONTROL, node.record)
        if was_live and not node.live:
            self.switch.on_left(node)
            self.mirrored.left(node.name)
        elif before is State.LOST and node.state is State.EXITED:
            self.switch.on_died(node)

    def _cut(self, node: Node, why: str) -> None:
        self.counters["lost"] += 1
        self.move(node, Stimulus.CUT, why)

    # ---- saying things -----------------------------------------------------------------------------------

    def touch(self, node: Node) -> None:
        """There is something to send to `node`."""
        self._dirty[node.name] = node

    def say(self, node: Node, record: Record) -> None:
        """Queue a control record of the broker's own.  A peer that does not read loses it, counted."""
        self._queue(node, Lane.CONTROL, encode(Direction.TO_NODE, Lane.CONTROL, record))

    def _queue(self, node: Node, lane: Lane, outgoing: Outgoing) -> bool:
        if not node.live:
            return False
        self._dirty[node.name] = node
        if node.session.offer(lane, outgoing):
            return True
        self.counters[f"unqueued.{lane.name.lower()}"] += 1
        return False

    def to_subscribers(self, lane: Lane, record: Record) -> bool:
        """Queue a record for every subscriber.  False: there is none."""
        outgoing = encode(Direction.TO_NODE, lane, record)
        subscribers = [node for node in self.nodes.values() if node.subscribed and node.live]
        for node in subscribers:
            if not self._queue(node, lane, outgoing):
                node.missed += lane is Lane.CONTROL
        return bool(subscribers)

    def snapshot(self, node: Node) -> None:
        """Tell a subscriber of every node."""
        for other in self.nodes.values():
            self.say(node, other.record)

    def tell(self, target: Node, sender: str, record: Record, payload: Buffer = b"") -> bool:
        """Pass on what `sender` tells.  False: the target's queue is full."""
        outgoing = encode(Direction.TO_NODE, Lane.CONTROL, ["told", sender, record], payload)
        return self._queue(target, Lane.CONTROL, outgoing)

    def _arrived(self, sender: str, name: str, payload: Buffer) -> None:
        """A guest's or hypervisor's message of the mirror protocol came over an impaired link; who is busy loses it."""
        target = self.nodes.get(name)
        if target is None or not target.live or not self.tell(target, sender, [MIRROR], payload):
            self.counters["mirrored_lost"] += 1

    # ---- links --------------------------------------------------------------------------------------

    def impair(self, a: str, b: str, impairment: Impairment) -> None:
        """Impair the link between two hypervisors or two hosts from now on."""
        self.switch.impair(a, b, impairment)
        self.mirrored.set(a, b, impairment)
        self._sink.event("impair", a, b, *impairment)
        self.to_subscribers(Lane.EVENT, ["event", BROKER, "impair", a, b, *impairment])
