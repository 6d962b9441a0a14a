"""Levels step by step: three results, deaths, incarnations, forgeries.  Rules of docs/levels.md and argo.md 15."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    SEND_ADDR,
    UNREGISTER_RING,
    NotifyFlag,
    Op,
)
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, PageType
from hmx.nested import DOMID_XEN, UPLINK_PORT
from hmx.trap import Kind, int32
from hv_node.domain import Domain, DomainState
from hv_node.effects import PENDING
from hv_node.levels.calls import FLOOR_BITS
from hv_node.levels.level import Level
from hv_node.levels.notices import NOTICES
from hv_node.levels.options import Death, LevelOptions
from hv_node.levels.paths import Path
from hv_node.levels.proxies import DYNAMIC_FIRST, RemoteConfig
from hv_node.xsm import SiloXsm
from tests.doubles.levels import Lab, Node
from tests.doubles.machine import Machine

SECOND = 1_000_000_000
PORT = 7
REFUSED, UNKNOWN, AGAIN, GONE = -Errno.ECONNREFUSED, -Errno.EIO, -Errno.EAGAIN, -Errno.ESRCH
A, B = ("a",), ("b",)
X, Y = 1, 2  # guests x of a and y of b


def two(*, held: bool = False, posted: bool = False, credit: int = 2) -> tuple[Lab, Node, Node]:
    """Guest x (1) of hypervisor a and guest y (2) of hypervisor b, whose ring at port 7 is open to all."""

    def options(found: LevelOptions) -> LevelOptions:
        return replace(found, posted=frozenset({A, B}) if posted else frozenset(), posted_credit=credit)

    lab = Lab([A, B], guests={(*A, "x"): X, (*B, "y"): Y}, held=held, options=options)
    register(lab.nodes[B], Y)
    return lab, lab.nodes[A], lab.nodes[B]


def call(node: Node, domid: int, cmd: int, *args: int, token: object = None) -> int:
    domain = node.domains.lookup(domid)
    assert domain is not None
    a1, a2, a3, a4 = (*args, 0, 0, 0, 0)[:4]
    return node.argo.op(domain, cmd, a1, a2, a3, a4, token)


def register(node: Node, domid: int, partner: int = DOMID_ANY, gfn: int = 24, port: int = PORT) -> int:
    ram, ring_len = node.ram[domid], 112
    count = npages_for(ring_len)
    REGISTER_RING.pack_into(ram, 0x100, port, partner, 0, ring_len)
    struct.pack_into(f"<{count}Q", ram, 0x1000, *range(gfn, gfn + count))
    struct.pack_into("<II", ram, gfn * PAGE_SIZE, 0, 0)
    return call(node, domid, Op.REGISTER_RING, 0x100, 0x1000, count, 0)


def send(node: Node, domid: int, target: int, data: bytes = b"hello", token: object = "t", port: int = PORT) -> int:
    ram = node.ram[domid]
    SEND_ADDR.pack_into(ram, 0x100, 5, DOMID_ANY, 0, port, target, 0)
    IOV.pack_into(ram, 0x200, 0x3000, len(data), 0)
    ram[0x3000 : 0x3000 + len(data)] = data
    return call(node, domid, Op.SENDV, 0x100, 0x200, 1, 42, token=token)


def notify(node: Node, domid: int, *entries: tuple[int, int, int], token: object = "n") -> int:
    ram = node.ram[domid]
    RING_DATA.pack_into(ram, 0x100, len(entries), 0)
    for index, (port, target, wanted) in enumerate(entries):
        RING_DATA_ENT.pack_into(ram, 0x108 + 20 * index, port, target, 0, 0, 0, wanted, 0)
    return call(node, domid, Op.NOTIFY, 0x100, token=token)


def tx(node: Node, domid: int, gfn: int = 24) -> int:
    return int.from_bytes(node.ram[domid][gfn * PAGE_SIZE + 4 :][:4], "little")


def drain(node: Node, domid: int, gfn: int = 24) -> None:
    ram, at = node.ram[domid], gfn * PAGE_SIZE
    ram[at : at + 4] = ram[at + 4 : at + 8]


def consume(node: Node, domid: int, gfn: int = 24) -> None:
    drain(node, domid, gfn)
    assert call(node, domid, Op.NOTIFY) == 0


def test_the_owner_hears_of_an_exact_message_before_it_is_answered() -> None:
    """`on_reached`: once for each that lies in a ring; not for one that found no ring, nor for posted ones."""
    for posted in (False, True):
        lab, a, b = two(held=True, posted=posted)
        heard: list[tuple[int, int]] = []
        b.level.on_reached = lambda domid, lab=lab, heard=heard: heard.append((domid, len(lab.wires[B, ()].queue)))
        send(a, X, Y)
        lab.settle()
        send(a, X, Y, port=99, token="u")
        lab.settle()
        assert heard == ([] if posted else [(Y, 0)])


# -- three results ----


def test_a_vcpu_waits_until_the_far_side_has_answered() -> None:
    """PENDING, then exactly one completion with the true result; the receiver is interrupted before."""
    lab, a, b = two(held=True)
    assert send(a, X, Y) is PENDING
    lab.settle()
    assert a.completed == {"t": 5} and b.virqs == [(Y, 11)] and tx(b, Y) == 32


def test_never_handed_to_a_link_is_a_refusal() -> None:
    """The way was down all the time: -ECONNREFUSED after the link timeout, not before, and nothing arrives later."""
    lab, a, b = two(held=True)
    lab.cut(A)
    assert send(a, X, Y) is PENDING
    lab.advance(4 * SECOND)
    assert a.completed == {}
    lab.advance(2 * SECOND)
    assert a.completed == {"t": REFUSED} and a.level.calls.unknown == 0
    lab.heal(A)
    lab.advance(3 * SECOND)
    assert tx(b, Y) == 0


@pytest.mark.parametrize("delivered", [False, True])
def test_lost_on_the_way_is_unknown(delivered: bool) -> None:
    """Handed to a link, and no word since: -EIO, counted, an event; also where it did arrive."""
    lab, a, b = two(held=True)
    assert send(a, X, Y) is PENDING
    if delivered:
        lab.deliver(lab.wires[A, ()])
        lab.deliver(lab.wires[(), B])
    lab.cut(A)
    lab.advance(6 * SECOND)
    assert a.completed == {"t": UNKNOWN} and a.level.calls.unknown == 1
    assert [event[0] for event in a.events] == ["outcome-unknown"]
    assert tx(b, Y) == (32 if delivered else 0)


def test_the_true_result_if_the_link_comes_back_in_time() -> None:
    """The repeat is answered, not executed again."""
    lab, a, b = two(held=True)
    send(a, X, Y)
    lab.deliver(lab.wires[A, ()])
    lab.deliver(lab.wires[(), B])
    lab.cut(A)
    lab.advance(4 * SECOND)
    lab.heal(A)
    lab.settle()
    assert a.completed == {"t": 5} and tx(b, Y) == 32 and b.level.far.answers.repeated == 1


def test_a_stopped_node_behind_a_live_link_only_delays() -> None:
    """No verdict while the way is up, however long."""
    lab, a, b = two(held=True)
    send(a, X, Y)
    lab.deliver(lab.wires[A, ()])
    for _ in range(40):
        lab.now += SECOND
        a.level.on_timer(lab.now)
    assert a.completed == {}
    lab.settle()
    assert a.completed == {"t": 5} and tx(b, Y) == 32


def test_a_level_on_the_way_says_that_its_link_is_down() -> None:
    """Nested: the copy comes back with a notice, so it provably never ran, and the timeout counts from then."""
    lab = Lab([A, ("a", "n"), B], guests={("a", "n", "x"): X, ("b", "y"): Y}, held=True)
    n, b = lab.nodes["a", "n"], lab.nodes[B]
    register(b, Y)
    lab.cut(A)
    assert send(n, X, Y) is PENDING
    lab.advance(4 * SECOND)
    assert n.completed == {}
    lab.advance(2 * SECOND)
    assert n.completed == {"t": REFUSED}
    assert send(n, X, Y, token="u") is PENDING
    lab.advance(2 * SECOND)
    lab.heal(A)
    lab.advance(SECOND)
    assert n.completed["u"] == 5 and tx(b, Y) == 32


def test_what_is_settled_does_not_leave_the_queue_any_more() -> None:
    """Refused while a copy waited for room in a link: that copy is not sent, or the refusal would be a lie."""
    lab, a, b = two(held=True)
    lab.wires[A, ()].room = 0
    assert send(a, X, Y) is PENDING
    a.level.on_peer("b", "down", lab.now)
    a.level.on_timer(lab.now + 6 * SECOND)
    assert a.completed == {"t": REFUSED}
    lab.wires[A, ()].room = None
    a.level.on_room()
    lab.settle()
    assert tx(b, Y) == 0


def test_the_next_message_fences_the_one_before() -> None:
    """-EIO was given; the copy that still wandered about arrives after the next message and is not executed."""
    lab, a, b = two(held=True)
    send(a, X, Y, b"first")
    envelope, payload = lab.wires[A, ()].queue[0]
    lab.cut(A)
    lab.advance(6 * SECOND)
    lab.heal(A)
    send(a, X, Y, b"second", token="u")
    lab.settle()
    b.level.on_envelope(None, envelope, payload, lab.now)
    assert a.completed == {"t": UNKNOWN, "u": 6} and b.level.far.answers.fenced == 1 and tx(b, Y) == 32


# -- signals ----


def test_a_full_ring_far_away() -> None:
    """-EAGAIN at once, and VIRQ_ARGO when the receiver has made room and said so."""
    _, a, b = two()
    assert send(a, X, Y, bytes(60)) == 60
    assert send(a, X, Y, bytes(60)) == AGAIN
    assert a.virqs == []
    consume(b, Y)
    assert a.virqs == [(X, 11)]


def test_a_wake_up_during_a_wake_up_is_not_forgotten() -> None:
    """The first was consumed already when the second is raised, its confirmation is still under way."""
    lab, a, b = two(held=True)
    proxy = b.domains.lookup(X)
    assert proxy is not None
    b.raise_virq(X, 11)
    lab.deliver(lab.wires[B, ()])
    lab.deliver(lab.wires[(), A])
    assert a.virqs == [(X, 11)]
    b.raise_virq(X, 11)
    b.raise_virq(X, 11)
    lab.settle()
    assert a.virqs == [(X, 11)] * 2, "the second and third are one, the first is not the second"


def test_a_wake_up_survives_a_lost_link() -> None:
    """It is said again until it is confirmed, and raised once."""
    lab, a, b = two(held=True)
    b.raise_virq(X, 11)
    lab.cut(B)
    lab.heal(B)
    lab.settle()
    assert a.virqs == [(X, 11)] and not len(b.level.calls)


def test_notify_asks_in_order_and_stops_at_a_denial() -> None:
    """Local, far and unknown entries; a far refusal ends the call, and what lies behind it is not asked."""

    class Deny(SiloXsm):
        def send(self, source: Any, destination: Any) -> int:
            return -self.denied if destination.domid == 3 else 0

    lab = Lab([A, B], guests={("a", "x"): 1, ("b", "y"): 2, ("b", "z"): 3, ("a", "w"): 4}, xsm=Deny)
    a, b = lab.nodes[A], lab.nodes[B]
    for node, domid in ((b, 2), (b, 3), (a, 4)):
        register(node, domid)
    a.argo.set_xsm(SiloXsm())
    a.argo.permissive = True  # only the far side denies
    assert notify(a, 1, (PORT, 4, 10), (PORT, 2, 10), (8, 2, 10), (PORT, 3, 10), (PORT, 2, 10)) == -Errno.EPERM
    flags = [RING_DATA_ENT.unpack_from(a.ram[1], 0x108 + 20 * n)[3] for n in range(5)]
    full = NotifyFlag.EXISTS | NotifyFlag.SHARED | NotifyFlag.SUFFICIENT | NotifyFlag.EMPTY
    assert flags == [full, full, 0, 0, 0]


def test_nothing_is_asked_behind_an_entry_that_cannot_be_written() -> None:
    """Xen stops there: the entry itself has armed its wake-up, those behind it have not."""
    _, a, b = two()
    register(b, Y, gfn=25, port=8)
    assert [send(a, X, Y, bytes(60), port=port) for port in (7, 8)] == [60, 60]
    memory, at = a.domains.lookup(X), 40 * PAGE_SIZE - RING_DATA.size - RING_DATA_ENT.size
    assert memory is not None and isinstance(memory.memory, MappedMemory)
    RING_DATA.pack_into(a.ram[X], at, 3, 0)
    for index, port in enumerate((9, 7, 8)):
        RING_DATA_ENT.pack_into(a.ram[X], at + 8 + 20 * index, port, Y, 0, 0, 0, 60, 0)
    memory.memory.set_page(40, PageType.RAM_RO)
    assert call(a, X, Op.NOTIFY, at) == -Errno.EFAULT
    argo = b.domains.lookup(Y).argo  # type: ignore[union-attr]
    assert argo is not None
    assert {ring.port: list(ring.pending) for ring in argo.rings.values()} == {7: [X], 8: []}


# -- posted links ----


def test_posted_messages_use_credit() -> None:
    """The sender goes on; without credit it is told -EAGAIN, and interrupted when there is some."""
    lab, a, b = two(held=True, posted=True)
    assert [send(a, X, Y, bytes(4)) for _ in range(3)] == [4, 4, AGAIN]
    lab.settle()
    assert a.virqs == [(X, 11)] and tx(b, Y) == 64
    assert send(a, X, Y) == 5


def test_posted_messages_are_held_while_the_ring_is_full() -> None:
    """In order, until the receiver makes room; with or without its notify."""
    lab, a, b = two(posted=True, credit=4)
    assert [send(a, X, Y, bytes([n]) * 60) for n in range(4)] == [60] * 4
    assert b.level.far.held == 3 and b.ram[Y][24 * PAGE_SIZE + 80] == 0
    consume(b, Y)
    assert b.level.far.held == 2
    drain(b, Y)
    lab.advance(SECOND)
    assert b.level.far.held == 1 and not a.level.counters.posted_lost


def test_a_lost_posted_message_shows_at_the_next_send() -> None:
    """It was confirmed when it was sent; the refusal is counted, and is the next send's answer, once."""
    _, a, _ = two(posted=True)
    assert send(a, X, Y, port=9) == 5
    assert a.level.counters.posted_lost == 1 and a.events[0][0] == "posted-message-lost"
    assert [send(a, X, Y, port=9), send(a, X, Y)] == [REFUSED, 5]


