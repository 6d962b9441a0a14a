"""What becomes a lab's outcome: how nodes and checks ended, what else went wrong, and what was reported meanwhile."""

from __future__ import annotations

from typing import Any, Final

from topologies.agent.checks import Checks
from topologies.agent.nodes import Nodes
from topologies.agent.spec import LabSpec, Mode
from topologies.exitcodes import ExitCode
from topologies.runtime import Fault, Outcome, judge

EVENTS_KEPT: Final = 10_000


class Verdict:
    """Of one lab; it can be asked at any time and is final when the lab is down."""

    def __init__(self, spec: LabSpec, nodes: Nodes, checks: Checks) -> None:
        self._spec = spec
        self._nodes = nodes
        self._checks = checks
        self._faults: list[Fault] = []
        self._events: list[tuple[Any, ...]] = []

    def blame(self, fault: Fault) -> None:
        """Something went wrong that no node's ending tells."""
        self._faults.append(fault)

    def broken(self, words: str) -> None:
        """It was the machines' doing, not the lab's."""
        self.blame(Fault(ExitCode.INFRASTRUCTURE, words))

    def event(self, origin: str, code: str, fields: tuple[Any, ...]) -> None:
        """`origin` reported an event."""
        if len(self._events) < EVENTS_KEPT:
            self._events.append((origin, code, *fields))
        match (code, *fields):
            case ("domain-crashed", str(name), int(domid), str(words)):
                node = self._nodes.get(name)
                if node is not None and (node.spec.hypervisor, node.domid) == (origin, domid):
                    # All that the guest itself knows is that it has no hypervisor any more.
                    node.detail = f"its domain crashed: {words}"

    def outcome(self, seconds: float) -> Outcome:
        """How it went so far, `seconds` after it began."""
        spec = self._spec
        nodes = tuple(node.outcome() for node in self._nodes)
        checks = self._checks.outcomes()
        if spec.mode is Mode.UP and self._checks.ready_at is not None:
            # A lab that stays up tells of the deaths in it; they are no verdict on having been up.
            code, reasons = judge((), (), (), self._faults)
        else:
            code, reasons = judge(nodes, checks, spec.checks, self._faults)
        return Outcome(
            lab=spec.name,
            runtime="processes",
            code=code,
            reasons=reasons,
            nodes=nodes,
            checks=checks,
            events=tuple(self._events),
            seconds=round(seconds, 6),
            run_dir=spec.run_dir,
        )
