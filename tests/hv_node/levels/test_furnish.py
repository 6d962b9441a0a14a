"""Slots over levels in memory: what a plan says, what orders change, what holds once they are answered."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.slots import QUERY_ENDPOINT as QUERY
from hmx.slots import DelegateCall, DelegateFlag, SlotOp, pack_delegate, parse_endpoint
from hv_node.config import SlotConfig
from hv_node.effects import PENDING
from hv_node.levels.errands import Request
from tests.doubles.house import (
    APP,
    CORE,
    DEEP,
    ECHO,
    FAR,
    GONE,
    GUESTS,
    NESTED,
    OTHER,
    REFUSED,
    STORAGE,
    STORE,
    A,
    B,
    House,
    N,
    slot,
)
from tests.doubles.two_levels import call, register, send


@pytest.mark.parametrize("target", [STORE, FAR, DEEP])
def test_a_service_wherever_it_is(target: int) -> None:
    """The same port, the same words: beside, on another host, inside a nested hypervisor."""
    path = next(path for path, domid in GUESTS.items() if domid == target)
    house = House(slot("app", path), confined=("app",))
    assert house.arrives(APP, target)
    assert house.query(APP, (STORAGE, DOMID_ANY))[0] & 3
    assert house.query(APP, (ECHO, target)) == [0]
    assert house.send(APP, target, ECHO) == GONE


@pytest.mark.parametrize("target", [STORE, FAR])
def test_up(target: int) -> None:
    """A guest of n leaves the choice to a, whose table for n decides; without it there is nobody."""
    path = next(path for path, domid in GUESTS.items() if domid == target)
    house = House(slot("deep", (), to_port=None), slot("n", path), confined=("deep",))
    assert house.query(DEEP, (STORAGE, DOMID_ANY), (ECHO, target), (STORAGE, DOMID_ANY), (9, DOMID_ANY))[1::2] == [0, 0]
    flags = house.query(DEEP, (STORAGE, DOMID_ANY), (9, DOMID_ANY), (STORAGE, DOMID_ANY))
    assert flags[0] == flags[2] != 0 == flags[1]
    assert house.arrives(DEEP, target)
    bare = House(slot("deep", (), to_port=None), confined=("deep",))
    assert bare.send(DEEP) == GONE
    assert bare.query(DEEP, (STORAGE, DOMID_ANY)) == [0]
    far = House(slot("far", (), to_port=None))
    assert far.send(FAR) == GONE  # nothing is around b


def test_up_and_up() -> None:
    """Two hypervisors leave it to the next one; a message, and a question about room, find whoever is meant."""
    house = House(
        slot("core", (), to_port=None), slot("m", (), port=STORAGE, to_port=STORAGE + 1),
        slot("n", (*B, "far"), port=STORAGE + 1), confined=("core",),
    )  # fmt: skip
    assert house.query(CORE, (STORAGE, DOMID_ANY))[0] & 1
    assert house.arrives(CORE, FAR)
    assert house.disconnect(N, "m") == [""]
    assert house.query(CORE, (STORAGE, DOMID_ANY)) == [0]
    assert house.send(CORE) == GONE


def test_up_ends_with_either_slot() -> None:
    """A confined receiver may answer what came up until the guest's slot, or that of its hypervisor, is revoked."""
    for holder, path in (("deep", N), ("n", A)):
        house = House(slot("deep", (), to_port=None), slot("n", (*A, "store")), confined=("deep", "store"))
        assert house.send(STORE, DEEP, 5) == GONE
        assert house.arrives(DEEP, STORE)
        assert house.send(STORE, DEEP, 5) == REFUSED  # it listens elsewhere, but is there
        assert house.disconnect(path, holder) == [""]
        assert house.send(STORE, DEEP, 5) == GONE
        assert house.send(DEEP) == GONE


def test_a_confined_guest_reaches_nothing() -> None:
    """Every domain id, random ports: -ESRCH each time, no flags, no event, and nobody hears anything."""
    house = House(slot("app", (*A, "store")), confined=("app",))
    chance = random.Random(5)
    node = house.lab.nodes[A]
    before = len(node.events)
    for domid in (*range(0, 0x8000, 37), *GUESTS.values(), NESTED, 0x7FF0, 0x7FF2, 0x7FF5, 0xFFFF):
        for port in (ECHO, STORAGE, chance.randrange(1 << 32)):
            assert house.send(APP, domid, port) == GONE if domid != DOMID_ANY else True
            assert house.query(APP, (port, domid)) == [0] if domid != DOMID_ANY else True
    for port in [chance.randrange(1 << 32) for _ in range(2000)]:
        assert port == STORAGE or house.send(APP, DOMID_ANY, port) == GONE
    assert [house.got(domid) for domid in (STORE, OTHER, FAR, DEEP)] == [[]] * 4
    assert len(node.events) == before
    assert register(node, APP, STORE, gfn=30) == GONE
    assert register(node, APP, FAR, gfn=30) == GONE


