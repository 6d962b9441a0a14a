"""The topology file as a model: every key there is, its type, its default and its meaning.

JSON Schema (`argosy schema`) and the checks of `argosy validate` both come from these classes, so they
cannot drift apart.

The model describes the topology after `defaults`, `kinds` and `groups` have been merged
(:mod:`topologies.merge`).  What refers to something else in the file, or is needed only after merging, is
looked at by :mod:`topologies.crosscheck`.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from topologies.devices import Device
from topologies.machines import defaults_of
from topologies.marks import Location
from topologies.scalars import (
    MAX_EXIT,
    MAX_VCPUS,
    Arch,
    Cpu,
    Deadline,
    Door,
    Duration,
    GuestDoor,
    GuestNotification,
    Keys,
    Memory,
    MessageType,
    Name,
    Notification,
    Operation,
    Personality,
    Port,
    Rate,
    Reference,
    Restart,
    Share,
    Unit,
)


class Host(Keys):
    """A machine that runs nodes."""

    provider: Name = Field(default="local", description="How the machine is reached: local, ssh, or another's name.")
    address: str = Field(default="", description="Host name or address, for provider ssh.")
    port: int = Field(default=0, ge=0, le=65535, description="Port of its ssh server; 0: as ssh is configured.")
    ssh_config: str = Field(default="", alias="ssh-config", description="Configuration file for ssh, instead of yours.")
    python: str = Field(default="", description="Python interpreter there, with argosy installed.")
    directory: str = Field(default="", description="Where the topology's files lie there; the same path by default.")


class ArgoKeys(Keys):
    """A hypervisor's Argo."""

    enabled: bool = Field(default=True, description="Offer Argo; false: every call answers as a Xen without argo=1.")
    mac_permissive: bool = Field(
        default=False, alias="mac-permissive", description="Allow rings that accept messages from any domain."
    )
    mode: Literal["own", "forward", "steal"] = Field(default="own", description="How a nested hypervisor serves Argo.")
    linger: Duration = Field(default=0, description="How long a dead guest's domain stays in dying.")


class SharedKeys(Keys):
    """Keys that hypervisors and guests share."""

    kind: Reference = Field(default="", description="Take defaults from this entry of `kinds`.")
    group: Reference = Field(default="", description="Take defaults from this entry of `groups`.")
    restart: Restart = Field(default="never", description="When a node that died is started again.")
    host: Reference = Field(
        default="", description="The entry of `hosts` it runs on; for a guest by default where its hypervisor runs."
    )


