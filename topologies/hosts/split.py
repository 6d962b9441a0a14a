"""Which host runs what: a pure function of the plan.

A hypervisor runs on the host of the outermost hypervisor around it, a guest with its hypervisor unless it names a host
itself.  What names no host runs with the leader.  Without `hosts` everything does, and there is nothing else.
"""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from guest_node.config import GuestConfig
from hv_node.config import HypervisorConfig
from topologies.hosts.provider import HostSpec

if TYPE_CHECKING:
    from topologies.plan import Plan

HERE: Final = ""
"""The leader's host where the topology has no name for it."""
LOCAL: Final = "local"
HOST_TIMEOUT_NS: Final = 10_000_000_000

Config = TypeVar("Config", HypervisorConfig, GuestConfig)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What one host runs."""

    host: HostSpec
    leads: bool
    hypervisors: tuple[HypervisorConfig, ...] = ()
    guests: tuple[GuestConfig, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its nodes."""
        return (*(config.name for config in self.hypervisors), *(config.name for config in self.guests))


@dataclass(frozen=True, slots=True)
class HostPlaces:
    """Where a host keeps its part of a lab, as its agent says."""

    run_dir: str
    sockets: str


def split(plan: Plan) -> dict[str, HostPlan]:
    """What each host runs, the leader's first.  Hosts on which nothing runs are not in it, but for the leader's."""
    hosts = {name: host_spec(name, keys or {}) for name, keys in plan.topology.get("hosts", {}).items()}
    leader = leader_of(hosts)
    names = [leader, *(name for name in hosts if name != leader)]
    nodes = [config.name for config in plan.hypervisors] + [config.name for config in plan.guests]
    homes = {node: home_of(plan.topology, node, leader) for node in nodes}
    parts = [
        HostPlan(
            hosts.get(name, HostSpec(name)),
            name == leader,
            tuple(config for config in plan.hypervisors if homes[config.name] == name),
            tuple(config for config in plan.guests if homes[config.name] == name),
        )
        for name in names
    ]
    return {part.host.name: part for part in parts if part.leads or part.names}


def leader_of(hosts: Mapping[str, HostSpec]) -> str:
    """The host on which `argosy` was started: the first of provider `local`, if there is one."""
    return next((name for name, host in hosts.items() if host.provider == LOCAL), HERE)


def home_of(topology: Mapping[str, Any], node: str, leader: str) -> str:
    """The host on which `node`, a guest or a hypervisor, runs."""
    hypervisors: Mapping[str, Any] = topology.get("hypervisors", {})
    guest = topology.get("guests", {}).get(node)
    if guest is not None:
        if guest.get("host"):
            return str(guest["host"])
        node = guest["on"]
    seen: set[str] = set()
    while (parent := hypervisors.get(node, {}).get("parent")) and node not in seen:
        seen.add(node)
        node = parent
    return str(hypervisors.get(node, {}).get("host") or leader)


def host_spec(name: str, keys: Mapping[str, Any]) -> HostSpec:
    """The entry `name` of the topology's `hosts`."""
    return HostSpec(
        name=name,
        provider=keys.get("provider", LOCAL),
        address=keys.get("address", ""),
        port=keys.get("port", 0),
        python=keys.get("python", ""),
        ssh_config=keys.get("ssh-config", ""),
        directory=keys.get("directory", ""),
    )


def host_timeout_ns(plan: Plan) -> int:
    """How long a host may be silent before it counts as lost."""
    from topologies.units import parse_duration

    said = plan.topology.get("host-timeout", HOST_TIMEOUT_NS)
    return parse_duration(said) if isinstance(said, str) else int(said)


def placed(config: Config, places: HostPlaces, endpoint: str, directory: str = "") -> Config:
    """`config` with the directories of another host.

    Args:
        config: As planned for the leader's machine.
        places: Those of the host.
        endpoint: Where the host reaches the broker; "" for the planned one.
        directory: Where the topology's files lie there; "" for the same path.
    """
    node_dir = f"{places.run_dir}/nodes/{config.name}"
    endpoint = endpoint or config.broker_endpoint
    if isinstance(config, HypervisorConfig):
        attach = f"{places.sockets}/{os.path.basename(config.attach_path)}"
        return dataclasses.replace(config, node_dir=node_dir, attach_path=attach, broker_endpoint=endpoint)
    return dataclasses.replace(
        config,
        node_dir=node_dir,
        output_dir=node_dir,
        broker_endpoint=endpoint,
        base_dir=directory or config.base_dir,
    )
