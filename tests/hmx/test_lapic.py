"""The local APIC's register map, errors, commands and destinations: rules that the golden rows leave out.

Sources are sections of the Intel SDM vol. 3A, chapter 10.
"""

from __future__ import annotations

from typing import Final

import pytest

from hmx.cpu.apic_regs import (
    CLUSTER,
    FLAT,
    ICR_FIELDS,
    ICR_MODES,
    MSR_FIRST,
    MSR_LAST,
    REGISTERS,
    X2APIC,
    ApicAddress,
    ApicFault,
    DeliveryMode,
    EoiBroadcast,
    Ipi,
    Shorthand,
    addressed,
    ipi_targets,
    logical_x2apic_id,
    x2apic_address,
)
from hmx.cpu.lapic import LocalApic

MASKED: Final = 1 << 16
ESR: Final = 0x828
ICR: Final = 0x830
LVT_ERROR: Final = 0x837

# Table 10-6 and the figures it cites, typed a second time: name, access, bits that WRMSR accepts, value after reset
# (None: not readable, or of the processor).
TABLE_10_6: Final = {
    0x802: ("ID", "r", 0, None),
    0x803: ("VERSION", "r", 0, 0x0106_0015),
    0x808: ("TPR", "rw", 0xFF, 0),
    0x80A: ("PPR", "r", 0, 0),
    0x80B: ("EOI", "w", 0, None),
    0x80D: ("LDR", "r", 0, None),
    0x80F: ("SVR", "rw", 0x13FF, 0xFF),
    **dict.fromkeys(range(0x810, 0x818), ("ISR", "r", 0, 0)),
    **dict.fromkeys(range(0x818, 0x820), ("TMR", "r", 0, 0)),
    **dict.fromkeys(range(0x820, 0x828), ("IRR", "r", 0, 0)),
    0x828: ("ESR", "rw", 0, 0),
    0x82F: ("LVT_CMCI", "rw", 0x1_17FF, MASKED),
    0x830: ("ICR", "rw", 0xFFFF_FFFF_000C_DFFF, 0),
    0x832: ("LVT_TIMER", "rw", 0x7_10FF, MASKED),
    0x833: ("LVT_THERMAL", "rw", 0x1_17FF, MASKED),
    0x834: ("LVT_PERFORMANCE", "rw", 0x1_17FF, MASKED),
    0x835: ("LVT_LINT0", "rw", 0x1_F7FF, MASKED),
    0x836: ("LVT_LINT1", "rw", 0x1_F7FF, MASKED),
    0x837: ("LVT_ERROR", "rw", 0x1_10FF, MASKED),
    0x838: ("TIMER_INITIAL", "rw", 0xFFFF_FFFF, 0),
    0x839: ("TIMER_CURRENT", "r", 0, 0),
    0x83E: ("TIMER_DIVIDE", "rw", 0xB, 0),
    0x83F: ("SELF_IPI", "w", 0xFF, None),
}
COMPUTED: Final = {"ID", "TPR", "PPR", "EOI", "LDR", "ISR", "TMR", "IRR", "SELF_IPI", "reserved"}


@pytest.fixture
def apic() -> LocalApic:
    """APIC 5, software-enabled with spurious vector 0xFF."""
    result = LocalApic(5)
    result.svr = 0x1FF
    return result


def errors(apic: LocalApic) -> int:
    """What the ESR shows when it is written and read."""
    apic.write(ESR, 0)
    return apic.read(ESR)


def icr(
    vector: int = 0x31,
    mode: int = 0,
    shorthand: int = 0,
    destination: int = 0,
    logical: bool = False,
    level: bool = False,
    asserted: bool = True,
) -> int:
    """An ICR value, put together by figure 10-28."""
    low = vector | mode << 8 | logical << 11 | asserted << 14 | level << 15 | shorthand << 18
    return destination << 32 | low


# ---- the register map ----


def test_the_map_names_every_msr_once() -> None:
    """10.12.1.2: 800H-83FH, each listed or reserved."""
    listed = [(msr, row.name) for row in REGISTERS for msr in range(row.first, row.last + 1)]
    assert (MSR_FIRST, MSR_LAST) == (0x800, 0x83F)
    assert listed == [(msr, TABLE_10_6[msr][0] if msr in TABLE_10_6 else "reserved") for msr in range(0x800, 0x840)]


def test_cells_without_a_meaning_are_empty() -> None:
    """No bits where nothing can be written, none both stored and ignored, no stored value where one is computed."""
    for row in REGISTERS:
        assert row.writable & row.ignored == 0
        if "w" not in row.access:
            assert (row.writable, row.ignored) == (0, 0)
        assert (row.reset is None) == (row.name in COMPUTED)
        assert (row.access == "") == (row.name == "reserved")
        assert row.source


