"""Envelopes between hypervisors, without sockets: where they go, that none is lost, doubled, overtaken or stuck."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.envelope import Envelope, EnvelopeKind, Use, result_of
from broker.frames import LIMITS, MAX_FRAME, MAX_RECORDS, Lane
from broker.impair import NOTHING, Impairment
from broker.operations import RELEASE_NS
from broker.outbox import MAX_SIGNALS
from broker.refusals import Refusal
from broker.switch import MAX_HELD, MAX_SIGNAL
from tests.broker.support import EPOCH, MS, CoreLab, Peer, envelope_of, outstanding, rets, rooms

REQUEST = Lane.REQUEST
RESERVE = LIMITS[REQUEST].reserve
WAKE, DIED, CANCEL = EnvelopeKind.WAKE, EnvelopeKind.ENDPOINT_DIED, EnvelopeKind.CANCEL


# ---- there and back --------------------------------------------------------------------------------------


def test_a_request_and_its_result(lab: CoreLab) -> None:
    """By the first step of the destination; one hop less; the result by the request's reservation."""
    a, b = lab.hypervisors("hv0", "hv1")
    request = envelope_of("hv0/l1/app", "hv1/store", 5, label="client_t")
    a.ask(request, b"data")
    ((got, payload),) = b.envelopes()
    assert payload == b"data"
    assert got == request._replace(hops_left=15, length=4, offset=0)
    b.answer(got, 7, b"back")
    ((answer, payload),) = a.envelopes()
    assert (answer.kind, answer.ret, answer.origin_seq, payload) == (EnvelopeKind.RESULT, 7, 5, b"back")
    assert (answer.src_path, answer.dst) == (("store", "hv1"), ("hv0", "l1", "app"))
    a.push()
    b.push()
    assert rooms(lab, a, "hv0") == rooms(lab, b, "hv1") == (0, 0)
    assert len(lab.core.switch.operations) == 0


def test_thousands_return_all_room(lab: CoreLab) -> None:
    """Reservations towards both ends come back."""
    a, b = lab.hypervisors("hv0", "hv1")
    for seq in range(1, 1001):
        a.ask(envelope_of(seq=seq))
        for got, _ in b.envelopes():
            b.answer(got, got.origin_seq)
        assert rets(a) == [(seq, seq, False)]
    assert (rooms(lab, a, "hv0"), rooms(lab, b, "hv1")) == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("to", "changes"),
    [("hv9/x", {}), ("hv0/other", {}), ("app/x", {}), ("agent/x", {}), ("left/x", {}), ("hv1/store", {"hops_left": 0}),
     ("*", {}), ("hv1/store", {"dst": ()}), ("hv1/store", {"dst": (5, "x")})],
)  # fmt: skip
def test_a_request_that_can_go_nowhere(lab: CoreLab, to: str, changes: dict[str, Any]) -> None:
    """Unknown, the sender itself, a guest, an agent, one that left, no hops, no address: refused, it never ran."""
    a, _ = lab.hypervisors("hv0", "hv1")
    lab.node("guest", "app")
    lab.node("agent", "agent")
    lab.node("hypervisor", "left").say(["exit", 0, ""])
    a.heard()
    for seq in range(300):
        a.ask(envelope_of("hv0/app", to, seq, **changes))
        assert rets(a) == [(seq, -111, True)]
    assert lab.core.counters["refused.NO_ROUTE"] == 300
    assert rooms(lab, a, "hv0") == (0, 0)


def test_only_hypervisors_exchange_envelopes(lab: CoreLab) -> None:
    """A guest's request is refused in words and by a result that returns its room; the session goes on."""
    app = lab.node("guest", "app")
    app.ask(envelope_of("app/x", "hv1/store"))
    kinds = [(lane, record[1]) for lane, record, _ in app.received()]
    assert kinds == [(REQUEST, 2), (Lane.CONTROL, Refusal.NOT_ALLOWED)]
    assert lab.shown("app") == "joined"


