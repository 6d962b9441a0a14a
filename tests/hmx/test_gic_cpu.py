"""The virtual CPU interface alone: the hypervisor's words are written by hand.

Rules: Arm IHI 0069 4.8 and the ICV registers, IHI 0048B 3.2 to 3.4 and 5.3; the handshake is our own (hmx/cpu/gic.py).
"""

from __future__ import annotations

import pytest

from hmx.cpu import gic_registers
from hmx.cpu.gic import VirtualCpuInterface
from hmx.gic import GICC, LR_OFFSET, LR_STATE_OFFSET, SHARED_LR, SHARED_LR_STATE, LrState, decode, encode
from hmx.shm import load64, store64, words64

LR, STATE = LR_OFFSET >> 3, LR_STATE_OFFSET >> 3


class Side:
    """A CPU interface, and the hypervisor's pen."""

    def __init__(self, version: int = 3) -> None:
        self.words = words64(bytearray(0x1000))
        self.cpu = VirtualCpuInterface(self.words, version)
        self.cpu.pmr = 0xFF
        self.cpu.enabled = [True, True]
        self.now = [0] * 16

    def write(self, n: int, **fields: int) -> None:
        word = {"group": 1, "priority": 0xA0, "state": LrState.PENDING, **fields}
        self.now[n] = encode(SHARED_LR, **word)
        store64(self.words, LR + n, self.now[n])

    def flip(self, n: int) -> None:
        self.now[n] ^= 1 << 32
        store64(self.words, LR + n, self.now[n])

    def recall(self, n: int) -> None:
        known = decode(SHARED_LR, self.now[n])
        self.write(n, generation=known["generation"] + 1, phase=known["phase"], state=0, priority=0, group=0)

    def told(self, n: int) -> tuple[int, int, int]:
        """(generation, taken, active) of lr_state[n]."""
        word = decode(SHARED_LR_STATE, load64(self.words, STATE + n))
        return word["generation"], word["taken"], word["active"]


def test_an_entry_lives_and_ends() -> None:
    """Pending is the difference of phase and taken; acknowledging copies the one and names the generation."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1)
    assert (side.cpu.state(0), side.told(0)) == (LrState.PENDING, (0, 0, 0))
    assert side.cpu.iar() == 40
    assert (side.cpu.state(0), side.told(0)) == (LrState.ACTIVE, (1, 1, 1))
    side.flip(0)
    assert side.cpu.state(0) == LrState.PENDING_ACTIVE
    assert side.cpu.eoir(40) is None
    assert (side.cpu.state(0), side.told(0)) == (LrState.PENDING, (1, 1, 0))
    assert side.cpu.iar() == 40
    assert side.cpu.eoir(40) is None
    assert (side.cpu.state(0), side.told(0)) == (LrState.INVALID, (1, 0, 0))
    assert not side.cpu.take_maintenance()


def test_recall_of_an_entry_never_seen() -> None:
    """The answer says that nothing was taken, and the active bit of an older entry is not taken for this one's."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1)
    assert side.cpu.iar() == 40
    side.recall(0)
    side.cpu.sync()
    assert side.told(0) == (2, 1, 1), "handed back active"
    side.write(0, vintid=41, generation=3, phase=0)
    side.recall(0)
    assert side.cpu.iar() == 1023, "which answers the recall, as a look at anything does"
    assert side.told(0) == (4, 1, 0), "never taken: phase 0, taken 1; not active"
    assert side.cpu.take_maintenance()
    assert not side.cpu.take_maintenance()


def test_recall_in_each_state() -> None:
    """What is handed back: pending (taken differs), active, both, or nothing."""
    for acknowledged, again, answer in ((False, False, (2, 0, 0)), (True, False, (2, 1, 1)), (True, True, (2, 1, 1))):
        side = Side()
        side.write(2, vintid=40, generation=1, phase=1)
        if acknowledged:
            assert side.cpu.iar() == 40
        if again:
            side.flip(2)
        side.recall(2)
        side.cpu.sync()
        assert side.told(2) == answer
        assert side.cpu.state(2) == LrState.INVALID
        assert side.cpu.take_maintenance()


def test_an_entry_recalled_ends_at_the_hypervisor() -> None:
    """EOIR and DIR of an interrupt that is listed no more return it: the caller traps."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1)
    assert side.cpu.iar() == 40
    side.recall(0)
    assert side.cpu.eoir(40) == 40
    assert side.cpu.rpr() == 0xFF
    side.cpu.eoi_mode = 1
    assert side.cpu.dir_(40) == 40


def test_a_recall_in_the_middle_of_an_end() -> None:
    """The recall comes between an EOIR's first look and its search: it is answered, active, before EOIR returns."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1)
    side.cpu.iar()

    class Words:
        looks = 0

        def __getitem__(self, index: int) -> int:
            if index == LR:
                self.looks += 1
                if self.looks == 1:
                    side.recall(0)
            return load64(side.words, index)

        def __setitem__(self, index: int, value: int) -> None:
            store64(side.words, index, value)

    side.cpu._words = Words()  # type: ignore[assignment]
    assert side.cpu.eoir(40) == 40
    assert side.told(0) == (2, 1, 1)


