"""Two trees in one run: this one and another revision, row by row, round by round.

The other revision is checked out in a git worktree of its own in a temporary directory and measured with the
same programs.  Every second round measures it first, so that neither tree has the warmer place.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topologies.bench import labs
from topologies.bench.figures import median, ratios, speed_ratio
from topologies.bench.labs import OWN_TREE, LabFailed
from topologies.bench.proof import LyingRow
from topologies.bench.rows import NOT_FALLEN, Row
from topologies.bench.run import ROUNDS, SCHEMA, Measure, Measured, Progress, machine
from topologies.exitcodes import ExitCode


class NoRevision(Exception):
    """There is no such revision, or no repository."""

    code = ExitCode.USAGE


@contextmanager
def worktree(revision: str, repository: Path = OWN_TREE) -> Iterator[Path]:
    """A checkout of `revision`, gone afterwards.  Raises NoRevision."""
    with tempfile.TemporaryDirectory(prefix="argosy-against-") as directory:
        path = Path(directory, "tree")
        commit = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        _git(repository, "worktree", "add", "--detach", os.fspath(path), commit)
        try:
            yield path
        finally:
            _git(repository, "worktree", "remove", "--force", os.fspath(path))


def _git(repository: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(repository), *command], capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise NoRevision("--against needs git") from None
    if done.returncode:
        said = done.stderr.strip() or f"no revision {command[-1].removesuffix('^{commit}')!r} in {repository}"
        raise NoRevision(f"--against: {said}")
    return done.stdout.strip()


def compare(
    rows: Sequence[Row],
    revision: str,
    rounds: int = ROUNDS,
    scale: float = 1.0,
    progress: Progress = lambda _words: None,
    measure: Measure = labs.measure,
    repository: Path = OWN_TREE,
) -> dict[str, Any]:
    """The report: the peer of each row is its other self, `ratios` are of the values, `speed` is over 1 when faster.

    `unknown` names the rows that the other tree does not have, and so has no figure of.
    """
    with worktree(revision, repository) as other:
        held = [row for row in rows if row.data_path]
        rows = [row for row in held if _known(row, other)]
        unknown = [row.name for row in held if row not in rows]
        if unknown:
            progress(f"no figure in {revision}, which has no such row: {', '.join(unknown)}")
        ours, theirs = [Measured(row) for row in rows], [Measured(row) for row in rows]
        for number in range(1, rounds + 1):
            for mine, its in zip(ours, theirs, strict=True):
                progress(f"round {number} of {rounds}: {mine.row.name} here and in {revision}")
                sides = [(mine, OWN_TREE), (its, other)]
                _both(sides if number % 2 else sides[::-1], measure, scale)
    report = [_row(mine, its, revision) for mine, its in zip(ours, theirs, strict=True)]
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "rounds": rounds,
        "against": revision,
        "unknown": unknown,
        "fallen": [row["name"] for row in report if not row["not_fallen"]],
        "rows": report,
    }


def _known(row: Row, tree: Path) -> bool:
    """Whether another tree has that row; what is newer than it cannot have fallen."""
    table = tree / "topologies" / "bench" / "rows.py"
    return not table.exists() or f'"{row.name}"' in table.read_text()


def _both(sides: Sequence[tuple[Measured, Path]], measure: Measure, scale: float) -> None:
    """A round counts for both trees or for neither."""
    found = []
    for measured, tree in sides:
        try:
            found.append(measure(measured.row, tree, scale))
        except (LabFailed, LyingRow) as error:
            measured.failures.append(str(error))
            return
    for (measured, _), one in zip(sides, found, strict=True):
        measured.rounds.append(one)


def _row(ours: Measured, theirs: Measured, revision: str) -> dict[str, Any]:
    report = ours.as_json()
    values, others = [one.value for one in ours.rounds], [one.value for one in theirs.rounds]
    report["failures"] = [*ours.failures, *(f"{revision}: {failure}" for failure in theirs.failures)]
    if not values:
        return {**report, "speed": None, "not_fallen": False}
    larger = ours.row.larger_is_better
    speed = median([speed_ratio(mine, its, larger) for mine, its in zip(values, others, strict=True)])
    report["ratios"] = {revision: median(ratios(values, others))}
    report["peers"] = {revision: median(others)}
    return {**report, "speed": speed, "not_fallen": speed >= NOT_FALLEN}
