"""A level: one hypervisor between its guests, its nested hypervisors and its uplink.  Experimental, not upstream.

The owner provides links (`Uplink`), hands in what arrives and says when it is.  The core's guests come in through the
proxies (`near`), other levels' guests through envelopes (`far`); whatever is for somebody else is passed on, upwards
or downwards, and nothing of it is remembered.  The protocol is described in docs/levels.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.envelope import VERSION, Envelope, EnvelopeKind
from hmx.errno import Errno
from hv_node.domain import Domain
from hv_node.levels import paths
from hv_node.levels.answers import Answer
from hv_node.levels.calls import HOPS, Calls, Operation
from hv_node.levels.far import Far
from hv_node.levels.guests import Guests
from hv_node.levels.near import Near
from hv_node.levels.notices import BY_RET, NOTICE_OP, ROUTER, ROUTER_NOTICES, notice
from hv_node.levels.options import Death, Host, LevelCounters, LevelOptions
from hv_node.levels.paths import EVERYBODY, ITSELF, Path, Where
from hv_node.levels.proxies import Proxies
from hv_node.levels.uplink import Outlet, Uplink
from hv_node.levels.wards import Wards

_ASKED: Final = frozenset({EnvelopeKind.SEND, EnvelopeKind.QUERY})
_DOWN: Final = notice("way down")
_NOBODY: Final = notice("no such hypervisor")
_NO_ROOM: Final = notice("no room on the way")
_UP: Final = Where.UP
_NOWHERE: Final = Outlet(None)

Transit = Callable[[Envelope, bytes], "tuple[int, Envelope, bytes]"]
"""Judges a SEND or QUERY that is passed on, by its label and destination: (0 or a negated errno, what goes on)."""


class Level(Guests):
    """One hypervisor's level.  Every `now_ns` is of one monotonic clock.

    Hooks, None where unused: `transit`; `on_reached(guest)` when a message of an exact sendv from elsewhere lies in a
    guest's ring, before it is answered; `on_delivered(op, guest, source, source port)` after a message from elsewhere
    lies in a guest's ring; `on_request(path, op, payload)` answers `request`s of others with (result, reply);
    `on_upwards(path, envelope)` says where a message goes that a nested hypervisor leaves to us: (path, port), if it
    wants (path, port, the envelope's new `op`), or a negated errno; the path of our own parent with a last "" leaves it
    to that.
    `on_born(domain)` and `on_lost(path)` hear of domains that are created here and of hypervisors that are dead;
    `proxies.on_death(domain)` of everybody's death.
    """

    def __init__(self, path: Path, host: Host, options: LevelOptions, uplink: Uplink | None = None) -> None:
        """The level of the hypervisor at `path`.  Domains that exist are its guests."""
        self.path = path
        self.name = path[-1]
        self.host = host
        self.argo = host.argo
        self.domains = host.domains
        self.options = options
        self.counters = LevelCounters()
        self.now_ns = 0
        self.on_reached: Callable[[int], None] | None = None
        self.transit: Transit | None = None
        self.on_delivered: Callable[[int, int, int, int], None] | None = None
        self.on_request: Callable[[Path, int, bytes], tuple[int, bytes]] | None = None
        self.on_upwards: Callable[[Path, Envelope], tuple[Path, int] | tuple[Path, int, int] | int] | None = None
        self.uplink = Outlet(uplink)
        self.children = {name: Outlet(None) for name in options.children}
        self.calls = Calls(options.epoch, options.link_timeout_ns, self._emit, self._unknown)
        self.near = Near(self)
        self.far = Far(self)
        self.wards = Wards(self)
        self._peers_down: set[str] = set()  # other L0s that the fabric cannot reach now
        self._peers_dead: set[str] = set()
        self._peers_pids: dict[str, int] = {}
        super().__init__(Proxies(self.argo, self.domains, self.near, options.fresh_from))
        for remote in options.remotes:
            self.proxies.plan(remote)
        for domain in self.domains:
            self.domain_created(domain)
        self.argo.on_reset = self.domain_reset

    # -- links ----

    def attach(self, child: str, link: Uplink, now_ns: int) -> None:
        """A nested hypervisor can be reached."""
        self.children.setdefault(child, Outlet(None)).link = link
        self.on_link(True, now_ns, child)

    def set_uplink(self, link: Uplink, now_ns: int) -> None:
        """The parent or the fabric can be reached."""
        self.uplink.link = link
        self.on_link(True, now_ns)

    def on_link(self, up: bool, now_ns: int, child: str | None = None) -> None:
        """A link was lost, or is there again; the one to `child`, or the uplink."""
        self._clock(now_ns)
        outlet = self.uplink if child is None else self.children[child]
        if up:
            outlet.up = outlet.link is not None
            if child is not None:
                for peer in sorted(self._peers_dead):
                    self._broadcast(outlet, peer)
            self.calls.way_up(lambda far: self._outlet(far) is outlet and far[0] not in self._peers_down)
            outlet.flush()
            return
        lost = outlet.cut()
        for item in lost:
            own = self.calls.find(item.envelope.origin_seq) if item.handed is not None else None
            if own is not None:
                self.calls.unsent(own)
            elif item.envelope.kind in _ASKED and item.handed is None:
                self.notice(item.envelope, _DOWN)
        self.calls.way_down(lambda far: self._outlet(far) is outlet, now_ns)

    def on_room(self, child: str | None = None) -> None:
        """A link takes envelopes again."""
        (self.uplink if child is None else self.children[child]).flush()

    def on_peer(self, name: str, state: str, now_ns: int, pid: int = 0) -> None:
        """The fabric says of another L0, whose process is `pid` (0: not told), that it is "up", "down" or "dead".

        Another process is another life, also when nobody has told of the former one's end, as a fabric cannot that was
        itself started again: what that one was asked must not be asked of this one.
        """
        self._clock(now_ns)
        if pid and self._peers_pids.setdefault(name, pid) != pid and name not in self._peers_dead:
            self.on_peer(name, "dead", now_ns)
        if pid:
            self._peers_pids[name] = pid
        if state == "up":
            self._peers_down.discard(name)
            self._peers_dead.discard(name)
            self.calls.way_up(lambda far: far[0] == name and self._outlet(far).up)
            return
        self._peers_down.add(name)
        self.calls.way_down(lambda far: far[0] == name, now_ns)
        if state == "dead" and name not in self._peers_dead:
            self._peers_dead.add(name)
            self.hypervisor_died((name,))
            for outlet in self.children.values():
                self._broadcast(outlet, name)

    def child_died(self, child: str, now_ns: int) -> None:
        """A nested hypervisor is dead, and all its guests."""
        self.on_link(False, now_ns, child)
        self.children[child].link = None
        self.hypervisor_died((*self.path, child))
        self.near.tell(ITSELF, Death.CHILD, child)

    def _outlet(self, far: Path) -> Outlet:
        found = paths.way_to_hypervisor(self.path, far)
        if found.where is _UP:
            return self.uplink
        return self.children.setdefault(found.name, Outlet(None))

    def _emit(self, op: Operation) -> bool:
        """Hand a copy of an own operation to its link."""
        outlet = self._outlet(op.far)
        if not outlet.up or op.far[0] in self._peers_down:
            return False
        envelope = self.calls.copy(op)
        number = op.copies
        op.queued = True
        outlet.put(envelope, op.payload, lambda taken: self.calls.handed(op, number, taken))
        return True

    def _unknown(self, op: Operation) -> None:
        self.host.event("outcome-unknown", op.caller, list(op.far), op.seq)

    # -- time ----

    def _clock(self, now_ns: int) -> None:
        self.now_ns = max(self.now_ns, now_ns)

    def on_timer(self, now_ns: int) -> None:
        """Repeat, give up, look again: whatever is due.  May be called at any time."""
        self._clock(now_ns)
        self.calls.on_timer(now_ns)
        self.far.on_timer(now_ns)
        self.free_due(now_ns)

    def next_deadline(self) -> int | None:
        """When `on_timer` has something to do; a time that is past means now."""
        due = [self.calls.deadline(self.now_ns), self.far.deadline(self.now_ns), self.next_free()]
        return min((time for time in due if time is not None), default=None)

    # -- what arrives ----

    def on_envelope(self, child: str | None, envelope: Envelope, payload: bytes, now_ns: int) -> bool:
        """An envelope came from a nested hypervisor, or (None) from above.

        False: there is no room to pass it on, and nothing was done; only a child is told so.
        """
        self._clock(now_ns)
        if not self._genuine(child, envelope):
            self.counters.forged += 1
            self.host.event("forged-envelope", child or "", envelope.kind, list(envelope.src_path))
            return True
        if envelope.dst == EVERYBODY:
            self._heard(envelope, payload)
            return True
        found = paths.way(self.path, envelope.dst)
        passing = found.where in (Where.UP, Where.CHILD)
        if child is not None:
            if passing and self._next(found).full:
                return False
            src_path = paths.grown(self.path, envelope.src_path, climbing=found.where is _UP)
            source = self._source_of(src_path, found.where is _UP)
            envelope = envelope._replace(src_path=src_path, label=self.proxies.label(source, envelope.label))
        if passing and envelope.kind == EnvelopeKind.ENDPOINT_DIED and envelope.op != Death.RESET:
            source = self._source_of(envelope.src_path, child is not None and found.where is _UP)
            self.died(source, envelope.op, payload, envelope.origin_epoch)
        if passing:
            self._pass_on(child, found, envelope, payload)
        elif envelope.kind in (EnvelopeKind.RESULT, EnvelopeKind.CANCEL):
            self._result(envelope, payload)
        else:
            self.far.arrived(envelope, payload)
        return True

    def _genuine(self, child: str | None, envelope: Envelope) -> bool:
        """Whether whoever handed it to us may say what stands in it."""
        src_path = envelope.src_path
        if len(src_path) < 2 or not paths.well_formed(src_path) or not paths.well_formed(envelope.dst):
            return False
        if child is not None:
            return src_path[-1] == child and envelope.dst != EVERYBODY
        source = paths.absolute(src_path)
        return not paths.within(self.path, source)

    def _source_of(self, src_path: paths.Wire, climbing: bool) -> Path:
        """The absolute path of a sender; one that still climbs has our own name last."""
        return (*self.path[:-1], *paths.absolute(src_path)) if climbing else paths.absolute(src_path)

    def _next(self, found: paths.Way) -> Outlet:
        return self.uplink if found.where is _UP else self.children.get(found.name, _NOWHERE)

    def _pass_on(self, child: str | None, found: paths.Way, envelope: Envelope, payload: bytes) -> None:
        outlet = self._next(found)
        if (found.where is _UP and child is None) or (found.where is Where.CHILD and found.name not in self.children):
            self.notice(envelope, _NOBODY)
        elif not envelope.hops_left:
            self.counters.hops += 1
            self.host.event("hops-used-up", list(envelope.src_path), list(envelope.dst))
            self.notice(envelope, _NOBODY)
        elif not outlet.up or (found.where is _UP and envelope.dst[0] in self._peers_down):
            self.notice(envelope, _DOWN)
        elif outlet.full:
            self.notice(envelope, _NO_ROOM)
        else:
            if self.transit is not None and envelope.kind in _ASKED:
                ret, envelope, payload = self.transit(envelope, payload)
                if ret:
                    self.counters.refused += 1
                    self.reply(envelope, Answer(ret))
                    return
            self.counters.forwarded += 1
            outlet.put(envelope._replace(hops_left=envelope.hops_left - 1), payload)

    def redirect(self, envelope: Envelope, payload: bytes) -> None:
        """Pass on a message from below for which we found the destination."""
        found = paths.way(self.path, envelope.dst)
        below = str(envelope.src_path[-1 - len(self.path)])
        if found.where is _UP and len(self.path) > 1:
            envelope = envelope._replace(src_path=envelope.src_path[: 1 - len(self.path)])
        self._pass_on(below, found, envelope, payload)

    def _heard(self, envelope: Envelope, payload: bytes) -> None:
        """Something for everybody: from above, and on to all below."""
        if envelope.kind == EnvelopeKind.ENDPOINT_DIED:
            self.died(paths.absolute(envelope.src_path), envelope.op, payload, envelope.origin_epoch)
        for outlet in self.children.values():
            if outlet.up and envelope.hops_left:
                outlet.put(envelope._replace(hops_left=envelope.hops_left - 1), payload)

    def _broadcast(self, outlet: Outlet, dead: str) -> None:
        """Tell a child that another L0 is dead."""
        if outlet.up:
            outlet.put(self._envelope(EnvelopeKind.ENDPOINT_DIED, (ITSELF, dead), EVERYBODY, op=Death.DYING), b"")

    # -- results ----

    def _result(self, envelope: Envelope, payload: bytes) -> None:
        """An answer to an operation of ours, or a notice about a copy of it."""
        op = self.calls.find(envelope.origin_seq)
        if envelope.origin_epoch != self.options.epoch or op is None:
            self.counters.stale += 1
            return
        speaker = paths.absolute(envelope.src_path)[:-1]
        asked = op.envelope.kind in _ASKED
        if speaker == ROUTER:
            row = ROUTER_NOTICES.get(envelope.ret)
        elif envelope.op == NOTICE_OP and asked:
            on_the_way = paths.within(speaker, op.far) or paths.within(speaker, self.path) or op.anybody
            row = BY_RET.get(envelope.ret) if on_the_way else None
        elif (speaker == op.far or op.anybody) and asked == (envelope.kind == EnvelopeKind.RESULT):
            self.calls.answered(op, envelope.ret, bytes(payload))
            return
        elif asked and envelope.ret < 0 and (paths.within(speaker, op.far) or paths.within(speaker, self.path)):
            self.calls.refused(op, envelope.ret, envelope.cookie)  # `transit` of a level on the way
            return
        else:
            row = None
        if row is None:
            self.counters.forged += speaker != ROUTER
            return
        self.calls.noticed(op, row, envelope.cookie, self.now_ns)

    def notice(self, request: Envelope, ret: int) -> None:
        """Answer a request that was not executed.  What nobody waits for is only dropped: it is repeated."""
        if request.kind in _ASKED:
            self._answer(request, EnvelopeKind.RESULT, NOTICE_OP, Answer(ret))
        else:
            self.counters.dropped += 1

    def reply(self, request: Envelope, answer: Answer) -> None:
        """The true result of a request; or that a saying was heard."""
        kind = EnvelopeKind.RESULT if request.kind in _ASKED else EnvelopeKind.CANCEL
        self._answer(request, kind, request.op, answer)

    def _answer(self, request: Envelope, kind: EnvelopeKind, op: int, answer: Answer) -> None:
        source = paths.absolute(request.src_path)
        if len(self.path) > 1 and source[0] == self.name:
            source = (*self.path[:-1], *source)  # it was climbing past us
        found = paths.way(self.path, source)
        climbing = found.where is _UP
        outlet = self._next(found)
        if not outlet.up or found.where not in (Where.UP, Where.CHILD):
            self.counters.dropped += 1
            return
        src_path = paths.started(self.path, ITSELF, climbing=climbing)
        _, _, cookie, origin_epoch, origin_seq, *_ = request
        made = Envelope(
            VERSION, kind, cookie, origin_epoch, origin_seq, src_path, source, HOPS, "", op, 0, 0, 0, 0,
            len(answer.reply), answer.ret,
        )  # fmt: skip
        outlet.put(made, answer.reply)

    def _envelope(self, kind: EnvelopeKind, src_path: Path, dst: Path, *, op: int) -> Envelope:
        return Envelope(VERSION, kind, 0, self.options.epoch, 0, src_path, dst, HOPS, "", op, 0, 0, 0, 0, 0, 0)

    def send_up(
        self,
        caller: Domain,
        src_port: int,
        port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """A guest's message whose destination the next hypervisor outwards finds; an L0 has none: -ESRCH."""
        if len(self.path) == 1:
            return -int(Errno.ESRCH)
        return self.near.send_up(caller, src_port, port, message_type, iovs, ctx, token)

    # -- requests beside Argo's ----

    def request(self, far: Path, op: int, payload: bytes, settled: Callable[[int, bytes], None]) -> None:
        """Ask the hypervisor at `far` something of our own; `op` is no operation of Argo.

        `settled(result, reply)` is called once, perhaps before this returns; -ECONNREFUSED and -EIO as for sendv.
        """
        dst = (*far, ITSELF)
        made = self.calls.begin(EnvelopeKind.QUERY, far, self.started(ITSELF, far), dst, "", payload, op=op)
        made.settled = lambda op: settled(op.ret or 0, op.reply)
        self.calls.send(made)

    def is_dead(self, far: Path) -> bool:
        """Whether nobody is at the hypervisor `far`, as far as can be told without asking."""
        found = paths.way_to_hypervisor(self.path, far)
        if found.where is _UP:
            return far[0] in self._peers_dead
        child = self.children.get(found.name)
        return child is None or child.link is None

    def requested(self, path: Path, op: int, payload: bytes) -> Answer:
        """Another hypervisor asks."""
        if self.on_request is None:
            return Answer(-int(Errno.EOPNOTSUPP))
        return Answer(*self.on_request(path, op, payload))
