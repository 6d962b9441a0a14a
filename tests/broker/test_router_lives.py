"""The router core without sockets: what subscribers see of lives, silence, and peers that are slow."""

from __future__ import annotations

from typing import Any

import pytest

from broker import frames
from broker.frames import FrameKind, Lane
from broker.session import SendResult
from tests.broker.support import EPOCH, CoreLab, raw_frame, records_of

CONTROL, REQUEST, EVENT = Lane


# ---- lifecycle and subscribers ---------------------------------------------------------------------------


def test_subscribers_see_lives_from_beginning_to_end(lab: CoreLab) -> None:
    """joined, ready, exited with code and reason; a late subscriber starts with a snapshot."""
    early = lab.agent()
    app = lab.node("guest", "app", pid=5)
    app.say(["ready"])
    app.say(["exit", 3, "program raised"])
    assert records_of(early, "node") == [
        ["node", "app", "guest", "joined", "pid 5"],
        ["node", "app", "guest", "ready", "pid 5"],
        ["node", "app", "guest", "exited", "exit 3: program raised"],
    ]
    late = lab.node("agent", "agent2", pid=6)
    late.say(["subscribe"])
    assert records_of(late, "node") == [
        ["node", "agent", "agent", "joined", "pid 100"],
        ["node", "app", "guest", "exited", "exit 3: program raised"],
        ["node", "agent2", "agent", "joined", "pid 6"],
    ]


def test_exit_is_acknowledged_before_the_session_ends(lab: CoreLab) -> None:
    """The node waits for that acknowledgement; afterwards its connection is a stranger's."""
    app = lab.node()
    app.say(["exit", 0, "done"])
    app.heard(acknowledge=False)
    assert app.session.settled
    app.say(["ready"])
    assert app.heard(acknowledge=False)[0][:2] == ["refused", "HELLO_FIRST"]
    assert lab.shown("app") == "exited"


def test_nothing_after_exit_in_the_same_frame(lab: CoreLab) -> None:
    """Records behind an exit come from a node that is no more."""
    other = lab.node(name="other")
    app = lab.node()
    app.raw(raw_frame([["exit", 0, ""], ["tell", "other", ["x"]], ["ready"]]))
    assert other.heard() == []
    assert lab.shown("app") == "exited"


def test_gone(lab: CoreLab) -> None:
    """The agent saw a process end: the node is exited whatever it was, its name is free; unknown names are
    nothing.
    """
    agent = lab.agent()
    app = lab.node()
    agent.say(["gone", "app", -9, "killed by signal 9", 0])
    agent.say(["gone", "never-joined", 1, "", 0])
    assert records_of(agent, "node")[-1] == ["node", "app", "guest", "exited", "exit -9: killed by signal 9"]
    app.say(["ready"])
    assert app.heard(acknowledge=False)[0][:2] == ["refused", "HELLO_FIRST"]
    assert lab.peer().hello(pid=101) == [["welcome", EPOCH, "app"]]


def test_late_news_of_a_former_life(lab: CoreLab) -> None:
    """The agent says which process is gone: when the next one has joined already, that is not it."""
    agent = lab.agent()
    lab.node().say(["exit", 4, "hypervisor gone"])
    lab.node(pid=101)
    agent.say(["gone", "app", 4, "", 100])
    assert lab.shown("app") == "joined"
    agent.say(["gone", "app", 4, "", 101])
    assert lab.shown("app") == "exited"


@pytest.mark.parametrize("lane", [CONTROL, EVENT])
def test_events_reach_subscribers_on_their_lane(lab: CoreLab, lane: Lane) -> None:
    """Telemetry on the event lane, results on the control lane, both with the sender's name, to subscribers only."""
    agent, other = lab.agent(), lab.node(name="other")
    app = lab.node()
    agent.heard()
    app.say(["event", "result", "app", "{}"], lane=lane)
    assert agent.received() == [(lane, ["event", "app", "result", "app", "{}"], b"")]
    assert other.heard() == []


def test_events_that_nobody_hears(lab: CoreLab) -> None:
    """Without a subscriber the last 256 events of the control lane wait for one; telemetry does not."""
    app = lab.node()
    for n in range(300):
        app.say(["event", "result", n])
        app.say(["event", "telemetry", n], lane=EVENT)
        app.heard()
    for name, expected in [("agent", list(range(44, 300))), ("agent2", [])]:
        agent = lab.node("agent", name)
        agent.say(["subscribe"])
        heard = agent.heard() + agent.heard()
        assert [record[3] for record in heard if record[0] == "event"] == expected


def test_an_event_that_outgrows_a_frame(lab: CoreLab) -> None:
    """Refused to its sender whether somebody listens or not, and not kept."""
    app = lab.node(name="a" * 128)
    for name in ("agent", "agent2"):
        app.say(["event", "x", *["y" * 16370] * 4])
        assert [record[:2] for record in app.heard()] == [["refused", "MALFORMED_RECORD"]]
        agent = lab.node("agent", name)
        agent.say(["subscribe"])
        assert not any(record[:3] == ["event", "a" * 128, "x"] for record in agent.heard())


