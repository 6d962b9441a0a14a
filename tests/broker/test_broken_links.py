"""Links between hypervisors that are cut, slow or doubling, without sockets: what becomes of what is under way."""

from __future__ import annotations

import random

from broker.envelope import EnvelopeKind, Use
from broker.frames import LIMITS, Lane
from broker.impair import NOTHING, Impairment
from broker.refusals import Refusal
from tests.broker.support import EPOCH, MS, CoreLab, Peer, envelope_of, outstanding, rets, rooms

REQUEST = Lane.REQUEST
RESERVE = LIMITS[REQUEST].reserve
WAKE, DIED, CANCEL = EnvelopeKind.WAKE, EnvelopeKind.ENDPOINT_DIED, EnvelopeKind.CANCEL
CUT = Impairment(partition=True)


def test_a_partition_and_its_healing(lab: CoreLab) -> None:
    """Nothing passes, answers neither; both ends hear of it; what was lost is said again and answered once."""
    a, b, c = lab.hypervisors("hv0", "hv1", "hv2")
    agent = lab.agent()
    a.ask(envelope_of(seq=1))
    ((got, _),) = b.envelopes()
    agent.say(["impair", "hv1", "hv0", list(CUT)])
    assert agent.heard()[-1][:3] == ["impaired", "hv1", "hv0"]
    assert (a.news(), b.news(), c.news()) == ([("hv1", "down")], [("hv0", "down")], [])
    b.answer(got, 4)
    a.ask(envelope_of(seq=2))
    a.ask(envelope_of(kind=WAKE))
    a.ask(envelope_of(to="hv2/x", seq=3))
    assert (a.envelopes(), b.envelopes(), len(c.envelopes())) == ([], [], 1)
    late = lab.node("hypervisor", "hv3")
    assert sorted(late.news()) == [("hv0", "up"), ("hv1", "up"), ("hv2", "up")]
    agent.say(["impair", "hv0", "hv1", list(NOTHING)])
    assert (a.news()[-1], b.news()[-1]) == (("hv1", "up"), ("hv0", "up"))
    for seq in (1, 2):
        a.ask(envelope_of(seq=seq))
    for envelope, _ in b.envelopes():
        b.answer(envelope, 40 + envelope.origin_seq)
    assert rets(a) == [(1, 41, False)] * 2 + [(2, 42, False)] * 2
    assert rooms(lab, a, "hv0")[1] == 1


def test_impairments_that_are_refused(lab: CoreLab) -> None:
    """Names that no link has, a node with itself, a probability above 1; and only an agent may say it."""
    lab.hypervisors("hv0", "hv1")
    lab.node("guest", "app")
    agent = lab.agent()
    for a, b, values, code in (
        ("hv0", "hv9", NOTHING, Refusal.NOT_ALLOWED),
        ("hv0", "hv0", NOTHING, Refusal.NOT_ALLOWED),
        ("hv0", "app", NOTHING, Refusal.NOT_ALLOWED),
        ("hv0", "hv1", Impairment(loss=1.5), Refusal.MALFORMED_RECORD),
    ):
        agent.say(["impair", a, b, list(values)])
        assert [record[1] for record in agent.heard() if record[0] == "refused"] == [code]
    stranger = lab.node("guest", "x")
    stranger.say(["impair", "hv0", "hv1", list(CUT)])
    assert [record[1] for record in stranger.heard()] == [Refusal.NOT_ALLOWED]


def test_a_delay(lab: CoreLab) -> None:
    """An envelope arrives when its link says; the core knows when that is."""
    a, b = lab.hypervisors("hv0", "hv1")
    lab.core.impair("hv0", "hv1", Impairment(delay_ns=30 * MS))
    a.ask(envelope_of(seq=1))
    assert b.envelopes() == []
    assert lab.core.next_deadline() == lab.now_ns + 30 * MS
    lab.now_ns += 30 * MS
    lab.core.on_time(lab.now_ns)
    ((got, _),) = b.envelopes()
    b.answer(got, 2)
    assert a.envelopes() == []
    lab.now_ns += 30 * MS
    lab.core.on_time(lab.now_ns)
    assert rets(a) == [(1, 2, False)]
    assert lab.core.next_deadline() is None


