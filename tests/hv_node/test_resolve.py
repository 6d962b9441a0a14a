"""resolve(): who answers a trap, for one hypervisor and for several (project personalities; Intel SDM 3C ch. 26)."""

from __future__ import annotations

import pytest

from hmx.trap import Arch, Kind
from hv_node.doors.composition import resolve
from hv_node.doors.personality import ANY, CPL, Intercept, Otherwise, Personality, Row, SiliconRow, Trap
from hv_node.doors.silicon import CPUS, INTEL
from hv_node.doors.tables import PERSONALITIES, XEN_X86_64

CPU = (
    SiliconRow(Kind.CPUID, CPL, Otherwise.NATIVE, Otherwise.NATIVE, "-"),
    SiliconRow(Kind.RDMSR, (0,), Otherwise.GP, Otherwise.GP, "-"),
)


def table(name: str, *rows: Row) -> Personality:
    return Personality(name, Arch.X86_64, "", rows)


def row(
    intercept: Intercept,
    handler: str,
    first: int = 0,
    last: int = ANY[1],
    kind: Kind = Kind.CPUID,
    exits: int = 1,
) -> Row:
    return Row(kind, first, last, intercept, handler, Otherwise.ZERO, exits, "-")


def test_the_silicon_judges_privilege_before_anybody_intercepts() -> None:
    """RDMSR at CPL 3 faults without an exit (Intel SDM 2B)."""
    xen = table("x", row(Intercept.ALWAYS, "msr", kind=Kind.RDMSR))
    assert resolve(Trap(Kind.RDMSR, 1, 3), (xen,), CPU) == (-1, "", Otherwise.GP, (0,))
    assert resolve(Trap(Kind.RDMSR, 1, 0), (xen,), CPU) == (0, "msr", Otherwise.ZERO, (1,))


def test_an_instruction_that_the_machine_lacks_is_undefined() -> None:
    """Whatever the hypervisors say."""
    assert (
        resolve(Trap(Kind.HVC, 0, 0), (table("x", row(Intercept.ALWAYS, "h", kind=Kind.HVC)),), CPU).otherwise
        is Otherwise.UD
    )


def test_the_first_row_whose_range_holds_the_selector_counts() -> None:
    """A specific row stands before the general one."""
    xen = table("x", row(Intercept.ALWAYS, "one", 5, 7), row(Intercept.ALWAYS, "any"))
    handlers = [resolve(Trap(Kind.CPUID, selector, 0), (xen,), CPU).handler for selector in (4, 5, 7, 8)]
    assert handlers == ["any", "one", "one", "any"]


def test_the_innermost_that_intercepts_answers_and_every_level_above_pays() -> None:
    """An exit of L2 passes L0 on its way to L1."""
    outer = table("outer", row(Intercept.ALWAYS, "outer", exits=2))
    inner = table("inner", row(Intercept.ALWAYS, "inner"))
    assert resolve(Trap(Kind.CPUID, 0, 0), (outer, inner), CPU) == (1, "inner", Otherwise.ZERO, (1, 1))
    assert resolve(Trap(Kind.CPUID, 0, 0), (outer, table("blind")), CPU) == (
        0,
        "outer",
        Otherwise.ZERO,
        (2, 0),
    )


def test_a_level_that_steals_answers_before_those_further_in() -> None:
    """An outer hypervisor that recognises a selector takes it; others pass."""
    thief = table("thief", row(Intercept.STEAL, "stolen", 5, 5), row(Intercept.ALWAYS, "own"))
    inner = table("inner", row(Intercept.ALWAYS, "inner"))
    assert resolve(Trap(Kind.CPUID, 5, 0), (thief, inner), CPU).level == 0
    assert resolve(Trap(Kind.CPUID, 6, 0), (thief, inner), CPU).level == 1


def test_never_means_never() -> None:
    """A row NEVER lets the instruction through, to the level above or to the silicon."""
    quiet = table("quiet", row(Intercept.NEVER, "x"))
    assert resolve(Trap(Kind.CPUID, 0, 0), (quiet,), CPU) == (-1, "", Otherwise.NATIVE, (0,))
    outer = table("outer", row(Intercept.ALWAYS, "outer"))
    assert resolve(Trap(Kind.CPUID, 0, 0), (outer, quiet), CPU).handler == "outer"


