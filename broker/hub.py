"""What the switch sees of the router around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from broker.lifecycle import Node
from broker.refusals import Refusal


class Hub(Protocol):
    """What the switch needs of the router around it."""

    epoch: int
    nodes: dict[str, Node]
    counters: Counter[str]

    def touch(self, node: Node) -> None:
        """There is something to send to `node`."""
        ...

    def say(self, node: Node, record: Sequence[Any]) -> None:
        """Queue a control record of the broker's own."""
        ...

    def report(self, node: Node, code: Refusal, detail: str) -> None:
        """Refuse a record of `node`, count it and let subscribers know; the session goes on."""
        ...

    def count_refusal(self, node: Node, code: Refusal, detail: str) -> None:
        """The same without a word to `node`."""
        ...