def test_a_new_entry_is_not_active_by_an_old_bit() -> None:
    """The active bit speaks of the generation that lr_state names."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1)
    side.cpu.iar()
    side.recall(0)
    side.cpu.sync()
    side.write(0, vintid=41, generation=3, phase=0, priority=0x20)
    assert side.cpu.state(0) == LrState.PENDING
    assert side.cpu.iar() == 41


def test_generations_wrap() -> None:
    """Eight bits of generation: 255 is followed by 0."""
    side = Side()
    side.write(0, vintid=40, generation=255, phase=1)
    assert side.cpu.iar() == 40
    side.write(0, generation=0, phase=1, state=0, priority=0, group=0)
    side.cpu.sync()
    assert side.told(0) == (0, 1, 1)


def test_maintenance_at_the_end_of_an_entry() -> None:
    """The EOI bit: at deactivation and not before, and not without it (IHI 0048B 5.2.2, EOI maintenance)."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1, eoi=1)
    side.cpu.iar()
    assert not side.cpu.take_maintenance()
    side.cpu.eoir(40)
    assert side.cpu.take_maintenance()


def test_maintenance_when_nothing_listed_is_pending() -> None:
    """`more` in lr[0]: the guest rings when the last merely pending entry was acknowledged."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1, more=1)
    side.write(1, vintid=41, generation=1, phase=1, priority=0x20)
    assert side.cpu.iar() == 41
    assert not side.cpu.take_maintenance()
    side.flip(1)  # pending and active: nothing that could be given
    side.cpu.eoi_mode = 1
    side.cpu.eoir(41)
    assert side.cpu.iar() == 40
    assert side.cpu.take_maintenance()


def test_an_lpi_has_no_active_state() -> None:
    """IHI 0069 4.1.2: acknowledged, it is inactive; EOI drops the priority alone, DIR does nothing."""
    side = Side()
    side.cpu.eoi_mode = 1
    side.write(0, vintid=8192, generation=1, phase=1)
    assert side.cpu.iar() == 8192
    assert (side.cpu.state(0), side.cpu.rpr()) == (LrState.INVALID, 0xA0)
    assert side.cpu.eoir(8192) is None
    assert side.cpu.dir_(8192) is None
    assert side.cpu.rpr() == 0xFF


def test_groups() -> None:
    """IAR1 does not give group 0 (1023); GICv2's IAR says 1022 for group 1 without AckCtl; AIAR gives it."""
    side = Side()
    side.write(0, vintid=40, generation=1, phase=1, group=0)
    assert (side.cpu.hppir(), side.cpu.iar(), side.cpu.iar(0)) == (1023, 1023, 40)
    assert side.cpu.apr == [1 << 20, 0]
    side = Side(version=2)
    side.write(0, vintid=40, generation=1, phase=1)
    assert (side.cpu.hppir(), side.cpu.iar()) == (1022, 1022)
    assert side.cpu.iar(1) == 40
    assert side.cpu.apr == [0, 1 << 20]
    side.write(1, vintid=41, generation=1, phase=1, group=0, priority=0x40)
    assert side.cpu.iar(1) == 1023
    side.cpu.enabled = [False, True]
    assert not side.cpu.signalled()


def test_binary_points() -> None:
    """IHI 0069 4.8.3: BPR0 n splits at n+1, BPR1 n at n; CBPR puts both under BPR0 and makes BPR1 read one more."""
    cpu = Side().cpu
    assert [cpu.group_mask(0), cpu.group_mask(1)] == [0xF8, 0xF8]
    cpu.set_bpr(5, 0)
    cpu.set_bpr(6, 1)
    assert [cpu.group_mask(0), cpu.group_mask(1)] == [0xC0, 0xC0]
    cpu.set_bpr(7, 0)
    assert cpu.group_mask(0) == 0
    cpu.cbpr = True
    assert [cpu.group_mask(1), cpu.bpr(1)] == [0, 7]
    cpu.set_bpr(4, 0)
    cpu.set_bpr(6, 1)
    assert [cpu.bpr(1), cpu.bprs] == [5, [4, 6]], "read-only under CBPR"
    cpu.set_bpr(0, 0)
    assert cpu.bpr(0) == 2


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("ICC_PMR_EL1", 0xA7, 0xA0), ("ICC_CTLR_EL1", 3, 0x403), ("ICC_BPR0_EL1", 1, 2), ("ICC_BPR1_EL1", 1, 3),
        ("ICC_IGRPEN0_EL1", 0, 0), ("ICC_IGRPEN1_EL1", 0, 0), ("ICC_IGRPEN1_EL1", 1, 1), ("GICC_CTLR", 0x3FF, 0x21F),
        ("GICC_PMR", 0xFF, 0xF8), ("GICC_BPR", 5, 5), ("GICC_ABPR", 0, 3), ("GICC_RPR", 0, 0xFF),
        ("ICC_RPR_EL1", 0, 0xFF),
        ("GICC_EOIR", 40, 0), ("GICC_AEOIR", 40, 0), ("GICC_DIR", 40, 0), ("ICC_EOIR0_EL1", 40, 0),
    ],
)  # fmt: skip
def test_registers(name: str, written: int, read: int) -> None:
    """What a register keeps of what is written (IHI 0048B 4.4, IHI 0069 12.2)."""
    cpu = Side().cpu
    assert gic_registers.write(cpu, name, written) is None
    assert gic_registers.read(cpu, name) == read


