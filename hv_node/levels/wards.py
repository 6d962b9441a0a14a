"""Guests of nested hypervisors whose Argo we serve: the parent's side of hv_node/levels/carried.py.

Experimental, not upstream.  `steal`: the guest is a domain of the parent, with an id, rings and waits of its own.
`forward`: it acts as the domain that its hypervisor is there, and shares id and ports with all other guests of that.
For the rest of the lab such a guest is one of the parent's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from hmx.argo.abi import UNREGISTER_RING, VIRQ_ARGO, Op
from hmx.errno import Errno
from hmx.memory import FAULT, GuestMemory
from hv_node.argo.register import delete_ring
from hv_node.domain import Domain, DomainState
from hv_node.effects import PENDING
from hv_node.levels.answers import Answer
from hv_node.levels.carried import FORWARD, PRESENT, STEAL, CarriedOp, unpack_call
from hv_node.levels.options import Death
from hv_node.levels.paths import ITSELF, Path, plain

if TYPE_CHECKING:
    from hv_node.levels.level import Level

MAX_EARLY: Final = 256
"""Calls of one nested hypervisor's guests that came before the memory."""

_GONE: Final = Answer(-int(Errno.ESRCH))
_SENSELESS: Final = Answer(-int(Errno.EINVAL))
_UNKNOWN: Final = Answer(-int(Errno.EOPNOTSUPP))
_REFUSED: Final = Answer(-int(Errno.ECONNREFUSED))
_RING_OPS: Final = frozenset({int(Op.REGISTER_RING), int(Op.UNREGISTER_RING)})


class WardPlan(NamedTuple):
    """What the topology says about the guests of a nested hypervisor whose Argo we serve: domain ids by name."""

    mode: str
    domids: dict[str, int]


class CarriedCall:
    """The token of a carried operation that is pending: it ends once, whoever ends it first."""

    __slots__ = ("_answer", "_ward")

    def __init__(self, ward: Ward, answer: Callable[[Answer], None]) -> None:
        self._ward = ward
        self._answer = answer

    def end(self, ret: int) -> None:
        """The operation ended with `ret`."""
        if self in self._ward.pending:
            del self._ward.pending[self]
            self._answer(Answer(ret))


class Ward:
    """A guest whose Argo we serve: where it lives, its memory, and the domain as which it acts."""

    def __init__(self, child: str, name: str, memory: GuestMemory, domain: Domain) -> None:
        self.child = child
        self.name = name
        self.memory = memory
        self.domain = domain
        self.pending: dict[CarriedCall, None] = {}
        self.rings: set[tuple[int, int]] = set()  # (port, partner), of one that shares its domain with others


