"""A campaign: the tests pass unmutated, then every cell is mutated; what survives is explained or fails."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tests.mutate.cells import Cell, Sources, TableError, mutants, mutated_tree
from tests.mutate.runner import DEADLINE_FACTOR, DEADLINE_FLOOR, Job, Runner

RECENT_KILLERS = 3
BASELINE_DEADLINE = 600.0


class Survivor(NamedTuple):
    """Cells that may survive: a pattern over cell paths, in which `[*]` stands for any row, and why."""

    cells: str
    why: str

    def covers(self, cell: Cell) -> bool:
        """Whether the cell is meant."""
        # Brackets are indexes here, not sets of characters.
        return fnmatchcase(cell.path, self.cells.replace("[", "[[]"))


class Target(NamedTuple):
    """A table, the tests that hold it, the explained survivors, and the columns that are words for people.

    Words are a cited source, a note, a sentence of help: no test should pin them.  The tests run in the process
    that imports the mutant: one that starts another interpreter kills nothing.
    """

    module: str
    attribute: str
    tests: tuple[str, ...]
    survivors: tuple[Survivor, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The table's dotted name."""
        return f"{self.module}.{self.attribute}"


@dataclass(slots=True)
class Verdict:
    """What a campaign found out about one target."""

    target: Target
    path: str = ""
    cells: int = 0
    killed: int = 0
    timeouts: int = 0
    words: int = 0
    survived: list[Cell] = field(default_factory=list)
    explained: list[tuple[Cell, str]] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing survived without an explanation."""
        return not self.error and not self.survived


class Plan(NamedTuple):
    """A target's cells: those to mutate, how many are words for people, and what is no cell."""

    cells: list[Cell]
    words: int
    opaque: list[str]


def plan(root: Path, target: Target) -> Plan:
    """Read the target's table.  Raises TableError."""
    found = mutants(Sources(root), target.module, target.attribute)
    cells = [cell for cell in found.cells if cell.column.rpartition(".")[2] not in target.words]
    return Plan(cells, len(found.cells) - len(cells), found.opaque)


def examine(target: Target, runner: Runner) -> Verdict:
    """Run one target's campaign."""
    verdict = Verdict(target, path=str(Sources(runner.root).path(target.module).relative_to(runner.root)))
    begin = time.monotonic()
    try:
        cells, verdict.words, verdict.opaque = plan(runner.root, target)
    except (TableError, SyntaxError) as error:
        verdict.error = str(error)
        return verdict
    verdict.cells = len(cells)
    baseline = runner.run(Job(target.module, target.attribute, None, target.tests), BASELINE_DEADLINE)
    if not baseline.survived:
        verdict.error = f"the tests do not pass unmutated (exit {baseline.code}):\n{_tail(baseline.output)}"
        return verdict
    mutated_tree(runner.root, target.module, target.attribute, None)  # read here, once for all children
    killers: list[str] = []  # the latest first: a test that killed one mutant likely kills the next
    deadline = max(DEADLINE_FLOOR, DEADLINE_FACTOR * baseline.seconds)
    for cell in cells:
        outcome = runner.run(Job(target.module, target.attribute, cell, target.tests, tuple(killers)), deadline)
        if outcome.survived:
            _judge(verdict, cell)
            continue
        verdict.killed += 1
        verdict.timeouts += outcome.code is None
        if outcome.killer and outcome.killer not in killers:
            killers.insert(0, outcome.killer)
            del killers[RECENT_KILLERS:]
    lived = [cell for cell, _ in verdict.explained]
    verdict.stale = [
        survivor.cells for survivor in target.survivors if not any(survivor.covers(cell) for cell in lived)
    ]
    verdict.seconds = time.monotonic() - begin
    return verdict


def _judge(verdict: Verdict, cell: Cell) -> None:
    """Enter a cell that survived: explained, or not."""
    why = next((survivor.why for survivor in verdict.target.survivors if survivor.covers(cell)), None)
    if why is None:
        verdict.survived.append(cell)
    else:
        verdict.explained.append((cell, why))


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def summary(verdicts: Sequence[Verdict]) -> str:
    """The campaign as text: a row a table, then what is explained or could not be read, then what survived."""
    width = max(len(verdict.target.name) for verdict in verdicts)
    lines = [f"{'table':{width}}  cells  killed  explained  survived  words  opaque  seconds"]
    lines += [
        f"{v.target.name:{width}}  {v.cells:5}  {v.killed:6}  {len(v.explained):9}  {len(v.survived):8}"
        f"  {v.words:5}  {len(v.opaque):6}  {v.seconds:7.1f}"
        for v in verdicts
    ]
    for v in verdicts:
        lines += [f"explained {_place(v, cell)}: {why}" for cell, why in v.explained]
        lines += [f"stale explanation {v.target.name}: no cell of {cells} survived" for cells in v.stale]
        lines += [f"opaque {v.target.name}: {text}" for text in v.opaque]
        lines += [f"{v.timeouts} killed by their deadline: {v.target.name}"] if v.timeouts else []
    for v in verdicts:  # at the end, where a log that is cut still has them
        lines += [f"ERROR {v.target.name}: {v.error}"] if v.error else []
        lines += [f"SURVIVED {_place(v, cell)}" for cell in v.survived]
    cells = sum(v.cells for v in verdicts)
    killed = sum(v.killed for v in verdicts)
    survived = sum(len(v.survived) for v in verdicts)
    explained = sum(len(v.explained) for v in verdicts)
    lines.append(f"{cells} mutants: {killed} killed, {explained} explained, {survived} survived")
    return "\n".join(lines)


def _place(verdict: Verdict, cell: Cell) -> str:
    return f"{verdict.path}:{cell.line}  {cell.path}: {cell.old} -> {cell.new}"


def campaign(targets: Sequence[Target], root: Path, jobs: int, say: Callable[[str], None]) -> list[Verdict]:
    """Examine every target, `jobs` at once, telling about each as it is done."""
    # The longest first, so that the last to end is a short one.
    order = sorted(range(len(targets)), key=lambda at: -_size(root, targets[at]))
    verdicts: dict[int, Verdict] = {}
    with get_context("fork").Pool(jobs, _start_worker) as pool:
        work = [(at, targets[at], root) for at in order]
        for at, verdict in pool.imap_unordered(_examine, work):
            verdicts[at] = verdict
            state = "error" if verdict.error else f"{verdict.killed}/{verdict.cells} killed"
            say(f"{verdict.target.name}: {state}, {verdict.seconds:.1f} s")
    return [verdicts[at] for at in range(len(targets))]


def _size(root: Path, target: Target) -> int:
    try:
        return len(plan(root, target).cells)
    except (TableError, SyntaxError):
        return 0  # examine tells


def _start_worker() -> None:
    """The interrupt key is the campaign's to answer, not a worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _examine(work: tuple[int, Target, Path]) -> tuple[int, Verdict]:
    """A worker's turn: one that SIGTERM ends here ends its child as well.

    Outside of a turn the kernel ends it: a handler in Python does not run when the signal comes just before the
    worker waits for its next turn, and the pool would wait for that worker for ever.
    """
    at, target, root = work
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return at, examine(target, Runner(root))
    finally:
        signal.signal(signal.SIGTERM, before)
