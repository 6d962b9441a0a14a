"""resolve() against tests/golden/nesting.csv, which was written from the reference and the manuals alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hmx.trap import Arch, Kind
from hv_node.doors.composition import Resolution, resolve
from hv_node.doors.personality import Intercept, Otherwise, Personality, Row, Trap
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import PERSONALITIES, with_doors, with_nested_msr
from tests.golden import rows

ROWS = rows("nesting.csv")
KINDS = {"HLT": Kind.HLT_WFI, "WFI": Kind.HLT_WFI}
#: What a handler of the tables is called there: services, and what it answers to those it refuses.
SERVICES = {
    "hypercall": {"argo", "EPERM"},
    "viridian-call": {"argo", "viridian"},
    "kvm-call": {"argo", "hypercall", "patch", "EPERM", "ENOSYS"},
    "hyperv-call": {"hypercall"},
    "acrn-call": {"hypercall", "#GP"},
    "uxen-call": {"hypercall"},
    "jailhouse-call": {"hypercall"},
    "hypercall-page": {"hypercall page"},
    "hyperv-msr": {"hypercall page", "viridian"},
    "cpuid": {"own leaves", "NATIVE"},
    "ax-probe": {"presence"},
    "v4v-cpuid": {"v4v", "NATIVE"},
    "accept": {"own msr"},
    "vmware-port": {"backdoor"},
    "uxen-storage": {"storage bitmap"},
    "idle": {"halt", "idle"},
    "smccc": {"uid", "smccc", "psci", "firmware", "MINUS_ONE"},
    "door-msr": {"argo"},
}
OTHERWISE = {
    Otherwise.UD: {"#UD"}, Otherwise.GP: {"#GP"}, Otherwise.UNDEF: {"UNDEF"}, Otherwise.ALL_ONES: {"ALL_ONES"},
    Otherwise.IGNORE: {"IGNORE"}, Otherwise.MINUS_ONE: {"MINUS_ONE"}, Otherwise.NATIVE: {"NATIVE"},
}  # fmt: skip
_FLUSH = "no hypervisor here enables the TLB-flush enlightenment, and a call's number is not what a level looks at"
_KEEPS = "a parent with STEAL keeps what hangs on L1's intercepts, else a nested MSR door would be reached below it"
_IDLE = "the table of jailhouse traps HLT and WFI: what it costs a guest alone stays as it was"
#: The project does otherwise, by (cpu, L0, L1, instruction, selector, NEVER or STEAL): why.
DEPARTURES: dict[tuple[str, ...], str] = {
    ("intel", "kvm", "hyperv", "VMCALL", "0x2", ""): _FLUSH,
    ("amd", "kvm", "hyperv", "VMMCALL", "0x2", ""): _FLUSH,
    ("amd", "kvm", "xen", "WRMSR", "0x400000E0", "STEAL"): _KEEPS,
    ("amd", "kvm", "xen", "WRMSR", "0x40000000", "STEAL"): _KEEPS,
    ("intel", "kvm", "jailhouse", "HLT", "0x0", ""): _IDLE,
    ("amd", "kvm", "jailhouse", "HLT", "0x0", ""): _IDLE,
    ("armv8", "kvm", "jailhouse", "WFI", "0x0", ""): _IDLE,
}


def key(row: dict[str, str]) -> tuple[str, ...]:
    return (row["cpu"], row["l0"], row["l1"], row["instruction"], row["selector"], row["parent_intercept"])


def page(kind: Kind, where: int, handler: str) -> Row:
    """A page that a level's own tables lack (a register, a port that it asked for), and what serves it; without a
    handler, one that it passes through.
    """
    how = Intercept.ALWAYS if handler else Intercept.NEVER
    return Row(kind, where, where, how, handler, Otherwise.ALL_ONES, 1, "")


def place(row: dict[str, str], kind: Kind, where: int, tables: list[Personality]) -> None:
    """What a row says about this machine: at which levels a door, a page, a device is; and which of the processor's own
    registers and ports, which the tables lack, are served or passed through.
    """
    name, _, at = row["selector_name"].partition("@")
    levels = range(len(tables)) if at.startswith("both") else [int(at[1])] if at[:1] == "l" else []
    if name == "argo-door":
        for level in levels:
            tables[level] = with_doors(tables[level], ("msr",))
    elif name == "mmio":
        for level in range(levels[0], len(tables)):
            tables[level] = add(tables[level], page(kind, where, "mmio" if level == levels[0] else ""))
    elif name.startswith("ram"):
        missing = "missing at L0" in name
        for level in range(len(tables)):
            tables[level] = add(tables[level], page(kind, where, "fill" if missing and not level else ""))
    elif "intercepted by nobody" in name:
        tables[:] = [add(table, page(kind, where, "")) for table in tables]
    elif "open in the" in name:
        tables[1] = add(tables[1], page(kind, where, ""))
    elif row["expect"] in ("own msr", "lapic") and where not in range(0x4000_0000, 0x5000_0000):
        tables[:] = [add(table, page(kind, where, row["expect"])) for table in tables]


def add(table: Personality, row: Row) -> Personality:
    return table._replace(rows=(row, *table.rows))


def resolved(row: dict[str, str]) -> Resolution:
    arch = Arch.AARCH64 if row["cpu"] == "armv8" else Arch.X86_64
    tables = [PERSONALITIES[row[column], arch] for column in ("l0", "l1", "depth2") if row[column]]
    tables[0] = with_nested_msr(tables[0], row["parent_intercept"] or "default")
    kind = KINDS.get(row["instruction"]) or Kind[row["instruction"]]
    where = int(row["selector"], 0)
    place(row, kind, where, tables)
    if kind in (Kind.VMCALL, Kind.VMMCALL, Kind.HLT_WFI) or (kind in (Kind.HVC, Kind.SMC) and where >= 0x10000):
        where = 0  # a call's number, an SMCCC function: the selector is none, the immediate 0
    return resolve(Trap(kind, where, int(row["privilege"])), tables, CPUS[row["cpu"]])


def wrong(row: dict[str, str]) -> Iterator[str]:
    """What resolve() says otherwise."""
    found = resolved(row)
    wanted = -1 if row["expect_level"] == "cpu" else int(row["expect_level"])
    if found.level != wanted:
        yield f"level {found.level}"
    together = tuple(map(sum, zip(found.exits, found.resumes, strict=True)))
    for family, each in (("reflect", found.exits), ("exits", together)):
        if (*each, 0, 0)[:3] != tuple(int(row[f"{family}_l{level}"]) for level in range(3)):
            yield f"{family} {each}"
    words = SERVICES.get(found.handler, {found.handler}) if found.handler else OTHERWISE[found.otherwise]
    mapped = row["expect_kind"] == "native" and found.level < 0  # what memory and registers give is in no table
    if row["expect"] not in words and not mapped:
        yield f"{found.handler or found.otherwise.name}"


def names() -> list[str]:
    return [f"{at + 2}-" + "-".join(filter(None, key(row))) for at, row in enumerate(ROWS)]


@pytest.mark.parametrize("row", ROWS, ids=names())
def test_nesting(row: dict[str, str]) -> None:
    """Level, exits without and with entries, and the service or what is there instead."""
    found = list(wrong(row))
    if key(row) in DEPARTURES:
        assert found, "this departure is none any more"
        return
    assert not found, row


def test_the_reference_is_there() -> None:
    """At least 60 cells, every machine, three levels too; few departures, each of a row that exists."""
    assert len(ROWS) >= 60
    assert {row["cpu"] for row in ROWS} == {"intel", "amd", "armv8"}
    assert any(row["depth2"] for row in ROWS)
    assert set(DEPARTURES) <= {key(row) for row in ROWS} and len(DEPARTURES) < len(ROWS) // 10
