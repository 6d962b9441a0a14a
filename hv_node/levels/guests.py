"""Who lives here and who elsewhere, as a level knows them.  Experimental, not upstream.

A guest is known to others by its name; the second one of that name, after a restart, as name#2.  What becomes of a
guest is told to every hypervisor that may know it; what becomes of others is done to their proxies.  A hypervisor that
is started again counts its guests from one, in a later epoch, and tells of each when it is there; whoever hears that
tells it in turn which of the guests here are dead or not the first of their name, since its plan does not say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hv_node.domain import Domain, DomainState
from hv_node.levels import paths
from hv_node.levels.options import Death
from hv_node.levels.paths import ITSELF, Path
from hv_node.levels.proxies import Proxies, RemoteEnd

if TYPE_CHECKING:
    from hv_node.argo.core import Argo
    from hv_node.domain import DomainTable
    from hv_node.levels.calls import Calls
    from hv_node.levels.far import Far
    from hv_node.levels.near import Near
    from hv_node.levels.options import Host, LevelCounters, LevelOptions
    from hv_node.levels.wards import Wards


class Guests:
    """The part of a level that knows names."""

    path: Path
    host: Host
    argo: Argo
    domains: DomainTable
    options: LevelOptions
    counters: LevelCounters
    calls: Calls
    near: Near
    far: Far
    wards: Wards
    now_ns: int

    def __init__(self, proxies: Proxies) -> None:
        self.proxies = proxies
        self.on_born: Callable[[Domain], None] | None = None
        self.on_lost: Callable[[Path], None] | None = None
        self._guests: dict[str, Domain] = {}
        self._names: dict[int, str] = {}
        self._births: Counter[str] = Counter()
        self._freeing: list[tuple[int, Domain]] = []
        self._labels: Mapping[str, str] = self.options.labels
        self._greeted: dict[Path, int] = {}  # epochs of hypervisors that have heard who lives here

    # -- our own ----

    def domain_created(self, domain: Domain) -> None:
        """A domain was created here.  A nested hypervisor is no guest that others could name, unless it speaks for its
        guests.
        """
        if domain.remote is None and (not domain.nested or self.wards.forwards(domain.name)):
            self._enter(domain)
        if self.on_born is not None:
            self.on_born(domain)

    def _enter(self, domain: Domain) -> None:
        self._births[domain.name] += 1
        number = self._births[domain.name]
        name = paths.incarnation(domain.name, number)
        self._guests[name] = domain
        self._names[domain.domid] = name
        if number > 1:
            self.near.tell(paths.incarnation(domain.name, number - 1), Death.SUCCEEDED, name)
        elif self.options.again:
            self.near.tell(name, Death.BORN)

    def domain_died(self, domain: Domain) -> None:
        """A guest of ours is dying: its Argo state is gone, its id still resolves."""
        if self.proxies.on_death is not None:
            self.proxies.on_death(domain)
        name = self._names.get(domain.domid)
        if name is not None:
            self.near.forget(domain.domid)
            self.near.tell(name, Death.DYING)

    def domain_freed(self, domid: int) -> None:
        """Its id no longer resolves."""
        name = self._names.pop(domid, None)
        if name is not None:
            self.near.forget(domid)
            self.near.tell(name, Death.FREED)
            del self._guests[name]

    def domain_reset(self, domain: Domain) -> None:
        """A guest of ours was soft reset."""
        name = self._names.get(domain.domid)
        if name is not None:
            self.near.tell(name, Death.RESET)

    def guest(self, name: str) -> Domain | None:
        """Our guest of that name, alive or dying."""
        return self._guests.get(name)

    def guests(self) -> list[Domain]:
        """All our guests."""
        return list(self._guests.values())

    def guest_path(self, domid: int) -> Path | None:
        """The path of a guest of ours."""
        name = self._names.get(domid)
        return None if name is None else (*self.path, name)

    # -- everybody ----

    def path_of(self, domid: int) -> Path | None:
        """Where a domain of this hypervisor's table lives."""
        domain = self.domains.lookup(domid)
        if domain is not None and domain.remote is not None:
            return domain.remote.path
        return self.guest_path(domid)

    def resolve(self, path: Path) -> Domain | None:
        """The domain by which whoever the topology has at `path` is known here now, in its latest incarnation."""
        if path[:-1] != self.path:
            return self.proxies.current(path)
        number = self._births[paths.plain(path[-1])]
        return self._guests.get(paths.incarnation(path[-1], number) if path[-1] not in self._guests else path[-1])

    def label_of(self, domid: int) -> str:
        """The label of a domain of this hypervisor's table."""
        domain = self.domains.lookup(domid)
        if domain is not None and isinstance(domain.remote, RemoteEnd):
            return domain.remote.label
        return self.label_by_name(self._names.get(domid, ITSELF))

    def label_by_name(self, name: str) -> str:
        """The label of a guest of ours."""
        return self._labels.get(paths.plain(name), "")

    def label_at(self, path: Path, claimed: str = "") -> str:
        """The label of whoever is at `path`, as far as is known here."""
        return self.label_by_name(path[-1]) if path[:-1] == self.path else self.proxies.label(path, claimed)

    def relabel(self, labels: Mapping[str, str]) -> None:
        """Guests of the lab have these labels from now on, by name; the others none.

        What is under way says it again under the new ones: a fabric that knows them takes no other.
        """
        self._labels = labels
        self.proxies.relabel(labels)
        for op in self.calls:
            op.envelope = op.envelope._replace(label=self.label_by_name(str(op.envelope.src_path[0])))

    def source(self, domid: int, far: Path) -> Path:
        """`src_path` of what a guest of ours says to the hypervisor at `far`."""
        return self.started(self._names.get(domid, ITSELF), far)

    def started(self, guest: str, far: Path) -> Path:
        """`src_path` of what is said to the hypervisor at `far` in a guest's name, or (ITSELF) in our own."""
        climbing = paths.way_to_hypervisor(self.path, far).where is paths.Where.UP
        return paths.started(self.path, guest, climbing=climbing)

    def peers(self) -> list[Path]:
        """Every other hypervisor that may know our guests."""
        known = [domain.remote.path[:-1] for domain in self.proxies if domain.remote is not None]
        return list(dict.fromkeys((*self.options.peers, *known, *self.far.answers.origins)))

    # -- effects ----

    def wake(self, domain: Domain) -> bool:
        """VIRQ_ARGO for a proxy, or for whom a nested hypervisor runs for us.  False: for nobody elsewhere."""
        end = domain.remote
        if end is None:
            return self.wards.wake(domain)
        self.far.retry(domain.domid)
        if domain.argo is not None:
            self.near.wake(domain, end.path[:-1], end.path)
        return True

    def settle(self, token: object, domid: int, ret: int | None) -> None:
        """A guest's operation that was pending ends, unless the guest is dead."""
        if ret is not None and domid in self._names:
            self.host.complete(token, ret)

    # -- others' deaths ----

    def died(self, path: Path, what: int, payload: bytes, epoch: int) -> None:
        """What became of the guest, or (last name "") of the hypervisor, at `path`.  Nothing happens twice."""
        if what == Death.CHILD:
            self.hypervisor_died((*path[:-1], payload.decode(errors="replace")))
            return
        if path[-1] == ITSELF:
            self.hypervisor_died(path[:-1])
            return
        if self.wards.is_ours(path):
            self.wards.heard(path, what)
            return
        if what == Death.BORN:
            self.proxies.meet(path, epoch, "")
            self._greet(path[:-1], epoch)
            return
        domain = self.proxies.lookup(path)
        if what == Death.RESET:
            if domain is not None:
                self.argo.soft_reset(domain)
            return
        if domain is not None:
            self.counters.deaths += self.proxies.die(domain)
            if what == Death.FREED:
                self.proxies.free(domain)
        name = payload.decode(errors="replace")
        if what == Death.SUCCEEDED and name != path[-1] and paths.plain(name) == paths.plain(path[-1]):
            self.proxies.meet((*path[:-1], name), epoch, "")

    def _greet(self, far: Path, epoch: int) -> None:
        """The hypervisor at `far` was started again: its plan takes each guest here for alive and the first."""
        if self._greeted.get(far) == epoch:
            return
        self._greeted[far] = epoch
        for plain, number in self._births.items():
            if plain not in self._guests:
                self.near.tell_one(far, plain, Death.FREED)
            name = paths.incarnation(plain, number)
            latest = self._guests.get(name)
            if latest is not None and number > 1:
                self.near.tell_one(far, plain, Death.SUCCEEDED, name)
            if latest is not None and latest.state is DomainState.DYING:
                self.near.tell_one(far, name, Death.DYING)

    def hypervisor_died(self, prefix: Path) -> None:
        """The hypervisor at `prefix` is dead: so are its guests, and the hypervisors inside it."""
        if paths.within(prefix, self.path):
            return
        for domain in self.proxies.below(prefix):
            self.counters.deaths += self.proxies.retire(domain)
            self._freeing.append((self.now_ns + self.options.linger_ns, domain))
        if prefix[:-1] == self.path:
            self.wards.lost(prefix[-1])
        self.calls.far_died(prefix)
        if self.on_lost is not None:
            self.on_lost(prefix)
        self.far.answers.died(prefix)
        self.far.retry()

    def next_free(self) -> int | None:
        """When `free_due` has something to do."""
        moments = [due for due, _ in self._freeing]
        if (due := self.wards.next_free()) is not None:
            moments.append(due)
        return min(moments, default=None)

    def free_due(self, now_ns: int) -> None:
        """Free the proxies of dead hypervisors that have been held long enough."""
        for due, domain in [item for item in self._freeing if item[0] <= now_ns]:
            self._freeing.remove((due, domain))
            self.proxies.free(domain)
        self.wards.free_due(now_ns)
