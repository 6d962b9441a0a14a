"""Who dies, who comes again, and who is somebody else then: at every level.  Rules of docs/levels.md and argo.md 15."""

from __future__ import annotations

import pytest

from broker.envelope import Envelope, EnvelopeKind
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hv_node.domain import DomainState
from hv_node.effects import PENDING
from hv_node.levels.paths import Path
from hv_node.levels.proxies import DYNAMIC_FIRST
from tests.doubles.levels import Lab
from tests.doubles.two_levels import (
    AGAIN,
    GONE,
    REFUSED,
    SECOND,
    UNKNOWN,
    A,
    B,
    X,
    Y,
    consume,
    envelope_of,
    register,
    send,
    two,
    tx,
)


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
