"""MSI decoding and routing: rules that the golden rows leave out.

Sources: Intel SDM vol. 3A 10.11; Xen arch/x86/hvm/irq.c hvm_inject_msi, vmsi.c vmsi_deliver, vlapic.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.cpu.apic_regs import CLUSTER, FLAT, ApicAddress, DeliveryMode, x2apic_address
from hmx.errno import Errno
from hmx.vcpu_area import Post
from hv_node.interrupts import msi
from hv_node.interrupts.msi import Msi, Part

BASE: Final = 0xFEE0_0000
LOGICAL: Final = 1 << 2
HINT: Final = 1 << 3
LOWEST: Final = 0x100
FOUR: Final = tuple(ApicAddress(index, 1 << index, FLAT) for index in range(4))


def message(address: int, data: int = 0x41, extended: bool = False) -> Msi:
    """A message that must decode."""
    found = msi.decode(address, data, extended)
    assert isinstance(found, Msi)
    return found


def physical(destination: int, data: int = 0x41, extended: bool = False) -> Msi:
    """A message to an 8-bit id, or with `extended` a 15-bit one."""
    return message(BASE | (destination & 0xFF) << 12 | destination >> 8 << 5, data, extended)


def test_every_field_of_a_message() -> None:
    """SDM 10.11.1, 10.11.2: each field alone, all ones."""
    expected = {
        "upper": (0xFFFF_FFFF_0000_0000, 0),
        "base": (0xFFF0_0000, 0),
        "destination": (0x000F_F000, 0),
        "extended": (0x0000_0FE0, 0),
        "remappable": (0x10, 0),
        "redirection_hint": (0x8, 0),
        "logical": (0x4, 0),
        "vector": (0, 0xFF),
        "delivery_mode": (0, 0x700),
        "assert": (0, 0x4000),
        "level": (0, 0x8000),
    }
    assert [row.name for row in msi.FIELDS] == list(expected)
    for row in msi.FIELDS:
        width = row.high - row.low + 1
        found = msi.fields(*expected[row.name])
        assert found.pop(row.name) == (1 << width) - 1
        assert set(found.values()) == {0}
        assert row.part is (Part.DATA if expected[row.name][1] else Part.ADDRESS)
        assert row.source


@pytest.mark.parametrize(
    "address", [0, 0xFED0_0000, 0xFEF0_0000, 0xFFE0_0000, 0x7EE0_0000, BASE | 0x10, 1 << 32 | BASE, 1 << 63 | BASE]
)
def test_what_is_no_msi_address(address: int) -> None:
    """SDM 10.11.1: 0xFEE in bits 31:20, below 4 GiB; VT-d 5.1.2.2: bit 4 asks for a remapping unit."""
    assert msi.decode(address, 0x41) == -Errno.EINVAL
    assert msi.decode(address, 0x41, extended=True) == -Errno.EINVAL


@pytest.mark.parametrize("address", [BASE | 1, BASE | 2, BASE | 3])
@pytest.mark.parametrize("data", [0x41, 0xFFFF_0041, 0x3841])
def test_reserved_bits_that_nobody_looks_at(address: int, data: int) -> None:
    """SDM 10.11.1: 1:0 don't care; 10.11.2: data 31:16 and 13:11 reserved (Xen masks them out)."""
    assert message(address, data) == message(BASE, 0x41)


def test_decoded_fields_reach_the_message() -> None:
    """All at once, no two alike."""
    assert message(BASE | 0x5A << 12 | LOGICAL, 0xC000 | 0x93) == Msi(
        destination=0x5A,
        logical=True,
        redirection_hint=False,
        vector=0x93,
        mode=DeliveryMode.FIXED,
        level=True,
        asserted=True,
        extended=False,
    )
    assert message(BASE | 0x5A << 12 | HINT, 0x8100 | 0x93) == Msi(
        destination=0x5A,
        logical=False,
        redirection_hint=True,
        vector=0x93,
        mode=DeliveryMode.LOWEST_PRIORITY,
        level=True,
        asserted=False,
        extended=False,
    )


