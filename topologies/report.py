"""What a person or a program reads of a run: progress while it goes, and the table at its end.

Progress goes to standard error, one line for each phase, and names what a wait waits for as soon as one
lasts; on a terminal it is one living display.  The end goes to standard output, as a table or as one JSON
object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from topologies.diagnose import emit, printable
from topologies.exitcodes import ExitCode, describe
from topologies.formats import Format, silence
from topologies.runtime import NodeKind, NodeOutcome, NodeState, Outcome, signal_name

MEBIBYTE = 1 << 20


# ---- the table of a run -----------------------------------------------------------------------------------


class Column(NamedTuple):
    """One column: its title, how to get a node's value (None: nothing to show), and whether it is a number."""

    title: str
    value: Callable[[NodeOutcome, Outcome], Any]
    number: bool = True


def _exit(node: NodeOutcome, _outcome: Outcome) -> Any:
    if node.state is NodeState.STOPPED or node.kind is not NodeKind.GUEST:
        return str(node.state)
    return signal_name(node.signal) if node.signal is not None else node.exit


def _result(key: str) -> Callable[[NodeOutcome, Outcome], Any]:
    return lambda node, _outcome: node.result.get(key)


def _counter(family: str, key: str) -> Callable[[NodeOutcome, Outcome], Any]:
    """A guest's own counter."""

    def value(node: NodeOutcome, _outcome: Outcome) -> Any:
        found = node.counters.get(family)
        return found.get(key) if isinstance(found, Mapping) else None

    return value


def _hash(node: NodeOutcome, _outcome: Outcome) -> Any:
    digest = node.result.get("sha256")
    if not isinstance(digest, str):
        return None
    verdict = node.result.get("verdict")
    return f"{digest[:12]} {verdict}" if isinstance(verdict, str) else digest[:12]


def _coalesced(node: NodeOutcome, outcome: Outcome) -> Any:
    """What the hypervisor counted, for guests whose program reports on its interrupts."""
    if "interrupts" not in node.result:
        return None
    homes = (each.counters.get("arch") for each in outcome.nodes if each.name == node.hypervisor)
    by_guest = next(homes, None)
    counted = by_guest.get(node.name) if isinstance(by_guest, Mapping) else None
    return counted.get("interrupts_coalesced") if isinstance(counted, Mapping) else None


def _rate(node: NodeOutcome, _outcome: Outcome) -> Any:
    moved, seconds = node.result.get("bytes"), node.result.get("seconds")
    if not isinstance(moved, int | float) or not isinstance(seconds, int | float) or seconds <= 0:
        return None
    return f"{moved / seconds / MEBIBYTE:.1f}"


COLUMNS: tuple[Column, ...] = (
    Column("guest", lambda node, _outcome: node.name, number=False),
    Column("exit", _exit, number=False),
    Column("SHA-256", _hash, number=False),
    Column("bytes", _result("bytes")),
    Column("messages", _result("messages")),
    Column("traps", _result("traps")),
    Column("hypercalls", _counter("arch", "hypercalls")),
    Column("doorbells", _counter("host", "doorbells")),
    Column("interrupts", _counter("arch", "interrupts_delivered")),
    Column("spurious", _result("spurious")),
    Column("coalesced", _coalesced),
    Column("MiB/s", _rate),
)
"""The table that `run` ends with; a column that is empty for every guest is left out."""

SHOWN_RESULTS = frozenset(
    {"sha256", "verdict", "bytes", "messages", "seconds", "traps", "interrupts", "spurious"}
)


