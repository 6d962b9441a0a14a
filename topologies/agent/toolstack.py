"""What the agent does as the labs' toolstack: it gives domain ids, has fresh domains made, and says who is gone.

Ids are given as Xen's domctl gives them: from a rover that goes up and wraps at the first reserved one, never an id
in use.  One that was freed rests for 60 s, or until no other is left, so that a peer that still uses it finds nobody
rather than somebody else.

A hypervisor is told over the broker, which may die with what it was told.  So an order stays on the list until the
hypervisor has said what came of it, and the list is repeated whenever the hypervisor joins a broker or an order comes
back.  Orders name the domain id, hence a repeated one is recognised.

A guest elsewhere is known on a hypervisor by a proxy, to which that hypervisor gives the id by itself when the guest is
not in its first life.  It says so, and guests here that may know the other are told; the hypervisor's own next life is
told where to go on, so that no id of a proxy is given twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from hmx.argo.abi import DOMID_FIRST_RESERVED
from hv_node.levels.proxies import DYNAMIC_FIRST
from topologies.agent.phases import SECOND
from topologies.agent.spec import NodeSpec
from topologies.runtime import NodeKind

REST: Final = 60 * SECOND
FIRST: Final = 1
"""0 is the control domain's."""

EXITED, CREATE = "exited", "create"
FREED, CREATED, REFUSED, MET = "domain-freed", "domain-created", "domain-refused", "proxy-met"


class NoDomid(Exception):
    """Every domain id is in use."""


class DomainIds:
    """The domain ids of one hypervisor."""

    def __init__(self, used: Iterable[int], limit: int = DOMID_FIRST_RESERVED) -> None:
        self._used = set(used)
        self._limit = limit
        self._next = max(self._used, default=FIRST - 1) + 1
        self._freed: dict[int, int] = {}  # id -> when, oldest first

    def take(self, now: int) -> int:
        """A fresh id.  Raises NoDomid."""
        for at in range(self._limit - FIRST):
            domid = FIRST + (self._next - FIRST + at) % (self._limit - FIRST)
            freed = self._freed.get(domid)
            if domid not in self._used and (freed is None or now - freed >= REST):
                return self._give(domid)
        for domid in self._freed:  # exhausted: the one that rested longest
            return self._give(domid)
        raise NoDomid(f"all {self._limit - FIRST} domain ids are in use")

    def _give(self, domid: int) -> int:
        self._freed.pop(domid, None)
        self._used.add(domid)
        self._next = domid + 1
        return domid

    def free(self, domid: int, now: int) -> None:
        """The id resolves no longer."""
        if domid in self._used:
            self._used.discard(domid)
            self._freed[domid] = now

    def free_all(self, now: int) -> None:
        """No id resolves any longer."""
        for domid in sorted(self._used):
            self.free(domid, now)

    def uses(self, domid: int) -> bool:
        """Whether the id is somebody's."""
        return domid in self._used


def _nested(hypervisor: Any) -> list[int]:
    """The domain ids that hypervisors on this one have, which it gives them itself."""
    return [domain.domid for domain in getattr(hypervisor, "domains", ()) if domain.nested]


def _wards(hypervisor: Any) -> list[str]:
    """The guests of hypervisors on this one whose Argo this one serves."""
    return [ward.name for domain in getattr(hypervisor, "domains", ()) for ward in domain.wards]