@pytest.mark.parametrize("kind", [WAKE, DIED, CANCEL, EnvelopeKind.INTERRUPT])
def test_signals(lab: CoreLab, kind: EnvelopeKind) -> None:
    """What has no answer goes the same way; to nobody known it is refused in words, to one that left it is dropped."""
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(kind=kind))
    assert [got.kind for got, _ in b.envelopes()] == [kind]
    a.ask(envelope_of(to="hv9/x", kind=kind))
    assert [record[1] for record in a.heard()] == [Refusal.NO_ROUTE]
    b.say(["exit", 0, ""])
    assert a.news() == [("hv1", "dead")]
    a.ask(envelope_of(kind=kind))
    assert a.heard() == []
    assert lab.core.counters["signals_dropped"] == 1
    a.ask(envelope_of(kind=kind), bytes(MAX_SIGNAL + 1))
    assert [record[1] for record in a.heard()] == [Refusal.MALFORMED_RECORD]


def test_a_death_is_told_to_all_others(lab: CoreLab) -> None:
    """("*",) means every hypervisor below the fabric but the sender, and is for deaths only."""
    a, b, c = lab.hypervisors("hv0", "hv1", "hv2")
    lab.node("guest", "app")
    a.ask(envelope_of(to="*", kind=DIED))
    for peer in (b, c):
        assert [(got.kind, got.src_path, got.dst) for got, _ in peer.envelopes()] == [(DIED, ("app", "hv0"), ("*",))]
    assert a.heard() == []
    a.ask(envelope_of(to="*", kind=WAKE))
    assert [record[1] for record in a.heard()] == [Refusal.NO_ROUTE]


def test_a_death_with_nobody_else_there(lab: CoreLab) -> None:
    """One hypervisor alone: nothing to tell, nothing to refuse."""
    (a,) = lab.hypervisors("hv0")
    a.ask(envelope_of(to="*", kind=DIED))
    assert a.heard() == []


# ---- room and order --------------------------------------------------------------------------------------


def test_what_the_destination_has_no_room_for_waits(lab: CoreLab) -> None:
    """Two sources fill one destination: what exceeds its room waits here, in order, and the sources take turns."""
    a, c, b = lab.hypervisors("hv0", "hv2", "hv1")
    for seq in range(RESERVE):
        a.ask(envelope_of("hv0/app", seq=seq))
        c.ask(envelope_of("hv2/app", seq=seq))
    lab.core.flush()
    got = [envelope for envelope, _ in b.envelopes()]
    assert len(got) == RESERVE == b.session.lane(REQUEST).owed
    asked: dict[str, list[int]] = {"hv0": [], "hv2": []}
    while got:
        envelope = got.pop(0)
        asked[str(envelope.src_path[-1])].append(envelope.origin_seq)
        b.answer(envelope)
        got += [envelope for envelope, _ in b.envelopes()]
    assert asked == {"hv0": list(range(RESERVE)), "hv2": list(range(RESERVE))}
    for peer in (a, c):
        assert sorted(seq for seq, _, _ in rets(peer)) == list(range(RESERVE))


def test_turns_are_fair(lab: CoreLab) -> None:
    """A source with much to send does not starve one with little."""
    a, c, _ = lab.hypervisors("hv0", "hv2", "hv3")
    (b,) = lab.hypervisors("hv1")
    outstanding(lab, "hv1", RESERVE)
    for seq in range(100):
        a.ask(envelope_of("hv0/app", seq=seq))
    for seq in range(10):
        c.ask(envelope_of("hv2/app", seq=seq))
    outstanding(lab, "hv1", 0)
    sources = [envelope.src_path[-1] for envelope, _ in b.envelopes()]
    assert sources[:20] == ["hv0", "hv2"] * 10
    assert sources[20:] == ["hv0"] * 90


