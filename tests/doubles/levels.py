"""Hypervisors with levels, joined in memory: any tree, links that hold back, lose, and come back.

`Lab(paths)` makes one `Node` for each hypervisor's path; nodes of length 1 are joined by `Fabric`, the others hang on
their parents.  A link delivers at once unless `held`: then it keeps what it took until `step`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from broker.envelope import Envelope
from hmx.memory import PAGE_SIZE, MappedMemory
from hv_node.argo.core import Argo
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.levels.level import Level
from hv_node.levels.options import LevelOptions
from hv_node.levels.paths import EVERYBODY, Path
from hv_node.levels.proxies import RemoteConfig
from hv_node.levels.wards import CarriedCall
from hv_node.xsm import DummyXsm, Xsm

Deliver = Callable[[Envelope, bytes], object]


def lost(envelope: Envelope, payload: bytes) -> None:
    """Where a link that was cut delivers to."""


class Wire:
    """One direction of a link.  `room`: how many envelopes it holds before it refuses; `down`: it takes none."""

    def __init__(self, deliver: Deliver, held: bool = False) -> None:
        self.deliver = deliver
        self.held = held
        self.room: int | None = None
        self.queue: deque[tuple[Envelope, bytes]] = deque()
        self.taken = 0

    def send(self, envelope: Envelope, payload: bytes) -> bool:
        assert isinstance(payload, bytes)
        assert envelope.length == len(payload)
        if self.room is not None and len(self.queue) >= self.room:
            return False
        self.taken += 1
        if self.held:
            self.queue.append((envelope, payload))
        else:
            self.deliver(envelope, payload)
        return True

    def step(self) -> bool:
        """Deliver the oldest."""
        if not self.queue:
            return False
        self.deliver(*self.queue.popleft())
        return True


class Node:
    """One hypervisor: Argo core, domains, sink, level.  It is its level's host."""

    def __init__(
        self, path: Path, options: LevelOptions, xsm: Xsm | None = None, argo: ArgoOptions | None = None
    ) -> None:
        self.path = path
        self.domains = DomainTable()
        self.sink = RecordingSink()
        self.argo = Argo(self.domains, xsm or DummyXsm(), self, argo or ArgoOptions(True, True))
        self.ram: dict[int, bytearray] = {}
        self.completed: dict[Any, int] = {}
        self.virqs: list[tuple[int, int]] = []
        self.events: list[tuple[Any, ...]] = []
        self.level = Level(path, self, options)

    # -- the core's sink, the level's host ----

    def begin_run(self) -> None:
        """Nothing is merged here."""

    def end_run(self) -> None:
        """Nothing was."""

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        domain = self.domains.lookup(domid)
        if domain is None or not self.level.wake(domain):
            self.virqs.append((domid, virq))

    def complete(self, token: object, ret: int) -> None:
        if isinstance(token, CarriedCall):
            token.end(ret)
            return
        assert token not in self.completed, "completed twice"
        self.completed[token] = ret

    def message_sent(self, domid: int, size: int) -> None: ...

    def event(self, code: str, *fields: Any) -> None:
        self.events.append((code, *fields))

    def post(self, domid: int, vcpu: int, entry: int) -> None: ...

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None: ...

    def set_timer(self, key: object, deadline_ns: int) -> None: ...

    # -- guests ----

    def create(self, domid: int, name: str, npages: int = 48, ram: bytearray | None = None) -> Domain:
        self.ram[domid] = bytearray(npages * PAGE_SIZE) if ram is None else ram
        domain = Domain(domid, MappedMemory(self.ram[domid]), is_control=domid == 0, name=name)
        self.domains.create(domain)
        self.argo.domain_init(domain)
        self.level.domain_created(domain)
        return domain

    def kill(self, domid: int) -> None:
        domain = self.domains.lookup(domid)
        assert domain is not None
        self.argo.domain_kill(domain)
        self.level.domain_died(domain)

    def free(self, domid: int) -> None:
        self.kill(domid)
        self.domains.remove(domid)
        self.level.domain_freed(domid)


class Fabric:
    """Joins the L0s: routes by the first name of a destination.  Its links are pairs of wires by L0 name."""

    def __init__(self) -> None:
        self.up: dict[str, Wire] = {}  # to the fabric
        self.down: dict[str, Wire] = {}  # from it
        self.lost: list[Envelope] = []

    def route(self, name: str, envelope: Envelope, payload: bytes) -> None:
        assert envelope.src_path[-1] == name
        targets = [n for n in self.down if n != name] if envelope.dst == EVERYBODY else [str(envelope.dst[0])]
        for target in targets:
            if target not in self.down or not self.down[target].send(envelope, payload):
                self.lost.append(envelope)


