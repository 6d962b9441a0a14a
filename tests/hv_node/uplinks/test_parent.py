"""A nested hypervisor and its parent over the parent's Argo: doors, rings, order, bounds (hmx/nested.py)."""

from __future__ import annotations

import random

import pytest

from broker.envelope import EnvelopeKind
from hmx.argo.abi import DOMID_ANY, REGISTER_RING, RX_PTR, SEND_ADDR, TX_PTR, Address
from hmx.argo.producer import Producer
from hmx.argo.ring import ring_len_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hmx.nested import CHUNK_HEADER, DOMID_XEN, DOWNLINK_PORT, MESSAGE_TYPE, UPLINK_PORT
from hmx.trap import Arch
from hmx.vcpu_area import AREA_SIZE
from hv_node.uplinks import downlink, parent
from hv_node.uplinks.wire import Whole
from tests.hv_node.uplinks.rig import CHILD, MIB, Nest, envelope

MACHINES = (
    ("xen", Arch.X86_64, "intel", ("hypercall",)),
    ("xen", Arch.X86_64, "amd", ("hypercall",)),
    ("kvm", Arch.X86_64, "intel", ("hypercall",)),
    ("hyperv", Arch.X86_64, "intel", ("hypercall",)),
    ("xen", Arch.X86_64, "intel", ("msr",)),
    ("kvm", Arch.X86_64, "intel", ("pio", "mmio")),
    ("xen", Arch.AARCH64, "armv8", ("hvc",)),
    ("kvm", Arch.AARCH64, "armv8", ("smc",)),
)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine[0]}-{machine[2]}-{machine[3][0]}")
def test_it_comes_up_by_whatever_door(machine: tuple[str, Arch, str, tuple[str, ...]]) -> None:
    """One ring for each vCPU, under a policy that keeps guests apart, without mac-permissive; both ways carry."""
    nest = Nest(*machine, vcpus=3)
    nest.settle()
    assert nest.child.up
    assert nest.downlink.up
    argo = nest.hvm.domain.argo
    assert argo is not None
    assert sorted(argo.rings) == [(DOWNLINK_PORT + vcpu, DOMID_XEN) for vcpu in range(3)]
    assert nest.child.send(envelope(1), b"up")
    assert nest.downlink.send(envelope(2), b"down")
    nest.settle()
    assert [(found.cookie, payload) for found, payload in nest.risen] == [(1, b"up")]
    assert [(found.cookie, payload) for found, payload in nest.sunk] == [(2, b"down")]


def test_a_parent_without_a_door_is_none() -> None:
    """It says which doors it tried, rather than waiting for ever."""
    nest = Nest("vmware", doors=())
    with pytest.raises(parent.NoParent, match="none of its doors leads to Argo: msr"):
        nest.settle()


