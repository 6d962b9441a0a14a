"""INTID ranges, register maps and list registers of hmx/gic.py, against literals from the manuals.

Sources: Arm IHI 0048B (GICv2) 2.2.1, 4.1, 5.3.5; IHI 0069 (GICv3) 2.2, 12.8 to 12.18, ICH_LR<n>_EL2, ICH_VMCR_EL2.
"""

from __future__ import annotations

import pytest

from hmx import vcpu_area
from hmx.gic import (
    GICC,
    GICD,
    GICH_LR,
    GICR,
    GITS,
    ICH_LR,
    ICH_VMCR,
    LR_OFFSET,
    LR_STATE_OFFSET,
    MAX_LRS,
    SHARED_LR,
    SHARED_LR_STATE,
    Field,
    IntidKind,
    LrState,
    Register,
    decode,
    encode,
    field,
    find,
    kind_of,
)


@pytest.mark.parametrize(
    ("kind", "first", "last", "version"),
    [
        (IntidKind.SGI, 0, 15, 2),
        (IntidKind.PPI, 16, 31, 2),
        (IntidKind.SPI, 32, 1019, 2),
        (IntidKind.SPECIAL, 1020, 1023, 2),
        (IntidKind.EPPI, 1056, 1119, 3),
        (IntidKind.ESPI, 4096, 5119, 3),
        (IntidKind.LPI, 8192, 0xFF_FFFF, 3),
    ],
)
def test_ranges(kind: IntidKind, first: int, last: int, version: int) -> None:
    """IHI 0048B 2.2.1, IHI 0069 2.2: both ends of each range, and what GICv2 lacks."""
    assert [kind_of(first), kind_of(last)] == [kind, kind]
    assert kind_of(first - 1) != kind
    assert kind_of(last + 1) != kind
    assert kind_of(first, 2) == (kind if version == 2 else None)


def test_kinds_are_told_apart() -> None:
    """The banked kinds are SGIs, PPIs and extended PPIs; the numbers of the kinds are ours, in the manual's order."""
    from hmx.gic import INTID_RANGES

    assert {row.kind.name for row in INTID_RANGES if row.banked} == {"SGI", "PPI", "EPPI"}
    assert [kind.value for kind in IntidKind] == [0, 1, 2, 3, 4, 5, 6]
    assert [row.kind for row in INTID_RANGES] == list(IntidKind)
    assert [kind_of(intid) for intid in (1024, 1055, 1120, 4095, 5120, 8191, 1 << 24)] == [None] * 7


# name: (offset, stride, number, width, bits of an INTID, access, versions)
MAPS = {
    "GICD": (
        GICD,
        """
        GICD_CTLR 0x0 4 1 32 0 RW 23 | GICD_TYPER 0x4 4 1 32 0 R 23 | GICD_IIDR 0x8 4 1 32 0 R 23
        GICD_SETSPI_NSR 0x40 4 1 32 0 W 3 | GICD_CLRSPI_NSR 0x48 4 1 32 0 W 3
        GICD_IGROUPR 0x80 4 32 32 1 RW 23 | GICD_ISENABLER 0x100 4 32 32 1 RW 23 | GICD_ICENABLER 0x180 4 32 32 1 RW 23
        GICD_ISPENDR 0x200 4 32 32 1 RW 23 | GICD_ICPENDR 0x280 4 32 32 1 RW 23
        GICD_ISACTIVER 0x300 4 32 32 1 RW 23 | GICD_ICACTIVER 0x380 4 32 32 1 RW 23
        GICD_IPRIORITYR 0x400 4 255 32 8 RW 23 | GICD_ITARGETSR 0x800 4 255 32 8 RW 2 | GICD_ICFGR 0xC00 4 64 32 2 RW 23
        GICD_SGIR 0xF00 4 1 32 0 W 2 | GICD_CPENDSGIR 0xF10 4 4 32 8 RW 2 | GICD_SPENDSGIR 0xF20 4 4 32 8 RW 2
        ICPIDR2 0xFE8 4 1 32 0 R 2 | GICD_IROUTER 0x6000 8 1020 64 64 RW 3 | GICD_PIDR2 0xFFE8 4 1 32 0 R 3
        """,
    ),
    "GICC": (
        GICC,
        """
        GICC_CTLR 0x0 4 1 32 0 RW 23 | GICC_PMR 0x4 4 1 32 0 RW 23 | GICC_BPR 0x8 4 1 32 0 RW 23
        GICC_IAR 0xC 4 1 32 0 R 23 | GICC_EOIR 0x10 4 1 32 0 W 23 | GICC_RPR 0x14 4 1 32 0 R 23
        GICC_HPPIR 0x18 4 1 32 0 R 23 | GICC_ABPR 0x1C 4 1 32 0 RW 23 | GICC_AIAR 0x20 4 1 32 0 R 23
        GICC_AEOIR 0x24 4 1 32 0 W 23 | GICC_AHPPIR 0x28 4 1 32 0 R 23 | GICC_DIR 0x1000 4 1 32 0 W 23
        """,
    ),
    "GICR": (
        GICR,
        """
        GICR_CTLR 0x0 4 1 32 0 RW 3 | GICR_IIDR 0x4 4 1 32 0 R 3 | GICR_TYPER 0x8 8 1 64 0 R 3
        GICR_WAKER 0x14 4 1 32 0 RW 3 | GICR_PROPBASER 0x70 8 1 64 0 RW 3 | GICR_PENDBASER 0x78 8 1 64 0 RW 3
        GICR_PIDR2 0xFFE8 4 1 32 0 R 3
        GICR_IGROUPR0 0x10080 4 1 32 1 RW 3 | GICR_ISENABLER0 0x10100 4 1 32 1 RW 3
        GICR_ICENABLER0 0x10180 4 1 32 1 RW 3 | GICR_ISPENDR0 0x10200 4 1 32 1 RW 3
        GICR_ICPENDR0 0x10280 4 1 32 1 RW 3 | GICR_ISACTIVER0 0x10300 4 1 32 1 RW 3
        GICR_ICACTIVER0 0x10380 4 1 32 1 RW 3 | GICR_IPRIORITYR 0x10400 4 8 32 8 RW 3 | GICR_ICFGR 0x10C00 4 2 32 2 RW 3
        """,
    ),
    "GITS": (
        GITS,
        """
        GITS_CTLR 0x0 4 1 32 0 RW 3 | GITS_IIDR 0x4 4 1 32 0 R 3 | GITS_TYPER 0x8 8 1 64 0 R 3
        GITS_CBASER 0x80 8 1 64 0 RW 3 | GITS_CWRITER 0x88 8 1 64 0 RW 3 | GITS_CREADR 0x90 8 1 64 0 R 3
        GITS_BASER 0x100 8 8 64 0 RW 3 | GITS_PIDR2 0xFFE8 4 1 32 0 R 3 | GITS_TRANSLATER 0x10040 4 1 32 0 W 3
        """,
    ),
}


