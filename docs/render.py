"""Markdown from rows of tables, and documents whose tables stand between markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from struct import Struct, calcsize
from typing import Any

from hmx.trap import Arch, X86Reg
from hv_node.doors.personality import ANY

MARKED = re.compile(r"(?m)^<!-- table: (?P<name>[\w-]+) -->\n(?:.*?\n)??<!-- end -->$", re.DOTALL)


def cell(value: Any) -> str:
    """One cell: enum members by name, tuples joined, nothing as a dash."""
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return value.name or str(value.value)
    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    if isinstance(value, tuple):
        return " ".join(cell(item) for item in value)
    return str(value).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def named(rows: Iterable[Any], *fields: str, hexadecimal: Sequence[str] = ()) -> str:
    """A table of the named fields of `rows`; those in `hexadecimal` as such."""

    def shown(row: Any, field: str) -> Any:
        value = getattr(row, field)
        return number(value) if field in hexadecimal else value

    head = [field.replace("_", " ") for field in fields]
    return table(head, ([shown(row, field) for field in fields] for row in rows))


def number(value: int | None) -> str | None:
    """A hexadecimal number, small ones plain."""
    if value is None:
        return None
    return f"{value:d}" if -10 < value < 10 else f"{value:#x}"


def selector(first: int, last: int) -> str:
    """A selector range for a reader."""
    if (first, last) == ANY:
        return "any"
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def register(arch: Arch, slot: int) -> str:
    """The name of a register by its slot in a trap frame."""
    return X86Reg(slot).name.lower() if arch is Arch.X86_64 else f"x{slot}"


def layout(structure: Struct, *names: str) -> str:
    """A structure's fields with byte offsets and sizes, names given in order."""
    codes = re.findall(r"\d*[a-zA-Z]", structure.format.lstrip("<"))
    parts = [code for code in codes for _ in range(1 if code.endswith(("x", "s")) else int(code[:-1] or 1))]
    single = [part if part.endswith(("x", "s")) else part[-1] for part in parts]
    offset, rows = 0, []
    for name, code in zip(names, single, strict=True):
        rows.append((offset, calcsize(f"<{code}"), name))
        offset += calcsize(f"<{code}")
    return table(("offset", "bytes", "field"), rows)


def bits(high: int, low: int) -> str:
    """Bit numbers as manuals write them."""
    return f"{high}" if high == low else f"{high}:{low}"


def fill(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """`text` with what stands between `<!-- table: NAME -->` and `<!-- end -->` as the code has it now.

    Raises KeyError for a name that no table has, ValueError for a marker without its end.
    """
    if len(MARKED.findall(text)) != text.count("<!-- table: "):
        raise ValueError("a table's marker has no end")

    def written(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- table: {name} -->\n\n{tables[name]()}\n\n<!-- end -->"

    return MARKED.sub(written, text)
