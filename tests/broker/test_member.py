"""A node's membership without sockets: hello, welcome, refusal, and joining again after the broker was replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import frames
from broker.fabric import FabricLink, MemoryFabric
from broker.fields import RecordError
from broker.frames import FrameKind, Lane, Parts
from broker.member import TRANSITIONS, Identity, Member, MemberState, MemberStimulus
from broker.records import Direction, encode
from broker.session import SendResult, Session
from tests.broker.support import MS, TOKEN
from tests.broker.test_envelope import values

CONTROL, REQUEST, EVENT = Lane
WHO = Identity("guest", "app", TOKEN, 42)


class Broker:
    """The other end, by hand: answers with what a test says."""

    def __init__(self, **arguments: Any) -> None:
        self.member = Member(WHO, **arguments)
        self.calls: list[tuple[Any, ...]] = []
        self.member.on_record = lambda lane, record, payload: self.calls.append(
            ("record", lane, record, bytes(payload))
        )
        self.member.on_welcome = lambda epoch: self.calls.append(("welcome", epoch))
        self.member.on_disconnected = lambda reason: self.calls.append(("disconnected", reason))
        self.member.on_refused = lambda code, message: self.calls.append(("refused", code, message))
        self.now_ns = 0
        self.answer = SendResult.SENT
        self.session = Session(Direction.TO_BROKER, 1)

    def flush(self, after_ms: int = 0) -> list[frames.Frame]:
        """What the member sends now."""
        self.now_ns += after_ms * MS
        sent: list[frames.Frame] = []

        def send(parts: Parts) -> SendResult:
            if self.answer is SendResult.SENT:
                sent.append(frames.parse_frame(parts))
            return self.answer

        self.member.flush(send, self.now_ns)
        return sent

    def hand(self, parts: Parts) -> list[tuple[Any, ...]]:
        """Give the member a message; the callbacks it caused."""
        self.member.on_frame(parts, self.now_ns)
        self.member.deliver()
        calls, self.calls = self.calls, []
        return calls

    def handshake(self, record: Sequence[Any], attempt: int, epoch: int = 1) -> list[tuple[Any, ...]]:
        return self.hand(frames.pack_frame(FrameKind.HANDSHAKE, CONTROL, epoch, 0, attempt, [record]))

    def join(self, epoch: int = 1) -> None:
        (hello,) = self.flush()
        self.session = Session(Direction.TO_BROKER, epoch)
        assert self.handshake(["welcome", epoch, "app"], hello.seq, epoch) == [("welcome", epoch)]
        assert self.member.state is MemberState.JOINED

    def say(self, record: Sequence[Any], payload: bytes = b"") -> list[tuple[Any, ...]]:
        """Say something within the session."""
        self.session.offer(CONTROL, encode(Direction.TO_NODE, CONTROL, record, payload))
        calls: list[tuple[Any, ...]] = []

        def send(parts: Parts) -> SendResult:
            calls.extend(self.hand(parts))
            return SendResult.SENT

        self.session.flush(send)
        return calls


def records(sent: list[frames.Frame]) -> list[Any]:
    return [record for frame in sent for record in frame.records]


def test_transitions() -> None:
    """The table, and that a refusal for good is the end."""
    state, stimulus = MemberState, MemberStimulus
    assert [tuple(row) for row in TRANSITIONS] == [
        (state.OUTSIDE, stimulus.HELLO, state.JOINING),
        (state.OUTSIDE, stimulus.TURNED_AWAY, state.REFUSED),
        (state.JOINING, stimulus.HELLO, state.JOINING),
        (state.JOINING, stimulus.WELCOME, state.JOINED),
        (state.JOINING, stimulus.TURNED_AWAY, state.REFUSED),
        (state.JOINED, stimulus.TURNED_AWAY, state.REFUSED),
        (state.JOINED, stimulus.ENDED, state.OUTSIDE),
    ]


def test_hello_and_welcome() -> None:
    """The first flush says hello; what was sent before the welcome leaves after it, declarations first."""
    broker = Broker()
    member = broker.member
    assert member.send(CONTROL, ["tell", "hv0", ["early"]])
    assert member.send(CONTROL, ["ready"])
    assert not member.send(CONTROL, ["heartbeat", 1]), "a heartbeat never waits"
    assert member.send(EVENT, ["event", "x"])
    assert member.credit(CONTROL) == 0
    (hello,) = broker.flush()
    assert (hello.kind, hello.epoch) == (FrameKind.HANDSHAKE, 0)
    assert hello.records == [["hello", 1, 0, "guest", "app", TOKEN, 42, 0]]
    assert broker.flush() == []
    broker.handshake(["welcome", 5, "app"], hello.seq, 5)
    sent = broker.flush()
    assert [(frame.lane, frame.epoch, frame.seq, frame.records) for frame in sent] == [
        (EVENT, 5, 0, [["event", "x"]]), (CONTROL, 5, 0, [["ready"], ["tell", "hv0", ["early"]]]),
    ]  # fmt: skip
    assert (member.epoch, member.credit(CONTROL)) == (5, 254)


def test_hello_is_repeated_until_answered_and_only_the_last_counts() -> None:
    """A stopped broker may answer three hellos at once: the answers to the first two are not taken for the
    third's.
    """
    broker = Broker()
    attempts = [broker.flush(after_ms=ms)[0].seq for ms in (0, 1000, 1000)]
    assert broker.flush(after_ms=999) == []
    assert attempts == [1, 2, 3]
    for attempt in (1, 2, 0):
        assert broker.handshake(["welcome", 1, "app"], attempt) == []
    assert broker.handshake(["welcome", 1, "app"], 3) == [("welcome", 1)]
    assert broker.handshake(["welcome", 1, "app"], 3) == [], "a copy of an answer"


def test_hello_waits_for_the_transport() -> None:
    """No broker there: nothing is lost, the hello leaves as soon as there is."""
    broker = Broker()
    broker.answer = SendResult.AGAIN
    assert broker.flush() == []
    broker.answer = SendResult.SENT
    assert len(broker.flush()) == 1


@pytest.mark.parametrize("code", ["WRONG_TOKEN", "WRONG_VERSION", "NAME_IN_USE", "NAME_RESERVED", "MALFORMED_RECORD"])
def test_refused_for_good(code: str) -> None:
    """A refusal of our hello that another hello would meet again: told once, no further hello."""
    broker = Broker()
    broker.flush()
    assert broker.handshake(["refused", code, "words"], 1) == [("refused", code, "words")]
    assert broker.member.refusal == (code, "words")
    assert broker.member.settled
    assert broker.flush(after_ms=5000) == []
    assert broker.handshake(["welcome", 1, "app"], 1) == []


def test_refusals_of_what_was_before_are_not_of_the_hello() -> None:
    """Late frames of an earlier session are answered HELLO_FIRST while our hello is under way."""
    broker = Broker()
    broker.flush()
    assert broker.handshake(["refused", "HELLO_FIRST", ""], 0) == []
    assert broker.handshake(["refused", "WRONG_TOKEN", "for another attempt"], 7) == []
    assert broker.member.state is MemberState.JOINING


def test_older_epochs_are_fenced() -> None:
    """Neither a welcome nor a frame of an older epoch is believed, not even the first, if a minimum is known."""
    broker = Broker(min_epoch=3)
    (hello,) = broker.flush()
    assert broker.handshake(["welcome", 2, "app"], hello.seq, epoch=2) == []
    assert broker.handshake(["welcome", 3, "app"], hello.seq, epoch=3) == [("welcome", 3)]
    old = frames.pack_frame(FrameKind.RECORDS, CONTROL, 2, 0, 0, [["shutdown"]])
    assert broker.hand(old) == []
    assert broker.member.counters["stale"] == 2
    assert broker.handshake(["welcome", 9, "app"], hello.seq, epoch=4) == [], "header and record disagree"


def test_records_are_called_out() -> None:
    """Lane, record, payload; a callback that raises loses only its own record."""
    broker = Broker()
    broker.join()
    assert broker.say(["told", "hv0", ["x", 1]], b"bulk") == [("record", CONTROL, ["told", "hv0", ["x", 1]], b"bulk")]

    def fail(_lane: Lane, _record: Any, _payload: Any) -> None:
        raise RuntimeError("a mistake in the node")

    calm = broker.member.on_record
    broker.member.on_record = fail
    pair = frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 1, 0, [["shutdown"], ["nobody", "x", ["y"]]])
    with pytest.raises(RuntimeError):
        broker.hand(pair)
    broker.member.on_record = calm
    broker.member.deliver()
    assert [call[2] for call in broker.calls] == [["nobody", "x", ["y"]]]


SESSION_ENDS = [
    frames.pack_frame(FrameKind.HANDSHAKE, CONTROL, 1, 0, 0, [["refused", "HELLO_FIRST", "who are you?"]]),
    frames.pack_frame(FrameKind.HANDSHAKE, CONTROL, 2, 0, 0, [["refused", "HELLO_FIRST", "a new broker"]]),
    frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 3, 0, [["shutdown"]]),
    frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 0, 9, [["shutdown"]]),
    frames.pack_frame(FrameKind.RECORDS, CONTROL, 2, 0, 0, [["shutdown"]]),
    frames.pack_frame(FrameKind.RECORDS, REQUEST, 1, 0, 0, [[1]]),
    [b"junk", b"", b""],
]


@pytest.mark.parametrize("parts", SESSION_ENDS, ids=range(len(SESSION_ENDS)))
def test_a_session_ends_and_another_begins(parts: list[bytes]) -> None:
    """Not known any more, a gap, a wrong acknowledgement, another epoch, junk: told why, and hello again."""
    broker = Broker()
    broker.join()
    broker.member.send(CONTROL, ["ready"])
    broker.member.send(CONTROL, ["subscribe"])
    broker.member.send(CONTROL, ["tell", "hv0", ["not acknowledged"]])
    broker.flush()
    ((what, reason),) = broker.hand(parts)
    assert what == "disconnected"
    assert reason
    assert broker.member.credit(CONTROL) == 0
    assert not broker.member.settled
    assert not broker.member.send(CONTROL, ["heartbeat", 1])
    assert broker.member.send(CONTROL, ["tell", "hv0", ["in between"]])
    assert broker.flush() == [], "not twice within a tenth of a second"
    (hello,) = broker.flush(after_ms=100)
    assert hello.records[0][7] == 1, "the epoch last seen"
    assert broker.handshake(["welcome", 2, "app"], hello.seq, epoch=2) == [("welcome", 2)]
    sent = broker.flush()
    assert {frame.epoch for frame in sent} == {2}
    assert records(sent) == [
        ["ready"], ["subscribe"], ["tell", "hv0", ["not acknowledged"]], ["tell", "hv0", ["in between"]],
    ]  # fmt: skip


def test_a_refused_record_is_news_not_an_end() -> None:
    """Within the session the broker reports what was wrong with a record."""
    broker = Broker()
    broker.join()
    assert broker.say(["refused", "MALFORMED_RECORD", "words"])[0][2] == ["refused", "MALFORMED_RECORD", "words"]
    assert broker.member.state is MemberState.JOINED


def test_a_replayed_frame_is_dropped() -> None:
    """The session goes on."""
    broker = Broker()
    broker.join()
    frame = frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 0, 0, [["nobody", "x", ["y"]]])
    assert len(broker.hand(frame)) == 1
    assert broker.hand(frame) == []
    assert broker.member.counters["violation.REPLAYED"] == 1


def test_records_are_checked_at_the_sender() -> None:
    """A mistake of the node shows where it is made."""
    with pytest.raises(RecordError, match=r"tell\.to"):
        Member(WHO).send(CONTROL, ["tell", 1, ["x"]])


def test_a_dead_broker_costs_bounded_memory() -> None:
    """Nobody takes what a node says: queues fill, the rest is dropped and counted, nothing raises."""
    broker = Broker()
    broker.join()
    broker.answer = SendResult.AGAIN
    accepted = 0
    for n in range(5000):
        accepted += broker.member.send(CONTROL, ["event", "x", n])
        broker.flush()
    assert accepted < 4500
    assert broker.member.counters["dropped"] == 5000 - accepted


def test_envelopes_need_a_session() -> None:
    """Outside one there is no reservation: not queued.  Within, a full window stops requests, never results."""
    broker = Broker()
    member = broker.member
    assert not member.send(REQUEST, values())
    broker.join()
    broker.session.offer(REQUEST, encode(Direction.TO_NODE, REQUEST, values()))
    broker.say(["shutdown"])
    assert sum(member.send(REQUEST, values()) for _ in range(300)) == 256
    assert member.credit(REQUEST) == 0
    assert member.send(REQUEST, values(kind=4))
    assert member.send(REQUEST, values(kind=2)), "the result of the request that came"
    assert not member.send(REQUEST, values(kind=2))


def test_shutdown_settles() -> None:
    """After the broker's farewell nobody acknowledges: a node that leaves need not wait."""
    broker = Broker()
    broker.join()
    broker.member.send(CONTROL, ["exit", 0, ""])
    assert not broker.member.settled
    broker.say(["shutdown"])
    assert broker.member.settled


