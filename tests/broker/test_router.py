"""The router core without sockets: joining and every refusal, frames, telling, attaching; hostile peers."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import frames, router
from broker.frames import FrameKind, Lane
from broker.handlers import HANDLERS
from broker.lifecycle import State
from broker.records import VOCABULARY, Direction
from broker.refusals import Refusal
from broker.session import SendResult
from tests.broker.support import EPOCH, TOKEN, CoreLab, Peer, handshake, hello_record, raw_frame, records_of
from tests.broker.test_envelope import values

CONTROL, REQUEST, EVENT = Lane


# ---- joining ---------------------------------------------------------------------------------------------


def test_welcome(lab: CoreLab) -> None:
    """A right hello is answered with epoch and name, in a handshake frame of the broker's epoch that names
    the hello.
    """
    peer = lab.peer()
    peer.raw(handshake(hello_record(), attempt=41))
    (frame,) = peer.frames()
    assert (frame.kind, frame.epoch, frame.ack) == (FrameKind.HANDSHAKE, EPOCH, 41)
    assert frame.records == [["welcome", EPOCH, "app"]]
    assert lab.shown("app") == "joined"


REFUSED_HELLOS: list[tuple[Refusal, list[Any], str]] = [
    (Refusal.WRONG_TOKEN, hello_record(token=TOKEN[:-1] + b"X"), "token"),
    (Refusal.WRONG_TOKEN, hello_record(token=TOKEN[:-1]), "'app' (pid 100)"),
    (Refusal.WRONG_VERSION, hello_record(major=2), "speaks 1.0, the node speaks major 2"),
    (Refusal.WRONG_VERSION, ["hello", 9], "major 9"),
    (Refusal.NAME_RESERVED, hello_record(name="broker"), "'broker'"),
    (Refusal.NAME_IN_USE, hello_record(name="holder"), "'holder' is held by hypervisor pid 33, joined"),
    (Refusal.STALE_EPOCH, hello_record(epoch_seen=EPOCH + 1), f"epoch {EPOCH}, the node saw {EPOCH + 1}"),
    (Refusal.MALFORMED_RECORD, hello_record(name="no/slash"), "hello.name: 'no/slash' is not a name"),
    (Refusal.MALFORMED_RECORD, hello_record(kind="broker"), "hello.kind: 'broker' is not one of hypervisor"),
    (Refusal.MALFORMED_RECORD, hello_record(token="text"), "hello.token"),
    (Refusal.MALFORMED_RECORD, hello_record(pid=-1), "hello.pid: -1"),
    (Refusal.MALFORMED_RECORD, hello_record(major="1"), "hello.major"),
    (Refusal.MALFORMED_RECORD, ["hello"], "hello.length"),
    (Refusal.MALFORMED_RECORD, [*hello_record(), 0], "hello.length"),
    (Refusal.HELLO_FIRST, ["ready"], "'ready'"),
    (Refusal.HELLO_FIRST, [5], "5"),
]


@pytest.mark.parametrize(("code", "record", "words"), REFUSED_HELLOS)
def test_a_hello_is_refused_with_code_and_words(code: Refusal, record: list[Any], words: str) -> None:
    """Wrong token, version, name, kind, epoch: each says what is wrong, is counted, and leaves nobody joined."""
    lab = CoreLab()
    lab.node("hypervisor", "holder", pid=33)
    peer = lab.peer()
    peer.raw(handshake(record, attempt=3))
    (frame,) = peer.frames()
    ((name, got, message),) = frame.records
    assert (frame.kind, frame.ack, name, got) == (FrameKind.HANDSHAKE, 3, "refused", code)
    assert words in message
    assert list(lab.core.nodes) == ["holder"]
    assert lab.core.counters[f"refused.{code}"] == 1
    assert any(event[:2] == ("refused", code) for event in lab.sink.events)


def test_a_newer_minor_is_welcome(lab: CoreLab) -> None:
    """Only the major version must agree."""
    assert lab.peer().hello(minor=9) == [["welcome", EPOCH, "app"]]


def test_the_holder_keeps_its_session_when_its_name_is_asked_for(lab: CoreLab) -> None:
    """A duplicate harms nobody: the holder is told nothing and goes on."""
    holder = lab.node(name="app", pid=1)
    other = lab.peer()
    ((_, code, message),) = other.hello(name="app", pid=2)
    assert code == Refusal.NAME_IN_USE
    assert "guest pid 1" in message
    assert "pid 2" in message
    holder.say(["ready"])
    assert lab.shown("app") == "ready"
    assert records_of(holder, "refused") == []


def test_a_name_whose_holder_is_gone_is_free(lab: CoreLab) -> None:
    """A killed holder is found out by a probe, not by waiting: the new process joins at once."""
    agent = lab.agent()
    old = lab.node(name="app", pid=1)
    lab.sink.answers[old.routing_id] = SendResult.UNREACHABLE
    assert lab.peer().hello(name="app", pid=2) == [["welcome", EPOCH, "app"]]
    assert [record[3:] for record in records_of(agent, "node")] == [
        ["joined", "pid 1"], ["lost", "its connection is gone"], ["joined", "pid 2"],
    ]  # fmt: skip


def test_the_same_process_may_come_back_over_a_new_connection(lab: CoreLab) -> None:
    """Same kind, name, pid and this epoch: its connection broke and it joins again; its old connection is fenced."""
    old = lab.node(name="app", pid=1)
    old.say(["ready"])
    new = lab.peer()
    assert new.hello(name="app", pid=1, epoch_seen=EPOCH) == [["welcome", EPOCH, "app"]]
    assert lab.shown("app") == "joined"
    old.say(["exit", 0, "a late frame"])
    assert [record[1] for record in old.heard(acknowledge=False) if record[0] == "refused"] == ["HELLO_FIRST"]
    assert lab.shown("app") == "joined"


def test_a_second_hello_on_a_connection(lab: CoreLab) -> None:
    """The same name starts the session anew and keeps what was not acknowledged; another name is refused."""
    peer = lab.node()
    other = lab.node(name="other")
    other.say(["tell", "app", ["x"]])
    peer.session = peer.session.successor(EPOCH)
    peer.raw(handshake(hello_record(epoch_seen=EPOCH), attempt=2))
    assert [record[0] for record in peer.heard()] == ["welcome", "told"]
    ((_, code, message),) = peer.hello(name="third")
    assert (code, "'app'" in message) == (Refusal.NOT_ALLOWED, True)


def test_records_before_hello(lab: CoreLab) -> None:
    """A connection that nobody joined over gets HELLO_FIRST for whatever it sends, and nothing happens."""
    stranger = lab.peer()
    stranger.say(["tell", "app", ["x"]])
    stranger.raw(raw_frame([], kind=FrameKind.ACK))
    assert [record[1] for record in stranger.heard(acknowledge=False)] == ["HELLO_FIRST", "HELLO_FIRST"]
    assert lab.core.nodes == {}


def test_the_number_of_nodes_is_bounded(lab: CoreLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead node is forgotten for a new one; when all live, the new one is refused."""
    monkeypatch.setattr(router, "MAX_NODES", 2)
    first = lab.node(name="a")
    lab.node(name="b")
    assert lab.peer().hello(name="c")[0][1] == Refusal.TOO_MANY_NODES
    first.say(["exit", 0, ""])
    assert lab.peer().hello(name="c") == [["welcome", EPOCH, "c"]]
    assert set(lab.core.nodes) == {"b", "c"}


