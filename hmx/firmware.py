"""What firmware tells a guest about Argo: one vocabulary for ACPI and device trees.  Experimental, not upstream.

A hypervisor that offers Argo through doors describes them in an ACPI device ("ARGO0001") or a device-tree node
("argosy,argo").  Both say the same things, under the names of :data:`FACTS`:

* the revision of this layout, and feature bits (none are defined yet; a reader ignores those it does not know),
* doors, in the hypervisor's order of preference: a name and its selector (MSR index, CPUID leaf, port, page address,
  SMCCC function id); the name of an unknown door is passed over by the guest,
* how interrupts come about, as :class:`VectorPolicy` with numbers that depend on it,
* notification modes that the hypervisor offers,
* services that are worth a try: a name, the base port and the number of instances.

A line interrupt and the page of the `mmio` door are ordinary resources: _CRS in ACPI, `interrupts` and `reg` in a
tree.  A later revision may add facts, and elements at the end of a door or a service; it takes none away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from hmx.acpi_resources import AcpiError, ExtendedInterrupt, Irq, Memory32
from hmx.aml import Device, Value
from hmx.fdt import FdtError, Node, Tree

ARGO_HID: Final = "ARGO0001"
ARGO_COMPATIBLE: Final = "argosy,argo"
REVISION: Final = 1


class VectorPolicy(IntEnum):
    """Who chooses the vector (x86) or INTID (Arm) of Argo's interrupt.

    LINE: nobody; it is the interrupt among the device's resources, and there are no numbers.
    SUGGESTED: the numbers are free for Argo, the most important class first; the guest tells the hypervisor which of
    them it took.
    GUEST: the guest takes any number between the two given, both included, and tells the hypervisor.
    """

    LINE = 0
    SUGGESTED = 1
    GUEST = 2


class Door(NamedTuple):
    """One way to call: the door's name, and the number that selects it."""

    name: str
    selector: int


class Offer(NamedTuple):
    """A service that the toolstack has connected: ports `base` to `base + instances - 1`."""

    name: str
    base: int
    instances: int


class Interrupt(NamedTuple):
    """A global system interrupt (x86) or an INTID (Arm), and how it is triggered."""

    number: int
    level: bool = False
    active_low: bool = False


class Fact(NamedTuple):
    """One fact: its ACPI name, and its property in a tree; `numbers` is where a tree keeps the numbers of names."""

    name: str
    acpi: str
    property: str
    numbers: str


FACTS: Final = (
    Fact("revision", "AREV", "argosy,revision", ""),
    Fact("features", "AFEA", "argosy,features", ""),
    Fact("doors", "ADRS", "argosy,doors", "argosy,door-selectors"),
    Fact("policy", "APOL", "argosy,vector-policy", ""),
    Fact("vectors", "AVEC", "argosy,vectors", ""),
    Fact("notifications", "ANTF", "argosy,notifications", ""),
    Fact("services", "ASVC", "argosy,services", "argosy,service-ports"),
)
FACT: Final = {row.name: row for row in FACTS}


@dataclass(frozen=True, slots=True)
class ArgoDevice:
    """Argo as firmware describes it.  `mmio` is the address of the page of the `mmio` door."""

    doors: tuple[Door, ...] = ()
    policy: VectorPolicy = VectorPolicy.GUEST
    vectors: tuple[int, ...] = ()
    interrupt: Interrupt | None = None
    mmio: int | None = None
    notifications: tuple[str, ...] = ()
    services: tuple[Offer, ...] = ()
    features: int = 0
    revision: int = REVISION


def argo_from_acpi(devices: Mapping[str, Device]) -> ArgoDevice | None:
    """The Argo device among those of the tables; None when there is none.  Raises AcpiError."""
    device = next((found for found in devices.values() if found.hid == ARGO_HID), None)
    if device is None:
        return None
    interrupt: Interrupt | None = None
    mmio: int | None = None
    for resource in device.resources():
        if isinstance(resource, ExtendedInterrupt | Irq) and interrupt is None and resource.numbers:
            interrupt = Interrupt(resource.numbers[0], resource.level, resource.active_low)
        elif isinstance(resource, Memory32) and mmio is None:
            mmio = resource.base
    doors = tuple(Door(_str(row[0]), _int(row[1])) for row in _rows(device, "doors", 2))
    services = tuple(Offer(_str(row[0]), _int(row[1]), _int(row[2])) for row in _rows(device, "services", 3))
    policy, vectors = device.integer(FACT["policy"].acpi), tuple(map(_int, _package(device, "vectors")))
    return ArgoDevice(
        doors,
        _policy(policy, vectors, interrupt, AcpiError),
        vectors,
        interrupt,
        mmio,
        tuple(map(_str, _package(device, "notifications"))),
        services,
        device.integer(FACT["features"].acpi),
        device.integer(FACT["revision"].acpi),
    )


def argo_from_tree(tree: Tree) -> ArgoDevice | None:
    """The Argo node of a tree; None when there is none.  Raises FdtError."""
    node = next(iter(tree.find(ARGO_COMPATIBLE)), None)
    if node is None:
        return None
    lines, pages = node.interrupts(), node.reg()
    interrupt = Interrupt(*lines[0]) if lines else None
    names, selectors = node.strings(FACT["doors"].property), node.quads(FACT["doors"].numbers)
    services, ports = node.strings(FACT["services"].property), node.cells(FACT["services"].numbers)
    if len(names) != len(selectors) or 2 * len(services) != len(ports):
        raise FdtError(f"{node.path}: doors and selectors, or services and ports, do not match")
    vectors = node.cells(FACT["vectors"].property)
    return ArgoDevice(
        tuple(map(Door, names, selectors)),
        _policy(_cell(node, "policy"), vectors, interrupt, FdtError),
        vectors,
        interrupt,
        pages[0][0] if pages else None,
        node.strings(FACT["notifications"].property),
        tuple(map(Offer, services, ports[::2], ports[1::2])),
        _cell(node, "features"),
        _cell(node, "revision"),
    )


def _policy(
    number: int, vectors: tuple[int, ...], interrupt: Interrupt | None, error: type[AcpiError | FdtError]
) -> VectorPolicy:
    """The policy, when the numbers that it needs are there."""
    try:
        policy = VectorPolicy(number)
    except ValueError:
        raise error(f"vector policy {number} is none of {[*map(int, VectorPolicy)]}") from None
    if policy is VectorPolicy.LINE and interrupt is None:
        raise error("a line policy without an interrupt")
    if policy is VectorPolicy.SUGGESTED and not vectors:
        raise error("vectors are suggested, but none is named")
    if policy is VectorPolicy.GUEST and (len(vectors) != 2 or vectors[0] > vectors[1]):
        raise error("the guest chooses, but from no range")
    return policy


def _cell(node: Node, fact: str) -> int:
    return node.cell(FACT[fact].property)


def _package(device: Device, fact: str) -> tuple[Value, ...]:
    value = device.names.get(FACT[fact].acpi)
    if not isinstance(value, tuple):
        raise AcpiError(f"{device.path}: {FACT[fact].acpi} is no package")
    return value


def _rows(device: Device, fact: str, width: int) -> list[tuple[Value, ...]]:
    rows = []
    for row in _package(device, fact):
        if not isinstance(row, tuple) or len(row) < width:
            raise AcpiError(f"{device.path}: {FACT[fact].acpi} holds something that is no package of {width}")
        rows.append(row)
    return rows


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise AcpiError(f"{value!r:.40} where a number must be")
    return value


def _str(value: Value) -> str:
    if not isinstance(value, str):
        raise AcpiError(f"{value!r:.40} where a text must be")
    return value
