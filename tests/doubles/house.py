"""Four furnished hypervisors in memory, their guests, and the orders that a lab gives them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from hmx.argo.abi import DOMID_ANY, RING_DATA, RING_DATA_ENT
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hv_node.config import DomainConfig, PolicyConfig, RemoteConfig, RuleConfig, SlotConfig
from hv_node.domain import Domain
from hv_node.effects import PENDING
from hv_node.levels.furnish import Furniture
from hv_node.levels.options import LevelOptions
from hv_node.levels.orders import Orders
from hv_node.levels.paths import Path
from hv_node.xsm import DummyXsm
from tests.doubles.hypervisor_node import configured
from tests.doubles.levels import Lab, Node
from tests.doubles.two_levels import call, register, send

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
