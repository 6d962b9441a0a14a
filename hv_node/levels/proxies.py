"""Proxies: guests of other hypervisors as domains of this one.  Experimental, not upstream.

A proxy is a domain with an id of its own, Argo state, no memory and no rings.  Rings may name it as their partner, it
waits in queues for room, and its death tears down what argo.c tears down for any domain.  Planned ones are known from
the topology; the others get an id when they are first heard of.  Ids given here are never given again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from hmx.argo.abi import DOMID_FIRST_RESERVED
from hv_node.domain import Domain, DomainState, DomainTable
from hv_node.levels.paths import Path, plain, plain_path, within

if TYPE_CHECKING:
    from typing import Protocol

    from hmx.memory import Access, Buffer, GuestMemory, RingPages
    from hv_node.argo.core import Argo
    from hv_node.argo.notify import Entries, QueryAnswer, QueryEntry

    class Door(Protocol):
        """Who carries operations on proxies to where the guest lives."""

        def send(
            self, end: RemoteEnd, caller: Domain, dst: Domain, src_port: int, dst_port: int, message_type: int,
            iovs: tuple[int, ...], ctx: int, token: object,
        ) -> int:
            """As hv_node.domain.Remote.send."""

        def query(self, end: RemoteEnd, entries: Entries, targets: list[QueryEntry]) -> QueryAnswer | None:
            """As hv_node.domain.Remote.query."""  # fmt: skip


PROXY_FIRST: Final = 0x4000  # planned proxies: this plus the guest's number in the topology
DYNAMIC_FIRST: Final = 0x6000


class NoMemory:
    """The memory of a proxy: every access faults."""

    size = 0

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:  # noqa: ARG002
        """FAULT."""
        return None

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:  # noqa: ARG002
        """FAULT."""
        return None

    def readable(self, ctx: int, va: int, n: int) -> int:  # noqa: ARG002
        """Nothing."""
        return 0

    def write(self, ctx: int, va: int, data: Buffer) -> bool:  # noqa: ARG002
        """FAULT."""
        return False

    def ring(self, gfns: Any, pointers: int = 0) -> RingPages | int:  # noqa: ARG002
        """Not possible: a proxy makes no calls."""
        raise TypeError("a proxy registers no rings")

    def translate(self, ctx: int, va: int, access: Access) -> int | None:  # noqa: ARG002
        """FAULT."""
        return None


NO_MEMORY: Final[GuestMemory] = NoMemory()


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A guest of another hypervisor that the topology names.

    Attributes:
        name: The guest's name.
        domid: Its id on this hypervisor.
        path: Where it lives.
        label: Its label; what others claim does not count.
    """

    name: str
    domid: int
    path: Path
    label: str = ""


