"""Rules between a hypervisor's machine, personality, doors and notifications, and what its guests ask of it.

Works on the merged tree like :mod:`topologies.crosscheck`, and leaves values that the schema does not know to the
schema's own check.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Final, NamedTuple

from hv_node.doors.personality import Personality
from hv_node.doors.tables import has_own_call
from topologies.diagnose import Diagnostic, at, show
from topologies.levels import STEAL
from topologies.machines import (
    CPUS,
    DEFAULT_ARCH,
    DEFAULT_PERSONALITY,
    VIRQ,
    arches_of,
    defaults_of,
    doors_at,
    notifications_at,
    personalities_on,
    personality_of,
)
from topologies.marks import Location, Node, key_mark, plain, select

Found = tuple[Location, Diagnostic]
AUTO: Final = "auto"
UXEN: Final = "uxen"
"""The personality that shows v4v storage units."""


class Machine(NamedTuple):
    """A hypervisor of the topology, as far as its keys can be understood."""

    name: str
    arch: str
    personality: Personality
    doors: tuple[str, ...]
    notifications: tuple[str, ...]


def machines(root: Node) -> Iterator[Found]:
    """What cannot be between the keys of a hypervisor, and between those of a guest and its hypervisor."""
    known: dict[str, Machine] = {}
    for location, node in select(root, "hypervisors.*"):
        if not isinstance(node.value, dict):
            continue  # the schema has refused it
        yield from _hypervisor(root, location, node)
        machine = _machine(str(location[-1]), node)
        if machine is not None:
            known[machine.name] = machine
    stolen = yield from _stolen(root, known)
    known |= stolen
    for location, node in select(root, "guests.*"):
        home = known.get(node.text("on") or "")
        if home is not None:
            yield from _guest(location, node, home)
            yield from _storage(location, node, home)
    yield from _control(root)


# ---- hypervisors ----


def _hypervisor(root: Node, location: Location, node: Node) -> Iterator[Found]:
    name, arch = _word(node, "personality", DEFAULT_PERSONALITY), _word(node, "arch", DEFAULT_ARCH)
    if arch not in CPUS or not arches_of(name):
        return
    cpu = node.get("cpu")
    others = tuple(each for other, cpus in CPUS.items() if other != arch for each in cpus)
    if cpu is not None and cpu.value in others:
        place = (*location, "cpu")
        yield place, at(cpu.mark, place, f"{show(cpu.value)} is no {arch} machine", choices=CPUS[arch])
    personality = personality_of(name, arch)
    if personality is None:
        yield _no_such_personality(root, location, node, name, arch)
        return
    firmware = node.get("firmware")
    if firmware is not None and firmware.value == "devicetree" and arch != "aarch64":
        place = (*location, "firmware")
        yield place, at(firmware.mark, place, f"there are no device trees on {arch} here", choices=("none", "acpi"))
    yield from _offers(root, location, node, personality, "doors", doors_at(personality))
    yield from _offers(root, location, node, personality, "notifications", notifications_at(personality))


def _stolen(root: Node, known: dict[str, Machine]) -> Generator[Found, None, dict[str, Machine]]:
    """Hypervisors whose parent takes the doors of their guests: those are the doors there are."""
    found = {}
    for location, node in select(root, "hypervisors.*"):
        mode = None if (argo := node.get("argo")) is None else argo.get("mode")
        parent, machine = known.get(node.text("parent") or ""), known.get(str(location[-1]))
        if mode is None or mode.value != STEAL or parent is None or machine is None:
            continue
        doors = tuple(door for door in parent.doors if not has_own_call(parent.personality, door))
        found[machine.name] = machine._replace(doors=doors)
        if not doors:
            place = (*location, "argo", "mode")
            possible = [door for door in doors_at(parent.personality) if not has_own_call(parent.personality, door)]
            hint = f"add one to the doors of {parent.name}: doors: [{', '.join((*parent.doors, *possible[:1]))}]"
            words = f"{show(parent.name)} offers no door that it could take: its own call goes to who is nearest"
            yield place, at(mode.mark, place, words, hint=hint)
    return found


def _no_such_personality(root: Node, location: Location, node: Node, name: str, arch: str) -> Found:
    """At the personality if it is written, else at the architecture that has no xen."""
    written = node.get("personality")
    key = "arch" if written is None else "personality"
    place = (*location, key)
    mark = key_mark(root, location) if written is None else written.mark
    hint = f"{name} exists on {', '.join(arches_of(name))}"
    return place, at(mark, place, f"{show(name)} does not exist on {arch}", choices=personalities_on(arch), hint=hint)


def _offers(
    root: Node, location: Location, node: Node, personality: Personality, key: str, possible: tuple[str, ...]
) -> Iterator[Found]:
    """`doors` or `notifications`: each must be possible, and there must be one unless nothing traps."""
    place, given = (*location, key), node.get(key)
    name, noun = personality.name, key.removesuffix("s")
    if given is None:
        if key not in defaults_of(plain(node)):
            message = f"{name} has no call of its own by which Argo could be reached"
            hint = f"say how: doors: [{possible[0]}]"
            yield place, at(key_mark(root, location), place, message, choices=possible, hint=hint)
        return
    if not isinstance(given.value, tuple):
        return
    if not given.value and possible:
        yield place, at(given.mark, place, f"{name} needs at least one {noun}", choices=possible)
    for index, item in enumerate(given.value):
        if item.value in possible or item.value not in _known(key):
            continue
        where = (*place, index)
        if not possible:
            words, hint = f"{show(item.value)}: under {name} nothing traps, so it has no {key}", f"write {key}: []"
        elif item.value == VIRQ:
            words, hint = f"{show(VIRQ)} needs event channels, which {name} has not", ""
        else:
            words, hint = f"{show(item.value)} is no {noun} of {name} on {personality.arch.name.lower()}", ""
        yield where, at(item.mark, where, words, choices=possible, hint=hint)


def _known(key: str) -> tuple[str, ...]:
    """Every value of the key that exists anywhere."""
    every = doors_at if key == "doors" else notifications_at
    found = (personality_of(name, arch) for arch in CPUS for name in personalities_on(arch))
    return tuple({value for personality in found if personality is not None for value in every(personality)})


# ---- guests ----


def _machine(name: str, node: Node) -> Machine | None:
    arch, personality_name = _word(node, "arch", DEFAULT_ARCH), _word(node, "personality", DEFAULT_PERSONALITY)
    personality = personality_of(personality_name, arch) if arch in CPUS else None
    if personality is None:
        return None
    fallback = defaults_of(plain(node))
    doors = _texts(node, "doors", fallback, doors_at(personality))
    notifications = _texts(node, "notifications", fallback, notifications_at(personality))
    return Machine(name, arch, personality, doors, notifications)


def _guest(location: Location, node: Node, home: Machine) -> Iterator[Found]:
    for key, offered, noun in (
        ("door", home.doors, "doors"),
        ("notification", home.notifications, "notifications"),
    ):
        wanted = node.get(key)
        if wanted is None or wanted.value == AUTO or wanted.value not in _known(noun) or wanted.value in offered:
            continue
        place = (*location, key)
        possible = (doors_at if key == "door" else notifications_at)(home.personality)
        hint = f"add it to the {noun} of {home.name}" if wanted.value in possible else ""
        words = f"{show(wanted.value)} is not offered by hypervisor {show(home.name)}"
        yield place, at(wanted.mark, place, words, value=str(wanted.value), choices=(AUTO, *offered), hint=hint)
    apic = node.get("apic")
    if apic is not None and isinstance(apic.value, bool) and home.arch != "x86_64":
        place = (*location, "apic")
        hint = "leave it away"
        yield place, at(apic.mark, place, f"a guest of {home.arch} has no local APIC to be with or without", hint=hint)


def _storage(location: Location, node: Node, home: Machine) -> Iterator[Found]:
    """v4v storage units: uXen's alone, each once, and no guest that runs device models has any."""
    units = node.get("storage")
    if units is None or not isinstance(units.value, tuple) or not units.value:
        return
    place = (*location, "storage")
    if home.personality.name != UXEN:
        hint = f"give hypervisor {home.name} the personality {UXEN}"
        yield place, at(units.mark, place, f"{home.personality.name} has no v4v storage", hint=hint)
    elif _is_control(node):
        yield place, at(units.mark, place, "the control domain has no storage units of its own", hint="leave it away")
    seen: set[Any] = set()
    for index, unit in enumerate(units.items()):
        if isinstance(unit.value, int) and unit.value in seen:
            yield (*place, index), at(unit.mark, (*place, index), f"storage unit {unit.value} is there twice")
        elif isinstance(unit.value, int):
            seen.add(unit.value)


