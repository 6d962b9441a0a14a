"""Rules about devices: what a device asks for is a service, leads to a guest, and that guest's program serves it.

Works on the merged tree like :mod:`topologies.crosscheck`, and leaves values that the schema does not know to the
schema's own check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from guest_node.config import BEHIND_IOMMU
from hmx.ioreq import windows
from hmx.services import SERVICES, ServiceError, port_of, service, service_of
from hmx.trap import Arch
from topologies.deviceplan import MMIO
from topologies.devices import DEFAULT_ACCESS, MAX_INSTANCE, MAX_QUEUES, PAST_IOMMU, DeviceType, device_type
from topologies.diagnose import Diagnostic, at, show
from topologies.levels import FORWARD, MAX_DEPTH, STEAL, UP
from topologies.machines import DEFAULT_ARCH, DEFAULT_PERSONALITY, personality_of
from topologies.marks import Location, Mark, Node, key_mark, select
from topologies.programs import BUILTINS, PREFIX, builtin_of

Found = tuple[Location, Diagnostic]
WINDOW_COUNT: Final = len(windows(Arch.X86_64))
"""Register windows of a machine, as many on each."""
_SERVICES: Final = tuple(row.name for row in SERVICES)


class Asked(NamedTuple):
    """A device whose own keys are sound: what it is, and the port that it asks for."""

    location: Location
    node: Node
    row: DeviceType
    port: int


class Panel:
    """The topology's nodes, and its patch panel: which line serves a holder that asks for a well-known port."""

    def __init__(self, root: Node) -> None:
        self.guests = {str(location[-1]): node for location, node in select(root, "guests.*")}
        self.hypervisors = {str(location[-1]): node for location, node in select(root, "hypervisors.*")}
        self._lines: dict[tuple[str, int], tuple[Location, Node]] = {}
        for location, line in select(root, "destinations.*"):
            holder, name, number = line.text("from"), line.text("service"), line.get("instance")
            instance = 0 if number is None else number.value
            if holder is not None and name is not None and type(instance) is int:
                with contextlib.suppress(ServiceError):  # that is said elsewhere
                    self._lines.setdefault((holder, port_of(name, instance)), (location, line))

    def line(self, holder: str, port: int) -> tuple[Location, Node] | None:
        """The line by which `holder` reaches `port`."""
        return self._lines.get((holder, port))

    def holder(self, name: str) -> str | None:
        """Whose lines serve guest `name`: its own, or those of the hypervisor as which it acts; None: it is nowhere."""
        home = self.guests[name].text("on") or ""
        if home not in self.hypervisors:
            return None
        return home if self.mode(home) == FORWARD else name

    def outwards(self, holder: str) -> str | None:
        """Who asks the next hypervisor outwards on behalf of `holder`; None: nothing lies there."""
        inside = self._above(holder)
        if holder in self.guests and self.mode(inside) == STEAL:
            inside = self._above(inside)
        return inside if self._above(inside) in self.hypervisors else None

    def _above(self, name: str) -> str:
        if name in self.guests:
            return self.guests[name].text("on") or ""
        node = self.hypervisors.get(name)
        return "" if node is None else node.text("parent") or ""

    def mode(self, hypervisor: str) -> str | None:
        """Who serves the Argo of its guests, as it is written."""
        node = self.hypervisors.get(hypervisor)
        argo = None if node is None else node.get("argo")
        return None if argo is None else argo.text("mode")


def devices(root: Node) -> Iterator[Found]:
    """All that is wrong with the devices of guests, and with programs that use devices."""
    panel = Panel(root)
    for name, guest in panel.guests.items():
        listed = guest.get("devices")
        if listed is not None and not isinstance(listed.value, tuple):
            continue  # the schema has refused it
        first: dict[int, Mark] = {}
        counted = 0
        for index, node in enumerate(() if listed is None else listed.items()):
            asked = yield from _asked(("guests", name, "devices", index), node)
            if asked is None:
                continue
            if asked.port in first:
                words = f"this guest has {_named(asked.port)} already, at {first[asked.port].line}"
                yield asked.location, at(node.mark, asked.location, f"{words}:{first[asked.port].column}")
            else:
                first[asked.port] = node.mark
                mmio = node.text("transport") == MMIO
                yield from _beside(panel, name, asked, counted) if mmio else _led(panel, name, asked)
                counted += mmio
        yield from _used(root, ("guests", name), guest)


