"""What the agent does as the labs' toolstack: it gives domain ids, has fresh domains made, and says who is gone.

Ids are given as Xen's domctl gives them: from a rover that goes up and wraps at the first reserved one, never an id
in use.  One that was freed rests for 60 s, or until no other is left, so that a peer that still uses it finds nobody
rather than somebody else.

A hypervisor is told over the broker, which may die with what it was told.  So an order stays on the list until the
hypervisor has said what came of it, and the list is repeated whenever the hypervisor joins a broker or an order comes
back.  Orders name the domain id, hence a repeated one is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from hmx.argo.abi import DOMID_FIRST_RESERVED
from topologies.agent.phases import SECOND
from topologies.agent.spec import NodeSpec
from topologies.runtime import NodeKind

REST: Final = 60 * SECOND
FIRST: Final = 1
"""0 is the control domain's."""

EXITED, CREATE = "exited", "create"
FREED, CREATED, REFUSED = "domain-freed", "domain-created", "domain-refused"


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


class Toolstack:
    """The domains of a lab's guests.  `tell(hypervisor, record)` speaks to a hypervisor, at best."""

    def __init__(self, nodes: Iterable[NodeSpec], tell: Callable[[str, list[Any]], None]) -> None:
        nodes = list(nodes)
        self._guests = {node.name: node for node in nodes if node.kind is NodeKind.GUEST}
        self._nested = {node.name: _nested(node.config) for node in nodes if node.kind is NodeKind.HYPERVISOR}
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
        """The domain ids of its neighbours, by name, as they are now."""
        return {name: self.domids[name] for name in self.neighbours(guest)}

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
        """Its domains are gone, and what it was told is void."""
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
