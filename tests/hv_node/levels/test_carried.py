"""Guests of a nested hypervisor that forwards, or is bypassed (issue 5.1): what they see is what a guest of L0 sees.

Two hypervisors joined in memory, frames by hand.  The reference is a guest of one hypervisor alone, with the domain id
as which the carried one acts: every result, its memory and its peer's must be equal, byte for byte.
"""

from __future__ import annotations

from typing import Any

import pytest

from hmx import xen
from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.doors import DOOR_CALL
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.nested import DOMID_XEN, DOWNLINK_PORT, UPLINK_PORT
from hmx.trap import Kind, int32
from hmx.vcpu_area import AREA_SIZE
from hv_node.argo.options import ArgoOptions
from hv_node.config import DomainConfig, HypervisorConfig, OuterConfig, WardConfig
from hv_node.domain import Domain, DomainState
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.levels.carried import CARRY, FORWARD, STEAL, CarriedOp, pack_call, unpack_call
from hv_node.levels.wards import MAX_EARLY
from hv_node.uplinks.around import parents_of
from hv_node.uplinks.joint import Joint
from hv_node.xsm import DummyXsm
from tests.doubles.hypervisor_node import configured
from tests.doubles.levels import Wire
from tests.doubles.machine import Guest, Machine

CHILD, STOLEN, OTHER = 2, 0x4001, 0x4002  # hv1's domain; the ids that the plan has for the guests d7 and d8 if stolen
MSR = 0x4000_00E0
END = 64 * PAGE_SIZE
PORT = 9
MODES = pytest.mark.parametrize("mode", [FORWARD, STEAL])
ESRCH = -int(Errno.ESRCH)


def config(name: str, **more: Any) -> HypervisorConfig:
    return configured(name=name, **{"doors": ("hypercall", "msr"), "linger_ns": 5, **more})


class Shell(Machine):
    """A hypervisor with its joint; its clock stands where the world's does."""

    def __init__(self, world: World, config: HypervisorConfig) -> None:
        super().__init__()
        self.core = Hypervisor(
            PERSONALITIES["xen", self.arch], "intel", ArgoOptions(True, True), DummyXsm(),
            lambda *e: self.events.append(e), doors=config.doors, parents=parents_of(config),
        )  # fmt: skip
        self.joint = Joint(config, self.core, 1, lambda: world.now)
        self.level = self.joint.level


class World:
    """hv0 with the guest `peer` (1) and hv1 (2), in which `guest` (d7) and `other` (d8) live."""

    def __init__(self, mode: str, *, held: bool = False, lend: bool = True) -> None:
        self.now = 0
        ids = (CHILD, CHILD) if mode == FORWARD else (STOLEN, OTHER)
        wards = (WardConfig("d7", ids[0]), WardConfig("d8", ids[1]))
        self.row = DomainConfig("hv1", CHILD, 1 << 20, 1, nested=True, mode=mode, wards=wards)
        domains = (DomainConfig("d1", 1, 1 << 20, 1), self.row)
        self.outer = Shell(self, config("hv0", path=("hv0",), domains=domains, hypervisors=(("hv0", "hv1"),)))
        stolen = ("hypercall", "msr") if mode == STEAL else ()
        self.inner = Shell(
            self,
            config(
                "hv1", path=("hv0", "hv1"), parent="hv0", mode=mode, hypervisors=(("hv0",),),
                outer=(OuterConfig("xen", ("hypercall", "msr"), stolen),),
                doors=() if mode == STEAL else ("hypercall",),
            ),
        )  # fmt: skip
        self.mode = mode
        self.acts_as = ids[0]
        self.peer = self.outer.guest(1)
        areas = [memoryview(bytearray(AREA_SIZE))]
        self.nested = self.outer.core.create_domain(CHILD, MappedMemory(bytearray(16 * PAGE_SIZE)), areas,
                                                    name="hv1", nested=True).domain  # fmt: skip
        self.guest, self.other = self.inner.guest(7), self.inner.guest(8)
        self.up = Wire(lambda e, p: self.outer.level.on_envelope("hv1", e, p, self.now), held)
        self.down = Wire(lambda e, p: self.inner.level.on_envelope(None, e, p, self.now), held)
        self.outer.level.attach("hv1", self.down, 0)
        self.inner.level.set_uplink(self.up, 0)
        if lend:
            self.lend("d7", self.guest)
            self.lend("d8", self.other)

    def lend(self, name: str, guest: Guest) -> None:
        self.outer.joint.lent(self.row, name, MappedMemory(guest.ram))

    def domain(self) -> Domain | None:
        return self.outer.core.domains.lookup(self.acts_as)

    def settle(self) -> None:
        while self.up.step() or self.down.step():
            pass


