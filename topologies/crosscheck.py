"""What the schema alone cannot see: names that refer to something else in the file, and rules between keys.

Works on the merged tree and takes nothing for granted about it, so that these errors are reported together
with the schema's, whatever else is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from topologies.devicecheck import devices
from topologies.diagnose import Diagnostic, at, show
from topologies.doorcheck import machines
from topologies.levelcheck import are_connected, levels
from topologies.marks import Entry, Location, Mark, Node, key_mark, select, walk
from topologies.merge import SECTIONS
from topologies.programs import ProgramError, builtin_names, builtin_of, check_program, nearest_builtin
from topologies.translate import missing

Found = tuple[Location, Diagnostic]


class Reference(NamedTuple):
    """The text at `pattern` names an entry of `section`, which is called a `noun`; or one of `also`, by other rules."""

    pattern: str
    section: str
    noun: str
    also: str = ""


REFERENCES: Final = (
    Reference("defaults.on", "hypervisors", "hypervisor"),
    Reference("kinds.*.on", "hypervisors", "hypervisor"),
    Reference("groups.*.on", "hypervisors", "hypervisor"),
    Reference("guests.*.on", "hypervisors", "hypervisor"),
    Reference("checks.*.guest", "guests", "guest"),
    Reference("hypervisors.*.parent", "hypervisors", "hypervisor"),
    Reference("hypervisors.*.host", "hosts", "host"),
    Reference("guests.*.host", "hosts", "host"),
    Reference("links.*.between.*", "hypervisors", "hypervisor", "guests"),
    Reference("defaults.kind", "kinds", "kind"),
    Reference("groups.*.kind", "kinds", "kind"),
    Reference("hypervisors.*.kind", "kinds", "kind"),
    Reference("guests.*.kind", "kinds", "kind"),
    Reference("defaults.group", "groups", "group"),
    Reference("kinds.*.group", "groups", "group"),
    Reference("hypervisors.*.group", "groups", "group"),
    Reference("guests.*.group", "groups", "group"),
)


class Required(NamedTuple):
    """After merging, every entry that `pattern` selects has this key."""

    pattern: str
    key: str


REQUIRED: Final = (Required("guests.*", "on"), Required("guests.*", "program"))


class Reserved(NamedTuple):
    """A name that nothing in `section` can have, and who has it."""

    section: str
    name: str
    owner: str


RESERVED: Final = (
    Reserved("hypervisors", "broker", "the lab's broker"),
    Reserved("hypervisors", "agent", "the lab's agent"),
    Reserved("guests", "broker", "the lab's broker"),
    Reserved("guests", "agent", "the lab's agent"),
)
# Beside the labs' run directories lies the directory of this name, which holds their sockets.
RESERVED_LAB: Final = "s"


def crosscheck(root: Node) -> Iterator[Found]:
    """All that is wrong between the parts of the merged topology `root`, each with its location."""
    yield from names(root)
    yield from required(root)
    yield from references(root)
    yield from programs(root)
    yield from arguments(root)
    yield from peers(root)
    yield from machines(root)
    yield from levels(root)
    yield from devices(root)
    yield from numbers(root)
    yield from checks(root)


def names(root: Node) -> Iterator[Found]:
    """Names that are taken: by the fabric itself, or by a node of the other kind."""
    lab = root.get("name")
    if lab is not None and lab.value == RESERVED_LAB:
        hint = "choose another name"
        yield (
            ("name",),
            at(lab.mark, ("name",), f"{show(RESERVED_LAB)} is the name of the socket directory", hint=hint),
        )
    for row in RESERVED:
        location = (row.section, row.name)
        if row.name in _section(root, row.section):
            message = f"{show(row.name)} is the name of {row.owner}"
            yield location, at(key_mark(root, location), location, message, hint="choose another name")
    hypervisors, guests = _section(root, "hypervisors"), _section(root, "guests")
    for name, entry in guests.items():
        if name in hypervisors:
            first = hypervisors[name].key
            message = f"the name {show(name)} is taken by the hypervisor at {first.line}:{first.column}"
            yield (
                ("guests", name),
                at(entry.key, ("guests", name), message, hint="all nodes of a lab have different names"),
            )


def required(root: Node) -> Iterator[Found]:
    """Keys that a node must have from somewhere."""
    if _homeless(root):
        count = len(_section(root, "guests"))
        message = f"{count} guest{'s' if count > 1 else ''} and no hypervisor to run on"
        place = key_mark(root, ("guests",))
        yield ("guests",), at(place, ("guests",), message, hint="add hypervisors: {hv0: {}}")
    for row in REQUIRED:
        for location, node in select(root, row.pattern):
            if isinstance(node.value, dict) and row.key not in node.value:
                if row.key == "on":
                    if _homeless(root):
                        continue
                    choices = tuple(_section(root, "hypervisors"))
                else:
                    choices = builtin_names()
                yield (*location, row.key), missing(root, (*location, row.key), choices)


def references(root: Node) -> Iterator[Found]:
    """Names of things that are not in the topology."""
    kinds = tuple(section.kind for section in SECTIONS)
    for row in REFERENCES:
        target = root.get(row.section)
        if target is not None and not isinstance(target.value, dict):
            continue  # the schema has refused the section
        choices = (*_section(root, row.section), *(kinds if row.section == "kinds" else ()))
        for location, node in select(root, row.pattern):
            if not isinstance(node.value, str) or node.value in choices:
                continue
            if row.also and node.value in _section(root, row.also):
                continue
            if location[-1] == "on" and _homeless(root):
                continue
            yield location, _unknown(root, location, node, row.noun, choices)


def programs(root: Node) -> Iterator[Found]:
    """Programs that do not exist."""
    for pattern in ("defaults.program", "kinds.*.program", "groups.*.program", "guests.*.program"):
        for location, node in select(root, pattern):
            if not isinstance(node.value, str):
                continue
            try:
                check_program(node.value)
            except ProgramError as error:
                message = f"{show(node.value)} {error.message}"
                choices = (*builtin_names(), "module:function")
                yield (
                    location,
                    at(
                        node.mark,
                        location,
                        message,
                        choices=choices,
                        suggestion=nearest_builtin(node.value),
                        hint=error.hint,
                    ),
                )


def arguments(root: Node) -> Iterator[Found]:
    """Arguments that a built-in program does not know, or does not find."""
    for location, guest in select(root, "guests.*"):
        program = guest.text("program") or ""
        builtin, given = builtin_of(program), guest.get("with")
        if builtin is None or (given is not None and not isinstance(given.value, dict)):
            continue
        place: Location = (*location, "with")
        known = {} if given is None else given.entries()
        for key in known:
            if key not in builtin.arguments:
                mark, message = known[key].key, f"{program} has no argument {show(key)}"
                yield (*place, key), at(mark, (*place, key), message, value=key, choices=builtin.arguments)
        for key in builtin.required:
            choices = key.split("|")
            if not any(choice in known for choice in choices):
                names = " or ".join(show(choice) for choice in choices)
                mark, message = key_mark(root, place), f"{program} needs the argument {names}"
                yield (*place, choices[0]), at(mark, (*place, choices[0]), message)


def peers(root: Node) -> Iterator[Found]:
    """Arguments of built-in programs that name a guest which the program cannot reach."""
    homes = {str(location[-1]): guest.text("on") for location, guest in select(root, "guests.*")}
    if are_connected(root, homes):
        homes = dict.fromkeys(homes, "")
    for location, guest in select(root, "guests.*"):
        builtin, given = builtin_of(guest.text("program") or ""), guest.get("with")
        if builtin is None or given is None:
            continue
        me = str(location[-1])
        for key in builtin.peers:
            peer = given.get(key)
            if peer is None or not isinstance(peer.value, str):
                continue  # not there, or a domain id
            if peer.value != me and peer.value in homes and homes[peer.value] == homes[me]:
                continue
            place = (*location, "with", key)
            choices = tuple(name for name, home in homes.items() if name != me and home == homes[me])
            if peer.value not in homes:
                yield place, _unknown(root, place, peer, "guest", choices)
            else:
                why = "this guest itself" if peer.value == me else "out of reach, on another hypervisor"
                yield place, at(peer.mark, place, f"{show(peer.value)} is {why}", choices=choices)


def numbers(root: Node) -> Iterator[Found]:
    """Numbers that cannot be given to a program: arguments travel as JSON, which knows no infinities."""
    for pattern in ("defaults.with", "kinds.*.with", "groups.*.with", "guests.*.with"):
        for location, node in select(root, pattern):
            for place, value in walk(node, location):
                if isinstance(value.value, float) and not math.isfinite(value.value):
                    message = f"{show(value.value)} is no number that a program can be given"
                    yield place, at(value.mark, place, message, hint="write it in quotes")


def checks(root: Node) -> Iterator[Found]:
    """Checks of the same name: a report could not tell them apart."""
    first: dict[str, Mark] = {}
    for location, check in select(root, "checks.*"):
        name = check.get("name")
        if name is None or not isinstance(name.value, str):
            continue
        if name.value in first:
            place = (*location, "name")
            line, column = first[name.value][1:]
            yield (
                place,
                at(name.mark, place, f"{show(name.value)} is the name of the check at {line}:{column}"),
            )
        first.setdefault(name.value, name.mark)


def _section(root: Node, section: str) -> dict[str, Entry]:
    """The entries of a section by name; none where there is no such section."""
    node = root.get(section)
    return {} if node is None else node.entries()


def _homeless(root: Node) -> bool:
    """True for guests in a topology without hypervisors, which is one error rather than one for each."""
    hypervisors = root.get("hypervisors")
    return bool(_section(root, "guests")) and (hypervisors is None or hypervisors.value == {})


def _unknown(root: Node, location: Location, node: Node, noun: str, choices: tuple[str, ...]) -> Diagnostic:
    value = str(node.value)
    others = {
        "hypervisor": "hypervisors",
        "guest": "guests",
        "host": "hosts",
        "kind": "kinds",
        "group": "groups",
    }
    hint = ""
    for other, section in others.items():
        if other != noun and value in _section(root, section):
            hint = f"{show(value)} is a {other}"
    return at(node.mark, location, f"{show(value)} is no {noun} here", value=value, choices=choices, hint=hint)
