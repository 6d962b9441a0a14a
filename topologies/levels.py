"""What the planner tells hypervisors about the levels around them: paths, proxies, slots, policy (experimental).

Pure like the planner.  A path names an endpoint from its outermost hypervisor inwards.  Every guest of the lab has one
number, its place in the file; on hypervisors that are not its own its proxy has the domain id `PROXY_FIRST` and that
number, so that a guest has the same id wherever it is remote.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from broker.binding import Binding
from broker.impair import Impairment
from hmx.services import ServiceError, port_of, service
from hmx.trap import Arch
from hv_node.config import (
    DomainConfig,
    OuterConfig,
    PolicyConfig,
    RemoteConfig,
    RuleConfig,
    SlotConfig,
    WardConfig,
)
from hv_node.doors.tables import PERSONALITIES, has_own_call
from hv_node.levels.viptables import parse_viptables
from topologies.schema import Destination, Guest, Impair, Link, Policy, Topology

FIRST_DOMID: Final = 1
OWN: Final = "own"
FORWARD: Final = "forward"
STEAL: Final = "steal"
PROXY_FIRST: Final = 0x4000
"""Domain id of the proxy of the lab's first guest."""
NESTED_MEMORY: Final = 4 << 20
"""What a nested hypervisor has for itself: its downlink rings lie there."""
MAX_NESTED_VCPUS: Final = 64
"""Each is handed over as two descriptors, of which one message carries 253."""
UP: Final = "up"
"""The destination that leaves the choice to the next hypervisor outwards."""
OPERATIONS: Final = ("enable", "register_single_source", "register_any_source", "send")
ANY_LABEL: Final = "*"
MAX_PORT: Final = (1 << 32) - 1
_UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9}
MAX_DEPTH: Final = 8
"""Hypervisors around a guest: a path, and the hops of an envelope, are bounded."""


class PortError(ValueError):
    """A text that is neither a service nor a port nor a range of ports."""


def path_of(topology: Topology, hypervisor: str) -> tuple[str, ...]:
    """The hypervisors around the guests of `hypervisor`, the outermost first, itself last."""
    path = [hypervisor]
    while (parent := topology.hypervisors[path[0]].parent) and len(path) <= MAX_DEPTH:
        path.insert(0, parent)
    return tuple(path)


def mode_of(topology: Topology, hypervisor: str) -> str:
    """Who serves the Argo of its guests: itself (own), or its parent, in one of two ways."""
    return topology.hypervisors[hypervisor].argo.mode


def serving(topology: Topology, hypervisor: str) -> str:
    """The hypervisor that serves the Argo of `hypervisor`'s guests."""
    keys = topology.hypervisors[hypervisor]
    return hypervisor if keys.argo.mode == OWN else keys.parent


def guest_path(topology: Topology, guest: str) -> tuple[str, ...]:
    """Where others find `guest`: at who serves its Argo, as the domain as which it acts there."""
    home = topology.guests[guest].on
    name = home if mode_of(topology, home) == FORWARD else guest
    return (*path_of(topology, serving(topology, home)), name)


def host_of(topology: Topology, hypervisor: str) -> str:
    """The entry of `hosts` that `hypervisor` runs on, "" for this machine: that of its outermost hypervisor."""
    return topology.hypervisors[path_of(topology, hypervisor)[0]].host


def leader_of(topology: Topology) -> str:
    """The entry of `hosts` that is this machine, "" for none: the first of provider `local`."""
    return next((name for name, keys in topology.hosts.items() if keys.provider == "local"), "")


def guest_host(topology: Topology, guest: str) -> str:
    """The entry of `hosts` that `guest` runs on, "" for this machine: its own, else its hypervisor's."""
    keys = topology.guests[guest]
    return keys.host or host_of(topology, keys.on)


def is_away(topology: Topology, guest: str) -> bool:
    """Whether `guest` runs on another host than its hypervisor: then it attaches through the broker."""
    leader = leader_of(topology)
    return (guest_host(topology, guest) or leader) != (host_of(topology, topology.guests[guest].on) or leader)


