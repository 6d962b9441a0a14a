"""Rules about levels: who is whose parent, where destinations lead, what a policy and links speak of.

Works on the merged tree like :mod:`topologies.crosscheck`, and leaves values that the schema does not know to the
schema's own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from hmx.notify import MODES
from hmx.services import SERVICES, service
from hv_node.levels.viptables import ViptablesError, parse_viptables
from topologies.diagnose import Diagnostic, at, show
from topologies.levels import FORWARD, MAX_DEPTH, STEAL, UP, PortError, ports_of
from topologies.machines import DEFAULT_ARCH
from topologies.marks import Location, Mark, Node, key_mark, select

Found = tuple[Location, Diagnostic]
CARRIED: Final = (FORWARD, STEAL)
OWN_VECTORS: Final = tuple(row.name for row in MODES if row.own_vectors)
_SERVICES: Final = tuple(row.name for row in SERVICES)


def levels(root: Node) -> Iterator[Found]:
    """All that is wrong with hosts, parents, destinations, policy and links."""
    yield from _hosts(root)
    yield from _parents(root)
    yield from _modes(root)
    yield from _destinations(root)
    yield from _services(root)
    yield from _policy(root)
    yield from _links(root)


def are_connected(root: Node, homes: Mapping[str, str | None]) -> bool:
    """Whether guests of one hypervisor know those of others; `homes`: the hypervisor of each guest."""
    if any(node.get("parent") is not None for _, node in select(root, "hypervisors.*")):
        return True
    guests = {str(location[-1]) for location, _ in select(root, "guests.*")}
    if any(not _ends(row) & guests for _, row in select(root, "links.*")):
        return True
    ends = [
        (homes.get(row.text("from") or ""), homes.get(row.text("to") or ""))
        for _, row in select(root, "destinations.*")
    ]
    return any(here and there and here != there for here, there in ends)


# ---- hosts ----


def _hosts(root: Node) -> Iterator[Found]:
    hosts = {str(location[-1]): (location, node) for location, node in select(root, "hosts.*")}
    for name, (location, node) in hosts.items():
        if node.text("provider") == "ssh" and not node.text("address"):
            place = (*location, "address")
            words = f"{show(name)} is reached by ssh, and has no address"
            yield place, at(key_mark(root, location), place, words, hint="address: host.example, for instance")
    for section in ("hypervisors", "guests"):
        for location, _ in select(root, f"{section}.*"):
            agent, dot, host = str(location[-1]).partition(".")
            if agent == "agent" and dot and host in hosts:
                words = f"{show(location[-1])} is the name of the agent of host {show(host)}"
                yield location, at(key_mark(root, location), location, words, hint="choose another name")


# ---- parents ----


def _parents(root: Node) -> Iterator[Found]:
    nodes = {str(location[-1]): (location, node) for location, node in select(root, "hypervisors.*")}
    parents = {name: node.text("parent") or "" for name, (_, node) in nodes.items()}
    for name, (location, node) in nodes.items():
        written = node.get("parent")
        outer = nodes.get(parents[name])
        if written is None or outer is None:
            mode = node.get("argo")
            mode = None if mode is None else mode.get("mode")
            if mode is not None and mode.value in ("forward", "steal") and not parents[name]:
                place = (*location, "argo", "mode")
                hint = "add parent: to the hypervisor, or leave the mode away"
                yield place, at(mode.mark, place, f"{show(mode.value)} needs a parent that serves Argo", hint=hint)
            continue
        place = (*location, "parent")
        around = _around(parents, name)
        if name in around:
            words = f"{show(name)} is inside itself: {' in '.join((name, *around[: around.index(name) + 1]))}"
            yield place, at(written.mark, place, words)
            continue
        if len(around) >= MAX_DEPTH:
            yield place, at(written.mark, place, f"{show(name)} has {len(around)} hypervisors around it: at most 7")
        yield from _same_machine(location, node, outer[1], parents[name])


def _around(parents: dict[str, str], name: str) -> list[str]:
    """The hypervisors around `name`, the nearest first; a circle is followed once."""
    around: list[str] = []
    while (name := parents.get(name, "")) and name not in around:
        around.append(name)
    return around


def _same_machine(location: Location, node: Node, outer: Node, parent: str) -> Iterator[Found]:
    """A nested hypervisor runs on its parent's machine, whatever it offers to its own guests."""
    arch, theirs = node.text("arch") or DEFAULT_ARCH, outer.text("arch") or DEFAULT_ARCH
    if arch != theirs:
        place = (*location, "arch")
        written = node.get("arch")
        mark = key_mark(node, ()) if written is None else written.mark
        yield place, at(mark, place, f"{arch} cannot run on {show(parent)}, which is {theirs}", choices=(theirs,))
    for key in ("cpu", "host"):
        written = node.get(key)
        if written is None or (key == "cpu" and written.value == outer.text(key)):
            continue
        place = (*location, key)
        hint = "leave it away"
        words = f"a nested hypervisor has the {key} of its outermost one"
        yield place, at(written.mark, place, words, hint=hint)