# ---- orders ----


def test_connect_and_disconnect() -> None:
    """From the answer on it holds; a repeated order is answered again and not carried out again."""
    house = House()
    assert house.send(APP) == GONE
    assert house.connect(A, slot("app", (*A, "store"), -1)) == [""]
    assert house.arrives(APP, STORE)
    assert house.connect(A, slot("app", (*A, "store"), -1)) == ["", ""]
    assert [row["slot"] for row in house.furniture[A].inspect()["slots"]] == ["a/app#0x0"]
    assert house.connect(A, slot("app", (*B, "far"), -1), 3) == [""]  # in its place
    assert house.arrives(APP, FAR)
    assert house.disconnect(A, "app") == [""]
    assert house.send(APP) == GONE
    assert house.disconnect(B, "app") == [""]  # nothing of it is there
    assert house.disconnect(A, "app", 4) == ["app holds no such slot"]


BAD = [
    ("connect", asdict(slot("far", (*A, "store"))), "far is not on a"),
    ("connect", asdict(slot("app", ("c", "x"))), "c/x cannot be reached from a"),
    ("connect", asdict(SlotConfig("app", 1, None, None, ())), "serves neither"),
    ("connect", {**asdict(slot("app", (*A, "store"))), "port": -1}, "whole number"),
    ("connect", {**asdict(slot("app", (*A, "store"))), "rate": "x"}, "rate"),
    ("connect", [], "an object"),
    ("connect", {}, "slot"),
    ("disconnect", {}, "holder"),
    ("policy", {"module": "none", "rules": []}, "no policy module"),
    ("policy", {"module": "firewall", "rules": [3]}, "a rule is an object"),
    ("policy", {"module": "firewall", "rules": [{"source": "x"}]}, "a source, a target"),
    ("policy", {"module": "firewall", "rules": 7}, "a list"),
    ("policy", {"module": "firewall", "permissions": [["x", "fly"]]}, "one of enable"),
    ("dance", {}, "no order"),
]


@pytest.mark.parametrize(("what", "data", "words"), BAD)
def test_orders_that_cannot_be(what: str, data: Any, words: str) -> None:
    """Refused with words, and nothing has changed."""
    house = House(slot("app", (*A, "store")))
    house.order(A, what, data)
    assert len(house.words(A, 1)) == 1
    assert words in house.words(A, 1)[0]
    assert house.arrives(APP, STORE)


def test_a_revocation_is_answered_when_it_holds() -> None:
    """store (confined) could answer far's app only until b's disconnect is answered, which waits for a."""
    house = House(slot("far", (*A, "store")), confined=("store",))
    assert house.arrives(FAR, STORE)
    assert house.send(STORE, FAR, 5) == REFUSED  # there, at a port where nobody listens
    house.hold()
    assert house.disconnect(B, "far") == []
    assert house.send_now(FAR) == GONE
    house.lab.settle()
    assert house.words(B, 2) == [""]
    assert house.send(STORE, FAR, 5) == GONE


def test_a_revocation_waits_for_what_is_under_way() -> None:
    """A send that has left may arrive: the order is answered behind its result.  One that has not is refused."""
    house = House(slot("app", (*B, "far")))
    node = house.lab.nodes[A]
    house.hold()
    assert send(node, APP, DOMID_ANY, token="left", port=STORAGE) is PENDING
    assert house.disconnect(A, "app") == []
    assert "left" not in node.completed
    house.lab.settle()
    house.furniture[A].turn(house.lab.now)
    assert node.completed["left"] == 5
    assert house.words(A, 2) == [""]
    assert house.got(FAR)
    house.connect(A, slot("app", (*B, "far"), -1), 5)
    house.lab.wires[A, ()].room = 0
    assert send(node, APP, DOMID_ANY, token="stays", port=STORAGE) is PENDING
    house.disconnect(A, "app", 6)
    assert node.completed["stays"] == REFUSED
    house.lab.wires[A, ()].room = None
    node.level.on_room()
    house.lab.settle()
    house.furniture[A].turn(house.lab.now)
    assert (house.words(A, 6), house.got(FAR)) == ([""], [])


def test_a_revocation_ends_what_was_posted() -> None:
    """What waits for room at the far side is refused there; what others posted stays."""
    house = House(slot("app", (*B, "far")), slot("other", (*B, "far")), posted=True)
    assert [house.send(sender) for sender in (APP, APP, APP, APP, OTHER)] == [5] * 5
    far = house.lab.nodes[B].level.far
    before = far.held
    assert before > 1
    assert house.disconnect(A, "app") == [""]
    assert far.held == 1
    assert [sender for sender, _ in house.got(FAR)] == [APP] * (5 - before)


