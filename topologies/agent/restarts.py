"""Who lives again, and when; and who must not live on.

A node that is started again waits: for its turn, which is later the more often it came, and a guest for its hypervisor
to be ready.  A hypervisor that dies takes the memory of its guests along.  Where it is started again they are too, each
as soon as its former process is gone, at the expense of the hypervisor's budget and not of their own.
"""

from __future__ import annotations

from topologies.agent.nodes import LabSink, Node, Nodes
from topologies.agent.phases import LIVING, ORPHANED, RESTART_ROWS, SECOND, UNATTACHED, NodeEvent, Phase
from topologies.runtime import NodeKind, NodeState, ending_words

DETACHED = "it closed its attach connection and lived on"
OUTLIVED = "it outlived its hypervisor"
TOO_EARLY = "its hypervisor died before it was ready"


class Restarts:
    """The part of a lab's core that gives nodes another life, or ends one that is none any more."""

    def __init__(self, nodes: Nodes, sink: LabSink) -> None:
        self._nodes = nodes
        self._sink = sink

    # ---- another life -------------------------------------------------------------------------------------

    def wanted(self, node: Node, event: NodeEvent, phase: Phase) -> bool:
        """Whether a node that ended so is to be started again, if it may."""
        if phase not in LIVING or node.state is NodeState.STOPPING:
            return False
        if node.spec.kind is NodeKind.BROKER:
            return phase is not Phase.STARTING_BROKER
        if node.spec.kind is NodeKind.HYPERVISOR:
            return node.spec.restart  # however it ended: it may not leave by itself
        under = self._nodes.under(node)
        if under is None or not (under.lives or under.state is NodeState.RESTARTING):
            return False
        return node.orphaned or (node.spec.restart and event is not NodeEvent.ENDED_ZERO)

    def begin(self, node: Node, event: NodeEvent, now: int) -> bool:
        """Have the node started again after its wait.  False: that was too often already, it stays down."""
        if node.orphaned:
            node.orphaned, node.due = False, True
        elif not self._within_budget(node, now):
            return False
        node.ended_as, node.last_error = event, ending_words(node.outcome())
        self._nodes.move(node, NodeEvent.AGAIN, now)
        if node.spec.kind is NodeKind.HYPERVISOR:
            self._take_along(node, now)
        self.start_due(now)
        return True

    def _within_budget(self, node: Node, now: int) -> bool:
        """Set the time of the node's next start, unless there were too many."""
        row = RESTART_ROWS[node.spec.kind]
        node.restarted = [at for at in node.restarted if now - at < row.within]
        if len(node.restarted) >= row.most:
            often = f"it was started again {row.most} times within {row.within // SECOND} s"
            node.detail = f"{node.detail}; {often}" if node.detail else often
            return False
        node.restart_at = now + row.wait(len(node.restarted))
        node.restarted.append(now)
        return True

    def _take_along(self, hypervisor: Node, now: int) -> None:
        """Its guests come again when it is there again."""
        for guest in self._nodes.on(hypervisor):
            if guest.state is NodeState.RESTARTING:
                guest.restart_at, guest.due = None, True
            elif guest.lives:
                guest.orphaned = guest.bereft or not guest.goodbye  # who said goodbye before else ends of itself
                if guest.state is NodeState.READY:
                    guest.kill_later(now + ORPHANED, OUTLIVED)
                else:  # it would ask on, and be let into a domain that is for its next life
                    guest.kill_later(now, TOO_EARLY)

    def comes_again(self, guest: Node) -> bool:
        """Whether a hypervisor that is started again needs a domain for `guest`."""
        return guest.state in (NodeState.PLANNED, NodeState.RESTARTING) or (guest.lives and guest.orphaned)

    def start_due(self, now: int) -> None:
        """Start whose wait is over."""
        for node in self._nodes:
            if node.restart_at is not None and now >= node.restart_at:
                node.restart_at, node.due = None, True
            if node.due and self.has_ground(node):
                node.due = False
                self._sink.start(node.spec.name)

    def has_ground(self, node: Node) -> bool:
        """Whether what the node needs is there: for a guest, its hypervisor."""
        under = self._nodes.under(node)
        return under is None or under.state is NodeState.READY

    def none_any_more(self, now: int) -> None:
        """Nobody is started any more, and nobody killed for living on: who waited shows how it ended."""
        for node in self._nodes:
            node.restart_at = node.kill_at = None
            node.due = node.orphaned = False
            if node.state is NodeState.RESTARTING:
                broker = node.spec.kind is NodeKind.BROKER
                self._nodes.move(node, NodeEvent.ASKED if broker else node.ended_as, now)

    # ---- lives that are none ------------------------------------------------------------------------------

    def detached(self, guest: Node, now: int) -> None:
        """Its attach connection ended: it has a moment to end as well."""
        if guest.lives:
            guest.kill_later(now + UNATTACHED, DETACHED)

    def left_behind(self, hypervisor: Node, now: int) -> None:
        """`hypervisor` is gone for good: who runs on it has a moment to end."""
        for guest in self._nodes.on(hypervisor):
            if guest.lives:
                guest.orphaned = False
                guest.kill_later(now + ORPHANED, OUTLIVED)

    def kill_overdue(self, now: int) -> None:
        """Kill whose moment is over."""
        for node in self._nodes:
            if node.kill_at is not None and now >= node.kill_at:
                node.kill_at = None
                node.detail = node.kill_why
                self._sink.kill(node.spec.name)
