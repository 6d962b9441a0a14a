"""How a guest asks to be interrupted for Argo: what each mode turns a message into, and what is refused.

Rules: hmx/notify.py (experimental); Intel SDM vol. 3A 10.11 and Xen hvm_inject_msi for messages.
"""

from __future__ import annotations

import struct
from copy import deepcopy
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.argo.abi import DOMID_ANY, GFN, MAX_RINGS_PER_DOMAIN, Op, RegisterFlag
from hmx.cpu.apic_regs import FIRST_LEGAL_VECTOR
from hmx.doors import DESCRIBE, DOOR_CALL, DoorFeature
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.notify import FIRST_VECTOR, LINE_IRQ, MODES, REGISTER_RING_EX, Mode, ModeRow, NotifyOp
from hmx.trap import Arch, Kind
from hmx.vcpu_area import Post, post_entry
from hv_node.interrupts.notification import Notification
from tests.doubles.machine import Guest, Machine

BASE: Final = 0xFEE0_0000
LOGICAL: Final = 1 << 2
HINT: Final = 1 << 3
LOWEST: Final = 0x100
PORT: Final = 0x64
ALL_MODES: Final = tuple(row.name for row in MODES)
EINVAL, EFAULT, ESRCH, EEXIST, EOPNOTSUPP = (
    -Errno.EINVAL, -Errno.EFAULT, -Errno.ESRCH, -Errno.EEXIST, -Errno.EOPNOTSUPP,
)  # fmt: skip
ROWS = pytest.mark.parametrize("row", MODES, ids=lambda row: row.name)


def to(apic: int) -> int:
    """The address of a message to a physical APIC id of up to 15 bits."""
    return BASE | (apic & 0xFF) << 12 | apic >> 8 << 5


def two(*notifications: str) -> tuple[Guest, Guest]:
    """A sender with four vCPUs, and a receiver with two."""
    machine = Machine(notifications=notifications)
    return machine.guest(1, vcpus=4), machine.guest(2, vcpus=2)


def register(guest: Guest, address: int, data: int, **other: int) -> int:
    """REGISTER_RING_EX of a ring of 4032 bytes; `other` replaces fields and arguments."""
    field = {"port": PORT, "partner": DOMID_ANY, "pad": 0, "len": 4032, "flags": 0, "pad2": 0, "npages": 1, "how": 0}
    field.update(other)
    REGISTER_RING_EX.pack_into(
        guest.ram, PAGE_SIZE, field["port"], field["partner"], field["pad"], field["len"], field["flags"],
        address, data, field["pad2"],
    )  # fmt: skip
    GFN.pack_into(guest.ram, 3 * PAGE_SIZE, 16)
    at = other.get("at", PAGE_SIZE)
    return guest.argo(NotifyOp.REGISTER_RING_EX, at, 3 * PAGE_SIZE, field["npages"], field["how"])


def choose(guest: Guest, mode: int, vcpu: int = 0, vector: int = 0) -> int:
    return guest.argo(NotifyOp.SET_NOTIFICATION, mode, vcpu, vector)


def posts(guest: Guest) -> list[tuple[int, int]]:
    """(vCPU, entry) of all that was posted."""
    return [(index, side.take_post()) for index, side in enumerate(guest.sides) for _ in range(side.posted())]


def vector(number: int) -> int:
    return post_entry(Post.VECTOR, number)


def state(guest: Guest) -> Any:
    argo = guest.hvm.domain.argo
    assert argo is not None
    chosen = guest.hvm.notification
    return deepcopy((chosen.mode, chosen.per_vcpu, chosen.of_ring, chosen.home, chosen.active, list(argo.rings)))


# -- the modes ----


def ask(guest: Guest, row: ModeRow, port: int) -> int:
    """Ask for the mode of `row`: by one call for the domain, or with the ring."""
    if row.mode is None:
        return register(guest, to(1), 0x51)
    return choose(guest, row.mode, 1, 0xD1) or guest.register(PORT) or port


