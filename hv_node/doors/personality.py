"""Who intercepts what: hypervisor personalities as tables, and the pure function that composes them.

A personality is a frozen table per (name, architecture).  Each row says for one instruction and one range of selectors
(CPUID leaf, MSR, port, ...) whether the hypervisor intercepts it, which handler serves it, and what the guest sees when
nobody does.  The machine below the outermost hypervisor has a table of its own: what the silicon checks before anything
can be intercepted, and what it does when nothing is.

Sources are cited per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

from hmx.trap import Arch, Kind


class Intercept(Enum):
    """How a hypervisor comes to see an instruction."""

    ALWAYS = auto()  # the hardware exits whatever the hypervisor wishes, or the hypervisor always asks for it
    BITMAP = auto()  # by a bitmap that the hypervisor keeps
    STEAL = auto()  # taken before a hypervisor further in sees it
    NEVER = auto()  # not intercepted


class Otherwise(Enum):
    """What the guest sees when no handler serves the instruction."""

    UD = auto()
    GP = auto()
    ALL_ONES = auto()
    ZERO = auto()
    NATIVE = auto()
    IGNORE = auto()
    ENOSYS = auto()
    MINUS_ONE = auto()
    UNDEF = auto()


class Row(NamedTuple):
    """One row of a personality.  `first`..`last` bound the selector, inclusive; `handler` "" means none.

    `privileges`, where given, are those from which the hypervisor takes the instruction although the silicon refuses
    it: it intercepts the exception and emulates.
    """

    instruction: Kind
    first: int
    last: int
    intercept: Intercept
    handler: str
    otherwise: Otherwise
    exits: int
    source: str
    privileges: tuple[int, ...] = ()


class SiliconRow(NamedTuple):
    """One row of a cpu: from which CPLs or ELs an instruction may be executed at all, what happens from the others,
    and what it does when nobody intercepts it.
    """

    instruction: Kind
    privileges: tuple[int, ...]
    denied: Otherwise
    native: Otherwise
    source: str


class Personality(NamedTuple):
    """A hypervisor's table.  `abi` names the convention of its own call instruction, "" where Argo has none there."""

    name: str
    arch: Arch
    abi: str
    rows: tuple[Row, ...]


class Trap(NamedTuple):
    """What the composition looks at: the instruction, its selector and the privilege (CPL or EL) it ran at."""

    instruction: int
    selector: int
    privilege: int


class Resolution(NamedTuple):
    """The level that answers (-1: the silicon), its handler or "", what happens otherwise, and exits per level, L0
    first.
    """

    level: int
    handler: str
    otherwise: Otherwise
    exits: tuple[int, ...]


ANY: Final = (0, (1 << 64) - 1)
CPL: Final = (0, 1, 2, 3)  # every privilege level of x86
KERNEL: Final = (0,)
EL0_EL1: Final = (0, 1)
EL1: Final = (1,)
NOWHERE: Final = ()


def _row(table: Personality, trap: Trap) -> Row | None:
    for row in table.rows:
        if row.instruction == trap.instruction and row.first <= trap.selector <= row.last:
            return row
    return None


def resolve(trap: Trap, tables: Sequence[Personality], cpu: Sequence[SiliconRow]) -> Resolution:
    """Who answers `trap` of a guest below `tables` (L0 first, the guest's own hypervisor last) on `cpu`.

    Pure: no state, no clock.  The silicon's privilege check comes first.  Then a level that steals answers before those
    further in; then the guest's own hypervisor and outwards, as far as each lets the instruction through.
    """
    none = (0,) * len(tables)
    silicon = next((row for row in cpu if row.instruction == trap.instruction), None)
    if silicon is None:
        return Resolution(-1, "", Otherwise.UD, none)
    rows = [_row(table, trap) for table in tables]
    if trap.privilege not in silicon.privileges and not any(row and trap.privilege in row.privileges for row in rows):
        return Resolution(-1, "", silicon.denied, none)
    inward = [level for level, row in enumerate(rows) if row is not None and row.intercept is Intercept.STEAL]
    outward = reversed(
        [level for level, row in enumerate(rows) if row is not None and row.intercept is not Intercept.STEAL]
    )
    for level in (*inward, *outward):
        row = rows[level]
        if row is None or row.intercept is Intercept.NEVER:
            continue
        exits = tuple(row.exits if at <= level else 0 for at in range(len(tables)))
        return Resolution(level, row.handler, row.otherwise, exits)
    return Resolution(-1, "", silicon.native, none)