def test_a_revocation_outlives_a_lost_link() -> None:
    """The link timeout is no answer: it is asked again until the other side is there, or dead."""
    house = House(slot("far", (*A, "store")), confined=("store",))
    assert house.arrives(FAR, STORE)
    house.lab.cut(B)
    assert house.disconnect(B, "far") == []
    house.advance(12_000_000_000)
    assert house.words(B, 2) == []
    house.lab.heal(B)
    house.advance(1_000_000_000)
    assert house.words(B, 2) == [""]
    assert house.send(STORE, FAR, 5) == GONE


def test_a_dead_hypervisor_has_nothing_to_answer() -> None:
    """What waits for it ends; what was made from its slots is gone."""
    house = House(slot("far", (*A, "store")), confined=("store",))
    assert house.arrives(FAR, STORE)
    house.lab.cut(A)
    assert house.disconnect(B, "far") == []
    house.lab.nodes[B].level.on_peer("a", "dead", house.lab.now)
    assert house.words(B, 2) == [""]


# ---- passing on ----


def delegate(house: House, domid: int, to_slot: int = 1, number: int = 0) -> int:
    node, token = house.node(domid), object()
    node.ram[domid][0x5000 : 0x5000 + 256] = pack_delegate(
        DelegateCall(number, to_slot, DelegateFlag(0), 0, 0, (), ())
    ).ljust(256, b"\0")
    ret = call(node, domid, SlotOp.DELEGATE, 0x5000, token=token)
    house.lab.settle()
    return node.completed[token] if ret is PENDING else ret


def passing(**more: Any) -> House:
    """app may pass storage on, and knows a way to far; far is confined."""
    return House(
        slot("app", (*A, "store"), delegable=True), slot("app", (*B, "far"), 1, 99), confined=("far", "app"), **more
    )


def test_a_slot_is_passed_to_another_hypervisor() -> None:
    """far reaches store by it; the chain shows; revoking the parent revokes it before that is answered."""
    house = passing()
    assert house.send(FAR) == GONE
    assert delegate(house, APP) == 0
    assert house.arrives(FAR, STORE)
    (shown,) = house.furniture[B].inspect()["slots"]
    assert (shown["chain"], shown["to"]) == (("a/app#0x0",), "a/store")
    assert house.furniture[A].inspect()["slots"][0]["passed_to"] == ("b/far",)
    assert delegate(house, APP) == -Errno.EEXIST
    house.hold()
    assert house.disconnect(A, "app") == []
    house.lab.settle()
    assert house.words(A, 2) == [""]
    assert house.send(FAR) == GONE
    assert "slots" not in house.furniture[B].inspect()


def test_a_chain_over_three_hypervisors_answers_late() -> None:
    """b must ask n first: it says later, and tells when n has answered; nothing before that."""
    house = House(
        slot("app", (*A, "store"), delegable=True), slot("app", (*B, "far"), 1, 99),
        slot("far", (*N, "deep"), 1, 99), confined=("deep",),
    )  # fmt: skip
    node = house.node(APP)
    call_ = DelegateCall(0, 1, DelegateFlag.DELEGABLE, 0, 0, (), ())
    node.ram[APP][0x5000 : 0x5000 + 256] = pack_delegate(call_).ljust(256, b"\0")
    assert call(node, APP, SlotOp.DELEGATE, 0x5000, token="d") == 0
    assert delegate(house, FAR, 1, 0x1_0000) == 0
    assert house.arrives(DEEP, STORE)
    house.hold()
    assert house.disconnect(A, "app") == []
    waits = 0
    while not house.words(A, 2):
        gone = "slots" not in house.furniture[N].inspect()
        house.lab.deliver(house.lab.busy()[0])
        waits += 1
    assert gone
    assert waits > 6
    house.lab.settle()
    assert house.send(DEEP) == GONE
    assert [furniture.errands.open for furniture in house.furniture.values()] == [0] * 4


def test_an_unknown_outcome_of_passing_on_is_undone() -> None:
    """The guest is told -EIO, and what the other side may have entered is revoked there."""
    house = passing()
    node = house.node(APP)
    node.ram[APP][0x5000 : 0x5000 + 256] = pack_delegate(
        DelegateCall(0, 1, DelegateFlag(0), 0, 0, (), ())
    ).ljust(256, b"\0")
    answers = house.lab.fabric.down["a"]
    deliver, answers.deliver = answers.deliver, lambda envelope, payload: None
    assert call(node, APP, SlotOp.DELEGATE, 0x5000, token="d") is PENDING
    house.lab.settle()
    assert house.furniture[B].inspect()["slots"]
    house.lab.nodes[A].level.on_link(False, house.lab.now)
    house.advance(6_000_000_000)
    assert node.completed["d"] == -Errno.EIO
    answers.deliver = deliver
    house.lab.nodes[A].level.on_link(True, house.lab.now)
    house.advance(2_000_000_000)
    assert "slots" not in house.furniture[B].inspect()
    assert house.send(FAR) == GONE