# -- life and death ----


def test_a_far_death_is_any_death() -> None:
    """Dying: -ECONNREFUSED, its waits and the rings that only it could fill are gone; freed: -ESRCH."""
    _, a, b = two()
    assert register(b, Y, partner=X, gfn=25, port=8) == 0
    send(a, X, Y, bytes(60))
    assert send(a, X, Y, bytes(60)) == AGAIN
    argo = b.domains.lookup(Y).argo  # type: ignore[union-attr]
    assert argo is not None
    assert argo.waiters == 1 and (8, X) in argo.rings
    a.kill(X)
    assert argo.waiters == 0 and (8, X) not in argo.rings and argo.ring_count == 1
    assert send(b, Y, X) == REFUSED
    a.free(X)
    assert send(b, Y, X) == GONE


def test_a_restarted_guest_is_somebody_else() -> None:
    """The second guest of a name has an id of its own everywhere; the first one's is never given again."""
    _, a, b = two()
    register(a, X)
    a.free(X)
    a.create(X, "x")
    register(a, X)
    assert send(b, Y, X) == GONE
    proxy = b.level.resolve(("a", "x"))
    assert proxy is not None
    assert (proxy.domid, proxy.name) == (DYNAMIC_FIRST, "x#2")
    assert send(b, Y, proxy.domid) == 5
    assert send(a, X, Y) == 5
    assert int.from_bytes(b.ram[Y][24 * PAGE_SIZE + 64 + 8 :][:2], "little") == DYNAMIC_FIRST
    a.free(X)
    a.create(X, "x")
    third = b.level.resolve(("a", "x"))
    assert third is not None and third.domid == DYNAMIC_FIRST + 1


