"""Cost files: what each counted thing costs on some machine, so that counts become a projected time.

A projection, not a measurement: the counts are exact, the costs are somebody's published measurements of single
operations, or assumptions, and caches and scheduling are in neither.  Two files ship, in `topologies/compare/costs`;
each value names its source, or says that it is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from topologies.compare.figures import Figures
from topologies.diagnose import TopologyError
from topologies.exitcodes import ExitCode
from topologies.marks import plain
from topologies.yaml12 import load_file

SHIPPED: Final = Path(__file__).parent / "costs"


class CostError(Exception):
    """A cost file that is none; the message names the file, the key and the value."""

    code = ExitCode.USAGE


KEYS: Final = (
    "exit", "reflected-exit", "reflected-twice", "copy-byte", "map-page", "unmap-page", "interrupt", "round-trip"
)  # fmt: skip
"""Cycles of: an exit to the outermost hypervisor and the entry after it; what is added where the next level in answers,
and where the one after that does, with all exits of their own that these levels need; one byte copied; a page mapped;
one unmapped, with its invalidation, both without the hypercall, which is an exit; an interrupt delivered; a wait for
another domain to be scheduled and to answer.
"""


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost file: cycles by what is counted, and the clock in GHz that turns them into time."""

    name: str
    ghz: float
    cycles: Mapping[str, float]
    sources: Mapping[str, str]

    def cycles_of(self, figures: Figures) -> float:
        """Projected cycles of one request."""
        parts: tuple[tuple[str, Fraction], ...] = (
            ("exit", figures.exits_l0),
            # What level 2 answers is an exit of level 1 as well: each has its own price, the second one far higher.
            ("reflected-exit", figures.exits_l1),
            ("reflected-twice", figures.exits_l2),
            ("copy-byte", figures.copied_by_hypervisor + figures.copied_by_back_end),
            ("map-page", figures.pages_mapped),
            ("unmap-page", figures.pages_unmapped),
            ("interrupt", figures.interrupts),
            ("round-trip", figures.round_trips),
        )
        return sum(self.cycles[key] * float(count) for key, count in parts)

    def microseconds_of(self, figures: Figures) -> float:
        """Projected time of one request."""
        return self.cycles_of(figures) / self.ghz / 1000


def shipped() -> tuple[str, ...]:
    """The names of the cost files that come with Argosy."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load(name: str) -> Costs:
    """The cost file of that name, or at that path.  Raises CostError."""
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    if not path.is_file():
        raise CostError(f"--costs: {name}: no such file (a file, or one of: {', '.join(shipped())})")
    try:
        root = load_file(str(path))
    except TopologyError as error:
        raise CostError(f"--costs: {error}") from None
    return parse(str(path), {} if root is None else plain(root))


def parse(name: str, data: Any) -> Costs:
    """Costs from the data of a file.  Raises CostError."""
    where, every = f"--costs: {name}", ("ghz", *KEYS)
    if not isinstance(data, dict):
        raise CostError(f"{where}: {data!r} is no map of costs [wanted: {', '.join(every)}]")
    for key in data:
        if key not in every:
            raise CostError(f"{where}: {key!r} is no cost [valid: {', '.join(every)}]")
    for key in every:
        if key not in data:
            raise CostError(f"{where}: {key} is missing [wanted: {', '.join(every)}]")
    ghz = _number(where, "ghz", "GHz", data["ghz"])
    if not ghz:
        raise CostError(f"{where}: ghz: a clock of 0 GHz never ticks")
    cycles, sources = {}, {}
    for key in KEYS:
        entry = data[key]
        if not isinstance(entry, dict) or set(entry) != {"cycles", "source"}:
            raise CostError(f"{where}: {key}: {entry!r}: write {{cycles: N, source: where it was published}}")
        cycles[key] = _number(where, key, "cycles", entry["cycles"])
        sources[key] = str(entry["source"])
    return Costs(Path(name).stem, ghz, cycles, sources)


def _number(where: str, key: str, unit: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise CostError(f"{where}: {key}: {value!r} is no number of {unit}: write one from 0 to 1e12")
    return float(value)
