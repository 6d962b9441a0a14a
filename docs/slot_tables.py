"""The tables of docs/addressing.md and docs/policy.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from docs.render import named, table
from hmx import slots as layouts
from hv_node.levels import delegation, policy, rules, slot_messages, slot_ops, slot_table, slots


def limits() -> str:
    """Bounds of the slots."""
    return table(
        ("what", "at most"),
        (
            ("slots in a guest's table", slot_table.MAX_SLOTS),
            ("slots that a guest has passed on and that are still held", delegation.MAX_DELEGATED),
            ("slots in a chain", slot_messages.MAX_CHAIN),
            ("reply rights that one slot gives", slot_table.MAX_RIGHTS),
            ("slots of one other hypervisor that give reply rights here", slot_table.MAX_FAR_SLOTS),
            ("ranges, and types, in one DELEGATE", f"{layouts.MAX_RANGES}, {layouts.MAX_TYPES}"),
            ("bytes of path and label in an answer", layouts.MAX_NAME),
        ),
    )


def operations() -> str:
    """The two operations."""
    return table(("operation", "number"), ((op.name, f"{op.value:#x}") for op in layouts.SlotOp))


ADDRESSING: Mapping[str, Callable[[], str]] = {
    "send-refusals": lambda: named(slots.REFUSALS, "rule", "errno", "source"),
    "slot-operations": operations,
    "delegate-refusals": lambda: named(delegation.DELEGATE_REFUSALS, "rule", "errno", "note"),
    "operation-refusals": lambda: named(slot_ops.REFUSALS, "op", "rule", "errno", "note"),
    "slot-limits": limits,
}
POLICY: Mapping[str, Callable[[], str]] = {
    "front-ends": lambda: named(rules.FRONT_ENDS, "name", "accept", "errno", "stateful", "source"),
    "permissions": lambda: named(policy.OPERATIONS, "name", "targeted", "errno", "source"),
}
