"""The hypervisors right below the fabric: who is there, and what each is told of the others.

Each hears of every other `["peer", name, state, epoch, pid]`: that it is up, that the link to it is down, that it is
dead; and of which process that is said, since a life that ended unseen is over all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.lifecycle import Node, State

if TYPE_CHECKING:
    from broker.binding import Judge
    from broker.hub import Hub
    from broker.impair import Lines


class Peers:
    """Of one fabric; `lines` knows which links are cut."""

    def __init__(self, hub: Hub, judge: Judge, lines: Lines[Any]) -> None:
        self._hub = hub
        self._judge = judge
        self._lines = lines

    def holds(self, node: Node) -> bool:
        """Whether `node` is a hypervisor right below the fabric."""
        return self._judge.joined_by_fabric(node.name, node.kind)

    def present(self) -> list[Node]:
        """Those that have a session."""
        return [node for node in self._hub.nodes.values() if node.live and self.holds(node)]

    def target(self, sender: Node, name: str) -> Node | None:
        """The one of that name, if `sender` can reach it."""
        target = self._hub.nodes.get(name)
        return target if target is not None and target is not sender and target.live and self.holds(target) else None

    def introduce(self, node: Node) -> None:
        """One has a new session: it learns of the others, and they of it."""
        for other in self._hub.nodes.values():
            if other is not node and self.holds(other):
                self.tell(node, other)
        self.tell_others(node)

    def tell_others(self, node: Node, state: str | None = None) -> None:
        """Tell all others of one; `state`: not what it is but what became of its former session."""
        for other in self.present():
            if other is not node:
                self.tell(other, node, state)

    def tell(self, listener: Node, node: Node, state: str | None = None) -> None:
        """Tell one of another."""
        self._hub.say(listener, ["peer", node.name, state or self._state(listener, node), self._hub.epoch, node.pid])

    def _state(self, listener: Node, node: Node) -> str:
        if node.state is State.EXITED:
            return "dead"
        return "up" if node.live and not self._lines.of(listener.name, node.name).cut else "down"
