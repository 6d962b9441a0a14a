"""For whose answers a hypervisor's results wait.  Project rule (docs/fabric.md, "Frames")."""

from __future__ import annotations

from hv_node.promptness import SOON_NS, SURE, Promptness

APP = 1


def prompt(promptness: Promptness, times: int = SURE, after_ns: int = SOON_NS) -> int:
    """`times` messages, each answered `after_ns` later; the time then."""
    now = 0
    for _ in range(times):
        promptness.reached(APP, now)
        now += after_ns
        promptness.acted(APP, now)
    return now


def test_who_has_answered_often_enough_is_waited_for() -> None:
    """Not before: the last of so many answers in a row makes it."""
    promptness = Promptness()
    found = []
    for now in range(SURE + 2):
        found.append(promptness.reached(APP, now))
        promptness.acted(APP, now)
    assert found == [False] * SURE + [True] * 2


def test_nobody_else_is() -> None:
    """Promptness is each guest's own."""
    promptness = Promptness()
    now = prompt(promptness)
    assert promptness.reached(APP, now)
    assert not promptness.reached(2, now)


def test_a_late_answer_is_none() -> None:
    """One that came later than anybody would wait starts the count anew."""
    promptness = Promptness()
    now = prompt(promptness)
    promptness.reached(APP, now)
    promptness.acted(APP, now + SOON_NS + 1)
    assert not promptness.reached(APP, now)
    promptness.acted(APP, now)
    prompt(promptness, SURE - 2)
    assert not promptness.reached(APP, now)
    promptness.acted(APP, now)
    assert promptness.reached(APP, now)


def test_who_does_nothing_is_not_waited_for_again() -> None:
    """Two messages without anything between them: the first was not answered."""
    promptness = Promptness()
    now = prompt(promptness)
    assert [promptness.reached(APP, now), promptness.reached(APP, now)] == [True, False]


def test_what_nothing_came_before_is_no_answer() -> None:
    """A guest that sends of itself has not answered."""
    promptness = Promptness()
    for now in range(SURE):
        promptness.acted(APP, now)
    assert not promptness.reached(APP, SURE)


def test_another_guest_of_that_id_begins_anew() -> None:
    """What was learnt of a guest goes with it."""
    promptness = Promptness()
    now = prompt(promptness)
    promptness.gone(APP)
    assert not promptness.reached(APP, now)