# ---- frames ----------------------------------------------------------------------------------------------

GOOD = raw_frame([["ready"]])


def patched(offset: int, data: bytes) -> list[bytes]:
    header = bytearray(GOOD[0])
    header[offset : offset + len(data)] = data
    return [bytes(header), *GOOD[1:]]


BAD_FRAMES: list[tuple[str, list[bytes], Refusal, str]] = [
    ("wrong magic", patched(0, b"XXXX"), Refusal.MALFORMED_FRAME, "wrong magic"),
    ("wrong major", patched(4, b"\x02"), Refusal.WRONG_VERSION, "wrong major version: 2, expected 1"),
    ("unknown kind", patched(6, b"\x09"), Refusal.MALFORMED_FRAME, "unknown kind"),
    ("unknown lane", patched(7, b"\x09"), Refusal.MALFORMED_FRAME, "lane"),
    ("reserved flags", patched(26, b"\x01"), Refusal.MALFORMED_FRAME, "reserved flags"),
    ("count mismatch", patched(24, b"\x02"), Refusal.MALFORMED_FRAME, "disagree on the record count"),
    ("no parts", [], Refusal.MALFORMED_FRAME, "wrong number of parts"),
    ("too many parts", [*GOOD, b""], Refusal.MALFORMED_FRAME, "wrong number of parts"),
    ("a map", [GOOD[0], b"\x91\x91\x80", b""], Refusal.MALFORMED_FRAME, "maps are not allowed"),
    ("an extension", [GOOD[0], b"\x91\x91\xd4\x01\x00", b""], Refusal.MALFORMED_FRAME, "body is not an array"),
    ("huge nesting", [GOOD[0], b"\x91" * 60000, b""], Refusal.MALFORMED_FRAME, "body is not an array"),
    ("oversized body", [GOOD[0], bytes(65537), b""], Refusal.MALFORMED_FRAME, "body too large"),
    ("oversized payload", [*GOOD[:2], bytes((1 << 20) + 1)], Refusal.MALFORMED_FRAME, "payload too large"),
    ("older epoch", raw_frame([["ready"]], epoch=EPOCH - 1), Refusal.STALE_EPOCH, f"epoch {EPOCH - 1}, here"),
    ("newer epoch", raw_frame([["ready"]], epoch=EPOCH + 1), Refusal.STALE_EPOCH, f"it is {EPOCH}"),
    ("sequence gap", raw_frame([["ready"]], seq=1), Refusal.SEQ_GAP, "CONTROL expected record 0, got 1"),
    ("wrong ack", raw_frame([["ready"]], ack=5), Refusal.BAD_ACK, "acknowledged up to 5, sent up to 0"),
    ("unasked", raw_frame([values(kind=2, offset=0, length=0)], lane=REQUEST), Refusal.UNASKED_RESULT, "REQUEST"),
    ("bad envelope", raw_frame([values(dst=7)], lane=REQUEST), Refusal.MALFORMED_FRAME, "envelope.dst: 7"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "code", "words"), [row[1:] for row in BAD_FRAMES], ids=[row[0] for row in BAD_FRAMES]
)
def test_a_bad_frame_ends_its_session_and_no_other(parts: list[bytes], code: Refusal, words: str) -> None:
    """The sender is told code and reason and is out; subscribers see it; its peers never notice."""
    lab = CoreLab()
    agent = lab.agent()
    bystander = lab.node(name="bystander")
    bad = lab.node(name="bad")
    bad.raw(parts)
    (frame,) = bad.frames()
    assert frame.kind is FrameKind.HANDSHAKE
    assert frame.records[0][:2] == ["refused", code]
    assert words in frame.records[0][2]
    heard = agent.heard()
    assert ["event", "broker", "refused", code, "bad", frame.records[0][2]] in heard
    assert [record[3] for record in heard if record[0] == "node" and record[1] == "bad"] == ["joined", "lost"]
    assert lab.core.counters[f"refused.{code}"] == 1
    bystander.say(["ready"])
    assert (lab.shown("bystander"), lab.shown("bad")) == ("ready", "lost")
    assert bad.hello(name="bad", epoch_seen=EPOCH, attempt=2) == [["welcome", EPOCH, "bad"]], "it may join again"


