"""Writes the table of docs/comparison.md.  `python docs/comparison.py` counts and writes it, `--check` compares.

Apart from docs/generate.py, since counting takes a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.render import fill, table
from topologies.compare.cells import cells
from topologies.compare.costs import load, shipped
from topologies.compare.figures import NAMES, shown
from topologies.compare.measure import measure
from topologies.compare.render import AXES, HEADS, axes

DOCUMENT = Path(__file__).with_name("comparison.md")


def counted() -> str:
    """Every cell with its figures, and the time that each cost file makes of them."""
    costs = [load(name) for name in shipped()]

    def rows() -> Iterator[tuple[str, ...]]:
        for cell in cells():
            figures = measure(cell)
            numbers = (shown(getattr(figures, name)) for name in NAMES)
            yield (*axes(cell), *numbers, *(f"{cost.microseconds_of(figures):.1f}" for cost in costs))

    return table((*AXES, *HEADS.values(), *(f"us, {cost.name}" for cost in costs)), rows())


def sources() -> str:
    """What the cost files say, and where it comes from."""
    return table(
        ("file", "GHz", "cost", "cycles", "source"),
        ((cost.name, cost.ghz, key, cost.cycles[key], cost.sources[key])
         for cost in map(load, shipped()) for key in cost.cycles),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Write the document, or with --check say whether it is as counted now."""
    text = fill(DOCUMENT.read_text(), {"counted": counted, "sources": sources})
    if "--check" not in arguments:
        DOCUMENT.write_text(text)
        return 0
    written = DOCUMENT.read_text()
    if written != text:
        print("comparison.md is not what is counted now: run `make docs`", file=sys.stderr)
        for line in unified_diff(written.splitlines(), text.splitlines(), "written", "counted", n=0, lineterm=""):
            print(line, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
