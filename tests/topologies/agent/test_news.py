"""News of nodes on other hosts may come on the fabric before their agent has told of their process."""

from __future__ import annotations

from typing import Any

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


def lab(host: str) -> tuple[LabCore, News]:
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
    return core, News(core, sink, lives, changes, lambda _name: None, lambda _name: None)


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
