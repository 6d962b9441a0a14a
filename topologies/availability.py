"""Which keys and values of the schema this version accepts.

The schema is complete from the start, so that files and editors do not change with every release; what no
code serves yet is refused by name rather than ignored.  Making a feature available is deleting or widening a
row here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from topologies.diagnose import Diagnostic, at, show
from topologies.marks import Location, Node, key_mark, select
from topologies.schema import keys_at, literals_at


class Later(NamedTuple):
    """A key that is not served in full.  `available`: the values that are; none: the key may not be written
    at all.
    """

    section: str
    key: str
    available: tuple[str, ...]


LATER: Final = (Later("guest", "devices.*.transport", ("virtio-argo",)),)


class Section(NamedTuple):
    """Where in the file the keys of a section may stand."""

    name: str
    pattern: str


SECTIONS: Final = (
    Section("guest", "defaults."),
    Section("guest", "kinds.*."),
    Section("guest", "groups.*."),
    Section("guest", "guests.*."),
)

NOT_YET: Final = "not yet available in this version"


def check(root: Node) -> Iterator[tuple[Location, Diagnostic]]:
    """What the topology `root` uses that is not available yet, with its location.

    Values that the schema does not know at all are left to the schema's own check.
    """
    for section in SECTIONS:
        for row in LATER:
            if row.section != section.name:
                continue
            for location, node in select(root, section.pattern + row.key):
                if not row.available:
                    yield location, at(key_mark(root, location), location, NOT_YET)
                elif node.value in literals_at(location) and node.value not in row.available:
                    message = f"{show(node.value)} is {NOT_YET}"
                    yield location, at(node.mark, location, message, choices=row.available)


def row_of(location: Location) -> Later | None:
    """The row that limits the key at `location`, None where the schema alone does."""
    for section in SECTIONS:
        for row in LATER:
            if row.section == section.name and _fits(location, section.pattern + row.key):
                return row
    return None


def offered_keys(location: Location) -> tuple[str, ...]:
    """The keys that may be written in the map at `location`."""
    rows = ((key, row_of((*location, key))) for key in keys_at(location))
    return tuple(key for key, row in rows if row is None or row.available)


def offered_values(location: Location) -> tuple[str, ...]:
    """The values that may be written at `location`, () where they are not a fixed list."""
    row = row_of(location)
    return literals_at(location) if row is None else row.available


def _fits(location: Location, pattern: str) -> bool:
    steps = pattern.split(".")
    return len(steps) == len(location) and all(
        wanted in ("*", step) for wanted, step in zip(steps, location, strict=True)
    )
