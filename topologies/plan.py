"""From a checked topology to what each process is told: a pure function.

The planner decides everything that can be decided before anything runs: domain ids, who is a peer of whom,
seeds, sockets, the order of the start, and what the run is checked against.  It opens nothing and asks the
machine nothing; directories come in as :class:`Places`.  The same arguments give the same plan, and a plan
survives a round trip through JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from broker.config import BrokerConfig
from guest_node.config import GuestConfig
from hmx.trap import Arch
from hv_node.config import DomainConfig, HypervisorConfig
from topologies import deviceplan, levels
from topologies.codec import decode, encode
from topologies.load import resolved
from topologies.schema import Hypervisor, Topology

BROKER: Final = "broker"  # the broker's name among the nodes
CONTROL_DOMID: Final = 0
FIRST_DOMID: Final = levels.FIRST_DOMID
_SEED_BYTES: Final = 6  # seeds stay exact in every JSON reader


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run keeps its things.  Only names: the planner neither makes nor looks at them.

    Attributes:
        base_dir: Directory of the topology file, where relative input paths start.
        run_dir: The lab's run directory.
        socket_dir: Directory of its sockets; short, since socket paths end at 107 bytes.
    """

    base_dir: str
    run_dir: str
    socket_dir: str

    def node_dir(self, name: str) -> str:
        """Directory of a node's log, events and output."""
        return f"{self.run_dir}/nodes/{name}"

    def broker_endpoint(self) -> str:
        """ZeroMQ endpoint of the broker."""
        return f"ipc://{self.socket_dir}/broker"

    def attach_path(self, index: int) -> str:
        """Socket on which the guests of hypervisor number `index` attach."""
        return f"{self.socket_dir}/attach-{index}"


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """One check: `guest` ends with exit code `exit`, at most `within_ns` after the lab is ready."""

    name: str
    guest: str
    exit: int
    within_ns: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A lab, ready to be launched.

    Attributes:
        lab: Its name.
        seed: The seed from which all nodes' seeds come.
        places: Where it keeps its things.
        topology: The resolved topology, as plain data with YAML's keys.
        broker: What the broker is told.
        hypervisors: What each hypervisor is told, in the order of the file.
        guests: What each guest is told, in the order of the file.
        order: Names of nodes, stage by stage: a stage starts when the one before it is ready.
        checks: What the run is checked against.
    """

    lab: str
    seed: int
    places: Places
    topology: dict[str, Any]
    broker: BrokerConfig
    hypervisors: tuple[HypervisorConfig, ...]
    guests: tuple[GuestConfig, ...]
    order: tuple[tuple[str, ...], ...]
    checks: tuple[CheckPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data.  Holds the lab's token: for files that only the owner can read."""
        data: dict[str, Any] = encode(self)
        return data

    def to_json(self) -> str:
        """The plan as JSON text; see `to_dict`."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The plan whose `to_dict` is `data`.  Raises CodecError."""
        return decode(cls, data)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan whose `to_json` is `text`.  Raises CodecError, or ValueError for what is no JSON."""
        return cls.from_dict(json.loads(text))


def plan(
    topology: Topology,
    places: Places,
    *,
    token: bytes = b"",
    epoch: int = 1,
    seed: int = 0,
    name: str | None = None,
) -> Plan:
    """The plan of a lab.

    Args:
        topology: From :func:`topologies.load.load`.
        places: Directories of this run.
        token: The lab's secret; empty for a plan that is only shown.
        epoch: The broker's epoch.
        seed: Any integer.
        name: Replaces the topology's own name.
    """
    lab = name or topology.name
    endpoint = places.broker_endpoint()
    domids = _domids(topology)
    hypervisors = tuple(
        HypervisorConfig(
            lab=lab,
            name=hypervisor,
            node_dir=places.node_dir(hypervisor),
            broker_endpoint=endpoint,
            token=token,
            epoch=epoch,
            personality=keys.personality,
            arch=keys.arch,
            cpu=keys.cpu,
            doors=() if keys.argo.mode == levels.STEAL else tuple(keys.doors),
            notifications=tuple(keys.notifications),
            argo_cmdline=argo_cmdline(keys),
            xsm=keys.xsm,
            attach_path=places.attach_path(index),
            linger_ns=keys.argo.linger,
            seed=node_seed(seed, hypervisor),
            domains=_domains(topology, hypervisor, domids[hypervisor]),
            parent=keys.parent,
            path=levels.path_of(topology, hypervisor),
            outer=levels.outer(topology, hypervisor),
            mode=keys.argo.mode,
            nested_msr=keys.nested_msr,
            link_timeout_ns=topology.link_timeout,
            posted=levels.posted(topology, hypervisor),
            hypervisors=levels.others(topology, hypervisor),
            remotes=levels.remotes(topology, hypervisor),
            slots=levels.slots(topology, hypervisor),
            device_models=deviceplan.device_models(topology, hypervisor),
            iommus=deviceplan.iommus(topology, hypervisor),
            policy=levels.policy(topology.policy) if keys.argo.mode == levels.OWN else None,
        )
        for index, (hypervisor, keys) in enumerate(topology.hypervisors.items())
    )
    guests = tuple(
        GuestConfig(
            lab=lab,
            name=guest,
            node_dir=places.node_dir(guest),
            broker_endpoint=endpoint,
            token=token,
            epoch=epoch,
            hypervisor=guest_keys.on,
            domid=domids[guest_keys.on][guest],
            memory=guest_keys.memory,
            vcpus=guest_keys.vcpus,
            arch=topology.hypervisors[guest_keys.on].arch,
            door=guest_keys.door,
            notification=guest_keys.notification,
            program=guest_keys.program,
            arguments=guest_keys.with_,
            peers=levels.peers_of(topology, guest, domids[levels.serving(topology, guest_keys.on)]),
            seed=node_seed(seed, guest),
            base_dir=places.base_dir,
            output_dir=places.node_dir(guest),
            apic=guest_keys.apic,
            firmware=topology.hypervisors[guest_keys.on].firmware,
            knows_domid=not guest_keys.implicit_only,
            devices=deviceplan.devices_of(topology, guest, domids),
            fronts=deviceplan.fronts_of(topology, guest, domids),
        )
        for guest, guest_keys in topology.guests.items()
    )
    return Plan(
        lab=lab,
        seed=seed,
        places=places,
        topology={**resolved(topology), "name": lab},
        broker=BrokerConfig(
            lab,
            endpoint,
            token,
            epoch,
            places.node_dir(BROKER),
            binding=levels.binding(topology),
            impair=levels.impairments(topology),
            seed=node_seed(seed, BROKER),
        ),
        hypervisors=hypervisors,
        guests=guests,
        order=_order(topology),
        checks=tuple(
            CheckPlan(
                check.name or f"{check.guest} exits {check.expect.exit}",
                check.guest,
                check.expect.exit,
                check.within,
            )
            for check in topology.checks
        ),
    )


def argo_cmdline(hypervisor: Hypervisor) -> str:
    """What stands behind `argo=` on the command line of a Xen with these settings."""
    return f"{int(hypervisor.argo.enabled)},mac-permissive={int(hypervisor.argo.mac_permissive)}"


def node_seed(seed: int, name: str) -> int:
    """A node's own seed: one node more or less in the lab changes no other node's randomness."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:_SEED_BYTES], "big")


