"""What the lab's core keeps of each node, and what it makes happen to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from topologies.agent.phases import MOVES, NodeEvent
from topologies.agent.spec import NodeSpec
from topologies.runtime import ENDED, NodeKind, NodeOutcome, NodeState, ending_words

COUNTER_FAMILIES = ("arch", "host")
"""Counters come in two families that are never mixed: what the architecture did, and what the host paid."""


class LabSink(Protocol):
    """What the core makes happen."""

    def start(self, node: str) -> None:
        """Start the node's process when the core's `may_start` still says so, then report it.

        A guest that is started again gets a fresh domain first, unless its hypervisor was started with one for it.
        """

    def ask_to_leave(self, node: str) -> None:
        """Ask the node to end by itself."""

    def kill(self, node: str) -> None:
        """SIGKILL."""

    def ask_counters(self, hypervisor: str) -> None:
        """Ask the hypervisor for its counters."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Pass a progress record (see :class:`topologies.runtime.Observer`) on."""


class Node:
    """One node as the core sees it."""

    __slots__ = (
        "bereft",
        "counters",
        "detail",
        "domid",
        "due",
        "ended_as",
        "exit",
        "goodbye",
        "kill_at",
        "kill_why",
        "last_error",
        "lost",
        "orphaned",
        "pid",
        "restart_at",
        "restarted",
        "restarts",
        "result",
        "signal",
        "silent_since_ns",
        "since_ns",
        "spec",
        "state",
        "was_ready",
    )

    def __init__(self, spec: NodeSpec) -> None:
        self.spec = spec
        self.state = NodeState.PLANNED
        self.pid: int | None = None
        self.exit: int | None = None
        self.signal: int | None = None
        self.detail = ""
        self.goodbye = False
        self.bereft = False  # it said goodbye for want of its hypervisor
        self.silent_since_ns: int | None = None
        self.was_ready = False
        self.since_ns = 0
        self.result: Mapping[str, Any] = {}
        self.counters: Mapping[str, Any] | None = None
        self.domid = spec.domid  # of this life
        self.restarts = 0
        self.restarted: list[int] = []  # when
        self.restart_at: int | None = None
        self.due = False  # to be started as soon as its hypervisor is ready
        self.orphaned = False  # it lives, its hypervisor died: it comes again with it
        self.ended_as = NodeEvent.ENDED_BADLY  # how the life before this one ended
        self.last_error = ""  # and in words
        self.kill_at: int | None = None  # it lost its attach connection, or its hypervisor, and lives on
        self.kill_why = ""
        self.lost = False  # with its host

    def begin_again(self) -> None:
        """A new life: what was of the last one is forgotten, but for how it ended."""
        self.restarts += 1
        self.restart_at = self.kill_at = None
        self.due = self.orphaned = False
        self.exit = self.signal = self.silent_since_ns = self.counters = None
        self.detail = ""
        self.goodbye = self.bereft = self.was_ready = False
        self.result = {}

    def end(self, status: int, crash: str) -> NodeEvent:
        """Its process is gone: exit code or negated signal, and what its own code raised.  What that is called."""
        self.detail = crash or self.detail
        self.kill_at = None
        if status < 0:
            self.signal = -status
        else:
            self.exit = status
        if crash or status < 0:
            return NodeEvent.ENDED_BADLY
        return NodeEvent.ENDED_CODE if status else NodeEvent.ENDED_ZERO

    def add(self, fields: Mapping[str, Any]) -> None:
        """It reported results, or counters."""
        families = {family: fields[family] for family in COUNTER_FAMILIES if family in fields}
        self.result = {**self.result, **{key: value for key, value in fields.items() if key not in families}}
        if families:
            self.counters = {**(self.counters or {}), **families}

    def explain_last(self, reason: str) -> None:
        """Why its last life ended, in words that came later than its end was seen."""
        if reason and self.last_error and ": " not in self.last_error:
            self.last_error = f"{self.last_error}: {reason}"

    def kill_later(self, at: int, why: str) -> None:
        """It has until then to end by itself; the first such word counts."""
        if self.kill_at is None:
            self.kill_at, self.kill_why = at, why

    def outcome(self) -> NodeOutcome:
        """The node's record."""
        return NodeOutcome(
            name=self.spec.name,
            kind=self.spec.kind,
            state=self.state,
            exit=self.exit,
            signal=self.signal,
            was_ready=self.was_ready,
            detail=self.detail,
            hypervisor=self.spec.hypervisor,
            domid=self.domid,
            result=self.result,
            counters=self.counters or {},
            restarts=self.restarts,
            last_error=self.last_error,
            host=self.spec.host,
            lost=self.lost,
        )

    @property
    def lives(self) -> bool:
        """Whether it has a process."""
        return self.state not in (NodeState.PLANNED, NodeState.RESTARTING) and self.state not in ENDED

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be expected of a node that starts."""
        return self.state is NodeState.READY or (self.spec.kind is NodeKind.GUEST and self.state in ENDED)


class Nodes:
    """All nodes of a lab, in the order of the plan."""

    def __init__(self, specs: Iterable[NodeSpec], sink: LabSink) -> None:
        self._nodes = {spec.name: Node(spec) for spec in specs}
        self._sink = sink

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def get(self, name: str) -> Node | None:
        """The node called `name`, if there is one."""
        return self._nodes.get(name)

    def of(self, kind: NodeKind | None) -> Iterator[Node]:
        """The nodes of a kind."""
        return (node for node in self if node.spec.kind is kind)

    def under(self, guest: Node) -> Node | None:
        """The hypervisor that `guest`, or a nested hypervisor, runs on."""
        return self._nodes.get(guest.spec.hypervisor or "")

    def on(self, hypervisor: Node) -> Iterator[Node]:
        """The guests of `hypervisor`."""
        return (guest for guest in self.of(NodeKind.GUEST) if guest.spec.hypervisor == hypervisor.spec.name)

    def inside(self, hypervisor: Node) -> Iterator[Node]:
        """The hypervisors that are guests of `hypervisor`."""
        return (node for node in self.of(NodeKind.HYPERVISOR) if node.spec.hypervisor == hypervisor.spec.name)

    def move(self, node: Node, event: NodeEvent, now: int) -> bool:
        """Take `node` to the state to which `event` leads, and tell of it.  False: the event came too late."""
        then = MOVES.get((node.state, event))
        if then is None:
            return False
        node.state = then
        node.since_ns = now
        ended = then in ENDED or then is NodeState.RESTARTING
        detail = ending_words(node.outcome()) if ended else ""
        record = {"what": "node", "name": node.spec.name, "kind": str(node.spec.kind), "state": str(then)}
        self._sink.progress({**record, "detail": detail})
        return True
