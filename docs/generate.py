"""Writes docs/tables.md from the code's tables.  `python docs/generate.py` writes it, `--check` compares.

Only documentation is generated from the code; what tests expect is written down a second time, from the specifications.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from broker import lifecycle, records
from guest_node.drivers import stream_table
from hmx import doors, memory, trap
from hv_node.argo import order
from hv_node.doors import tables
from hv_node.doors.personality import ANY
from topologies import exitcodes
from topologies.agent import phases

TARGET = Path(__file__).with_name("tables.md")


def cell(value: Any) -> str:
    """One cell: enum members by name, tuples joined, nothing as a dash."""
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple):
        return " ".join(cell(item) for item in value)
    return str(value).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def named(rows: Sequence[Any], *fields: str) -> str:
    """A table of the named fields of `rows`."""
    return table(
        [field.replace("_", " ") for field in fields],
        ([getattr(row, field) for field in fields] for row in rows),
    )


def selector(first: int, last: int) -> str:
    """A selector range for a reader."""
    if (first, last) == ANY:
        return "any"
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def sections() -> Iterable[tuple[str, str, str]]:
    """(title, where the table lives, Markdown)."""
    personality = (
        (
            row.instruction,
            selector(row.first, row.last),
            row.intercept,
            row.handler,
            row.otherwise,
            row.exits,
            row.source,
        )
        for row in tables.XEN_X86_64
    )
    yield (
        "Personality `xen`, x86_64",
        "hv_node/doors/tables.py",
        table(("instruction", "selector", "intercept", "handler", "otherwise", "exits", "source"), personality),
    )
    yield (
        "Machine `intel`",
        "hv_node/doors/tables.py",
        named(tables.INTEL, "instruction", "max_privilege", "denied", "native", "source"),
    )
    yield (
        "Register conventions of doors",
        "hmx/doors.py",
        named(doors.CONVENTIONS, "door", "arch", "kind", "width", "number", "arguments", "result", "source"),
    )
    yield "Declared cost of doors", "hmx/doors.py", named(doors.DOOR_COSTS, "door", "arch", "exits", "source")
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
        parts += [f"## {title}", f"`{where}`", text]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is as the code has it."""
    text = document()
    if "--check" not in arguments:
        TARGET.write_text(text)
        return 0
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    print(f"{TARGET.name} is not what the code's tables say: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