def test_what_is_under_way_when_a_link_is_cut_or_an_end_leaves(lab: CoreLab) -> None:
    """A cut loses it without an answer; a destination that leaves has never had it: refused."""
    a, b, c = lab.hypervisors("hv0", "hv1", "hv2")
    for name in ("hv1", "hv2"):
        lab.core.impair("hv0", name, Impairment(delay_ns=30 * MS))
    a.ask(envelope_of(seq=1))
    a.ask(envelope_of(to="hv2/x", seq=2))
    a.ask(envelope_of(to="hv2/x", kind=WAKE))
    lab.core.impair("hv0", "hv1", CUT)
    assert a.envelopes() == []
    c.raw([b"junk"])
    assert rets(a) == [(2, -111, True)]
    lab.now_ns += 50 * MS
    lab.core.on_time(lab.now_ns)
    assert b.envelopes() == []


def test_a_result_under_way_is_lost_with_its_link(lab: CoreLab) -> None:
    """In both directions: the cut takes the answer too, and the repeat after healing brings it."""
    a, b = lab.hypervisors("hv0", "hv1")
    b.ask(envelope_of("hv1/store", "hv0/app", 1))
    a.ask(envelope_of(seq=1))
    lab.core.impair("hv0", "hv1", Impairment(delay_ns=30 * MS))
    got: list[int] = []

    def serve() -> None:
        for peer in (a, b, a, b):
            for envelope, _ in peer.envelopes():
                if envelope.use is Use.REQUEST:
                    peer.answer(envelope, 5)
                else:
                    got.append(envelope.ret)

    serve()
    lab.core.impair("hv0", "hv1", CUT)
    lab.wait(200)
    serve()
    assert got == []
    lab.core.impair("hv0", "hv1", NOTHING)
    a.ask(envelope_of(seq=1))
    b.ask(envelope_of("hv1/store", "hv0/app", 1))
    serve()
    assert got == [5, 5, 5, 5], "each asked twice"


def test_a_repeat_that_waits_when_its_destination_leaves(lab: CoreLab) -> None:
    """The first copy was taken and may have run, so the second one's fate proves nothing: no refusal."""
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(seq=1))
    b.envelopes()
    again = Peer(lab, b.routing_id)
    again.hello("hypervisor", "hv1", epoch_seen=EPOCH)
    again.heard()
    outstanding(lab, "hv1", RESERVE)
    a.ask(envelope_of(seq=1))
    a.ask(envelope_of(seq=2))
    again.raw([b"junk"])
    assert rets(a) == [(2, -111, True)]


def test_a_doubled_request_is_answered_once() -> None:
    """Both copies arrive and are answered by the far side; the origin has room for one result and gets one."""
    lab = CoreLab(chance=random.Random(1))
    a, b = lab.hypervisors("hv0", "hv1")
    lab.core.impair("hv0", "hv1", Impairment(duplicate=1.0))
    a.ask(envelope_of(seq=1))
    a.ask(envelope_of(kind=WAKE))
    got = []
    for _ in range(4):
        lab.now_ns += MS // 2
        lab.core.on_time(lab.now_ns)
        got += [envelope for envelope, _ in b.envelopes()]
    assert [envelope.kind for envelope in got] == [1, WAKE, 1, WAKE]
    for envelope in got:
        if envelope.use is Use.REQUEST:
            b.answer(envelope, 3)
    lab.wait(100)
    assert rets(a) == [(1, 3, False)]
    assert (rooms(lab, a, "hv0"), rooms(lab, b, "hv1"), len(lab.core.switch.operations)) == ((0, 0), (0, 0), 0)
