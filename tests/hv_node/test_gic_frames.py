"""The registers of distributor, redistributors, and v2m frame beyond what the golden table asks.

Sources: Arm IHI 0048B 4.3, IHI 0069 12.9 to 12.11, GICv2m (SBSA).
"""

from __future__ import annotations

import pytest

from hmx.gic import LR_OFFSET, SHARED_LR, IntidKind, Register, decode
from hmx.shm import load64
from hv_node.interrupts import gicd, gicr, its, v2m
from hv_node.interrupts.v2m import MsiFrame
from tests.doubles.gic_model import CONFIG_TABLE, Rig


def ready(cpus: int = 1, version: int = 3, lrs: int = 4) -> Rig:
    """Everything on: priorities 0xA0, edges, group by version."""
    rig = Rig(cpus, version, lrs)
    rig.dist.set_ctlr(3)
    for irq in (*rig.dist.spis, *(irq for bank in rig.dist.banked for irq in bank)):
        rig.dist.set_enabled(irq, True)
        rig.dist.set_priority(irq, 0xA0)
        rig.dist.set_edge(irq, True)
    for cpu in rig.cpus:
        cpu.pmr, cpu.enabled = 0xFF, [True, True]
    return rig


def test_out_of_reset() -> None:
    """SGIs are enabled and edge, all else level and disabled; group 0 in GICv2, 1 in GICv3; SPIs go to vCPU 0."""
    for version, group in ((2, 0), (3, 1)):
        dist = Rig(2, version).dist
        everything = [*dist.spis, *dist.banked[1]]
        assert {irq.group for irq in everything} == {group}
        assert {irq.kind for irq in everything if irq.enabled} == {IntidKind.SGI}
        assert {irq.kind for irq in everything if irq.edge} == {IntidKind.SGI}
        assert {irq.target for irq in dist.spis} == {0}
        assert {irq.target for irq in dist.banked[1]} == {1}
        assert {irq.priority for irq in everything} == {0}


def test_typer() -> None:
    """IHI 0048B 4.3.2: lines / 32 - 1, CPUs - 1.  IHI 0069: message SPIs bit 16, LPIs bit 17, 16 INTID bits."""
    assert Rig(4, 2, spis=96).gicd.read(0, 4) == 3 | 3 << 5
    assert Rig(1, 3, spis=96).gicd.read(0, 4) == 3 | 1 << 16 | 1 << 17 | 15 << 19
    full = Rig(1, 3, spis=1000)
    assert full.gicd.read(0, 4) & 31 == 31
    assert full.dist.interrupt(1019) is not None
    assert full.dist.interrupt(1020) is None


def test_identification() -> None:
    """PIDR2 bits 7:4: the architecture version; IIDR: implementer Arm, 0x43B."""
    assert Rig(1, 2).gicd.read(0, 0xFE8) == 0x2B
    assert Rig(1, 3).gicd.read(0, 0xFFE8) == 0x3B
    assert Rig(1, 3).gicrs[0].read(0xFFE8) == 0x3B
    assert Rig(1, 3).gicd.read(0, 8) == Rig(1, 3).gicrs[0].read(4) == 0x43B


def test_ctlr() -> None:
    """GICv3: ARE (4) and DS (6) read as one, only the group bits are kept; GICv2: the group bits alone."""
    rig, old = Rig(1, 3), Rig(1, 2)
    rig.gicd.write(0, 0, 0xFFFFFFFF)
    old.gicd.write(0, 0, 0xFFFFFFFF)
    assert (rig.gicd.read(0, 0), old.gicd.read(0, 0)) == (0x53, 3)


def test_rwp() -> None:
    """GICD_CTLR.RWP (31) while another vCPU has not yet given back what was disabled under its hands."""
    rig = ready(2)
    rig.dist.set_route(rig.dist.spis[8], 1)
    rig.dist.pulse(40)
    rig.gicd.write(0, 0x184, 1 << 8)
    assert rig.gicd.read(0, 0) == 0x8000_0053
    assert rig.gicd.read(1, 0) == 0x53, "its own lists are right before it looks again"
    rig.pump()
    assert rig.gicd.read(0, 0) == 0x53


def test_messages_to_the_distributor() -> None:
    """GICD_SETSPI_NSR and CLRSPI_NSR: an SPI by number; others are ignored."""
    rig = ready()
    for data in (20, 3, 1023):
        rig.gicd.write(0, 0x40, data)
    rig.pump()
    assert not rig.cpus[0].signalled()
    rig.gicd.write(0, 0x40, 40)
    assert rig.cpus[0].hppir() == 40
    rig.gicd.write(0, 0x48, 40)
    rig.pump()
    assert not rig.cpus[0].signalled()