def test_what_one_turn_hands_over_at_once_is_a_frame(lab: CoreLab) -> None:
    """A source that was heard first takes no more than a frame of the destination's room before the turns begin."""
    a, c, b = lab.hypervisors("hv0", "hv2", "hv1")
    for seq in range(100):
        a.ask(envelope_of("hv0/app", seq=seq))
    for seq in range(10):
        c.ask(envelope_of("hv2/app", seq=seq))
    sources = [envelope.src_path[-1] for envelope, _ in b.envelopes()]
    assert sources[:MAX_RECORDS] == ["hv0"] * MAX_RECORDS
    assert sources[MAX_RECORDS:][:20] == ["hv0", "hv2"] * 10
    assert len(sources) == 110


def test_a_request_does_not_overtake_the_signal_before_it(lab: CoreLab) -> None:
    """In one turn: what goes to a session at once waits behind what waits."""
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(kind=WAKE, seq=1))
    a.ask(envelope_of(seq=2))
    assert [(got.kind, got.origin_seq) for got, _ in b.envelopes()] == [(WAKE, 1), (EnvelopeKind.SEND, 2)]


def test_a_signal_does_not_overtake_the_requests_before_it(lab: CoreLab) -> None:
    """Data and interrupts between two endpoints stay in order, also while room is short; a result passes."""
    a, b = lab.hypervisors("hv0", "hv1")
    b.ask(envelope_of("hv1/store", "hv0/app", 1))
    ((asked, _),) = a.envelopes()
    outstanding(lab, "hv1", RESERVE)
    a.ask(envelope_of(seq=7))
    a.ask(envelope_of(kind=WAKE, seq=8))
    a.answer(asked, 3)
    assert [(got.kind, got.origin_seq) for got, _ in b.envelopes()] == [(EnvelopeKind.RESULT, 1)]
    outstanding(lab, "hv1", RESERVE - 1)
    assert [(got.kind, got.origin_seq) for got, _ in b.envelopes()] == [(EnvelopeKind.SEND, 7), (WAKE, 8)]


def test_wakes_that_wait_are_one(lab: CoreLab) -> None:
    """A WAKE stands for those like it while it waits; another port is another one."""
    a, b = lab.hypervisors("hv0", "hv1")
    outstanding(lab, "hv1", RESERVE)
    a.ask(envelope_of(seq=1))
    for _ in range(3 * MAX_SIGNALS):
        a.ask(envelope_of(kind=WAKE))
        assert a.heard() == []
    a.ask(envelope_of(kind=WAKE, port_dst=2001))
    assert b.envelopes() == []
    outstanding(lab, "hv1", 0)
    assert [(got.kind, got.port_dst) for got, _ in b.envelopes()] == [(1, 2000), (WAKE, 2000), (WAKE, 2001)]
    assert lab.core.counters["wakes_merged"] == 3 * MAX_SIGNALS - 1
    a.ask(envelope_of(kind=WAKE))
    assert len(b.envelopes()) == 1


def test_signals_without_end_break_the_link_of_their_source_only(lab: CoreLab) -> None:
    """A node that does not read: the source hears down and up, its requests still arrive, others lose nothing."""
    a, c, b = lab.hypervisors("hv0", "hv2", "hv1")
    outstanding(lab, "hv1", RESERVE)
    c.ask(envelope_of("hv2/app", seq=7))
    c.ask(envelope_of("hv2/app", seq=8, kind=EnvelopeKind.INTERRUPT))
    a.ask(envelope_of(seq=1))
    for seq in range(MAX_SIGNALS):
        a.ask(envelope_of(kind=EnvelopeKind.INTERRUPT, seq=seq))
        assert a.news() == []
    a.ask(envelope_of(kind=EnvelopeKind.INTERRUPT, seq=MAX_SIGNALS))
    assert a.news() == [("hv1", "down"), ("hv1", "up")]
    outstanding(lab, "hv1", 0)
    got = [(envelope.src_path[-1], envelope.kind) for envelope, _ in b.envelopes()]
    assert sorted(got) == [("hv0", 1), ("hv2", 1), ("hv2", EnvelopeKind.INTERRUPT)]
    assert lab.core.counters["signals_dropped"] == MAX_SIGNALS + 1