def frame(world: World | None, guest: Guest, cmd: int, *arguments: int) -> dict[str, Any]:
    """argo_op by the guest's door."""
    a = (*arguments, 0, 0, 0, 0)
    if world is not None and world.mode == STEAL and guest.machine is world.inner:
        return {"kind": Kind.WRMSR, "regs": (DOOR_CALL, a[1], 0, 0, a[0], cmd, a[3], 0, a[2]), "address": MSR}
    return {"kind": Kind.VMCALL, "regs": guest.regs(xen.Hypercall.ARGO_OP, cmd, *arguments)}


def call(world: World | None, guest: Guest, cmd: int, *arguments: int) -> int:
    return int32(guest.trap(**frame(world, guest, cmd, *arguments)).regs[0])


def register(world: World | None, guest: Guest, port: int = PORT, partner: int = DOMID_ANY, gfn: int = 16) -> int:
    abi.REGISTER_RING.pack_into(guest.ram, PAGE_SIZE, port, partner, 0, 4032)
    abi.GFN.pack_into(guest.ram, 3 * PAGE_SIZE, gfn)
    return call(world, guest, Op.REGISTER_RING, PAGE_SIZE, 3 * PAGE_SIZE, 1, 0)


def send(
    world: World | None, guest: Guest, domid: int, data: bytes = b"hello", port: int = PORT, **odd: int
) -> int:
    base, at = PAGE_SIZE, odd.get("at", 4 * PAGE_SIZE)
    abi.SEND_ADDR.pack_into(guest.ram, base, 7, odd.get("source", DOMID_ANY), 0, port, domid, odd.get("pad", 0))
    abi.IOV.pack_into(guest.ram, base + 16, at, odd.get("size", len(data)), 0)
    guest.ram[at : at + len(data)] = data
    return call(world, guest, Op.SENDV, odd.get("a1", base), base + 16, odd.get("niov", 1), 0xABCD)


def notify(world: World | None, guest: Guest, *entries: tuple[int, int, int]) -> int:
    abi.RING_DATA.pack_into(guest.ram, PAGE_SIZE, len(entries), 0)
    for index, (port, domid, wanted) in enumerate(entries):
        at = PAGE_SIZE + abi.RING_DATA.size + index * abi.RING_DATA_ENT.size
        abi.RING_DATA_ENT.pack_into(guest.ram, at, port, domid, 0, 0, 0, wanted, 0)
    return call(world, guest, Op.NOTIFY, PAGE_SIZE)


def interrupts(guest: Guest) -> int:
    return guest.hvm.counters.interrupts_posted + guest.hvm.counters.interrupts_coalesced