@pytest.mark.parametrize("parts", [row[1] for row in BAD_FRAMES], ids=[row[0] for row in BAD_FRAMES])
def test_a_bad_frame_of_a_stranger_is_answered_and_forgotten(parts: list[bytes]) -> None:
    """Nothing is kept for a connection that nobody joined over."""
    lab = CoreLab()
    stranger = lab.peer()
    for _ in range(3):
        stranger.raw(parts)
    assert [record[0] for record in stranger.raw_records()] == ["refused"] * 3
    assert lab.core.nodes == {}


def test_a_replayed_frame_is_dropped_and_reported(lab: CoreLab) -> None:
    """The same bytes twice: executed once, reported, the session goes on."""
    other = lab.node(name="other")
    peer = lab.node()
    replay = raw_frame([["tell", "other", ["once"]]])
    peer.raw(replay)
    peer.raw(replay)
    assert records_of(other, "told") == [["told", "app", ["once"]]]
    assert [record[:2] for record in peer.raw_records()] == [["refused", "REPLAYED"]]
    peer.raw(raw_frame([["ready"]], seq=1, ack=1))
    assert lab.shown("app") == "ready"


BAD_RECORDS: list[tuple[list[Any], Refusal, str]] = [
    (["nonsense"], Refusal.MALFORMED_RECORD, "record.name: 'nonsense' is not one of attach, event"),
    (["welcome", 1, "a"], Refusal.MALFORMED_RECORD, "record.name"),
    (["tell", 5, ["x"]], Refusal.MALFORMED_RECORD, "tell.to: 5 is not a name"),
    (["tell", "a", []], Refusal.MALFORMED_RECORD, "tell.record"),
    (["tell", "a", ["x", [[[[[[[[[1]]]]]]]]]]], Refusal.MALFORMED_RECORD, "shallow"),
    (["heartbeat", -1], Refusal.MALFORMED_RECORD, "heartbeat.n: -1"),
    (["exit", "zero", ""], Refusal.MALFORMED_RECORD, "exit.code: 'zero'"),
    (["event", "x", *[0] * 253], Refusal.MALFORMED_RECORD, "event.length"),
    (hello_record(), Refusal.NOT_ALLOWED, "hello"),
    (["shutdown"], Refusal.NOT_ALLOWED, "'shutdown' from a guest"),
    (["gone", "x", 0, "", 0], Refusal.NOT_ALLOWED, "'gone' from a guest"),
    (["tell", "broker", ["shutdown"]], Refusal.NO_ROUTE, "'shutdown'"),
    (["tell", "broker", ["nonsense"]], Refusal.NO_ROUTE, "'nonsense'"),
]


