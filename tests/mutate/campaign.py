"""A campaign: the tests pass unmutated, then every cell is mutated; what survives is explained or fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tests.mutate.cells import Cell, Sources, TableError, mutants
from tests.mutate.runner import DEADLINE_FACTOR, DEADLINE_FLOOR, Job, Outcome, Runner

RECENT_KILLERS = 3


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
    baseline = _baseline(target, runner)
    if not baseline.survived:
        verdict.error = f"the tests do not pass unmutated (exit {baseline.code}):\n{_tail(baseline.output)}"
        return verdict
    killers: list[str] = []

    def done(job: Job, outcome: Outcome) -> None:
        assert job.cell is not None
        if not outcome.survived:
            verdict.killed += 1
            verdict.timeouts += outcome.code is None
            return
        why = next((survivor.why for survivor in target.survivors if survivor.covers(job.cell)), None)
        if why is None:
            verdict.survived.append(job.cell)
        else:
            verdict.explained.append((job.cell, why))

    # One batch of workers at a time lets each batch begin with the tests that killed the last.
    deadline = max(DEADLINE_FLOOR, DEADLINE_FACTOR * baseline.seconds)
    for batch in _batches(cells, runner.workers * 4):
        jobs = [Job(target.module, target.attribute, cell, target.tests, tuple(killers)) for cell in batch]

        def note(job: Job, outcome: Outcome) -> None:
            done(job, outcome)
            if outcome.killer and outcome.killer not in killers:
                killers.insert(0, outcome.killer)
                del killers[RECENT_KILLERS:]

        runner.run(jobs, deadline, note)
    lived = [cell for cell, _ in verdict.explained]
    verdict.stale = [
        survivor.cells for survivor in target.survivors if not any(survivor.covers(cell) for cell in lived)
    ]
    verdict.survived.sort(key=lambda cell: cell.index)
    verdict.seconds = time.monotonic() - begin
    return verdict


def _baseline(target: Target, runner: Runner) -> Outcome:
    found: list[Outcome] = []
    job = Job(target.module, target.attribute, None, target.tests)
    runner.run([job], 600.0, lambda _, outcome: found.append(outcome))
    return found[0]


def _batches(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    return [cells[at : at + size] for at in range(0, len(cells), size)]


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def summary(verdicts: Sequence[Verdict]) -> str:
    """The campaign as text: a row a table, then what survived, what is explained, what could not be read."""
    width = max(len(verdict.target.name) for verdict in verdicts)
    lines = [f"{'table':{width}}  cells  killed  explained  survived  words  opaque  seconds"]
    lines += [
        f"{v.target.name:{width}}  {v.cells:5}  {v.killed:6}  {len(v.explained):9}  {len(v.survived):8}"
        f"  {v.words:5}  {len(v.opaque):6}  {v.seconds:7.1f}"
        for v in verdicts
    ]
    for v in verdicts:
        lines += [f"ERROR {v.target.name}: {v.error}"] if v.error else []
        lines += [f"SURVIVED {_place(v, cell)}" for cell in v.survived]
        lines += [f"explained {_place(v, cell)}: {why}" for cell, why in v.explained]
        lines += [f"stale explanation {v.target.name}: no cell of {cells} survived" for cells in v.stale]
        lines += [f"opaque {v.target.name}: {text}" for text in v.opaque]
        lines += [f"{v.timeouts} killed by their deadline: {v.target.name}"] if v.timeouts else []
    cells = sum(v.cells for v in verdicts)
    killed = sum(v.killed for v in verdicts)
    survived = sum(len(v.survived) for v in verdicts)
    explained = sum(len(v.explained) for v in verdicts)
    lines.append(f"{cells} mutants: {killed} killed, {explained} explained, {survived} survived")
    return "\n".join(lines)


def _place(verdict: Verdict, cell: Cell) -> str:
    return f"{verdict.path}:{cell.line}  {cell.path}: {cell.old} -> {cell.new}"


def campaign(targets: Sequence[Target], runner: Runner, say: Callable[[str], None]) -> list[Verdict]:
    """Examine every target, telling about each as it is done."""
    verdicts = []
    for target in targets:
        verdict = examine(target, runner)
        verdicts.append(verdict)
        state = "error" if verdict.error else f"{verdict.killed}/{verdict.cells} killed"
        say(f"{target.name}: {state}, {verdict.seconds:.1f} s")
    return verdicts
