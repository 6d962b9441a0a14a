"""Policy and labels over levels in memory: what every level on the way lets pass, and what a change of them keeps."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY, RING_DATA, RING_DATA_ENT
from hmx.errno import Errno
from hv_node.config import PolicyConfig
from hv_node.effects import PENDING
from hv_node.levels.paths import Path
from tests.doubles.house import (
    APP,
    DEEP,
    DENIED,
    ECHO,
    FAR,
    GUESTS,
    OTHER,
    STORAGE,
    STORE,
    A,
    B,
    House,
    M,
    N,
    rules,
    slot,
)
from tests.doubles.two_levels import call, register, send


def test_policy_at_every_level() -> None:
    """Asked where it starts, where it passes, and where it ends; denied once aloud, counted each time."""
    house = House(policy=rules(("app_t", "far_t"), ("deep_t", "far_t"), ("app_t", "store_t")))
    assert house.arrives(APP, STORE, STORE, ECHO) and house.arrives(APP, FAR, FAR, ECHO)
    assert house.arrives(DEEP, FAR, FAR, ECHO)
    for sender, receiver in ((OTHER, STORE), (OTHER, FAR), (DEEP, STORE), (FAR, DEEP)):
        assert house.send(sender, receiver, ECHO) == DENIED
        assert house.send(sender, receiver, ECHO) == DENIED
        assert house.got(receiver) == []
    denied = [event for event in house.lab.nodes[A].events if event[0] == "policy-denied"]
    assert len(denied) == 2
    assert not [event for event in house.lab.nodes[A].events if event[0] == "argo-send-denied"]
    assert house.furniture[A].inspect()["policy"]["denied"] == 4
    assert house.send(APP, STORE, 99) == DENIED


def test_the_level_on_the_way_decides_too() -> None:
    """a forbids what n and b allow: the message, and the question about the ring, with entries before it answered."""
    house = House(policy=rules(("deep_t", "far_t")))
    assert house.arrives(DEEP, FAR, FAR, ECHO)
    assert house.query(DEEP, (ECHO, FAR))[0] & 1
    assert [p for p in house.furniture if house.furniture[p].firewall is None] == []
    house.furniture[A].judge_by(rules(("x", "y")))
    assert house.send(DEEP, FAR, ECHO) == DENIED
    node = house.node(DEEP)
    RING_DATA.pack_into(node.ram[DEEP], 0x4000, 1, 0)
    RING_DATA_ENT.pack_into(node.ram[DEEP], 0x4000 + RING_DATA.size, ECHO, FAR, 0, 0, 0, 5, 0)
    ret = call(node, DEEP, 4, 0x4000, token="q")
    assert (node.completed["q"] if ret is PENDING else ret) == DENIED


def test_a_repeat_that_is_refused_on_the_way() -> None:
    """The first copy is past the level that forbids the second: nobody knows what became of it."""
    house = House(policy=rules(("deep_t", "far_t")))
    deep = house.node(DEEP)
    house.hold()
    assert send(deep, DEEP, FAR, token="t", port=ECHO) is PENDING
    assert house.lab.wires[N, A].step()
    house.furniture[A].judge_by(rules(("x", "y")))
    for now in (1, 700_000_000):
        deep.level.on_timer(now)
    assert house.lab.wires[N, A].step()
    assert house.lab.wires[A, N].step()
    assert deep.completed["t"] == -Errno.EIO


def test_a_question_upwards_is_judged_at_home_too() -> None:
    """What n's own policy denies stops notify with that errno, though a allows it."""
    rows = slot("deep", (), to_port=None), slot("n", (*A, "store"))
    house = House(*rows, policy=rules(("deep_t", "store_t")))
    assert house.query(DEEP, (STORAGE, DOMID_ANY))[0] & 1
    house.furniture[N].judge_by(rules(("x", "y")))
    ret = call(house.node(DEEP), DEEP, 4, 0x4000, token="q")
    assert (house.node(DEEP).completed["q"] if ret is PENDING else ret) == DENIED
    assert house.furniture[A].inspect()["policy"]["denied"] == 0


def test_the_dead_are_forgotten() -> None:
    """Nobody answers them."""
    house = House(policy=rules(("app_t", "store_t")))
    assert house.send(APP, STORE, ECHO) == 5
    assert house.furniture[A].inspect()["policy"]["flows"] == 1
    house.lab.nodes[A].kill(APP)
    assert house.furniture[A].inspect()["policy"]["flows"] == 0


def test_a_policy_comes_and_changes_live() -> None:
    """From nothing to a firewall, to another; a waiter that may not know any more is forgotten, unsignalled."""
    house = House()
    node = house.lab.nodes[A]
    assert house.arrives(OTHER, STORE, STORE, ECHO)
    for _ in range(3):
        house.send(OTHER, STORE, ECHO)
    assert house.send(OTHER, STORE, ECHO) == -Errno.EAGAIN
    house.order(A, "policy", asdict(rules(("app_t", "store_t"))))
    assert house.words(A, 1) == [""]
    ring = next(iter(node.domains.lookup(STORE).argo.rings.values()))  # type: ignore[union-attr]
    assert not ring.pending
    assert house.send(OTHER, STORE, ECHO) == DENIED
    assert house.arrives(APP, STORE, STORE, ECHO)
    house.order(A, "policy", asdict(rules(("other_t", "store_t"))), 2)
    assert house.arrives(OTHER, STORE, STORE, ECHO)
    assert house.send(APP, STORE, ECHO) == DENIED