@ROWS
def test_what_a_message_is_turned_into(row: ModeRow) -> None:
    """Every row of the table, offered alone."""
    sender, receiver = two(row.name)
    port = receiver.bind_virq()
    assert port > 0 and ask(receiver, row, 0) == 0
    assert sender.send(2, PORT, b"x") == 1
    expected = {
        "virq": (0, post_entry(Post.PORT, port)), "line": (0, post_entry(Post.EXTINT, LINE_IRQ)),
        "vector-per-cpu": (1, vector(0xD1)), "vector-per-ring": (1, vector(0x51)),
        "vectors-by-priority": (1, vector(0x51)),
    }  # fmt: skip
    assert posts(receiver) == [expected[row.name]]
    counters = receiver.hvm.counters
    assert (counters.interrupts_raised, counters.interrupts_posted) == (1, 1)
    assert sender.send(2, PORT, b"y") == 1 and posts(receiver) == [expected[row.name]]


@ROWS
def test_a_mode_that_is_not_offered_is_unknown(row: ModeRow) -> None:
    """-EOPNOTSUPP, as upstream answers an operation that it does not know; VIRQ_ARGO is no exception."""
    others = tuple(name for name in ALL_MODES if name != row.name and (row.mode is not None or "line" in name))
    for offered in (others, ()):
        _, receiver = two(*offered)
        before = state(receiver)
        if row.mode is None:
            assert register(receiver, to(0), 0x41) == EOPNOTSUPP
            assert register(receiver, 0, 0, at=1 << 40) == EOPNOTSUPP, "before anything is looked at"
        else:
            assert choose(receiver, row.mode, 0, 0x41) == EOPNOTSUPP
        assert state(receiver) == before


@ROWS
def test_what_is_offered_is_told(row: ModeRow) -> None:
    """The feature bit of each mode, in the answer of a door to DESCRIBE."""
    told = DoorFeature.ARGO | DoorFeature.NOTIFICATION | row.feature
    for offered, expected in (((row.name,), told), ((), DoorFeature.ARGO)):
        guest = Machine(personality="kvm", doors=("cpuid",), notifications=offered).guest(1)
        done = guest.trap(Kind.CPUID, (DOOR_CALL, 0, 0, 0, 0, DESCRIBE), address=DOOR_CALL)
        assert done.regs[4] == expected
    assert len({each.feature for each in MODES}) == len(MODES)


def test_a_domain_without_event_channels_needs_none() -> None:
    """Room in a peer's ring is told by the domain's own choice, not by that of the ring."""
    sender, receiver = two(*ALL_MODES)
    assert register(receiver, to(0), 0x41, len=128) == 0
    assert choose(sender, Mode.VECTOR_PER_CPU, 3, 0xD0) == 0
    while sender.send(2, PORT, b"x" * 32) == 32:
        pass
    ring = receiver.ram[16 * PAGE_SIZE :]
    struct.pack_into("<I", receiver.ram, 16 * PAGE_SIZE, struct.unpack_from("<I", ring, 4)[0])  # rx := tx
    assert receiver.argo(Op.NOTIFY, 0, 0, 0, 0) == 0
    assert posts(sender) == [(3, vector(0xD0))]


def test_registering_anew_changes_the_interrupt() -> None:
    """To another vCPU and vector; by plain register_ring to none; unregistered, it is forgotten."""
    sender, receiver = two("vector-per-ring")
    port = receiver.bind_virq()
    for apic, number in ((0, 0x41), (1, 0x41), (1, 0x99)):
        assert register(receiver, to(apic), number) == 0
        sender.send(2, PORT, b"x")
        assert posts(receiver) == [(apic, vector(number))]
    assert receiver.register(PORT) == 0
    sender.send(2, PORT, b"x")
    assert posts(receiver) == [(0, post_entry(Post.PORT, port))]
    assert register(receiver, to(1), 0x42) == 0
    struct.pack_into("<IHH", receiver.ram, PAGE_SIZE, PORT, DOMID_ANY, 0)
    assert receiver.argo(Op.UNREGISTER_RING, PAGE_SIZE, 0, 0, 0) == 0
    assert not receiver.hvm.notification.active and not receiver.hvm.notification.of_ring


def test_rings_share_a_vector_and_coalesce() -> None:
    """One entry while it is unconsumed; the counters say what became of each."""
    sender, receiver = two("vector-per-ring")
    for number in range(3):
        assert register(receiver, to(1), 0x41, port=PORT + number) == 0
    for number in range(3):
        assert sender.send(2, PORT + number, b"x") == 1
    assert posts(receiver) == [(1, vector(0x41))]
    counters = receiver.hvm.counters
    assert (counters.interrupts_raised, counters.interrupts_posted, counters.interrupts_coalesced) == (3, 1, 2)


