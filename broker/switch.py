"""Where envelopes go: from one hypervisor below the fabric to another, by the first step of the destination.

The broker is a hop with a reservation towards both ends.  A request holds room for its result at its source;
forwarding it takes room at the broker for the destination's answer.  When that room is used up the request
waits (:mod:`broker.outbox`).  A result never waits for anything but its reader: the room was reserved before
the request left.  So waiting requests wait only for answers, answers for nothing, and nothing deadlocks.

Each source's envelopes for a destination stay in order; only results overtake, which wait for nothing.  A
request that cannot go on is refused by the broker itself (-ECONNREFUSED: this copy went nowhere); those that
a destination leaves behind are not answered, since nobody knows whether they ran: the other hypervisors are
told that the link to it is down, and say them again when it is up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from broker import codec
from broker import envelope as envelopes
from broker.binding import Binding, Judge, Verdict
from broker.envelope import Envelope, EnvelopeKind, Use, result_of
from broker.frames import MAX_FRAME, MAX_RECORDS, Buffer, Lane, Packed
from broker.hub import Hub
from broker.impair import Impairment, Lines, earliest
from broker.lifecycle import Node
from broker.operations import RELEASE_NS, Operation, Operations
from broker.outbox import Held, Outbox, mark_of
from broker.peers import Peers
from broker.records import Outgoing, Rejoin
from broker.refusals import Refusal
from hmx.errno import Errno

if TYPE_CHECKING:
    from random import Random

BROKER: Final = "broker"
"""The broker's own name, which no node may have."""
EVERYBODY: Final = ("*",)
MAX_SIGNAL: Final = 4096
"""Bytes of payload of an envelope that has no answer."""
MAX_RESULT: Final = MAX_FRAME
"""Bytes of payload of a result."""
MAX_HELD: Final = 1 << 26
"""Bytes of one source that may wait here; a larger request than a frame's worth is then answered -EAGAIN."""
_NO_PAYLOAD: Final = b""
_REQUEST: Final = Use.REQUEST  # looked up once: a member of an enumeration costs more than a global
_RESULT: Final = Use.RESULT


def _first(envelope: Envelope) -> str:
    """The hypervisor below the fabric that an envelope is for; "" for none."""
    step = envelope.dst[0] if envelope.dst else ""
    return step if isinstance(step, str) else ""


def _outgoing(envelope: Envelope, payload: Buffer, use: Use) -> Outgoing:
    """An envelope on its way out, one hop on; a result has no hops to spend."""
    head, tail = envelopes.pack(envelope, len(payload), None if use is _RESULT else envelope.hops_left - 1)
    return Outgoing(Packed(head, tail, payload), use, Rejoin.DROP)