def test_bytes_and_halves() -> None:
    """A byte of IPRIORITYR and ITARGETSR, a half of IROUTER (IHI 0048B 4.3.11, 4.3.12; IHI 0069)."""
    rig = ready(2)
    rig.gicd.write(0, 0x421, 0x60, 1)
    assert rig.gicd.read(0, 0x420) == 0xA0A060A0
    assert rig.gicd.read(0, 0x421, 1) == 0x60
    rig.gicd.write(0, 0x6110, 0x8000_0001, 4)
    rig.gicd.write(0, 0x6114, 0x7, 4)
    assert rig.gicd.read(0, 0x6110, 8) == 0x7_8000_0001
    assert rig.gicd.read(0, 0x6114, 4) == 7
    old = ready(2, version=2)
    old.gicd.write(0, 0x822, 2, 1)
    assert old.gicd.read(0, 0x820) == 0x01020101


def test_zeroes_count() -> None:
    """Where a field is written whole a zero is a value: group, priority, targets, configuration, route."""
    rig, old = ready(2), ready(2, version=2)
    rig.dist.set_route(rig.dist.spis[0], 1)
    for offset, size in ((0x84, 4), (0x420, 4), (0xC08, 4), (0x6100, 8)):
        assert rig.gicd.read(0, offset, size)
        rig.gicd.write(0, offset, 0, size)
        assert rig.gicd.read(0, offset, size) == 0
    old.gicd.write(0, 0x820, 0)
    assert old.gicd.read(0, 0x820) == 0


def test_groups_and_config_of_ppis() -> None:
    """GICR_IGROUPR0 and ICFGR1: one bit, two bits an INTID."""
    rig = Rig(2)
    frame = rig.gicrs[1]
    frame.write(0x10080, 0x8000_0000)
    assert frame.read(0x10080) == 0x8000_0000
    frame.write(0x10C04, 0xC000_0000)
    assert frame.read(0x10C04) == 0x8000_0000
    assert rig.dist.banked[1][31].edge
    assert not rig.dist.banked[0][31].edge


def test_a_group_held_back() -> None:
    """GICD_CTLR enables groups one by one."""
    rig = ready()
    rig.dist.set_group(rig.dist.spis[0], 0)
    rig.gicd.write(0, 0, 2)
    rig.dist.pulse(32)
    rig.dist.pulse(33)
    assert rig.cpus[0].hppir() == 33
    rig.gicd.write(0, 0, 1)
    rig.pump()
    assert (rig.cpus[0].hppir(0), rig.cpus[0].hppir(1)) == (32, 1023)


def test_affinities() -> None:
    """16 vCPUs a cluster; GICR_TYPER says where and which is last; routes and SGIs of another cluster find theirs."""
    rig = Rig(18)
    assert rig.gicrs[17].read(8, 8) == 0x0000_0101_0000_1111
    assert rig.gicrs[16].read(8, 8) == 0x0000_0100_0000_1001
    assert rig.gicrs[17].read(0xC, 4) == 0x0000_0101
    rig.dist.set_route(rig.dist.spis[0], 0x101)
    assert rig.dist.spis[0].target == 17
    rig.dist.sgi_v3(0, 1 << 16 | 0b10 | 5 << 24)
    assert [bank[5].waiting() or bank[5].at is not None for bank in rig.dist.banked].index(True) == 17
    rig.dist.set_route(rig.dist.spis[0], 0x1_0000_0101)
    assert rig.dist.spis[0].target is None


def test_affinities_of_ones_own() -> None:
    """Given affinities: all four levels count, in routes, in ICC_SGI1R and in GICR_TYPER."""
    rig = Rig(1)
    dist = gicd.Distributor(rig.areas, lambda *_: None, affinities=[(4, 3, 2, 0x21)])
    dist.set_route(dist.spis[0], 0x4_0003_0221)
    assert dist.spis[0].target == 0
    dist.sgi_v3(0, 4 << 48 | 2 << 44 | 3 << 32 | 7 << 24 | 2 << 16 | 2)
    assert dist.pending(dist.banked[0][7])
    assert gicr.Redistributor(dist, gicr.Lpis(dist, rig.memory), 0).read(8, 8) >> 32 == 0x0403_0221


def test_sgir_reserved_filter() -> None:
    """IHI 0048B 4.3.15: filter 3 is reserved: nobody."""
    rig = ready(2, version=2)
    rig.gicd.write(0, 0xF00, 0x03030003)
    assert [dist_irq.sources for dist_irq in (rig.dist.banked[0][3], rig.dist.banked[1][3])] == [0, 0]


def test_eight_cpus_at_most() -> None:
    """GICv2: ITARGETSR has eight bits."""
    with pytest.raises(ValueError, match="8 CPUs, not 9"):
        Rig(9, 2)


def test_no_such_interrupt() -> None:
    """Wires and messages that lead nowhere are counted, and an SGI has no wire."""
    dist = ready().dist
    assert not dist.raise_line(1000, True)
    assert not dist.raise_line(3, True)
    assert not dist.pulse(1022)
    assert dist.dropped == {"no such line": 2, "no such interrupt": 1}


def test_waker_and_holes() -> None:
    """GICR_WAKER says awake; holes read zero; read-only registers ignore writes."""
    frame = Rig().gicrs[0]
    for offset in (0x14, 0x18, 0xFFE8, 8):
        before = frame.read(offset)
        frame.write(offset, 0xFFFF_FFFF)
        assert frame.read(offset) == before
    assert frame.read(0x14) == 0


