"""Slots and policy over levels in memory: what a plan says, what orders change, what holds once they are answered."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY, RING_DATA, RING_DATA_ENT
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hmx.slots import QUERY_ENDPOINT as QUERY
from hmx.slots import DelegateCall, DelegateFlag, SlotOp, pack_delegate, parse_endpoint
from hv_node.config import DomainConfig, PolicyConfig, RemoteConfig, RuleConfig, SlotConfig
from hv_node.domain import Domain
from hv_node.effects import PENDING
from hv_node.levels.errands import Request
from hv_node.levels.furnish import Furniture
from hv_node.levels.options import LevelOptions
from hv_node.levels.orders import Orders
from hv_node.levels.paths import Path
from hv_node.xsm import DummyXsm
from tests.doubles.hypervisor_node import configured
from tests.doubles.levels import Lab, Node
from tests.hv_node.levels.test_level import call, register, send

ECHO = 7  # where every guest listens
STORAGE = 0xD0000
GONE, REFUSED, DENIED = -Errno.ESRCH, -Errno.ECONNREFUSED, -Errno.EACCES
A, B, N, M = ("a",), ("b",), ("a", "n"), ("a", "n", "m")
APP, STORE, OTHER, FAR, DEEP, CORE = 1, 2, 3, 4, 5, 6
GUESTS = {
    (*A, "app"): APP, (*A, "store"): STORE, (*A, "other"): OTHER, (*B, "far"): FAR, (*N, "deep"): DEEP,
    (*M, "core"): CORE,
}  # fmt: skip
NESTED = 9  # domain of n on a, and of m on n
INSIDE = {A: "n", N: "m"}


def slot(holder: str, to: Path, number: int = 0, port: int = STORAGE, to_port: int | None = ECHO, **more: Any) -> Any:
    return SlotConfig(holder, number, None, port, to, to_port, **more)


def rules(*pairs: tuple[str, str]) -> PolicyConfig:
    """Each pair: who may send to whom, at ECHO."""
    return PolicyConfig("firewall", tuple(RuleConfig(a, b, ((ECHO, ECHO),), True) for a, b in pairs))


def labelled(found: LevelOptions) -> LevelOptions:
    """Everybody has a label."""
    remotes = tuple(replace(remote, label=f"{remote.name}_t") for remote in found.remotes)
    return replace(found, labels={path[-1]: f"{path[-1]}_t" for path in GUESTS}, remotes=remotes)


class House:
    """a with app, store, other and n; n with deep and m; m with core; b with far.  Each hypervisor is furnished."""

    def __init__(
        self,
        *slots: SlotConfig,
        confined: tuple[str, ...] = (),
        policy: PolicyConfig | None = None,
        posted: bool = False,
    ) -> None:
        def options(found: LevelOptions) -> LevelOptions:
            return replace(labelled(found), posted=frozenset({B}) if posted else frozenset())

        self.lab = Lab([A, B, N, M], guests=GUESTS, options=options)
        self.furniture: dict[Path, Furniture] = {}
        self.orders: dict[Path, Orders] = {}
        self.said: list[tuple[Path, int, str]] = []
        for path, name in INSIDE.items():
            node = self.lab.nodes[path]
            domain = Domain(NESTED, MappedMemory(bytearray(PAGE_SIZE)), name=name, nested=True)
            node.domains.create(domain)
            node.argo.domain_init(domain)
            node.level.domain_created(domain)
        self._configs = {path: self.config(path, slots, confined, policy) for path in self.lab.nodes}
        for path in self.lab.nodes:
            self._furnish(path)

    def _furnish(self, path: Path) -> None:
        node = self.lab.nodes[path]
        self.furniture[path] = Furniture(self._configs[path], node.level, DummyXsm())
        self.orders[path] = Orders(self.furniture[path], partial(self._say, path))
        for domain in node.domains:
            if domain.remote is None and not domain.nested:
                assert register(node, domain.domid) == 0

    def again(self, name: str) -> None:
        """The L0 `name` dies, with its guests, and comes again with them."""
        others = [node for path, node in self.lab.nodes.items() if len(path) == 1 and path != (name,)]
        for node in others:
            node.level.on_peer(name, "dead", self.lab.now)
        self.lab.settle()
        node = self.lab.boot((name,), list(self.lab.nodes), epoch=2)
        for path, domid in GUESTS.items():
            if path[:-1] == (name,):
                node.create(domid, path[-1])
        self._furnish((name,))
        for other in others:
            other.level.on_peer(name, "up", self.lab.now)
        self.lab.settle()

    def _say(self, path: Path, number: int, words: str) -> None:
        self.said.append((path, number, words))

    def config(self, path: Path, slots: tuple[SlotConfig, ...], confined: tuple[str, ...], policy: Any) -> Any:
        own = [(guest[-1], domid) for guest, domid in GUESTS.items() if guest[:-1] == path]
        domains = [
            DomainConfig(name, domid, 4096, 1, label=f"{name}_t", implicit_only=name in confined) for name, domid in own
        ]
        if path in INSIDE:
            domains.append(DomainConfig(INSIDE[path], NESTED, 4096, 1, nested=True))
        names = {domain.name for domain in domains}
        remotes = tuple(RemoteConfig(p[-1], d, p, f"{p[-1]}_t") for p, d in GUESTS.items() if p[:-1] != path)
        return configured(
            name=path[-1], domains=tuple(domains), path=path, remotes=remotes, policy=policy,
            slots=tuple(row for row in slots if row.holder in names),
        )  # fmt: skip

    # -- guests ----

    def node(self, domid: int) -> Node:
        return self.lab.node(domid)

    def send(self, domid: int, target: int = DOMID_ANY, port: int = STORAGE) -> int:
        """A guest's sendv, to its end."""
        node, token = self.node(domid), object()
        ret = send(node, domid, target, token=token, port=port)
        self.lab.settle()
        return node.completed[token] if ret is PENDING else ret

    def send_now(self, domid: int) -> int:
        """A guest's sendv, as far as it comes by itself."""
        return send(self.node(domid), domid, DOMID_ANY, port=STORAGE)

    def got(self, domid: int) -> list[tuple[int, bytes]]:
        """(sender, payload) of what lies in a guest's ring."""
        window = Window(self.node(domid).ram[domid], 24 * PAGE_SIZE, npages_for(112) * PAGE_SIZE)
        consumer = Consumer(window, 112)
        found = []
        while (message := consumer.receive()) is not None:
            found.append((message.source_domid, bytes(message.payload)))
        return found

    def arrives(self, sender: int, receiver: int, target: int = DOMID_ANY, port: int = STORAGE) -> bool:
        """Whether a message gets through; and nothing else happens."""
        self.got(receiver)
        ret = self.send(sender, target, port)
        found = self.got(receiver)
        assert (ret == 5) == bool(found), (ret, found)
        return bool(found)

    def query(self, domid: int, *entries: tuple[int, int]) -> list[int]:
        """notify about (port, domid) pairs: the flags."""
        node, token = self.node(domid), object()
        ram = node.ram[domid]
        RING_DATA.pack_into(ram, 0x4000, len(entries), 0)
        for index, (port, target) in enumerate(entries):
            at = 0x4000 + RING_DATA.size + index * RING_DATA_ENT.size
            RING_DATA_ENT.pack_into(ram, at, port, target, 0, 0, 0, 5, 0)
        ret = call(node, domid, 4, 0x4000, token=token)
        self.lab.settle()
        assert (node.completed[token] if ret is PENDING else ret) == 0
        size = RING_DATA_ENT.size
        return [RING_DATA_ENT.unpack_from(ram, 0x4000 + RING_DATA.size + i * size)[3] for i in range(len(entries))]

    # -- orders ----

    def order(self, path: Path, what: str, data: Any, number: int = 1) -> None:
        self.orders[path].order(number, what, json.dumps(data))

    def connect(self, path: Path, row: SlotConfig, number: int = 1) -> list[str]:
        self.order(path, "connect", asdict(row), number)
        return self.words(path, number)

    def disconnect(self, path: Path, holder: str, number: int = 2) -> list[str]:
        self.order(path, "disconnect", {"holder": holder, "port": STORAGE, "source_port": None}, number)
        return self.words(path, number)

    def words(self, path: Path, number: int) -> list[str]:
        """What was answered to an order up to now."""
        return [words for known, given, words in self.said if (known, given) == (path, number)]

    def hold(self) -> None:
        """From now on links deliver when told to."""
        for wire in self.lab.wires.values():
            wire.held = True
        for wire in (*self.lab.fabric.up.values(), *self.lab.fabric.down.values()):
            wire.held = True

    def advance(self, ns: int) -> None:
        end = self.lab.now + ns
        while self.lab.now < end:
            self.lab.advance(50_000_000)
            for furniture in self.furniture.values():
                furniture.turn(self.lab.now)
            self.lab.settle()


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


# ---- policy ----


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