class Lab:
    """A tree (or several, joined by a fabric) of hypervisors."""

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        guests: Mapping[Path, int] | None = None,
        held: bool = False,
        options: Callable[[LevelOptions], LevelOptions] = lambda found: found,
        xsm: Callable[[], Xsm] = DummyXsm,
        argo: ArgoOptions | None = None,
    ) -> None:
        """`guests`: path of each planned guest -> its domid, the same at every hypervisor."""
        self.now = 0
        self.held = held
        self.fabric = Fabric()
        self.nodes: dict[Path, Node] = {}
        self.wires: dict[tuple[Path, Path], Wire] = {}  # (from, to); the fabric is ()
        self._options, self._xsm, self._argo = options, xsm, argo
        self.guests = dict(guests or {})
        everybody = list(paths)
        for path in everybody:
            self.boot(path, everybody)
        for path, domid in self.guests.items():
            self.nodes[path[:-1]].create(domid, path[-1])

    def boot(self, path: Path, everybody: Iterable[Path], epoch: int = 1, fresh_from: int | None = None) -> Node:
        """Start (or start again, in a later epoch) a hypervisor and join it to what is above it."""
        remotes = tuple(RemoteConfig(p[-1], domid, p) for p, domid in self.guests.items() if p[:-1] != path)
        children = tuple(p[-1] for p in everybody if p[:-1] == path and len(p) > 1)
        peers = tuple(p for p in everybody if p != path)
        options = self._options(
            LevelOptions(
                epoch=epoch, remotes=remotes, children=children, peers=peers, again=epoch > 1, fresh_from=fresh_from
            )
        )
        node = self.nodes[path] = Node(path, options, self._xsm(), self._argo)
        above = path[:-1]
        name = path[-1]
        if above:
            up = Wire(lambda e, p: self.nodes[above].level.on_envelope(name, e, p, self.now), self.held)
        else:
            up = self.fabric.up[name] = Wire(lambda e, p: self.fabric.route(name, e, p), self.held)
        down = Wire(lambda e, p: self.nodes[path].level.on_envelope(None, e, p, self.now), self.held)
        self.wires[path, above], self.wires[above, path] = up, down
        node.level.set_uplink(up, self.now)
        if above:
            self.nodes[above].level.attach(name, down, self.now)
        else:
            self.fabric.down[name] = down
        return node

    def node(self, domid: int) -> Node:
        """Where a planned guest lives."""
        return next(self.nodes[path[:-1]] for path, known in self.guests.items() if known == domid)

    # -- links ----

    def cut(self, path: Path) -> None:
        """The link above `path` is lost with all that is on it; both ends are told, as far as they are levels."""
        above = path[:-1]
        for wire in (self.wires[path, above], self.wires[above, path]):
            wire.queue.clear()
            wire.deliver = lost
        self.nodes[path].level.on_link(False, self.now)
        if above:
            self.nodes[above].level.on_link(False, self.now, path[-1])
        else:
            self._peers(path[-1], "down")

    def heal(self, path: Path) -> None:
        """The link above `path` is there again."""
        above, name = path[:-1], path[-1]
        up, down = self.wires[path, above], self.wires[above, path]
        if above:
            up.deliver = lambda e, p: self.nodes[above].level.on_envelope(name, e, p, self.now)
        else:
            up.deliver = lambda e, p: self.fabric.route(name, e, p)
        down.deliver = lambda e, p: self.nodes[path].level.on_envelope(None, e, p, self.now)
        self.nodes[path].level.on_link(True, self.now)
        if above:
            self.nodes[above].level.on_link(True, self.now, name)
        else:
            self._peers(name, "up")

    def _peers(self, name: str, state: str) -> None:
        for path, node in self.nodes.items():
            if len(path) == 1 and path[0] != name:
                node.level.on_peer(name, state, self.now)

    # -- time ----

    def deliver(self, wire: Wire) -> None:
        """Deliver the oldest of a wire, whose sender has room again."""
        wire.step()
        start = next(a for (a, _), known in self.wires.items() if known is wire)
        end = next(b for (_, b), known in self.wires.items() if known is wire)
        if start:
            self.nodes[start].level.on_room(end[-1] if len(end) > len(start) else None)

    def busy(self) -> list[Wire]:
        """Wires that have something to deliver, in a fixed order."""
        return [wire for wire in self.wires.values() if wire.queue]

    def settle(self) -> None:
        """Deliver everything that is under way."""
        while busy := self.busy():
            for wire in busy:
                self.deliver(wire)

    def advance(self, ns: int, step: int = 50_000_000) -> None:
        """Let time pass; deliver as it passes."""
        end = self.now + ns
        while self.now < end:
            self.now = min(end, self.now + step)
            for node in self.nodes.values():
                due = node.level.next_deadline()
                if due is not None and due <= self.now:
                    node.level.on_timer(self.now)
            self.settle()