def children_of(topology: Topology, hypervisor: str) -> tuple[str, ...]:
    """The hypervisors that are guests of `hypervisor`, in the order of the file."""
    return tuple(name for name, keys in topology.hypervisors.items() if keys.parent == hypervisor)


def remotes(topology: Topology, hypervisor: str) -> tuple[RemoteConfig, ...]:
    """The guests of all other hypervisors, if any of them could be reached from this one.

    Those of one that forwards are one domain, known by that one's name and by the number of its first guest.
    """
    if not connected(topology) or mode_of(topology, hypervisor) != OWN:
        return ()
    found: dict[tuple[str, ...], RemoteConfig] = {}
    for number, (name, guest) in enumerate(topology.guests.items()):
        path = guest_path(topology, name)
        if serving(topology, guest.on) != hypervisor and path not in found:
            found[path] = RemoteConfig(path[-1], PROXY_FIRST + number, path, label_of(topology, name))
    return tuple(found.values())


def others(topology: Topology, hypervisor: str) -> tuple[tuple[str, ...], ...]:
    """Paths of all other hypervisors that serve guests, if any of them could be reached from this one.

    One that serves none itself has to do with its parent alone.
    """
    if mode_of(topology, hypervisor) != OWN:
        return (path_of(topology, serving(topology, hypervisor)),)
    names = [name for name in topology.hypervisors if mode_of(topology, name) == OWN] if connected(topology) else []
    return tuple(path_of(topology, name) for name in names if name != hypervisor)


def connected(topology: Topology) -> bool:
    """Whether anything in the lab reaches beyond its own hypervisor: then all hypervisors know of each other."""
    nested = any(keys.parent for keys in topology.hypervisors.values())
    across = any(
        row.to in topology.guests and row.from_ in topology.guests
        and topology.guests[row.to].on != topology.guests[row.from_].on
        for row in topology.destinations
    )  # fmt: skip
    return nested or across or any(not set(row.between) & topology.guests.keys() for row in topology.links)


def outer(topology: Topology, hypervisor: str) -> tuple[OuterConfig, ...]:
    """The hypervisors around `hypervisor`, the outermost first.

    One whose parent serves its guests' Argo (`mode: steal`) has all its parent's doors stolen.
    """
    path = path_of(topology, hypervisor)
    found = []
    for around, inside in pairwise(path):
        keys = topology.hypervisors[around]
        stolen = tuple(keys.doors) if topology.hypervisors[inside].argo.mode == "steal" else ()
        found.append(OuterConfig(keys.personality, tuple(keys.doors), stolen, keys.nested_msr))
    return tuple(found)


def posted(topology: Topology, hypervisor: str) -> tuple[str, ...]:
    """The hypervisors to which sends of `hypervisor`'s guests are posted."""
    ends = [row.between for row in topology.links if row.posted and hypervisor in row.between]
    return tuple(end for between in ends for end in between if end != hypervisor)


def doors_of(topology: Topology, hypervisor: str) -> tuple[str, ...]:
    """The doors by which guests of `hypervisor` reach Argo; those that its parent takes, if that serves them."""
    keys = topology.hypervisors[hypervisor]
    if keys.argo.mode != STEAL:
        return tuple(keys.doors)
    parent = topology.hypervisors[keys.parent]
    personality = PERSONALITIES[parent.personality, Arch[parent.arch.upper()]]
    return tuple(door for door in parent.doors if not has_own_call(personality, door))


def nested_domid(topology: Topology, hypervisor: str) -> int:
    """Domain id of `hypervisor` on its parent: behind the parent's guests."""
    parent = topology.hypervisors[hypervisor].parent
    return FIRST_DOMID + len(_guests_on(topology, parent)) + children_of(topology, parent).index(hypervisor)


