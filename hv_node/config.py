"""What a hypervisor process is told when it starts. Filled in by the planner, handed over by the launcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain that the hypervisor creates before it is ready.

    Attributes:
        name: Name of the guest.
        domid: Its domain id on this hypervisor.
        memory: RAM in bytes, a multiple of the page size.
        vcpus: Number of virtual CPUs.
        is_control: True for a domain that XSM policies treat as the control domain.
        firmware: ACPI tables or a device tree, placed at hmx.memory.FIRMWARE_BASE before the guest starts.
    """

    name: str
    domid: int
    memory: int
    vcpus: int
    is_control: bool = False
    firmware: bytes = b""


@dataclass(frozen=True, slots=True)
class HypervisorConfig:
    """One hypervisor and the domains on it.

    Attributes:
        lab: Name of the lab.
        name: Name of the hypervisor.
        node_dir: Directory of its log and events.
        broker_endpoint: ZeroMQ endpoint of the lab's broker.
        token: The lab's secret, shown to the broker.
        epoch: The broker's epoch at the start.
        personality: Name of the personality table, for instance `xen`.
        arch: Architecture of the machine, for instance `x86_64`.
        cpu: Name of the table of the machine below, for instance `intel`.
        doors: Instructions by which it offers Argo.
        notifications: Ways to tell guests that something arrived.
        argo_cmdline: What a Xen command line holds behind `argo=`, for instance `1,mac-permissive=1`.
        xsm: The security module, `dummy` or `silo`.
        attach_path: AF_UNIX socket on which its guests attach.
        linger_ns: How long a dead guest's domain is held in dying, in nanoseconds.
        seed: Seed of all its randomness.
        domains: Its domains, by ascending domain id.
    """

    lab: str
    name: str
    node_dir: str
    broker_endpoint: str
    token: bytes
    epoch: int
    personality: str
    arch: str
    cpu: str
    doors: tuple[str, ...]
    notifications: tuple[str, ...]
    argo_cmdline: str
    xsm: str
    attach_path: str
    linger_ns: int
    seed: int
    domains: tuple[DomainConfig, ...]
