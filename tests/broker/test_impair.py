"""Impaired links by themselves: when an envelope arrives, in what order, how often; one seed gives one history."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.impair import LATE_NS, MAX_FLOWS, MAX_LOSSES, NOTHING, OVERHEAD, RESEND_MAX_NS, RESEND_NS, Impairment, Lines
from tests.broker.support import MS

PAIR = ("a", "b")
SECOND = 1_000_000_000


class Draws(random.Random):
    """A generator that returns what it is told, and then 0.999."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self._values = list(values)

    def random(self) -> float:
        return self._values.pop(0) if self._values else 0.999


def lines(impairment: Impairment = NOTHING, *draws: float) -> Lines[str]:
    made: Lines[str] = Lines(Draws(*draws), {"a": "lab1", "b": "lab2", "c": "lab2"})
    made.set("a", "b", impairment)
    return made


def test_an_array_becomes_an_impairment() -> None:
    """The fields in the record's order; a probability above 1 is an error."""
    assert Impairment.of([1, 2, 0.25, 3, 1, 0, 1]) == (1, 2, 0.25, 3, 1.0, 0.0, True)
    assert Impairment.of([0] * 7) == NOTHING
    assert Impairment._fields == ("delay_ns", "jitter_ns", "loss", "rate", "duplicate", "reorder", "partition")
    for field in ("loss", "duplicate", "reorder"):
        with pytest.raises(ValueError, match="above 1"):
            Impairment.of([1.01 if name == field else 0 for name in Impairment._fields])
    assert [NOTHING.cut, Impairment(partition=True).cut, Impairment(loss=1.0).cut, Impairment(loss=0.9).cut] == [
        False, True, True, False,
    ]  # fmt: skip


def test_a_link_is_named_by_its_nodes_or_their_hosts() -> None:
    """In either order; what is said of two nodes goes before what is said of their hosts; nothing takes it away."""
    made = lines()
    slow, slower = Impairment(delay_ns=1), Impairment(delay_ns=2)
    made.set("lab2", "lab1", slow)
    assert [made.of(*pair) for pair in (("a", "b"), ("b", "a"), ("c", "a"), ("b", "c"), ("a", "x"))] == [
        slow, slow, slow, NOTHING, NOTHING,
    ]  # fmt: skip
    made.set("b", "a", slower)
    assert (made.of("a", "b"), made.of("c", "a")) == (slower, slow)
    made.set("a", "b", NOTHING)
    assert made.of("a", "b") == slow
    assert not made.idle
    made.set("lab1", "lab2", NOTHING)
    assert made.idle


def test_delay_and_jitter() -> None:
    """Delay plus an even draw from minus to plus jitter; never before it was sent, never before the one before it."""
    made = lines(Impairment(delay_ns=10 * MS, jitter_ns=4 * MS), 0.0, 1.0, 0.5)
    assert [made.times(PAIR, "x", 0, 0) for _ in range(3)] == [(6 * MS,), (14 * MS,), (14 * MS,)]
    early = lines(Impairment(delay_ns=1, jitter_ns=100), 0.0)
    assert early.times(PAIR, "x", 0, 50) == (50,)


def test_rate() -> None:
    """Bytes and overhead at so many a second, one behind another, each direction by itself."""
    made = lines(Impairment(rate=1000))
    size = 1000 - OVERHEAD
    assert [made.times(PAIR, flow, size, 0) for flow in "xyz"] == [(SECOND,), (2 * SECOND,), (3 * SECOND,)]
    assert made.times(("b", "a"), "x", size, 0) == (SECOND,)
    assert made.times(PAIR, "x", size, 10 * SECOND) == (11 * SECOND,)


def test_loss_is_a_delay_that_doubles() -> None:
    """A retransmission after 200 ms and a round trip, then twice that; what was sent later waits behind."""
    made = lines(Impairment(delay_ns=10 * MS, loss=0.5), 0.1, 0.1, 0.9, 0.9)
    first = RESEND_NS + 20 * MS
    assert made.times(PAIR, "x", 0, 0) == (10 * MS + first + 2 * first,)
    assert made.times(PAIR, "y", 0, 0) == (10 * MS + first + 2 * first,)
    assert RESEND_NS == 200 * MS


def test_losses_in_a_row_end() -> None:
    """Nothing is lost for good."""
    made = lines(Impairment(loss=0.5), *[0.0] * 100)
    waits = [min(RESEND_NS << n, RESEND_MAX_NS) for n in range(MAX_LOSSES)]
    assert made.times(PAIR, "x", 0, 0) == (sum(waits),)