@pytest.mark.parametrize("msr", [0x7FF, *range(0x800, 0x840), 0x840, 0x8FF, 0xBFF, 0, -1])
def test_direction_of_each_msr(msr: int) -> None:
    """Table 10-6: RDMSR of a reserved or write-only register and WRMSR of a reserved or read-only one are #GP."""
    access = TABLE_10_6[msr][1] if msr in TABLE_10_6 else ""
    apic = LocalApic(5)
    if "r" in access:
        assert apic.read(msr) >= 0
    else:
        with pytest.raises(ApicFault):
            apic.read(msr)
    if "w" in access:
        apic.write(msr, 0)
    else:
        with pytest.raises(ApicFault):
            apic.write(msr, 0)


@pytest.mark.parametrize("msr", [msr for msr, (_, access, _, _) in TABLE_10_6.items() if "w" in access])
def test_reserved_bits_fault_and_change_nothing(msr: int) -> None:
    """10.12.1.3: a reserved bit that is set raises #GP; every other bit alone is accepted."""
    _, access, accepted, _ = TABLE_10_6[msr]
    for bit in range(65):
        apic = LocalApic(5)
        before = apic.read(msr) if "r" in access else None
        if accepted >> bit & 1:
            apic.write(msr, 1 << bit)
        else:
            with pytest.raises(ApicFault):
                apic.write(msr, 1 << bit)
            assert (apic.read(msr) if "r" in access else None) == before
    with pytest.raises(ApicFault):
        LocalApic(5).write(msr, -1)


@pytest.mark.parametrize("msr", [msr for msr, row in TABLE_10_6.items() if row[3] is not None])
def test_value_after_reset(msr: int) -> None:
    """10.4.7.1: zeros, LVT entries masked, SVR FFH."""
    assert LocalApic(5).read(msr) == TABLE_10_6[msr][3]