@pytest.mark.parametrize(
    ("version", "group", "iar", "hppir", "end"),
    [
        (2, 0, "GICC_IAR", "GICC_HPPIR", "GICC_EOIR"),
        (2, 1, "GICC_AIAR", "GICC_AHPPIR", "GICC_AEOIR"),
        (3, 0, "ICC_IAR0_EL1", "ICC_HPPIR0_EL1", "ICC_EOIR0_EL1"),
        (3, 1, "ICC_IAR1_EL1", "ICC_HPPIR1_EL1", "ICC_EOIR1_EL1"),
    ],
)
def test_registers_of_each_group(version: int, group: int, iar: str, hppir: str, end: str) -> None:
    """Acknowledge, look, end by the registers of a group; split, DIR deactivates; another group's give nothing."""
    side = Side(version)
    cpu = side.cpu
    pairs = (("GICC_IAR", "GICC_AIAR"), ("ICC_IAR0_EL1", "ICC_IAR1_EL1"))
    other = next(name for pair in pairs if iar in pair for name in pair if name != iar)
    side.write(0, vintid=40, generation=1, phase=1, group=group)
    assert gic_registers.read(cpu, hppir) == 40
    assert gic_registers.read(cpu, other) in (1022, 1023)
    assert gic_registers.read(cpu, iar) == 40
    cpu.eoi_mode = 1
    assert gic_registers.write(cpu, end, 40) is None
    assert (cpu.rpr(), cpu.state(0)) == (0xFF, LrState.ACTIVE)
    assert gic_registers.write(cpu, "GICC_DIR" if version == 2 else "ICC_DIR_EL1", 40) is None
    assert cpu.state(0) == LrState.INVALID


def test_read_only_and_write_only() -> None:
    """What is only acknowledged or looked at ignores writes; what only ends an interrupt reads as zero."""
    cpu = Side().cpu
    before = cpu.vmcr
    looked_at = ("IAR", "AIAR", "HPPIR", "AHPPIR", "RPR")
    read_only = [*(f"GICC_{name}" for name in looked_at), "ICC_RPR_EL1"]
    read_only += [f"ICC_{name}{group}_EL1" for name in ("IAR", "HPPIR") for group in (0, 1)]
    for name in read_only:
        assert gic_registers.write(cpu, name, 0xFF) is None
    for name in ("GICC_EOIR", "GICC_AEOIR", "GICC_DIR", "ICC_EOIR0_EL1", "ICC_EOIR1_EL1", "ICC_DIR_EL1"):
        assert gic_registers.read(cpu, name) == 0
    assert cpu.vmcr == before


def test_every_register_of_the_frame_is_served() -> None:
    """GICC by offset: each register of the map, holes read zero and ignore writes."""
    cpu = Side(version=2).cpu
    assert [row.name for row in GICC if row.name not in gic_registers.REGISTERS] == []
    assert gic_registers.store(cpu, 0x4, 0x80) is None
    assert gic_registers.load(cpu, 0x4) == 0x80
    assert gic_registers.store(cpu, 0x800, 0x80) is None
    assert gic_registers.load(cpu, 0x800) == 0


def test_vmcr() -> None:
    """IHI 0069 ICH_VMCR_EL2: the interface's controls in one word, and back."""
    side, other = Side(), Side()
    side.cpu.vmcr = 0xA8_D4_02_1F | 1 << 23
    other.cpu.vmcr = side.cpu.vmcr
    assert side.cpu.vmcr == other.cpu.vmcr
    assert (side.cpu.pmr, side.cpu.bprs, side.cpu.eoi_mode) == (0xA8, [6, 5], 1)
    assert (side.cpu.enabled, side.cpu.ack_ctl, side.cpu.fiq_en, side.cpu.cbpr) == ([True, True], True, True, True)
    side.cpu.vmcr = 0
    assert (side.cpu.bprs, side.cpu.enabled, side.cpu.ctlr) == ([2, 3], [False, False], 0)
