"""A cell's figures: its lab runs twice in the inline runtime, a little and longer, and the rest is subtraction.

Virtual time and a seed make every count repeatable: a second `argosy compare` prints the same table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from typing import Any, Final

from topologies.compare.cells import Cell
from topologies.compare.figures import LEVELS, Figures, per_request
from topologies.compare.labs import topology
from topologies.exitcodes import ExitCode
from topologies.inline.runtime import InlineRuntime
from topologies.load import loads
from topologies.plan import Places, plan
from topologies.runtime import NodeKind, Observer, Outcome

SHORT: Final = 16
LONG: Final = 48
SEED: Final = 0


class NoFigures(Exception):
    """A cell's lab did not do its work; the message says why."""

    code = ExitCode.CHECK_FAILED


class _Silent:
    """Nobody watches."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Forget it."""


def measure(cell: Cell) -> Figures:
    """The figures of a cell.  Raises NoFigures."""
    short, long = (counted(run_inline(cell, requests)) for requests in (SHORT, LONG))
    return per_request(short, long, LONG - SHORT)


def run_inline(cell: Cell, requests: int) -> Outcome:
    """One run of a cell's lab.  Raises NoFigures."""
    text = json.dumps(topology(cell, requests))  # JSON is YAML
    with tempfile.TemporaryDirectory(prefix="argosy-compare-") as directory:
        planned = plan(loads(text, cell.name), Places(directory, directory, directory), token=bytes(16), seed=SEED)
        observer: Observer = _Silent()
        outcome = InlineRuntime(SEED).run(planned, observer)
    return checked(cell, outcome)


def checked(cell: Cell, outcome: Outcome) -> Outcome:
    """The outcome of a lab that did its work.  Raises NoFigures."""
    if outcome.code != ExitCode.OK:
        raise NoFigures(f"{cell.name}: {'; '.join(outcome.reasons)}")
    return outcome


def counted(outcome: Outcome) -> dict[str, int]:
    """What the hypervisors counted for all their guests together, under the names of :class:`Figures`."""
    hypervisors = [node for node in outcome.nodes if node.kind is NodeKind.HYPERVISOR]
    total: dict[str, int] = {}
    for domain in (domain for node in hypervisors for domain in node.counters["arch"].values()):
        # Where nothing is nested, exits are not counted by level.
        for name, value in {"exits_l0": domain["exits"], **domain}.items():
            total[name] = total.get(name, 0) + value
    found = {f"exits_l{level}": total.get(f"exits_l{level}", 0) for level in range(LEVELS)}
    return {
        **found,
        "hypercalls": total["hypercalls"],
        "copied_by_hypervisor": total["bytes_copied"],
        "copied_by_back_end": sum(node.result.get("copied_by_back_end", 0) for node in outcome.nodes),
        "pages_mapped": total.get("pages_mapped", 0),
        "pages_unmapped": total.get("pages_unmapped", 0),
        "interrupts": total["interrupts_posted"],
        "doorbells": total["messages"] + sum(node.result.get("notifies", 0) for node in outcome.nodes),
        "round_trips": total.get("ioreqs", 0),
    }
