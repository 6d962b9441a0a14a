"""Domains, proxies and hypervisors for tests of slots and policies: no memory worth the name, no links."""

from __future__ import annotations

from hmx.memory import MappedMemory
from hv_node.domain import Domain
from hv_node.levels.delegation import Delegation
from hv_node.levels.revocation import Tell, Ticket
from hv_node.levels.slot_messages import read, record
from hv_node.levels.slot_table import Path
from hv_node.levels.slots import Slots
from hv_node.xsm import DummyXsm


class Far:
    """What a proxy says of where it lives."""

    def __init__(self, path: Path) -> None:
        self.path = path


def domain(domid: int, name: str = "", *, is_control: bool = False, far: Path | None = None) -> Domain:
    """A domain with a page of memory, or a proxy."""
    made = Domain(domid, MappedMemory(bytearray(4096)), name=name, is_control=is_control)
    if far is not None:
        made.remote = Far(far)  # type: ignore[assignment]  # nobody sends through it
    return made


class Directory:
    """Who is known at one hypervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_domid: dict[int, tuple[Path, Domain]] = {}
        self.labels: dict[int, str] = {}

    def add(self, found: Domain, path: Path, label: str) -> Domain:
        self.by_domid[found.domid] = path, found
        self.labels[found.domid] = label
        return found

    def label_of(self, domid: int) -> str:
        return self.labels[domid]

    def domid_of(self, path: Path) -> int | None:
        return next((domid for domid, (known, _) in self.by_domid.items() if known == path), None)

    def path_of(self, domid: int) -> Path | None:
        found = self.by_domid.get(domid)
        return None if found is None else found[0]

    def domain(self, domid: int) -> Domain | None:
        found = self.by_domid.get(domid)
        return None if found is None else found[1]


class Host:
    """One hypervisor's slots."""

    def __init__(self, path: Path, judge: DummyXsm | None = None) -> None:
        self.directory = Directory(path)
        self.slots = Slots(self.directory)
        self.judge = judge or DummyXsm()
        self.delegation = Delegation(self.slots, self.judge)

    def guest(self, domid: int, name: str, label: str = "") -> Domain:
        return self.directory.add(domain(domid, name), (*self.directory.path, name), label)

    def proxy(self, domid: int, path: Path, label: str = "") -> Domain:
        return self.directory.add(domain(domid, path[-1], far=path), path, label)


class Lab:
    """Hypervisors that tell each other.  Messages wait in `flight` until `deliver`."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = {host.directory.path: host for host in hosts}
        self.flight: list[tuple[Path, Tell]] = []  # origin, tell
        self._asked: list[tuple[Path, int, Ticket]] = []  # whose request waits for a ticket
        self.finished: list[Ticket] = []

    def start(self, host: Host, ticket: Ticket) -> Ticket:
        """Send what a ticket tells."""
        self.flight += [(host.directory.path, tell) for tell in ticket.tells]
        return ticket

    def deliver(self) -> bool:
        """One message arrives, as bytes would carry it.  False if none is on its way."""
        if not self.flight:
            return False
        origin, tell = self.flight.pop(0)
        far = self.hosts[tell.to]
        ticket = far.delegation.told(read(record(tell.message)), origin)
        self.start(far, ticket)
        if ticket.done:
            self._answer(origin, tell.key, ticket.ret)
        else:
            self._asked.append((origin, tell.key, ticket))
        return True

    def _answer(self, origin: Path, key: int, ret: int) -> None:
        done = self.hosts[origin].delegation.answered(key, ret)
        if done is None:
            return
        self.finished.append(done)
        for asked in [asked for asked in self._asked if asked[2] is done]:
            self._asked.remove(asked)
            self._answer(asked[0], asked[1], done.ret)

    def settle(self) -> None:
        """Deliver everything."""
        while self.deliver():
            pass
