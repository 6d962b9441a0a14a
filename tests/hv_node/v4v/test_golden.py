"""Every behaviour of v4v that tests/golden/v4v.csv tells, worked out by hand from the specification (uXen v4v)."""

from __future__ import annotations

import pytest

from hmx.v4v.differences import HABITS
from tests.golden import rows
from tests.hv_node.v4v.language import World

#: cases by what they speak of; the other kinds are structures and numbers (tests/hmx) and orders (test_order.py)
ELSEWHERE = ("abi.", "order.", "diff.")
CASES = [row for row in rows("v4v.csv") if not row["case"].startswith(ELSEWHERE)]


@pytest.mark.parametrize("row", CASES, ids=lambda row: row["case"])
def test_case(row: dict[str, str]) -> None:
    """The world as the case has it, its step, and what is then so.  Source: the row's own."""
    world = World()
    world.run(row["before"])
    world.signals.clear()
    world.run(row["op"])
    world.expect(row["after"])


def test_every_habit_has_its_case() -> None:
    """hmx.v4v.differences: each behaviour that departs from Argo's is shown by a case."""
    cases = {row["case"] for row in CASES}
    assert [habit.case for habit in HABITS if habit.case not in cases] == []
    assert len({habit.case for habit in HABITS}) == len(HABITS), "one case shows one habit"


def test_cases_are_many() -> None:
    """A table that lost its rows would pass everything above."""
    assert len(CASES) > 120
    assert all(row["source"].startswith("uXen ") for row in CASES)


def test_the_language_can_fail() -> None:
    """What the cases rely on: an answer that is not so is an error, whatever the question."""
    world = World()
    world.run("register g1 port=5 partner=DM len=64; send host to=g1:5 bytes=3; notify host g1:5@0")
    for right in ("result=0", "signalled=g1", "ring(g1:5/host)=64", "hv.tx(g1:5/host)=32", "header.tx=32", "max=32"):
        world.expect(right)
        with pytest.raises(AssertionError):
            world.expect(right + "1")
    with pytest.raises(AssertionError):
        world.expect("data=14")