@pytest.mark.parametrize(("record", "code", "words"), BAD_RECORDS)
def test_a_bad_record_is_refused_and_the_session_goes_on(record: list[Any], code: Refusal, words: str) -> None:
    """Beside a good record in the same frame: the good one counts, the other is named."""
    lab = CoreLab()
    peer = lab.node()
    peer.raw(raw_frame([record, ["ready"]]))
    (refused,) = peer.raw_records()
    assert refused[:2] == ["refused", code]
    assert words in refused[2]
    assert lab.shown("app") == "ready"
    assert not lab.core.stopping
    assert lab.core.counters[f"refused.{code}"] == 1


def test_attach_is_not_for_agents(lab: CoreLab) -> None:
    """Who attaches is a guest, or a hypervisor to its parent."""
    agent = lab.agent()
    agent.say(["attach", "hv0"])
    assert [record[:2] for record in agent.heard() if record[0] == "refused"] == [["refused", "NOT_ALLOWED"]]


def test_every_record_has_a_handler() -> None:
    """The vocabulary and the core agree on what nodes may say."""
    names = [row.name for row in VOCABULARY if row.direction is Direction.TO_BROKER]
    assert sorted(names) == sorted(HANDLERS)


# ---- telling and attaching -------------------------------------------------------------------------------


def test_tell(lab: CoreLab) -> None:
    """Records go by name, with the sender's true name and their payload, in order."""
    a, b = lab.node(name="a"), lab.node("hypervisor", "b")
    a.say(["tell", "b", ["x", 1, [b"y"]]])
    a.say(["tell", "b", ["bulk"]], b"payload")
    assert b.received() == [
        (CONTROL, ["told", "a", ["x", 1, [b"y"]]], b""), (CONTROL, ["told", "a", ["bulk"]], b"payload"),
    ]  # fmt: skip
    a.say(["tell", "a", ["self"]])
    assert a.heard() == [["told", "a", ["self"]]]
    assert lab.core.counters["told"] == 3


def test_nobody(lab: CoreLab) -> None:
    """A name that is unknown, has exited or is lost: the teller gets its record back."""
    a = lab.node(name="a")
    gone = lab.node(name="gone")
    gone.say(["exit", 0, ""])
    for name in ("nowhere", "gone"):
        a.say(["tell", name, ["x", 1]])
        assert a.heard() == [["nobody", name, ["x", 1]]]
    assert lab.core.counters["nobody"] == 2


def test_a_told_record_that_outgrows_a_frame(lab: CoreLab) -> None:
    """The sender's name makes a record longer: the teller hears that it was too long, nobody else anything."""
    a = lab.node(name="a" * 128)
    lab.node(name="b")
    a.say(["tell", "b", ["x", *["y" * 16370] * 4]])
    (refused,) = a.heard()
    assert refused[:2] == ["refused", "MALFORMED_RECORD"]
    assert "told.size" in refused[2]


