"""`argosy compare`: designs side by side, by what they cost, counted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from topologies.compare import costs as cost_files
from topologies.compare.cells import WAYS, WORKS, Cell, cells
from topologies.compare.chart import check, draw
from topologies.compare.measure import NoFigures, measure
from topologies.compare.render import Line, as_csv, as_json, table
from topologies.exitcodes import ExitCode
from topologies.formats import CompareFormat


class NoSuchCell(Exception):
    """Something behind `--only` fits nothing."""

    code = ExitCode.USAGE


def chosen(only: Sequence[str]) -> list[Cell]:
    """The cells whose names hold every word of one of `only`; all without it.  Raises NoSuchCell."""
    every = list(cells())
    for words in only:
        if not any(_fits(cell, words) for cell in every):
            unknown = [word for word in words.split(",") if not any(_fits(cell, word) for cell in every)]
            what = " or ".join(map(repr, unknown)) or f"all of {words!r}"
            works, ways = (", ".join(row.name for row in rows) for rows in (WORKS, WAYS))
            raise NoSuchCell(
                f"--only: no cell's name holds {what}; names are as {every[0].name} [works: {works}; ways: {ways}]"
            )
    return [cell for cell in every if not only or any(_fits(cell, words) for words in only)]


def _fits(cell: Cell, words: str) -> bool:
    return all(word in cell.name for word in words.split(","))


def compare(format: CompareFormat, only: Sequence[str], costs: str | None, chart: str | None) -> int:
    """Count and print.  1 when a cell has no figures."""
    found = chosen(only)
    prices = None if costs is None else cost_files.load(costs)
    if chart is not None:
        check(chart)
    lines = []
    for number, cell in enumerate(found, 1):
        print(f"compare: {number} of {len(found)}: {cell.name}", file=sys.stderr, flush=True)
        try:
            lines.append(Line(cell, measure(cell)))
        except NoFigures as problem:
            lines.append(Line(cell, None, str(problem)))
    match format:
        case CompareFormat.JSON:
            print(json.dumps(as_json(lines, prices), indent=1, allow_nan=False))
        case CompareFormat.CSV:
            sys.stdout.write(as_csv(lines, prices))
        case CompareFormat.TABLE:
            print("\n".join(table(lines, prices)))
    if chart is not None:
        draw(lines, chart, prices)
    return int(ExitCode.CHECK_FAILED if any(line.figures is None for line in lines) else ExitCode.OK)