@pytest.mark.parametrize(
    ("mode", "vectored", "post", "answer"),
    [
        (DeliveryMode.FIXED, True, Post.VECTOR, (1,)),
        (DeliveryMode.LOWEST_PRIORITY, True, Post.VECTOR, (1,)),
        (DeliveryMode.SMI, False, None, -Errno.EINVAL),
        (DeliveryMode.NMI, False, Post.NMI, -Errno.EINVAL),
        (DeliveryMode.INIT, False, None, -Errno.EINVAL),
        (DeliveryMode.EXTINT, False, Post.EXTINT, -Errno.EINVAL),
    ],
)
def test_delivery_modes(mode: DeliveryMode, vectored: bool, post: Post | None, answer: tuple[int, ...] | int) -> None:
    """SDM 10.11.2 names six modes; Xen's vmsi_deliver takes two, the others are EINVAL whoever is addressed."""
    found = physical(1, 0x41 | mode << 8)
    assert (found.mode, found.post) == (mode, post)
    assert msi.inject(found, FOUR) == answer
    assert msi.targets(found, FOUR) == (1,)
    if answer == -Errno.EINVAL:
        assert msi.inject(physical(9, 0x41 | mode << 8), FOUR) == -Errno.EINVAL
    for vector in range(16):
        assert isinstance(msi.decode(BASE, vector | mode << 8), Msi) is not vectored
    assert isinstance(msi.decode(BASE, 16 | mode << 8), Msi)


def test_a_refused_mode_has_no_answer_for_nobody() -> None:
    """Xen looks at the mode before it looks for targets: such a cell would say nothing."""
    assert all(row.nobody == 0 for row in msi.MODES if row.xen)
    assert all(row.source for row in msi.MODES)


@pytest.mark.parametrize("mode", [3, 6])
def test_reserved_modes(mode: int) -> None:
    """SDM 10.11.2: 011 and 110."""
    assert msi.decode(BASE, 0x41 | mode << 8) == -Errno.EINVAL


def test_nobody() -> None:
    """Xen vmsi_deliver: a fixed message to an unknown id succeeds and reaches no one, lowest priority is ESRCH."""
    assert msi.inject(physical(9), FOUR) == ()
    assert msi.inject(physical(9, LOWEST | 0x41), FOUR) == -Errno.ESRCH
    assert msi.targets(physical(9), FOUR) == ()
    assert msi.inject(physical(0), ()) == ()


@pytest.mark.parametrize("apics", [FOUR, tuple(x2apic_address(index) for index in range(4))])
def test_physical_broadcast(apics: Sequence[ApicAddress]) -> None:
    """SDM 10.6.2.1: 0xFF in an 8-bit destination is everybody, in x2APIC mode too, where no MSI can say FFFFFFFFH."""
    assert msi.targets(physical(0xFF), apics) == (0, 1, 2, 3)


def test_with_extended_ids_255_is_an_id() -> None:
    """15-bit destinations: 0xFF names x2APIC 255; an xAPIC still compares with 0xFF and takes it as broadcast."""
    apics = (x2apic_address(0), x2apic_address(255), x2apic_address(0x1FF), ApicAddress(3, 8, FLAT))
    assert msi.targets(physical(0xFF, extended=True), apics) == (1, 3)
    assert msi.targets(physical(0x1FF, extended=True), apics) == (2,)
    assert msi.targets(physical(0x103, extended=True), apics) == ()
    assert msi.targets(physical(0xFF), apics) == (0, 1, 2, 3)


def test_logical_formats() -> None:
    """SDM 10.6.2.2, 10.12.10.2: flat members, cluster members, and members 0-7 (0-14) of x2APIC cluster 0."""
    cluster = (ApicAddress(0, 0x11, CLUSTER), ApicAddress(1, 0x12, CLUSTER), ApicAddress(2, 0x21, CLUSTER))
    assert msi.targets(message(BASE | 0x13 << 12 | LOGICAL), cluster) == (0, 1)
    assert msi.targets(message(BASE | 0xFF << 12 | LOGICAL), cluster) == (0, 1, 2)
    x2apic = tuple(x2apic_address(apic_id) for apic_id in (0, 7, 14, 16))
    assert msi.targets(message(BASE | 0x81 << 12 | LOGICAL), x2apic) == (0, 1)
    assert msi.targets(message(BASE | 0xFF << 12 | LOGICAL), x2apic) == (0, 1)
    assert msi.targets(message(BASE | 0x40 << 5 | 0x80 << 12 | LOGICAL, extended=True), x2apic) == (1, 2)


