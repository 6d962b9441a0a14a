"""The tables of a lab's life: what the lab does one after the other, what can become of one node, and who is
started again.

The core walks these tables; a person can read them beside the documentation.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple

from topologies.runtime import NodeKind, NodeState

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000 * MILLISECOND


class Phase(StrEnum):
    """What a lab is doing."""

    STARTING_BROKER = "starting-broker"
    STARTING_HYPERVISORS = "starting-hypervisors"
    STARTING_GUESTS = "starting-guests"
    RUNNING = "running"
    COLLECTING = "collecting"
    STOPPING_GUESTS = "stopping-guests"
    STOPPING_HYPERVISORS = "stopping-hypervisors"
    STOPPING_BROKER = "stopping-broker"
    DOWN = "down"


class Until(Enum):
    """What ends a phase."""

    READY = auto()
    """Every node of the phase's kind is ready, or (a guest) has ended already."""
    OVER = auto()
    """Nothing is left to wait for: programs ended, checks decided."""
    TOLD = auto()
    """Every living hypervisor gave its counters, every guest that ended by itself has said goodbye."""
    ENDED = auto()
    """No process of the phase's kind is left."""
    NEVER = auto()


class Late(Enum):
    """What happens when a phase takes longer than it may."""

    FAIL = auto()
    """The verdict is a timeout that names who was waited for."""
    GO_ON = auto()
    KILL = auto()
    """SIGKILL for who is left; after as long again as KILLED_WITHIN, on without them."""


class PhaseRow(NamedTuple):
    """One phase: whose it is, what ends it, how long that may take (ns), what then, and the words for it.

    `kind` is that of the nodes that are started or stopped; None in a phase that does neither.
    """

    phase: Phase
    kind: NodeKind | None
    until: Until
    within: int | None
    late: Late
    then: Phase
    doing: str


PHASES: Final = (
    PhaseRow(
        Phase.STARTING_BROKER, NodeKind.BROKER, Until.READY, 10 * SECOND, Late.FAIL,
        Phase.STARTING_HYPERVISORS, "starting the broker",
    ),
    PhaseRow(
        Phase.STARTING_HYPERVISORS, NodeKind.HYPERVISOR, Until.READY, 30 * SECOND, Late.FAIL,
        Phase.STARTING_GUESTS, "starting hypervisors",
    ),
    PhaseRow(
        Phase.STARTING_GUESTS, NodeKind.GUEST, Until.READY, 60 * SECOND, Late.FAIL,
        Phase.RUNNING, "starting guests",
    ),
    PhaseRow(
        Phase.RUNNING, None, Until.OVER, None, Late.FAIL,
        Phase.COLLECTING, "running",
    ),
    PhaseRow(
        Phase.COLLECTING, None, Until.TOLD, 500 * MILLISECOND, Late.GO_ON,
        Phase.STOPPING_GUESTS, "collecting results",
    ),
    PhaseRow(
        Phase.STOPPING_GUESTS, NodeKind.GUEST, Until.ENDED, 700 * MILLISECOND, Late.KILL,
        Phase.STOPPING_HYPERVISORS, "stopping guests",
    ),
    PhaseRow(
        Phase.STOPPING_HYPERVISORS, NodeKind.HYPERVISOR, Until.ENDED, 500 * MILLISECOND, Late.KILL,
        Phase.STOPPING_BROKER, "stopping hypervisors",
    ),
    PhaseRow(
        Phase.STOPPING_BROKER, NodeKind.BROKER, Until.ENDED, 500 * MILLISECOND, Late.KILL,
        Phase.DOWN, "stopping the broker",
    ),
    PhaseRow(
        Phase.DOWN, None, Until.NEVER, None, Late.GO_ON,
        Phase.DOWN, "down",
    ),
)  # fmt: skip

ROWS: Final = {row.phase: row for row in PHASES}

STARTING: Final = (Phase.STARTING_BROKER, Phase.STARTING_HYPERVISORS, Phase.STARTING_GUESTS)
LIVING: Final = (*STARTING, Phase.RUNNING)
"""Phases in which a node that ends by itself is news, and in which the lab can be asked to go down."""

KILLED_WITHIN: Final = 5 * SECOND
"""How long a process may take to disappear after SIGKILL (one in uninterruptible sleep does not obey)."""

STRAGGLERS: Final = 500 * MILLISECOND
"""How long guests that no check names may go on once every check is decided."""

UNATTACHED: Final = 500 * MILLISECOND
"""How long a guest may live on without its attach connection: one that ends closes it a moment before."""


ORPHANED: Final = 3 * SECOND
"""How long a guest may live on after its hypervisor: it ends by itself, unless its program never lets it."""