@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=5))
def test_nothing_that_arrives_raises(arriving: list[list[bytes]]) -> None:
    """A broker gone mad ends the session, nothing else."""
    broker = Broker()
    broker.join()
    for parts in arriving:
        broker.hand(parts)
    assert broker.member.state in (MemberState.JOINED, MemberState.OUTSIDE)


# ---- with the real core, in memory -----------------------------------------------------------------------


def listen(link: FabricLink) -> list[Any]:
    got: list[Any] = []
    link.on_record = lambda _lane, record, _payload: got.append(record)
    return got


def fabric() -> MemoryFabric:
    return MemoryFabric(token=TOKEN, mint=lambda: bytes(16))


def test_broker_restart_in_memory() -> None:
    """A new broker knows nobody: every node joins it by itself, states and subscriptions come back, epoch 2."""
    lab = fabric()
    agent, app = lab.connect("agent", "agent"), lab.connect("guest", "app")
    got = listen(agent)
    agent.send(CONTROL, ["subscribe"])
    app.send(CONTROL, ["ready"])
    lab.settle(0)
    lab.restart(epoch=2)
    now_ns = 10**9
    for link in (agent, app):
        link.send(CONTROL, ["heartbeat", 1])
    lab.settle(now_ns)
    lab.settle(now_ns + 200 * MS)
    assert (agent.member.epoch, app.member.epoch) == (2, 2)
    assert lab.core.nodes["app"].record[3] == "ready"
    got.clear()
    app.send(CONTROL, ["event", "result", "app", "{}"])
    lab.settle(now_ns + 200 * MS)
    assert got == [["event", "app", "result", "app", "{}"]]