@pytest.mark.parametrize("frame", MAPS)
def test_register_maps(frame: str) -> None:
    """IHI 0048B 4.1.2 and 4.1.3, IHI 0069 12.8, 12.10, 12.11, 12.18."""
    table, text = MAPS[frame]
    expected = []
    for row in text.replace("\n", "|").split("|"):
        if row.strip():
            name, offset, stride, number, width, bits, access, versions = row.split()
            expected.append(
                Register(
                    name, int(offset, 0), int(stride), int(number), int(width), int(bits), access,
                    int(versions[0]), int(versions[-1]),
                )
            )  # fmt: skip
    assert sorted(table) == sorted(expected)
    assert all(row.width == row.stride * 8 for row in table)


def test_find() -> None:
    """A row by any byte of its registers; holes and the other version's registers are nothing."""
    assert find(GICD, 0x420, 3) == find(GICD, 0x423, 3) == next(row for row in GICD if row.name == "GICD_IPRIORITYR")
    assert find(GICD, 0x7FC, 2) is None
    assert find(GICD, 0xF00, 3) is None
    assert find(GICD, 0x6110, 2) is None
    assert find(GICD, 0x4C, 3) is None
    assert find(GICD, 0x6000 + 8 * 1020, 3) is None


LAYOUTS = {
    "GICH_LR": (GICH_LR, "vintid 9 0, cpuid 12 10 0, eoi 19 19 0, pintid 19 10 1, priority 27 23, state 29 28,"
                         " group 30 30, hw 31 31"),
    "ICH_LR": (ICH_LR, "vintid 31 0, eoi 41 41 0, pintid 44 32 1, priority 55 48, group 60 60, hw 61 61, state 63 62"),
    "ICH_VMCR": (ICH_VMCR, "VENG0 0 0, VENG1 1 1, VAckCtl 2 2, VFIQEn 3 3, VCBPR 4 4, VEOIM 9 9, VBPR1 20 18,"
                           " VBPR0 23 21, VPMR 31 24"),
    "SHARED_LR": (SHARED_LR, "vintid 23 0, generation 31 24, phase 32 32, more 33 33, eoi 41 41, priority 55 48,"
                             " group 60 60, state 63 62"),
    "SHARED_LR_STATE": (SHARED_LR_STATE, "generation 31 24, taken 32 32, active 63 63"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """IHI 0048B 5.3.5, IHI 0069 ICH_LR<n>_EL2, ICH_VMCR_EL2; the shared words are revision 1 of our own."""
    table, text = LAYOUTS[name]
    expected = []
    for row in text.split(","):
        label, high, low, *when = row.split()
        expected.append(Field(label, int(high), int(low), int(when[0]) if when else None))
    assert list(table) == expected


def test_states() -> None:
    """IHI 0048B 5.3.5: 0 invalid, 1 pending, 2 active, 3 both."""
    assert {state.name: state.value for state in LrState} == {
        "INVALID": 0, "PENDING": 1, "ACTIVE": 2, "PENDING_ACTIVE": 3,
    }  # fmt: skip


def test_encode_refuses() -> None:
    """A value that does not fit, a field that has no meaning under HW, a name that is not there."""
    with pytest.raises(ValueError, match="does not fit"):
        encode(GICH_LR, priority=32)
    with pytest.raises(ValueError, match="does not fit"):
        encode(ICH_LR, vintid=-1)
    with pytest.raises(ValueError, match="HW=1"):
        encode(ICH_LR, hw=1, eoi=1)
    with pytest.raises(ValueError, match="HW=0"):
        encode(GICH_LR, pintid=40)
    with pytest.raises(KeyError):
        field(GICH_LR, "nmi")
    assert decode(GICH_LR, encode(GICH_LR, hw=1, pintid=0x155)) == {
        "vintid": 0, "pintid": 0x155, "priority": 0, "state": 0, "group": 0, "hw": 1,
    }  # fmt: skip


def test_place_in_the_vcpu_area() -> None:
    """The vCPU area, version 1: lr[16] at 0x800, lr_state[16] behind it, before the submission ring."""
    assert (LR_OFFSET, LR_STATE_OFFSET, MAX_LRS) == (0x800, 0x880, 16)
    assert vcpu_area.POSTS_OFFSET + 4 * vcpu_area.POST_ENTRIES <= LR_OFFSET
    assert LR_OFFSET + 8 * MAX_LRS <= LR_STATE_OFFSET
    assert LR_STATE_OFFSET + 8 * MAX_LRS <= vcpu_area.SQ_OFFSET
