"""Orders: changes of slots and policy, as the toolstack says them to a running hypervisor.  Experimental.

An order is a number, a word and JSON: `connect` (a SlotConfig), `disconnect` (holder, port, source_port), `policy` (a
PolicyConfig).  It may come twice; it is carried out once, and answered each time it comes when it holds everywhere:
with "", or with words that say why it cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from hv_node.config import PolicyConfig, RuleConfig, SlotConfig
from hv_node.levels.furnish import Furniture
from hv_node.levels.policy import OPERATIONS
from hv_node.levels.slot_table import SlotError

KEPT: Final = 1024
"""Answers that are kept for orders that come again."""

_OPERATIONS: Final = tuple(row.name for row in OPERATIONS)

Answer = Callable[[int, str], None]


class OrderError(ValueError):
    """JSON that is not what an order holds."""


class Orders:
    """The orders of one hypervisor.  `answer(number, words)` tells the toolstack."""

    def __init__(self, furniture: Furniture, answer: Answer) -> None:
        self._furniture = furniture
        self._answer = answer
        self._known: dict[int, str | None] = {}  # None: not carried out yet

    def order(self, number: int, what: str, text: str) -> None:
        """Carry out an order, or answer once more one that is."""
        if number in self._known:
            words = self._known[number]
            if words is not None:
                self._answer(number, words)
            return
        self._known[number] = None
        try:
            self._carry_out(what, _parsed(text), lambda words: self._done(number, words))
        except (OrderError, SlotError, ValueError) as error:
            self._done(number, str(error))

    def _carry_out(self, what: str, data: dict[str, Any], done: Callable[[str], None]) -> None:
        match what:
            case "connect":
                self._furniture.connect(slot(data), done)
            case "disconnect":
                self._furniture.disconnect(
                    _text(data, "holder"), _whole_or_none(data, "port"), _whole_or_none(data, "source_port"), done
                )
            case "policy":
                self._furniture.judge_by(policy(data))
                done("")
            case _:
                raise OrderError(f"no order {what!r}")

    def _done(self, number: int, words: str) -> None:
        self._known[number] = words
        for old in [known for known, said in self._known.items() if said is not None][:-KEPT]:
            del self._known[old]
        self._answer(number, words)


# -- JSON --


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OrderError(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise OrderError("an order holds an object")
    return found


def slot(data: dict[str, Any]) -> SlotConfig:
    """A slot as the planner writes it.  Raises OrderError."""
    rate = data.get("rate", 0.0)
    number = data.get("slot")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1e9:
        raise OrderError("rate: messages a second")
    if not isinstance(number, int):
        raise OrderError("slot: a number")
    return SlotConfig(
        holder=_text(data, "holder"),
        slot=number,
        source_port=_whole_or_none(data, "source_port"),
        port=_whole_or_none(data, "port"),
        to=tuple(str(name) for name in _items(data, "to")),
        to_port=_whole_or_none(data, "to_port"),
        types=tuple(_whole(kind) for kind in _items(data, "types")),
        rate=float(rate),
        delegable=bool(data.get("delegable", False)),
    )


def policy(data: dict[str, Any]) -> PolicyConfig:
    """A policy as the planner writes it.  Raises OrderError."""
    rules = tuple(_rule(row) for row in _items(data, "rules"))
    refused = tuple(_refused(pair) for pair in _items(data, "permissions"))
    labels = None if data.get("labels") is None else tuple(_label(pair) for pair in _items(data, "labels"))
    return PolicyConfig(_text(data, "module"), rules, refused, labels)


def _label(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
        raise OrderError("labels: pairs of a guest and its label")
    return pair[0], pair[1]


def _refused(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or pair[1] not in _OPERATIONS:
        raise OrderError(f"permissions: pairs of a label and one of {', '.join(_OPERATIONS)}")
    return str(pair[0]), pair[1]


def _rule(row: Any) -> RuleConfig:
    if not isinstance(row, dict):
        raise OrderError("a rule is an object")
    ends = all(isinstance(row.get(key), str | int) for key in ("source", "target"))
    if not ends or not isinstance(row.get("allow"), bool):
        raise OrderError("a rule has a source, a target and a verdict")
    return RuleConfig(row["source"], row["target"], _ranges(row, "ports"), row["allow"], _ranges(row, "source_ports"))


def _ranges(row: dict[str, Any], key: str) -> tuple[tuple[int, int], ...]:
    found = []
    for pair in _items(row, key):
        if not isinstance(pair, list) or len(pair) != 2:
            raise OrderError(f"{key}: ranges of ports")
        found.append((_whole(pair[0]), _whole(pair[1])))
    return tuple(found)


def _items(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise OrderError(f"{key}: a list")
    return found


def _text(data: dict[str, Any], key: str) -> str:
    found = data.get(key)
    if not isinstance(found, str) or not found:
        raise OrderError(f"{key}: a text")
    return found


def _whole(found: Any) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise OrderError(f"{found!r:.40}: a whole number")
    return found


def _whole_or_none(data: dict[str, Any], key: str) -> int | None:
    found = data.get(key)
    return None if found is None else _whole(found)