def _asked(location: Location, node: Node) -> Generator[Found, None, Asked | None]:
    """The device at `location`, None where its own keys say already that it cannot be."""
    row = device_type(node.text("type"))
    if row is None:
        return None
    written, number, queues = node.get("service"), node.get("instance"), node.get("queues")
    name = row.service if written is None else written.value
    if written is not None and isinstance(name, str) and name not in _SERVICES:
        place = (*location, "service")
        words = f"{show(name)} is no well-known service"
        yield place, at(written.mark, place, words, value=name, choices=_SERVICES)
        return None
    if queues is not None and type(queues.value) is int and row.queues < queues.value <= MAX_QUEUES:
        place = (*location, "queues")
        most = f"{row.queues} queue{'s' if row.queues > 1 else ''} of requests"
        yield place, at(queues.mark, place, f"{row.name} devices have {most} at most")
    instance = 0 if number is None else number.value
    if not isinstance(name, str) or type(instance) is not int or not 0 <= instance <= MAX_INSTANCE:
        return None
    try:
        return Asked(location, node, row, port_of(name, instance))
    except ServiceError:
        assert number is not None
        place, count = (*location, "instance"), service(name).instances
        words = f"{name} has {count} instance{'s' if count > 1 else ''}, counted from 0"
        yield place, at(number.mark, place, words)
        return None


# ---- where it leads ----


def _led(panel: Panel, name: str, asked: Asked) -> Iterator[Found]:
    """Follow the patch panel from guest `name` to the one that serves its device."""
    holder, port = panel.holder(name), asked.port
    for _ in range(MAX_DEPTH):
        if holder is None:
            return  # it is nowhere, or leads up to nothing: that is said elsewhere
        found = panel.line(holder, port)
        if found is None:
            yield asked.location, _leads_nowhere(panel, name, asked, holder, port)
            return
        location, line = found
        to, other = line.text("to") or "", line.get("port")
        port = other.value if other is not None and type(other.value) is int else port
        if to != UP:
            if to in panel.guests:
                yield from _served((*location, "to"), line, panel.guests[to], asked, port)
            return
        holder = panel.outwards(holder)


def _beside(panel: Panel, name: str, asked: Asked, before: int) -> Iterator[Found]:
    """The device model of a guest is a guest beside it, under a Xen."""
    found, guest = panel.line(name, asked.port), panel.guests[name]
    home = panel.hypervisors.get(guest.text("on") or "")
    if home is None:
        return  # it is nowhere: that is said elsewhere
    place = (*asked.location, "transport")
    mark = key_mark(asked.node, ("transport",))
    personality = personality_of(home.text("personality") or DEFAULT_PERSONALITY, home.text("arch") or DEFAULT_ARCH)
    if personality is None:
        return
    if personality.abi != "xen" or panel.mode(guest.text("on") or "") in (FORWARD, STEAL):
        words = f"{MMIO} needs a Xen that serves its guests itself: {show(guest.text('on') or '')} is none"
        yield place, at(mark, place, words, hint="personality: xen, or transport: virtio-argo")
        return
    guarded = _has_iommu(guest)
    if before >= WINDOW_COUNT - guarded:
        words = f"a guest has {WINDOW_COUNT} register windows for {MMIO}"
        yield place, at(mark, place, words + ", of which its virtio-iommu takes one" * guarded)
    way = asked.node.text("access") or DEFAULT_ACCESS
    if guarded and way not in PAST_IOMMU:
        place = (*asked.location, "access")
        words = f"{show(way)} does not reach a guest with a virtio-iommu, as another device of {show(name)} wants it"
        yield place, at(key_mark(asked.node, ("access",)), place, words, hint=f"access: {BEHIND_IOMMU}")
    if found is None:
        yield asked.location, _leads_nowhere(panel, name, asked, name, asked.port)
        return
    location, line = found
    leads = line.get("to")
    to = "" if leads is None else str(leads.value)
    if to != UP and to not in panel.guests:
        return
    if to == UP or panel.guests[to].text("on") != guest.text("on"):
        words = f"{MMIO} needs its back end beside it: {show(to)} is not on {show(guest.text('on') or '')}"
        yield place, at(mark, place, words, hint="transport: virtio-argo")
        return
    for who, keys in ((name, guest), (to, panel.guests[to]), (guest.text("on") or "", home)):
        for key, borne in (("restart", "never"), ("host", home.text("host"))):
            written = keys.get(key)
            if written is not None and written.value != borne:
                words = f"{MMIO} does not bear `{key}: {written.value}` of {show(who)}"
                yield place, at(mark, place, words, hint="transport: virtio-argo")
    other = line.get("port")
    port = other.value if other is not None and type(other.value) is int else asked.port
    yield from _served((*location, "to"), line, panel.guests[to], asked, port)


