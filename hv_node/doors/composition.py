"""From the tables of hypervisors, one around the other, to the one that answers an instruction: pure, without state.

Exits are counted per level, L0 first:

* The hardware exits once, to the outermost hypervisor; each reflection is one exit more, at the level that it is
  reflected to.  So a trap that level k answers is one exit at each level from the outermost to k, and none further in.
  That is `Resolution.exits`, the exits of the trap itself.
* Level k then enters its guest again, and on the way in every level had to enter the next.  Below the outermost
  hypervisor those entries (VMRESUME, VMRUN, ERET) exit themselves: an entry by level m is a trap that level m - 1
  answers.  That is `Resolution.resumes`, counted apart; together level j has 2 ** (k - j) exits.
* A level that leaves the machine to others (bare metal, firmware) has no exits but those that it answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from hmx.trap import Kind
from hv_node.doors.nesting import Sees, extension_of, rules_of, sees
from hv_node.doors.personality import (
    ANY,
    Guests,
    Intercept,
    NestedMsr,
    Otherwise,
    Personality,
    Row,
    SiliconRow,
    Trap,
)

_MSRS: Final = frozenset({Kind.RDMSR, Kind.WRMSR})
_NO_PRIVILEGE: Final = 4  # no CPL or EL; nor is any number above, so they need no memory of their own


class Resolution(NamedTuple):
    """The level that answers (-1: the silicon), its handler or "", what happens otherwise, and exits per level, L0
    first.
    """

    level: int
    handler: str
    otherwise: Otherwise
    exits: tuple[int, ...]

    @property
    def resumes(self) -> tuple[int, ...]:
        """Further exits per level: by the entries of hypervisors further in, on the way there and back."""
        return _resumes(self.level, self.exits)


@cache
def _resumes(level: int, exits: tuple[int, ...]) -> tuple[int, ...]:
    if level < 0:
        return (0,) * len(exits)
    inside = [sum(map(bool, exits[at + 1 :])) for at in range(len(exits))]
    return tuple(exits[level] * (2**count - 1) if exits[at] else 0 for at, count in enumerate(inside))


def _row(table: Personality, trap: Trap) -> Row | None:
    for row in table.rows:
        if row.instruction == trap.instruction and row.first <= trap.selector <= row.last:
            return row
    return None


def _asks(row: Row | None) -> bool:
    return row is not None and row.intercept is not Intercept.NEVER


def _serves(row: Row | None) -> bool:
    """Whether the row is about more than what becomes of the rest."""
    return row is not None and _asks(row) and (bool(row.handler) or (row.first, row.last) != ANY)


def _lands(table: Personality) -> bool:
    """Whether exits of what runs further in come here first."""
    return table.guests is Guests.VIRTUAL


def _rows(trap: Trap, tables: Sequence[Personality]) -> list[Row | None]:
    """Each level's row.  There is one firmware, the machine's: it has no say further in than whoever is outermost."""
    outermost = next((at for at, table in enumerate(tables) if table.rows), 0)
    return [
        _row(table, trap) if _lands(table) or at == outermost else None for at, table in enumerate(tables)
    ]  # fmt: skip


def resolve(trap: Trap, tables: Sequence[Personality], cpu: Sequence[SiliconRow]) -> Resolution:
    """Who answers `trap` of a guest below `tables` (L0 first, the guest's own hypervisor last) on `cpu`.

    The silicon's privilege check comes first; who intercepts its exception gets beyond.  Then a level that steals
    answers before those further in.  A level that keeps or drops the MSR intercepts of those inside hides them.  Else
    the rule of the machine's extension says who does (hv_node/doors/nesting.py).
    """
    silicon = next((row for row in cpu if row.instruction == trap.instruction), None)
    if silicon is None:
        return _silicon(tables, Otherwise.UD)
    rule = sees(extension_of(cpu), trap.instruction, trap.selector)
    rows = _rows(trap, tables)
    is_msr = trap.instruction in _MSRS
    if trap.privilege not in silicon.privileges:
        rows = [row if row is not None and trap.privilege in row.privileges else None for row in rows]
        if not any(rows):
            return _silicon(tables, silicon.denied)
        rule = Sees.ONLY if rule is Sees.ONLY else Sees.ASKED  # an exception: by its bitmap
        is_msr = False
    for level, row in enumerate(rows):
        table = tables[level]
        policy = table.nested_msr if is_msr and _lands(table) else NestedMsr.KEEP
        if row is not None and (
            row.intercept is Intercept.STEAL or (policy is NestedMsr.STEAL and _serves(row))
        ):  # fmt: skip
            return _answer(tables, level, row.handler, row.otherwise, row.exits)
        if policy is not NestedMsr.KEEP and rule is Sees.ASKED:
            if policy is NestedMsr.STEAL and not _asks(row) and any(map(_asks, rows[level + 1 :])):
                return _answer(tables, level, "", silicon.native)
            rows = rows[: level + 1]
            break
    return _by_rule(tables, rows, rule, silicon.native)


def _by_rule(
    tables: Sequence[Personality], rows: Sequence[Row | None], rule: Sees, native: Otherwise
) -> Resolution:
    """Among the levels that have `rows`."""
    own = max((at for at in range(len(rows)) if _lands(tables[at])), default=-1)
    if rule is Sees.FIRST and own > 0 and not _asks(rows[own]) and any(map(_lands, tables[:own])):
        return _answer(tables, own, "", native)  # it sees the exit, and has no use for it
    for level, row in reversed(list(enumerate(rows))):
        if row is not None and _asks(row) and not (rule is Sees.ONLY and level < own):
            return _answer(tables, level, row.handler, row.otherwise, row.exits)
    return _silicon(tables, native)


def _silicon(tables: Sequence[Personality], otherwise: Otherwise) -> Resolution:
    return Resolution(-1, "", otherwise, (0,) * len(tables))


def _answer(
    tables: Sequence[Personality], level: int, handler: str, otherwise: Otherwise, exits: int = 1
) -> Resolution:
    """`level` answers: the hardware exits to the outermost, and each level on the way reflects."""
    counted = tuple(
        exits if at == level or (at < level and _lands(table)) else 0 for at, table in enumerate(tables)
    )  # fmt: skip
    return Resolution(level, handler, otherwise, counted)


class Composition:
    """`resolve` for given tables and machine, with what it found remembered by rows: each instruction's selectors fall
    into ranges within which every table and rule says the same.
    """

    __slots__ = ("_cpu", "_found", "_starts", "tables")

    def __init__(self, tables: Sequence[Personality], cpu: Sequence[SiliconRow]) -> None:
        self.tables = tuple(tables)
        self._cpu = cpu
        self._found: dict[tuple[int, int, int], Resolution] = {}
        extension = extension_of(cpu)
        self._starts = {}
        for kind in (row.instruction for row in cpu):
            ranges = [(row.first, row.last) for table in tables for row in table.rows if row.instruction == kind]
            ranges += [(row.first, row.last) for row in rules_of(extension, kind)]
            self._starts[int(kind)] = sorted({edge for first, last in ranges for edge in (first, last + 1)})

    def resolve(self, kind: int, selector: int, privilege: int) -> Resolution:
        """As `resolve` has it."""
        if privilege > _NO_PRIVILEGE:
            privilege = _NO_PRIVILEGE
        starts = self._starts.get(kind)
        key = (kind, bisect_right(starts, selector) if starts is not None else -1, privilege)
        found = self._found.get(key)
        if found is None:
            found = resolve(Trap(kind, selector, privilege), self.tables, self._cpu)
            if starts is not None:  # what no machine executes is not worth remembering, nor bounded
                self._found[key] = found
        return found
