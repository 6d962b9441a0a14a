"""What a hypervisor process is told when it starts. Filled in by the planner, handed over by the launcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.keys import ClientCurve


@dataclass(frozen=True, slots=True)
class WardConfig:
    """A guest of a nested hypervisor whose Argo the hypervisor around that one serves (experimental).

    Attributes:
        name: Name of the guest.
        domid: Domain id as which it acts there.
        label: Its security label, "" for none.
    """

    name: str
    domid: int
    label: str = ""


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
        storage: Numbers of its v4v storage units, which uXen's device table shows.
        label: Its security label, "" for none.
        implicit_only: True for a domain that reaches others through its slots only.
        nested: True for a domain that is a hypervisor itself.
        mode: How that one serves Argo: own, forward or steal.
        wards: Its guests, if it does not serve them itself.
        remote: True for a domain whose guest runs on another host and attaches through the broker (experimental).
    """

    name: str
    domid: int
    memory: int
    vcpus: int
    is_control: bool = False
    firmware: bytes = b""
    storage: tuple[int, ...] = ()
    label: str = ""
    implicit_only: bool = False
    nested: bool = False
    mode: str = "own"
    wards: tuple[WardConfig, ...] = ()
    remote: bool = False


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A guest on another hypervisor, and the domain id by which this one's guests know it (experimental).

    Attributes:
        name: Name of the guest.
        domid: Domain id of its proxy.
        path: Where it lives, from its outermost hypervisor inwards, the guest itself last.
        label: Its security label, "" for none.
    """

    name: str
    domid: int
    path: tuple[str, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """One entry of the implicit-destination table (experimental).

    Attributes:
        holder: The guest, or the hypervisor on this one, that may use it.
        slot: Its number in the holder's table, from 0.
        source_port: It serves sends from this port; None: from any.
        port: It serves sends to this well-known port; None: to any, if `source_port` says which.
        to: Path of the endpoint that it leads to; () for the next hypervisor outwards, whose table decides.
        to_port: The endpoint's port; None: as the sender wrote it.
        types: Message types that pass; none: all.
        rate: Messages a second that pass; 0: no limit.
        delegable: True if the holder may pass it on.
    """

    holder: str
    slot: int
    source_port: int | None
    port: int | None
    to: tuple[str, ...]
    to_port: int | None = None
    types: tuple[int, ...] = ()
    rate: float = 0.0
    delegable: bool = False


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """One rule of a policy: who, labels ("*" for any) or domain ids of the hypervisor that judges; inclusive ranges of
    the destination's ports and of the source's, none for all.
    """

    source: str | int
    target: str | int
    ports: tuple[tuple[int, int], ...]
    allow: bool
    source_ports: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """A lab's security policy: the first rule that fits decides, and none denies.

    Attributes:
        module: Name of the module, `firewall` or `viptables`.
        rules: In their order.
        permissions: (label, operation) pairs that are refused although the rules are silent on them.
        labels: Labels of the lab's guests, by name, in the place of the plan's; who is not named has none.  None: those
            that hold already.
    """

    module: str
    rules: tuple[RuleConfig, ...]
    permissions: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class OuterConfig:
    """A hypervisor around another one, as far as it decides who sees a trap of a guest inside.

    Attributes:
        personality: Name of its personality table.
        doors: Instructions by which it offers Argo.
        stolen: Those of them that it serves for guests of its guests, before its guest sees them.
        nested_msr: What it does with its guest's MSR intercepts: default, keep, steal or never.
    """

    personality: str
    doors: tuple[str, ...]
    stolen: tuple[str, ...] = ()
    nested_msr: str = "default"


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
        parent: The hypervisor that it is a guest of, "" for none.
        path: Where it stands, from its outermost hypervisor inwards, itself last.
        outer: The hypervisors around it, the outermost first.
        mode: How a nested hypervisor serves Argo: own, forward or steal.
        nested_msr: What it does with the MSR intercepts of hypervisors on it: default, keep, steal or never.
        link_timeout_ns: How long an operation waits for a link that is down, in nanoseconds.
        posted: Hypervisors to which sends return before they are answered, by the names of their outermost ones.
        hypervisors: Paths of the lab's other hypervisors, if this one can reach any.
        remotes: Guests on other hypervisors of the lab.
        slots: What the toolstack programmed for its guests.
        policy: Security policy of the lab, None for none.
        curve: Keys for a broker on another host.
        device_models: (emulator, target) names: which guest may serve and reach which as a device model.
        iommus: Guests that have a virtio-iommu (experimental).
        again: It was started before: it and its guests live again.
        fresh_from: Ids of proxies that are not planned begin here; None: at the first.
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
    parent: str = ""
    path: tuple[str, ...] = ()
    outer: tuple[OuterConfig, ...] = ()
    mode: str = "own"
    nested_msr: str = "default"
    link_timeout_ns: int = 5_000_000_000
    posted: tuple[str, ...] = ()
    hypervisors: tuple[tuple[str, ...], ...] = ()
    remotes: tuple[RemoteConfig, ...] = ()
    slots: tuple[SlotConfig, ...] = ()
    policy: PolicyConfig | None = None
    curve: ClientCurve | None = field(default=None, repr=False)
    device_models: tuple[tuple[str, str], ...] = ()
    iommus: tuple[str, ...] = ()
    again: bool = False
    fresh_from: int | None = None

    @property
    def storage(self) -> dict[str, tuple[int, ...]]:
        """The v4v storage units of each domain that has any, by name."""
        return {domain.name: domain.storage for domain in self.domains if domain.storage}