# ---- modes ----


def _modes(root: Node) -> Iterator[Found]:
    """A hypervisor that does not serve Argo itself: what it cannot have, nor its guests."""
    modes = {}
    for location, node in select(root, "hypervisors.*"):
        argo = node.get("argo")
        mode = None if argo is None else argo.get("mode")
        if mode is not None and mode.value in CARRIED:
            modes[str(location[-1])] = str(mode.value)
    for location, node in select(root, "hypervisors.*"):
        parent = node.get("parent")
        if parent is not None and parent.value in modes:
            words = f"{show(parent.value)} does not serve Argo itself: nothing can be nested in it"
            hint = f"argo: {{mode: own}} for {parent.value}"
            yield (*location, "parent"), at(parent.mark, (*location, "parent"), words, hint=hint)
    homes = {}
    for location, node in select(root, "guests.*"):
        mode_there = modes.get(node.text("on") or "")
        if mode_there is None:
            continue
        homes[str(location[-1])] = mode_there
        for key, refused in (("control", (True,)), ("implicit-only", (True,)), ("notification", OWN_VECTORS)):
            written = node.get(key)
            if written is not None and written.value in refused:
                place = (*location, key)
                words = f"not for a guest of {show(node.text('on') or '')}, which does not serve Argo itself"
                yield place, at(written.mark, place, words, hint="leave it away")
    for location, row in select(root, "destinations.*"):
        asks = row.get("from")
        if asks is not None and homes.get(str(asks.value)) == FORWARD:
            words = f"{show(str(asks.value))} acts as the hypervisor that it is on, and has no destinations of its own"
            yield (*location, "from"), at(asks.mark, (*location, "from"), words)


# ---- destinations ----


def _destinations(root: Node) -> Iterator[Found]:
    guests = {str(location[-1]): node for location, node in select(root, "guests.*")}
    hypervisors = {str(location[-1]): node for location, node in select(root, "hypervisors.*")}
    first: dict[tuple[str, object], Mark] = {}
    for location, row in select(root, "destinations.*"):
        if not isinstance(row.value, dict):
            continue  # the schema has refused it
        asks, leads = row.get("from"), row.get("to")
        if asks is not None and isinstance(asks.value, str) and asks.value not in (*guests, *hypervisors):
            place = (*location, "from")
            words = f"{show(asks.value)} is no guest here"
            yield place, at(asks.mark, place, words, value=asks.value, choices=(*guests, *hypervisors))
        if leads is not None and isinstance(leads.value, str) and leads.value not in (*guests, UP):
            place = (*location, "to")
            words = f"{show(leads.value)} is no guest here"
            yield place, at(leads.mark, place, words, value=leads.value, choices=(*guests, UP))
        yield from _asked_for(location, row, first)
        if asks is not None and leads is not None and leads.value == UP:
            home = guests[str(asks.value)].text("on") if asks.value in guests else asks.value
            outermost = hypervisors.get(str(home))
            if outermost is not None and not outermost.text("parent"):
                place = (*location, "to")
                words = f"nothing lies above {show(str(home))}"
                yield place, at(leads.mark, place, words, hint="name the guest that serves it")
        yield from _served(location, row, guests)


def _asked_for(location: Location, row: Node, first: dict[tuple[str, object], Mark]) -> Iterator[Found]:
    """Either a service or a source port, and each once for a guest."""
    name, port = row.get("service"), row.get("source-port")
    if (name is None) == (port is None):
        words = "either `service` or `source-port` says what is asked for"
        yield location, at(key_mark(row, ()), location, words, hint="service: storage, for instance")
        return
    written = name or port
    assert written is not None
    if name is not None and isinstance(name.value, str):
        place = (*location, "service")
        if name.value not in _SERVICES:
            words = f"{show(name.value)} is no well-known service"
            yield place, at(name.mark, place, words, value=name.value, choices=_SERVICES)
            return
        instance = row.get("instance")
        count = service(name.value).instances
        if instance is not None and isinstance(instance.value, int) and instance.value >= count:
            place = (*location, "instance")
            words = f"{name.value} has {count} instance{'s' if count > 1 else ''}, counted from 0"
            yield place, at(instance.mark, place, words)
    instance = row.get("instance")
    key = (row.text("from") or "", (written.value, 0 if instance is None else instance.value))
    if key in first:
        line, column = first[key][1:]
        yield location, at(written.mark, location, f"that leads elsewhere already, at {line}:{column}")
    first.setdefault(key, written.mark)