# -- what is accepted and what is refused ----

ACCEPTED = [
    ("the lowest vector", to(0), 0x10, (0, 0x10)),
    ("the highest vector", to(0), 0xFF, (0, 0xFF)),
    ("the other vCPU", to(1), 0x41, (1, 0x41)),
    ("asserted, which means nothing on an edge", to(0), 0x4041, (0, 0x41)),
    ("one logical member", BASE | LOGICAL | 0b10 << 12, 0x41, (1, 0x41)),
    ("lowest priority: the lowest index, once for all", BASE | LOGICAL | 0b11 << 12, 0x41 | LOWEST, (0, 0x41)),
    ("redirected: the same", BASE | LOGICAL | HINT | 0b11 << 12, 0x41, (0, 0x41)),
    ("lowest priority to one", to(1), 0x41 | LOWEST, (1, 0x41)),
]
REFUSED = [
    *((f"vector {number}", to(0), number, EINVAL) for number in (0, 1, 8, 15)),
    *((f"vector {number}, lowest priority", to(0), number | LOWEST, EINVAL) for number in (0, 15)),
    *((f"APIC id {apic:#x}", to(apic), 0x41, EINVAL) for apic in (2, 3, 0xFE, 0xFF, 0x100, 0x101, 0x7FFF)),
    *((f"APIC id {apic:#x}, lowest priority", to(apic), 0x41 | LOWEST, ESRCH) for apic in (2, 0xFF, 0x7FFF)),
    ("logical: nobody", BASE | LOGICAL, 0x41, EINVAL),
    ("logical: no member of this domain", BASE | LOGICAL | 0b100 << 12, 0x41, EINVAL),
    ("fixed to several", BASE | LOGICAL | 0b11 << 12, 0x41, EINVAL),
    ("SMI", to(0), 0x241, EINVAL),
    ("reserved delivery mode 3", to(0), 0x341, EINVAL),
    ("NMI", to(0), 0x441, EINVAL),
    ("INIT", to(0), 0x541, EINVAL),
    ("reserved delivery mode 6", to(0), 0x641, EINVAL),
    ("ExtINT", to(0), 0x741, EINVAL),
    ("level, asserted", to(0), 0xC041, EINVAL),
    ("level, not asserted", to(0), 0x8041, EINVAL),
    ("level, lowest priority", to(0), 0xC041 | LOWEST, EINVAL),
    *((f"address {at:#x}", at, 0x41, EINVAL) for at in (
        0, 0xFED0_0000, 0xFEF0_0000, 0xFEE0_0010, 1 << 32 | BASE, 1 << 63 | BASE, 0xFFFF_FFFF_FFFF_FFFF, PAGE_SIZE,
    )),
]  # fmt: skip


@pytest.mark.parametrize(("address", "data", "expected"), [pytest.param(*row[1:], id=row[0]) for row in ACCEPTED])
def test_a_message_that_is_taken(address: int, data: int, expected: tuple[int, int]) -> None:
    """Fixed to one vCPU, or arbitrated to one; edge-triggered; a vector from 16 on."""
    sender, receiver = two("vector-per-ring")
    assert register(receiver, address, data) == 0
    sender.send(2, PORT, b"x")
    assert posts(receiver) == [(expected[0], vector(expected[1]))]