def script(world: World | None, guest: Guest, peer: Guest) -> list[Any]:
    """Everything once, refusals in Xen's order among them; what it led to, and the peer's and its own memory."""
    assert guest.bind_virq() > 0
    said: list[Any] = [
        call(world, guest, 0x3FFF),
        call(world, guest, Op.SENDV, PAGE_SIZE, PAGE_SIZE, 1 << 32, 0),
        call(world, guest, Op.REGISTER_RING, END, END, 5000, 0),
        call(world, guest, Op.REGISTER_RING, END, END, 1, 8),
        call(world, guest, Op.REGISTER_RING, END, END, 1, 0),
        register(world, guest, partner=0x3ABC),
        register(world, guest, gfn=9999),
        register(world, guest, partner=DOMID_XEN),
        send(world, guest, 1),  # no ring
        peer.register(PORT),
        register(world, guest),
        register(world, guest),  # again
        send(world, guest, 1, a1=END),
        send(world, guest, 1, niov=9),
        send(world, guest, 1, pad=1),
        send(world, guest, 1, source=1),
        send(world, guest, 0x3ABC),
        send(world, guest, DOMID_ANY, port=UPLINK_PORT),
        send(world, guest, 1, port=10),
        send(world, guest, 1, size=5000),
        send(world, guest, 1, b"x" * 100, at=END - 100, size=600),  # its first 100 bytes lie beyond tx
        [send(world, guest, 1, bytes([n]) * 1000) for n in range(5)],  # the last does not fit
        notify(world, guest, (PORT, 1, 64), (PORT, 1, 2000), (PORT, 1, 5000), (PORT, 0x3ABC, 1), (11, 1, 1)),
        bytes(guest.ram[PAGE_SIZE : 2 * PAGE_SIZE]),
    ]
    before = interrupts(guest)
    ring = 16 * PAGE_SIZE
    peer.ram[ring : ring + 4] = peer.ram[ring + 4 : ring + 8]  # everything taken
    said += [peer.argo(Op.NOTIFY), interrupts(guest) - before]
    said += [send(world, guest, 1, b"again"), peer.send(guest_id(world), PORT, b"to you"), interrupts(guest) - before]
    said += [
        call(world, guest, Op.NOTIFY, 0, 1),
        call(world, guest, Op.NOTIFY, END),
        call(world, guest, Op.UNREGISTER_RING, END),
        call(world, guest, Op.UNREGISTER_RING, PAGE_SIZE, 1),
    ]
    abi.UNREGISTER_RING.pack_into(guest.ram, PAGE_SIZE, PORT, DOMID_ANY, 0)
    said += [call(world, guest, Op.UNREGISTER_RING, PAGE_SIZE), call(world, guest, Op.UNREGISTER_RING, PAGE_SIZE)]
    said += [peer.send(guest_id(world), PORT, b"too late"), bytes(guest.ram), bytes(peer.ram)]
    return said


def guest_id(world: World | None) -> int:
    return REFERENCE[0] if world is None else world.acts_as


REFERENCE = [0]


@MODES
def test_everything_is_as_for_a_guest_of_l0(mode: str) -> None:
    """Results, order of refusals, bytes beyond tx, write-back, wake-ups: equal to a guest of one hypervisor alone."""
    world = World(mode)
    found = script(world, world.guest, world.peer)
    alone = Machine()
    REFERENCE[0] = world.acts_as
    peer = alone.guest(1)
    expected = script(None, alone.guest(world.acts_as), peer)
    for at, (one, other) in enumerate(zip(found[:-2], expected[:-2], strict=True)):
        assert one == other, at
    assert found == expected
    assert found[21] == [1000, 1000, 1000, -int(Errno.EAGAIN), -int(Errno.EAGAIN)], "the script fills the ring"
    assert found[25] == 1, "and has somebody woken"
    assert world.inner.level.counters.sends == 0, "the nested one implements nothing"
    assert world.guest.hvm.counters.messages == 4


@MODES
def test_a_call_is_pending_until_the_parent_has_answered(mode: str) -> None:
    """The vCPU is held, later frames behind it; a repeat is answered, not executed again."""
    world = World(mode, held=True)
    assert world.peer.register(PORT) == 0
    guest = world.guest
    abi.SEND_ADDR.pack_into(guest.ram, PAGE_SIZE, 7, DOMID_ANY, 0, PORT, 1, 0)
    abi.IOV.pack_into(guest.ram, PAGE_SIZE + 16, 4 * PAGE_SIZE, 5, 0)
    for _ in range(2):
        guest.submit(**frame(world, guest, Op.SENDV, PAGE_SIZE, PAGE_SIZE + 16, 1, 0xABCD))
    assert guest.run() == []
    world.now = 10**9
    world.inner.level.on_timer(world.now)
    world.now = 2 * 10**9
    world.inner.level.on_timer(world.now)
    assert world.inner.level.calls.repeats, "nobody answers: said again"
    world.settle()
    first = guest.run()
    world.settle()
    assert [int32(done.regs[0]) for done in first + guest.run()] == [5, 5]
    assert world.peer.ram[16 * PAGE_SIZE + 4] == 64, "two messages of 32 bytes, not more"