class Wards:
    """All such guests of one level."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._plans = level.options.wards
        self._wards: dict[tuple[str, str], Ward] = {}
        self._by_domid: dict[int, Ward] = {}  # those that are domains of their own
        self._dead: dict[tuple[str, str], Ward] = {}
        self._lived: set[str] = set()
        self._early: dict[str, list[tuple[CarriedOp, Callable[[Answer], None]]]] = {}
        self._freeing: list[tuple[int, Ward]] = []

    def __len__(self) -> int:
        return len(self._wards)

    def forwards(self, child: str) -> bool:
        """Whether the guests of nested hypervisor `child` act as its own domain."""
        plan = self._plans.get(child)
        return plan is not None and plan.mode == FORWARD

    def is_ours(self, path: Path) -> bool:
        """Whether `path` is a guest of a nested hypervisor whose guests' Argo we serve."""
        own = self._level.path
        return len(path) == len(own) + 2 and path[:-2] == own and path[-2] in self._plans and path[-1] != ITSELF

    # -- memory ----

    def lend(self, child: str, name: str, memory: GuestMemory) -> None:
        """A guest of `child`, known to it as `name`, may be served from now on.  ValueError: it may not."""
        plan = self._plans.get(child)
        if plan is None or plain(name) not in plan.domids:
            raise ValueError(f"no guest {name!r} of {child!r} was planned")
        if any(ward.child == child and plain(ward.name) == plain(name) for ward in self._wards.values()):
            raise ValueError(f"guest {plain(name)!r} of {child!r} has memory here already")
        if (child, name) in self._dead:
            raise ValueError(f"guest {name!r} of {child!r} is dead")
        domain = self._alive(child) if plan.mode == FORWARD else self._create(plan, plain(name), memory)
        if domain is None:
            raise ValueError(f"there is no domain for guest {name!r} of {child!r}")
        ward = self._wards[child, name] = Ward(child, name, memory, domain)
        if plan.mode == STEAL:
            self._by_domid[domain.domid] = ward
        if domain.domid != plan.domids[plain(name)] and self._level.proxies.on_met is not None:
            self._level.proxies.on_met(plain(name), domain.domid)
        early = self._early.pop(child, [])
        rest = self._early[child] = [each for each in early if each[0].guest != name]
        if not rest:
            del self._early[child]
        for op, answer in early:
            if op.guest == name:
                found = self._run(ward, op, answer)
                if found is not None:
                    answer(found)

    def _alive(self, child: str) -> Domain | None:
        """The domain that `child` is in its present life."""
        found = (each for each in self._level.guests() if each.name == child and each.state is DomainState.ALIVE)
        return next(found, None)

    def _create(self, plan: WardPlan, name: str, memory: GuestMemory) -> Domain | None:
        """A domain for it: the planned id in its first life, then one that nobody had."""
        level = self._level
        domid: int | None = plan.domids[name]
        if name in self._lived:
            domid = level.proxies.fresh()
        if domid is None:
            return None
        self._lived.add(name)
        domain = Domain(domid, memory, name=name)
        level.domains.create(domain)
        level.argo.domain_init(domain)
        level.domain_created(domain)
        return domain

    # -- calls ----

    def carried(self, path: Path, payload: bytes, answer: Callable[[Answer], None]) -> Answer | None:
        """The nested hypervisor at `path` carries a call; None: `answer` is called later."""
        op = unpack_call(payload)
        if op is None:
            return _SENSELESS
        child = path[-2]
        if not self.is_ours((*path[:-1], op.guest)) or plain(op.guest) not in self._plans[child].domids:
            return _UNKNOWN
        ward = self._wards.get((child, op.guest))
        if ward is not None:
            return self._run(ward, op, answer)
        early = self._early.setdefault(child, [])
        if (child, op.guest) in self._dead:
            return _GONE
        if len(early) >= MAX_EARLY:
            return _REFUSED
        early.append((op, answer))
        return None

    def _run(self, ward: Ward, op: CarriedOp, answer: Callable[[Answer], None]) -> Answer | None:
        if op.cmd == PRESENT:
            return Answer(0)
        self._level.counters.carried += 1
        token = CarriedCall(ward, answer)
        ward.pending[token] = None
        ret = self._own(ward, op, token) if ward.domain.memory is ward.memory else self._shared(ward, op, token)
        if ret is PENDING:
            return None
        ward.pending.pop(token, None)
        return Answer(ret)

    def _own(self, ward: Ward, op: CarriedOp, token: object) -> int:
        argo = self._level.argo
        call = argo.op_compat if op.compat else argo.op
        return call(ward.domain, op.cmd, *op.arguments, token, op.ctx)

    def _shared(self, ward: Ward, op: CarriedOp, token: object) -> int:
        """As the domain that its hypervisor is, on its own memory, and without what that one may do as such."""
        domain, memory = ward.domain, ward.domain.memory
        key = ward.memory.unpack(UNREGISTER_RING, op.ctx, op.arguments[0]) if op.cmd in _RING_OPS else FAULT
        domain.memory, domain.nested = ward.memory, False
        try:
            ret = self._own(ward, op, token)
        finally:
            domain.memory, domain.nested = memory, True
        if key is not FAULT and not ret:
            for other in self._wards.values():
                if other.domain is domain:
                    other.rings.discard(key[:2])
            if op.cmd == Op.REGISTER_RING:
                ward.rings.add(key[:2])
        return ret

    # -- signals ----

    def wake(self, domain: Domain) -> bool:
        """VIRQ_ARGO for `domain`, passed on to whoever runs it, or the guests of whoever it is.  False: nobody."""
        if domain.argo is None:
            return False
        path = self._level.path
        if self.forwards(domain.name):
            far = (*path, domain.name)
            self._level.near.wake(domain, far, (*far, ITSELF))
            return True
        ward = self._by_domid.get(domain.domid)
        if ward is not None:
            far = (*path, ward.child)
            self._level.near.wake(domain, far, (*far, ward.name))
        return ward is not None

    def woken(self) -> None:
        """We forward: VIRQ_ARGO of the domain that we are is every guest's."""
        for guest in self._level.guests():
            self._level.host.raise_virq(guest.domid, VIRQ_ARGO)

    # -- deaths ----

    def heard(self, path: Path, what: int) -> None:
        """What became of the guest at `path`, which is ours."""
        key = path[-2], path[-1]
        if what in (Death.DYING, Death.FREED, Death.SUCCEEDED):
            self._die(key)
        ward = self._wards.get(key)
        if what == Death.RESET and ward is not None:
            self._end_calls(ward)
            if key[0] in self._plans and self.forwards(key[0]):
                self._tear_down(ward)
            else:
                self._level.argo.soft_reset(ward.domain)
        elif what == Death.FREED and key in self._dead:
            self._free(self._dead[key])

    def lost(self, child: str) -> None:
        """The nested hypervisor `child` is dead."""
        due = self._level.now_ns + self._level.options.linger_ns
        for key in [key for key in self._wards if key[0] == child]:
            self._die(key)
        for key in [key for key in self._dead if key[0] == child]:
            self._freeing.append((due, self._dead.pop(key)))
        self._early.pop(child, None)

    def _die(self, key: tuple[str, str]) -> None:
        ward = self._wards.pop(key, None)
        if ward is None:
            return
        self._dead[key] = ward
        level = self._level
        if self.forwards(ward.child):
            self._tear_down(ward)
        else:
            level.argo.domain_kill(ward.domain)
            level.domain_died(ward.domain)
        self._end_calls(ward)
        level.counters.deaths += 1

    def _end_calls(self, ward: Ward) -> None:
        for call in list(ward.pending):
            call.end(_GONE.ret)

    def _tear_down(self, ward: Ward) -> None:
        """The rings in its memory go; those of others in the same domain stay."""
        argo = ward.domain.argo
        for key in ward.rings if argo is not None else ():
            ring = argo.rings.get(key) if argo is not None else None
            if ring is not None:
                delete_ring(self._level.argo, ward.domain, ring)
        ward.rings.clear()

    def _free(self, ward: Ward) -> None:
        """Its id no longer resolves."""
        if self._by_domid.pop(ward.domain.domid, None) is not None:
            self._level.domains.remove(ward.domain.domid)
            self._level.domain_freed(ward.domain.domid)

    def next_free(self) -> int | None:
        """When `free_due` has something to do."""
        return min((due for due, _ in self._freeing), default=None)

    def free_due(self, now_ns: int) -> None:
        """Free the domains of dead hypervisors' guests that have been held long enough."""
        for item in [item for item in self._freeing if item[0] <= now_ns]:
            self._freeing.remove(item)
            self._free(item[1])
