"""What others of the same user change in a running lab over the control socket: slots, policy, faults of links.

Hypervisors are told by :class:`Orders`, and told again whenever they join a broker; the broker is told what its links
do to those who use them, and told again when it is another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from topologies.agent.core import LabCore
from topologies.agent.labels import WITHIN as BROKER_WITHIN
from topologies.agent.labels import Labels
from topologies.agent.orders import ORDER, POLICY, Answers, Orders
from topologies.runtime import ENDED, NodeKind, NodeState

MAX_ORDER: Final = 60_000
"""Bytes of JSON; what the broker carries in one text, and room for the rest of the record."""
_WHATS: Final = ("connect", "disconnect", "policy")

Reply = Callable[[dict[str, Any]], None]
Pair = tuple[str, str]


class Refused(ValueError):
    """A request that cannot be carried out."""


class Changes:
    """The changes of one lab.

    Args:
        core: the lab.
        tell: says something to a node, at best.
        say: says something to the broker.
    """

    def __init__(
        self,
        core: LabCore,
        tell: Callable[[str, list[Any]], None],
        say: Callable[[list[Any]], None],
    ) -> None:
        self._core = core
        self._say = say
        self._orders = Orders(tell)
        self._impaired: dict[Pair, list[Any]] = {}
        self._asked: dict[Pair, tuple[int, Reply]] = {}
        self._labels = Labels(say)

    # ---- requests -----------------------------------------------------------------------------------------

    def request(self, fields: Mapping[str, Any], now: int, reply: Reply) -> None:
        """Carry out an `order` or `impair`; `reply` is called once, perhaps before this returns.  Raises Refused."""
        if fields.get("op") == ORDER:
            self._order(fields, now, reply)
        else:
            self._impair(fields, now, reply)

    def _order(self, fields: Mapping[str, Any], now: int, reply: Reply) -> None:
        match fields:
            case {"to": [*names], "what": str(what), "data": dict(data)} if what in _WHATS:
                pass
            case _:
                raise Refused("an order says to whom, what, and its data")
        known = {node.spec.name: node for node in self._core.nodes() if node.spec.kind is NodeKind.HYPERVISOR}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise Refused(f"no hypervisor {unknown[0]!r}")
        if len(json.dumps(data)) > MAX_ORDER:
            raise Refused(f"an order holds at most {MAX_ORDER} bytes")
        there = [name for name in names if known[name].state is NodeState.READY]
        later = [name for name in names if name not in there and known[name].state not in ENDED]

        if names and not there and not later:
            raise Refused(f"hypervisor {names[0]} is not there any more")

        def done(answers: Answers) -> None:
            reply({"what": "answers", "answers": dict(answers)})

        labels = data.get("labels")
        if what != POLICY or labels is None:
            self._orders.give(there, what, data, now, done, later)
            return
        if self._labels.waits:
            raise Refused("the policy is just being changed")
        if not isinstance(labels, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in labels):
            raise Refused("labels are pairs of a guest and its label")

        # The broker first: it believes a guest's former label as well, hypervisors say one.
        self._labels.give(labels, now, lambda at: self._orders.give(there, what, data, at, done, later))

    def _impair(self, fields: Mapping[str, Any], now: int, reply: Reply) -> None:
        match fields:
            case {"between": [str(a), str(b)], "values": [int() | float(), *_] as values} if len(values) == 7:
                pass
            case _:
                raise Refused("an impairment has two ends and seven values")
        pair = (a, b)
        if pair in self._asked:
            raise Refused(f"{a} - {b} is just being changed")
        self._asked[pair] = now + BROKER_WITHIN, reply
        self._impaired[pair] = values
        self._say(["impair", a, b, values])

    # ---- answers ------------------------------------------------------------------------------------------

    def impaired(self, a: str, b: str) -> None:
        """The broker has changed a link."""
        _, reply = self._asked.pop((a, b), (0, None))
        if reply is not None:
            reply({"what": "answers", "answers": {"broker": ""}})

    def relabelled(self, number: int, now: int) -> None:
        """The broker has taken a part of the labels."""
        self._labels.taken(number, now)

    def answered(self, hypervisor: str, number: int, words: str) -> None:
        """A hypervisor has carried out an order, or says why not."""
        self._orders.answered(hypervisor, number, words)

    # ---- lives --------------------------------------------------------------------------------------------

    def welcome(self) -> None:
        """A broker has let the agent in: it may be another one, that knows its configuration only."""
        for (a, b), values in self._impaired.items():
            self._say(["impair", a, b, values])
        self._labels.repeat()

    def present(self, config: Any) -> Any:
        """The start arguments of a node, with what nobody could tell it before others speak to it."""
        return self._labels.present(config)

    def joined(self, hypervisor: str) -> None:
        """A hypervisor has joined a broker, perhaps as a new process; it knows what it was told already."""
        self._orders.started_again(hypervisor)
        self._orders.repeat(hypervisor)

    def repeat(self, hypervisor: str) -> None:
        """Say again to `hypervisor` what it has not answered."""
        self._orders.repeat(hypervisor)

    # ---- time ---------------------------------------------------------------------------------------------

    def serve(self, now: int) -> None:
        """Give up on those whose time is over."""
        self._orders.due(now)
        self._labels.due(now)
        for pair, (until, reply) in list(self._asked.items()):
            if now >= until:
                del self._asked[pair], self._impaired[pair]
                reply({"what": "error", "words": f"the broker knows no link {pair[0]} - {pair[1]}, or is not there"})

    def moments(self) -> list[int]:
        """When to look again, whatever happens."""
        moments = [*self._orders.moments(), *(until for until, _ in self._asked.values())]
        return [*moments, *self._labels.moments()]
