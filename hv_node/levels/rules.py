"""Firewall rules over (label or domain id, port) ends: the first that matches decides.  Experimental, not upstream.

Pure: a table is asked and answers.  Xen's Argo has no such rules; a firewall over domain and port by label was
announced for XSM, and OpenXT carries viptables, which this table holds too (:mod:`hv_node.levels.viptables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from hmx.errno import Errno
from hv_node.levels.narrowing import ALL_PORTS, Ranges, common, holds, normal, without

ANYBODY: Final = "*"
MAX_RULES: Final = 4096
_KNOWN_VERDICTS: Final = 4096


class Party(Protocol):
    """One end of a message: a domain of this hypervisor, or a Stranger on its way through."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def label(self) -> str:
        """Its security label, "" for none."""

    @property
    def domid(self) -> int | None:
        """Its domain id on this hypervisor, None if it has none here."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A party that has no domain on this hypervisor: a message passes through."""

    name: str
    label: str
    domid: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """`source` and `target`: a label, a domain id, or "*" for anybody.  Ports: inclusive ranges, () for all.

    `reply`: what this rule allows may be answered, where nothing else speaks against it.
    """

    source: str | int
    target: str | int
    ports: tuple[tuple[int, int], ...] = ()
    allow: bool = True
    source_ports: tuple[tuple[int, int], ...] = ()
    reply: bool = True

    def between(self, source: Party, target: Party) -> bool:
        """True if the rule speaks of these two, ports aside."""
        return _is(self.source, source) and _is(self.target, target)


def _is(who: str | int, party: Party) -> bool:
    if isinstance(who, int):
        return who == party.domid
    return who == ANYBODY or (who != "" and who == party.label)


class FrontEnd(NamedTuple):
    """Who wrote the table: what holds where no rule matches, and how a refusal looks."""

    name: str
    accept: bool  # if no rule matches
    errno: Errno
    stateful: bool  # what was allowed may be answered
    source: str


FRONT_ENDS: Final = (
    FrontEnd("firewall", False, Errno.EACCES, True, "default deny; as FLASK denies"),
    FrontEnd("viptables", True, Errno.EPERM, False, "OpenXT: an empty list accepts; v4v's patch refused with EPERM"),
)
FRONT_END_OF: Final[Mapping[str, FrontEnd]] = {row.name: row for row in FRONT_ENDS}


class Verdict(NamedTuple):
    """`rule`: its position from 0, -1 if none matched.  `reply`: the answer is allowed with it."""

    accept: bool
    rule: int
    reply: bool


class Table:
    """Rules in their order, under one front end.  Raises ValueError for more than MAX_RULES."""

    def __init__(self, front_end: FrontEnd, rules: tuple[Rule, ...] = ()) -> None:
        if len(rules) > MAX_RULES:
            raise ValueError(f"{len(rules)} rules; at most {MAX_RULES}")
        self.front_end = front_end
        self.rules = rules
        self._otherwise = Verdict(front_end.accept, -1, False)
        self._by_source_port = any(rule.source_ports for rule in rules)
        self._known: dict[tuple[object, ...], Verdict] = {}

    def judge(self, source: Party, source_port: int | None, target: Party, port: int) -> Verdict:
        """What becomes of a message.  `source_port` None: accepted if it would be from some port."""
        asked = source_port if self._by_source_port else 0
        key = (source.label, source.domid, asked, target.label, target.domid, port)
        verdict = self._known.get(key)
        if verdict is None:
            if len(self._known) >= _KNOWN_VERDICTS:
                self._known.clear()
            verdict = self._known[key] = self._judge(source, asked, target, port)
        return verdict

    def _judge(self, source: Party, source_port: int | None, target: Party, port: int) -> Verdict:
        left: Ranges = ALL_PORTS if source_port is None else ((source_port, source_port),)
        for position, rule in enumerate(self.rules):
            if not rule.between(source, target) or (rule.ports and not holds(rule.ports, port)):
                continue
            theirs = normal(rule.source_ports) or ALL_PORTS
            if rule.allow:
                if common(left, theirs):
                    return Verdict(True, position, rule.reply and self.front_end.stateful)
                continue
            left = without(left, theirs)
            if not left:
                return Verdict(False, position, False)
        return self._otherwise

    def could_send(self, source: Party, target: Party) -> bool:
        """True if some rule, or what holds without one, lets something pass: not a promise for any port."""
        return self.front_end.accept or any(rule.allow and rule.between(source, target) for rule in self.rules)