@pytest.mark.parametrize("how", ["peer", "child", "broadcast"])
def test_a_dead_hypervisor_takes_its_guests_along(how: str) -> None:
    """At every level, with the operations that wait for it; its proxies are freed after the linger."""
    paths: list[Path] = [A, ("a", "n"), B] if how == "child" else [A, ("a", "m"), B]
    home: Path = ("a", "n") if how == "child" else B
    lab = Lab(paths, guests={("a", "x"): 1, (*home, "y"): 2, (*paths[1], "w"): 3, ("b", "v"): 4})
    a = lab.nodes[A]
    register(lab.nodes[home], 2)
    for wire in lab.wires.values():
        wire.held = True
    others = [node for path, node in lab.nodes.items() if path not in (home, ("a", "n"))]
    assert send(a, 1, 2) is PENDING
    if how == "peer":
        a.level.on_peer("b", "dead", lab.now)
    elif how == "child":
        a.level.child_died("n", lab.now)
    else:
        dead = Envelope(1, EnvelopeKind.ENDPOINT_DIED, 0, 0, 0, ("", "b"), ("*",), 16, "", 0, 0, 0, 0, 0, 0, 0)
        a.level.on_envelope(None, dead, b"", lab.now)
    lab.settle()
    assert a.completed == {"t": UNKNOWN}
    for node in others:
        proxy = node.domains.lookup(2)
        assert proxy is not None and proxy.state is DomainState.DYING
    assert send(a, 1, 2) == REFUSED
    lab.advance(SECOND)
    assert send(a, 1, 2) == GONE


