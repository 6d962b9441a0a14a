"""What is printed of a run: the published table, the summary, progress that names its waits."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.report import (
    COLUMNS,
    LiveProgress,
    Progress,
    plain_table,
    print_outcome,
    progress_for,
    run_table,
    summary_lines,
)
from topologies.runtime import CheckOutcome, NodeKind, NodeOutcome, NodeState, Outcome


def outcome(*nodes: NodeOutcome, code: ExitCode = ExitCode.OK, **more: Any) -> Outcome:
    reasons = more.pop("reasons", ())
    return Outcome("lab", "processes", code, reasons, nodes, seconds=1.234, run_dir="/run/lab", **more)


RESULT = {"sha256": "0123456789abcdef", "verdict": "equal", "bytes": 3 << 20, "messages": 7, "seconds": 0.5}
COUNTERS = {"arch": {"hypercalls": 11, "interrupts_delivered": 5}, "host": {"doorbells": 3}}
SENDER = NodeOutcome("sender", NodeKind.GUEST, NodeState.EXITED, 0, result=RESULT, counters=COUNTERS)


def test_the_table_of_a_transfer() -> None:
    """guests: exit, SHA-256, bytes, messages, hypercalls, doorbells, interrupts, MiB/s."""
    columns, rows = run_table(outcome(NodeOutcome("hv0", NodeKind.HYPERVISOR, NodeState.STOPPED), SENDER))
    assert [column.title for column in columns] == [
        "guest", "exit", "SHA-256", "bytes", "messages", "hypercalls", "doorbells", "interrupts", "MiB/s",
    ]  # fmt: skip
    assert [column.number for column in columns] == [False] * 3 + [True] * 6, "numbers stand to the right"
    assert rows == [["sender", "0", "0123456789ab equal", "3145728", "7", "11", "3", "5", "6.0"]]


@pytest.mark.parametrize(
    ("node", "shown"),
    [
        (NodeOutcome("a", NodeKind.GUEST, NodeState.FAILED, 3), "3"),
        (NodeOutcome("a", NodeKind.GUEST, NodeState.DIED, None, 9), "SIGKILL"),
        (NodeOutcome("a", NodeKind.GUEST, NodeState.STOPPED, -15), "stopped"),
        (NodeOutcome("a", NodeKind.GUEST, NodeState.PLANNED), ""),
    ],
)
def test_how_an_ending_is_shown(node: NodeOutcome, shown: str) -> None:
    """Code, signal, or that it was stopped; a column that is empty for all is left out."""
    _, rows = run_table(outcome(node, SENDER))
    assert rows[0][1] == shown
    assert [column.title for column in run_table(outcome(node))[0]] == ["guest", "exit"][: 1 + bool(shown)]


def test_odd_results_do_not_break_the_table() -> None:
    """A program may report what it likes."""
    result = {"bytes": "many", "seconds": 0, "sha256": 5, "messages": None, "more": ["x"] * 100}
    node = NodeOutcome("a", NodeKind.GUEST, NodeState.EXITED, 0, result=result, counters={"arch": 3})
    _, rows = run_table(outcome(node))
    assert rows == [["a", "0", "many"]]
    assert summary_lines(outcome(node))[0].startswith('a: more ["x", "x"')
    assert len(summary_lines(outcome(node))[0]) < 80


def test_what_a_program_reports_of_its_interrupts() -> None:
    """Traps and spurious interrupts from the program, coalesced ones from its hypervisor's counters; else no column."""
    counters = {"arch": {"a": {"interrupts_coalesced": 4}}}
    home = NodeOutcome("hv0", NodeKind.HYPERVISOR, NodeState.STOPPED, counters=counters)
    result = {"traps": 9, "interrupts": 3, "spurious": 0}
    guest = NodeOutcome("a", NodeKind.GUEST, NodeState.EXITED, 0, hypervisor="hv0", result=result)
    columns, rows = run_table(outcome(home, guest))
    assert [column.title for column in columns] == ["guest", "exit", "traps", "spurious", "coalesced"]
    assert rows == [["a", "0", "9", "0", "4"]]
    columns, _ = run_table(outcome(home, NodeOutcome("a", NodeKind.GUEST, NodeState.EXITED, 0, hypervisor="hv0")))
    assert [column.title for column in columns] == ["guest", "exit"]