def _has_iommu(guest: Node) -> bool:
    listed = guest.get("devices")
    rows = () if listed is None else listed.items()
    return any(row.text("transport") == MMIO and row.text("access") == BEHIND_IOMMU for row in rows)


def _leads_nowhere(panel: Panel, name: str, asked: Asked, holder: str, port: int) -> Diagnostic:
    words = f"no destination says who serves {_named(port)} for {show(name)}"
    if holder != name:
        words += f": that leads to {show(holder)} and no further"
    what = service_of(port)
    asks = "" if what is None else f", service: {what[0]}" + (f", instance: {what[1]}" if what[1] else "")
    to = next((each for each, guest in panel.guests.items() if each != name and _can_serve(guest, asked.row)), "GUEST")
    return at(asked.node.mark, asked.location, words, hint=f"destinations: [{{from: {holder}{asks}, to: {to}}}]")


def _can_serve(guest: Node, row: DeviceType) -> bool:
    builtin, offers = builtin_of(guest.text("program") or ""), guest.get("serves")
    if builtin is not None:
        return builtin.serves == row.name
    return offers is not None and row.service in [item.value for item in offers.items()]


def _served(place: Location, line: Node, guest: Node, asked: Asked, port: int) -> Iterator[Found]:
    """A built-in program at the end of the way serves this type of device, at this port."""
    builtin = builtin_of(guest.text("program") or "")
    if builtin is None:
        return  # a program of the user's own: its business
    leads = line.get("to")
    assert leads is not None
    program = f"{show(leads.value)} runs {PREFIX}{builtin.name}"
    if builtin.serves != asked.row.name:
        fit = ", ".join(PREFIX + each.name for each in BUILTINS if each.serves == asked.row.name)
        words = f"{program}, which serves no {asked.row.name} device"
        yield place, at(leads.mark, place, words, hint=f"a program that does: {fit}")
        return
    given = guest.get("with") or Node({}, guest.mark)
    name, number = given.get("service"), given.get("instance")
    try:
        theirs = port_of(
            asked.row.service if name is None else str(name.value),
            number.value if number is not None and type(number.value) is int else 0,
        )
    except ServiceError:
        return  # it says so itself
    if theirs != port:
        wanted = service_of(port)
        hint = f"with: {{instance: {wanted[1]}}}" if name is None and wanted and wanted[0] == asked.row.service else ""
        words = f"{program} at {_named(theirs)}, and this leads to {_named(port)}"
        yield place, at(leads.mark, place, words, hint=hint)


def _named(port: int) -> str:
    """A port as a topology says it."""
    found = service_of(port)
    if found is None:
        return f"port {port}"
    name, instance = found
    return f"{name} {instance}" if service(name).instances > 1 else name


# ---- who uses it ----


def _used(root: Node, location: Location, guest: Node) -> Iterator[Found]:
    """A built-in front end has the device that its argument `device` numbers among those of its type."""
    builtin, listed, given = builtin_of(guest.text("program") or ""), guest.get("devices"), guest.get("with")
    if builtin is None or not builtin.uses:
        return
    items = () if listed is None else listed.items()
    count = sum(item.text("type") == builtin.uses for item in items)
    number = None if given is None else given.get("device")
    if not count:
        place = (*location, "devices")
        words = f"{PREFIX}{builtin.name} needs a device of type {builtin.uses}"
        mark = key_mark(root, location) if listed is None else listed.mark
        yield place, at(mark, place, words, hint=f"devices: [{{type: {builtin.uses}}}]")
    elif number is not None and type(number.value) is int and number.value >= count:
        place = (*location, "with", "device")
        words = f"this guest has {count} {builtin.uses} device{'s' if count > 1 else ''}, counted from 0"
        yield place, at(number.mark, place, words)
