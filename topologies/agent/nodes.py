"""What the lab's core keeps of each node, and what it makes happen to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from topologies.agent.phases import NodeEvent
from topologies.agent.spec import NodeSpec
from topologies.runtime import ENDED, NodeOutcome, NodeState


class LabSink(Protocol):
    """What the core makes happen."""

    def start(self, node: str) -> None:
        """Start the node's process when the core's `may_start` still says so, then report it.

        A guest that is started again gets a fresh domain first.
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
        "counters",
        "detail",
        "domid",
        "ended_as",
        "exit",
        "goodbye",
        "kill_at",
        "last_error",
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
        self.silent_since_ns: int | None = None
        self.was_ready = False
        self.since_ns = 0
        self.result: Mapping[str, Any] = {}
        self.counters: Mapping[str, Any] | None = None
        self.domid = spec.domid  # of this life
        self.restarts = 0
        self.restarted: list[int] = []  # when
        self.restart_at: int | None = None
        self.ended_as = NodeEvent.ENDED_BADLY  # how the life before this one ended
        self.last_error = ""  # and in words
        self.kill_at: int | None = None  # it lost its attach connection and lives on

    def begin_again(self) -> None:
        """A new life: what was of the last one is forgotten, but for how it ended."""
        self.restarts += 1
        self.restart_at = self.kill_at = None
        self.exit = self.signal = self.silent_since_ns = self.counters = None
        self.detail = ""
        self.goodbye = self.was_ready = False
        self.result = {}

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
        )

    @property
    def lives(self) -> bool:
        """Whether it has a process."""
        return self.state not in (NodeState.PLANNED, NodeState.RESTARTING) and self.state not in ENDED
