"""The checks of a run: open until their guest has ended, or their time is up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from topologies.agent.nodes import Nodes
from topologies.agent.spec import CheckSpec
from topologies.runtime import ENDED, CheckOutcome, ending_words


class Checks:
    """What is checked, and what came of it."""

    def __init__(self, specs: Iterable[CheckSpec], nodes: Nodes) -> None:
        self._specs = tuple(specs)
        self._nodes = nodes
        self._outcomes = {
            check.name: CheckOutcome(check.name, check.guest, None, "not decided") for check in self._specs
        }
        self.ready_at: int | None = None
        """When the lab was ready: from then on their time counts."""

    def outcomes(self) -> tuple[CheckOutcome, ...]:
        """Every check, in the order of the plan."""
        return tuple(self._outcomes.values())

    @property
    def decided(self) -> bool:
        """Whether there are checks, and none is open."""
        return bool(self._outcomes) and all(check.passed is not None for check in self._outcomes.values())

    def open(self) -> Iterator[tuple[CheckSpec, int | None]]:
        """Checks that are not decided, each with its deadline."""
        for check in self._specs:
            if self._outcomes[check.name].passed is None:
                if check.within_ns is None or self.ready_at is None:
                    yield check, None
                else:
                    yield check, self.ready_at + check.within_ns

    def decide(self, now: int) -> bool:
        """Decide what can be decided.  Whether a check failed just now."""
        failed = False
        for check, at in list(self.open()):
            node = self._nodes[check.guest]
            late = at is not None and now >= at
            if node.state in ENDED:
                passed = check.met_by(node.exit, node.signal) and not late
                words = f"guest {check.guest} {ending_words(node.outcome())}"
            elif late:
                passed, words = False, f"guest {check.guest} has not ended"
            else:
                continue
            if not passed:
                words = f"{words}; expected: {check.words()}"
            self._outcomes[check.name] = CheckOutcome(check.name, check.guest, passed, words)
            failed = failed or not passed
        return failed