def test_what_became_of_the_interrupts() -> None:
    """One line for each hypervisor that raised any, over all its guests."""
    counted = {
        "interrupts_raised": 5, "interrupts_posted": 3, "interrupts_coalesced": 1, "interrupts_dropped": 1, "exits": 9,
    }  # fmt: skip
    busy = {"arch": {"a": counted, "b": {"interrupts_raised": 2, "interrupts_posted": 2}}}
    nodes = [NodeOutcome(name, NodeKind.HYPERVISOR, NodeState.STOPPED, counters=found)
             for name, found in (("hv0", busy), ("hv1", {}), ("hv2", {"arch": {"c": {"exits": 1}}}))]  # fmt: skip
    lines = [line for line in summary_lines(outcome(*nodes)) if "interrupts" in line]
    assert lines == ["hv0: interrupts raised 7, posted 5, coalesced 1, dropped 1"]


def test_a_plain_table_lines_up() -> None:
    """Numbers to the right, text to the left, nothing that a terminal would obey."""
    text = plain_table(["name", "n"], [["a\x1b[31m", "1"], ["b", "100"]], [False, True])
    assert text == "name         n\na\\x1b[31m    1\nb          100\n"


def test_table_and_reasons_go_apart() -> None:
    """The table is what was asked for (stdout); why it went wrong is a complaint (stderr)."""
    out, err = io.StringIO(), io.StringIO()
    died = NodeOutcome("app", NodeKind.GUEST, NodeState.DIED, None, 9)
    check = CheckOutcome("c", "app", False, "no")
    print_outcome(outcome(died, code=ExitCode.DIED, reasons=("app died",), checks=(check,)), Format.TABLE, out, err)
    assert "check 'c': FAILED (no)" in out.getvalue()
    assert "lab: died after 1.23 s, exit code 5" in out.getvalue()
    assert err.getvalue() == "argosy: app died\n  its log: /run/lab/nodes/app/log\n"


def test_json_is_one_object_on_stdout() -> None:
    """Nothing else is printed."""
    out, err = io.StringIO(), io.StringIO()
    print_outcome(outcome(SENDER, code=ExitCode.CHECK_FAILED, reasons=("no",)), Format.JSON, out, err)
    assert json.loads(out.getvalue())["reasons"] == ["no"]
    assert err.getvalue() == ""


def test_a_reader_that_left_changes_no_verdict() -> None:
    """`argosy run | head -1`: printing into a closed pipe is no error."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        print_outcome(outcome(SENDER), Format.TABLE, out, io.StringIO())
        out.write("goes nowhere")


WAITING = {"what": "waiting", "seconds": 0.5}


def test_plain_progress_names_what_is_waited_for() -> None:
    """One line a phase; a wait that lasts is said once, and again when it changes."""
    err = io.StringIO()
    progress = progress_for(err)
    assert type(progress) is Progress
    progress.progress({"what": "phase", "phase": "starting-guests", "doing": "starting guests"})
    for waits in (["a", "b"], ["a", "b"], ["b"]):
        progress.progress({**WAITING, "waits": waits})
    record = {"what": "node", "name": "app", "kind": "guest", "state": "died", "detail": "was killed"}
    progress.progress(record)
    progress.progress({**record, "state": "ready"})
    progress.progress({"what": "phase", "phase": "stopping-guests", "doing": "stopping guests"})
    assert err.getvalue().splitlines() == [
        "starting guests",
        "  waiting for a",
        "  waiting for b",
        "  waiting for b",
        "  guest app was killed",
    ]


def test_many_waits_are_cut() -> None:
    """Fifty guests that start are not fifty lines."""
    err = io.StringIO()
    Progress(err).progress({**WAITING, "waits": [f"g{n}" for n in range(50)]})
    assert len(err.getvalue().splitlines()) == 6
    assert err.getvalue().endswith("  waiting for 45 more\n")


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal() -> None:
    """A display that names the waits and leaves nothing but deaths behind."""
    err = Terminal()
    with progress_for(err) as progress:
        assert type(progress) is LiveProgress
        progress.progress({"what": "phase", "phase": "starting-guests", "doing": "starting guests"})
        progress.progress({"what": "node", "name": "a", "kind": "guest", "state": "ready", "detail": ""})
        progress.progress({**WAITING, "waits": ["guest b to be ready"]})
        shown = str(progress._status.status)
        progress.progress({"what": "node", "name": "b", "kind": "guest", "state": "died", "detail": "was killed"})
    assert "starting guests (1 of 1 nodes ready)" in shown
    assert "waiting for guest b to be ready" in shown
    assert "guest b was killed" in err.getvalue()


def test_numbers_stand_to_the_right() -> None:
    """Every column of the table counts or measures something, but for the first three."""
    assert [(column.title, column.number) for column in COLUMNS] == [
        ("guest", False), ("exit", False), ("SHA-256", False), ("bytes", True), ("messages", True), ("traps", True),
        ("hypercalls", True), ("doorbells", True), ("interrupts", True), ("spurious", True), ("coalesced", True),
        ("MiB/s", True),
    ]  # fmt: skip
