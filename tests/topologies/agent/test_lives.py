"""What nodes are told at their start when it is not the first, and by which ids guests know those elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hv_node.config import RemoteConfig
from tests.topologies.agent.doubles import Driver
from tests.topologies.hosts.test_protocol import GUEST, HYPERVISOR
from topologies.agent.lives import Lives
from topologies.agent.phases import Phase
from topologies.agent.spec import LabSpec, Mode, NodeSpec
from topologies.runtime import NodeKind

KILLED = -9


def two() -> tuple[Driver, Lives, list[tuple[str, list[Any]]]]:
    """Guest a on hv0 and guest b on hv1, both hypervisors started again when they die."""
    hv0 = replace(HYPERVISOR, remotes=(RemoteConfig("b", 0x4001, ("hv1", "b")),))
    hv1 = replace(HYPERVISOR, name="hv1", domains=(replace(HYPERVISOR.domains[0], name="b"),))
    nodes = (
        NodeSpec("broker", NodeKind.BROKER, "x:y"),
        NodeSpec("hv0", NodeKind.HYPERVISOR, "x:y", hv0, restart=True),
        NodeSpec("hv1", NodeKind.HYPERVISOR, "x:y", hv1, restart=True),
        NodeSpec("a", NodeKind.GUEST, "x:y", replace(GUEST, peers={"b": 0x4001}), "hv0", 1),
        NodeSpec("b", NodeKind.GUEST, "x:y", replace(GUEST, name="b", hypervisor="hv1", peers={}), "hv1", 1),
    )
    driver = Driver(LabSpec("lab", Mode.UP, nodes)).begin().up_to(Phase.RUNNING)
    told: list[tuple[str, list[Any]]] = []
    living = {"hv0", "hv1", "a", "b"}
    return driver, Lives(driver.core, lambda name, record: told.append((name, record)), living, lambda _: None), told


def die(driver: Driver, lives: Lives, name: str) -> None:
    lives.ended(name, driver.now)
    driver.core.ended(name, KILLED, "", driver.now)


def test_a_name_that_means_another_id() -> None:
    """A hypervisor has met somebody's later life: its guests that may know it are told, at once and in later lives."""
    driver, lives, told = two()
    assert lives.config("a", driver.now).peers == {"b": 0x4001}
    lives.on_domain("hv0", "proxy-met", ["b", 0x6000], driver.now)
    assert told == [("a", ["peer", "b", 0x6000])]
    assert lives.config("a", driver.now).peers == {"b": 0x6000}
    for fields in (["a", 0x6001], ["nobody", 0x6002], ["b", "x"], []):
        lives.on_domain("hv0", "proxy-met", fields, driver.now)
    assert len(told) == 1


def test_a_guest_that_joins_hears_what_it_missed() -> None:
    """Told at its start, it hears of nothing until it has joined; and what the plan says, it knows."""
    driver, lives, told = two()
    lives.repeat("a")
    assert not told
    started_with = lives.config("a", driver.now).peers
    lives.on_domain("hv0", "proxy-met", ["b", 0x6000], driver.now)
    told.clear()  # nobody was there yet
    lives.repeat("a")
    lives.repeat("b")
    lives.repeat("nobody")
    assert started_with == {"b": 0x4001}
    assert told == [("a", ["peer", "b", 0x6000])]


def test_a_hypervisor_that_is_started_again_says_so() -> None:
    """It begins behind the ids that it gave; who lives for the first time elsewhere keeps the planned one."""
    driver, lives, _ = two()
    first = lives.config("hv0", driver.now)
    assert (first.again, first.fresh_from) == (False, None)
    lives.on_domain("hv0", "proxy-met", ["nobody", 0x6004], driver.now)
    die(driver, lives, "hv0")
    again = lives.config("hv0", driver.now)
    assert (again.again, again.fresh_from) == (True, 0x6005)
    assert [(row.name, row.domid) for row in again.remotes] == [("b", 0x4001)]


def test_the_planned_id_is_for_the_first_life() -> None:
    """Whoever lives elsewhere for the second time, or is about to, has a fresh one, and is known by it."""
    driver, lives, _ = two()
    die(driver, lives, "hv1")
    die(driver, lives, "hv0")
    again = lives.config("hv0", driver.now)
    assert [(row.name, row.domid, row.path) for row in again.remotes] == [("b", 0x6000, ("hv1", "b"))]
    assert again.fresh_from == 0x6001
    assert lives.config("a", driver.now).peers == {"b": 0x6000}
