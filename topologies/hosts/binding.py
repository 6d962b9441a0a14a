"""What the broker believes of which host: names, paths and labels of the plan, bound to the hosts that run them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from broker.binding import Binding
from topologies.agent.spec import LabSpec
from topologies.hosts.names import AGENT, agent_name
from topologies.levels import STEAL
from topologies.runtime import NodeKind

LEADER: Final = "@"
"""The leader's host where the topology has no name for it; no entry of `hosts` is called so."""


def binding_of(spec: LabSpec, here: Collection[str]) -> dict[str, Any]:
    """The fields `host` and `binding` of the broker's configuration.

    Args:
        spec: The lab.
        here: Hosts that are this machine in truth; they have no key of their own.
    """
    leader = spec.leader or LEADER

    def bound(host: str) -> str:
        return leader if not host or host in here or host == spec.leader else host

    nodes = [node for node in spec.nodes if node.kind is not NodeKind.BROKER]
    paths = {node.name: _path(node.config) for node in nodes if node.kind is NodeKind.HYPERVISOR}
    labels = {
        (*paths[node.name], domain.name): getattr(domain, "label", "")
        for node in nodes
        if node.kind is NodeKind.HYPERVISOR
        for domain in node.config.domains
        if not getattr(domain, "nested", False)
    }
    # A guest whose calls the hypervisor around its own takes lives there, for all others (hv_node/levels/wards.py).
    labels |= {
        (*paths[node.name], ward.name): ward.label
        for node in nodes
        if node.kind is NodeKind.HYPERVISOR
        for domain in node.config.domains
        if getattr(domain, "mode", "own") == STEAL
        for ward in domain.wards
    }
    hosts = [(node.name, bound(node.host)) for node in nodes]
    hosts += [(agent_name(host.name), bound(host.name)) for host in spec.hosts]
    return {
        "host": leader,
        "binding": Binding(((AGENT, leader), *hosts), tuple(paths.values()), tuple(labels.items())),
    }


def _path(config: Any) -> tuple[str, ...]:
    return tuple(getattr(config, "path", ()) or (config.name,))
