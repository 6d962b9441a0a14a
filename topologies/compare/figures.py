"""What a request costs, as counted: nothing here was timed.

Each figure is for one request, the difference of two runs of different length divided by the difference of their
lengths, so that what is done once (probing, negotiation) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Final

LEVELS: Final = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """Per request.  Exits are those of front end and back end together, by the level that takes them."""

    exits_l0: Fraction
    exits_l1: Fraction
    exits_l2: Fraction
    hypercalls: Fraction
    copied_by_hypervisor: Fraction
    copied_by_back_end: Fraction
    pages_mapped: Fraction
    pages_unmapped: Fraction
    interrupts: Fraction
    doorbells: Fraction
    round_trips: Fraction


NAMES: Final = tuple(field.name for field in fields(Figures))

COALESCE: Final = frozenset({"interrupts", "hypercalls", "exits_l0", "exits_l1", "exits_l2", "round_trips"})
"""What depends on who is awake: a run in processes may differ there from one in virtual time.  Round trips are among
it, since an interrupt that coalesces with another one saves the accesses that would have acknowledged it.
"""


def per_request(short: Mapping[str, int], long: Mapping[str, int], requests: int) -> Figures:
    """The figures from the counters of two runs, the long one with `requests` more than the short one."""
    if requests <= 0:
        raise ValueError(f"{requests} requests more: the second run is to be longer")
    return Figures(*(Fraction(long.get(name, 0) - short.get(name, 0), requests) for name in NAMES))


def shown(value: Fraction) -> str:
    """A figure for a table: whole where it is whole, else two decimals."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"


def widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column is."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
