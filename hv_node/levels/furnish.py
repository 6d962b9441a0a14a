"""What the plan says about slots and policy, put into one hypervisor; and changes to it while it runs.

Experimental, not upstream.  The configuration gives each guest its slots, confines it, and brings a firewall; an order
of the toolstack (:mod:`hv_node.levels.orders`) changes that live.  Whoever gives an order is told that it was carried
out when that is so at every hypervisor concerned.  A guest that comes again is furnished again.

No clock, no I/O: the owner calls `turn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import DOMID_ANY, RING_DATA, RING_DATA_ENT, Op
from hmx.errno import Errno
from hmx.slots import SlotOp
from hv_node.config import HypervisorConfig, PolicyConfig, SlotConfig
from hv_node.domain import Domain, DomainState
from hv_node.effects import PENDING
from hv_node.levels import slot_ops
from hv_node.levels.delegation import Delegation
from hv_node.levels.errands import Errands
from hv_node.levels.gate import Gate
from hv_node.levels.narrowing import Narrowing
from hv_node.levels.outwards import WHERE, Outwards
from hv_node.levels.paths import ITSELF, Path, absolute
from hv_node.levels.policy import FirewallXsm, permissions_of, table_of
from hv_node.levels.remote import PayloadError, pack_names, unpack_query
from hv_node.levels.rules import Stranger
from hv_node.levels.slot_table import FIRST_DELEGATED, Slot, SlotError, SlotId, op_of
from hv_node.levels.slots import Hit, Slots
from hv_node.xsm import PortXsm

if TYPE_CHECKING:
    from hv_node.argo.model import Ring
    from hv_node.levels.level import Level

_NOT_THERE: Final = -int(Errno.ESRCH)
_SENSELESS: Final = -int(Errno.EINVAL)
SHOWN: Final = 100
"""Slots, and pairs with denials, that a person is shown of one hypervisor: a record has a size."""
Key = tuple[int | None, int | None]


class Places:
    """The directory that slots look into: a level's, with the nested hypervisors of our own, which hold slots too."""

    def __init__(self, level: Level) -> None:
        self.path = level.path
        self._level = level

    def own(self, name: str) -> Domain | None:
        """The living domain of ours that the topology calls `name`."""
        found = [domain for domain in self._level.domains if domain.name == name and domain.remote is None]
        return next((domain for domain in found if domain.state is DomainState.ALIVE), None)

    def domid_of(self, path: Path) -> int | None:
        """The domain id of whoever the topology has at `path`."""
        if len(path) == len(self.path) + 1 and path[:-1] == self.path and path[-1] in self._level.children:
            child = self.own(path[-1])
            return None if child is None else child.domid
        domain = self._level.resolve(path)
        return None if domain is None else domain.domid

    def path_of(self, domid: int) -> Path | None:
        """Where a domain lives."""
        domain = self.domain(domid)
        if domain is not None and domain.nested:
            return (*self.path, domain.name)
        return self._level.path_of(domid)

    def domain(self, domid: int) -> Domain | None:
        """The domain, or the proxy."""
        return self._level.domains.lookup(domid)

    def label_of(self, domid: int) -> str:
        """Its label: of a guest of ours by its name, which is known before the level knows the guest."""
        domain = self.domain(domid)
        if domain is None or domain.remote is not None:
            return self._level.label_of(domid)
        return self._level.label_by_name(domain.name)