class RestartRow(NamedTuple):
    """How often nodes of `kind` are started again: at most `most` times within `within` ns.

    The n-th restart in that time comes `first` * 2^(n-1) ns after the death, at most `longest` ns.
    """

    kind: NodeKind
    first: int
    longest: int
    most: int
    within: int

    def wait(self, before: int) -> int:
        """How long to wait for a restart that `before` others preceded."""
        return min(self.first << before, self.longest)


RESTARTS: Final = (
    RestartRow(NodeKind.BROKER, 0, 0, 5, 60 * SECOND),
    RestartRow(NodeKind.HYPERVISOR, 100 * MILLISECOND, 5 * SECOND, 8, 60 * SECOND),
    RestartRow(NodeKind.GUEST, 100 * MILLISECOND, 5 * SECOND, 8, 60 * SECOND),
)
"""The broker is started again always, a hypervisor or guest where its `restart` says so.  The guests of a hypervisor
that is started again come with it, in fresh domains, since their memory died with it; that counts as no restart here.
"""
RESTART_ROWS: Final = {row.kind: row for row in RESTARTS}


class NodeEvent(Enum):
    """What happens to a node."""

    SPAWNED = auto()
    JOINED = auto()
    READY = auto()
    ASKED = auto()
    """Asked to leave."""
    ENDED_ZERO = auto()
    ENDED_CODE = auto()
    ENDED_BADLY = auto()
    """By a signal, or by an exception that was not the program's."""
    AGAIN = auto()
    """Ended in one of these ways, and will be started again."""


class NodeMove(NamedTuple):
    """From one state, by an event, to another.  An event without a row changes nothing: it came too late."""

    state: NodeState
    event: NodeEvent
    then: NodeState


NODE_MOVES: Final = (
    NodeMove(NodeState.PLANNED, NodeEvent.SPAWNED, NodeState.STARTING),
    NodeMove(NodeState.STARTING, NodeEvent.JOINED, NodeState.JOINED),
    NodeMove(NodeState.STARTING, NodeEvent.READY, NodeState.READY),
    NodeMove(NodeState.STARTING, NodeEvent.ASKED, NodeState.STOPPING),
    NodeMove(NodeState.STARTING, NodeEvent.ENDED_ZERO, NodeState.EXITED),
    NodeMove(NodeState.STARTING, NodeEvent.ENDED_CODE, NodeState.FAILED),
    NodeMove(NodeState.STARTING, NodeEvent.ENDED_BADLY, NodeState.DIED),
    NodeMove(NodeState.JOINED, NodeEvent.READY, NodeState.READY),
    NodeMove(NodeState.JOINED, NodeEvent.ASKED, NodeState.STOPPING),
    NodeMove(NodeState.JOINED, NodeEvent.ENDED_ZERO, NodeState.EXITED),
    NodeMove(NodeState.JOINED, NodeEvent.ENDED_CODE, NodeState.FAILED),
    NodeMove(NodeState.JOINED, NodeEvent.ENDED_BADLY, NodeState.DIED),
    NodeMove(NodeState.READY, NodeEvent.ASKED, NodeState.STOPPING),
    NodeMove(NodeState.READY, NodeEvent.ENDED_ZERO, NodeState.EXITED),
    NodeMove(NodeState.READY, NodeEvent.ENDED_CODE, NodeState.FAILED),
    NodeMove(NodeState.READY, NodeEvent.ENDED_BADLY, NodeState.DIED),
    NodeMove(NodeState.STOPPING, NodeEvent.ENDED_ZERO, NodeState.STOPPED),
    NodeMove(NodeState.STOPPING, NodeEvent.ENDED_CODE, NodeState.STOPPED),
    NodeMove(NodeState.STOPPING, NodeEvent.ENDED_BADLY, NodeState.STOPPED),
    NodeMove(NodeState.STARTING, NodeEvent.AGAIN, NodeState.RESTARTING),
    NodeMove(NodeState.JOINED, NodeEvent.AGAIN, NodeState.RESTARTING),
    NodeMove(NodeState.READY, NodeEvent.AGAIN, NodeState.RESTARTING),
    NodeMove(NodeState.RESTARTING, NodeEvent.SPAWNED, NodeState.STARTING),
    # What was to be started again is not after all: for a broker that is as good as being asked to leave.
    NodeMove(NodeState.RESTARTING, NodeEvent.ASKED, NodeState.STOPPED),
    NodeMove(NodeState.RESTARTING, NodeEvent.ENDED_ZERO, NodeState.EXITED),
    NodeMove(NodeState.RESTARTING, NodeEvent.ENDED_CODE, NodeState.FAILED),
    NodeMove(NodeState.RESTARTING, NodeEvent.ENDED_BADLY, NodeState.DIED),
)

MOVES: Final = {(move.state, move.event): move.then for move in NODE_MOVES}
