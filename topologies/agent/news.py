"""What the agent hears over the broker, and what that means for the lab."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from broker.frames import Lane
from broker.router import SILENCE_NS
from topologies.agent.changes import Changes
from topologies.agent.core import LabCore
from topologies.agent.journal import Journal
from topologies.agent.lives import Lives

TOLD_BY_BROKER = ("joined", "ready")
"""States of a node that stand in its events because the broker announces them."""


class News:
    """Tells the core, the lab's domains and the journal.

    Args:
        core: the lab.
        journal: where events are written down.
        lives: who cares for domains.
        changes: who cares for orders.
        on_counters: called with a hypervisor's name when it has told its counters.
        on_lost: called with the name of a node that was not reached by what it must hear.
        on_stranger: called with name and state of what joined the fabric and is no node of the lab's.
    """

    def __init__(
        self,
        core: LabCore,
        journal: Journal,
        lives: Lives,
        changes: Changes,
        on_counters: Callable[[str], None],
        on_lost: Callable[[str], None],
        on_stranger: Callable[[str, str], None] | None = None,
    ) -> None:
        self._core = core
        self._journal = journal
        self._lives = lives
        self._changes = changes
        self._on_counters = on_counters
        self._on_lost = on_lost
        self._on_stranger = on_stranger
        self._early: dict[str, list[tuple[str, str]]] = {}
        self._goodbyes: dict[str, str] = {}

    def on_record(self, _lane: Lane, record: Any, _payload: Any) -> None:
        """Take what the broker said."""
        now = time.monotonic_ns()
        match list(record):
            case ["node", str(name), _kind, str(state), str(detail)]:
                self._on_node(name, state, detail, now)
            case ["event", str(origin), "result", _name, str(text)]:
                self._core.result(origin, _json_object(text))
                self.note(origin, "result", (_json_object(text),))
            case ["event", str(origin), "order-done", int(number), str(words)]:
                self._changes.answered(origin, number, words)
                self.note(origin, "order-done", (number, words))
            case ["relabelled", int(number)]:
                self._changes.relabelled(number, now)
            case ["impaired", str(a), str(b), *_]:
                self._changes.impaired(a, b)
            case ["event", str(origin), str(code), *fields]:
                self._core.event(origin, code, tuple(fields))
                if code == "probe":
                    self._journal.probes[origin] = tuple(fields)
                self.note(origin, code, tuple(fields))
                self._lives.on_domain(origin, code, fields, now)
            case ["nobody" | "busy", str(name), ["exited" | "create" | "order", *_]]:
                self._on_lost(name)
            case ["busy", str(name), ["peer", *_]]:  # where nobody is, it will be told when it joins
                self._on_lost(name)
            case ["told", str(name), ["counters", str(text)]]:
                self._core.counters(name, _json_object(text), now)
                self._on_counters(name)
            case _:
                pass  # refusals of what we told a node that has just gone, the broker's farewell

    def _on_node(self, name: str, state: str, detail: str, now: int) -> None:
        node = self._core.node(name)
        if node is None and self._on_stranger is not None:
            self._on_stranger(name, state)
        if node is None:
            return  # the agent itself
        if state in TOLD_BY_BROKER and _pid(detail) not in (None, node.pid):
            # Late news of a former life; of a node on another host perhaps early news of the next.
            if node.spec.host:
                self._early[name] = [*self._early.get(name, [])[-3:], (state, detail)]
            return
        self.note(name, state, (detail,))
        if state == "joined":
            self._core.joined(name, now)
            self._lives.repeat(name)
            self._changes.joined(name)
        elif state == "ready":
            self._core.ready(name, now)
        elif state == "exited":
            if node.spec.host and node.lives:
                self._goodbyes[name] = detail  # its host tells in which order it and others ended
            else:
                self._said_goodbye(name, detail, now)
        self._core.silent(name, now - SILENCE_NS if state == "unresponsive" else None)
        self._journal.touch()

    def spawned(self, name: str, pid: int) -> None:
        """The process of a node on another host runs, of which the fabric may have told before its agent did."""
        for state, detail in self._early.pop(name, []):
            if _pid(detail) == pid:
                self._on_node(name, state, detail, time.monotonic_ns())

    def ended(self, name: str) -> None:
        """The process of a node on another host has ended: its goodbye, if it was heard, counts from now on."""
        detail = self._goodbyes.pop(name, None)
        if detail is not None:
            self._said_goodbye(name, detail, time.monotonic_ns())

    def _said_goodbye(self, name: str, detail: str, now: int) -> None:
        code, words = _goodbye(detail)
        self._core.said_goodbye(name, words, now, code)

    def broker_silent(self, name: str, since: int | None) -> None:
        """Nobody but the agent can tell that the broker `name` is silent, or (None) is heard."""
        node = self._core.node(name)
        if node is not None and (node.silent_since_ns is None) != (since is None):
            self._core.silent(name, since)
            self.note(name, "unresponsive" if since is not None else "heard", ())
            self._journal.touch()

    def note(self, node: str, code: str, fields: tuple[Any, ...]) -> None:
        """Write an event down, if it is one of the lab's nodes'."""
        if self._core.node(node) is not None:
            self._journal.event(node, code, fields)


def _goodbye(detail: str) -> tuple[int, str]:
    """Exit code and the node's own words in the broker's ``exit 3: words``; what is written otherwise is all words."""
    head, colon, words = detail.partition(": ")
    code = head.removeprefix("exit ")
    return int(code) if code.removeprefix("-").isdecimal() else 0, words.strip() if colon else detail


def _pid(detail: str) -> int | None:
    """The process that the broker's ``pid 17, was in epoch 1`` speaks of."""
    words = detail.replace(",", " ").split()
    return int(words[1]) if words[:1] == ["pid"] and words[1:] and words[1].isdigit() else None


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
