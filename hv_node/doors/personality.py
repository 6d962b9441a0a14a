"""Who intercepts what: the vocabulary of the tables of hypervisors and machines.

A personality is a frozen table per (name, architecture).  Each row says for one instruction and one range of selectors
(CPUID leaf, MSR, port, ...) whether the hypervisor intercepts it, which handler serves it, and what the guest sees when
nobody does.  The machine below the outermost hypervisor has a table of its own: what the silicon checks before anything
can be intercepted, and what it does when nothing is.  What follows from several of them, one around the other, is in
hv_node/doors/composition.py.

Sources are cited per row.
"""

from __future__ import annotations

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


class Guests(Enum):
    """What a guest of this hypervisor has, if it is a hypervisor itself, to run its own guests on.

    VIRTUAL: an extension of this one's making, so exits of its guests land here and are reflected.  MACHINE: the
    machine's own, since this one traps nothing, or is the machine's firmware.
    """

    VIRTUAL = auto()
    MACHINE = auto()


class NestedMsr(Enum):
    """What a hypervisor does with the MSR intercepts of hypervisors on it.

    KEEP: they hold, as the architecture has it.  STEAL: it keeps those exits for itself, and what it serves itself it
    takes before they see it.  NEVER: it drops them, and what it asks for itself remains.
    """

    KEEP = auto()
    STEAL = auto()
    NEVER = auto()


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
    """A hypervisor's table.  `abi` names the convention of its own call instruction, "" where Argo has none there.

    `guests` and `nested_msr` say what it is to hypervisors on it.
    """

    name: str
    arch: Arch
    abi: str
    rows: tuple[Row, ...]
    guests: Guests = Guests.VIRTUAL
    nested_msr: NestedMsr = NestedMsr.KEEP


class Trap(NamedTuple):
    """What the composition looks at: the instruction, its selector and the privilege (CPL or EL) it ran at."""

    instruction: int
    selector: int
    privilege: int


ANY: Final = (0, (1 << 64) - 1)
CPL: Final = (0, 1, 2, 3)  # every privilege level of x86
KERNEL: Final = (0,)
EL0_EL1: Final = (0, 1)
EL1: Final = (1,)
NOWHERE: Final = ()