def test_without_hypervisors_the_silicon_is_alone() -> None:
    """Bare metal is the empty list."""
    assert resolve(Trap(Kind.CPUID, 0, 3), (), CPU) == (-1, "", Otherwise.NATIVE, ())


TOP = (1 << 64) - 1
#: What the `xen` personality on Intel does, written down from the manuals:
#: kind, selector, CPL -> handler or otherwise, exits.
EXPECTED = [
    (Kind.VMCALL, 0, 0, "hypercall", 1),
    (Kind.VMCALL, TOP, 3, "hypercall", 1),
    (Kind.CPUID, 0, 0, "cpuid", 1),
    (Kind.CPUID, TOP, 3, "cpuid", 1),
    (Kind.RDMSR, 0x4000_0000, 0, Otherwise.ZERO, 1),
    (Kind.RDMSR, 0x4000_0001, 0, Otherwise.GP, 1),
    (Kind.RDMSR, 0x3FFF_FFFF, 0, Otherwise.GP, 1),
    (Kind.RDMSR, 0, 0, Otherwise.GP, 1),
    (Kind.RDMSR, TOP, 0, Otherwise.GP, 1),
    (Kind.RDMSR, 0x10, 1, Otherwise.GP, 0),
    (Kind.WRMSR, 0x4000_0000, 0, "hypercall-page", 1),
    (Kind.WRMSR, 0x4000_0001, 0, Otherwise.GP, 1),
    (Kind.WRMSR, 0x3FFF_FFFF, 0, Otherwise.GP, 1),
    (Kind.WRMSR, 0, 0, Otherwise.GP, 1),
    (Kind.WRMSR, TOP, 0, Otherwise.GP, 1),
    (Kind.WRMSR, 0x4000_0000, 1, Otherwise.GP, 0),
    (Kind.IN, 0, 0, Otherwise.ALL_ONES, 1),
    (Kind.IN, TOP, 0, Otherwise.ALL_ONES, 1),
    (Kind.IN, 0x330, 1, Otherwise.GP, 0),
    (Kind.OUT, 0, 0, Otherwise.IGNORE, 1),
    (Kind.OUT, TOP, 0, Otherwise.IGNORE, 1),
    (Kind.OUT, 0x330, 1, Otherwise.GP, 0),
    (Kind.LOAD, 0, 3, Otherwise.ALL_ONES, 1),
    (Kind.LOAD, TOP, 0, Otherwise.ALL_ONES, 1),
    (Kind.STORE, 0, 3, Otherwise.IGNORE, 1),
    (Kind.STORE, TOP, 0, Otherwise.IGNORE, 1),
    (Kind.HLT_WFI, 0, 0, "idle", 1),
    (Kind.HLT_WFI, TOP, 0, "idle", 1),
    (Kind.HLT_WFI, 0, 1, Otherwise.GP, 0),
    (Kind.VMMCALL, 0, 0, Otherwise.UD, 0),
    (Kind.HVC, 0, 0, Otherwise.UD, 0),
    (Kind.SMC, 0, 0, Otherwise.UD, 0),
]


@pytest.mark.parametrize(("kind", "selector", "cpl", "what", "exits"), EXPECTED)
def test_xen_on_intel(kind: Kind, selector: int, cpl: int, what: str | Otherwise, exits: int) -> None:
    """Intel SDM 3C 26.1 and the instruction pages; Xen's HVM handlers."""
    found = resolve(Trap(kind, selector, cpl), (PERSONALITIES["xen", Arch.X86_64],), CPUS["intel"])
    assert (found.handler or found.otherwise) == what
    assert found.exits == (exits,)


#: How VMX comes to exit: whatever the hypervisor wishes, or because Xen's bitmaps ask for it; and what a guest would
#: see of a handler that is not there.
INTERCEPTS = [
    (Kind.VMCALL, 0, Intercept.ALWAYS, Otherwise.UD),
    (Kind.CPUID, 0, Intercept.ALWAYS, Otherwise.NATIVE),
    (Kind.RDMSR, 0x4000_0000, Intercept.ALWAYS, Otherwise.ZERO),
    (Kind.RDMSR, 0x10, Intercept.BITMAP, Otherwise.GP),
    (Kind.WRMSR, 0x4000_0000, Intercept.ALWAYS, Otherwise.GP),
    (Kind.WRMSR, 0x10, Intercept.BITMAP, Otherwise.GP),
    (Kind.IN, 0x330, Intercept.BITMAP, Otherwise.ALL_ONES),
    (Kind.OUT, 0x330, Intercept.BITMAP, Otherwise.IGNORE),
    (Kind.LOAD, 0, Intercept.ALWAYS, Otherwise.ALL_ONES),
    (Kind.STORE, 0, Intercept.ALWAYS, Otherwise.IGNORE),
    (Kind.HLT_WFI, 0, Intercept.ALWAYS, Otherwise.NATIVE),
]