def run_table(outcome: Outcome) -> tuple[list[Column], list[list[str]]]:
    """The columns that have something to show, and one row of cells for each guest."""
    guests = [node for node in outcome.nodes if node.kind is NodeKind.GUEST]
    found = [(column, [column.value(node, outcome) for node in guests]) for column in COLUMNS]
    kept = [(column, values) for column, values in found if any(value is not None for value in values)]
    rows = [["" if values[i] is None else str(values[i]) for _, values in kept] for i in range(len(guests))]
    return [column for column, _ in kept], rows


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool] = ()) -> str:
    """A table of text, two spaces between columns; `numbers` says which columns are aligned to the right."""
    table = [[printable(str(cell)) for cell in row] for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    right = list(numbers) + [False] * (len(titles) - len(numbers))
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def summary_lines(outcome: Outcome) -> list[str]:
    """What stands below the table: other results, checks, reasons, the verdict, where the files are."""
    lines = []
    for node in outcome.nodes:
        rest = {key: value for key, value in node.result.items() if key not in SHOWN_RESULTS}
        if node.kind is NodeKind.GUEST and rest:
            words = ", ".join(f"{key} {_short(value)}" for key, value in rest.items())
            lines.append(f"{node.name}: {words}")
    lines += [f"{node.name}: {words}" for node in outcome.nodes if (words := _interrupts(node))]
    for check in outcome.checks:
        verdict = {True: "passed", False: "FAILED", None: "not decided"}[check.passed]
        lines.append(f"check {check.name!r}: {verdict} ({check.words})")
    row = describe(int(outcome.code))
    lines.append(f"{outcome.lab}: {row.name} after {outcome.seconds:.2f} s, exit code {row.code}")
    if outcome.run_dir:
        lines.append(f"files: {outcome.run_dir}")
    return lines


INTERRUPTS = ("raised", "posted", "coalesced", "dropped")
"""What became of the interrupts that a hypervisor raised for its guests."""


def _interrupts(node: NodeOutcome) -> str:
    """Of a hypervisor, over all its guests; "" for other nodes, and where nothing was raised."""
    by_guest = node.counters.get("arch") if node.kind is NodeKind.HYPERVISOR else None
    if not isinstance(by_guest, Mapping):
        return ""
    total = {key: sum(each.get(f"interrupts_{key}", 0) for each in by_guest.values()) for key in INTERRUPTS}
    return "interrupts " + ", ".join(f"{key} {count}" for key, count in total.items()) if total["raised"] else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def print_outcome(outcome: Outcome, form: Format, out: TextIO | None = None, err: TextIO | None = None) -> None:
    """Print how a run went: everything as JSON on `out`, or the table there and what went wrong on `err`."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        _print_ending(outcome, form, out)
    except BrokenPipeError:  # the verdict stands whether anybody reads it or not
        silence(out)
    if form is Format.TABLE:
        print_reasons(outcome, err)


def _print_ending(outcome: Outcome, form: Format, out: TextIO) -> None:
    if form is Format.JSON:
        out.write(json.dumps(outcome.as_json(), indent=1, default=repr) + "\n")
        out.flush()
        return
    columns, rows = run_table(outcome)
    if rows:
        print_table([column.title for column in columns], rows, [column.number for column in columns], out)
    for line in summary_lines(outcome):
        emit(out, printable(line) + "\n")
    out.flush()


def print_reasons(outcome: Outcome, err: TextIO) -> None:
    """Why the verdict is not 0, and where to read more."""
    if outcome.code is ExitCode.OK:
        return
    lines = [f"argosy: {printable(reason)}" for reason in outcome.reasons]
    blamed = [node for node in outcome.nodes if node.state in (NodeState.FAILED, NodeState.DIED)]
    if outcome.run_dir:
        lines += [f"  its log: {outcome.run_dir}/nodes/{node.name}/log" for node in blamed[:3]]
    say(err, "\n".join(lines))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool], out: TextIO) -> None:
    """A table, dressed for a terminal, bare for a pipe."""
    if not out.isatty():
        emit(out, plain_table(titles, rows, numbers))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, number in zip(titles, numbers, strict=True):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(file=out).print(table)


def say(stream: TextIO, words: str) -> None:
    """A line for whoever listens; that nobody does is no error."""
    try:
        emit(stream, words + "\n")
        stream.flush()
    except BrokenPipeError:
        silence(stream)


# ---- progress ---------------------------------------------------------------------------------------------


TOLD_PHASES = frozenset({"starting-broker", "starting-hypervisors", "starting-guests", "running"})
"""Phases that are worth a line of their own; of the way down only what lasts is told."""


class Progress:
    """An observer that prints plain lines: each phase once, and what a wait waits for when that changes."""

    def __init__(self, err: TextIO | None = None) -> None:
        self._err = err or sys.stderr
        self._waits: list[str] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more will come."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Take one record (:class:`topologies.runtime.Observer`)."""
        match record["what"]:
            case "phase":
                self._waits = []
                if record["phase"] in TOLD_PHASES:
                    self._line(record["doing"])
            case "waiting" if record["waits"] != self._waits:
                self._waits = list(record["waits"])
                for words in _first(self._waits):
                    self._line(f"  waiting for {words}")
            case "node" if record["state"] in (NodeState.FAILED, NodeState.DIED):
                self._line(f"  {record['kind']} {record['name']} {record['detail']}")
            case "log":
                self._line(record["words"])
            case _:
                pass

    def _line(self, words: str) -> None:
        say(self._err, printable(words))


class LiveProgress(Progress):
    """The same on a terminal: one display that is redrawn, gone at the end; only deaths stay."""

    def __init__(self, err: TextIO | None = None) -> None:
        super().__init__(err)
        from rich.console import Console
        from rich.status import Status

        self._console = Console(file=self._err, highlight=False)
        self._status = Status("starting", console=self._console)
        self._status.start()
        self._doing = ""
        self._nodes: dict[str, str] = {}

    def stop(self) -> None:
        """Take the display away."""
        self._status.stop()

    def progress(self, record: Mapping[str, Any]) -> None:
        """Take one record."""
        match record["what"]:
            case "phase":
                self._doing, self._waits = record["doing"], []
            case "waiting":
                self._waits = [f"waiting for {words}" for words in _first(record["waits"])]
            case "node":
                self._nodes[record["name"]] = record["state"]
                if record["state"] in (NodeState.FAILED, NodeState.DIED):
                    self._line(f"{record['kind']} {record['name']} {record['detail']}")
            case "log":
                self._line(record["words"])
            case _:
                pass
        self._redraw()

    def _line(self, words: str) -> None:
        self._console.print(printable(words), markup=False)

    def _redraw(self) -> None:
        from rich.text import Text

        ready = sum(state == NodeState.READY for state in self._nodes.values())
        lines = [f"{self._doing} ({ready} of {len(self._nodes)} nodes ready)", *self._waits]
        self._status.update(Text("\n  ".join(map(printable, lines))))


def _first(waits: Sequence[str], most: int = 5) -> list[str]:
    """The first few waits, and how many more there are."""
    more = len(waits) - most
    return [*waits[:most], f"{more} more"] if more > 0 else list(waits)


def progress_for(err: TextIO) -> Progress:
    """The display that suits where it goes."""
    return LiveProgress(err) if err.isatty() else Progress(err)