def test_bytes_that_wait_are_bounded(lab: CoreLab) -> None:
    """What is large and finds 64 MiB of its source waiting is answered -EAGAIN; what is small still waits."""
    a, b = lab.hypervisors("hv0", "hv1")
    outstanding(lab, "hv1", RESERVE)
    big = bytes(1 << 23)
    for seq in range(MAX_HELD // len(big)):
        a.ask(envelope_of(seq=seq), big)
    assert a.envelopes() == []
    a.ask(envelope_of(seq=100), big)
    assert rets(a) == [(100, -11, True)]
    a.ask(envelope_of(seq=101), bytes(MAX_FRAME))
    assert a.envelopes() == []
    outstanding(lab, "hv1", 0)
    seqs = [got.origin_seq for _ in range(20) for got, _ in b.envelopes()]
    assert seqs == [*range(8), 101]
    a.ask(envelope_of(seq=102), big)
    assert [got.origin_seq for got, _ in b.envelopes()] == [102]


# ---- repeats, deaths, restarts ---------------------------------------------------------------------------


def test_a_repeat_of_what_is_under_way_is_not_forwarded(lab: CoreLab) -> None:
    """It is answered together with the first; each takes and returns its own room."""
    a, b = lab.hypervisors("hv0", "hv1")
    for _ in range(3):
        a.ask(envelope_of(seq=4))
    ((got, _),) = b.envelopes()
    b.answer(got, 9)
    assert rets(a) == [(4, 9, False)] * 3
    assert rooms(lab, a, "hv0") == (0, 0)
    a.ask(envelope_of(seq=4))
    assert len(b.envelopes()) == 1, "the operation ended, so this is for the far level to recognise"


def test_a_destination_that_leaves_requests_behind(lab: CoreLab) -> None:
    """What it took is not answered, for nobody knows; what it did not is refused; the origin hears `down`."""
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(seq=1))
    b.envelopes()
    outstanding(lab, "hv1", RESERVE)
    a.ask(envelope_of(seq=2))
    b.raw([b"junk"])
    records = a.received()
    assert [(record[4], record[15]) for lane, record, _ in records if lane is REQUEST] == [(2, -111)]
    assert [record for lane, record, _ in records if lane is Lane.CONTROL] == [["peer", "hv1", "down", EPOCH, 100]]
    a.ask(envelope_of(seq=1))
    assert a.envelopes() == [], "an earlier copy may have run: a refusal would be a lie"
    again = lab.node("hypervisor", "hv1")
    assert a.news() == [("hv1", "up")]
    a.ask(envelope_of(seq=1))
    ((got, _),) = again.envelopes()
    again.answer(got, 6)
    assert rets(a) == [(1, 6, False)] * 3
    assert rooms(lab, a, "hv0") == (0, 0)


def test_room_of_what_was_lost_comes_back(lab: CoreLab) -> None:
    """After the release time, with -EIO; earlier, when the origin's floor passes it or it cancels."""
    a, b, _ = lab.hypervisors("hv0", "hv1", "hv2")
    for seq in (1, 2, 3, 4):
        a.ask(envelope_of(seq=seq))
    b.envelopes()
    b.raw([b"junk"])
    a.heard()
    lab.wait(RELEASE_NS // MS - 1000)
    assert a.envelopes() == []
    a.ask(envelope_of(to="hv2/x", seq=9, cookie=9))
    a.ask(envelope_of(seq=3, cookie=3, kind=CANCEL))
    assert rets(a) == [(1, -5, True), (2, -5, True), (3, -5, True)]
    lab.wait(2000)
    assert rets(a) == [(4, -5, True)]
    assert rooms(lab, a, "hv0")[1] == 1, "hv2 has not answered"


def test_the_floor_releases(lab: CoreLab) -> None:
    """A request's cookie says below what its origin has forgotten, towards that destination only."""
    a, b = lab.hypervisors("hv0", "hv1")
    for seq in (1, 2, 3):
        a.ask(envelope_of(seq=seq))
    b.envelopes()
    b.raw([b"junk"])
    lab.node("hypervisor", "hv1")
    a.heard()
    a.ask(envelope_of(seq=4, cookie=3))
    assert rets(a) == [(1, -5, True), (2, -5, True)]


def test_an_origin_that_leaves(lab: CoreLab) -> None:
    """Its operations end when they are answered; its next life is not owed them."""
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(seq=1))
    a.ask(envelope_of(seq=2))
    first, second = (got for got, _ in b.envelopes())
    a.raw([b"junk"])
    b.answer(first)
    again = lab.node("hypervisor", "hv0")
    again.heard()
    again.ask(envelope_of(seq=2))
    b.answer(second, 5)
    assert rets(again) == [(2, 5, False)]
    assert len(lab.core.switch.operations) == 0
    assert lab.core.counters["results_unwanted"] == 1


