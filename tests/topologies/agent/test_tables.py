"""The tables of a lab's life are complete and lead down."""

from __future__ import annotations

from itertools import pairwise

from topologies.agent.phases import (
    LIVING,
    MOVES,
    NODE_MOVES,
    PHASES,
    RESTARTS,
    ROWS,
    Late,
    NodeEvent,
    Phase,
    Until,
)
from topologies.runtime import ENDED, NodeKind, NodeState


def test_every_phase_has_one_row_and_leads_to_the_next() -> None:
    """From the first row the table is walked to its last; DOWN is the only one that stays."""
    assert [row.phase for row in PHASES] == list(Phase)
    for row, after in pairwise(PHASES):
        assert row.then is after.phase
    assert PHASES[-1].then is Phase.DOWN
    assert len(ROWS) == len(PHASES)


def test_kinds_start_in_one_order_and_stop_in_the_other() -> None:
    """A guest needs its hypervisor, a hypervisor the broker."""
    up = [row.kind for row in PHASES if row.until is Until.READY]
    down = [row.kind for row in PHASES if row.until is Until.ENDED]
    assert up == [NodeKind.BROKER, NodeKind.HYPERVISOR, NodeKind.GUEST]
    assert down == up[::-1]


def test_only_a_lab_that_runs_may_take_for_ever() -> None:
    """Every other phase has a limit, and on the way down it ends in SIGKILL."""
    for row in PHASES:
        if row.phase not in (Phase.RUNNING, Phase.DOWN):
            assert row.within
        assert (row.late is Late.KILL) == (row.until is Until.ENDED)
        assert (row.late is Late.FAIL) == (row.phase in LIVING)


def test_whose_phase_how_long_and_in_which_words() -> None:
    """Published: what a user reads while waiting, and after how many seconds the wait is given up."""
    assert [(row.kind and row.kind.value, row.within and row.within / 1e9, row.doing) for row in PHASES] == [
        ("broker", 10, "starting the broker"),
        ("hypervisor", 30, "starting hypervisors"),
        ("guest", 60, "starting guests"),
        (None, None, "running"),
        (None, 0.5, "collecting results"),
        ("guest", 0.7, "stopping guests"),
        ("hypervisor", 0.5, "stopping hypervisors"),
        ("broker", 0.5, "stopping the broker"),
        (None, None, "down"),
    ]


def test_no_node_comes_back_from_its_end() -> None:
    """An event that comes after a node's end changes nothing."""
    assert len(MOVES) == len(NODE_MOVES)
    assert not {move.state for move in NODE_MOVES} & ENDED
    ends = {NodeEvent.ENDED_ZERO, NodeEvent.ENDED_CODE, NodeEvent.ENDED_BADLY}
    for state in set(NodeState) - ENDED - {NodeState.PLANNED}:
        for event in ends:
            assert MOVES[state, event] in ENDED


def test_an_end_that_was_asked_for_is_no_failure() -> None:
    """STOPPED, whatever the exit code; otherwise the code or signal decides."""
    for move in NODE_MOVES:
        if move.state is NodeState.STOPPING:
            assert move.then is NodeState.STOPPED
        elif move.event is NodeEvent.ENDED_ZERO:
            assert move.then is NodeState.EXITED
        elif move.event is NodeEvent.ENDED_CODE:
            assert move.then is NodeState.FAILED
        elif move.event is NodeEvent.ENDED_BADLY:
            assert move.then is NodeState.DIED


def test_who_is_started_again_and_how_often() -> None:
    """contracts 8: the broker at once, at most 5 times in 60 s; the others after a wait that doubles and is bounded."""
    waits = {row.kind: [row.wait(before) / 1e6 for before in range(row.most)] for row in RESTARTS}
    found = [(str(row.kind), row.most, row.within / 1e9, waits[row.kind]) for row in RESTARTS]
    assert [(row.first / 1e6, row.longest / 1e6) for row in RESTARTS] == [(0, 0), (100, 5000), (100, 5000)]
    assert found == [
        ("broker", 5, 60, [0, 0, 0, 0, 0]),
        ("hypervisor", 8, 60, [100, 200, 400, 800, 1600, 3200, 5000, 5000]),
        ("guest", 8, 60, [100, 200, 400, 800, 1600, 3200, 5000, 5000]),
    ]


def test_a_node_between_two_lives() -> None:
    """It gets there from every state in which it may end by itself, and leaves it one way or the other."""
    into = {move.state for move in NODE_MOVES if move.then is NodeState.RESTARTING}
    assert into == {NodeState.STARTING, NodeState.JOINED, NodeState.READY}
    assert {move.event for move in NODE_MOVES if move.then is NodeState.RESTARTING} == {NodeEvent.AGAIN}
    out = {move.event: move.then for move in NODE_MOVES if move.state is NodeState.RESTARTING}
    assert out == {
        NodeEvent.SPAWNED: NodeState.STARTING,
        NodeEvent.ASKED: NodeState.STOPPED,
        NodeEvent.ENDED_ZERO: NodeState.EXITED,
        NodeEvent.ENDED_CODE: NodeState.FAILED,
        NodeEvent.ENDED_BADLY: NodeState.DIED,
    }
