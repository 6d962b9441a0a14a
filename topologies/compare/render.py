"""The comparison as a table, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from topologies.compare.cells import Cell
from topologies.compare.costs import Costs
from topologies.compare.figures import NAMES, Figures, shown, widths

SCHEMA: Final = "compare/1"
AXES: Final = ("work", "way", "door", "notification", "depth")
HEADS: Final = {
    "exits_l0": "exits L0",
    "exits_l1": "L1",
    "exits_l2": "L2",
    "hypercalls": "hypercalls",
    "copied_by_hypervisor": "copied by hypervisor",
    "copied_by_back_end": "by back end",
    "pages_mapped": "mapped",
    "pages_unmapped": "unmapped",
    "interrupts": "interrupts",
    "doorbells": "doorbells",
    "round_trips": "round trips",
}


class Line(NamedTuple):
    """One measured cell; `why` says why there are no figures."""

    cell: Cell
    figures: Figures | None
    why: str = ""


def axes(cell: Cell) -> tuple[str, ...]:
    """What a cell is, by axis."""
    return (cell.work.name, cell.way.name, cell.door, cell.notification, str(cell.depth))


def table(lines: Sequence[Line], costs: Costs | None = None) -> list[str]:
    """For a person: one line a cell, and why a cell has no figures."""
    head = [*AXES, *HEADS.values(), *([f"us by {costs.name}"] if costs else [])]
    rows = [head]
    for line in lines:
        if line.figures is None:
            continue
        numbers = [shown(getattr(line.figures, name)) for name in NAMES]
        rows.append([*axes(line.cell), *numbers, *([f"{costs.microseconds_of(line.figures):.2f}"] if costs else [])])
    wide, words = widths(rows), len(AXES)
    text = [
        "  ".join(cell.ljust(wide[at]) if at < words else cell.rjust(wide[at]) for at, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    return [*text, *(f"{line.cell.name}: no figures: {line.why}" for line in lines if line.figures is None)]


def as_csv(lines: Sequence[Line], costs: Costs | None = None) -> str:
    """One row a cell; figures as decimal fractions, empty where there are none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*AXES, *NAMES, *(["microseconds"] if costs else []), "why"])
    for line in lines:
        found = line.figures
        numbers = ["" for _ in NAMES] if found is None else [f"{float(getattr(found, name)):g}" for name in NAMES]
        time = [] if costs is None else ["" if found is None else f"{costs.microseconds_of(found):.3f}"]
        writer.writerow([*axes(line.cell), *numbers, *time, line.why])
    return out.getvalue()


def as_json(lines: Sequence[Line], costs: Costs | None = None) -> dict[str, Any]:
    """Everything, with the sources of the costs."""
    rows = []
    for line in lines:
        row: dict[str, Any] = dict(zip(AXES, axes(line.cell), strict=True))
        if line.figures is None:
            row["why"] = line.why
        else:
            row["per_request"] = {name: float(getattr(line.figures, name)) for name in NAMES}
            if costs is not None:
                row["microseconds"] = round(costs.microseconds_of(line.figures), 3)
        rows.append(row)
    priced = None if costs is None else {"name": costs.name, "ghz": costs.ghz, "sources": dict(costs.sources)}
    return {"schema": SCHEMA, "costs": priced, "rows": rows}
