"""The firewall as a security module: Xen's four permissions by label, and rules over ports.  Experimental.

A message passes when the module underneath (`dummy` or `silo`) grants it, when the sender's label has the permission,
and when the first matching rule accepts it; where no rule matches, an answer to what was allowed passes too, and
nothing else.  Each hypervisor on the way asks its own.  Permissions follow FLASK's class argo: without a word about a
label it has all of them, as in the stock policy; refusals are -EACCES.

A reload judges what is open anew.  Flows that are no longer allowed are dropped and named; the others go on untouched.
Rings are not torn down: a ring says nothing by itself, what lies in it was allowed when it came, and each send is
judged.  Waiters for room are removed (`stale_waits`): their wake-up would tell of a ring that they must not see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hmx.errno import Errno
from hv_node.domain import Domain
from hv_node.levels.flows import Flow, Flows
from hv_node.levels.narrowing import normal
from hv_node.levels.rules import ANYBODY, FRONT_END_OF, Party, Rule, Stranger, Table
from hv_node.xsm import PortXsm

if TYPE_CHECKING:
    from hv_node.argo.model import Ring
    from hv_node.config import PolicyConfig, RuleConfig

MAX_PAIRS: Final = 4096  # pairs of parties whose denials are counted apart
REST: Final = ("", "")
"""Under which denials are counted when there are more pairs."""


class Operation(NamedTuple):
    """A permission: whether it is one between two labels, what its denial answers, and where it comes from."""

    name: str
    targeted: bool
    errno: Errno
    source: str


OPERATIONS: Final = (
    Operation("enable", False, Errno.EACCES, "FLASK class argo; target is Xen"),
    Operation("register_single_source", True, Errno.EACCES, "FLASK class argo; target is the partner"),
    Operation("register_any_source", False, Errno.EACCES, "FLASK class argo; target is Xen"),
    Operation("send", True, Errno.EACCES, "FLASK class argo; target is the destination"),
    Operation("delegate", True, Errno.EACCES, "experimental; target is who gets the slot"),
    Operation("query", True, Errno.ESRCH, "experimental; as if nobody were there"),
)
_OPERATION: Final = {row.name: row for row in OPERATIONS}


class Permit(NamedTuple):
    """`label` may do `operation`, to `target` or to anybody."""

    label: str
    operation: str
    target: str = ANYBODY


class Permissions:
    """What each label may do.  A label that no permit names may do everything; one that is named, what they say.

    `named`: further labels that count as named.  Raises ValueError for an operation that does not exist.
    """

    def __init__(self, permits: Iterable[Permit] = (), named: Iterable[str] = ()) -> None:
        self._granted: dict[str, set[tuple[str, str]]] = {label: set() for label in named}
        for permit in permits:
            row = _OPERATION.get(permit.operation)
            if row is None:
                raise ValueError(f"no operation {permit.operation!r}; there are {', '.join(_OPERATION)}")
            if not row.targeted and permit.target != ANYBODY:
                raise ValueError(f"{permit.operation} has no target")
            self._granted.setdefault(permit.label, set()).add((permit.operation, permit.target))

    def allows(self, operation: str, label: str, target: str = "") -> bool:
        """Whether `label` may do `operation` to `target`."""
        granted = self._granted.get(label) if label else None
        return granted is None or (operation, ANYBODY) in granted or (target != "" and (operation, target) in granted)


class Reloaded(NamedTuple):
    """What a reload did: flows that are no longer allowed, and how many go on."""

    dropped: tuple[Flow, ...]
    kept: int


class Ward:
    """A domain as the rules see it.  Its label is read again when the policy is reloaded."""

    __slots__ = ("domid", "label", "name")

    def __init__(self, name: str, label: str, domid: int) -> None:
        self.name = name
        self.label = label
        self.domid = domid


class FirewallXsm:
    """The module `firewall` on top of another.

    `label_of(domid)`: a domain's label, "" for none; `label_at(name, label)`: that of a stranger, who had `label` when
    it was judged; None: it keeps that.  `on_event(code, *fields)` hears of each pair's first denial.
    """

    permissive = False
    loud = False  # it tells of its denials itself

    def __init__(
        self,
        base: PortXsm,
        table: Table,
        permissions: Permissions | None = None,
        on_event: Callable[..., None] | None = None,
        *,
        label_of: Callable[[int], str],
        label_at: Callable[[str, str], str] | None = None,
    ) -> None:
        self.base = base
        self._label_of = label_of
        self._label_at = label_at
        self._wards: dict[Domain, Ward] = {}
        self.table = table
        self.permissions = permissions or Permissions()
        self.flows = Flows()
        self.denials: Counter[tuple[str, str]] = Counter()
        self._logged: set[tuple[str, str]] = set()
        self._on_event = on_event

    @property
    def name(self) -> str:
        """The front end and what lies underneath."""
        return f"{self.table.front_end.name}+{self.base.name}"

    def _ward(self, domain: Domain) -> Ward:
        ward = self._wards.get(domain)
        if ward is None:
            ward = self._wards[domain] = Ward(domain.name, self._label_of(domain.domid), domain.domid)
        return ward

    # -- Xen's hooks ----

    def enable(self, domain: Domain) -> int:
        """May `domain` use Argo?"""
        return self.base.enable(domain) or self._permit("enable", self._ward(domain))

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        """May `domain` register a ring that only `partner` sends to?"""
        one, other = self._ward(domain), self._ward(partner)
        denied = self._denied(one, other, self.base.register_single_source(domain, partner))
        return denied or self._permit("register_single_source", one, other)

    def register_any_source(self, domain: Domain) -> int:
        """May `domain` register a wildcard ring?"""
        return self.base.register_any_source(domain) or self._permit("register_any_source", self._ward(domain))

    def send(self, source: Domain, destination: Domain) -> int:
        """Whether anything at all may pass: for those who do not know a port."""
        one, other = self._ward(source), self._ward(destination)
        denied = self._denied(one, other, self.base.send(source, destination)) or self._permit("send", one, other)
        if denied:
            return denied
        passes = self.table.could_send(one, other) or self.flows.know(one, other)
        return 0 if passes else self._denied(one, other, -self.table.front_end.errno)

    # -- experimental hooks ----

    def send_to(self, source: Domain, destination: Domain, port: int, source_port: int | None = None) -> int:
        """May `source` send to `port` of `destination`?  `source_port` None: for notify, which does not send."""
        one, other = self._ward(source), self._ward(destination)
        denied = self._denied(one, other, self.base.send_to(source, destination, port, source_port))
        return denied or self.send_through(one, source_port, other, port)

    def send_through(self, source: Party, source_port: int | None, target: Party, port: int) -> int:
        """The same for parties of which either may live elsewhere: the module underneath has no say."""
        errno = self._send(source, source_port, target, port)
        return self._denied(source, target, -errno)

    def _send(self, source: Party, source_port: int | None, target: Party, port: int) -> int:
        """0 or a positive errno.  Without a source port nothing is sent, so nothing may be answered."""
        if not self.permissions.allows("send", source.label, target.label):
            return _OPERATION["send"].errno
        verdict = self.table.judge(source, source_port, target, port)
        if verdict.accept:
            if verdict.reply and source_port is not None:
                self.flows.note(Flow(source, source_port, target, port))
            return 0
        if verdict.rule < 0 and self.flows.answers(source, target, port):
            return 0
        return self.table.front_end.errno

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        """May `source` pass `recipient` a slot that leads to `endpoint`?"""
        one, other = self._ward(source), self._ward(recipient)
        denied = self._denied(one, other, self.base.delegate(source, recipient, endpoint))
        if denied or (denied := self._permit("delegate", one, other)):
            return denied
        passes = self.table.could_send(one, other)
        if endpoint is not None:
            end = self._ward(endpoint)
            passes = passes and self.permissions.allows("send", other.label, end.label)
            passes = passes and self.table.could_send(other, end)
        return 0 if passes else self._denied(one, other, -_OPERATION["delegate"].errno)

    def query(self, asker: Domain, subject: Domain) -> int:
        """May `asker` know `subject`'s path and label?  If they may meet; a refusal looks as if nobody were there."""
        denied = -_OPERATION["query"].errno
        one, other = self._ward(asker), self._ward(subject)
        if self.base.query(asker, subject) or not self.permissions.allows("query", one.label, other.label):
            return denied
        could = self.table.could_send(one, other) or self.table.could_send(other, one)
        return 0 if could or self.flows.know(one, other) else denied

    # -- denials ----

    def _permit(self, operation: str, source: Party, target: Party | None = None) -> int:
        if self.permissions.allows(operation, source.label, "" if target is None else target.label):
            return 0
        return self._denied(source, target, -_OPERATION[operation].errno)

    def _denied(self, source: Party, target: Party | None, ret: int) -> int:
        """Count a denial; tell of a pair's first."""
        if not ret:
            return 0
        pair = (source.name, "" if target is None else target.name)
        if pair not in self.denials and len(self.denials) >= MAX_PAIRS:
            pair = REST
        self.denials[pair] += 1
        if pair not in self._logged:
            self._logged.add(pair)
            if self._on_event is not None:
                self._on_event("policy-denied", *pair, source.label, "" if target is None else target.label, ret)
        return ret

    # -- changes ----

    def reload(self, table: Table, permissions: Permissions | None = None) -> Reloaded:
        """Judge by this, and by labels as they are now.  A pair's first denial is told anew; counts go on."""
        self.table = table
        self.permissions = permissions or Permissions()
        self._logged.clear()
        for ward in self._wards.values():
            ward.label = self._label_of(ward.domid)
        self.flows.rename(self._present)
        return Reloaded(tuple(self.flows.keep(self._still)), len(self.flows))

    def _present(self, party: Party) -> Party:
        """A stranger is its name and its label, so that one that is relabelled would be another one."""
        if not isinstance(party, Stranger) or self._label_at is None:
            return party
        return Stranger(party.name, self._label_at(party.name, party.label))

    def _still(self, flow: Flow) -> bool:
        if not self.permissions.allows("send", flow.asker.label, flow.replier.label):
            return False
        verdict = self.table.judge(flow.asker, flow.asker_port, flow.replier, flow.port)
        return verdict.accept and verdict.reply

    def forget(self, domain: Domain) -> None:
        """A domain is gone: nobody answers it, and it answers nobody."""
        ward = self._wards.pop(domain, None)
        if ward is not None:
            self.flows.keep(lambda flow: flow.asker is not ward and flow.replier is not ward)

    def stale_waits(self, rings: Iterable[Ring], lookup: Callable[[int], Domain | None]) -> list[tuple[Ring, int]]:
        """The (ring, waiter) pairs that are not allowed any more; forget them, unsignalled.  Counts no denial."""
        stale = []
        for ring in rings:
            for domid in ring.pending:
                waiter = lookup(domid)
                if waiter is None or not self._may_wait(waiter, ring):
                    stale.append((ring, domid))
        return stale

    def _may_wait(self, waiter: Domain, ring: Ring) -> bool:
        denied = self.base.send_to(waiter, ring.owner, ring.port)
        return not (denied or self._send(self._ward(waiter), None, self._ward(ring.owner), ring.port))

    def inspect(self) -> Mapping[str, Any]:
        """For people: counters, and the denials by pair."""
        return {
            "module": self.name,
            "rules": len(self.table.rules),
            "flows": len(self.flows),
            "denied": sum(self.denials.values()),
            "denials": [(*pair, count) for pair, count in self.denials.items()],
        }


def table_of(config: PolicyConfig) -> Table:
    """The rules of a lab's policy.  Raises ValueError for an unknown module."""
    front_end = FRONT_END_OF.get(config.module)
    if front_end is None:
        raise ValueError(f"no policy module {config.module!r}; there are {', '.join(FRONT_END_OF)}")
    return Table(front_end, tuple(map(rule_of, config.rules)))


def rule_of(row: RuleConfig | Rule) -> Rule:
    """A rule as the table wants it.  One that viptables wrote has source ports too."""
    source_ports: tuple[tuple[int, int], ...] = getattr(row, "source_ports", ())
    return Rule(row.source, row.target, normal(row.ports), row.allow, normal(source_ports), getattr(row, "reply", True))


def permissions_of(config: PolicyConfig) -> Permissions:
    """Its permissions: each label that something is refused to has all else."""
    refused: dict[str, set[str]] = {}
    for label, operation in config.permissions:
        refused.setdefault(label, set()).add(operation)
    permits = [
        Permit(label, row.name) for label, those in refused.items() for row in OPERATIONS if row.name not in those
    ]
    return Permissions(permits, refused)