def test_a_hypervisor_that_comes_again_is_met_anew() -> None:
    """Its guests have new ids at once, also while those of the dead ones still resolve."""
    lab, a, _ = two()
    a.level.on_peer("b", "dead", lab.now)
    assert send(a, X, Y) == REFUSED
    register(a, X)
    again = lab.boot(B, list(lab.nodes), epoch=2)
    again.create(Y, "y")
    a.level.on_peer("b", "up", lab.now)
    assert send(again, Y, X) == 5
    assert send(a, X, Y) == REFUSED
    proxy = a.level.resolve(("b", "y"))
    assert proxy is not None and proxy.domid == DYNAMIC_FIRST
    register(again, Y)
    assert send(a, X, proxy.domid) == 5
    lab.advance(SECOND)
    assert send(a, X, Y) == GONE
    assert send(a, X, proxy.domid) == 5


@pytest.mark.parametrize("home", [B, ("a", "n")], ids=["beside", "inside"])
def test_who_comes_again_with_a_hypervisor_is_known_before_it_speaks(home: Path) -> None:
    """Whoever sends to it reaches it under a new id, which it would not if it had to be heard first."""
    lab = Lab([A, ("a", "n"), B], guests={(*A, "x"): X, (*home, "y"): Y})
    others = [node for path, node in lab.nodes.items() if path != home]
    for life in (2, 3):
        if home == B:
            lab.nodes[A].level.on_peer("b", "dead", lab.now)
        else:
            lab.nodes[A].level.child_died("n", lab.now)
        assert send(lab.nodes[A], X, Y) in (REFUSED, GONE)
        again = lab.boot(home, list(lab.nodes), epoch=life)
        if home == B:
            lab.nodes[A].level.on_peer("b", "up", lab.now)
        assert lab.nodes[A].level.resolve((*home, "y")) is None
        again.create(Y, "y")
        register(again, Y)
        for node in others:
            proxy = node.level.resolve((*home, "y"))
            assert proxy is not None and proxy.domid == DYNAMIC_FIRST + life - 2
        assert send(lab.nodes[A], X, DYNAMIC_FIRST + life - 2) == 5
        lab.advance(SECOND)
        assert send(lab.nodes[A], X, Y) == GONE


