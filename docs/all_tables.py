"""The sections of docs/tables.md: a table each, where people look things up."""

from __future__ import annotations

from collections.abc import Iterable

from broker import lifecycle, records
from docs import door_tables, interrupt_tables
from docs.render import named, table
from guest_node.drivers import stream_table
from hmx import memory, trap
from hv_node.argo import order
from hv_node.doors import silicon, tables
from topologies import exitcodes
from topologies.agent import phases


def sections() -> Iterable[tuple[str, str, str]]:
    """(title, where the table lives, Markdown)."""
    yield (
        "Personality `xen`, x86_64",
        "hv_node/doors/tables.py; every other one: [doors.md](doors.md#personalities)",
        door_tables.personality_rows(tables.PERSONALITIES["xen", trap.Arch.X86_64]),
    )
    yield (
        "Machine `intel`",
        "hv_node/doors/silicon.py; the others: [doors.md](doors.md#machines)",
        named(silicon.INTEL, "instruction", "privileges", "denied", "native", "source"),
    )
    yield "Register conventions of doors", "hmx/doors.py", door_tables.conventions()
    yield "Declared cost of doors", "hmx/doors.py", door_tables.costs()
    yield (
        "Ways to be notified",
        "hmx/notify.py; what they mean: [interrupts.md](interrupts.md#notification-modes)",
        interrupt_tables.modes(),
    )
    yield (
        "Trap frames: kinds, flags, outcomes",
        "hmx/trap.py",
        table(
            ("number", "kind", "flag", "outcome"),
            (
                (
                    number,
                    trap.Kind(number),
                    trap.FrameFlag(number).name if number in {1, 2, 4} else None,
                    trap.Outcome(number) if number <= len(trap.Outcome) else None,
                )
                for number in range(1, len(trap.Kind) + 1)
            ),
        ),
    )
    yield (
        "Page types",
        "hmx/memory.py",
        named(memory.PAGE_RULES, "page_type", "readable", "writable", "ring_error"),
    )
    yield (
        "Argo: every refusal, in order of precedence",
        "hv_node/argo/order.py",
        named(order.REFUSALS, "op", "rule", "errno", "source"),
    )
    yield (
        "Stream protocol",
        "guest_node/drivers/stream_table.py",
        table(
            ("machine", "state", "event", "new state", "actions", "error", "note"),
            (
                (row.machine, row.state, row.event, row.new_state, row.actions, row.error or None, row.note)
                for row in stream_table.ROWS
            ),
        ),
    )
    yield (
        "Control records of the broker",
        "broker/records.py",
        table(
            ("record", "direction", "fields", "after a restart of the broker", "from"),
            (
                (
                    row.name,
                    row.direction,
                    ", ".join(f"{field.name}: {field.type.expected}" for field in row.fields),
                    row.rejoin,
                    row.senders,
                )
                for row in records.VOCABULARY
            ),
        ),
    )
    yield (
        "A node's life as the broker sees it",
        "broker/lifecycle.py",
        table(("state", "stimulus", "result"), ((r.state, r.stimulus, r.result) for r in lifecycle.TRANSITIONS)),
    )
    yield (
        "A lab's phases",
        "topologies/agent/phases.py",
        table(
            ("phase", "of", "until", "within ms", "when late", "then"),
            ((r.phase, r.kind, r.until, r.within and r.within // 1_000_000, r.late, r.then) for r in phases.PHASES),
        ),
    )
    yield (
        "A node's states as the agent sees it",
        "topologies/agent/phases.py",
        named(phases.NODE_MOVES, "state", "event", "then"),
    )
    yield "Exit codes", "topologies/exitcodes.py", named(exitcodes.EXIT_CODES, "code", "name", "meaning")


def document() -> str:
    """The whole page."""
    parts = [
        "# Tables",
        "Generated from the code by `make docs`; do not edit. Tests read neither this page nor the tables behind it: "
        "they have their own, in `tests/golden`.",
    ]
    for title, where, text in sections():
        path, _, more = where.partition("; ")
        parts += [f"## {title}", f"`{path}`" + (f"; {more}" if more else ""), text]
    return "\n\n".join(parts) + "\n"