def test_what_was_allowed_may_be_answered() -> None:
    """A flow comes from a message; a policy without its rule ends it, another that has it keeps it."""
    house = House(policy=rules(("app_t", "store_t")))
    assert register(house.node(APP), APP, gfn=30, port=5) == 0
    assert house.send(STORE, APP, 5) == DENIED
    assert house.send(APP, STORE, ECHO) == 5
    assert house.send(STORE, APP, 5) == 5
    house.order(A, "policy", asdict(rules(("deep_t", "far_t"), ("app_t", "store_t"))))
    assert house.send(STORE, APP, 5) == 5
    house.order(A, "policy", asdict(rules(("deep_t", "far_t"))), 2)
    assert house.send(STORE, APP, 5) == DENIED


def relabelled(policy: PolicyConfig, **labels: str) -> Any:
    """A policy with labels: those of the plan, but for `labels`."""
    given = {path[-1]: f"{path[-1]}_t" for path in GUESTS} | labels
    return asdict(replace(policy, labels=tuple((name, label) for name, label in given.items() if label)))


@pytest.mark.parametrize("target", [STORE, FAR, DEEP])
def test_labels_change_with_a_policy(target: int) -> None:
    """At every level: of guests beside, elsewhere, inside, and of those who pass; one that has none is nobody."""
    to = {STORE: "store_t", FAR: "far_t", DEEP: "deep_t"}[target]
    house = House(policy=rules(("app_t", to)))
    assert house.arrives(APP, target, target, ECHO)
    assert house.send(OTHER, target, ECHO) == DENIED
    for number, labels in enumerate(({"app": "x_t", "other": "app_t"}, {"app": "", "other": "app_t"}), 1):
        for path in house.furniture:
            house.order(path, "policy", relabelled(rules(("app_t", to)), **labels), number)
        assert house.arrives(OTHER, target, target, ECHO)
        assert house.send(APP, target, ECHO) == DENIED
    for path in house.furniture:
        house.order(path, "policy", relabelled(rules(("y_t", "z_t")), app="y_t", **{to[:-2]: "z_t"}), 3)
    assert house.arrives(APP, target, target, ECHO)
    assert {words for _, _, words in house.said} == {""}
    for path in house.furniture:
        house.order(path, "policy", asdict(rules(("y_t", "z_t"))), 4)
    assert house.arrives(APP, target, target, ECHO), "a policy without labels leaves them"


def test_flows_outlive_new_labels() -> None:
    """deep asks far; both are relabelled, and far may answer still: at a, which they only pass, as at both ends."""
    house = House(policy=rules(("deep_t", "far_t")))
    assert register(house.node(DEEP), DEEP, gfn=30, port=5) == 0
    assert house.send(FAR, DEEP, 5) == DENIED
    assert house.send(DEEP, FAR, ECHO) == 5
    for path in house.furniture:
        house.order(path, "policy", relabelled(rules(("x_t", "y_t")), deep="x_t", far="y_t"))
    assert house.send(FAR, DEEP, 5) == 5
    for path in house.furniture:
        house.order(path, "policy", relabelled(rules(("x_t", "y_t")), deep="z_t", far="y_t"), 2)
    assert house.send(FAR, DEEP, 5) == DENIED


@pytest.mark.parametrize("changed", [(), (M, N), (M, N, A), (B,), (B, A), (A,), (A, B, N, M)])
def test_no_moment_of_a_change_denies_what_both_policies_allow(changed: tuple[Path, ...]) -> None:
    """Each level judges by the labels that it knows, whatever was claimed by one that has heard of the change."""
    house = House(policy=rules(("deep_t", "far_t"), ("far_t", "deep_t")))
    for path in changed:
        house.order(path, "policy", relabelled(rules(("x_t", "y_t"), ("y_t", "x_t")), deep="x_t", far="y_t"))
    assert house.arrives(DEEP, FAR, FAR, ECHO)
    assert house.arrives(FAR, DEEP, DEEP, ECHO)


def test_what_is_under_way_is_said_again_under_the_new_label() -> None:
    """A fabric that knows the new ones takes no other: else it would wait for ever."""
    house = House(policy=rules(("app_t", "far_t")))
    house.lab.cut(B)
    assert send(house.node(APP), APP, FAR, token="t", port=ECHO) is PENDING
    house.order(A, "policy", relabelled(rules(("x_t", "far_t")), app="x_t"))
    (op,) = [op for op in house.lab.nodes[A].level.calls if op.envelope.src_path[0] == "app"]
    assert op.envelope.label == "x_t"


@pytest.mark.parametrize("labels", [{}, [["a"]], [["a", 1]], ["a"]])
def test_labels_that_are_none(labels: Any) -> None:
    """Refused with words; nothing changes."""
    house = House()
    house.order(A, "policy", {**asdict(rules()), "labels": labels})
    assert house.words(A, 1)[0].startswith("labels: ")
    assert house.furniture[A].firewall is None
