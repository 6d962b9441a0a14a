"""What a node gets from elsewhere: defaults < kinds < groups < the node's own keys, as in containerlab.

A node names its kind and its group itself; else its group may name the kind, or its kind the group; else
`defaults` may name either.  A node without a kind has the kind `hypervisor` or `guest`.  Of two maps under
one key the entries are merged, one level deep; a list or a scalar replaces what was there.  From `defaults`,
kinds and groups a node takes the keys that it can have: `memory` in `defaults` concerns guests only.

Merging works on trees of marked nodes: what was inherited still knows where it was written.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from topologies.marks import Entry, Node
from topologies.schema import Guest, Hypervisor, keys_of


class Section(NamedTuple):
    """A section of nodes, the kind of those that name none, and the keys that they can have."""

    name: str
    kind: str
    keys: tuple[str, ...]


SECTIONS: Final = (
    Section("hypervisors", "hypervisor", keys_of(Hypervisor)),
    Section("guests", "guest", keys_of(Guest)),
)

# `hypervisors:` with nothing behind it is an empty section; so is a node, which then inherits everything.
OPTIONAL_SECTIONS: Final = ("hypervisors", "guests", "checks", "defaults", "kinds", "groups")
SECTIONS_OF_MAPS: Final = ("hypervisors", "guests", "kinds", "groups")


def resolve(root: Node) -> Node:
    """The topology with all nodes merged.  What is not as the schema wants it is passed on as it is."""
    tidied = _tidy(root)
    merged = dict(tidied.entries())
    for section in SECTIONS:
        entry = merged.get(section.name)
        if entry is not None and isinstance(entry.node.value, dict):
            nodes = {
                name: Entry(node.key, _merge_node(tidied, section, node.node))
                for name, node in entry.node.value.items()
            }
            merged[section.name] = Entry(entry.key, Node(nodes, entry.node.mark))
    return Node(merged, tidied.mark)


def _tidy(root: Node) -> Node:
    """The tree without empty sections, and with empty nodes as empty maps."""
    entries = {}
    for key, entry in root.entries().items():
        if key in OPTIONAL_SECTIONS and entry.node.value is None:
            continue
        if key in SECTIONS_OF_MAPS and isinstance(entry.node.value, dict):
            filled = {name: Entry(inner.key, _filled(inner.node)) for name, inner in entry.node.value.items()}
            entry = Entry(entry.key, Node(filled, entry.node.mark))
        entries[key] = entry
    return Node(entries, root.mark)


def _filled(node: Node) -> Node:
    return Node({}, node.mark) if node.value is None else node


def _merge_node(root: Node, section: Section, own: Node) -> Node:
    if not isinstance(own.value, dict):
        return own
    defaults = root.get("defaults")
    kind, group = kind_and_group(root, own)
    layers = (defaults, _named(root, "kinds", kind or section.kind), _named(root, "groups", group))
    merged: dict[str, Entry] = {}
    for layer in layers:
        if layer is not None:
            _overlay(merged, {key: entry for key, entry in layer.entries().items() if key in section.keys})
    _overlay(merged, own.value)
    return Node(merged, own.mark)


def kind_and_group(root: Node, own: Node) -> tuple[str | None, str | None]:
    """Names of the kind and the group of a node with the keys `own`; None where nobody names one."""
    defaults = root.get("defaults") or Node({}, root.mark)
    kind, group = own.text("kind"), own.text("group")
    if group is None:
        of_kind = _named(root, "kinds", kind)
        group = (of_kind and of_kind.text("group")) or defaults.text("group")
    if kind is None:
        of_group = _named(root, "groups", group)
        kind = (of_group and of_group.text("kind")) or defaults.text("kind")
    return kind, group


def _named(root: Node, section: str, name: str | None) -> Node | None:
    entries = root.get(section)
    return None if entries is None or name is None else entries.get(name)


def _overlay(below: dict[str, Entry], above: dict[str, Entry]) -> None:
    for key, entry in above.items():
        under = below.get(key)
        if under is not None and isinstance(under.node.value, dict) and isinstance(entry.node.value, dict):
            both = {**under.node.value, **entry.node.value}
            entry = Entry(entry.key, Node(both, entry.node.mark))
        below[key] = entry
