"""What every runtime offers: take a plan, run it, say how it went.

Two runtimes stand behind :class:`Runtime`: `processes` (every node its own process, watched by an agent)
and `inline` (the whole lab in one process, virtual time, a seed).  They share the words for how a node's
life went and the one function that turns a run into a verdict, so that the same topology has the same exit
code in both.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from topologies.exitcodes import ExitCode

if TYPE_CHECKING:
    from topologies.plan import Plan

OUTCOME_SCHEMA = "outcome/1"


class NodeKind(StrEnum):
    """What a node is; the strings are those of the broker's HELLO."""

    BROKER = "broker"
    HYPERVISOR = "hypervisor"
    GUEST = "guest"


class NodeState(StrEnum):
    """How far a node's life has come."""

    PLANNED = "planned"
    STARTING = "starting"
    JOINED = "joined"
    READY = "ready"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    """Between two lives: it ended, and will be started again."""
    EXITED = "exited"
    """Ended by itself with code 0."""
    FAILED = "failed"
    """Ended by itself with another code."""
    DIED = "died"
    """Ended by a signal or an internal error."""
    STOPPED = "stopped"
    """Ended because the lab went down."""


ENDED = frozenset({NodeState.EXITED, NodeState.FAILED, NodeState.DIED, NodeState.STOPPED})


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """One node at the end of a run.

    `exit` is the exit code of a node that ended by itself (for a guest: its program's), `signal` the number
    of the signal that ended it; `was_ready` whether it had come so far before; `detail` the words that the
    node or the agent has for it.  These are of its last life; `restarts` says how many it had before, and
    `last_error` how the one before ended.  `host` is the other host on which it ran, "" for the leader's; `lost` that
    this host was lost, so that nobody saw it end.
    """

    name: str
    kind: NodeKind
    state: NodeState
    exit: int | None = None
    signal: int | None = None
    was_ready: bool = True
    detail: str = ""
    hypervisor: str | None = None
    domid: int | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)
    restarts: int = 0
    last_error: str = ""
    host: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check: `passed` is None when the run ended before it was decided."""

    name: str
    guest: str
    passed: bool | None
    words: str


class Fault(NamedTuple):
    """Something that decides the verdict: its exit code and the sentence that a user reads."""

    code: ExitCode
    words: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went.  `code` is the command's exit code, `reasons` say why it is not 0, gravest first."""

    lab: str
    runtime: str
    code: ExitCode
    reasons: tuple[str, ...]
    nodes: tuple[NodeOutcome, ...]
    checks: tuple[CheckOutcome, ...] = ()
    events: tuple[tuple[Any, ...], ...] = ()
    seconds: float = 0.0
    run_dir: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {"schema": OUTCOME_SCHEMA, **asdict(self), "verdict": self.code.name.lower()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`as_json`."""
        nodes = tuple(
            NodeOutcome(**{**node, "kind": NodeKind(node["kind"]), "state": NodeState(node["state"])})
            for node in found["nodes"]
        )
        return cls(
            lab=found["lab"],
            runtime=found["runtime"],
            code=ExitCode(found["code"]),
            reasons=tuple(found["reasons"]),
            nodes=nodes,
            checks=tuple(CheckOutcome(**check) for check in found["checks"]),
            events=tuple(tuple(event) for event in found["events"]),
            seconds=found["seconds"],
            run_dir=found["run_dir"],
        )


class Observer(Protocol):
    """Sees a run as it goes."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Take one progress record; `what` names its kind.

        ``phase``: `phase` and `doing`, the words for what is done now.  ``waiting``: `waits`, a list of
        sentences that name what each wait waits for, and `seconds` waited.  ``node``: `name`, `kind`,
        `state`, `detail`.  ``ready``: `run_dir`.  ``log``: `words`.
        """


class Runtime(Protocol):
    """Runs plans."""

    def run(self, plan: Plan, observer: Observer) -> Outcome:
        """Launch, wait for the programs, evaluate the checks, take everything down.

        Raises:
            KeyboardInterrupt: never; an interrupted run is an outcome with code 130.
        """


# ---- the verdict
# ----------------------------------------------------------------------------------------------

VERDICT_RANK: tuple[ExitCode, ...] = (
    ExitCode.INTERRUPTED,
    ExitCode.USAGE,
    ExitCode.INFRASTRUCTURE,
    ExitCode.DIED,
    ExitCode.TIMEOUT,
    ExitCode.CHECK_FAILED,
    ExitCode.NOTHING_TO_DO,
    ExitCode.OK,
)
"""Which exit code wins when several things went wrong, gravest first."""


class Expectation(Protocol):
    """A check of the plan as far as the verdict needs it."""

    @property
    def guest(self) -> str: ...  # noqa: D102

    def met_by(self, exit_code: int | None, signal_number: int | None) -> bool: ...  # noqa: D102


def ending_words(node: NodeOutcome) -> str:
    """How `node` ended, as the predicate of a sentence."""
    if node.lost:
        words = f"was lost with host {node.host}"
    elif node.signal is not None:
        words = f"was killed by {signal_name(node.signal)}"
    elif node.state is NodeState.DIED:
        words = "died of an internal error"
    else:
        words = f"ended with exit code {node.exit}"
    return f"{words}: {node.detail}" if node.detail else words


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; the number for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def node_faults(nodes: Sequence[NodeOutcome], expectations: Sequence[Expectation]) -> list[Fault]:
    """What the nodes' endings say against a run.

    Broker and hypervisors may not end by themselves at all.  A guest's non-zero code or death counts unless
    a check expected just that, or its hypervisor went first: then it is a consequence and its hypervisor is
    named instead.  So it is with a nested hypervisor.
    """
    faults = []
    by_itself = {NodeState.EXITED, NodeState.FAILED, NodeState.DIED}
    gone = {node.name for node in nodes if node.kind is NodeKind.HYPERVISOR and node.state in by_itself}
    for node in nodes:
        if node.state not in by_itself:
            continue
        code = ExitCode.DIED
        if node.kind is NodeKind.HYPERVISOR and node.hypervisor in gone:
            continue  # a nested one ends with the one around it
        if node.lost:
            if node.hypervisor in gone:
                continue
            code = ExitCode.INFRASTRUCTURE
        elif not node.was_ready and node.exit == ExitCode.INFRASTRUCTURE:
            code = ExitCode.INFRASTRUCTURE  # what a node says that cannot bind, join or attach
        elif node.kind is NodeKind.GUEST:
            expected = any(e.guest == node.name and e.met_by(node.exit, node.signal) for e in expectations)
            if node.state is NodeState.EXITED or node.hypervisor in gone or expected:
                continue
            code = ExitCode.DIED if node.state is NodeState.DIED else ExitCode.CHECK_FAILED
        faults.append(Fault(code, f"{node.kind} {node.name} {ending_words(node)}"))
    return faults


def judge(
    nodes: Sequence[NodeOutcome],
    checks: Sequence[CheckOutcome] = (),
    expectations: Sequence[Expectation] = (),
    faults: Sequence[Fault] = (),
) -> tuple[ExitCode, tuple[str, ...]]:
    """The verdict of a run and its reasons, gravest first.

    Counted are the `faults` that the runtime noticed, the nodes' endings, and the checks that failed.
    """
    found = list(faults) + node_faults(nodes, expectations)
    for check in checks:
        if check.passed is False:
            found.append(Fault(ExitCode.CHECK_FAILED, f"check {check.name!r} failed: {check.words}"))
    found.sort(key=lambda fault: VERDICT_RANK.index(fault.code))
    code = found[0].code if found else ExitCode.OK
    return code, tuple(dict.fromkeys(fault.words for fault in found))
