"""What the planner tells guests and hypervisors about devices.  Pure, like the planner.

A device over virtio-mmio is one of its guest's register windows, by its place among those devices, and its back end is
its device model: a guest on the same hypervisor, to which a line of the patch panel leads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from guest_node.config import BEHIND_IOMMU, DeviceConfig, FrontConfig
from hmx.ioreq import windows
from hmx.services import port_of
from hmx.trap import Arch
from topologies.devices import Device
from topologies.schema import Guest, Topology

MMIO: Final = "virtio-mmio"
Domids = Mapping[str, Mapping[str, int]]
"""Domain ids of guests by name, by hypervisor."""


class Placed(NamedTuple):
    """A device over virtio-mmio: whose, which window, the port that it asks for, who serves it."""

    guest: str
    device: Device
    window: int
    port: int
    server: str


def devices_of(topology: Topology, guest: str, domids: Domids) -> tuple[DeviceConfig, ...]:
    """The devices of `guest`, in the order of the file."""
    keys = topology.guests[guest]
    made = []
    for row in keys.devices:
        port = port_of(row.service, row.instance)
        config = DeviceConfig(row.type, row.service, row.instance, port, row.transport, row.variant, row.queues)
        placed = next((each for each in _placed(topology, guest) if each.device is row), None)
        if placed is not None:
            backend = domids[keys.on][placed.server]
            config = DeviceConfig(*_fields(config), placed.window, row.access, backend)
        made.append(config)
    return tuple(made)


def fronts_of(topology: Topology, guest: str, domids: Domids) -> tuple[FrontConfig, ...]:
    """The devices of others whose device model `guest` is."""
    ids = domids[topology.guests[guest].on]
    return tuple(
        FrontConfig(each.guest, ids[each.guest], each.device.type, each.port, each.window, each.device.access)
        for each in _all(topology)
        if each.server == guest
    )


def device_models(topology: Topology, hypervisor: str) -> tuple[tuple[str, str], ...]:
    """(device model, target) names of the guests of `hypervisor`, each pair once."""
    pairs = {(each.server, each.guest): None for each in _all(topology) if topology.guests[each.guest].on == hypervisor}
    return tuple(pairs)


def has_iommu(topology: Topology, guest: str) -> bool:
    """Whether `guest` has a virtio-iommu: one of its devices is behind one."""
    return any(row.transport == MMIO and row.access == BEHIND_IOMMU for row in topology.guests[guest].devices)


def iommus(topology: Topology, hypervisor: str) -> tuple[str, ...]:
    """The guests of `hypervisor` that have one."""
    return tuple(
        name for name, keys in topology.guests.items() if keys.on == hypervisor and has_iommu(topology, name)
    )


def windows_of(topology: Topology, guest: str) -> tuple[int, ...]:
    """The register windows of `guest` at which there is a device, the last for its virtio-iommu."""
    arch = Arch[topology.hypervisors[topology.guests[guest].on].arch.upper()]
    last = (len(windows(arch)) - 1,) if has_iommu(topology, guest) else ()
    return (*(placed.window for placed in _placed(topology, guest)), *last)


def _fields(config: DeviceConfig) -> tuple[str, str, int, int, str, str, int]:
    return (
        config.type, config.service, config.instance, config.port, config.transport, config.variant, config.queues,
    )  # fmt: skip


def _all(topology: Topology) -> Iterator[Placed]:
    for guest in topology.guests:
        yield from _placed(topology, guest)


def _placed(topology: Topology, guest: str) -> Iterator[Placed]:
    keys: Guest = topology.guests[guest]
    for window, row in enumerate(row for row in keys.devices if row.transport == MMIO):
        for line in topology.destinations:
            if line.from_ == guest and (line.service, line.instance) == (row.service, row.instance):
                port = port_of(row.service, row.instance) if line.port is None else line.port
                yield Placed(guest, row, window, port, line.to)
                break