class Switch:
    """Routes envelopes.  `chance` draws what impairments need."""

    def __init__(
        self, hub: Hub, binding: Binding | None = None, chance: Random | None = None, release_ns: int = RELEASE_NS
    ) -> None:
        self.judge = Judge(binding)
        self.lines: Lines[Held] = Lines(chance, self.judge.hosts)
        self.operations = Operations()
        self.now_ns = 0
        self.peers = Peers(hub, self.judge, self.lines)
        self._hub = hub
        self._release_ns = release_ns
        self._outboxes: dict[str, Outbox] = {}
        self._held_bytes: Counter[str] = Counter()

    # ---- what arrives ------------------------------------------------------------------------------------

    def on_envelope(self, node: Node, envelope: Envelope, use: Use, payload: Buffer) -> None:
        """An envelope of `node`, well formed, with the credit that it takes.  Nothing is believed of it yet."""
        self._hub.counters["envelopes"] += 1
        verdict = self._judge(node, envelope, use, payload)
        if verdict is not None:
            self._hub.report(node, *verdict)
            if use is _RESULT:
                node.session.lane(Lane.REQUEST).reopened()
            elif use is _REQUEST:
                self._answer(node, envelope, Errno.ECONNREFUSED)
            return
        if self.judge.former:
            envelope = self.judge.corrected(envelope)
        if use is _RESULT:
            self._on_result(node, envelope, payload)
        elif use is _REQUEST:
            self._on_request(node, envelope, payload)
        else:
            self._on_signal(node, envelope, payload)

    def _judge(self, node: Node, envelope: Envelope, use: Use, payload: Buffer) -> Verdict | None:
        if not self.judge.joined_by_fabric(node.name, node.kind):
            return Refusal.NOT_ALLOWED, f"an envelope from {node.kind} {node.name!r}, which the fabric does not join"
        verdict = self.judge.envelope(node.name, envelope)
        if verdict is not None:
            return verdict
        if use is _REQUEST:
            return None
        most = MAX_RESULT if use is _RESULT else MAX_SIGNAL
        if len(payload) <= most:
            return None
        kind = EnvelopeKind(envelope.kind).name
        return Refusal.MALFORMED_RECORD, f"{len(payload)} bytes of payload in a {kind}, at most {most}"

    def _on_request(self, node: Node, request: Envelope, payload: Buffer) -> None:
        name = _first(request)
        for done in self.operations.forgotten(name, request):
            self._release(done, Errno.EIO)
        key = (name, request.src_path[1:], request.origin_epoch, request.origin_seq)
        operation = self.operations.get(key)
        if operation is not None and operation.underway:
            operation.waiters += 1
            self._hub.counters["repeats"] += 1
            return
        target = self.peers.target(node, name)
        if target is None or request.hops_left == 0:
            self._cannot_go(node, request, operation)
            return
        if operation is None and self.lines.idle and self._at_once(target, request, payload):
            operation = self.operations.begin(key, request)
            operation.waiters = operation.inside = 1
            operation.handed = True
            return
        handed = operation is not None and operation.handed
        held_bytes = self._held_bytes[node.name] + len(payload)
        if held_bytes > MAX_HELD and len(payload) > MAX_FRAME and not handed:
            self._hub.counters["held_too_much"] += 1
            self._answer(node, request, Errno.EAGAIN)
            if operation is not None:
                self._release(operation, Errno.EAGAIN)
            return
        operation = self.operations.begin(key, request)
        operation.waiters += 1
        if self.lines.of(node.name, name).cut:
            self._hub.counters["cut"] += 1
            self.operations.settle(operation, self.now_ns)
            return
        self._send(node.name, target, request, payload, operation)

    def _cannot_go(self, node: Node, request: Envelope, operation: Operation | None) -> None:
        """Nobody there, or too many hops.  An earlier copy may have run: then a refusal would be a lie."""
        if operation is not None and operation.handed:
            operation.waiters += 1
            return
        why = "no hops left" if request.hops_left == 0 else "no such hypervisor is joined"
        self._hub.count_refusal(node, Refusal.NO_ROUTE, f"envelope to {codec.show(request.dst)}: {why}")
        self._answer(node, request, Errno.ECONNREFUSED)
        if operation is not None:
            self._release(operation, Errno.ECONNREFUSED)

    def _on_result(self, node: Node, result: Envelope, payload: Buffer) -> None:
        key = (node.name, result.dst[-2::-1], result.origin_epoch, result.origin_seq)
        operation = self.operations.get(key)
        if operation is None or not operation.inside:
            node.session.lane(Lane.REQUEST).reopened()
            detail = f"operation {result.origin_seq} of epoch {result.origin_epoch} for {codec.show(result.dst)}"
            self._hub.report(node, Refusal.FORGED_RESULT, detail)
            return
        operation.inside -= 1
        asker = self._hub.nodes.get(operation.source)
        if not operation.waiters or asker is None or self.lines.of(node.name, operation.source).cut:
            self._hub.counters["results_unwanted"] += 1
            self.operations.settle(operation, self.now_ns)
            return
        if self.judge.bound:
            label = self.judge.label(result.src_path) or ""
            if label != result.label:
                result = result._replace(label=label)
        if self.lines.idle:
            self._deliver(asker, _outgoing(result, payload, _RESULT), operation)
        else:
            self._send(node.name, asker, result, payload, operation)

    def _on_signal(self, node: Node, signal: Envelope, payload: Buffer) -> None:
        name = _first(signal)
        if signal.kind == EnvelopeKind.CANCEL:
            for done in self.operations.forgotten(name, signal):
                self._release(done, Errno.EIO)
        everybody = signal.dst == EVERYBODY and signal.kind == EnvelopeKind.ENDPOINT_DIED
        if everybody:
            targets = [other for other in self.peers.present() if other is not node]
        else:
            target = self.peers.target(node, name)
            targets = [] if target is None else [target]
        if signal.hops_left == 0 or not (targets or everybody or name in self._hub.nodes):
            self._hub.report(node, Refusal.NO_ROUTE, f"envelope to {codec.show(signal.dst)}")
        elif not targets and not everybody:
            self._hub.counters["signals_dropped"] += 1
        for target in targets:
            if self.lines.of(node.name, target.name).cut:
                self._hub.counters["cut"] += 1
            else:
                self._send(node.name, target, signal, payload, None)

    # ---- on the way --------------------------------------------------------------------------------------

    def _at_once(self, target: Node, request: Envelope, payload: Buffer) -> bool:
        """Hand a request to its destination's session, if nothing waits for that and there is room of every kind.

        What waits takes turns by its source; so no more is handed over like this than leaves in one frame.
        """
        outbox, session = self._outboxes.get(target.name), target.session
        if (outbox is not None and outbox.waits) or session.queued(Lane.REQUEST) >= MAX_RECORDS:
            return False
        if session.credit(Lane.REQUEST) <= 0:
            return False
        if not session.offer(Lane.REQUEST, _outgoing(request, payload, _REQUEST)):
            return False
        self._hub.touch(target)
        return True

    def _deliver(self, target: Node, outgoing: Outgoing, operation: Operation) -> None:
        """A result has arrived: as often as it was asked for."""
        waiters, operation.waiters = operation.waiters, 0
        for _ in range(waiters):
            target.session.offer(Lane.REQUEST, outgoing)
        self.operations.settle(operation, self.now_ns)
        self._hub.touch(target)

    def _send(
        self, source: str, target: Node, envelope: Envelope, payload: Buffer, operation: Operation | None
    ) -> None:
        """Encode, and let it arrive now or when its link says."""
        use = envelope.use
        held = Held(_outgoing(envelope, payload, use), operation, mark_of(envelope))
        pair = (source, target.name)
        at_once = self.lines.idle or self.lines.clear(pair)
        copies = 1
        if not at_once:
            copies = self.lines.send(pair, envelope.src_path, len(payload), self.now_ns, held, use is Use.RESULT)
        if operation is not None and use is Use.RESULT:
            operation.coming += copies
        elif operation is not None:
            operation.waiting += copies
            self._held_bytes[source] += copies * len(payload)
        if at_once:
            self._arrive(source, target, held)

    def _arrive(self, source: str, target: Node, held: Held) -> None:
        operation = held.operation
        if held.outgoing.use is Use.RESULT and operation is not None:
            operation.coming -= 1
            self._deliver(target, held.outgoing, operation)
        else:
            outbox = self._outboxes.get(target.name)
            if outbox is None:
                outbox = self._outboxes[target.name] = Outbox(self._hub.counters)
            if not outbox.put(source, held):
                self._break(source, target, outbox)
        self._hub.touch(target)

    def waits(self, node: Node) -> bool:
        """Whether anything waits for a node's credit."""
        outbox = self._outboxes.get(node.name)
        return outbox is not None and outbox.waits

    def pump(self, node: Node) -> bool:
        """Give a node's session what waits for it and has credit.  True: more would have, but for the session's
        bytes; pump again when these have left.
        """
        outbox = self._outboxes.get(node.name)
        if outbox is None or not outbox.waits:
            return False
        for held in outbox.move(node.session):
            operation = held.operation
            if operation is not None:
                operation.waiting -= 1
                operation.inside += 1
                operation.handed = True
                self._held_bytes[operation.source] -= len(held.outgoing.packed.payload)
        return outbox.stalled

    def _break(self, source: str, target: Node, outbox: Outbox) -> None:
        """Too many signals wait for a node that does not read: their source is told of a broken link instead."""
        dropped = len(outbox.take(source, signals_only=True))
        self._hub.counters["signals_dropped"] += dropped + 1
        node = self._hub.nodes.get(source)
        if node is not None:
            self.peers.tell(node, target, "down")
            self.peers.tell(node, target, "up")

    def _lose(self, held: Held) -> None:
        """A copy vanished on its way."""
        operation = held.operation
        if operation is None:
            self._hub.counters["signals_dropped"] += 1
            return
        if held.outgoing.use is Use.RESULT:
            operation.coming -= 1
        else:
            operation.waiting -= 1
            self._held_bytes[operation.source] -= len(held.outgoing.packed.payload)
        self.operations.settle(operation, self.now_ns)

    # ---- the broker's own answers ------------------------------------------------------------------------

    def _answer(self, node: Node, request: Envelope, errno: Errno) -> None:
        answer = result_of(request, -errno)._replace(src_path=("", BROKER))
        head, tail = envelopes.pack(answer, 0)
        node.session.offer(Lane.REQUEST, Outgoing(Packed(head, tail, _NO_PAYLOAD), Use.RESULT, Rejoin.DROP))
        self._hub.touch(node)

    def _release(self, operation: Operation, errno: Errno) -> None:
        """Give back the room of an operation that nobody will answer."""
        node = self._hub.nodes.get(operation.source)
        if node is not None and node.live:
            for _ in range(operation.waiters):
                self._answer(node, operation.request, errno)
        self.operations.drop(operation)

    # ---- who is there ------------------------------------------------------------------------------------

    def on_joined(self, node: Node) -> None:
        """A node has a new session: it learns of the others, and they of it."""
        if self.peers.holds(node):
            self.peers.introduce(node)

    def on_left(self, node: Node, for_good: bool = True) -> None:
        """A node's session is over; it may have a new one at once (`for_good` False)."""
        outbox = self._outboxes.get(node.name)
        if for_good and outbox is not None:
            for source in outbox.sources:
                self._lose_unhanded(outbox.take(source))
        if for_good:
            self._lose_unhanded([held for _, held in self.lines.drop(None, node.name)])
        for operation in self.operations.of(node.name):
            if operation.source == node.name:
                operation.waiters = 0
            if operation.target == node.name:
                operation.inside = 0
            self.operations.settle(operation, self.now_ns)
        if self.peers.holds(node):
            self.peers.tell_others(node, "down" if not for_good else None)

    def _lose_unhanded(self, gone: Sequence[Held]) -> None:
        """What never reached a node that is gone did not run."""
        for held in gone:
            self._lose(held)
            operation = held.operation
            if operation is not None and not operation.handed and not operation.underway:
                self._release(operation, Errno.ECONNREFUSED)

    def on_died(self, node: Node) -> None:
        """What was lost is now known to have ended."""
        if self.peers.holds(node):
            self.peers.tell_others(node)

    # ---- links and time ----------------------------------------------------------------------------------

    def impair(self, a: str, b: str, impairment: Impairment) -> None:
        """From now on the link between two nodes or two hosts is like that; its ends hear when it breaks or heals."""
        joined = self.peers.present()
        pairs = [(x, y) for at, x in enumerate(joined) for y in joined[at + 1 :]]
        before = [self.lines.of(x.name, y.name).cut for x, y in pairs]
        self.lines.set(a, b, impairment)
        for (x, y), was_cut in zip(pairs, before, strict=True):
            cut = self.lines.of(x.name, y.name).cut
            if cut == was_cut:
                continue
            if cut:
                self._vanish(x.name, y.name)
                self._vanish(y.name, x.name)
            for listener, about in ((x, y), (y, x)):
                self.peers.tell(listener, about)

    def _vanish(self, source: str, target: str) -> None:
        outbox = self._outboxes.get(target)
        for held in [] if outbox is None else outbox.take(source):
            self._lose(held)
        for _, held in self.lines.drop(source, target):
            self._lose(held)

    def linkable(self, name: str) -> bool:
        """Whether an impairment may name `name`: a hypervisor below the fabric, a guest or a host of the plan."""
        node = self._hub.nodes.get(name)
        return self.judge.planned(name) or (node is not None and self.peers.holds(node))

    def on_time(self, now_ns: int) -> None:
        """Time passed: what was under way arrives, what was lost long ago is given up."""
        self.now_ns = now_ns
        for (source, name), held in self.lines.arrived(now_ns):
            target = self._hub.nodes.get(name)
            if target is None or not target.live:
                self._lose(held)
            else:
                self._arrive(source, target, held)
        for operation in self.operations.expired(now_ns - self._release_ns):
            self._hub.counters["released"] += 1
            self._release(operation, Errno.EIO)

    def next_deadline(self) -> int | None:
        """When :meth:`on_time` has something to do; None: not by itself."""
        oldest = self.operations.oldest_ns
        return earliest(self.lines.next_deadline(), None if oldest is None else oldest + self._release_ns)
