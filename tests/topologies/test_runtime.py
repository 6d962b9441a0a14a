"""The verdict of a run: which exit code, and whose fault it was (published table of exit codes)."""

from __future__ import annotations

import json

import pytest

from topologies.agent.spec import CheckSpec
from topologies.exitcodes import EXIT_CODES, ExitCode
from topologies.runtime import (
    VERDICT_RANK,
    CheckOutcome,
    Fault,
    NodeKind,
    NodeOutcome,
    NodeState,
    Outcome,
    judge,
)

HV = NodeOutcome("hv0", NodeKind.HYPERVISOR, NodeState.STOPPED)


def guest(state: NodeState, exit: int | None = None, signal: int | None = None, **more: object) -> NodeOutcome:
    return NodeOutcome("app", NodeKind.GUEST, state, exit, signal, hypervisor="hv0", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "code"),
    [
        (guest(NodeState.EXITED, 0), ExitCode.OK),
        (guest(NodeState.STOPPED, -15), ExitCode.OK),
        (guest(NodeState.PLANNED), ExitCode.OK),
        (guest(NodeState.FAILED, 3), ExitCode.CHECK_FAILED),
        (guest(NodeState.FAILED, 4), ExitCode.CHECK_FAILED),
        (guest(NodeState.FAILED, 4, was_ready=False), ExitCode.INFRASTRUCTURE),
        (guest(NodeState.DIED, None, 9), ExitCode.DIED),
        (guest(NodeState.DIED, 70), ExitCode.DIED),
        (NodeOutcome("hv1", NodeKind.HYPERVISOR, NodeState.EXITED, 0), ExitCode.DIED),
        (NodeOutcome("hv1", NodeKind.HYPERVISOR, NodeState.FAILED, 4, was_ready=False), ExitCode.INFRASTRUCTURE),
        (NodeOutcome("hv1", NodeKind.HYPERVISOR, NodeState.FAILED, 4), ExitCode.DIED),
        (NodeOutcome("broker", NodeKind.BROKER, NodeState.DIED, None, 11), ExitCode.DIED),
    ],
)
def test_one_ending(node: NodeOutcome, code: ExitCode) -> None:
    """Each way for a node to end, with nothing expected; a reason names the node."""
    found, reasons = judge([HV, node])
    assert found is code
    assert bool(reasons) == (code is not ExitCode.OK)
    assert all(node.name in reason for reason in reasons)


@pytest.mark.parametrize(
    ("node", "expected", "code"),
    [
        (guest(NodeState.FAILED, 3), 3, ExitCode.OK),
        (guest(NodeState.FAILED, 3), 4, ExitCode.CHECK_FAILED),
        (guest(NodeState.DIED, None, 9), 137, ExitCode.OK),
        (guest(NodeState.DIED, None, 9), 9, ExitCode.DIED),
        (guest(NodeState.DIED, None, 9), 0, ExitCode.DIED),
    ],
)
def test_what_a_check_expects_is_no_fault(node: NodeOutcome, expected: int, code: ExitCode) -> None:
    """... and only just that ending of just that guest."""
    assert judge([HV, node], expectations=[CheckSpec("c", "app", expected)])[0] is code
    other = judge([HV, node], expectations=[CheckSpec("c", "other", expected)])[0]
    assert other is not ExitCode.OK


def test_the_gravest_wins_and_comes_first() -> None:
    """VERDICT_RANK orders code and reasons; the same words are said once."""
    faults = [
        Fault(ExitCode.TIMEOUT, "late"),
        Fault(ExitCode.INTERRUPTED, "interrupted"),
        Fault(ExitCode.INTERRUPTED, "interrupted"),
    ]
    checks = [
        CheckOutcome("c", "app", False, "no"),
        CheckOutcome("d", "app", None, ""),
        CheckOutcome("e", "app", True, ""),
    ]
    code, reasons = judge([guest(NodeState.DIED, None, 11)], checks, faults=faults)
    assert code is ExitCode.INTERRUPTED
    assert reasons == ("interrupted", "guest app was killed by SIGSEGV", "late", "check 'c' failed: no")


def test_every_exit_code_has_its_rank() -> None:
    """Once each."""
    assert sorted(VERDICT_RANK) == sorted(row.code for row in EXIT_CODES)
    assert VERDICT_RANK[-1] is ExitCode.OK


def test_an_outcome_survives_json() -> None:
    """It travels from the agent to the launcher as a line of JSON."""
    outcome = Outcome(
        lab="lab",
        runtime="processes",
        code=ExitCode.DIED,
        reasons=("a", "b"),
        nodes=(HV, guest(NodeState.DIED, None, 9, result={"n": 1}, counters={"arch": {"traps": 2}})),
        checks=(CheckOutcome("c", "app", None, "not decided"),),
        events=(("app", "attached", 1),),
        seconds=1.5,
        run_dir="/run/lab",
    )
    data = json.loads(json.dumps(outcome.as_json()))
    assert Outcome.from_json(data) == outcome
    assert data["schema"] == "outcome/1"
    assert data["verdict"] == "died"