def test_attach_flow(lab: CoreLab) -> None:
    """The broker mints a token, the hypervisor is granted it, and itself tells the guest where to attach."""
    hypervisor, guest = lab.node("hypervisor", "hv0"), lab.node("guest", "app")
    guest.say(["attach", "hv0"])
    ((_, sender, (what, who, token)),) = hypervisor.heard()
    assert (sender, what, who) == ("broker", "grant", "app")
    assert isinstance(token, bytes)
    assert len(token) == 16
    hypervisor.say(["tell", "app", ["granted", "/run/x/hv0", token]])
    assert guest.heard() == [["told", "hv0", ["granted", "/run/x/hv0", token]]]
    guest.say(["attach", "hv0"])
    ((_, _, (_, _, second)),) = hypervisor.heard()
    assert second != token


@pytest.mark.parametrize("name", ["nowhere", "other", "gone"])
def test_attach_to_what_is_no_hypervisor(lab: CoreLab, name: str) -> None:
    """An unknown name, a guest, a hypervisor that left: nobody."""
    guest = lab.node("guest", "app")
    lab.node("guest", "other")
    lab.node("hypervisor", "gone").say(["exit", 0, ""])
    guest.say(["attach", name])
    assert guest.heard() == [["nobody", name, ["attach", name]]]


# ---- the broker itself -----------------------------------------------------------------------------------


def test_counters_may_be_asked_for(lab: CoreLab) -> None:
    """tell broker counters? answers with a JSON object."""
    app = lab.node()
    app.say(["tell", "broker", ["counters?"]])
    ((_, sender, (what, text)),) = app.heard()
    assert (sender, what) == ("broker", "counters")
    assert json.loads(text)["hellos"] == 1


@pytest.mark.parametrize("record", [["shutdown"], ["tell", "broker", ["shutdown"]]])
def test_shutdown_by_the_agent(lab: CoreLab, record: list[Any]) -> None:
    """An agent may end the broker, in either form; every node is told."""
    agent, app = lab.agent(), lab.node()
    agent.say(record)
    assert lab.core.stopping
    assert app.heard() == [["shutdown"]]
    assert ["shutdown"] in agent.heard()
    lab.core.shutdown()
    assert app.heard() == [], "said once"


# ---- anything at all -------------------------------------------------------------------------------------

HEADERS = st.builds(
    lambda *fields: struct.pack("<IBBBBQIIHHI", *fields),
    st.just(frames.MAGIC), st.sampled_from([1, 1, 1, 2]), st.integers(0, 1), st.integers(0, 4), st.integers(0, 4),
    st.sampled_from([EPOCH, EPOCH, 0, 1 << 63]), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3),
    st.sampled_from([0, 0, 0, 1]), st.just(0),
)  # fmt: skip
NAMES = st.sampled_from([row.name for row in VOCABULARY] + ["x"])
FIELDS = st.recursive(
    st.none() | st.integers(-2, 300) | st.sampled_from(["app", "agent", "broker", "x", "guest"]) | st.just(TOKEN),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
BODIES = st.binary(max_size=40) | st.lists(
    st.builds(lambda name, fields: [name, *fields], NAMES, st.lists(FIELDS, max_size=7)), max_size=3
).map(lambda records: frames.pack_frame(FrameKind.RECORDS, CONTROL, 0, 0, 0, records)[1])
PARTS = st.tuples(HEADERS | st.binary(max_size=40), BODIES, st.binary(max_size=8)).map(list)


@given(st.lists(st.tuples(st.sampled_from([b"app", b"agent", b"stranger"]), PARTS | st.lists(st.binary())), max_size=8))
def test_nothing_raises_and_a_bystander_is_served(arriving: list[tuple[bytes, list[bytes]]]) -> None:
    """Any messages from joined peers and strangers: no exception leaves the core, and others keep talking."""
    lab = CoreLab()
    joined = {b"app": ("guest", "app"), b"agent": ("agent", "agent")}
    for routing_id, (kind, name) in joined.items():
        Peer(lab, routing_id).hello(kind, name)
    one, two = lab.node(name="one"), lab.node(name="two")
    for routing_id, parts in arriving:
        lab.core.on_frame(routing_id, parts, lab.now_ns)
        lab.wait(100)
        lab.core.flush()
    one.say(["tell", "two", ["x"]])
    assert ["told", "one", ["x"]] in two.heard()
    for node in lab.core.nodes.values():
        assert node.state in State
