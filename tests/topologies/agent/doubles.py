"""A lab without processes: a sink that remembers, and a driver that plays the processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topologies.agent.core import LabCore
from topologies.agent.phases import Phase
from topologies.agent.spec import CheckSpec, LabSpec, Mode, NodeSpec
from topologies.runtime import ENDED, NodeKind, NodeState

MS = 1_000_000
KILL = -9


def lab_spec(
    *,
    guests: Mapping[str, str] | None = None,
    hypervisors: tuple[str, ...] = ("hv0",),
    checks: tuple[CheckSpec, ...] = (),
    mode: Mode = Mode.RUN,
    timeout_ns: int | None = None,
    restart: tuple[str, ...] = (),
) -> LabSpec:
    """A lab with a broker, `hypervisors`, and `guests` (name -> hypervisor), of all of which some `restart`."""
    guests = {"sender": "hv0", "receiver": "hv0"} if guests is None else guests
    nodes = [NodeSpec("broker", NodeKind.BROKER, "broker.node:main")]
    nodes += [NodeSpec(name, NodeKind.HYPERVISOR, "hv_node.node:main", restart=name in restart) for name in hypervisors]
    nodes += [
        NodeSpec(name, NodeKind.GUEST, "guest_node.node:main", hypervisor=on, domid=index + 1, restart=name in restart)
        for index, (name, on) in enumerate(guests.items())
    ]
    return LabSpec("lab", mode, tuple(nodes), checks, timeout_ns, run_dir="/run/lab")


class Driver:
    """Plays processes and broker for one core.  Time passes only when told to."""

    def __init__(self, spec: LabSpec) -> None:
        self.now = 0
        self.core = LabCore(spec, self)
        self.to_start: list[str] = []
        self.started: list[str] = []
        self.asked: list[str] = []
        self.killed: list[str] = []
        self.counters_asked: list[str] = []
        self.records: list[Mapping[str, Any]] = []
        self.alive: set[str] = set()
        self.dying: set[str] = set()
        self.immortal: set[str] = set()
        self.detached: set[str] = set()

    # ---- the sink ----

    def start(self, node: str) -> None:
        self.to_start.append(node)

    def ask_to_leave(self, node: str) -> None:
        self.asked.append(node)

    def kill(self, node: str) -> None:
        self.killed.append(node)
        self.dying.add(node)

    def ask_counters(self, hypervisor: str) -> None:
        self.counters_asked.append(hypervisor)

    def progress(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    # ---- what the test makes happen ----

    def begin(self) -> Driver:
        self.core.begin(self.now)
        return self

    def spawn(self, name: str) -> None:
        self.to_start.remove(name)
        if self.core.may_start(name):
            self.started.append(name)
            self.alive.add(name)
            self.core.spawned(name, 1000 + len(self.started), self.now)

    def end(self, name: str, status: int, *, goodbye: bool = True, crash: str = "") -> None:
        self.alive.discard(name)
        if goodbye and status >= 0 and not crash:
            self.core.said_goodbye(name, "", self.now)
        self.core.ended(name, status, crash, self.now)

    def up_to(self, phase: Phase) -> Driver:
        """Start nodes and make them ready until the lab is in `phase`."""
        while self.core.phase is not phase:
            assert self.to_start, f"{self.core.phase} does not lead to {phase}"
            name = self.to_start[0]
            self.spawn(name)
            self.core.joined(name, self.now)
            self.core.ready(name, self.now)
        return self

    def wait(self, nanoseconds: int) -> None:
        """Let time pass as an event loop does: to each deadline in turn."""
        end = self.now + nanoseconds
        while (at := self.core.deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            self.core.tick(self.now)
            for name in sorted(self.dying & self.alive - self.immortal):
                self.dying.discard(name)
                self.end(name, KILL)
        self.now = end

    def obey(self) -> None:
        """Everybody who was asked to leave, or killed, leaves; hypervisors answer."""
        while self.core.phase is not Phase.DOWN:
            before = (self.core.phase, len(self.alive))
            for name in [*self.counters_asked]:
                self.core.counters(name, {"arch.hypercalls": 7}, self.now)
            for name in [name for name in (*self.asked, *self.killed) if name in self.alive]:
                self.end(name, 0)
            if before == (self.core.phase, len(self.alive)):
                self.wait(100 * MS)

    # ---- what the test looks at ----

    def state(self, name: str) -> NodeState:
        node = self.core.node(name)
        assert node is not None
        return node.state

    def phases(self) -> list[str]:
        return [record["phase"] for record in self.records if record["what"] == "phase"]

    def nothing_left(self) -> bool:
        states = [node.state for node in self.core.nodes()]
        return not self.alive and all(s in ENDED or s is NodeState.PLANNED for s in states)