@pytest.mark.parametrize(
    ("msr", "written", "kept"),
    [
        (0x82F, 0x1_17FF, 0x1_07FF),
        (0x832, 0x7_10FF, 0x7_00FF),
        (0x833, 0x0_17FF, 0x0_07FF),
        (0x834, 0x1_17FF, 0x1_07FF),
        (0x835, 0x1_F7FF, 0x1_A7FF),
        (0x836, 0x0_F7FF, 0x0_A7FF),
        (0x837, 0x1_10FF, 0x1_00FF),
        (0x838, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (0x83E, 0xB, 0xB),
        (0x80F, 0x13FF, 0x13FF),
        (0x808, 0xFF, 0xFF),
        (0x830, 0xFFFF_FFFF_0008_DFFF, 0xFFFF_FFFF_0008_CFFF),
    ],
)
def test_what_a_register_keeps(apic: LocalApic, msr: int, written: int, kept: int) -> None:
    """Figures 10-8 and 10-28: delivery status and remote IRR are read-only; x2APIC 2.4.3: ICR bit 12 is ignored."""
    apic.write(msr, written)
    assert apic.read(msr) == kept


@pytest.mark.parametrize("msr", [0x82F, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837])
def test_software_disable_masks_the_lvt(apic: LocalApic, msr: int) -> None:
    """10.4.7.2: clearing the enable bit sets every mask; while it is clear a mask cannot be cleared."""
    apic.write(msr, 0x31)
    assert apic.read(msr) == 0x31
    apic.svr = 0xFF
    assert apic.read(msr) == MASKED | 0x31
    apic.write(msr, 0x32)
    assert apic.read(msr) == MASKED | 0x32
    apic.svr = 0x1FF
    assert apic.read(msr) == MASKED | 0x32
    apic.write(msr, 0x32)
    assert apic.read(msr) == 0x32


@pytest.mark.parametrize("msr", [0x838, 0x83E, 0x830])
def test_only_lvt_entries_have_a_mask(msr: int) -> None:
    """10.4.7.2 says LVT entries: no other register changes by being written while disabled."""
    apic = LocalApic(5)
    apic.write(msr, 0x3)
    assert apic.read(msr) == 0x3


def test_reset_keeps_the_id_and_nothing_else(apic: LocalApic) -> None:
    """10.4.7.1, 10.4.7.3: reset and INIT; the APIC id stays."""
    apic.accept(0x31, level=True)
    apic.acknowledge()
    apic.accept(0x41)
    apic.accept(3)
    apic.tpr = 0x50
    apic.write(LVT_ERROR, 0x77)
    apic.write(ICR, icr(destination=9))
    apic.reset()
    fresh = LocalApic(5)
    for msr, (_, access, _, _) in TABLE_10_6.items():
        if "r" in access:
            assert apic.read(msr) == fresh.read(msr)
    assert (apic.apic_id, apic.enabled, apic.pending(), errors(apic)) == (5, False, None, 0)


@pytest.mark.parametrize("apic_id", [-1, 0xFFFF_FFFF, 1 << 32])
def test_ids_that_cannot_be_assigned(apic_id: int) -> None:
    """10.12.5.1: 32 bits, and all ones is the broadcast."""
    with pytest.raises(ValueError, match="id"):
        LocalApic(apic_id)


def test_id_and_logical_id_of_the_largest(apic: LocalApic) -> None:
    """10.12.10.2: cluster = id bits 19:4, higher bits are dropped; member = 1 << id bits 3:0."""
    assert LocalApic(0xFFFF_FFFE).read(0x802) == 0xFFFF_FFFE
    assert LocalApic(0xFFFF_FFFE).ldr == 0xFFFF_4000
    assert apic.ldr == apic.read(0x80D) == 1 << 5


# ---- interrupts ----


@pytest.mark.parametrize("vector", [-1, 256, 1 << 20])
def test_what_is_no_vector(apic: LocalApic, vector: int) -> None:
    """A message carries eight bits: more is the caller's mistake, not an APIC error."""
    with pytest.raises(ValueError, match="vector"):
        apic.accept(vector)
    assert apic.irr == 0
    assert errors(apic) == 0


def test_accept_says_whether_it_coalesced(apic: LocalApic) -> None:
    """10.8.4: one bit a vector in IRR, one in ISR: two may be outstanding, a third is lost."""
    assert apic.accept(0x31)
    assert not apic.accept(0x31)
    assert apic.acknowledge() == 0x31
    assert apic.accept(0x31)
    assert not apic.accept(0x31)


def test_coalescing_takes_the_last_trigger_mode(apic: LocalApic) -> None:
    """10.8.4: each acceptance sets or clears the TMR bit, one that coalesces too (Xen vlapic_set_irq)."""
    apic.accept(0x31, level=True)
    apic.accept(0x31)
    assert apic.tmr == 0
    apic.accept(0x31, level=True)
    assert apic.tmr == 1 << 0x31


def test_suppressed_eoi_broadcast(apic: LocalApic) -> None:
    """10.8.5: with SVR bit 12 the EOI of a level-triggered vector is not broadcast."""
    apic.svr = 0x11FF
    apic.accept(0x31, level=True)
    apic.acknowledge()
    assert apic.write(0x80B, 0) is None
    apic.svr = 0x1FF
    apic.accept(0x31, level=True)
    apic.acknowledge()
    assert apic.write(0x80B, 0) == EoiBroadcast(0x31)


@pytest.mark.parametrize("value", [16, 0xFF, -1, 1 << 63])
def test_cr8_has_four_bits(apic: LocalApic, value: int) -> None:
    """10.8.6: CR8 bits 63:4 are reserved."""
    apic.cr8 = 3
    with pytest.raises(ApicFault):
        apic.cr8 = value
    assert (apic.cr8, apic.tpr) == (3, 0x30)


def test_tpr_has_eight_bits(apic: LocalApic) -> None:
    """10.8.3.1."""
    with pytest.raises(ApicFault):
        apic.tpr = 0x100
    assert apic.tpr == 0


# ---- errors ----


def test_self_ipi_with_an_illegal_vector_is_two_errors(apic: LocalApic) -> None:
    """10.5.3: bit 5 for sending it, bit 6 for an interrupt by self IPI; by SELF IPI and by shorthand alike."""
    apic.write(0x83F, 15)
    assert errors(apic) == 0x60
    apic.write(ICR, icr(vector=15, shorthand=1))
    assert errors(apic) == 0x60
    assert apic.irr == 0


def test_a_disabled_apic_receives_nothing_not_even_errors() -> None:
    """10.4.7.2: it takes no interrupt, but may send."""
    apic = LocalApic(5)
    assert not apic.accept(3)
    assert errors(apic) == 0
    apic.self_ipi(3)
    assert errors(apic) == 0x20
    assert apic.write(ICR, icr(destination=1)) is not None


def test_an_error_interrupts_by_the_lvt_once(apic: LocalApic) -> None:
    """10.5.3: a detected error raises the LVT error vector unless masked; writing the ESR rearms it."""
    apic.write(LVT_ERROR, MASKED | 0x77)
    apic.accept(3)
    assert apic.irr == 0
    errors(apic)
    apic.write(LVT_ERROR, 0x77)
    apic.accept(3)
    assert apic.acknowledge() == 0x77
    apic.eoi()
    apic.accept(4)
    assert apic.pending() is None
    assert errors(apic) == 0x40
    apic.accept(4)
    assert apic.pending() == 0x77


def test_an_illegal_error_vector_is_one_more_error(apic: LocalApic) -> None:
    """10.5.3 bit 6: an illegal vector of the LVT is a received one; it does not repeat itself for ever."""
    apic.write(LVT_ERROR, 5)
    apic.write(ICR, icr(mode=1))
    assert errors(apic) == 0x50
    assert apic.irr == 0


# ---- the ICR ----


@pytest.mark.parametrize(
    ("mode", "vector", "shorthands"),
    [
        (DeliveryMode.FIXED, 0x31, {0, 2, 3}),
        (DeliveryMode.SMI, 0, {0, 3}),
        (3, 0x31, set()),
        (DeliveryMode.NMI, 0, {0, 3}),
        (DeliveryMode.INIT, 0, {0, 3}),
        (DeliveryMode.STARTUP, 9, {0, 3}),
        (7, 0x31, set()),
    ],
)
def test_what_each_mode_sends(apic: LocalApic, mode: int, vector: int, shorthands: set[int]) -> None:
    """Table 10-3: self and all-including-self are for fixed interrupts only; 3 and 7 are reserved."""
    for shorthand in range(4):
        sent = apic.write(ICR, icr(vector, mode, shorthand, destination=0x1234_5678))
        if shorthand in shorthands:
            assert sent == Ipi(DeliveryMode(mode), vector, Shorthand(shorthand), False, 0x1234_5678)
        else:
            assert sent is None
    assert apic.irr == (1 << 0x31 if mode == DeliveryMode.FIXED else 0)
    assert errors(apic) == 0


def test_lowest_priority_cannot_be_sent(apic: LocalApic) -> None:
    """10.5.3 bit 4: an error of its own, even with an illegal vector; nothing is sent."""
    for vector in (0x31, 5):
        for shorthand in range(4):
            assert apic.write(ICR, icr(vector, 1, shorthand)) is None
            assert errors(apic) == 0x10
    assert apic.irr == 0


@pytest.mark.parametrize("shorthand", [0, 2, 3])
def test_an_illegal_vector_is_not_sent(apic: LocalApic, shorthand: int) -> None:
    """10.5.3 bit 5; modes without a vector do not care."""
    assert apic.write(ICR, icr(15, 0, shorthand)) is None
    assert errors(apic) == 0x20
    assert apic.write(ICR, icr(16, 0, shorthand)) is not None
    assert apic.write(ICR, icr(0, DeliveryMode.NMI)) is not None
    assert apic.write(ICR, icr(0, DeliveryMode.STARTUP)) is not None
    assert errors(apic) == 0


def test_level_and_deassert(apic: LocalApic) -> None:
    """Table 10-3: a level bit is overridden; 10.6.1: INIT level de-assert does nothing on these processors."""
    assert apic.write(ICR, icr(0, DeliveryMode.INIT, level=True, asserted=False)) is None
    assert apic.write(ICR, icr(0, DeliveryMode.INIT, level=True)) is not None
    assert apic.write(ICR, icr(0, DeliveryMode.INIT, asserted=False)) is not None
    for mode in (DeliveryMode.FIXED, DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.STARTUP):
        assert apic.write(ICR, icr(0x31, mode, level=True, asserted=False)) is not None
    apic.write(ICR, icr(0x32, shorthand=1, level=True))
    assert (apic.irr, apic.tmr) == (1 << 0x32, 0)


def test_logical_destination_is_told(apic: LocalApic) -> None:
    """Figure 10-28: bit 11."""
    sent = apic.write(ICR, icr(destination=0x0001_0003, logical=True))
    assert sent == Ipi(DeliveryMode.FIXED, 0x31, Shorthand.NONE, True, 0x0001_0003)


def test_tables_of_the_icr_are_whole() -> None:
    """Figure 10-28: fields are the writable bits, each once; eight modes, and one never sent has no conditions."""
    bits = [1 << bit for field in ICR_FIELDS for bit in range(field.low, field.high + 1)]
    assert len(bits) == len(set(bits))
    assert sum(bits) == 0xFFFF_FFFF_000C_CFFF
    assert [row.mode for row in ICR_MODES] == list(range(8))
    for row in ICR_MODES:
        assert all(isinstance(shorthand, Shorthand) for shorthand in row.shorthands)
        assert row.shorthands or not (row.checks_vector or row.drops_deassert)
    assert all(row.source for row in (*ICR_MODES, *ICR_FIELDS))


# ---- destinations ----


@pytest.mark.parametrize(
    ("apic", "destination", "logical", "meant"),
    [
        (ApicAddress(5, 0x20, FLAT), 5, False, True),
        (ApicAddress(5, 0x20, FLAT), 0xFF, False, True),
        (ApicAddress(5, 0x20, FLAT), 0x20, False, False),
        (ApicAddress(5, 0x20, FLAT), 0xFFFF_FFFF, False, False),
        (ApicAddress(5, 0x20, FLAT), 0x105, False, False),
        (ApicAddress(5, 0x20, FLAT), 0x30, True, True),
        (ApicAddress(5, 0x20, FLAT), 0x120, True, True),  # the high bits are not compared
        (ApicAddress(5, 0x20, FLAT), 0xDF, True, False),
        (ApicAddress(5, 0x80, FLAT), 0x80, True, True),
        (ApicAddress(5, 0x01, FLAT), 0x01, True, True),
        (ApicAddress(5, 0x00, FLAT), 0xFF, True, False),  # no member bit, no logical message
        (ApicAddress(5, 0x32, CLUSTER), 0x33, True, True),
        (ApicAddress(5, 0x32, CLUSTER), 0x3D, True, False),
        (ApicAddress(5, 0x32, CLUSTER), 0x22, True, False),
        (ApicAddress(5, 0x32, CLUSTER), 0xB2, True, False),
        (ApicAddress(5, 0x31, CLUSTER), 0x31, True, True),
        (ApicAddress(5, 0x38, CLUSTER), 0x38, True, True),
        (ApicAddress(5, 0x32, CLUSTER), 0xFF, True, True),  # every cluster, every member
        (ApicAddress(5, 0x32, CLUSTER), 0xFF, False, True),
        (x2apic_address(0x25), 0x25, False, True),
        (x2apic_address(0x25), 0xFF, False, False),
        (x2apic_address(0x25), 0xFFFF_FFFF, False, True),
        (x2apic_address(0x25), 0x0002_0021, True, True),
        (x2apic_address(0x25), 0x0002_0001, True, False),
        (x2apic_address(0x25), 0x0003_0020, True, False),
        (x2apic_address(0x25), 0x8002_0020, True, False),
        (x2apic_address(0x20), 0x0002_0001, True, True),
        (x2apic_address(0x2F), 0x0002_8000, True, True),
        (x2apic_address(0x25), 0xFFFF_FFFF, True, True),
    ],
)
def test_who_is_addressed(apic: ApicAddress, destination: int, logical: bool, meant: bool) -> None:
    """10.6.2.1 physical, 10.6.2.2 flat and cluster, 10.12.9 x2APIC broadcast, 10.12.10.2 logical x2APIC ids."""
    assert addressed(apic, destination, logical) is meant


def test_targets_of_an_ipi() -> None:
    """10.6.1: shorthands overrule the destination; without one the destination is compared with each APIC."""
    apics = [x2apic_address(apic_id) for apic_id in (0, 1, 2, 0x10)]

    def to(shorthand: Shorthand, destination: int = 1, logical: bool = False) -> tuple[int, ...]:
        return ipi_targets(Ipi(DeliveryMode.FIXED, 0x31, shorthand, logical, destination), 2, apics)

    assert to(Shorthand.SELF) == (2,)
    assert to(Shorthand.ALL) == (0, 1, 2, 3)
    assert to(Shorthand.OTHERS) == (0, 1, 3)
    assert to(Shorthand.NONE) == (1,)
    assert to(Shorthand.NONE, 0x10) == (3,)
    assert to(Shorthand.NONE, 7) == ()
    assert to(Shorthand.NONE, 0b101, logical=True) == (0, 2)
    assert to(Shorthand.NONE, 0x1_0001, logical=True) == (3,)
    assert to(Shorthand.NONE, 0xFFFF_FFFF) == (0, 1, 2, 3)


def test_an_apic_tells_its_address(apic: LocalApic) -> None:
    """What lowest-priority arbitration looks at: id, logical id, software enable and PPR."""
    assert LocalApic(5).address == ApicAddress(5, 0x20, X2APIC, enabled=False)
    apic.tpr = 0x35
    assert apic.address == ApicAddress(5, logical_x2apic_id(5), X2APIC, enabled=True, ppr=0x35)
