"""YAML values that remember where they were written.

The loader builds a tree of :class:`Node`; merging builds new trees out of the same nodes, so whatever ends
up in a topology still knows the file, line and column of the text that put it there.  Lines and columns
count from 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None
Location = tuple[str | int, ...]  # the way from the root to a value: keys and list indexes

_PLAIN_KEY = re.compile(r"[\w-]+", re.ASCII)


class Mark(NamedTuple):
    """A position in a file; line 0 stands for the file as a whole."""

    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value and the position of its first character."""

    value: Scalar | tuple[Node, ...] | dict[str, Entry]
    mark: Mark

    def entries(self) -> dict[str, Entry]:
        """The entries of a map; of anything else, none."""
        return self.value if isinstance(self.value, dict) else {}

    def items(self) -> tuple[Node, ...]:
        """The items of a list; of anything else, none."""
        return self.value if isinstance(self.value, tuple) else ()

    def get(self, key: str) -> Node | None:
        """The value under `key`, None where this is no map or has no such key."""
        entry = self.entries().get(key)
        return None if entry is None else entry.node

    def text(self, key: str) -> str | None:
        """The text under `key`, None where there is none or it is no text."""
        node = self.get(key)
        return node.value if node is not None and isinstance(node.value, str) else None


class Entry(NamedTuple):
    """One entry of a map: where its key stands, and its value."""

    key: Mark
    node: Node


def plain(node: Node) -> Any:
    """The tree without its marks: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(entry.node) for key, entry in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    return node.value


def find(root: Node, location: Location) -> Node | None:
    """The node at `location`, None where the tree has none."""
    node: Node | None = root
    for step in location:
        if node is None:
            return None
        if isinstance(step, int):
            items = node.items()
            node = items[step] if 0 <= step < len(items) else None
        else:
            node = node.get(step)
    return node


def key_mark(root: Node, location: Location) -> Mark:
    """Where the key (or the list item) at `location` stands; where there is none, its nearest ancestor's."""
    mark, node = root.mark, root
    for step in location:
        if isinstance(step, int):
            if not 0 <= step < len(node.items()):
                return mark
            node = node.items()[step]
            mark = node.mark
        else:
            entry = node.entries().get(step)
            if entry is None:
                return mark
            mark, node = entry
    return mark


def select(root: Node, pattern: str) -> Iterator[tuple[Location, Node]]:
    """All values that `pattern` names: keys joined by dots, `*` for every key of a map or item of a list."""
    found: list[tuple[Location, Node]] = [((), root)]
    for step in pattern.split("."):
        inner: list[tuple[Location, Node]] = []
        for location, node in found:
            if step == "*":
                inner.extend(((*location, key), entry.node) for key, entry in node.entries().items())
                inner.extend(((*location, index), item) for index, item in enumerate(node.items()))
            elif step in node.entries():
                inner.append(((*location, step), node.entries()[step].node))
        found = inner
    yield from found


def walk(node: Node, location: Location = ()) -> Iterator[tuple[Location, Node]]:
    """`node` and all values below it, each with its location."""
    yield location, node
    for key, entry in node.entries().items():
        yield from walk(entry.node, (*location, key))
    for index, item in enumerate(node.items()):
        yield from walk(item, (*location, index))


def render(location: Location) -> str:
    """A location as people read it: `guests.app.on`, `checks[0].guest`; unusual keys stand in quotes."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _PLAIN_KEY.fullmatch(step) else json.dumps(step))
    return text