def test_what_is_sent_before_the_rings_are_there_waits() -> None:
    """The parent may speak first."""
    nest = Nest()
    assert nest.downlink.send(envelope(1), b"early")
    assert not nest.downlink.up
    assert not nest.child.send(envelope(2), b"too early")
    nest.settle()
    assert [payload for _, payload in nest.sunk] == [b"early"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("memory", [256 << 10, 4 * MIB])
def test_order_and_bytes_hold_both_ways(seed: int, memory: int) -> None:
    """Envelopes of any size, to any guest, with turns in any order: each arrives once, in order, whole."""
    chance = random.Random(seed)
    nest = Nest(memory=memory, vcpus=3)
    nest.settle()
    up: list[bytes] = []
    down: list[bytes] = []
    while len(up) + len(down) < 120:
        payload = chance.randbytes(chance.choice((0, 1, 64, 5000, 100_000)))
        dst = ("hv0", "hv1", chance.choice("abcdef"))
        match chance.randrange(5):
            case 0 if nest.child.send(envelope(len(up), dst=dst), payload):
                up.append(payload)
            case 1 if nest.downlink.send(envelope(len(down), dst=dst), payload):
                down.append(payload)
            case 2:
                nest.child.turn(nest.now)
            case 3:
                nest.serve(chance.choice(nest.hvm.vcpus))
            case _:
                nest.takes = chance.random() < 0.7
                if nest.takes:
                    nest.downlink.room()
    nest.takes = True
    nest.downlink.room()
    nest.settle()
    assert [found.cookie for found, _ in nest.risen] == list(range(len(up)))
    assert [found.cookie for found, _ in nest.sunk] == list(range(len(down)))
    assert [payload for _, payload in nest.risen] == up
    assert [payload for _, payload in nest.sunk] == down
    assert nest.events == []


def test_a_parent_that_takes_nothing_only_delays() -> None:
    """The chain stands still after the first refusal; it goes on at the parent's word, or after a while without."""
    nest = Nest()
    nest.settle()
    nest.takes = False
    for number in range(20):
        assert nest.child.send(envelope(number))
    nest.settle()
    assert nest.child.counters["turned away"] == 1
    assert nest.child.next_deadline() == parent.AGAIN_NS
    assert nest.risen == []
    nest.takes = True
    nest.downlink.room()
    nest.settle()
    assert [found.cookie for found, _ in nest.risen] == list(range(20))
    nest.takes = False
    assert nest.child.send(envelope(20))
    nest.settle()
    nest.takes = True
    nest.settle()
    assert len(nest.risen) == 20
    nest.now += parent.AGAIN_NS
    nest.settle()
    assert len(nest.risen) == 21


def test_queues_are_bounded_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped parent makes `send` refuse, and `on_room` follows once it goes on."""
    monkeypatch.setattr(parent, "QUEUE_RECORDS", 30)
    nest = Nest()
    nest.settle()
    told: list[int] = []
    nest.child.on_room = lambda: told.append(1)
    taken = 0
    while nest.child.send(envelope(taken)):
        taken += 1
    assert 30 <= taken <= 30 + 64
    assert nest.child.turn(0) is False
    assert told == []
    nest.settle()
    assert told == [1]
    assert [found.cookie for found, _ in nest.risen] == list(range(taken))


def test_queues_are_bounded_downwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that never empties its rings costs its parent a bounded queue; what waits arrives when it goes on."""
    monkeypatch.setattr(downlink, "QUEUE_RECORDS", 30)
    nest = Nest(vcpus=1)
    nest.settle()
    taken = 0
    while nest.downlink.send(envelope(taken), bytes(60_000)):
        taken += 1
    assert nest.downlink.counters["full"]
    assert nest.room == 0
    nest.settle()
    assert nest.room == 1
    assert [found.cookie for found, _ in nest.sunk] == list(range(taken))


def test_answers_have_room_where_requests_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two levels, each full of requests, would wait for each other's answers."""
    monkeypatch.setattr(downlink, "QUEUE_RECORDS", 4)
    monkeypatch.setattr(parent, "QUEUE_RECORDS", 4)
    nest = Nest(vcpus=1)
    nest.settle()
    while nest.downlink.send(envelope(0), bytes(60_000)):
        pass
    while nest.child.send(envelope(0)):
        pass
    assert nest.downlink.send(envelope(1, kind=EnvelopeKind.RESULT))
    assert nest.child.send(envelope(1, kind=EnvelopeKind.RESULT))


def test_the_child_sleeps_and_is_rung() -> None:
    """No word is lost between the last look and the sleep; a message, and room, ring the bell."""
    nest = Nest(vcpus=2)
    nest.settle()
    assert nest.child.sleep()
    nest.parent.bells.clear()
    nest.downlink.send(envelope(1), b"wake")
    assert nest.parent.bells
    nest.child.awake()
    nest.settle()
    assert len(nest.sunk) == 1
    nest.downlink.send(envelope(2), b"before")
    assert not nest.child.sleep(), "something is there already"


def test_a_parent_that_sleeps_is_rung() -> None:
    """The parent polls a vCPU only while it is awake."""
    nest = Nest()
    nest.settle()
    for vcpu in nest.hvm.vcpus:
        assert vcpu.area.sleep()
    nest.rung.clear()
    nest.child.send(envelope(1))
    assert nest.rung == [0]


# ---- strangers ----


def test_only_a_nested_hypervisor_has_the_rings_and_the_port() -> None:
    """For a guest, 0x7FF2 and the uplink port are what they are upstream: nobody's."""
    nest = Nest()
    nest.settle()
    ram = bytearray(MIB)
    guest = nest.parent.create_domain(7, MappedMemory(ram), [memoryview(bytearray(AREA_SIZE))]).domain
    ram[0x1000:0x100C] = REGISTER_RING.pack(DOWNLINK_PORT, DOMID_XEN, 0, 4096 - 64)
    ram[0x1100:0x1108] = (5).to_bytes(8, "little")
    argo = nest.parent.argo
    assert argo.op(guest, 1, 0x1000, 0x1100, 1, 0) == -Errno.ESRCH
    ram[0x1000:0x1010] = SEND_ADDR.pack(1, DOMID_ANY, 0, UPLINK_PORT, DOMID_ANY, 0)
    assert argo.op(guest, 3, 0x1000, 0, 0, 0) == -Errno.ESRCH
    ram[0x1000:0x1010] = SEND_ADDR.pack(1, DOMID_ANY, 0, DOWNLINK_PORT, CHILD, 0)
    assert argo.op(guest, 3, 0x1000, 0, 0, 0) in (-Errno.ECONNREFUSED, -Errno.EPERM)


def test_a_hostile_child_is_refused_and_does_not_stop_its_parent() -> None:
    """Foreign types, short and bent chunks answer -EINVAL; what is right afterwards is taken."""
    nest = Nest()
    nest.settle()
    link = nest.downlink
    assert link.upcall(b"x" * 100, 0) == -Errno.EINVAL
    for message in (b"", b"x", bytes(CHUNK_HEADER.size), CHUNK_HEADER.pack(99, 10, 0, 5) + b"0123456789"):
        assert link.upcall(message, MESSAGE_TYPE) == -Errno.EINVAL
    assert link.counters["malformed"] == 4
    assert nest.child.send(envelope(1))
    nest.settle()
    assert len(nest.risen) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_child_that_scribbles_over_its_rings_hurts_itself_only(seed: int) -> None:
    """Pointers and bytes of its downlink rings at random: the parent goes on, and its queue stays bounded."""
    chance = random.Random(seed)
    nest = Nest(memory=256 << 10, vcpus=1)
    nest.settle()
    first = nest.child._placed.first_ring * 4096
    for number in range(300):
        nest.downlink.send(envelope(number), bytes(chance.randrange(4000)))
        at = first + chance.choice((RX_PTR, TX_PTR, 64 + 16 * chance.randrange(100)))
        nest.ram[at : at + 4] = chance.randbytes(4)
        nest.child.turn(nest.now)
        nest.serve()
    assert len(nest.downlink._held) <= downlink.QUEUE_RECORDS


def test_only_the_hypervisor_itself_is_listened_to() -> None:
    """A message of another source in a downlink ring is no envelope, however it came there."""
    nest = Nest(vcpus=1)
    nest.settle()
    (message,) = Whole(envelope(1), b"x").chunks(0, 4096)
    placed = nest.child._placed
    window = Window(nest.ram, placed.first_ring * PAGE_SIZE, placed.ring_pages * PAGE_SIZE)
    ring = Producer(window, ring_len_for(placed.ring_pages))
    for source, kind in ((Address(UPLINK_PORT, 3), MESSAGE_TYPE), (Address(UPLINK_PORT, DOMID_XEN), 7)):
        assert ring.put(source, kind, [message])
    nest.settle()
    assert nest.sunk == []
    assert [code for code, *_ in nest.events] == ["downlink-malformed"] * 2
    assert ring.put(Address(UPLINK_PORT, DOMID_XEN), MESSAGE_TYPE, [message])
    nest.settle()
    assert [payload for _, payload in nest.sunk] == [b"x"]


def test_a_second_life_starts_afresh() -> None:
    """What the dead child did not get is lost; its successor counts from 0."""
    nest, heir = Nest(), Nest()
    nest.settle()
    nest.downlink.send(envelope(1), b"lost")
    nest.downlink.detach()
    assert nest.downlink.counters["lost"] == 0, "it lay in the ring already"
    assert not nest.downlink.up
    assert not nest.downlink.send(envelope(2))
    heir.settle()
    nest.downlink.attach(heir.hvm.domain, 2)
    assert nest.downlink.send(envelope(3), b"again")
    heir.settle()
    assert [payload for _, payload in heir.sunk] == [b"again"]