def test_a_first_life_is_announced_to_nobody() -> None:
    """The plan says it; a guest that comes after its hypervisor's start is planned as well."""
    lab, _, b = two()
    b.free(Y)
    node = Lab([A, B], guests={(*A, "x"): X}, held=True).nodes[A]
    assert not list(node.level.calls)
    assert lab.nodes[A].level.resolve((*B, "y")) is None


def test_a_hypervisor_that_comes_again_is_told_what_its_plan_does_not_say() -> None:
    """Who is dead, and who has come in whose place; once for each of its lives, however many guests it brings."""
    lab = Lab([A, B], guests={(*A, "x"): X, (*B, "y"): Y, (*B, "gone"): 3, (*B, "going"): 4, (*B, "goes"): 5})
    b = lab.nodes[B]
    for _ in range(2):
        b.free(Y)
        b.create(Y, "y")
    register(b, Y)
    b.free(3)
    b.kill(4)
    b.free(5)
    b.create(5, "goes")
    b.kill(5)
    b.level.on_peer("a", "dead", lab.now)
    again = lab.boot(A, list(lab.nodes), epoch=2, fresh_from=DYNAMIC_FIRST + 9)
    b.level.on_peer("a", "up", lab.now)
    assert again.level.resolve((*B, "y")) is again.domains.lookup(Y)
    again.create(X, "x")
    proxy = again.level.resolve((*B, "y"))
    assert proxy is not None and (proxy.name, proxy.domid) == ("y#3", DYNAMIC_FIRST + 9)
    assert [send(again, X, domid) for domid in (Y, 3, 4, 5)] == [GONE, GONE, REFUSED, GONE]
    assert again.level.resolve((*B, "goes")) is None
    assert again.domains.lookup(4).state is DomainState.DYING  # type: ignore[union-attr]
    assert send(again, X, proxy.domid) == 5
    before = b.level.calls.next_seq
    again.create(17, "z")
    assert b.level.calls.next_seq == before


def test_ids_are_reported_when_they_are_not_those_of_the_plan() -> None:
    """So that guests which know a name may be told; a planned proxy has its id from the plan."""
    met: list[tuple[str, int]] = []
    _, a, b = two()
    b.level.proxies.on_met = lambda name, domid: met.append((name, domid))
    assert send(a, X, Y) == 5
    a.free(X)
    a.create(X, "x")
    assert met == [("x", DYNAMIC_FIRST)]


@pytest.mark.parametrize("told", [True, False])
def test_another_process_is_another_life(told: bool) -> None:
    """What was asked of the former one is not asked of the next, also if nobody saw its end: nothing runs twice."""
    lab, a, b = two(held=True)
    a.level.on_peer("b", "up", lab.now, 100)
    lab.settle()
    assert send(a, X, Y) is PENDING
    for wire in (lab.wires[A, ()], lab.wires[(), B]):
        lab.deliver(wire)
    assert tx(b, Y) > 0, "it ran, and the answer is lost"
    lab.wires[B, ()].queue.clear()
    if told:
        a.level.on_peer("b", "dead", lab.now, 100)
    else:
        a.level.on_link(False, lab.now)
        a.level.on_link(True, lab.now)
        a.level.on_peer("b", "down", lab.now, 100)
        for wire in lab.wires.values():
            wire.queue.clear()
        assert not a.completed
    again = lab.boot(B, list(lab.nodes), epoch=2)
    again.create(Y, "y")
    register(again, Y)
    a.level.on_peer("b", "up", lab.now, 101)
    lab.settle()
    assert a.completed == {"t": UNKNOWN}
    lab.advance(3 * SECOND)
    assert tx(again, Y) == 0
    assert send(a, X, Y) == GONE


