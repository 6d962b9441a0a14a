"""What a guest process is told when it starts.  Filled in by the planner, handed over by the launcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from broker.keys import ClientCurve

BEHIND_IOMMU: Final = "dma-iommu"
"""The access of a device that reaches its guest's memory through the guest's virtio-iommu (experimental)."""


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One VirtIO device of a guest.

    Attributes:
        type: What it is: blk, net, console, rng or vsock.
        service: The well-known service behind it.
        instance: Which one of the service.
        port: The port of that (hmx/services.py).
        transport: virtio-argo or virtio-mmio.
        variant: How virtio-argo moves data: inline or mirror.
        queues: Queues of requests that the front end uses, at most.
        window: Of virtio-mmio: which of the machine's register windows (hmx/ioreq.py).
        access: Of virtio-mmio: how the back end reaches the guest's memory: a row of guest_node/programs/back_mmio.py.
        backend: Of virtio-mmio: domain id of the guest that serves it.
    """

    type: str
    service: str
    instance: int
    port: int
    transport: str = "virtio-argo"
    variant: str = "inline"
    queues: int = 1
    window: int = -1
    access: str = "foreign"
    backend: int = 0


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """A virtio-mmio device of another guest that this one serves, as its device model.

    Attributes:
        guest: Whose it is.
        domid: That guest's domain id.
        type: What it is.
        port: The port of the service that it asks for, which says what of this guest's serves it.
        window: Which of the machine's register windows.
        access: How that guest's memory is reached: a row of guest_node/programs/back_mmio.py.
    """

    guest: str
    domid: int
    type: str
    port: int
    window: int
    access: str


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """One guest: its machine, and the program that it runs.

    Attributes:
        lab: Name of the lab.
        name: Name of the guest.
        node_dir: Directory of its log and events.
        broker_endpoint: ZeroMQ endpoint of the lab's broker.
        token: The lab's secret, shown to the broker.
        epoch: The broker's epoch at the start.
        hypervisor: Name of the hypervisor it runs on.
        domid: Its domain id there.
        memory: RAM in bytes.
        vcpus: Number of virtual CPUs.
        arch: Architecture, that of its hypervisor.
        door: The instruction by which it calls its hypervisor, or `auto`.
        notification: How it wants to be told that something arrived, or `auto`.
        program: `builtin:NAME`, or `module:function`.
        arguments: The program's arguments: text, numbers, booleans, None, lists and maps of these.
        peers: Domain ids of the other guests on the same hypervisor, by name.
        seed: Seed of all its randomness.
        base_dir: Where relative paths of input files start: the topology's directory.
        output_dir: Where the program's output files go.
        apic: Whether its vCPUs have local APICs, on x86.
        firmware: What describes its machine in its memory: none, acpi or devicetree.
        curve: Keys for a broker on another host.
        knows_domid: Its kernel is told its domain id where no hypervisor tells it.
        devices: Its VirtIO devices, in the order of the file.
        fronts: Virtio-mmio devices of other guests that it serves.
    """

    lab: str
    name: str
    node_dir: str
    broker_endpoint: str
    token: bytes
    epoch: int
    hypervisor: str
    domid: int
    memory: int
    vcpus: int
    arch: str
    door: str
    notification: str
    program: str
    arguments: dict[str, Any]
    peers: dict[str, int]
    seed: int
    base_dir: str
    output_dir: str
    apic: bool = True
    firmware: str = "none"
    curve: ClientCurve | None = field(default=None, repr=False)
    knows_domid: bool = True
    devices: tuple[DeviceConfig, ...] = ()
    fronts: tuple[FrontConfig, ...] = ()