class Furniture:
    """Slots, gate, delegation and policy of one hypervisor.

    `on_policy()` runs when a policy came to a hypervisor that had none: whatever passes Argo by must end.
    """

    def __init__(self, config: HypervisorConfig, level: Level, base: PortXsm) -> None:
        """`base` is the security module underneath.  Domains that exist are furnished at once."""
        self.level = level
        self.base = base
        self.places = Places(level)
        self.slots = Slots(self.places)
        self.firewall: FirewallXsm | None = None
        self.gate = Gate(level.argo, self.slots, base, self._upwards)
        self.delegation = Delegation(self.slots, self.gate)
        self.errands = Errands(level, self.delegation)
        self._outwards = Outwards(level, self.slots, self._child_of, self._denied)
        self.gate.up = self._outwards.domain if len(level.path) > 1 else None
        self.errands.others = self._asked
        self.on_policy: Callable[[], None] = lambda: None
        self.installed = False
        self._rows: dict[str, list[SlotConfig]] = {domain.name: [] for domain in config.domains}
        self._rows |= {
            ward.name: [] for domain in config.domains if domain.mode == "steal" for ward in domain.wards
        }
        self._confined = {domain.name for domain in config.domains if domain.implicit_only}
        self._next: dict[str, int] = {}
        for row in config.slots:
            self._rows.setdefault(row.holder, []).append(row)
        self._known = {row.path for row in config.remotes} | {(*level.path, name) for name in self._rows}
        level.argo.others = self._other
        level.on_upwards = self._directed
        level.on_born, level.on_lost = self.born, self.errands.lost
        level.proxies.on_death = self.died
        if config.policy is not None:
            self.judge_by(config.policy)
        elif config.slots or self._confined:
            self.install()
        for domain in level.domains:
            self.born(domain)

    def install(self) -> None:
        """Stand in front of the core from now on; hypervisors without slots and policy pay nothing."""
        self.gate.install()
        self.level.on_delivered = self.gate.delivered
        self.installed = True

    # -- lives ----

    def born(self, domain: Domain) -> None:
        """A domain was created: what the topology says about its guest, and what was changed since."""
        if domain.remote is not None:
            return
        if domain.name in self._confined:
            self.slots.confine(domain.domid)
        for row in self._rows.get(domain.name, ()):
            try:
                self._grant(domain, row)
            except SlotError as error:
                self.level.host.event("slot-refused", domain.name, str(error))

    def died(self, domain: Domain) -> None:
        """A domain or proxy is dying."""
        self.errands.carry(self.delegation.domain_died(domain.domid))
        if self.firewall is not None:
            self.firewall.forget(domain)

    def speaks_v4v(self, domain: Domain) -> bool:
        """v4v names domains and asks no module: nothing for whoever is confined, nor for anybody under a policy."""
        return self.firewall is None and not self.slots.confined(domain.domid)

    # -- calls of guests ----

    def _other(
        self, caller: Domain, cmd: int, a1: int, a2: int, a3: int, a4: int, ctx: int, token: object
    ) -> int | None:
        if cmd == SlotOp.QUERY_ENDPOINT:
            return slot_ops.query_endpoint(self.delegation, self.gate, caller, a1, a2, a3, a4, ctx)
        if cmd != SlotOp.DELEGATE:
            return None
        answer: list[int] = []
        waits = False

        def done(ret: int) -> None:
            if waits:
                self.level.settle(token, caller.domid, ret)
            else:
                answer.append(ret)

        self.errands.carry(slot_ops.delegate(self.delegation, caller, a1, a2, a3, a4, ctx), done)
        waits = True
        return answer[0] if answer else PENDING

    def _upwards(
        self, caller: Domain, hit: Hit, source_port: int, message_type: int, iovs: tuple[int, ...], ctx: int,
        token: object,
    ) -> int:  # fmt: skip
        """A send that the next hypervisor outwards decides."""
        core = self.level.argo
        plain, core.through = core.through, op_of(hit.slot)
        try:
            return self.level.send_up(caller, source_port, hit.port, message_type, iovs, ctx, token)
        finally:
            core.through = plain

    def _directed(self, path: Path, envelope: Envelope) -> tuple[Path, int, int] | int:
        """A send of a nested hypervisor's guest that is ours to decide: by the table of that hypervisor's domain."""
        child = self._child_of(path)
        if child is None:
            return _NOT_THERE
        hit = self.slots.resolve(child, envelope.port_src, DOMID_ANY, envelope.port_dst, envelope.msg_type)
        if not isinstance(hit, Hit):
            return _NOT_THERE if hit is None else hit
        to = (*self.level.path[:-1], ITSELF) if hit.up else self.places.path_of(hit.domid)
        return _NOT_THERE if to is None else (to, hit.port, op_of(hit.slot))

    def _child_of(self, path: Path) -> Domain | None:
        """The domain of the nested hypervisor of ours around whoever is at `path`."""
        own = self.level.path
        child = self.places.own(path[len(own)]) if path[: len(own)] == own and len(path) > len(own) else None
        return child if child is not None and child.nested else None

    def _asked(self, origin: Path, op: int, payload: bytes) -> tuple[int, bytes]:
        """What another hypervisor asks beside slots."""
        return self._outwards.told(origin, payload) if op == WHERE else (-int(Errno.EOPNOTSUPP), b"")

    def _denied(self, caller: Domain, target: Domain, port: int) -> int:
        return self.gate.base.send_to(caller, target, port, None)

    # -- what passes through to others ----

    def _transit(self, envelope: Envelope, payload: bytes) -> tuple[int, Envelope, bytes]:
        """Judge what goes on to another hypervisor: (0 or a refusal, what goes on)."""
        origin = self._source(envelope)
        source = Stranger("/".join(origin), self.level.label_at(origin, envelope.label))
        dst = tuple(map(str, envelope.dst))
        if envelope.kind == EnvelopeKind.SEND:
            if dst[-1] == ITSELF:
                return 0, envelope, payload  # who is meant is not known yet
            return self._judge(source, envelope.port_src, dst, envelope.port_dst), envelope, payload
        if envelope.op != Op.NOTIFY:
            return 0, envelope, payload
        try:
            names, structure = unpack_query(payload)
        except PayloadError:
            return _SENSELESS, envelope, payload
        far = dst[:-1] if dst[-1] == ITSELF else dst
        for at in range(RING_DATA.size, len(structure), RING_DATA_ENT.size):
            port, number, *_ = RING_DATA_ENT.unpack_from(structure, at)
            if number >= len(names):
                return _SENSELESS, envelope, payload
            ret = self._judge(source, None, (*far, names[number]), port)
            if ret:
                kept = (at - RING_DATA.size) // RING_DATA_ENT.size
                shorter = pack_names(names) + RING_DATA.pack(kept, 0) + structure[RING_DATA.size : at]
                return 0, envelope._replace(ret=ret, length=len(shorter)), bytes(shorter)
        return 0, envelope, payload

    def _source(self, envelope: Envelope) -> Path:
        path, own = absolute(envelope.src_path), self.level.path
        return (*own[:-1], *path) if len(own) > 1 and path[0] == own[-1] else path

    def _judge(self, source: Stranger, source_port: int | None, target: Path, port: int) -> int:
        assert self.firewall is not None
        stranger = Stranger("/".join(target), self.level.label_at(target))
        return self.firewall.send_through(source, source_port, stranger, port)

    # -- the toolstack ----

    def connect(self, row: SlotConfig, done: Callable[[str], None]) -> None:
        """Give a guest a slot, in the place of one that serves the same.  SlotError: it cannot be."""
        if row.holder not in self._rows:
            raise SlotError(f"{row.holder} is not on {self.level.name}")
        if row.to and row.to not in self._known:
            raise SlotError(f"{'/'.join(row.to)} cannot be reached from {self.level.name}")
        rows = self._rows[row.holder]
        if row.slot < 0:
            row = replace(row, slot=self._fresh(row.holder))
        domain = self.places.own(row.holder)
        old: Slot | None = None
        if domain is not None:
            holder = self.slots.holder(domain.domid)
            old = holder.by_key.get((row.source_port, row.port))
            slot_id = SlotId(holder.path, row.slot)
            self.slots.check(domain.domid, Slot(slot_id, row.source_port, row.port, row.to, row.to_port), old)
        rows[:] = [known for known in rows if _key(known) != _key(row)] + [row]
        if not self.installed:
            self.install()
        if domain is None:
            done("")  # it is given it when it comes
            return

        def change() -> Iterator[Callable[[Callable[[int], None]], None]]:
            if old is not None:
                yield lambda then: self.errands.carry(self.delegation.revoke(domain.domid, old.id.number), then)
            yield lambda then: self._grant(domain, row, then)

        _one_by_one(change(), lambda: done(""))
        self._forget_waits(self.slots.stale_waits(self._rings()))

    def disconnect(self, holder: str, port: int | None, source_port: int | None, done: Callable[[str], None]) -> None:
        """Revoke what a guest is led by; nothing to do where the guest lives elsewhere.  SlotError: no such slot."""
        rows = self._rows.get(holder)
        if rows is None:
            done("")
            return
        wanted: Key = (source_port, port)
        kept = [row for row in rows if _key(row) != wanted]
        planned, rows[:] = len(kept) < len(rows), kept
        domain = self.places.own(holder)
        table = None if domain is None else self.slots.holders.get(domain.domid)
        slot = None if table is None else table.by_key.get(wanted)
        if domain is None or slot is None:
            if not planned:
                raise SlotError(f"{holder} holds no such slot")
            done("")
            return
        self.errands.carry(self.delegation.revoke(domain.domid, slot.id.number), lambda _ret: done(""))
        self._forget_waits(self.slots.stale_waits(self._rings()))

    def judge_by(self, policy: PolicyConfig) -> None:
        """Judge by `policy` from now on.  ValueError: it is none."""
        table, permissions = table_of(policy), permissions_of(policy)
        if policy.labels is not None:
            self.level.relabel(dict(policy.labels))
        if self.firewall is not None:
            self.firewall.reload(table, permissions)
        else:
            event = self.level.host.event
            self.firewall = FirewallXsm(
                self.base, table, permissions, event, label_of=self.places.label_of, label_at=self._label_at
            )
            self.gate.base = self.firewall
            self.level.transit = self._transit
            self.install()
            self.on_policy()
        self._forget_waits(self.firewall.stale_waits(self._rings(), self.level.domains.lookup))

    def _label_at(self, name: str, claimed: str) -> str:
        return self.level.label_at(tuple(name.split("/")), claimed)

    def _grant(self, domain: Domain, row: SlotConfig, then: Callable[[int], None] | None = None) -> None:
        narrowing = Narrowing(types=row.types or None, rate=row.rate)
        ticket = self.delegation.grant(
            domain.domid, row.slot, row.source_port, row.port, row.to, row.to_port, narrowing, delegable=row.delegable
        )
        self.errands.carry(ticket, then)

    def _fresh(self, holder: str) -> int:
        """A number that no slot of the holder has, and had lately."""
        used = {row.slot for row in self._rows[holder]}
        domain = self.places.own(holder)
        if domain is not None and domain.domid in self.slots.holders:
            used |= self.slots.holders[domain.domid].slots.keys()
        number = self._next.get(holder, max(used, default=-1) + 1)
        for _ in range(FIRST_DELEGATED):
            number %= FIRST_DELEGATED
            if number not in used:
                self._next[holder] = number + 1
                return number
            number += 1
        raise SlotError(f"{holder} has no number left for a slot")

    def _rings(self) -> list[Ring]:
        return [ring for domain in self.level.domains if domain.argo is not None for ring in domain.argo.in_order]

    def _forget_waits(self, stale: list[tuple[Ring, int]]) -> None:
        """Nobody is told of room in a ring that it may not reach any more."""
        for ring, domid in stale:
            if ring.owner.argo is not None:
                ring.owner.argo.forget(ring, domid, self.level.domains.lookup)

    # -- time, people ----

    def turn(self, now_ns: int) -> None:
        """Once a turn: what is due, and what rates allow."""
        self.slots.now_ns = now_ns
        self.errands.turn(now_ns)

    def next_deadline(self) -> int | None:
        """When `turn` has something to do."""
        return self.errands.next_deadline(self.level.now_ns)

    def inspect(self) -> dict[str, Any]:
        """Slots with the chains by which they came, who is confined, and what the policy decided."""
        shown: dict[str, Any] = {}
        if rows := self.slots.inspect():
            shown["slots"] = [row._asdict() for row in rows[:SHOWN]]
            if len(rows) > SHOWN:
                shown["more_slots"] = len(rows) - SHOWN
        if self._confined:
            shown["confined"] = sorted(self._confined)
        if self.firewall is not None:
            policy = dict(self.firewall.inspect())
            policy["denials"] = sorted(policy["denials"], key=lambda row: -row[2])[:SHOWN]
            shown["policy"] = policy
        return shown


def _key(row: SlotConfig) -> Key:
    return row.source_port, row.port


def _one_by_one(steps: Iterator[Callable[[Callable[[int], None]], None]], done: Callable[[], None]) -> None:
    """Take each step when the one before it is over."""

    def go_on(_ret: int = 0) -> None:
        step = next(steps, None)
        if step is None:
            done()
        else:
            step(go_on)

    go_on()
