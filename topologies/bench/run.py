"""A run: rounds of every row and its peers, one after the other, and what comes of them.

A round measures each row and, right after it, each of its peers, so that a ratio compares two figures of the same
seconds.  Reported are medians over the rounds: of the row's value, of each peer's, and of the ratios.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from topologies.bench import labs, peers, startup
from topologies.bench.figures import median, ratios
from topologies.bench.labs import OWN_TREE, Round
from topologies.bench.proof import LyingRow
from topologies.bench.rows import Kind, Row

SCHEMA: Final = "bench/1"
ROUNDS: Final = 5
ATTEMPTS: Final = 2  # a round that fails is tried once more

T = TypeVar("T")

Progress = Callable[[str], None]
Measure = Callable[[Row, Path, float], Round]
MeasurePeer = Callable[[str, Row, float], float]


@dataclass(slots=True)
class Measured:
    """What the rounds of one row gave.  `peers` holds a figure a round, or nothing for a peer that is absent."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The row of the report."""
        values = [one.value for one in self.rounds]
        report: dict[str, Any] = {
            "name": self.row.name,
            "value": median(values) if values else None,
            "unit": self.row.unit,
            "ratios": {name: median(ratios(values, theirs)) for name, theirs in self.peers.items()},
            "peers": {name: median(theirs) for name, theirs in self.peers.items()},
            "rounds": values,
            "size": self.row.size,
            **merged([one.columns for one in self.rounds]),
        }
        if self.absent:
            report["absent"] = self.absent
        if self.failures:
            report["failures"] = self.failures
        return report


def merged(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each column over the rounds; columns within columns alike."""
    found: dict[str, Any] = {}
    for name in columns[0] if columns else ():
        values = [one[name] for one in columns if name in one]
        found[name] = merged(values) if isinstance(values[0], dict) else median(values)
    return found


def measure_row(row: Row, tree: Path = OWN_TREE, scale: float = 1.0) -> Round:
    """One round of any row."""
    if row.kind is Kind.STARTUP:
        return startup.measure(row)
    return labs.measure(row, tree, scale)


class Bench:
    """Measures `rows` in `rounds` rounds; `scale` shortens each.  `progress` is told what is being done."""

    def __init__(
        self,
        rows: Sequence[Row],
        rounds: int = ROUNDS,
        scale: float = 1.0,
        progress: Progress = lambda _words: None,
        measure: Measure = measure_row,
        measure_peer: MeasurePeer = peers.measure,
    ) -> None:
        self.measured = [Measured(row) for row in rows]
        self._rounds, self._scale, self._progress = rounds, scale, progress
        self._measure, self._measure_peer = measure, measure_peer

    def run(self) -> dict[str, Any]:
        """The report.  A row whose rounds failed says so in `failures` and carries no value."""
        for number in range(1, self._rounds + 1):
            for measured in self.measured:
                self._round(measured, f"round {number} of {self._rounds}")
        return self.report()

    def _round(self, measured: Measured, where: str) -> None:
        """All figures of a round, or none of them: a ratio needs both sides."""
        row = measured.row
        self._progress(f"{where}: {row.name}")
        try:
            ours = self._retried(lambda: self._measure(row, OWN_TREE, self._scale))
        except (labs.LabFailed, LyingRow) as error:
            measured.failures.append(str(error))
            return
        found: dict[str, float] = {}
        for name in row.peers:
            if name in measured.absent:
                continue
            self._progress(f"{where}: {row.name} against {name}")
            try:
                found[name] = self._retried(partial(self._measure_peer, name, row, self._scale))
            except (peers.Unavailable, peers.PeerFailed) as error:
                measured.absent[name] = str(error)
                measured.peers.pop(name, None)
        measured.rounds.append(ours)
        for name, figure in found.items():
            measured.peers.setdefault(name, []).append(figure)

    @staticmethod
    def _retried(act: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS - 1):
            try:
                return act()
            except (labs.LabFailed, peers.PeerFailed):
                continue
        return act()

    def report(self) -> dict[str, Any]:
        """What was measured so far."""
        return {
            "schema": SCHEMA,
            "machine": machine(),
            "rounds": self._rounds,
            "rows": [measured.as_json() for measured in self.measured],
        }


def machine() -> dict[str, Any]:
    """What figures depend on: cores, load, versions."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
