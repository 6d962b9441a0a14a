"""What bounds an attack, rule by rule and without a second process (contracts 1, 2; the attacks: tests/e2e).

Each of these rules also has a process that attacks it there; these fail at once and everywhere when a rule is gone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hmx.argo.ring import sanitise_rx
from hmx.memory import PAGE_SIZE
from hmx.trap import Kind
from hmx.vcpu_area import SQ_ENTRIES, Word
from hv_node.attach import Backing
from hv_node.config import DomainConfig
from hv_node.hvm import TURN, Vcpu
from hv_node.node import Node
from tests.doubles.hypervisor_node import Link, started
from tests.doubles.machine import Machine

ATTACKER, PLAYER = 1, 2
RING_GFN, RING_LEN = 16, 2 * PAGE_SIZE


@pytest.fixture
def node(short_tmp_path: Path) -> Iterator[Node]:
    """A hypervisor with two domains; its loop is turned by hand."""
    domains = DomainConfig("attacker", ATTACKER, 1 << 20, 1), DomainConfig("player", PLAYER, 1 << 20, 1)
    with closing(Link()) as link, started(short_tmp_path, link, *domains) as made:
        yield made


def vcpu_of(node: Node, domid: int) -> Vcpu:
    hvm = node.core.hvm(domid)
    assert hvm is not None
    return hvm.vcpus[0]


def test_who_floods_has_one_turn_in_each_round(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission ring that is full again as soon as it is looked at takes a round no longer."""
    turns: list[int] = []

    def run(vcpu: Vcpu, budget: int) -> int:
        assert len(turns) < 10, "a round that does not end"
        turns.append(vcpu.hvm.domain.domid)
        return budget if vcpu.hvm.domain.domid == ATTACKER else 0

    monkeypatch.setattr(node.core, "run", run)
    for domid in (ATTACKER, PLAYER):
        node._active[vcpu_of(node, domid)] = None
    assert node._turn() == TURN
    assert turns == [ATTACKER, PLAYER]


def test_frames_that_come_during_a_turn_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest on another CPU that submits as fast as it is served has its 64 frames a turn, no more."""
    machine = Machine()
    guest = machine.guest(ATTACKER)
    words = memoryview(guest.vcpu.area.buffer).cast("I")
    step = machine.core._step

    def refilled(vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        step(vcpu, head, regs)
        words[Word.SQ_TAIL >> 2] = (vcpu.area.sq_head + SQ_ENTRIES) & 0xFFFF_FFFF
        words[Word.CQ_HEAD >> 2] = vcpu.area.cq_tail

    monkeypatch.setattr(machine.core, "_step", refilled)
    guest.submit(Kind.CPUID)
    guest.side.publish()
    assert machine.core.run(guest.vcpu) == 1, "what was there when the turn began"
    assert machine.core.run(guest.vcpu) == TURN


def test_who_collects_nothing_is_served_no_more() -> None:
    """64 answers lie there; the frames behind them stay where they are, and keep nobody awake."""
    machine = Machine()
    guest = machine.guest(ATTACKER)
    words = memoryview(guest.vcpu.area.buffer).cast("I")
    for _ in range(SQ_ENTRIES):
        guest.submit(Kind.CPUID)
    guest.side.publish()
    assert machine.core.run(guest.vcpu) == SQ_ENTRIES
    answers = bytes(guest.vcpu.area.buffer[0x5000:0x9000])
    words[Word.SQ_TAIL >> 2] += SQ_ENTRIES
    assert guest.vcpu.area.submitted() == SQ_ENTRIES
    assert machine.core.run(guest.vcpu) == 0
    assert bytes(guest.vcpu.area.buffer[0x5000:0x9000]) == answers
    assert guest.vcpu.area.sleep(), "or the hypervisor would look again and again"
    words[Word.CQ_HEAD >> 2] += 3
    assert machine.core.run(guest.vcpu) == 3


def test_bells_that_were_closed_ring_nobody(node: Node) -> None:
    """The guest closed its end, or filled it: the others' bells ring in the same round."""
    player, attacker = vcpu_of(node, PLAYER), vcpu_of(node, ATTACKER)
    backings = {name: backing for name, backing in node.roster.backings.items() if isinstance(backing, Backing)}
    for end in backings["attacker"].guest_ends:
        end.close()
    node.core.bells = {attacker: None, player: None}
    node._ring()
    (bell,) = backings["player"].guest_ends
    assert bell.recv(8) == b"\0"
    with pytest.raises(BlockingIOError):
        while True:
            node.roster.bells[player].send(b"x")
    node.core.bells = {player: None}
    node._ring()  # full, though nobody waits: nothing blocks here
    assert not node.core.bells


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_header_full_of_noise_changes_nothing(seed: int) -> None:
    """Where it writes the hypervisor knows itself, and an impossible rx counts as what argo.h makes of it: the same
    messages lie in the ring of a twin with a sane header, and no other byte of the domain has moved.
    """
    chance = random.Random(seed)
    (attacker, player), (twin, other) = pairs = [(m.guest(ATTACKER), m.guest(PLAYER)) for m in (Machine(), Machine())]
    for victim, _ in pairs:
        assert victim.register(7, ring_len=RING_LEN - 64, gfn=RING_GFN) == 0
    before = bytes(attacker.ram)
    start, end = RING_GFN * PAGE_SIZE, RING_GFN * PAGE_SIZE + RING_LEN
    values = (0, 16, 15, RING_LEN - 65, RING_LEN - 64, RING_LEN, 1 << 24, 1 << 31, 0xFFFF_FFF0, 0xFFFF_FFFF)
    results = []
    for number in range(60):
        rx, tx = (chance.choice(values) if chance.random() < 0.5 else chance.getrandbits(32) for _ in range(2))
        struct.pack_into("<II", attacker.ram, start, rx, tx)
        struct.pack_into("<I", twin.ram, start, sanitise_rx(rx, RING_LEN - 64))
        data = number.to_bytes(4, "little") * 50
        results.append(player.send(ATTACKER, 7, data))
        assert other.send(ATTACKER, 7, data) == results[-1]
        assert attacker.ram[start + 64 : end] == twin.ram[start + 64 : end]
    assert results.count(200) > 5
    assert attacker.ram[:start] == before[:start] and attacker.ram[end:] == before[end:]