def test_silence_is_shown_and_kills_nothing(lab: CoreLab) -> None:
    """2 s without a frame: unresponsive, with its age; the next frame makes the node what it was before."""
    agent = lab.agent()
    app = lab.node()
    quiet = lab.node(name="quiet")
    app.say(["ready"])
    agent.heard()
    for n in range(19):
        agent.say(["heartbeat", n])
        lab.wait(100)
    assert (lab.shown("app"), lab.shown("quiet")) == ("ready", "joined")
    agent.heard()
    lab.wait(100)
    assert records_of(agent, "node") == [
        ["node", "app", "guest", "unresponsive", "not heard for 2.0 s"],
        ["node", "quiet", "guest", "unresponsive", "not heard for 2.0 s"],
    ]
    for n in range(30):
        agent.say(["heartbeat", n])
        lab.wait(1000)
    assert records_of(agent, "node") == [], "said once"
    app.push()
    app.say(["heartbeat", 1])
    quiet.heard(acknowledge=False)
    quiet.raw(raw_frame([], kind=FrameKind.ACK))
    assert [record[1:4] for record in records_of(agent, "node")] == [
        ["app", "guest", "ready"], ["quiet", "guest", "joined"],
    ]  # fmt: skip
    other = lab.node(name="other")
    lab.wait(2500)
    other.say(["tell", "app", ["still there"]])
    assert ["told", "other", ["still there"]] in app.heard()


def test_a_silent_node_whose_connection_is_gone_is_lost(lab: CoreLab) -> None:
    """A probe tells a hung node from one that is no more; its name is free."""
    app = lab.node()
    lab.wait(2000)
    assert lab.shown("app") == "unresponsive"
    lab.sink.answers[app.routing_id] = SendResult.UNREACHABLE
    lab.wait(900)
    assert lab.shown("app") == "unresponsive", "probed once a second"
    lab.wait(200)
    assert lab.shown("app") == "lost"


def test_a_broker_that_was_stopped_does_not_blame_its_nodes(lab: CoreLab) -> None:
    """30 s between two ticks were the broker's own sleep."""
    lab.node()
    lab.now_ns += 30 * 10**9
    lab.core.on_tick(lab.now_ns)
    assert lab.shown("app") == "joined"
    lab.wait(2500)
    assert lab.shown("app") == "unresponsive"


def test_sending_to_a_lost_node(lab: CoreLab) -> None:
    """EHOSTUNREACH on a send: lost at once, subscribers hear of it, the next tell finds nobody."""
    agent, a, b = lab.agent(), lab.node(name="a"), lab.node(name="b")
    lab.sink.answers[b.routing_id] = SendResult.UNREACHABLE
    a.say(["tell", "b", ["x"]])
    assert ["node", "b", "guest", "lost", "its connection is gone"] in agent.heard()
    a.say(["tell", "b", ["y"]])
    assert a.heard() == [["nobody", "b", ["y"]]]


# ---- slow peers ------------------------------------------------------------------------------------------


def test_a_peer_that_acknowledges_nothing(lab: CoreLab) -> None:
    """It gets a window; a bounded queue waits for it; beyond that the teller hears busy. Others are not affected."""
    a, slow, other = lab.node(name="a"), lab.node(name="slow"), lab.node(name="other")
    limits = frames.LIMITS[CONTROL]
    sent = limits.window + limits.queue_records + 10
    answers: list[list[Any]] = []
    for n in range(sent):
        a.say(["tell", "slow", ["x", n]])
        answers += a.heard()
    lab.core.flush()
    assert [answer[:2] for answer in answers] == [["busy", "slow"]] * 10
    assert answers[0][2] == ["x", sent - 10]
    assert lab.core.counters["busy"] == 10
    assert lab.core.nodes["slow"].session.queued(CONTROL) == limits.queue_records
    a.say(["tell", "other", ["x"]])
    assert other.heard() == [["told", "a", ["x"]]]
    got: list[list[Any]] = []
    while batch := slow.heard():
        got += batch
    assert [record[2][1] for record in got] == list(range(sent - 10)), "all that was accepted, in order"


def test_a_transport_that_takes_nothing(lab: CoreLab) -> None:
    """EAGAIN from the socket: the frame waits, nothing overtakes it, later flushes try again."""
    a, b = lab.node(name="a"), lab.node(name="b")
    lab.sink.answers[b.routing_id] = SendResult.AGAIN
    for n in range(5):
        a.say(["tell", "b", ["x", n]])
        lab.core.flush()
    assert lab.core.counters["again"] >= 5
    assert lab.shown("b") == "joined"
    lab.sink.answers.clear()
    assert [record[2][1] for record in b.heard()] == [0, 1, 2, 3, 4]


def test_a_slow_subscriber_gets_a_snapshot_later(lab: CoreLab) -> None:
    """What it missed is counted; when it reads again it learns how everything stands now."""
    agent = lab.agent()
    app = lab.node()
    limits = frames.LIMITS[CONTROL]
    for n in range(limits.window + limits.queue_records + 7):
        app.say(["event", "noise", n])
        app.heard()
        lab.core.flush()
    app.say(["ready"])
    assert lab.core.nodes["agent"].missed > 0
    heard: list[list[Any]] = []
    while batch := agent.heard():
        heard += batch
    assert ["node", "app", "guest", "ready", "pid 100"] in heard
    (missed,) = [record for record in heard if record[:3] == ["event", "broker", "missed"]]
    noise = sum(record[0] == "event" and record[2] == "noise" for record in heard)
    announced = sum(record[0] == "node" for record in heard)
    assert missed[3] + noise == limits.window + limits.queue_records + 7 + 2 - (announced - 2)


def test_telemetry_beyond_the_queue_is_dropped_and_counted(lab: CoreLab) -> None:
    """The event lane loses what a subscriber does not read, and says how much in the counters."""
    lab.agent()
    app = lab.node()
    limits = frames.LIMITS[EVENT]
    for n in range(limits.window + limits.queue_records + 5):
        app.say(["event", "noise", n], lane=EVENT)
        app.heard()
        lab.core.flush()
    assert lab.core.counters["unqueued.event"] == 5
