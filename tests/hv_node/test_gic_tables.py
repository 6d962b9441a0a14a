"""The layouts of the interrupt controller's registers, and what zeroes do in those of one bit or byte an INTID.

Sources: Arm IHI 0048B 4.3, IHI 0069 5.1.1, 5.3 and chapter 12, Arm SBSA (GICv2m).
"""

from __future__ import annotations

from typing import Final

import pytest

from hmx.gic import Field
from hv_node.interrupts import gicd, gicr, its, v2m
from tests.hv_node.test_gic_frames import ready

# name and bits of each field, from the manuals
LAYOUTS: Final = {
    "GICD_SGIR": (gicd.SGIR, "intid 3:0, targets 23:16, filter 25:24"),
    "ICC_SGI1R_EL1": (
        gicd.SGI1R, "targets 15:0, aff1 23:16, intid 27:24, aff2 39:32, irm 40:40, range 47:44, aff3 55:48",
    ),
    "GICD_IROUTER": (gicd.IROUTER, "aff0 7:0, aff1 15:8, aff2 23:16, irm 31:31, aff3 39:32"),
    "GICD_TYPER of GICv2": (gicr.TYPER_V2, "it_lines 4:0, cpu_number 7:5"),
    "GICD_TYPER of GICv3": (gicr.TYPER_V3, "it_lines 4:0, mbis 16:16, lpis 17:17, id_bits 23:19"),
    "GICR_TYPER": (
        gicr.GICR_TYPER, "plpis 0:0, last 4:4, processor 23:8, aff0 39:32, aff1 47:40, aff2 55:48, aff3 63:56",
    ),
    "GICR_PROPBASER": (gicr.PROPBASER, "id_bits 4:0, address 51:12"),
    "an LPI's byte of configuration": (gicr.LPI_CONFIG, "enable 0:0, priority 7:2"),
    "GITS_TYPER": (its.GITS_TYPER, "physical 0:0, itt_entry_size 7:4, id_bits 12:8, device_bits 17:13, hcc 31:24"),
    "GITS_CBASER": (its.CBASER, "pages 7:0, address 51:12, valid 63:63"),
    "GITS_CTLR": (its.CTLR, "enabled 0:0, quiescent 31:31"),
    "V2M_MSI_TYPER": (v2m.MSI_TYPER, "count 9:0, base 25:16"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """Each field's bits; none of these words has fields whose meaning another bit decides."""
    table, text = LAYOUTS[name]
    expected = []
    for label, bits in (row.split() for row in text.split(",")):
        high, low = bits.split(":")
        expected.append(Field(label, int(high), int(low)))
    assert list(table) == expected


def test_zeroes_clear_no_active_bit() -> None:
    """GICD_ICACTIVER: writing 0 has no effect (IHI 0048B 4.3.10), on the neighbours of a bit that is cleared either."""
    rig = ready()
    for intid in (40, 41):
        rig.dist.set_active(rig.dist.spis[intid - 32], True)
    rig.gicd.write(0, 0x384, 1 << 8)
    assert rig.gicd.read(0, 0x384) == 1 << 9
    rig.gicd.write(0, 0x384, 0)
    assert rig.gicd.read(0, 0x304) == 1 << 9


def test_zeroes_of_the_pending_sources_of_an_sgi() -> None:
    """GICD_CPENDSGIR and GICD_SPENDSGIR: a zero bit has no effect (IHI 0048B 4.3.16, 4.3.17)."""
    rig = ready(2, version=2)
    rig.gicd.write(0, 0xF20, 0b01 << 8 | 0b10)
    assert rig.gicd.read(0, 0xF20) == 0b01 << 8 | 0b10
    rig.gicd.write(0, 0xF20, 0)
    rig.gicd.write(0, 0xF10, 0)
    assert rig.gicd.read(0, 0xF10) == 0b01 << 8 | 0b10
    rig.gicd.write(0, 0xF10, 0b11)
    assert rig.gicd.read(0, 0xF10) == 0b01 << 8


def test_the_upper_bit_of_a_configuration_decides() -> None:
    """GICD_ICFGR: bit 1 of an INTID's two is the trigger, bit 0 is reserved and reads as zero (IHI 0048B 4.3.13)."""
    rig = ready()
    rig.gicd.write(0, 0xC08, 0b01_10_11_00)
    assert rig.gicd.read(0, 0xC08) == 0b00_10_10_00


def test_pending_bits_of_sgis_are_read_only() -> None:
    """GICD_ISPENDR and GICD_ICPENDR of GICv2: up to INTID 15 writes are ignored, from 16 not (IHI 0048B 4.3.7)."""
    rig = ready(version=2)
    rig.gicd.write(0, 0x200, 0b11 << 15)
    assert rig.gicd.read(0, 0x200) == 1 << 16
    rig.gicd.write(0, 0xF2C, 1 << 24)
    rig.gicd.write(0, 0x280, 0b11 << 15)
    assert rig.gicd.read(0, 0x200) == 1 << 15