@pytest.mark.parametrize(("kind", "selector", "intercept", "otherwise"), INTERCEPTS)
def test_how_xen_intercepts(kind: Kind, selector: int, intercept: Intercept, otherwise: Otherwise) -> None:
    """Intel SDM 3C 26.1.2 (unconditional exits) and 26.1.3 (by controls and bitmaps)."""
    found = next(r for r in XEN_X86_64 if r.instruction is kind and r.first <= selector <= r.last)
    assert (found.intercept, found.otherwise) == (intercept, otherwise)


#: What the silicon alone does, without any hypervisor.  A frame may claim a CPL that no processor has: it is denied.
NATIVE = [
    (Kind.VMCALL, 0, Otherwise.UD),
    (Kind.VMCALL, 3, Otherwise.UD),
    (Kind.CPUID, 0, Otherwise.NATIVE),
    (Kind.CPUID, 3, Otherwise.NATIVE),
    (Kind.RDMSR, 0, Otherwise.GP),
    (Kind.WRMSR, 0, Otherwise.GP),
    (Kind.IN, 0, Otherwise.ALL_ONES),
    (Kind.OUT, 0, Otherwise.IGNORE),
    (Kind.LOAD, 3, Otherwise.ALL_ONES),
    (Kind.STORE, 3, Otherwise.IGNORE),
    (Kind.HLT_WFI, 0, Otherwise.NATIVE),
    (Kind.RDMSR, 1, Otherwise.GP),
    (Kind.WRMSR, 1, Otherwise.GP),
    (Kind.IN, 1, Otherwise.GP),
    (Kind.OUT, 1, Otherwise.GP),
    (Kind.HLT_WFI, 1, Otherwise.GP),
    (Kind.CPUID, 4, Otherwise.UD),
    (Kind.LOAD, 4, Otherwise.GP),
    (Kind.STORE, 4, Otherwise.GP),
]


@pytest.mark.parametrize(("kind", "cpl", "what"), NATIVE)
def test_bare_intel(kind: Kind, cpl: int, what: Otherwise) -> None:
    """Intel SDM vol. 2, the instructions' exception lists."""
    assert resolve(Trap(kind, 0x330, cpl), (), INTEL).otherwise is what


@pytest.mark.parametrize("kind", [Kind.VMCALL, Kind.CPUID, Kind.LOAD, Kind.STORE])
def test_a_cpl_that_does_not_exist_reaches_nobody(kind: Kind) -> None:
    """Even an instruction that exits at any CPL needs one from 0 to 3."""
    xen = (PERSONALITIES["xen", Arch.X86_64],)
    assert resolve(Trap(kind, 0, 3), xen, INTEL).level == 0
    found = resolve(Trap(kind, 0, 4), xen, INTEL)
    assert found.level == -1 and found.otherwise in (Otherwise.UD, Otherwise.GP)


def test_a_vmcall_that_is_denied_is_undefined() -> None:
    """The one denial that a frame can ask for with VMCALL."""
    assert resolve(Trap(Kind.VMCALL, 0, 4), (), INTEL).otherwise is Otherwise.UD
    assert next(row for row in INTEL if row.instruction is Kind.VMCALL).denied is Otherwise.UD


def test_personalities_are_listed_under_their_own_names() -> None:
    """Key and table agree."""
    for (name, arch), personality in PERSONALITIES.items():
        assert (personality.name, personality.arch) == (name, arch)


def test_tables_have_no_rows_that_cannot_be_reached() -> None:
    """A general row in front of a specific one would hide it."""
    seen: list[Row] = []
    for line in XEN_X86_64:
        hidden = [
            s for s in seen if s.instruction == line.instruction and s.first <= line.first and line.last <= s.last
        ]
        assert not hidden, line
        seen.append(line)