@MODES
def test_a_call_may_come_before_the_memory(mode: str) -> None:
    """It waits for it, bounded in number; whoever asks whether the guests are served hears it then."""
    world = World(mode, lend=False)
    assert world.peer.register(PORT) == 0
    up: list[bool] = []
    world.inner.joint.when_served(lambda: up.append(True))
    guest = world.guest
    abi.SEND_ADDR.pack_into(guest.ram, PAGE_SIZE, 7, DOMID_ANY, 0, PORT, 1, 0)
    abi.IOV.pack_into(guest.ram, PAGE_SIZE + 16, 4 * PAGE_SIZE, 5, 0)
    guest.submit(**frame(world, guest, Op.SENDV, PAGE_SIZE, PAGE_SIZE + 16, 1, 0))
    assert guest.run() == []
    world.lend("d7", guest)
    assert [int32(done.regs[0]) for done in guest.run()] == [5]
    assert up == []
    said: list[int] = []
    for _ in range(MAX_EARLY):
        one = pack_call(CarriedOp("d8", False, Op.NOTIFY, (0, 0, 0, 0), 0))
        world.inner.level.request(("hv0",), CARRY, one, lambda ret, _: said.append(ret))
    assert said == [-int(Errno.ECONNREFUSED)], "one of them was one too many"
    world.lend("d8", world.other)
    assert up == [True]
    assert said[1:] == [0] * (MAX_EARLY - 1)


@MODES
def test_only_planned_guests_are_served_and_once(mode: str) -> None:
    """A stranger's memory, another hypervisor's, or a second one for the same guest is refused with words."""
    world = World(mode)
    for name, words in (("d9", "no guest 'd9' of 'hv1' was planned"), ("d7", "has memory here already")):
        with pytest.raises(ValueError, match=words):
            world.lend(name, world.guest)
    with pytest.raises(ValueError, match="no guest 'd7' of 'hv2' was planned"):
        world.outer.level.wards.lend("hv2", "d7", MappedMemory(world.guest.ram))
    said: list[int] = []
    for payload in (b"", pack_call(CarriedOp("d9", False, 0, (0, 0, 0, 0), 0)), bytes(60)):
        world.inner.level.request(("hv0",), CARRY, payload, lambda ret, _: said.append(ret))
    assert said == [-int(Errno.EINVAL), -int(Errno.EOPNOTSUPP), -int(Errno.EINVAL)]


def test_a_carried_call_is_packed_as_it_is() -> None:
    """Round trip; what is short, has a name of another length or unknown flags makes no sense."""
    one = CarriedOp("app#2", True, Op.SENDV, (1, 2, 3, (1 << 64) - 1), 0x5000)
    packed = pack_call(one)
    assert unpack_call(packed) == one
    assert unpack_call(packed[:-1]) is None and unpack_call(packed + b"x") is None and unpack_call(b"") is None
    assert unpack_call(packed[:1] + b"\x02" + packed[2:]) is None
    assert unpack_call(packed[:2] + b"\x01" + packed[3:]) is None
    assert unpack_call(packed[:-1] + b"\xff") is None


def test_stolen_guests_are_domains_of_their_own() -> None:
    """Two of them have two ids; each hears of its own messages only, and reaches the other as a neighbour."""
    world = World(STEAL)
    for guest in (world.guest, world.other):
        assert guest.bind_virq() > 0 and register(world, guest) == 0
    assert send(world, world.guest, OTHER, b"beside") == 6
    assert (interrupts(world.guest), interrupts(world.other)) == (0, 1)
    assert abi.MESSAGE_HEADER.unpack_from(world.other.ram, 16 * PAGE_SIZE + 64)[2] == STOLEN