def _served(location: Location, row: Node, guests: dict[str, Node]) -> Iterator[Found]:
    """A guest that says what it serves serves nothing else."""
    leads, name = row.get("to"), row.text("service")
    target = None if leads is None else guests.get(str(leads.value))
    offers = None if target is None else target.get("serves")
    if offers is None or leads is None or not isinstance(offers.value, tuple) or not name:
        return
    names = tuple(str(item.value) for item in offers.items())
    if names and name not in names and name in _SERVICES:
        place = (*location, "to")
        hint = f"add it to the services of {leads.value}: serves: [{', '.join((*names, name))}]"
        yield place, at(leads.mark, place, f"{show(str(leads.value))} does not serve {show(name)}", hint=hint)


def _services(root: Node) -> Iterator[Found]:
    for location, node in select(root, "guests.*.serves.*"):
        if isinstance(node.value, str) and node.value not in _SERVICES:
            words = f"{show(node.value)} is no well-known service"
            yield location, at(node.mark, location, words, value=node.value, choices=_SERVICES)


# ---- policy ----


def _policy(root: Node) -> Iterator[Found]:
    policy = root.get("policy")
    if policy is None or not isinstance(policy.value, dict):
        return
    guests = tuple(str(location[-1]) for location, _ in select(root, "guests.*"))
    labels = policy.get("labels")
    used = set()
    for name, entry in ({} if labels is None else labels.entries()).items():
        place: Location = ("policy", "labels", name)
        used.add(str(entry.node.value))
        if name not in guests:
            yield place, at(entry.key, place, f"{show(name)} is no guest here", value=name, choices=guests)
    known = (*sorted(used), "*")
    for location, row in select(root, "policy.allow.*"):
        for key in ("from", "to"):
            label = row.get(key)
            if label is not None and isinstance(label.value, str) and label.value not in known:
                place = (*location, key)
                words = f"no guest has the label {show(label.value)}"
                yield place, at(label.mark, place, words, value=label.value, choices=known)
    for location, node in select(root, "policy.allow.*.ports.*"):
        if isinstance(node.value, str | int) and not isinstance(node.value, bool):
            try:
                ports_of(str(node.value))
            except PortError as error:
                yield location, at(node.mark, location, str(error))
    text, rules = policy.get("viptables"), policy.get("allow")
    if text is not None and isinstance(text.value, str):
        try:
            parse_viptables(text.value)
        except ViptablesError as error:
            place = ("policy", "viptables")
            yield place, at(text.mark, place, f"line {error.line}, column {error.column} of it: {error.what}")
    if text is not None and rules is not None:
        place = ("policy", "viptables")
        yield place, at(text.mark, place, "`allow` and `viptables` are two ways to write one table: use one of them")


# ---- links ----


def _ends(link: Node) -> set[str]:
    """The ends of a link, as far as they are texts."""
    between = link.get("between")
    if between is None or not isinstance(between.value, tuple):
        return set()
    return {str(item.value) for item in between.items() if isinstance(item.value, str)}


def _lanes(root: Node) -> Iterator[Found]:
    """Links that have a guest as an end: it is on another host than its hypervisor, which is the other end."""
    guests = {str(location[-1]): node for location, node in select(root, "guests.*")}
    homes = {str(location[-1]): node for location, node in select(root, "hypervisors.*")}
    local = (str(location[-1]) for location, node in select(root, "hosts.*") if node.text("provider") == "local")
    leader = next(local, "")
    parents = {name: node.text("parent") or "" for name, node in homes.items()}
    for location, row in select(root, "links.*"):
        ends, place = _ends(row), (*location, "between")
        for name in sorted(ends & guests.keys()):
            on = guests[name].text("on") or ""
            outermost = homes.get((on, *_around(parents, on))[-1])
            home = (None if outermost is None else outermost.text("host")) or leader
            posted = row.get("posted")
            words = ""
            if ends - {name} != {on}:
                words = f"a link of guest {show(name)} leads to its hypervisor, {show(on)}"
            elif (guests[name].text("host") or home) == home:
                words = f"guest {show(name)} is beside its hypervisor: there is no link between them"
            elif posted is not None and posted.value is True:
                words = f"what guest {show(name)} and its hypervisor tell each other cannot be posted"
            if words:
                yield place, at(key_mark(root, place), place, words)


def _links(root: Node) -> Iterator[Found]:
    yield from _lanes(root)
    guests = {str(location[-1]) for location, _ in select(root, "guests.*")}
    nested = {str(location[-1]) for location, node in select(root, "hypervisors.*") if node.get("parent") is not None}
    for location, row in select(root, "links.*"):
        between = row.get("between")
        if between is None or not isinstance(between.value, tuple):
            continue
        ends = [item for item in between.items() if isinstance(item.value, str)]
        for index, item in enumerate(ends):
            if item.value in nested and not _ends(row) & guests:
                place = (*location, "between", index)
                words = f"{show(item.value)} is nested: its only link is to its parent"
                yield place, at(item.mark, place, words)
        if len(ends) == 2 and ends[0].value == ends[1].value:
            place = (*location, "between")
            yield place, at(ends[1].mark, place, f"a link from {show(ends[0].value)} to itself")