def test_the_same_process_is_the_same_life() -> None:
    """A link that comes back, and a fabric that does not say which process it is, kill nobody."""
    lab, a, _ = two()
    for state, pid in (("up", 0), ("up", 7), ("down", 7), ("up", 0), ("down", 0), ("up", 7)):
        a.level.on_peer("b", state, lab.now, pid)
    assert send(a, X, Y) == 5


def test_an_origin_of_an_older_epoch_is_fenced() -> None:
    """What an earlier incarnation of a hypervisor said counts for nothing; its guests are dead."""
    lab, a, b = two()
    send(a, X, Y, b"old")
    b.virqs.clear()
    old_proxy = b.domains.lookup(X)
    node = lab.boot(A, list(lab.nodes), epoch=2)
    node.create(X, "x")
    consume(b, Y)
    assert send(node, X, Y, b"new!") == 4
    assert old_proxy is not None and old_proxy.state is DomainState.DYING
    before = tx(b, Y)
    stale = envelope_of(EnvelopeKind.SEND, ("x", "a"), ("b", "y"), origin_seq=99, length=3)
    b.level.on_envelope(None, stale, b"old", lab.now)
    assert tx(b, Y) == before and b.level.far.answers.fenced == 1


def test_an_origin_for_whose_answers_there_is_no_room_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told that its operation is being executed: it asks again, and gets its result once there is room."""
    monkeypatch.setattr("hv_node.levels.answers.MAX_ORIGINS", 0)
    _, a, b = two()
    answered: list[int] = []
    arrive = a.level.on_envelope

    def watch(child: str | None, envelope: Envelope, payload: bytes, now_ns: int) -> bool:
        answered.append(envelope.ret)
        return arrive(child, envelope, payload, now_ns)

    monkeypatch.setattr(a.level, "on_envelope", watch)
    assert send(a, X, Y) is PENDING
    assert answered == [-Errno.EAGAIN] and tx(b, Y) == 0


def test_soft_reset_is_told() -> None:
    """The guest's waits elsewhere go, and the rings that only it could fill; it lives on."""
    _, a, b = two()
    register(b, Y, partner=X, gfn=25, port=8)
    domain = a.domains.lookup(X)
    assert domain is not None
    a.argo.soft_reset(domain)
    argo = b.domains.lookup(Y).argo  # type: ignore[union-attr]
    assert argo is not None and (8, X) not in argo.rings
    assert send(a, X, Y) == 5


def test_silo_takes_a_proxy_for_an_ordinary_domain() -> None:
    """Whatever it is elsewhere: even a far control domain may not meet guests here."""
    lab = Lab([A, B], guests={("a", "dom0"): 0, ("b", "y"): 2, ("b", "dom0b"): 5}, xsm=SiloXsm)
    register(lab.nodes[B], 2)
    lab.nodes[A].argo.permissive = True
    assert send(lab.nodes[A], 0, 2) == -Errno.EPERM


# -- the tree ----


def test_hops_end() -> None:
    """A message that has been passed on too often is refused and counted."""
    lab = Lab([A, ("a", "n"), ("a", "m")], guests={("a", "n", "x"): 1, ("a", "m", "y"): 2})
    a = lab.nodes[A]
    tired = envelope_of(EnvelopeKind.SEND, ("x", "n"), ("a", "m", "y"), hops_left=0)
    a.level.on_envelope("n", tired, b"", 0)
    assert a.level.counters.hops == 1 and a.level.counters.forwarded == 0


def test_up_means_the_parent_decides() -> None:
    """A nested guest's message goes to whom the parent finds: a guest of its own, or one on another host."""
    lab = Lab([A, ("a", "n"), B], guests={("a", "n", "x"): 1, ("a", "y"): 2, ("b", "z"): 3})
    a, n, b = lab.nodes.values()
    register(a, 2)
    register(b, 3)
    caller = n.domains.lookup(1)
    assert caller is not None
    answers: dict[int, Any] = {1: (("a", "y"), PORT), 2: (("b", "z"), PORT), 3: -Errno.EACCES}
    a.level.on_upwards = lambda path, envelope: answers[envelope.port_dst]
    n.ram[1][0x3000:0x3002] = b"hi"
    results = [n.level.send_up(caller, 5, port, 42, (0x3000, 2, 0), 0, "t") for port in (1, 2, 3)]
    assert results == [2, 2, -Errno.EACCES]
    assert tx(a, 2) == 32 and tx(b, 3) == 32 and not len(n.level.calls)
    assert a.level.send_up(caller, 5, 1, 42, (0x3000, 2, 0), 0, "t") == GONE, "an L0 has nobody above it to decide"