def nested_domain(topology: Topology, hypervisor: str, domid: int) -> DomainConfig:
    """The domain that `hypervisor` is on its parent: a vCPU for each of its guests' vCPUs, 64 at most, and room for its
    rings.  The memory of guests whose Argo the parent serves is lent apart.
    """
    inside = [topology.guests[name].vcpus for name in _guests_on(topology, hypervisor)]
    inside += [nested_domain(topology, child, 0).vcpus for child in children_of(topology, hypervisor)]
    vcpus = min(MAX_NESTED_VCPUS, max(1, sum(inside)))
    mode = mode_of(topology, hypervisor)
    return DomainConfig(
        hypervisor, domid, NESTED_MEMORY, vcpus, nested=True, mode=mode, wards=_wards(topology, hypervisor, domid)
    )


def _guests_on(topology: Topology, hypervisor: str) -> list[str]:
    return [name for name, guest in topology.guests.items() if guest.on == hypervisor]


def _wards(topology: Topology, hypervisor: str, domid: int) -> tuple[WardConfig, ...]:
    """The guests of `hypervisor` whose Argo its parent serves, with the ids as which they act there."""
    mode, names = mode_of(topology, hypervisor), _guests_on(topology, hypervisor)
    if mode == OWN:
        return ()
    if mode == FORWARD:
        return tuple(WardConfig(name, domid) for name in names)
    numbers = {name: number for number, name in enumerate(topology.guests)}
    return tuple(WardConfig(name, PROXY_FIRST + numbers[name], label_of(topology, name)) for name in names)


def impairment(link: Link) -> Impairment:
    """The faults of a link, in the broker's units."""
    keys = link.impair
    return Impairment(
        keys.delay, keys.jitter, share_of(keys.loss), rate_of(keys.rate), share_of(keys.duplicate),
        share_of(keys.reorder), keys.partition,
    )  # fmt: skip


def share_of(text: str) -> float:
    """0 to 1 for `0%` to `100%`; more is as good as all."""
    return min(1.0, float(text.removesuffix("%")) / 100)


def rate_of(text: str) -> int:
    """Bytes a second for `10Mbit` and the like; 0 for no limit, else at least 1."""
    if not text:
        return 0
    number = text.removesuffix("bit")
    unit = _UNITS.get(number[-1], 1)
    return max(1, int(float(number.rstrip("KMG")) * unit / 8))


def binding(topology: Topology) -> Binding | None:
    """What the broker holds its members to; None for a lab in which nothing reaches beyond its hypervisor."""
    if not connected(topology):
        return None
    nodes = [(name, host_of(topology, name)) for name in topology.hypervisors]
    nodes += [(name, guest_host(topology, name)) for name in topology.guests]
    return Binding(
        hosts=tuple((name, host) for name, host in nodes if host),
        hypervisors=tuple(path_of(topology, name) for name in topology.hypervisors),
        guests=tuple(dict.fromkeys((guest_path(topology, name), label_of(topology, name)) for name in topology.guests)),
    )


def impairments(topology: Topology) -> tuple[tuple[str, str, Impairment], ...]:
    """The faults of all links that have any."""
    return tuple((row.between[0], row.between[1], impairment(row)) for row in topology.links if row.impair != Impair())


def label_of(topology: Topology, guest: str, policy: Policy | None = None) -> str:
    """The label of `guest`, "" for none; one whose hypervisor forwards acts as that, which has none.

    `policy`: instead of the topology's own.
    """
    keys = policy or topology.policy
    if keys is None or mode_of(topology, topology.guests[guest].on) == FORWARD:
        return ""
    return keys.labels.get(guest, "")


def slots(topology: Topology, hypervisor: str) -> tuple[SlotConfig, ...]:
    """The implicit-destination table of the guests of `hypervisor`, and of the hypervisors on it."""
    holders = [name for name, guest in topology.guests.items() if serving(topology, guest.on) == hypervisor]
    holders += children_of(topology, hypervisor)
    made = []
    for holder in holders:
        rows = [row for row in topology.destinations if row.from_ == holder]
        made += [slot(topology, holder, number, row) for number, row in enumerate(rows)]
    return tuple(made)