def _control(root: Node) -> Iterator[Found]:
    """A hypervisor has one control domain; its id is always 0, so that it is never made a second time."""
    first: dict[str, str] = {}
    for location, node in select(root, "guests.*"):
        on, written = node.text("on") or "", node.get("control")
        if not _is_control(node) or written is None:
            continue
        place = (*location, "control")
        other = first.setdefault(on, str(location[-1]))
        if other != location[-1]:
            words = f"hypervisor {show(on)} has a control domain already: {show(other)}"
            yield place, at(written.mark, place, words)
        hypervisors = root.get("hypervisors")
        home = None if hypervisors is None else hypervisors.get(on)
        for name, owner in ((str(location[-1]), node), (on, home)):
            if owner is not None and owner.text("restart") == "on-failure":
                words = f"a control domain is not started again, and {show(name)} has restart: on-failure"
                yield place, at(written.mark, place, words, hint="leave restart away")


def _is_control(node: Node) -> bool:
    written = node.get("control")
    return written is not None and written.value is True


def _word(node: Node, key: str, default: str) -> str:
    """The text under `key`; the default where nothing is written; "" for what is no text."""
    return default if node.get(key) is None else node.text(key) or ""


def _texts(node: Node, key: str, fallback: dict[str, list[str]], possible: tuple[str, ...]) -> tuple[str, ...]:
    """What is offered; everything `possible` where that cannot be said, so that one mistake is one error."""
    given = node.get(key)
    if given is None:
        return tuple(fallback.get(key, possible))
    if not isinstance(given.value, tuple):
        return possible
    return tuple(item.value for item in given.items() if isinstance(item.value, str))