def test_requests_of_levels() -> None:
    """Executed once, answered as often as asked; who has no such service says so."""
    lab, a, b = two(held=True)
    heard: list[Any] = []
    found: list[Any] = []

    def answer(path: Path, op: int, payload: bytes) -> tuple[int, bytes]:
        heard.append((path, op, payload))
        return 7, b"reply"

    b.level.on_request = answer
    a.level.request(B, 0x4000_0010, b"ask", lambda ret, reply: found.append((ret, reply)))
    lab.deliver(lab.wires[A, ()])
    lab.deliver(lab.wires[(), B])
    lab.cut(A)
    lab.heal(A)
    lab.settle()
    assert heard == [(("a", ""), 0x4000_0010, b"ask")] and found == [(7, b"reply")]
    b.level.on_request = None
    a.level.request(B, 0x4000_0010, b"ask", lambda ret, reply: found.append(ret))
    lab.settle()
    assert found[1] == -Errno.EOPNOTSUPP


def test_a_nested_hypervisors_rings() -> None:
    """A ring for the hypervisor itself: only `nested` domains may have one; what they send up is handed over."""
    _, a, _ = two()
    assert register(a, X, partner=DOMID_XEN) == GONE
    domain = a.domains.lookup(X)
    assert domain is not None
    domain.nested = True
    assert register(a, X, partner=DOMID_XEN) == 0
    UNREGISTER_RING.pack_into(a.ram[X], 0x100, PORT, DOMID_XEN, 0)
    assert call(a, X, Op.UNREGISTER_RING, 0x100) == 0
    assert send(a, X, DOMID_ANY, port=UPLINK_PORT) == GONE
    got: list[Any] = []

    def take(caller: Domain, payload: bytes, kind: int) -> int:
        got.append((caller.domid, payload, kind))
        return len(payload)

    a.argo.on_uplink = take
    assert send(a, X, DOMID_ANY, port=UPLINK_PORT) == 5
    assert got == [(X, b"hello", 42)]


def test_through_vcpus() -> None:
    """With the whole hypervisor: the frame stays open, late errors are zero-extended, the counters count."""
    machine = Machine("on,mac-permissive", "dummy")
    sender = machine.guest(1)
    sent: list[tuple[Envelope, bytes]] = []

    class Link:
        def send(self, envelope: Envelope, payload: bytes) -> bool:
            sent.append((envelope, payload))
            return True

    level = Level(A, machine.core, LevelOptions(remotes=(RemoteConfig("y", 2, ("b", "y")),)), Link())
    machine.core.levels = level
    name = machine.core.hvm(1).domain.name  # type: ignore[union-attr]
    for answer, register_ in ((5, 5), (REFUSED, 0xFFFF_FF91), (UNKNOWN, UNKNOWN & (1 << 64) - 1)):
        sender.submit(Kind.VMCALL, sender.send_regs(2, PORT, b"hello"))
        assert sender.run() == []
        envelope, payload = sent.pop()
        assert (envelope.src_path, envelope.dst, payload) == ((name, "a"), ("b", "y"), b"hello")
        result = envelope._replace(
            kind=EnvelopeKind.RESULT, src_path=("", "b"), dst=envelope.src_path[::-1], ret=answer, length=0
        )
        level.on_envelope(None, result, b"", 1)
        (done,) = sender.run()
        assert done.regs[0] == register_ and int32(done.regs[0]) == answer
    assert machine.core.hvm(1).counters.messages == 1  # type: ignore[union-attr]


# -- forgery ----


def envelope_of(kind: EnvelopeKind, src_path: tuple[Any, ...], dst: tuple[Any, ...], **fields: Any) -> Envelope:
    made = Envelope(1, kind, 1 << FLOOR_BITS, 1, 1, src_path, dst, 16, "", 3, 5, PORT, 0, 0, 0, 0)
    return made._replace(**fields)