def test_who_lives_where() -> None:
    """QUERY_ENDPOINT tells path and label of those whom the caller may know; a confined guest knows nobody."""
    house = passing()
    node = house.node(OTHER)

    def ask(domid: int, caller: int = OTHER) -> Any:
        node = house.node(caller)
        QUERY.pack_into(node.ram[caller], 0x5000, domid, 0, 0)
        ret = call(node, caller, SlotOp.QUERY_ENDPOINT, 0x5000, 0x5100, 256, 0)
        return ret if ret < 0 else parse_endpoint(bytes(node.ram[caller][0x5100 : 0x5100 + ret]))

    assert node is house.lab.nodes[A]
    assert ask(FAR)[:2] == ("b/far", "far_t")
    assert ask(STORE)[:2] == ("a/store", "store_t")
    assert ask(77) == GONE
    assert ask(STORE, APP) == GONE
    assert call(node, OTHER, 0x4000_0012, 0) == -Errno.EOPNOTSUPP


# ---- lives ----


def test_a_guest_that_comes_again_is_furnished_again() -> None:
    """Confined, with the slots of the plan and those of orders; what it had before is gone with it."""
    house = House(slot("app", (*A, "store")), confined=("app",))
    node = house.lab.nodes[A]
    house.order(A, "connect", asdict(slot("app", (*B, "far"), -1, 99)))
    node.free(APP)
    assert not house.furniture[A].slots.by_id
    house.order(A, "disconnect", {"holder": "app", "port": STORAGE, "source_port": None}, 2)
    house.order(A, "connect", asdict(slot("app", (*A, "other"), -1)), 3)
    assert [words for _, _, words in house.said] == ["", "", ""]
    node.create(APP, "app")
    assert house.arrives(APP, OTHER)
    assert house.arrives(APP, FAR, port=99)
    assert house.send(APP, STORE, ECHO) == GONE
    assert [row["slot"] for row in house.furniture[A].inspect()["slots"]] == ["a/app#2#0x1", "a/app#2#0x2"]


def test_a_slot_follows_its_endpoint() -> None:
    """The one that it leads to dies, and comes again."""
    house = House(slot("app", (*A, "store")))
    node = house.lab.nodes[A]
    node.kill(STORE)
    assert house.send(APP) == REFUSED
    node.free(STORE)
    assert house.send(APP) == GONE
    node.create(STORE, "store")
    register(node, STORE)
    assert house.arrives(APP, STORE)


def test_a_slot_outlives_the_hypervisor_of_its_endpoint() -> None:
    """It leads to whoever the topology has there; what had been passed on to a guest there died with it."""
    house = passing()
    assert delegate(house, APP) == 0
    assert house.arrives(FAR, STORE)
    house.again("b")
    assert house.furniture[A].inspect()["slots"][0]["passed_to"] == ()
    assert house.send(FAR) == GONE
    assert house.arrives(APP, FAR, port=99)
    assert delegate(house, APP) == 0
    assert house.arrives(FAR, STORE)
    assert house.disconnect(A, "app") == [""]
    assert house.send(FAR) == GONE


# ---- strangers ----


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\x92\x01\x90", b"\x92\xa1x\x91\xa6Forget", b"\xff" * 9])
def test_requests_that_make_no_sense(payload: bytes) -> None:
    """-EINVAL, counted."""
    house = House(slot("app", (*A, "store")))
    errands = house.furniture[A].errands
    for op in Request:
        assert errands.requested((*B, ""), op, payload) == (-Errno.EINVAL, b"")
    assert errands.malformed == 2
    assert errands.requested((*B, ""), 0x4000_0099, b"\x90") == (-Errno.EOPNOTSUPP, b"")


def test_nobody_answers_for_another() -> None:
    """FINISHED of somebody who was not asked changes nothing."""
    house = House(slot("far", (*A, "store")), confined=("store",))
    house.send(FAR)
    house.hold()
    house.disconnect(B, "far")
    errands = house.furniture[B].errands
    for key in range(20):
        errands.requested((*N, ""), Request.FINISHED, b"\x92" + bytes((key, 0)))
    assert house.words(B, 2) == []
    house.lab.settle()
    assert house.words(B, 2) == [""]