def slot(topology: Topology, holder: str, number: int, row: Destination) -> SlotConfig:
    """One line of the patch panel as the hypervisor is told."""
    return SlotConfig(
        holder=holder,
        slot=number,
        source_port=row.source_port,
        port=port_of(row.service, row.instance) if row.service else None,
        to=() if row.to == UP else guest_path(topology, row.to),
        to_port=row.port,
        types=tuple(row.types),
        rate=row.rate,
        delegable=row.delegable,
    )


def offers(topology: Topology, guest: str) -> tuple[tuple[str, int, int], ...]:
    """The services that the patch panel has for `guest`: name, base port, and how many instances follow each other."""
    ports = sorted({(row.service, port_of(row.service, row.instance))
                    for row in topology.destinations if row.from_ == guest and row.service})  # fmt: skip
    found: list[tuple[str, int, int]] = []
    for name, port in ports:
        if found and found[-1][0] == name and sum(found[-1][1:]) == port:
            found[-1] = (name, found[-1][1], found[-1][2] + 1)
        else:
            found.append((name, port, 1))
    return tuple(found)


def policy(keys: Policy | None) -> PolicyConfig | None:
    """The lab's policy as its hypervisors are told."""
    if keys is None:
        return None
    if keys.viptables:
        rules = tuple(
            RuleConfig(rule.source, rule.target, rule.ports, rule.allow, rule.source_ports)
            for rule in parse_viptables(keys.viptables)
        )
    else:
        rules = tuple(
            RuleConfig(row.from_, row.to, tuple(ports_of(str(port)) for port in row.ports), row.action == "allow")
            for row in keys.allow
        )
    refused = tuple(
        (label, operation)
        for label, granted in keys.permissions.items()
        for operation in OPERATIONS
        if operation not in granted
    )
    return PolicyConfig("viptables" if keys.viptables else keys.module, rules, refused)


def labels(topology: Topology, keys: Policy) -> tuple[tuple[str, str], ...]:
    """The labels that `keys` gives to guests of `topology`."""
    found = ((name, label_of(topology, name, keys)) for name in topology.guests)
    return tuple((name, label) for name, label in found if label)


def ports_of(text: str) -> tuple[int, int]:
    """The inclusive range of ports that `text` names: a service, a service:instance, a number or a range.

    Raises PortError.
    """
    name, _, instance = text.partition(":")
    low, dash, high = text.partition("-")
    try:
        if not low[:1].isdigit():
            row = service(name)
            if not instance:
                return row.base, row.base + row.instances - 1
            port = port_of(name, int(instance))
            return port, port
        first = int(low, 0)
        last = int(high, 0) if dash else first
    except ServiceError as error:
        raise PortError(str(error)) from None
    except ValueError:
        raise PortError(f"{text!r} is neither a service nor a port nor a range such as 16-31") from None
    if not 0 <= first <= last <= MAX_PORT:
        raise PortError(f"{text!r} is no range of ports from 0 to {MAX_PORT}")
    return first, last


def peers_of(topology: Topology, guest: str, local: Mapping[str, int]) -> dict[str, int]:
    """Domain ids by which `guest` may know others: those beside it, and proxies.  None for one that uses slots only.

    `local`: the ids of guests on the hypervisor that serves its Argo.
    """
    keys: Guest = topology.guests[guest]
    if keys.implicit_only:
        return {}
    home = serving(topology, keys.on)
    known = {remote.path: remote.domid for remote in remotes(topology, home)}
    found = dict(local)
    for child in children_of(topology, home):
        found |= {ward.name: ward.domid for ward in _wards(topology, child, nested_domid(topology, child))}
    for name in topology.guests:
        path = guest_path(topology, name)
        if path in known:
            found[name] = known[path]
    return {name: domid for name, domid in found.items() if name != guest}