@pytest.mark.parametrize(
    ("child", "src_path"),
    [
        ("n", ("x", "m")),  # a sibling's
        ("n", ("x", "n", "b")),  # grown by somebody else
        ("n", ("n",)),
        (None, ("x", "a")),  # ours, from above
        (None, ("x", "n", "a")),
        (None, ("x", 5, "b")),
        (None, ("x", "", "b")),
    ],
)
def test_a_forged_source_is_dropped(child: str | None, src_path: tuple[Any, ...]) -> None:
    """A child speaks for what lies below it, the fabric for what does not lie below us."""
    lab = Lab([A, ("a", "n"), ("a", "m"), B], guests={("a", "y"): 1, ("a", "n", "x"): 2, ("b", "x"): 3})
    a = lab.nodes[A]
    register(a, 1)
    died = envelope_of(EnvelopeKind.ENDPOINT_DIED, src_path, ("a", ""), op=Death.DYING)
    for envelope in (envelope_of(EnvelopeKind.SEND, src_path, ("a", "y")), died):
        assert a.level.on_envelope(child, envelope, b"", 0)
    assert a.level.counters.forged == 2 and tx(a, 1) == 0
    assert all(domain.state is DomainState.ALIVE for domain in a.domains)


def test_only_whoever_was_asked_may_answer() -> None:
    """A result from another hypervisor, of another epoch, or to nothing, changes nothing."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    good: dict[str, Any] = {"src_path": ("", "b"), "dst": ("a", "x"), "origin_seq": 1, "ret": 5}
    for wrong in ({"src_path": ("", "c")}, {"origin_epoch": 2}, {"origin_seq": 9}, {"kind": EnvelopeKind.CANCEL}):
        fields = {"kind": EnvelopeKind.RESULT, **good, **wrong}
        wrongly = envelope_of(fields.pop("kind"), fields.pop("src_path"), fields.pop("dst"), **fields)
        a.level.on_envelope(None, wrongly, b"", 0)
        assert a.completed == {}
    a.level.on_envelope(None, envelope_of(EnvelopeKind.RESULT, good.pop("src_path"), good.pop("dst"), **good), b"", 0)
    assert a.completed == {"t": 5}


@pytest.mark.parametrize("row", NOTICES, ids=lambda row: row.rule)
def test_notices(row: Any) -> None:
    """What each notice does to an operation: it ends, or goes on; it never ran as far as this copy is concerned."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    told = envelope_of(EnvelopeKind.RESULT, ("", "b"), ("a", "x"), op=0, ret=-int(row.errno))
    a.level.on_envelope(None, told, b"", 0)
    assert a.completed == ({"t": REFUSED} if row.final else {})
    a.level.on_envelope(None, told, b"", 0)
    a.level.on_timer(1)
    a.level.calls.timeout_ns = 2
    a.level.on_timer(10)
    assert a.completed == ({"t": REFUSED} if row.final or row.down else {})


def test_a_notice_about_one_copy_says_nothing_about_another() -> None:
    """The first copy may have run; that the second did not proves nothing."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    a.level.on_link(False, 0)
    a.level.on_link(True, 0)
    told = envelope_of(EnvelopeKind.RESULT, ("", "b"), ("a", "x"), op=0, ret=-Errno.ECANCELED, cookie=2 << FLOOR_BITS)
    a.level.on_envelope(None, told, b"", 0)
    assert a.completed == {"t": UNKNOWN}


@settings(max_examples=300)
@given(st.integers(0, 1 << 32), st.sampled_from([None, "n"]))
def test_nothing_that_arrives_raises(seed: int, child: str | None) -> None:
    """Any envelope with fields of the right types: no exception, and guests' memory but for rings stays as it is."""
    rng = random.Random(seed)
    lab = Lab([A, ("a", "n"), B], guests={("a", "y"): 1, ("a", "n", "x"): 2, ("b", "x"): 3})
    a = lab.nodes[A]
    register(a, 1)
    names: list[Any] = ["a", "b", "n", "x", "y", "", "*", "x#2", 5]
    for _ in range(20):
        src = tuple(rng.choice(names) for _ in range(rng.randint(0, 3))) + ((child,) if child else ("b",))
        dst = tuple(rng.choice(names) for _ in range(rng.randint(0, 4)))
        payload = rng.randbytes(rng.choice([0, 2, 10, 60]))
        if rng.random() < 0.5:
            payload = rng.choice([b"\x01\x00\x01y\x01\0\0\0\0\0\0\0", b"\x08\0\0\0", b"\x01\0\0\0"]) + payload
        envelope = Envelope(
            1, rng.randint(1, 7), rng.getrandbits(64), rng.randint(0, 3), rng.getrandbits(rng.choice([3, 64])),
            src, dst, rng.randint(0, 16), "", rng.choice([0, 1, 2, 3, 4, 5, 1 << 31]), 5, PORT, 0, 0, len(payload),
            rng.choice([0, 1, 2, 3, 7, -5, -111, 1 << 30]),
        )  # fmt: skip
        a.level.on_envelope(child, envelope, payload, rng.getrandbits(40))
    assert not any(a.ram[1][0x10000 : 24 * PAGE_SIZE])
