"""The tables of docs/uxen.md."""

from __future__ import annotations

from collections.abc import Callable

from docs.render import named, number, table
from guest_node.kernel.v4v import WAYS
from guest_node.programs.scsi import Opcode
from hmx.uxen_enum import CONSUMERS, ControlRegister, DeviceType
from hmx.uxen_platform import BARS
from hmx.v4v.abi import OPERATIONS
from hv_node.v4v.limits import LIMITS


def ways() -> str:
    """How guests of each hypervisor reach v4v."""
    words = ("selector", "number")
    return named(WAYS, "hypervisor", "kind", *words, "source", hexadecimal=words)


def operations() -> str:
    """The operations of v4v."""
    rows = (
        (
            number(int(row.op)), row.op.name, ", ".join(name or "unused" for name in row.arguments) or None,
            row.privileged, row.built, row.source,
        )
        for row in OPERATIONS
    )  # fmt: skip
    return table(("number", "operation", "arguments", "host only", "built in", "source"), rows)


def bars() -> str:
    """The BARs of the platform device."""
    rows = ((row.register.name, number(row.register), number(row.address), number(row.size), row.what) for row in BARS)
    return table(("bar", "configuration register", "address", "bytes", "what"), rows)


def registers() -> str:
    """The control registers."""
    return table(("offset", "register"), ((number(row.value), row.name) for row in ControlRegister))


TABLES: dict[str, Callable[[], str]] = {
    "v4v-ways": ways,
    "v4v-operations": operations,
    "v4v-limits": lambda: named(LIMITS, "op", "what", "most", "errno", "source"),
    "bitmap-consumers": lambda: named(CONSUMERS, "name", "bytes", "units", "source"),
    "platform-bars": bars,
    "platform-registers": registers,
    "device-types": lambda: table(("number", "device type"), ((row.value, row.name) for row in DeviceType)),
    "scsi-commands": lambda: table(("operation code", "command"), ((number(row.value), row.name) for row in Opcode)),
}