class RemoteEnd:
    """What stands behind a proxy.  `epoch`: of its hypervisor, 0 while nothing was heard of it."""

    __slots__ = ("_door", "epoch", "far", "label", "path")

    def __init__(self, door: Door, path: Path, label: str) -> None:
        self._door = door
        self.path = path
        self.far = path[:-1]
        self.label = label
        self.epoch = 0

    def send(
        self,
        caller: Domain,
        dst: Domain,
        src_port: int,
        dst_port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """The rest of a sendv: its result, or PENDING."""
        return self._door.send(self, caller, dst, src_port, dst_port, message_type, iovs, ctx, token)

    def query(self, entries: Entries, targets: list[QueryEntry]) -> QueryAnswer | None:
        """Entries of notify about rings at this far hypervisor."""
        return self._door.query(self, entries, targets)


class Proxies:
    """The proxies of one hypervisor."""

    def __init__(self, argo: Argo, domains: DomainTable, door: Door, first: int | None = None) -> None:
        """`first`: where ids for those that are not planned begin, if not at DYNAMIC_FIRST."""
        self._argo = argo
        self._domains = domains
        self._door = door
        self._by_path: dict[Path, Domain] = {}
        self._current: dict[Path, Path] = {}  # path in the topology -> path of the latest incarnation
        self._labels: dict[Path, str] = {}  # as planned
        self._next = DYNAMIC_FIRST if first is None else first
        self.on_met: Callable[[str, int], None] | None = None  # name in the topology, id: not those of the plan
        self.on_death: Callable[[Domain], None] | None = None  # also of guests that live here

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._by_path.values()))

    def plan(self, remote: RemoteConfig) -> Domain:
        """A proxy that the topology names.  ValueError for an id in use."""
        self._labels[plain_path(remote.path)] = remote.label
        return self._enter(remote.path, remote.domid, remote.label)

    def _enter(self, path: Path, domid: int, label: str) -> Domain:
        domain = Domain(domid, NO_MEMORY, name=path[-1])
        domain.remote = RemoteEnd(self._door, path, label)
        self._domains.create(domain)
        self._by_path[path] = domain
        self._current[plain_path(path)] = path
        self._argo.domain_init(domain)
        return domain

    def lookup(self, path: Path) -> Domain | None:
        """The proxy for that very incarnation, alive or dying."""
        return self._by_path.get(path)

    def current(self, path: Path) -> Domain | None:
        """The proxy for the latest incarnation of what the topology has at `path`, if it lives."""
        domain = self._by_path.get(self._current.get(path, path))
        return domain if domain is not None and domain.state is DomainState.ALIVE else None

    def label(self, path: Path, claimed: str = "") -> str:
        """The label that counts for whoever is at `path`."""
        return self._labels.get(plain_path(path), claimed)

    def relabel(self, labels: Mapping[str, str]) -> None:
        """Planned guests have these labels from now on, by name; the others none."""
        for path in self._labels:
            self._labels[path] = labels.get(path[-1], "")
        for path, domain in self._by_path.items():
            if isinstance(domain.remote, RemoteEnd):
                domain.remote.label = self.label(path, domain.remote.label)

    def meet(self, path: Path, epoch: int, claimed: str) -> Domain | None:
        """The proxy of somebody who speaks; one not known before gets an id.

        The same path in a later epoch of its hypervisor is somebody else: the proxy known so far dies. None: no id is
        left, or it is dead.
        """
        domain = self._by_path.get(path)
        if domain is not None:
            end = domain.remote
            assert isinstance(end, RemoteEnd)
            if end.epoch == epoch or not end.epoch:
                end.epoch = epoch
                return domain if domain.state is DomainState.ALIVE else None
            if epoch < end.epoch:
                return None
            self.die(domain)
        domid = self.fresh()
        if domid is None:
            return None
        made = self._enter(path, domid, self.label(path, claimed))
        assert isinstance(made.remote, RemoteEnd)
        made.remote.epoch = epoch
        if self.on_met is not None:
            self.on_met(plain(path[-1]), domid)
        return made

    def fresh(self) -> int | None:
        """An id that nobody had; None: none is left."""
        while self._next < DOMID_FIRST_RESERVED and self._domains.lookup(self._next) is not None:
            self._next += 1
        if self._next >= DOMID_FIRST_RESERVED:
            return None
        self._next += 1
        return self._next - 1

    def below(self, prefix: Path) -> list[Domain]:
        """All proxies for guests of the hypervisor at `prefix` and of those inside it."""
        return [domain for path, domain in self._by_path.items() if within(prefix, path[:-1])]

    def die(self, domain: Domain) -> bool:
        """The guest is dead: the teardown of any domain's death.  Its id still resolves.  False: it was dead."""
        if domain.state is DomainState.DYING:
            return False
        self._argo.domain_kill(domain)
        if self.on_death is not None:
            self.on_death(domain)
        return True

    def retire(self, domain: Domain) -> bool:
        """Its hypervisor is dead: whoever speaks from that path from now on is somebody else.  False: it was dead."""
        died = self.die(domain)
        assert domain.remote is not None
        del self._by_path[domain.remote.path]
        return died

    def free(self, domain: Domain) -> None:
        """The id no longer resolves; it is not given again."""
        self.die(domain)
        assert domain.remote is not None
        if self._by_path.get(domain.remote.path) is domain:
            del self._by_path[domain.remote.path]
        self._domains.remove(domain.domid)
