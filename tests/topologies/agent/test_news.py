"""News of nodes on other hosts may come on the fabric before their agent has told of their process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.frames import Lane
from tests.topologies.hosts.test_protocol import HYPERVISOR
from topologies.agent.changes import Changes
from topologies.agent.core import LabCore
from topologies.agent.lives import Lives
from topologies.agent.news import News
from topologies.agent.spec import LabSpec, Mode, NodeSpec
from topologies.runtime import NodeKind, NodeState


class Deaf:
    """A sink and a journal that note nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments: None


def lab(host: str, lost: Callable[[str], None] = lambda _name: None) -> tuple[LabCore, News]:
    nodes = (
        NodeSpec("broker", NodeKind.BROKER, "b"),
        NodeSpec("hv0", NodeKind.HYPERVISOR, "h", HYPERVISOR, host=host),
    )
    sink: Any = Deaf()
    core = LabCore(LabSpec("lab", Mode.UP, nodes), sink)
    lives = Lives(core, lambda _name, _record: None, set(), lambda _name: None)
    core.begin(0)
    core.spawned("broker", 1, 0)
    core.ready("broker", 0)
    changes = Changes(core, lambda _name, _record: None, lambda _record: None)
    return core, News(core, sink, lives, changes, lambda _name: None, lost)


def say(news: News, state: str, pid: int) -> None:
    news.on_record(Lane.CONTROL, ["node", "hv0", "hypervisor", state, f"pid {pid}"], b"")


def state(core: LabCore) -> NodeState:
    node = core.node("hv0")
    assert node is not None
    return node.state


def ended(core: LabCore) -> tuple[bool, str]:
    node = core.node("hv0")
    assert node is not None
    return node.goodbye, node.detail


def test_early_news_of_another_host_is_kept() -> None:
    """Joined and ready before its start was reported: ready as soon as it is."""
    core, news = lab("far")
    say(news, "joined", 17)
    say(news, "ready", 17)
    assert state(core) is NodeState.PLANNED
    core.spawned("hv0", 17, 1)
    news.spawned("hv0", 17)
    assert state(core) is NodeState.READY


def test_late_news_of_a_former_life_is_not() -> None:
    """Another process's news says nothing of this one."""
    core, news = lab("far")
    say(news, "ready", 16)
    core.spawned("hv0", 17, 1)
    news.spawned("hv0", 17)
    assert state(core) is NodeState.STARTING


def test_here_there_is_no_early_news() -> None:
    """A process of this host is known before it can speak."""
    core, news = lab("")
    say(news, "ready", 17)
    core.spawned("hv0", 17, 1)
    news.spawned("hv0", 17)
    assert state(core) is NodeState.STARTING


def test_a_goodbye_waits_for_the_hosts_own_account() -> None:
    """A guest that ends for want of its hypervisor says so sooner than their host tells which of them was first."""
    core, news = lab("far")
    core.spawned("hv0", 17, 1)
    say(news, "joined", 17)
    news.on_record(Lane.CONTROL, ["node", "hv0", "hypervisor", "exited", "exit 4: gone"], b"")
    assert not ended(core)[0]
    news.ended("hv0")
    assert ended(core) == (True, "gone")


@pytest.mark.parametrize(("detail", "words", "bereft"), [
    ("exit 4: hypervisor hv0 is gone", "hypervisor hv0 is gone", True),
    ("exit 3: a: b", "a: b", False),
    ("exit -9: ", "", False),
    ("exit ²: x", "x", False),
    ("connection lost", "connection lost", False),
])  # fmt: skip
def test_a_goodbye(detail: str, words: str, bereft: bool) -> None:
    """The broker's words for an exit: code and reason; anything else is a reason."""
    core, news = lab("")
    core.spawned("hv0", 17, 1)
    say(news, "joined", 17)
    news.on_record(Lane.CONTROL, ["node", "hv0", "hypervisor", "ready", "pid 17"], b"")
    news.on_record(Lane.CONTROL, ["node", "hv0", "hypervisor", "exited", detail], b"")
    node = core.node("hv0")
    assert node is not None
    assert (node.goodbye, node.detail, node.bereft) == (True, words, bereft)


@pytest.mark.parametrize(("word", "record", "again"), [
    ("busy", ["order", 1], True),
    ("nobody", ["order", 1], True),
    ("busy", ["peer", "b", 0x6000], True),
    ("nobody", ["peer", "b", 0x6000], False),
    ("busy", ["counters"], False),
])  # fmt: skip
def test_what_is_said_again(word: str, record: list[Any], again: bool) -> None:
    """What a node must hear; who its peers are a guest that is not there hears when it joins."""
    lost: list[str] = []
    _core, news = lab("", lost.append)
    news.on_record(Lane.CONTROL, [word, "hv0", record], b"")
    assert lost == ["hv0"] * again