def test_reorder_lets_others_overtake() -> None:
    """One is late by the delay, or 1 ms; others arrive before it; those of its own endpoint wait behind it."""
    made = lines(Impairment(delay_ns=5 * MS, reorder=0.5), 0.1, 0.9, 0.9)
    assert [made.times(PAIR, flow, 0, 0) for flow in "xyx"] == [(10 * MS,), (5 * MS,), (10 * MS,)]
    quick = lines(Impairment(reorder=0.5), 0.1)
    assert quick.times(PAIR, "x", 0, 0) == (LATE_NS,)
    assert LATE_NS == MS


def test_duplicate() -> None:
    """The copy is late by as much; what may arrive once only does."""
    made = lines(Impairment(delay_ns=5 * MS, duplicate=0.5), 0.1, 0.9)
    assert made.times(PAIR, "x", 0, 0) == (5 * MS, 10 * MS)
    assert made.times(PAIR, "x", 0, 0) == (5 * MS,)
    assert lines(Impairment(duplicate=1.0)).times(PAIR, "x", 0, 7, once=True) == (7,)


def test_what_is_under_way() -> None:
    """Arrives in order of time, then of sending; can be dropped by its ends; the next deadline is known."""
    made = lines(Impairment(delay_ns=5))
    made.set("a", "c", Impairment(delay_ns=3))
    assert made.clear(("a", "x"))
    assert not made.clear(PAIR)
    sent = [(PAIR, "x", "1"), (PAIR, "y", "2"), (("a", "c"), "x", "3")]
    assert [made.send(pair, flow, 0, 0, item) for pair, flow, item in sent] == [1, 1, 1]
    assert made.next_deadline() == 3
    assert made.arrived(2) == []
    assert made.arrived(5) == [(("a", "c"), "3"), (PAIR, "1"), (PAIR, "2")]
    assert made.next_deadline() is None
    made.send(PAIR, "x", 0, 5, "4")
    made.send(("b", "a"), "x", 0, 5, "5")
    made.send(("c", "b"), "x", 0, 5, "6")
    assert made.drop("a", "b") == [(PAIR, "4")]
    assert made.drop(None, "b") == [(("c", "b"), "6")]
    assert made.arrived(99) == [(("b", "a"), "5")]


def test_a_link_that_heals_keeps_order() -> None:
    """What is sent after the change does not overtake what is still under way."""
    made = lines(Impairment(delay_ns=50))
    made.send(PAIR, "x", 0, 0, "1")
    made.set("a", "b", NOTHING)
    assert not made.idle
    assert not made.clear(PAIR)
    made.send(PAIR, "y", 0, 1, "2")
    assert made.arrived(49) == []
    assert [item for _, item in made.arrived(50)] == ["1", "2"]
    assert made.clear(PAIR)
    assert made.idle


def test_endpoints_remembered_are_bounded() -> None:
    """Those that have nothing under way are forgotten."""
    made = lines(Impairment(delay_ns=5))
    for n in range(5 * MAX_FLOWS):
        made.times(PAIR, n, 0, n)
    assert len(made._directions[PAIR].flows) <= MAX_FLOWS


def test_chance_needs_a_generator() -> None:
    """Delay does not; whoever impairs by chance without one made a mistake."""
    made: Lines[str] = Lines(None)
    made.set("a", "b", Impairment(delay_ns=1))
    assert made.times(PAIR, "x", 0, 0) == (1,)
    made.set("a", "b", Impairment(loss=0.1))
    with pytest.raises(RuntimeError, match="generator"):
        made.times(PAIR, "x", 0, 0)


IMPAIRMENTS = st.builds(
    Impairment, st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.9), st.sampled_from([0, 10**9, 10**12]),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip


@given(
    st.lists(st.tuples(IMPAIRMENTS, st.sampled_from("xyz"), st.integers(0, 30)), max_size=40), st.integers(0, 1 << 30)
)
def test_each_endpoint_keeps_its_order(steps: list[tuple[Impairment, str, int]], seed: int) -> None:
    """However a link is impaired, and changes: everything arrives, first copies in each endpoint's order, and the
    same seed gives the same.
    """
    histories = []
    for _ in range(2):
        made: Lines[tuple[str, int]] = Lines(random.Random(seed))
        now = sent = 0
        got: list[tuple[str, int]] = []
        for n, (impairment, flow, pause) in enumerate(steps):
            now += pause
            made.set("a", "b", impairment)
            sent += made.send(PAIR, flow, n, now, (flow, n))
            got += [item for _, item in made.arrived(now)]
        got += [item for _, item in made.arrived(1 << 62)]
        assert len(got) == sent
        for flow in "xyz":
            first = list(dict.fromkeys(n for name, n in got if name == flow))
            assert first == sorted(first)
        assert {n for _, n in got} == set(range(len(steps)))
        histories.append(got)
    assert histories[0] == histories[1]