def test_a_result_under_way_survives_the_broker() -> None:
    """What the old broker took but did not acknowledge is said again to the new one."""
    lab = fabric()
    agent, app = lab.connect("agent", "agent"), lab.connect("guest", "app")
    got = listen(agent)
    agent.send(CONTROL, ["subscribe"])
    lab.settle(0)
    app.send(CONTROL, ["event", "result", "app", "{}"])
    app.flush()
    lab.restart(epoch=2)
    for now_ms in (0, 1000, 1200, 2400):
        agent.send(CONTROL, ["heartbeat", now_ms])
        app.send(CONTROL, ["heartbeat", now_ms])
        lab.settle(now_ms * MS)
    assert ["event", "app", "result", "app", "{}"] in got


def test_envelopes_through_the_fabric_are_answered() -> None:
    """The request lane works end to end: reservation taken, refused for want of a destination, returned."""
    lab = fabric()
    hypervisor = lab.connect("hypervisor", "hv0")
    got = listen(hypervisor)
    lab.settle(0)
    assert hypervisor.send(REQUEST, values(src_path=["app", "hv0"]), b"payload")
    assert hypervisor.credit(REQUEST) == 255
    lab.settle(0)
    assert [(envelope.kind, envelope.ret) for envelope in got] == [(2, -111)]
    assert hypervisor.credit(REQUEST) == 256


@pytest.mark.parametrize("state", [MemberState.OUTSIDE, MemberState.JOINED])
def test_the_transport_may_turn_a_member_away(state: MemberState) -> None:
    """Before or after joining: once, with its words, and no hello follows."""
    lab = fabric()
    app = lab.connect("guest", "app")
    if state is MemberState.JOINED:
        lab.settle(0)
    refused: list[tuple[str, str]] = []
    app.member.on_refused = lambda code, message: refused.append((code, message))
    assert app.member.state is state
    for _ in range(2):
        app.member.turn_away("HANDSHAKE_FAILED", "no")
        app.pump()
    lab.settle(2000 * MS)
    assert refused == [("HANDSHAKE_FAILED", "no")] == [app.member.refusal]
    assert app.member.state is MemberState.REFUSED
    assert app.member.settled