class Toolstack:
    """The domains of a lab's guests.  `tell(hypervisor, record)` speaks to a hypervisor, at best."""

    def __init__(self, nodes: Iterable[NodeSpec], tell: Callable[[str, list[Any]], None]) -> None:
        nodes = list(nodes)
        self._guests = {node.name: node for node in nodes if node.kind is NodeKind.GUEST}
        self._nested = {node.name: _nested(node.config) for node in nodes if node.kind is NodeKind.HYPERVISOR}
        self._served = {node.name: _wards(node.config) for node in nodes if node.kind is NodeKind.HYPERVISOR}
        carried = {name for names in self._served.values() for name in names}
        for name, node in self._guests.items():
            if name not in carried:
                self._served.setdefault(node.hypervisor or "", []).append(name)
        self._met: dict[str, dict[str, int]] = {}  # by hypervisor, guests elsewhere
        self._fresh_from: dict[str, int] = {}
        self._tell = tell
        self.domids: dict[str, int] = {name: node.domid or 0 for name, node in self._guests.items()}
        self._ids: dict[str, DomainIds] = {}
        self._orders: dict[str, dict[tuple[str, int], list[Any]]] = {}
        for name, node in self._guests.items():
            self._orders.setdefault(self.hypervisor(name), {})
            on_it = [self.domids[other] for other in self.neighbours(name)]
            on_it += self._nested.get(self.hypervisor(name), ())
            self._ids.setdefault(node.hypervisor or "", DomainIds([*on_it, self.domids[name]]))

    def hypervisor(self, guest: str) -> str:
        """The hypervisor on which `guest` runs."""
        return self._guests[guest].hypervisor or ""

    def neighbours(self, guest: str) -> list[str]:
        """The other guests on the same hypervisor."""
        under = self.hypervisor(guest)
        return [name for name in self._guests if name != guest and self.hypervisor(name) == under]

    def peers(self, guest: str) -> dict[str, int]:
        """The domain ids of its neighbours, by name, as they are now; and of those elsewhere who are known by another
        id than the plan says.
        """
        found = {name: self.domids[name] for name in self.neighbours(guest)}
        for hypervisor, names in self._served.items():
            if guest in names:
                found |= self._met.get(hypervisor, {})
        found.pop(guest, None)
        return found

    # ---- proxies ------------------------------------------------------------------------------------------

    def met(self, hypervisor: str, guest: str, domid: int) -> list[str]:
        """`hypervisor` knows `guest`, who is elsewhere, by the id `domid` from now on.  Whose Argo it serves."""
        self._fresh_from[hypervisor] = max(self.fresh_from(hypervisor), domid + 1)
        if guest not in self._guests or self.hypervisor(guest) == hypervisor:
            return []
        self._met.setdefault(hypervisor, {})[guest] = domid
        return [name for name in self._served.get(hypervisor, []) if name != guest]

    def acting_as(self, name: str) -> list[str]:
        """Who is known by `name`: itself, or the guests on a hypervisor that speaks for them."""
        return [guest for guest in self._guests if self.hypervisor(guest) == name] or [name]

    def fresh_from(self, hypervisor: str) -> int:
        """The first id that it has not given to a proxy by itself."""
        return self._fresh_from.get(hypervisor, DYNAMIC_FIRST)

    def meet(self, hypervisor: str, guest: str) -> int | None:
        """A fresh id for a proxy of `guest`, with which `hypervisor` starts; None: none is left."""
        domid = self.fresh_from(hypervisor)
        if domid >= DOMID_FIRST_RESERVED:
            return None
        self.met(hypervisor, guest, domid)
        return domid

    # ---- orders -------------------------------------------------------------------------------------------

    def exited(self, guest: str, domid: int) -> None:
        """The process of `guest` that lived in `domid` is gone, so the domain may be freed, if it still is there."""
        if self._ids[self.hypervisor(guest)].uses(domid):
            self._order(guest, EXITED, domid)

    def renew(self, guest: str, now: int) -> None:
        """Have a fresh domain made for `guest`; the hypervisor answers.  Raises NoDomid."""
        config = self._guests[guest].config
        self._order(guest, CREATE, self.give(guest, now), config.memory, config.vcpus)

    def give(self, guest: str, now: int) -> int:
        """A fresh domain id for `guest`, whose hypervisor starts with that domain.  Raises NoDomid."""
        domid = self.domids[guest] = self._ids[self.hypervisor(guest)].take(now)
        return domid

    def hypervisor_died(self, hypervisor: str, now: int) -> None:
        """Its domains are gone, and what it was told is void.  Its next life knows those elsewhere as planned."""
        self._met.pop(hypervisor, None)
        if hypervisor in self._ids:
            self._orders[hypervisor].clear()
            self._ids[hypervisor].free_all(now)

    def _order(self, guest: str, what: str, domid: int, *more: Any) -> None:
        under = self.hypervisor(guest)
        record = self._orders[under][what, domid] = [what, guest, domid, *more]
        self._tell(under, record)

    def repeat(self, hypervisor: str) -> None:
        """Say again what the hypervisor has not answered."""
        for record in list(self._orders.get(hypervisor, {}).values()):
            self._tell(hypervisor, record)

    # ---- answers ------------------------------------------------------------------------------------------

    def answered(self, hypervisor: str, code: str, guest: str, domid: int, now: int) -> bool:
        """`hypervisor` reported `code` of a domain.  Whether that answers an order for the domain of `guest` now."""
        orders = self._orders.get(hypervisor, {})
        if code == FREED:
            orders.pop((EXITED, domid), None)
            self._ids[hypervisor].free(domid, now)
            return False
        return orders.pop((CREATE, domid), None) is not None and self.domids.get(guest) == domid
