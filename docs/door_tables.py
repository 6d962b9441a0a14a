"""The tables of docs/doors.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from docs.examples import absent_doors, describe, sendv
from docs.render import named, number, register, selector, table
from guest_node.kernel.probe import Sign
from hmx import doors, hypervisors
from hmx.doors import CONVENTIONS, Convention
from hmx.notify import ModeFeature
from hmx.trap import Arch
from hv_node.doors.handlers import HANDLERS
from hv_node.doors.leaves import DOMID, LEAVES, VCPU, VENDORS
from hv_node.doors.personality import Personality
from hv_node.doors.silicon import CPUS
from hv_node.doors.smccc import FUNCTIONS
from hv_node.doors.tables import DOOR_INTERCEPT, NAMED, has_own_call, possible_doors

_ARCHES = (Arch.X86_64, Arch.AARCH64)


def numbers() -> str:
    """The numbers that are ours."""
    names = ("DOOR_CALL", "DOOR_SMCCC_HVC", "DOOR_SMCCC_SMC", "DOOR_MSR", "DOOR_PORT", "DESCRIBE", "DOOR_MAGIC")
    rows = [(name, number(getattr(doors, name))) for name in names]
    rows += [(f"MMIO_DOOR, {arch.name.lower()}", number(address)) for arch, address in doors.MMIO_DOOR.items()]
    return table(("name", "value"), [*rows, ("DOOR_REVISION", doors.DOOR_REVISION), ("DOOR_SIZE", doors.DOOR_SIZE)])


def _conventions(rows: Iterable[Convention]) -> str:
    head = ("door", "arch", "of", "bits", "instruction", "selector", "number in", "number", "cmd a1 a2 a3 a4", "result")
    return table(
        (*head, "source"),
        (
            (
                row.door, row.arch.name.lower(), row.speaks or "any", row.width, row.kind, number(row.selector),
                register(row.arch, row.number), number(row.call),
                tuple(register(row.arch, slot) for slot in row.arguments), register(row.arch, row.result), row.source,
            )
            for row in rows
        ),
    )  # fmt: skip


def conventions() -> str:
    """All of them, for docs/tables.md."""
    return _conventions(CONVENTIONS)


def our_conventions() -> str:
    """Doors that any hypervisor may offer."""
    return _conventions(row for row in CONVENTIONS if not row.speaks)


def their_conventions() -> str:
    """Argo by the call of a hypervisor."""
    return _conventions(row for row in CONVENTIONS if row.speaks)


def intercepts() -> str:
    """How a hypervisor comes to see a door of ours."""
    return table(("instruction", "intercept"), DOOR_INTERCEPT.items())


def features() -> str:
    """The bits of DESCRIBE."""
    rows = [(number(bit.value), bit.name) for bit in doors.DoorFeature]
    return table(("bit value", "feature"), rows + [(number(bit.value), f"mode {bit.name}") for bit in ModeFeature])


def costs() -> str:
    """Declared costs, in the order of preference."""
    order = {(door, arch): at for arch in _ARCHES for at, door in enumerate(doors.ranked(arch))}
    rows = sorted(doors.DOOR_COSTS, key=lambda row: (row.arch, order[row.door, row.arch]))
    return named(rows, "door", "arch", "closeness", "exits", "cycles", "source")


def call_instructions() -> str:
    """Vendors' call instructions."""
    return named(doors.CALL_INSTRUCTIONS, "cpu", "vendor", "kind", "source")


def signs() -> str:
    """What a probe tells apart."""
    return table(("sign", "shown as"), ((sign.name, sign.value) for sign in Sign))


def offers() -> str:
    """What each personality can offer, and by which of them its own call serves."""
    return table(
        ("personality", "arch", "doors", "its own call"),
        (
            (
                row.name, row.arch.name.lower(), possible_doors(row),
                tuple(door for door in doors.doors_of(row.arch) if has_own_call(row, door)),
            )
            for row in NAMED
        ),
    )  # fmt: skip


def personality_rows(row: Personality) -> str:
    """One personality."""
    if not row.rows:
        return "Nothing traps: the silicon answers."
    extra = [line.privileges for line in row.rows]
    head = ("instruction", "selector", "intercept", "handler", "otherwise", "exits", "also from", "source")
    return table(
        head,
        (
            (
                line.instruction, selector(line.first, line.last), line.intercept, line.handler, line.otherwise,
                line.exits, more, line.source,
            )
            for line, more in zip(row.rows, extra, strict=True)
        ),
    )  # fmt: skip