class Hypervisor(SharedKeys):
    """One hypervisor: a process that serves its guests."""

    personality: Personality = Field(default="xen", description="Which hypervisor it behaves as.")
    arch: Arch = Field(default="x86_64", description="Instruction set of the machine and its guests.")
    cpu: Cpu = Field(default="intel", description="The machine below the outermost hypervisor; armv8 for aarch64.")
    parent: Reference = Field(default="", description="The hypervisor that this one is a guest of.")
    argo: ArgoKeys = Field(default=ArgoKeys(), description="Argo settings.")
    doors: list[Door] = Field(
        default=["hypercall"],
        description="Instructions by which guests may call it; by default its own, [hypercall] or [hvc].",
    )
    notifications: list[Notification] = Field(
        default=["virq"],
        description="Ways in which it can tell guests that something arrived; [line, vector-per-cpu] if it is no Xen.",
    )
    nested_msr: Literal["default", "keep", "steal", "never"] = Field(
        default="default",
        alias="nested-msr",
        description="What it does with MSR intercepts that a hypervisor on it asks for; default: as its personality.",
    )
    firmware: Literal["none", "acpi", "devicetree"] = Field(
        default="none", description="What describes its machine to guests, in their memory; devicetree on aarch64 only."
    )
    xsm: Literal["dummy", "silo"] = Field(
        default="dummy",
        description="Security module: dummy allows all, silo keeps unprivileged domains apart.",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_machine(cls, keys: Any) -> Any:
        """What is not written follows from architecture and personality."""
        return {**defaults_of(keys), **keys} if isinstance(keys, dict) else keys


class Guest(SharedKeys):
    """One guest: a process with virtual CPUs that runs one program."""

    on: Reference = Field(default="", description="The hypervisor it runs on.")
    vcpus: int = Field(default=1, ge=1, le=MAX_VCPUS, description="Virtual CPUs.")
    memory: Memory = Field(default=64 << 20, description="RAM, a multiple of 4096 bytes.")
    door: GuestDoor = Field(default="auto", description="The instruction by which it calls its hypervisor.")
    notification: GuestNotification = Field(
        default="auto", description="How it wants to be told that something arrived."
    )
    apic: bool = Field(default=True, description="It has local APICs (x86); without them it takes no vectors.")
    implicit_only: bool = Field(default=False, alias="implicit-only", description="Reach others by service only.")
    program: str = Field(default="", description="builtin:NAME, or module:function of an `async def main(guest)`.")
    with_: dict[str, Any] = Field(default={}, alias="with", description="Arguments of the program.")
    control: bool = Field(default=False, description="It is the control domain, id 0, where uXen's device models run.")
    storage: list[Unit] = Field(default=[], description="Its v4v storage units, in uXen's device table.")
    devices: list[Device] = Field(default=[], description="Devices that it sees.")
    serves: list[Name] = Field(default=[], description="Services that it offers.")


class NodeKeys(Hypervisor, Guest):
    """What `defaults`, an entry of `kinds` or of `groups` holds: any key of a hypervisor or guest."""


class Destination(Keys):
    """One line of the toolstack's patch panel: what a guest asks for leads to another guest (experimental)."""

    from_: Reference = Field(alias="from", description="The guest that asks, or a hypervisor on behalf of its guests.")
    service: str = Field(default="", description="The well-known service that it asks for; see `argosy services`.")
    instance: int = Field(default=0, ge=0, le=255, description="Which one of the service.")
    source_port: Port | None = Field(
        default=None, alias="source-port", description="Serve sends from this port only, instead of a service."
    )
    to: Reference = Field(description="The guest that serves it, or `up`: the next hypervisor outwards decides.")
    port: Port | None = Field(default=None, description="Its port; by default the one that was asked for.")
    types: list[MessageType] = Field(default=[], description="Message types that pass; none: all.")
    rate: float = Field(default=0.0, ge=0, le=1e9, description="Messages a second that pass; 0: no limit.")
    delegable: bool = Field(default=False, description="The guest may pass it on to guests that it reaches.")


class Allow(Keys):
    """Who may send to whom."""

    from_: str = Field(alias="from", description="Label of the sender; * for any.")
    to: str = Field(description="Label of the receiver; * for any.")
    ports: list[str | int] = Field(default=[], description="Services, ports or ranges such as 16-31; none: all.")
    action: Literal["allow", "deny"] = Field(default="allow", description="What becomes of what fits.")


class Policy(Keys):
    """A security policy of the whole lab: the first rule that fits decides, and none denies."""

    module: Literal["firewall"] = Field(description="The policy module.")
    labels: dict[Reference, str] = Field(default={}, description="The label of each guest.")
    allow: list[Allow] = Field(default=[], description="Rules in their order; what none fits is denied.")
    viptables: str = Field(default="", description="The same as OpenXT's viptables text, instead of `allow`.")
    permissions: dict[str, list[Operation]] = Field(
        default={}, description="Operations that a label may use; a label that is not named may use all."
    )


class Impair(Keys):
    """What a link does to those who use it."""

    delay: Duration = Field(default=0, description="Added to every message.")
    jitter: Duration = Field(default=0, description="Varies the delay.")
    loss: Share = Field(default="0%", description="Messages lost.")
    rate: Rate = Field(default="", description="Most bits per second, for instance 10Mbit.")
    duplicate: Share = Field(default="0%", description="Messages delivered twice.")
    reorder: Share = Field(default="0%", description="Messages that overtake others.")
    partition: bool = Field(default=False, description="Nothing passes.")


class Link(Keys):
    """A connection between two hypervisors; or that of a guest on another host to its hypervisor."""

    between: list[Reference] = Field(min_length=2, max_length=2, description="Its two ends.")
    posted: bool = Field(default=False, description="Sends return before the other end has answered.")
    impair: Impair = Field(default=Impair(), description="Faults to inject.")


class Expect(Keys):
    """What a check expects."""

    exit: int = Field(
        ge=0, le=MAX_EXIT, description="Exit code of the guest's program; 128 + N for a death by signal N."
    )


class Check(Keys):
    """One thing that must hold for the run to succeed."""

    name: str = Field(default="", description="What the report calls it.")
    guest: Reference = Field(description="The guest that it looks at.")
    expect: Expect = Field(description="What must hold.")
    within: Deadline = Field(default=60_000_000_000, description="Deadline, counted from the moment the lab is ready.")


class Topology(Keys):
    """An Argosy topology: hypervisors, the guests on them, and what must come of it."""

    name: Name = Field(description="Name of the lab.")
    hosts: dict[Name, Host] = Field(default={}, description="Machines; without them everything runs here.")
    hypervisors: dict[Name, Hypervisor] = Field(default={}, description="Hypervisors by name.")
    guests: dict[Name, Guest] = Field(default={}, description="Guests by name; domain ids follow their order.")
    destinations: list[Destination] = Field(default=[], description="Which service leads where.")
    policy: Policy | None = Field(default=None, description="Security policy of the lab.")
    links: list[Link] = Field(default=[], description="Connections between hypervisors, and to guests away.")
    checks: list[Check] = Field(default=[], description="What must hold for the run to succeed.")
    defaults: NodeKeys = Field(default=NodeKeys(), description="Keys for all nodes, the weakest.")
    kinds: dict[Name, NodeKeys] = Field(
        default={},
        description="Keys for the nodes of a kind; `hypervisor` and `guest` are those that name none.",
    )
    groups: dict[Name, NodeKeys] = Field(default={}, description="Keys for the nodes of a group.")
    link_timeout: Duration = Field(
        default=5_000_000_000, alias="link-timeout", description="When a silent link counts as down."
    )
    host_timeout: Duration = Field(
        default=10_000_000_000, alias="host-timeout", description="When a silent host counts as lost."
    )

    def is_empty(self) -> bool:
        """True where there is neither a hypervisor nor a guest."""
        return not self.hypervisors and not self.guests


def annotation_at(location: Location) -> Any:
    """The type of what stands at `location` in a topology, None where the schema has no such place."""
    annotation: Any = Topology
    for step in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found = [field for name, field in annotation.model_fields.items() if (field.alias or name) == step]
            annotation = found[0].annotation if found else None
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
        else:
            return None
        if get_origin(annotation) in (Annotated, UnionType):  # X | None
            annotation = get_args(annotation)[0]
    return annotation


def field_at(location: Location) -> FieldInfo | None:
    """The schema's entry for the key at `location`, None where there is none."""
    model = annotation_at(location[:-1])
    if location and isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            if (field.alias or name) == location[-1]:
                return field
    return None


def keys_at(location: Location) -> tuple[str, ...]:
    """The keys of the map at `location`, () where the schema does not fix them."""
    model = annotation_at(location)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return keys_of(model)
    return ()


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """A model's keys as written in YAML."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


def literals_at(location: Location) -> tuple[str, ...]:
    """The values that the schema knows for `location`, () where they are not a fixed list."""
    annotation = annotation_at(location)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