@pytest.mark.parametrize(("address", "data", "errno"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_a_message_that_is_refused(address: int, data: int, errno: int) -> None:
    """With its errno; no ring is registered, and one that has an interrupt keeps it.

    The sender's domain has the vCPUs 2 and 3 that some of these name: a ring reaches only its owner's.
    """
    sender, receiver = two("vector-per-ring")
    before = state(receiver)
    assert register(receiver, address, data) == errno
    assert state(receiver) == before
    assert register(receiver, to(1), 0x77) == 0
    before = state(receiver)
    assert register(receiver, address, data) == errno
    assert state(receiver) == before
    sender.send(2, PORT, b"x")
    assert posts(receiver) == [(1, vector(0x77))] and posts(sender) == []


@pytest.mark.parametrize(
    ("other", "errno"),
    [
        ({"flags": 1}, EINVAL), ({"flags": 1 << 31}, EINVAL), ({"pad2": 1}, EINVAL), ({"pad": 1}, EINVAL),
        ({"at": 1 << 40}, EFAULT), ({"at": 64 * PAGE_SIZE - 31}, EFAULT), ({"at": 0xFFFF_FFFF_FFFF_FFFF}, EFAULT),
        ({"len": 4033}, EINVAL), ({"len": 0}, EINVAL), ({"npages": 2}, EINVAL), ({"npages": 4097}, EINVAL),
        ({"partner": 77}, ESRCH), ({"how": 2}, EINVAL), ({"how": int(RegisterFlag.FAIL_EXIST)}, EEXIST),
    ],
    ids=str,
)  # fmt: skip
def test_what_else_is_refused(other: dict[str, int], errno: int) -> None:
    """The structure, its reserved fields, then whatever register_ring refuses; the interrupt stays as it was."""
    sender, receiver = two("vectors-by-priority")
    assert register(receiver, to(1), 0x77) == 0
    before = state(receiver)
    assert register(receiver, to(0), 0x41, **other) == errno
    assert state(receiver) == before
    sender.send(2, PORT, b"x")
    assert posts(receiver) == [(1, vector(0x77))]


HUGE: Final = (1 << 31, 1 << 32, (1 << 32) + 0x41, 1 << 63, (1 << 64) - 1)
ABSURD = [
    *((mode, 0, 0x41) for mode in (3, 4, 255, *HUGE)),
    *((mode, vcpu, 0x41) for mode in (0, 1, 2) for vcpu in (2, 255, *HUGE)),
    *((2, 0, number) for number in (0, 1, 15, 256, 0xFFFF, *HUGE)),
]


@pytest.mark.parametrize(("mode", "vcpu", "number"), ABSURD)
def test_an_absurd_choice_changes_nothing(mode: int, vcpu: int, number: int) -> None:
    """-EINVAL: no such mode, no vCPU of this domain, or no vector that a local APIC accepts."""
    sender, receiver = two(*ALL_MODES)
    assert choose(receiver, Mode.VECTOR_PER_CPU, 1, 0x88) == 0 and receiver.register(PORT) == 0
    before = state(receiver)
    assert choose(receiver, mode, vcpu, number) == EINVAL
    assert state(receiver) == before
    sender.send(2, PORT, b"x")
    assert posts(receiver) == [(1, vector(0x88))]


@pytest.mark.parametrize("number", [16, 31, 32, 255])
def test_a_vector_is_legal_for_a_vcpu_as_for_a_ring(number: int) -> None:
    """16 to 255 (Intel SDM vol. 3A 10.5.2; issue: a vector < 16 is refused): both operations take the same."""
    sender, receiver = two(*ALL_MODES)
    assert choose(receiver, Mode.VECTOR_PER_CPU, 1, number) == 0 and receiver.register(PORT) == 0
    assert sender.send(2, PORT, b"x") == 1
    assert posts(receiver) == [(1, vector(number))]
    assert register(receiver, to(0), number, port=PORT + 1) == 0
    assert FIRST_VECTOR == FIRST_LEGAL_VECTOR == 16


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_message_is_taken_for_an_own_vcpu_or_refused(address: int, data: int) -> None:
    """Nothing that a guest may write reaches beyond its vCPUs and the legal vectors, or raises."""
    for at in (address, BASE | address & 0xFFFFF):
        found = Notification(Arch.X86_64, 2, ALL_MODES).own_target(at, data)
        if isinstance(found, tuple):
            vcpu, entry = found
            assert vcpu in (0, 1) and entry >> 24 == Post.VECTOR and 16 <= entry & 0xFF_FFFF <= 255
            assert not data & 0x8000
        else:
            assert found in (EINVAL, ESRCH)


def test_a_guest_that_rewrites_its_request_fills_no_memory() -> None:
    """The structure is read here and by register_ring: entries for rings that do not exist are bounded."""
    chosen = Notification(Arch.X86_64, 1, ALL_MODES)
    ram = bytearray(PAGE_SIZE)
    memory = MappedMemory(ram)
    for port in range(1000):
        REGISTER_RING_EX.pack_into(ram, 0, port, 1, 0, 4032, 0, to(0), 0x41, 0)
        assert chosen.register(memory, 0, 0, 0, lambda: 0) == 0
    assert len(chosen.home) == len(chosen.of_ring) == MAX_RINGS_PER_DOMAIN
    assert chosen.target((999, 1)) == (0, vector(0x41)) and chosen.target((0, 1)) is None