def test_bases_are_fixed_while_lpis_are_enabled() -> None:
    """IHI 0069 GICR_PROPBASER, GICR_PENDBASER: writable, in halves too, until EnableLPIs is set."""
    rig = Rig()
    frame = rig.gicrs[0]
    frame.write(0x70, CONFIG_TABLE | 13, 4)
    frame.write(0x74, 1, 4)
    frame.write(0x78, 0x1234_0000, 8)
    frame.write(0, 1)
    frame.write(0x70, 0, 8)
    frame.write(0x78, 0, 8)
    assert frame.read(0x70, 8) == 1 << 32 | CONFIG_TABLE | 13
    assert frame.read(0x78, 8) == 0x1234_0000
    assert frame.read(0) == 1


def test_sgi_of_several_sources_asks_for_an_eoi() -> None:
    """GICv2: one source at a time is listed, and the guest rings at its end so that the next is (KVM vgic-v2)."""
    rig = ready(3, version=2)
    rig.cpus[0].ack_ctl = True
    rig.dist.sgi_v2(2, 1 << 16 | 3)
    word = decode(SHARED_LR, load64(rig.areas[0], LR_OFFSET >> 3))
    assert (word["vintid"], word["eoi"]) == (2 << 10 | 3, 0)
    rig.dist.sgi_v2(1, 1 << 16 | 3)
    assert decode(SHARED_LR, load64(rig.areas[0], LR_OFFSET >> 3))["eoi"] == 1
    got = []
    for _ in range(3):
        got.append(rig.cpus[0].iar())
        rig.end(0, rig.cpus[0].eoir(got[-1]))
        rig.pump()
    assert got == [0x803, 0x403, 1023]


def test_v2m() -> None:
    """The doorbell is at 0x40 (or, ours, the frame's own address); 0x008 says base and number."""
    frame = MsiFrame(0x0802_0000, 64, 32)
    assert frame.decode(0x0802_0040, 64) == frame.decode(0x0802_0000, 64) == 64
    assert [frame.decode(0x0802_0044, 64), frame.decode(0x0802_0008, 64), frame.decode(0x0802_0040, 96)] == [None] * 3
    assert [frame.covers(0x0802_0FFF), frame.covers(0x0802_1000), frame.covers(0x0801_FFFF)] == [True, False, False]
    assert (frame.read(8), frame.read(0xFCC), frame.read(0x40)) == (64 << 16 | 32, 0, 0)


FIELDS = {
    "SGIR": (gicd.SGIR, {"intid": (3, 0), "targets": (23, 16), "filter": (25, 24)}),
    "SGI1R": (gicd.SGI1R, {"targets": (15, 0), "aff1": (23, 16), "intid": (27, 24), "aff2": (39, 32), "irm": (40, 40),
                           "range": (47, 44), "aff3": (55, 48)}),
    "IROUTER": (gicd.IROUTER, {"aff0": (7, 0), "aff1": (15, 8), "aff2": (23, 16), "irm": (31, 31), "aff3": (39, 32)}),
    "TYPER_V2": (gicr.TYPER_V2, {"it_lines": (4, 0), "cpu_number": (7, 5)}),
    "TYPER_V3": (gicr.TYPER_V3, {"it_lines": (4, 0), "mbis": (16, 16), "lpis": (17, 17), "id_bits": (23, 19)}),
    "GICR_TYPER": (gicr.GICR_TYPER, {"plpis": (0, 0), "last": (4, 4), "processor": (23, 8), "aff0": (39, 32),
                                     "aff1": (47, 40), "aff2": (55, 48), "aff3": (63, 56)}),
    "PROPBASER": (gicr.PROPBASER, {"id_bits": (4, 0), "address": (51, 12)}),
    "LPI_CONFIG": (gicr.LPI_CONFIG, {"enable": (0, 0), "priority": (7, 2)}),
    "GITS_TYPER": (its.GITS_TYPER, {"physical": (0, 0), "itt_entry_size": (7, 4), "id_bits": (12, 8),
                                    "device_bits": (17, 13), "hcc": (31, 24)}),
    "CBASER": (its.CBASER, {"pages": (7, 0), "address": (51, 12), "valid": (63, 63)}),
    "CTLR": (its.CTLR, {"enabled": (0, 0), "quiescent": (31, 31)}),
    "MSI_TYPER": (v2m.MSI_TYPER, {"count": (9, 0), "base": (25, 16)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    """The fields of each register, from the manuals' diagrams."""
    table, expected = FIELDS[name]
    assert {row.name: (row.high, row.low) for row in table} == expected
    assert all(row.when_hw is None for row in table)


def test_v2m_map() -> None:
    """Linux irq-gic-v2m.c: MSI_TYPER 0x008, SETSPI_NS 0x040, IIDR 0xFCC, each of 32 bits."""
    assert list(v2m.V2M) == [
        Register("V2M_MSI_TYPER", 0x008, 4, 1, 32, 0, "R", 2, 3),
        Register("V2M_MSI_SETSPI_NS", 0x040, 4, 1, 32, 0, "W", 2, 3),
        Register("V2M_MSI_IIDR", 0xFCC, 4, 1, 32, 0, "R", 2, 3),
    ]
