"""Two process shells in one: a nested hypervisor attaches to its parent as any guest does, and either may die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from broker.client import ZmqLink
from broker.frames import Lane
from hv_node.config import DomainConfig, OuterConfig, RemoteConfig
from hv_node.node import Node
from hv_node.roster import NESTED_LAST
from hv_node.uplinks import ascent
from tests.doubles.hypervisor_node import Link, configured
from tests.hv_node.uplinks.rig import envelope

TOKEN = bytes(range(16))
MIB = 1 << 20


class World:
    """hv0 with guest `outer`, and hv1 in it with guest `inner`; their loops are turned by hand."""

    def __init__(self, directory: Path) -> None:
        self.links = {"hv0": Link(), "hv1": Link()}
        outer = configured(
            node_dir=str(directory), attach_path=str(directory / "hv0"), notifications=("virq",), path=("hv0",),
            domains=(DomainConfig("outer", 1, MIB, 1), DomainConfig("hv1", 2, 4 * MIB, 2, nested=True)),
            remotes=(RemoteConfig("inner", 0x4001, ("hv0", "hv1", "inner")),),
        )  # fmt: skip
        inner = replace(
            outer,
            name="hv1",
            attach_path=str(directory / "hv1"),
            domains=(DomainConfig("inner", 1, MIB, 1),),
            parent="hv0",
            path=("hv0", "hv1"),
            outer=(OuterConfig("xen", ("hypercall",)),),
            remotes=(RemoteConfig("outer", 0x4000, ("hv0", "outer")),),
        )
        self.configs = {"hv0": outer, "hv1": inner}
        self.nodes: dict[str, Node] = {}
        self.start("hv0")

    def start(self, name: str) -> Node:
        node = self.nodes[name] = Node(self.configs[name], cast(ZmqLink, self.links[name]))
        node.start()
        if node.ascent is not None:
            node.ascent.start()
        return node

    def tell(self, name: str, record: list[Any]) -> None:
        self.nodes[name]._on_record(Lane.CONTROL, record, b"")

    def grant(self) -> None:
        """What the broker and the parent say when hv1 asks."""
        self.tell("hv0", ["told", "broker", ["grant", "hv1", TOKEN]])
        self.tell("hv1", ["told", "hv0", self.links["hv0"].said[-1][2]])

    def turn(self, times: int = 40) -> None:
        for _ in range(times):
            for node in self.nodes.values():
                node._turn()
                node._poll(0)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        for link in self.links.values():
            link.close()


@pytest.fixture
def world(short_tmp_path: Path) -> Iterator[World]:
    made = World(short_tmp_path)
    yield made
    made.close()


def said(world: World, name: str, what: str) -> list[list[Any]]:
    return [record for record in world.links[name].said if record[0] == what]


def test_it_is_ready_once_its_parent_has_let_it_in(world: World) -> None:
    """Asks, is granted, attaches, registers its rings: then it is ready, and each level knows the other as up."""
    node = world.start("hv1")
    assert said(world, "hv1", "attach") == [["attach", "hv0"]]
    world.turn(3)
    assert said(world, "hv1", "ready") == []
    world.grant()
    world.turn()
    assert said(world, "hv1", "ready") == [["ready"]]
    parent = world.nodes["hv0"]
    assert parent.joint is not None
    assert node.joint is not None
    assert parent.joint.level.children["hv1"].up
    assert node.joint.level.uplink.up
    assert world.links["hv0"].events("attached") == [["hv1", 2]]


def test_a_parent_that_is_not_there_yet_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a guest does; a new broker is asked at once."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(now * 1e9))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    node = world.start("hv1")
    world.tell("hv1", ["nobody", "hv0", ["attach", "hv0"]])
    world.turn(2)
    assert len(said(world, "hv1", "attach")) == 1
    now += ascent.ASK_AGAIN_S + 0.001  # the two clocks round differently
    world.turn(2)
    assert len(said(world, "hv1", "attach")) == 2
    node.link.member.on_welcome(2)
    assert len(said(world, "hv1", "attach")) == 3


def test_it_gives_up_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody grants anything: an infrastructure failure with words, not an endless wait."""
    node = world.start("hv1")
    late = time.monotonic() + ascent.ATTACH_S
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(late * 1e9))
    world.turn(1)
    assert node.failure == "hypervisor hv0 let nobody in within 10 s"


def test_a_wrong_token_is_refused_with_words(world: World) -> None:
    """The parent's words reach the log of the child."""
    node = world.start("hv1")
    world.tell("hv0", ["told", "broker", ["grant", "hv1", bytes(16)]])
    world.tell("hv1", ["told", "hv0", ["granted", world.configs["hv0"].attach_path, TOKEN]])
    world.turn()
    assert "refused to attach 'hv1': wrong attach token" in node.failure


def test_the_death_of_the_parent_ends_it(world: World) -> None:
    """Its memory there is gone, and so is its only way out."""
    node = world.start("hv1")
    world.grant()
    world.turn()
    world.nodes.pop("hv0").close()
    world.turn()
    assert node.failure == "hypervisor hv0 is gone"
    assert node._stopping


def test_its_own_death_is_that_of_a_domain(world: World) -> None:
    """Killed and freed without an order, its guests dead; one that comes again has a fresh domain."""
    world.start("hv1")
    world.grant()
    world.turn()
    parent = world.nodes["hv0"]
    assert parent.joint is not None
    assert _has_argo(parent, 0x4001)
    world.nodes.pop("hv1").close()
    world.turn(3)
    parent.roster.free_due(time.monotonic())
    assert world.links["hv0"].events("domain-dying") == [["hv1", 2]]
    assert world.links["hv0"].events("domain-freed") == [["hv1", 2]]
    assert not _has_argo(parent, 0x4001), "its guests are dead with it"
    assert not parent.joint.level.children["hv1"].up
    world.links["hv1"].said.clear()
    world.start("hv1")
    world.grant()
    world.turn()
    assert said(world, "hv1", "ready") == [["ready"]]
    assert world.links["hv0"].events("attached")[-1] == ["hv1", NESTED_LAST]
    assert parent.joint.level.children["hv1"].up


def test_what_its_rings_did_not_take_follows(world: World) -> None:
    """The parent writes on when it sees that the child has taken something; nobody waits for a next message."""
    node = world.start("hv1")
    world.grant()
    world.turn()
    parent = world.nodes["hv0"]
    assert parent.joint is not None
    assert node.ascent is not None
    assert node.ascent.uplink is not None
    downlink = parent.joint._downlinks["hv1"]
    for _ in range(60):
        assert downlink.send(envelope(1), bytes(60_000))
    assert downlink.counters["full"]
    world.turn(100)
    assert node.ascent.uplink.counters["down"] == downlink.counters["down"]


def _has_argo(node: Node, domid: int) -> bool:
    domain = node.core.domains.lookup(domid)
    return domain is not None and domain.argo is not None


def test_a_stop_is_no_failure(world: World) -> None:
    """Told to stop, it does not mind that its parent stops as well."""
    node = world.start("hv1")
    world.grant()
    world.turn()
    world.tell("hv1", ["shutdown"])
    world.nodes.pop("hv0").close()
    world.turn()
    assert node.failure == ""
