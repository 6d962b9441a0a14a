"""Changes to a running lab: told, repeated, answered, kept.  A revocation holds everywhere before it returns."""

from __future__ import annotations

from typing import Any

from topologies.agent.orders import WITHIN, Orders


class Desk:
    """Orders, what hypervisors were told, and what came of each change."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[Any]]] = []
        self.done: list[dict[str, str]] = []
        self.orders = Orders(lambda hypervisor, record: self.told.append((hypervisor, record)))

    def give(self, *hypervisors: str, what: str = "connect", now: int = 0) -> None:
        self.orders.give(hypervisors, what, {"slot": 1}, now, lambda answers: self.done.append(dict(answers)))

    def take(self) -> list[str]:
        told, self.told = [name for name, _ in self.told], []
        return told


def test_a_change_is_done_when_all_whom_it_concerns_have_answered() -> None:
    """Not before: a revocation that held at one level only would be none."""
    desk = Desk()
    desk.give("hv1", "hv0")
    assert desk.told == [(name, ["order", 1, "connect", '{"slot": 1}']) for name in ("hv0", "hv1")]
    desk.orders.answered("hv0", 1, "")
    desk.orders.answered("hv0", 1, "again")
    assert desk.done == []
    desk.orders.answered("hv1", 1, "no such guest")
    assert desk.done == [{"hv0": "", "hv1": "no such guest"}]
    desk.orders.answered("hv1", 1, "")
    assert len(desk.done) == 1 and desk.orders.moments() == []


def test_a_change_that_concerns_nobody_is_done_at_once() -> None:
    """Whoever asked for it waits for nothing."""
    desk = Desk()
    desk.give()
    assert desk.done == [{}]


def test_what_was_not_answered_is_said_again() -> None:
    """A broker dies with what it was told; a hypervisor that answered is not bothered."""
    desk = Desk()
    desk.give("hv0", "hv1")
    desk.take()
    desk.orders.answered("hv0", 1, "")
    desk.orders.repeat("hv0")
    desk.orders.repeat("hv1")
    assert desk.take() == ["hv1"]


def test_who_does_not_answer_in_time_is_named() -> None:
    """Five seconds: a stopped hypervisor must not hold up the person at the terminal."""
    desk = Desk()
    desk.give("hv0", "hv1", now=7)
    desk.orders.answered("hv1", 1, "")
    desk.orders.due(7 + WITHIN - 1)
    assert desk.done == [] and desk.orders.moments() == [7 + WITHIN]
    desk.orders.due(7 + WITHIN)
    assert desk.done == [{"hv0": "no answer within 5 s", "hv1": ""}]


def test_a_hypervisor_that_is_started_again_is_told_what_was_changed() -> None:
    """In order, and only what it had accepted: it begins with what the topology says."""
    desk = Desk()
    for what in ("connect", "disconnect", "policy"):
        desk.give("hv0", what=what)
    for number, words in ((1, ""), (2, "no such slot"), (3, "")):
        desk.orders.answered("hv0", number, words)
    desk.told.clear()
    desk.orders.started_again("hv0")
    assert [record[2] for _, record in desk.told] == ["connect", "policy"]
    desk.orders.started_again("hv1")
    assert len(desk.told) == 2