def test_a_disabled_apic_is_left_out() -> None:
    """Xen since 4.17: a software-disabled local APIC accepts no MSI, and lowest priority passes it by."""
    apics = (FOUR[0]._replace(enabled=False), *FOUR[1:])
    everybody = BASE | 0xFF << 12
    assert msi.targets(message(everybody), apics) == (1, 2, 3)
    assert msi.targets(message(everybody | LOGICAL), apics) == (1, 2, 3)
    assert msi.targets(message(everybody, LOWEST | 0x41), apics) == (1,)
    assert msi.inject(physical(0, LOWEST | 0x41), apics) == -Errno.ESRCH


def test_lowest_priority_is_round_robin() -> None:
    """Xen vlapic_lowest_prio: equal priorities go to the next vCPU after the last one chosen."""
    some = message(BASE | 0b1101 << 12 | LOGICAL, LOWEST | 0x41)
    previous, chosen = -1, []
    for _ in range(6):
        (previous,) = msi.targets(some, FOUR, previous)
        chosen.append(previous)
    assert chosen == [0, 2, 3, 0, 2, 3]
    assert msi.targets(some, FOUR, 1) == (2,)
    assert msi.inject(some, FOUR, 2) == (3,)


def test_lowest_priority_looks_at_the_ppr_first() -> None:
    """Xen vlapic_lowest_prio: the lowest PPR, all eight bits, wins wherever the round stands."""
    apics = tuple(apic._replace(ppr=ppr) for apic, ppr in zip(FOUR, (0x40, 0x31, 0x30, 0x30), strict=True))
    everybody = message(BASE | 0xF << 12 | LOGICAL, LOWEST | 0x41)
    assert msi.targets(everybody, apics, -1) == (2,)
    assert msi.targets(everybody, apics, 2) == (3,)
    assert msi.targets(everybody, apics, 3) == (2,)
    assert msi.targets(message(BASE | 0b0011 << 12 | LOGICAL, LOWEST | 0x41), apics, 0) == (1,)


def test_redirection_hint() -> None:
    """SDM 10.11.1: with a logical destination one processor of the group, with a physical one no redirection."""
    assert msi.targets(message(BASE | 0b0110 << 12 | LOGICAL | HINT), FOUR) == (1,)
    assert msi.targets(message(BASE | 0b0110 << 12 | LOGICAL | HINT), FOUR, 1) == (2,)
    assert msi.targets(message(BASE | 0b0110 << 12 | LOGICAL), FOUR) == (1, 2)
    assert msi.targets(message(BASE | 0xFF << 12 | HINT), FOUR) == (0, 1, 2, 3)


@given(
    st.integers(0, (1 << 64) - 1) | st.integers(0, 0xF_FFFF).map(lambda low: BASE | low), st.integers(0, 0xFFFF_FFFF)
)
def test_no_message_is_a_surprise(address: int, data: int) -> None:
    """Whatever a guest writes: an errno, or targets among the vCPUs, ascending, one for lowest priority."""
    for extended in (False, True):
        found = msi.decode(address, data, extended)
        if isinstance(found, int):
            assert found == -Errno.EINVAL
            continue
        assert 0 <= found.destination < (1 << 15 if extended else 1 << 8)
        answer = msi.inject(found, FOUR)
        if isinstance(answer, int):
            assert answer in (-Errno.EINVAL, -Errno.ESRCH)
            continue
        assert found.vector >= 16
        assert list(answer) == sorted(set(answer) & set(range(4)))
        assert found.mode is DeliveryMode.FIXED or len(answer) == 1
