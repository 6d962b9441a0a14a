"""Changes that somebody makes to a running lab: told to hypervisors, repeated until they answer, kept for those that
are started again.

A change has a number.  A hypervisor is told ``["order", number, what, json]`` and answers with the event
``order-done`` and the number, and words where it refuses.  A change is done when all whom it concerns have answered, or
their time is over: a revocation therefore holds everywhere before whoever asked for it is told so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from topologies.agent.phases import SECOND

ORDER, DONE = "order", "order-done"
POLICY: Final = "policy"
WITHIN: Final = 5 * SECOND
"""What hypervisors have to answer in."""

Answers = Mapping[str, str]
"""By hypervisor: "" where the change was made, else why not."""


@dataclass(slots=True)
class Order:
    """One change: what was told, to whom, and who has not answered yet."""

    number: int
    record: list[Any]
    until: int
    done: Callable[[Answers], None]
    untold: set[str]
    answers: dict[str, str] = field(default_factory=dict)


class Orders:
    """The changes of one lab.  `tell(hypervisor, record)` speaks to a hypervisor, at best."""

    def __init__(self, tell: Callable[[str, list[Any]], None]) -> None:
        self._tell = tell
        self._open: dict[int, Order] = {}
        self._standing: dict[str, list[list[Any]]] = {}
        self._number = 0

    def give(
        self,
        hypervisors: Iterable[str],
        what: str,
        data: Mapping[str, Any],
        now: int,
        done: Callable[[Answers], None],
        later: Iterable[str] = (),
    ) -> None:
        """Tell `hypervisors` a change; `done` is called once, with what came of it.

        Those of `later` are not there now, and are told when they are started.
        """
        self._number += 1
        record = [ORDER, self._number, what, json.dumps(data, sort_keys=True)]
        order = Order(self._number, record, now + WITHIN, done, set(hypervisors))
        self._open[order.number] = order
        for hypervisor in later:
            self._stand(hypervisor, record)
        for hypervisor in sorted(order.untold):
            self._tell(hypervisor, record)
        self._finish_if_done(order)

    def answered(self, hypervisor: str, number: int, words: str) -> None:
        """`hypervisor` answered a change; a second answer to a repeated one says nothing new."""
        order = self._open.get(number)
        if order is None or hypervisor not in order.untold:
            return
        order.untold.discard(hypervisor)
        order.answers[hypervisor] = words
        if not words:
            self._stand(hypervisor, order.record)
        self._finish_if_done(order)

    def _stand(self, hypervisor: str, record: list[Any]) -> None:
        """Keep a change for the hypervisor's next process, in the place of those that it undoes."""
        before = self._standing.get(hypervisor, [])
        self._standing[hypervisor] = [old for old in before if _subject(old) != _subject(record)] + [record]

    def repeat(self, hypervisor: str) -> None:
        """The hypervisor has joined a broker: say again what it has not answered."""
        for order in self._open.values():
            if hypervisor in order.untold:
                self._tell(hypervisor, order.record)

    def started_again(self, hypervisor: str) -> None:
        """A new process begins with what the topology says: tell it every change that was made since."""
        for record in self._standing.get(hypervisor, []):
            self._tell(hypervisor, record)

    def due(self, now: int) -> None:
        """Give up on those whose time is over."""
        for order in list(self._open.values()):
            if now >= order.until:
                order.answers |= dict.fromkeys(sorted(order.untold), f"no answer within {WITHIN // SECOND} s")
                order.untold.clear()
                self._finish_if_done(order)

    def moments(self) -> list[int]:
        """When to look again, whatever happens."""
        return [order.until for order in self._open.values()]

    def _finish_if_done(self, order: Order) -> None:
        if not order.untold and self._open.pop(order.number, None) is not None:
            order.done(dict(sorted(order.answers.items())))


def _subject(record: list[Any]) -> tuple[Any, ...]:
    """What a change is about: the policy, or what a guest is led by.  The last one about it counts."""
    data = json.loads(record[3])
    return () if record[2] == POLICY else (data.get("holder"), data.get("port"), data.get("source_port"))