def test_a_node_that_joins_again_keeps_what_waits_for_it(lab: CoreLab) -> None:
    """A new session of the same process: down and up are told, what it had not taken arrives, what it had is said
    again by its origin.
    """
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(seq=1))
    b.envelopes()
    outstanding(lab, "hv1", RESERVE)
    a.ask(envelope_of(seq=2))
    lab.core.flush()
    again = Peer(lab, b.routing_id)
    answer = again.hello("hypervisor", "hv1", epoch_seen=EPOCH)
    assert answer == [["welcome", EPOCH, "hv1"]]
    assert a.news() == [("hv1", "down"), ("hv1", "up")]
    lab.core.touch(lab.core.nodes["hv1"])
    a.ask(envelope_of(seq=1))
    got = [envelope for envelope, _ in again.envelopes()]
    assert [envelope.origin_seq for envelope in got][-1:] == [1]
    for envelope in got:
        again.answer(envelope)
    assert (1, 0, False) in rets(a)


def test_news_of_others(lab: CoreLab) -> None:
    """A newcomer hears of all it may reach, everybody of it; `dead` once it exited or its agent said it is gone."""
    a = lab.node("hypervisor", "hv0")
    lab.node("guest", "app")
    agent = lab.agent()
    assert a.news() == []
    b = lab.node("hypervisor", "hv1")
    assert (a.news(), b.news()) == ([("hv1", "up")], [("hv0", "up")])
    b.raw([b"junk"])
    assert a.news() == [("hv1", "down")]
    agent.say(["gone", "hv1", -9, "killed", 0])
    assert a.news() == [("hv1", "dead")]
    c = lab.node("hypervisor", "hv2")
    assert sorted(c.news()) == [("hv0", "up"), ("hv1", "dead")]
    c.say(["exit", 0, ""])
    assert a.news() == [("hv2", "up"), ("hv2", "dead")]


def test_a_result_that_nobody_asked_for(lab: CoreLab) -> None:
    """Of another operation, another epoch, another asker, or twice: dropped, and what was asked still is answered."""
    a, b, c = lab.hypervisors("hv0", "hv1", "hv2")
    a.ask(envelope_of(seq=1))
    c.ask(envelope_of("hv2/app", seq=1))
    ours, _ = (got for got, _ in b.envelopes())
    result = result_of(ours, 1)
    for forged in (
        result._replace(origin_seq=2),
        result._replace(origin_epoch=2),
        result._replace(dst=("hv3", "app")),
        result._replace(dst=("hv0", "l1", "app")),
        result._replace(dst=("hv0",)),
        result._replace(dst=()),
    ):
        b.say(forged, lane=REQUEST)
        b.session.lane(REQUEST).owed += 1
        assert [record[1] for record in b.heard()] == [Refusal.FORGED_RESULT]
    assert (a.envelopes(), c.envelopes()) == ([], [])
    b.answer(ours, 8)
    b.say(result, lane=REQUEST)
    assert rets(a) == [(1, 8, False)]
    assert [record[1] for record in b.heard()] == [Refusal.FORGED_RESULT]
    assert lab.shown("hv1") == "joined"