def test_forwarded_guests_share_a_domain() -> None:
    """One id, one space of ports, one signal for all; but nobody's is what the hypervisor itself has there."""
    world = World(FORWARD)
    for guest in (world.guest, world.other):
        assert guest.bind_virq() > 0
    assert register(world, world.guest) == 0
    assert register(world, world.other, port=PORT + 1) == 0
    assert world.peer.send(CHILD, PORT + 1, b"shared") == 6
    assert (interrupts(world.guest), interrupts(world.other)) == (1, 1)
    assert world.other.ram[16 * PAGE_SIZE + 64 + 16 :][:6] == b"shared"
    assert world.nested.argo is not None
    call_as_hv1 = world.outer.core.argo.op
    scratch = world.nested.memory
    scratch.write(0, PAGE_SIZE, abi.REGISTER_RING.pack(DOWNLINK_PORT, DOMID_XEN, 0, 4032))
    scratch.write(0, 2 * PAGE_SIZE, abi.GFN.pack(8))
    assert call_as_hv1(world.nested, Op.REGISTER_RING, PAGE_SIZE, 2 * PAGE_SIZE, 1, 0) == 0
    abi.UNREGISTER_RING.pack_into(world.guest.ram, PAGE_SIZE, DOWNLINK_PORT, DOMID_XEN, 0)
    assert call(world, world.guest, Op.UNREGISTER_RING, PAGE_SIZE) == -int(Errno.ENOENT)
    assert (DOWNLINK_PORT, DOMID_XEN) in world.nested.argo.rings


@MODES
def test_the_death_of_a_guest(mode: str) -> None:
    """Its rings go at once, its id with it if it had one; what a neighbour has in the same domain stays."""
    world = World(mode)
    assert register(world, world.guest) == register(world, world.other, port=PORT + 1) == 0
    other = CHILD if mode == FORWARD else OTHER
    world.inner.core.kill_domain(7)
    assert world.peer.send(world.acts_as, PORT, b"x") == -int(Errno.ECONNREFUSED)
    assert world.peer.send(other, PORT + 1, b"x") == 1
    world.inner.core.free_domain(7)
    gone = -int(Errno.ECONNREFUSED) if mode == FORWARD else ESRCH
    assert world.peer.send(world.acts_as, PORT, b"x") == gone
    assert len(world.outer.level.wards) == 1
    again = world.inner.guest(7)
    with pytest.raises(ValueError, match="is dead"):
        world.lend("d7", again)


@MODES
def test_a_guest_that_comes_again(mode: str) -> None:
    """It is known to its hypervisor as the second of its name, and has an id that nobody had."""
    world = World(mode)
    world.inner.core.free_domain(7)
    again = Guest.__new__(Guest)
    again.machine, again.domid, again.ram = world.inner, 17, bytearray(END)
    areas = [memoryview(bytearray(AREA_SIZE))]
    again.hvm = world.inner.core.create_domain(17, MappedMemory(again.ram), areas, name="d7")
    assert world.inner.joint.lending() == [(8, "d8"), (17, "d7#2")]
    world.lend("d7#2", again)
    found = world.outer.level.guest("d7#2" if mode == STEAL else "hv1")
    assert found is not None and found.state is DomainState.ALIVE
    assert found.domid == (0x6000 if mode == STEAL else CHILD)


@MODES
def test_the_death_of_their_hypervisor(mode: str) -> None:
    """All its guests are dead for everybody, and their ids freed after the linger."""
    world = World(mode)
    assert register(world, world.guest) == 0
    world.outer.level.child_died("hv1", 0)
    world.outer.core.kill_domain(CHILD)
    assert world.peer.send(world.acts_as, PORT, b"x") == -int(Errno.ECONNREFUSED)
    assert len(world.outer.level.wards) == 0
    world.now = 10
    deadline = world.outer.level.next_deadline()
    assert deadline is not None and deadline <= world.now
    world.outer.level.on_timer(world.now)
    if mode == STEAL:
        assert world.domain() is None


@MODES
def test_exits_are_counted_at_every_level(mode: str) -> None:
    """What L1 forwards it has seen; what L0 steals it has not (hv_node/doors/composition)."""
    world = World(mode)
    call(world, world.guest, Op.NOTIFY)
    counters: Any = world.guest.hvm.counters
    assert (counters.exits_l0, counters.exits_l1) == ((1, 1) if mode == FORWARD else (1, 0))
