"""What a lab waits for, in words: one sentence for each wait, which names what that wait needs in turn."""

from __future__ import annotations

from topologies.agent.checks import Checks
from topologies.agent.nodes import Node, Nodes
from topologies.agent.phases import ROWS, SECOND, Phase, Until
from topologies.runtime import NodeKind, NodeState


def untold(nodes: Nodes) -> list[Node]:
    """Hypervisors that have not given their counters, and guests that ended by themselves without a goodbye so far."""
    asked = [node for node in nodes.of(NodeKind.HYPERVISOR) if node.state is NodeState.READY]
    gone = [node for node in nodes.of(NodeKind.GUEST) if node.state in (NodeState.EXITED, NodeState.FAILED)]
    return [node for node in asked if node.counters is None] + [node for node in gone if not node.goodbye]


def sentences(phase: Phase, nodes: Nodes, checks: Checks, now: int) -> list[str]:
    """What is waited for in `phase`."""
    row = ROWS[phase]
    if row.until is Until.READY:
        return [_start_words(node, nodes) for node in nodes.of(row.kind) if not node.settled]
    if row.until is Until.ENDED:
        return [f"{row.kind} {node.spec.name} to leave" for node in nodes.of(row.kind) if node.lives]
    if row.until is Until.TOLD:
        return [f"{node.spec.kind} {node.spec.name} to report" for node in untold(nodes)]
    if phase is not Phase.RUNNING:
        return []
    words = [_again_words(node) for node in nodes.of(NodeKind.HYPERVISOR) if node.state is NodeState.RESTARTING]
    words += [f"guest {node.spec.name} to end ({node.state})" for node in nodes.of(NodeKind.GUEST) if _goes_on(node)]
    for check, at in checks.open():
        left = "" if at is None else f" ({max(0, at - now) / SECOND:.1f} s left)"
        words.append(f"check {check.name!r}: {check.words()}{left}")
    return words


def _goes_on(guest: Node) -> bool:
    return guest.lives or guest.state is NodeState.RESTARTING


def _again_words(node: Node) -> str:
    return f"{node.spec.kind} {node.spec.name} to be ready: it {node.last_error}, and is started again"


def _start_words(node: Node, nodes: Nodes) -> str:
    stage = {
        NodeState.PLANNED: "its process has not started",
        NodeState.STARTING: f"process {node.pid} has not joined the broker",
        NodeState.JOINED: f"process {node.pid} has joined, is not ready",
        NodeState.RESTARTING: f"it {node.last_error}, and is started again",
    }[node.state]
    words = f"{node.spec.kind} {node.spec.name} to be ready: {stage}"
    under = nodes.under(node)
    if under is None:
        return words
    return f"{words}; needs hypervisor {under.spec.name}, which is {under.state}"
