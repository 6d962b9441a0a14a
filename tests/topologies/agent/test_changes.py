"""Changes over the control socket: who is told, what is refused, and what another broker or hypervisor hears again."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from broker.binding import Binding
from tests.topologies.agent.doubles import Driver, lab_spec
from topologies.agent.changes import MAX_ORDER, Changes, Refused
from topologies.agent.labels import PART
from topologies.agent.labels import WITHIN as BROKER_WITHIN
from topologies.runtime import NodeState

VALUES = [0, 0, 0.5, 0, 0.0, 0.0, False]
POLICY = {"op": "order", "to": ["hv0", "hv1"], "what": "policy", "data": {"rules": []}}


@dataclass(frozen=True)
class Bound:
    """What of a broker's configuration matters here."""

    binding: Binding


class Desk:
    """Changes of a lab with two hypervisors, which are ready."""

    def __init__(self) -> None:
        driver = Driver(lab_spec(hypervisors=("hv0", "hv1"), restart=("hv1",)))
        self.core = driver.core
        self.told: list[tuple[str, list[Any]]] = []
        self.said: list[list[Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.changes = Changes(
            self.core, lambda name, record: self.told.append((name, record)), lambda record: self.said.append(record)
        )
        for name in ("hv0", "hv1"):
            self.state(name, NodeState.READY)

    def state(self, name: str, state: NodeState) -> None:
        node = self.core.node(name)
        assert node is not None
        node.state = state

    def ask(self, fields: dict[str, Any], now: int = 0) -> None:
        self.changes.request(fields, now, self.replies.append)

    def names(self) -> list[str]:
        told, self.told = [name for name, _ in self.told], []
        return told


def test_an_order() -> None:
    """Both are told; the reply has both answers."""
    desk = Desk()
    desk.ask(POLICY)
    assert desk.told[0][1] == ["order", 1, "policy", '{"rules": []}']
    assert desk.names() == ["hv0", "hv1"]
    desk.changes.answered("hv0", 1, "")
    desk.changes.repeat("hv1")
    assert desk.names() == ["hv1"]
    assert desk.replies == [] and desk.changes.moments()
    desk.changes.answered("hv1", 1, "no")
    assert desk.replies == [{"what": "answers", "answers": {"hv0": "", "hv1": "no"}}]
    desk.changes.joined("hv0")
    desk.changes.joined("hv1")
    assert desk.names() == ["hv0"]  # what it accepted; the other begins with what the topology says


def test_who_is_not_there() -> None:
    """One that comes again is told then; one that ended is not waited for; if there is nobody, that is said."""
    desk = Desk()
    desk.state("hv0", NodeState.DIED)
    desk.state("hv1", NodeState.RESTARTING)
    desk.ask(POLICY)
    assert desk.replies == [{"what": "answers", "answers": {}}]
    assert desk.names() == []
    desk.changes.joined("hv1")
    desk.changes.joined("hv0")
    assert desk.names() == ["hv1"]
    with pytest.raises(Refused, match="hv0 is not there any more"):
        desk.ask({**POLICY, "to": ["hv0"]})


def test_the_last_change_about_something_counts() -> None:
    """A hypervisor that comes again is not told what was undone."""
    desk = Desk()
    slot = {"holder": "app", "port": 7, "source_port": None}
    for what, data in (("connect", slot), ("policy", {}), ("disconnect", slot), ("connect", {**slot, "port": 8})):
        desk.ask({"op": "order", "to": ["hv0"], "what": what, "data": data})
    for number in (1, 2, 3, 4):
        desk.changes.answered("hv0", number, "")
    desk.told.clear()
    desk.changes.joined("hv0")
    assert [record[1:3] for _, record in desk.told] == [[2, "policy"], [3, "disconnect"], [4, "connect"]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"op": "order"}, "says to whom"),
    ({**POLICY, "what": "dance"}, "says to whom"),
    ({**POLICY, "data": []}, "says to whom"),
    ({**POLICY, "to": ["hv9"]}, "no hypervisor 'hv9'"),
    ({**POLICY, "to": ["sender"]}, "no hypervisor 'sender'"),
    ({**POLICY, "data": {"x": "y" * MAX_ORDER}}, "at most"),
    ({"op": "impair", "between": ["hv0"], "values": VALUES}, "two ends"),
    ({"op": "impair", "between": ["hv0", "hv1"], "values": VALUES[:6]}, "seven values"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_requests_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    """Nobody is told anything."""
    desk = Desk()
    with pytest.raises(Refused, match=words):
        desk.ask(fields)
    assert (desk.told, desk.said) == ([], [])


def test_a_link_is_impaired() -> None:
    """The broker says so; another broker is told again; one that says nothing is not waited for."""
    desk = Desk()
    link = {"op": "impair", "between": ["hv0", "hv1"], "values": VALUES}
    desk.ask(link)
    assert desk.said == [["impair", "hv0", "hv1", VALUES]]
    with pytest.raises(Refused, match="just being changed"):
        desk.ask(link)
    desk.changes.impaired("hv0", "hv1")
    desk.changes.impaired("hv0", "hv1")
    assert desk.replies == [{"what": "answers", "answers": {"broker": ""}}]
    desk.changes.welcome()
    assert desk.said[1:] == [["impair", "hv0", "hv1", VALUES]]
    desk.ask(link, now=5)
    assert desk.changes.moments() == [5 + BROKER_WITHIN]
    desk.changes.serve(5 + BROKER_WITHIN)
    assert desk.replies[1]["what"] == "error"
    assert desk.changes.moments() == []


def relabel(labels: list[list[str]]) -> dict[str, Any]:
    return {**POLICY, "data": {"rules": [], "labels": labels}}


def test_labels_are_told_to_the_broker_first() -> None:
    """In parts; hypervisors hear of the policy when it has them all, and another broker is told them again."""
    desk = Desk()
    desk.ask(relabel([[f"g{number}", "t"] for number in range(PART + 1)]))
    assert [(record[:2], record[2][:3], len(record[2])) for record in desk.said] == [
        (["relabel", 1], ["labels", "g0", "t"], 2 * PART + 1),
        (["relabel", 1], ["labels", f"g{PART}", "t"], 3),
    ]
    with pytest.raises(Refused, match="just being changed"):
        desk.ask(relabel([]))
    desk.changes.relabelled(1, 0)
    desk.changes.relabelled(0, 0)
    assert desk.names() == []
    desk.changes.relabelled(1, 0)
    assert desk.names() == ["hv0", "hv1"]
    desk.changes.relabelled(1, 0)
    desk.changes.welcome()
    assert (len(desk.said), desk.names()) == (4, [])
    desk.ask(relabel([]))
    assert desk.said[4:] == [["relabel", 2, ["labels"]]]


def test_no_broker_is_waited_for() -> None:
    """It is told when there is one again; the hypervisors judge by the policy meanwhile."""
    desk = Desk()
    desk.ask(relabel([["g", "t"]]), now=5)
    assert desk.changes.moments() == [5 + BROKER_WITHIN]
    desk.changes.serve(5 + BROKER_WITHIN - 1)
    assert desk.names() == []
    desk.changes.serve(5 + BROKER_WITHIN)
    assert desk.names() == ["hv0", "hv1"]
    desk.changes.welcome()
    assert desk.said == [["relabel", 1, ["labels", "g", "t"]]] * 2
    with pytest.raises(Refused, match="pairs"):
        desk.ask(relabel([["g"]]))


def test_another_broker_starts_with_the_labels() -> None:
    """Hypervisors may be quicker than what it is told; who is not named has none; without a binding there are none."""
    desk = Desk()
    config = SimpleNamespace(binding=None)
    bound = Bound(Binding(guests=((("hv0", "a"), "x"), (("hv0", "hv1", "b"), "y"), (("hv1", "c"), ""))))
    assert desk.changes.present(bound) is bound
    desk.ask(relabel([["b", "t"], ["c", "u"]]))
    assert desk.changes.present(config) is config
    found = desk.changes.present(bound).binding
    assert found.guests == ((("hv0", "a"), ""), (("hv0", "hv1", "b"), "t"), (("hv1", "c"), "u"))
