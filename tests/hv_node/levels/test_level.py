"""Levels step by step: three results, wake-ups, posted messages, the tree.  Rules of docs/levels.md and argo.md 15."""

from __future__ import annotations

from typing import Any

import pytest

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import (
    DOMID_ANY,
    RING_DATA,
    RING_DATA_ENT,
    UNREGISTER_RING,
    NotifyFlag,
    Op,
)
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, PageType
from hmx.nested import DOMID_XEN, UPLINK_PORT
from hmx.trap import Kind, int32
from hv_node.domain import Domain
from hv_node.effects import PENDING
from hv_node.levels.level import Level
from hv_node.levels.options import LevelOptions
from hv_node.levels.paths import Path
from hv_node.levels.proxies import RemoteConfig
from hv_node.xsm import SiloXsm
from tests.doubles.levels import Lab
from tests.doubles.machine import Machine
from tests.doubles.two_levels import (
    AGAIN,
    GONE,
    PORT,
    REFUSED,
    SECOND,
    UNKNOWN,
    A,
    B,
    X,
    Y,
    call,
    consume,
    drain,
    envelope_of,
    notify,
    register,
    send,
    two,
    tx,
)


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