def test_a_result_from_another_than_was_asked(lab: CoreLab) -> None:
    """The answer counts only from where the request went."""
    a, b, c = lab.hypervisors("hv0", "hv1", "hv2")
    a.ask(envelope_of(seq=1))
    ((got, _),) = b.envelopes()
    b.ask(envelope_of("hv1/store", "hv2/x", 1))
    c.envelopes()
    c.say(result_of(got, 1)._replace(src_path=("store", "hv2")), lane=REQUEST)
    assert [record[1] for record in c.heard()] == [Refusal.FORGED_RESULT]
    assert a.envelopes() == []


# ---- the whole, against a model --------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "wake", "serve", "answer", "time", "impair", "heal", "rejoin"]),
              st.integers(0, 2), st.integers(0, 2)),
    max_size=60,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 1 << 30))
def test_any_history(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Three hypervisors that ask and answer over links that break: no operation is answered with what was not its
    answer, none is answered more often than it was asked, and in the end all room is back.
    """
    chance = random.Random(seed)
    lab = CoreLab(chance=random.Random(seed))
    names = ("hv0", "hv1", "hv2")
    peers = dict(zip(names, lab.hypervisors(*names), strict=True))
    inbox: dict[str, deque[Envelope]] = {name: deque() for name in names}
    asked: dict[tuple[str, int], int] = {}
    seqs = 0

    def take(name: str) -> None:
        for envelope, _ in peers[name].envelopes():
            if envelope.kind == EnvelopeKind.RESULT:
                key = (name, envelope.origin_seq)
                asked[key] -= 1
                assert asked[key] >= 0, "answered more often than asked"
                assert envelope.ret in (envelope.origin_seq, -111, -5)
            elif envelope.use is Use.REQUEST:
                inbox[name].append(envelope)

    for what, x, y in steps:
        name, other = names[x], names[y]
        if what == "ask" and x != y:
            seqs += 1
            asked[name, seqs] = 1
            peers[name].ask(envelope_of(f"{name}/app", f"{other}/app", seqs))
        elif what == "wake" and x != y:
            peers[name].ask(envelope_of(f"{name}/app", f"{other}/app", kind=WAKE))
        elif what == "serve":
            take(name)
        elif what == "answer" and inbox[name]:
            request = inbox[name].popleft()
            peers[name].answer(request, request.origin_seq)
        elif what == "time":
            lab.wait(100 * (1 + x))
        elif what == "impair" and x != y:
            lab.core.impair(
                name, other,
                Impairment(chance.choice((0, 20 * MS)), chance.choice((0, 5 * MS)), chance.choice((0.0, 0.3, 1.0)),
                           chance.choice((0, 10**6)), chance.choice((0.0, 0.5)), chance.choice((0.0, 0.5))),
            )  # fmt: skip
        elif what == "heal" and x != y:
            lab.core.impair(name, other, NOTHING)
        elif what == "rejoin":
            take(name)
            again = Peer(lab, peers[name].routing_id)
            assert again.hello("hypervisor", name, epoch_seen=EPOCH)[0][0] == "welcome"
            peers[name] = again
            inbox[name].clear()
            for key in [key for key in asked if key[0] == name]:
                asked[key] = 1 << 20  # its next life is owed nothing; what is answered still must be an answer
    for name, other in itertools.combinations(names, 2):
        lab.core.impair(name, other, NOTHING)
    for _ in range(200):
        lab.wait(100)
        for name in names:
            take(name)
            while inbox[name]:
                request = inbox[name].popleft()
                peers[name].answer(request, request.origin_seq)
            take(name)
    for name in names:
        assert rooms(lab, peers[name], name) == (0, 0)
        assert lab.core.nodes[name].session.lane(REQUEST).outstanding == 0
    assert len(lab.core.switch.operations) == 0
    assert not any(lab.core.counters[f"refused.{code.value}"] for code in Refusal if code.name.startswith("FORGED"))