def personalities() -> str:
    """Every one under a heading of its own."""
    parts = []
    for row in NAMED:
        parts += [f"### `{row.name}` on {row.arch.name.lower()}", personality_rows(row)]
    return "\n\n".join(parts)


def machines() -> str:
    """Every machine under a heading of its own."""
    parts = []
    for name, rows in CPUS.items():
        parts += [f"### `{name}`", named(rows, "instruction", "privileges", "denied", "native", "source")]
    return "\n\n".join(parts)


def handlers() -> str:
    """What serves the rows, in the words of the code."""
    return table(
        ("handler", "what it does"),
        ((name, " ".join((inspect.getdoc(function) or "").split())) for name, function in HANDLERS.items()),
    )


def leaves() -> str:
    """CPUID leaves that personalities serve."""

    def shown(value: int) -> str | None:
        return {DOMID: "own domid", VCPU: "vCPU"}.get(value) or number(value)

    return table(
        ("personality", "leaf", "eax", "ebx", "ecx", "edx", "source"),
        ((row.personality, number(row.leaf), *map(shown, row[2:6]), row.source) for row in LEAVES),
    )


def vendors() -> str:
    """Leaf 0 of the machines."""
    return named(VENDORS, "cpu", "ebx", "ecx", "edx", "source", hexadecimal=("ebx", "ecx", "edx"))


def functions() -> str:
    """SMCCC functions that personalities serve."""
    names = ("function", "x0", "x1", "x2", "x3")
    return named(FUNCTIONS, "personality", *names, "source", hexadecimal=names)


def signatures() -> str:
    """CPUID signatures."""
    words = ("ebx", "ecx", "edx")
    rows = hypervisors.SIGNATURES
    spelled = [b"".join(getattr(row, word).to_bytes(4, "little") for word in words).rstrip(b"\0") for row in rows]
    return table(
        ("hypervisor", *words, "spells", "its call speaks", "source"),
        (
            (row.name, number(row.ebx), number(row.ecx), number(row.edx), text, row.abi, row.source)
            for row, text in zip(rows, spelled, strict=True)
        ),
    )


def uids() -> str:
    """SMCCC vendor UIDs."""
    words = ("w0", "w1", "w2", "w3")
    return named(hypervisors.UIDS, "name", *words, "abi", "source", hexadecimal=words)


def nodes() -> str:
    """Hypervisor nodes of a device tree."""
    return named(hypervisors.HYPERVISOR_NODES, "name", "compatible", "abi", "source")


def probe_numbers() -> str:
    """Leaves and functions that a probe asks for."""
    names = (
        "CPUID_FIRST", "CPUID_LAST", "CPUID_STEP", "CPUID_PRESENT", "AX_PROBE_LEAF", "AX_PROBE_RDX", "AX_V4V_LEAF",
        "WHPX_V4V_LEAF", "SMCCC_VERSION", "SMCCC_VENDOR_COUNT", "SMCCC_VENDOR_UID", "SMCCC_VENDOR_REVISION",
        "SMCCC_UNKNOWN",
    )  # fmt: skip
    return table(("name", "value"), ((name, number(getattr(hypervisors, name))) for name in names))


TABLES: dict[str, Callable[[], str]] = {
    "door-numbers": numbers,
    "our-conventions": our_conventions,
    "their-conventions": their_conventions,
    "intercepts": intercepts,
    "features": features,
    "costs": costs,
    "call-instructions": call_instructions,
    "signs": signs,
    "absent-doors-x86": lambda: absent_doors(Arch.X86_64),
    "absent-doors-arm": lambda: absent_doors(Arch.AARCH64),
    "offers": offers,
    "personalities": personalities,
    "machines": machines,
    "handlers": handlers,
    "leaves": leaves,
    "vendors": vendors,
    "functions": functions,
    "signatures": signatures,
    "uids": uids,
    "hypervisor-nodes": nodes,
    "probe-numbers": probe_numbers,
    "describe-x86": lambda: describe(Arch.X86_64),
    "describe-arm": lambda: describe(Arch.AARCH64),
    "sendv-x86": lambda: sendv(Arch.X86_64),
    "sendv-arm": lambda: sendv(Arch.AARCH64),
}
