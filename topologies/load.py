"""From a file to a checked topology: read, merge, check, and report everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from topologies import yaml12
from topologies.crosscheck import Found, crosscheck
from topologies.diagnose import EmptyTopology, TopologyError, at, describe
from topologies.marks import Location, Mark, Node, plain
from topologies.merge import resolve
from topologies.schema import Topology, field_at
from topologies.translate import translate

# Reported with their own path rather than with that of a node which inherits from them.
_SOURCES: Final = ("defaults", "kinds", "groups")


def load(path: str) -> Topology:
    """The topology in the file at `path` (`-`: standard input), merged and checked.

    Raises:
        TopologyError: with every error found; `exit_code` says what the command returns.
        EmptyTopology: sound, but without a single hypervisor or guest.
    """
    return parse(yaml12.load_file(path), yaml12.shown_name(path))


def loads(text: str, file: str = "<text>") -> Topology:
    """`load` for text that is at hand; `file` is what diagnostics call it."""
    return parse(yaml12.load_text(text, file), file)


def parse(root: Node | None, file: str) -> Topology:
    """`load` for a tree that has been read from `file`."""
    if root is None:
        hint = "a topology starts with `name: NAME`; `argosy schema` lists the keys"
        raise TopologyError([at(Mark(file, 0, 0), (), "holds no topology: it is empty", hint=hint)])
    if not isinstance(root.value, dict):
        hint = "a topology starts with `name: NAME`; `argosy schema` lists the keys"
        raise TopologyError([at(root.mark, (), f"a topology is a map, not {describe(plain(root))}", hint=hint)])
    tree = resolve(root)
    found: list[Found] = []
    topology: Topology | None = None
    try:
        topology = Topology.model_validate(plain(tree))
    except ValidationError as error:
        found += translate(tree, error)
    found += crosscheck(tree)
    if found or topology is None:
        found.sort(key=lambda one: one[0][:1] not in [(source,) for source in _SOURCES])
        raise TopologyError(diagnostic for _, diagnostic in found)
    if topology.is_empty():
        hint = "add hypervisors and guests"
        raise EmptyTopology([at(root.mark, (), "the topology has neither hypervisors nor guests", hint=hint)])
    return topology


def resolved(topology: Topology) -> dict[str, object]:
    """The merged topology as plain data with YAML's keys; read again it gives the same topology.

    Nothing that has been merged already is in it.
    """
    data: dict[str, dict[str, Any]] = topology.model_dump(mode="json", by_alias=True)
    for keys in data["guests"].values():
        if (home := topology.hypervisors.get(keys["on"])) is not None and home.arch != "x86_64":
            del keys["apic"]  # there it may not be written
    return _without_merged(data, ())


def _without_merged(data: Mapping[str, object], location: Location) -> dict[str, object]:
    kept: dict[str, object] = {}
    for key, value in data.items():
        place = (*location, key)
        merged = key in ("kind", "group") if len(place) == 3 else place[0] in _SOURCES
        unwritten = value in ("", None) and field_at(place) is not None  # "" is the name of nothing
        if merged or unwritten:
            continue
        kept[key] = _kept(value, place)
    return kept


def _kept(value: object, place: Location) -> object:
    if isinstance(value, dict):
        return _without_merged(value, place)
    if isinstance(value, list):
        return [_kept(item, (*place, index)) for index, item in enumerate(value)]
    return value
