"""The tables of docs/nesting.md."""

from __future__ import annotations

from collections.abc import Callable

from docs.render import named, selector, table
from hmx.doors import CALL_INSTRUCTIONS, convention, doors_of
from hmx.trap import Arch, Kind
from hv_node.doors.composition import Resolution, resolve
from hv_node.doors.nesting import EXTENSIONS, RULES
from hv_node.doors.personality import Guests, NestedMsr, Otherwise, Personality, Trap
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import DOOR, NAMED, PERSONALITIES, has_own_call, possible_doors, with_doors

#: The machines, and the handlers behind which Argo is, if it is offered by the hypervisor's own call.
ARCH_OF = {"intel": Arch.X86_64, "amd": Arch.X86_64, "armv8": Arch.AARCH64}
OWN_CALLS = {
    "hypercall", "viridian-call", "kvm-call", "hyperv-call", "acrn-call", "uxen-call", "jailhouse-call",
}  # fmt: skip
SHOWN = {
    Otherwise.UD: "#UD", Otherwise.GP: "#GP", Otherwise.ALL_ONES: "ones", Otherwise.ZERO: "zero",
    Otherwise.NATIVE: "the silicon", Otherwise.IGNORE: "ignored", Otherwise.ENOSYS: "-ENOSYS",
    Otherwise.MINUS_ONE: "-1", Otherwise.UNDEF: "UNDEF",
}  # fmt: skip


def extensions() -> str:
    """What machines have."""
    return named(EXTENSIONS, "name", "call", "entry", "source")


def rules() -> str:
    """Who sees what."""
    return table(
        ("extension", "instruction", "selector", "seen by", "source"),
        ((row.extension, row.instruction, selector(row.first, row.last), row.sees, row.source) for row in RULES),
    )


def personalities() -> str:
    """What a personality is to hypervisors on it."""
    return table(
        ("personality", "arch", "guests", "nested MSRs"),
        ((row.name, row.arch.name.lower(), row.guests, row.nested_msr) for row in NAMED),
    )


def exits() -> str:
    """Exits of a trap under four KVMs, by the level that answers; per level: of the trap + by entries."""
    one = PERSONALITIES["kvm", Arch.X86_64]
    rows = []
    for depth in range(1, 5):
        found = resolve(Trap(Kind.CPUID, 0, 0), (one,) * depth, CPUS["intel"])
        each = zip(found.exits, found.resumes, strict=True)
        cells = [f"{count} + {more}" for count, more in each]
        rows.append((f"L{found.level}", *cells, *("-",) * (4 - depth)))
    return table(("answers", "L0", "L1", "L2", "L3"), rows)


def knock(door: str, tables: tuple[Personality, ...], cpu: str) -> Resolution:
    """What becomes of an Argo call by `door` of a guest below `tables`, by the convention of the innermost."""
    arch = ARCH_OF[cpu]
    innermost = next((row for row in reversed(tables) if row.rows and row.guests is Guests.VIRTUAL), tables[-1])
    speaks = innermost.abi if has_own_call(innermost, door) else ""
    if door == "hypercall":
        kind, where = next(row.kind for row in CALL_INSTRUCTIONS if row.cpu == cpu), 0
    else:
        row = convention(door, arch, speaks=speaks)
        kind, where = row.kind, row.selector
    return resolve(Trap(kind, where, 1 if arch is Arch.AARCH64 else 0), tables, CPUS[cpu])


def end(found: Resolution, tables: tuple[Personality, ...]) -> str:
    """Where a call by a door ends, in a cell: the level whose Argo it reaches and exits per level, or what happens."""
    if found.level >= 0:
        own = found.handler in OWN_CALLS and tables[found.level].abi
        if own or found.handler.startswith(DOOR):
            return f"L{found.level} ({' '.join(map(str, found.exits))})"
        if found.handler:
            return f"no: {found.handler}"
    return f"no: {SHOWN[found.otherwise]}"


def offering(row: Personality, nested_msr: NestedMsr = NestedMsr.KEEP, stolen: tuple[str, ...] = ()) -> Personality:
    """A hypervisor with every door that it can have."""
    return with_doors(row, possible_doors(row), stolen)._replace(nested_msr=nested_msr)


def pairs(cpu: str) -> str:
    """Every pair of personalities on one machine."""
    arch = ARCH_OF[cpu]
    doors = doors_of(arch)
    extra = ("msr, L0 drops",) if "msr" in doors else ()
    rows = []
    for outer in (row for row in NAMED if row.arch is arch):
        for inner in (row for row in NAMED if row.arch is arch):
            tables = (offering(outer), offering(inner))
            cells = [end(knock(door, tables, cpu), tables) for door in doors]
            if extra:
                dropping = (offering(outer, NestedMsr.NEVER), offering(inner))
                cells.append(end(knock("msr", dropping, cpu), dropping))
            rows.append((outer.name, inner.name, *cells))
    return table(("L0", "L1", *doors, *extra), rows)


def stealing() -> str:
    """The same where L0 steals every door of ours that it offers: KVM in KVM."""
    doors = list(dict.fromkeys(door for arch in ARCH_OF.values() for door in doors_of(arch)))
    rows = []
    for cpu, arch in ARCH_OF.items():
        kvm = PERSONALITIES["kvm", arch]
        tables = (offering(kvm, stolen=doors_of(arch)), offering(kvm))
        ends = [end(knock(door, tables, cpu), tables) if door in doors_of(arch) else None for door in doors]
        rows.append((cpu, *ends))
    return table(("machine", *doors), rows)


TABLES: dict[str, Callable[[], str]] = {
    "extensions": extensions,
    "rules": rules,
    "nested-personalities": personalities,
    "exits": exits,
    "pairs-intel": lambda: pairs("intel"),
    "pairs-amd": lambda: pairs("amd"),
    "pairs-armv8": lambda: pairs("armv8"),
    "stealing": stealing,
}
