"""The register maps of hmx/gic.py row by row, and what a write of a read-only register of a CPU interface must not do.

Sources: Arm IHI 0048B 4.1.2, 4.1.3 and 4.4, IHI 0069 12.2, 12.8, 12.10, 12.11, 12.18.
"""

from __future__ import annotations

from typing import Final

import pytest

from hmx.cpu import gic_registers
from hmx.cpu.gic import VirtualCpuInterface
from hmx.gic import GICC, GICD, GICR, GITS, LR_OFFSET, SHARED_LR, LrState, Register, encode
from hmx.shm import store64, words64
from tests.hmx.test_gic import MAPS

TABLES: Final = {"GICD": GICD, "GICC": GICC, "GICR": GICR, "GITS": GITS}


def text(row: Register) -> str:
    """A row as the maps of test_gic.py write it; versions 2 and 3 as "23"."""
    versions = "".join(str(version) for version in (2, 3) if row.since <= version <= row.until)
    numbers = f"{row.offset:#x} {row.stride} {row.number} {row.width} {row.per_intid} {row.access}"
    bounds = "" if row.since >= 2 and row.until <= 3 else " out of bounds"
    return f"{row.name} {numbers} {versions}{bounds}"


@pytest.mark.parametrize("frame", MAPS)
def test_each_row_of_a_map(frame: str) -> None:
    """As the manuals have it: no row more, no row less (compared as sets, so that a failure is told at once)."""
    expected = {" ".join(row.split()) for row in MAPS[frame][1].replace("\n", "|").split("|") if row.strip()}
    expected = {f"{name} {int(offset, 0):#x} {rest}" for name, offset, rest in (row.split(" ", 2) for row in expected)}
    found = [text(row) for row in TABLES[frame]]
    assert len(found) == len(expected)
    assert sorted(set(found) - expected) == []


READ_ONLY: Final = (
    "GICC_IAR", "GICC_AIAR", "GICC_HPPIR", "GICC_AHPPIR", "GICC_RPR",
    "ICC_IAR0_EL1", "ICC_IAR1_EL1", "ICC_HPPIR0_EL1", "ICC_HPPIR1_EL1", "ICC_RPR_EL1",
)  # fmt: skip


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_read_only_register_ends_nothing(name: str) -> None:
    """IHI 0048B 4.4, IHI 0069 12.2: the number of what is in service, written there, drops and deactivates nothing."""
    words = words64(bytearray(0x1000))
    cpu = VirtualCpuInterface(words, 2 if name.startswith("GICC") else 3)
    cpu.pmr, cpu.enabled, cpu.eoi_mode = 0xFF, [True, True], 1
    word = encode(SHARED_LR, vintid=40, generation=1, phase=1, priority=0xA0, group=1, state=LrState.PENDING)
    store64(words, LR_OFFSET >> 3, word)
    assert cpu.iar(1) == 40
    before = list(words)
    assert gic_registers.write(cpu, name, 40) is None
    assert (cpu.rpr(), cpu.state(0)) == (0xA0, LrState.ACTIVE)
    assert list(words) == before


@pytest.mark.parametrize(
    ("written", "untouched"),
    [
        ("GICC_BPR", "GICC_ABPR"),
        ("GICC_ABPR", "GICC_BPR"),
        ("ICC_BPR0_EL1", "ICC_BPR1_EL1"),
        ("ICC_BPR1_EL1", "ICC_BPR0_EL1"),
    ],
)
def test_a_binary_point_for_each_group(written: str, untouched: str) -> None:
    """IHI 0048B 4.4.3 and 4.4.8, IHI 0069 ICC_BPR0_EL1 and ICC_BPR1_EL1: a write changes one of them alone."""
    cpu = VirtualCpuInterface(words64(bytearray(0x1000)), 2 if written.startswith("GICC") else 3)
    before = gic_registers.read(cpu, untouched)
    assert gic_registers.write(cpu, written, 6) is None
    assert (gic_registers.read(cpu, written), gic_registers.read(cpu, untouched)) == (6, before)