def _domains(topology: Topology, hypervisor: str, domids: dict[str, int]) -> tuple[DomainConfig, ...]:
    """The domains of a hypervisor: its guests, then the hypervisors on it."""
    keys = topology.hypervisors[hypervisor]
    guests = tuple(_domain(topology, guest, domid, keys) for guest, domid in domids.items())
    return guests + tuple(
        levels.nested_domain(topology, child, levels.nested_domid(topology, child))
        for child in levels.children_of(topology, hypervisor)
    )


def _domain(topology: Topology, name: str, domid: int, hypervisor: Hypervisor) -> DomainConfig:
    """One domain, with the firmware that its hypervisor gives it."""
    guest, blob = topology.guests[name], b""
    if hypervisor.firmware != "none":
        from topologies.firmware.plan import firmware_of  # its builders are for labs that have firmware

        blob = firmware_of(
            hypervisor.firmware, hypervisor.personality, Arch[hypervisor.arch.upper()],
            levels.doors_of(topology, guest.on), hypervisor.notifications, guest.memory, guest.vcpus,
            levels.offers(topology, name), deviceplan.windows_of(topology, name),
        )  # fmt: skip
    return DomainConfig(
        name, domid, guest.memory, guest.vcpus, is_control=guest.control, firmware=blob,
        storage=tuple(guest.storage), label=levels.label_of(topology, name), implicit_only=guest.implicit_only,
        remote=levels.is_away(topology, name),
    )  # fmt: skip


def _domids(topology: Topology) -> dict[str, dict[str, int]]:
    """Domain ids of the guests on each hypervisor: 1, 2, 3 ... in the order of the file, 0 the control domain's."""
    domids: dict[str, dict[str, int]] = {hypervisor: {} for hypervisor in topology.hypervisors}
    for name, guest in topology.guests.items():
        others = sum(domid != CONTROL_DOMID for domid in domids[guest.on].values())
        domids[guest.on][name] = CONTROL_DOMID if guest.control else FIRST_DOMID + others
    return domids


def _order(topology: Topology) -> tuple[tuple[str, ...], ...]:
    by_depth: dict[int, list[str]] = {}
    for name in topology.hypervisors:
        by_depth.setdefault(len(levels.path_of(topology, name)), []).append(name)
    stages = ((BROKER,), *(tuple(by_depth[depth]) for depth in sorted(by_depth)), tuple(topology.guests))
    return tuple(stage for stage in stages if stage)
