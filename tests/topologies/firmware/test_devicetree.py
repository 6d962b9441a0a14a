"""Device trees that the planner builds, read by the guest's parser (Devicetree Specification 0.4, Linux bindings)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx import fdt
from hmx.fdt import FdtError, Node, Tree
from hmx.firmware import Interrupt, VectorPolicy, argo_from_tree
from hmx.trap import Arch
from tests.topologies.firmware.machines import ARGO_ARM, ARGO_BARE, ARM, GIC_V2, GIC_V3, MACHINES, PC
from topologies.firmware import devicetree
from topologies.firmware.machine import Gic, Machine, Range

V3, V2 = MACHINES["arm-v3"], MACHINES["arm-v2"]


def built(machine: Machine) -> Tree:
    return fdt.parse(devicetree.build(machine))


def node(tree: Tree, path: str) -> Node:
    found = tree.at(path)
    assert found is not None, path
    return found


@pytest.mark.parametrize("name", ARM)
def test_a_guest_reads_what_was_described(name: str) -> None:
    """Argo, processors, memory, and every line of virtio-mmio."""
    machine = MACHINES[name]
    tree = built(machine)
    assert argo_from_tree(tree) == machine.argo
    assert [cpu.reg()[0][0] for cpu in node(tree, "/cpus").children] == list(machine.processors)
    assert tree.boot_cpu == machine.processors[0] and tree.reservations == ()
    assert [child.reg()[0] for child in tree.root.children if child.name.startswith("memory@")] == list(machine.memory)
    assert [found.reg()[0] for found in tree.find("virtio,mmio")] == [(row.base, row.size) for row in machine.virtio]


def test_the_root_and_the_processors() -> None:
    """Two cells for addresses and sizes; the GIC is everybody's interrupt parent; processors start by PSCI."""
    tree = built(V3)
    assert tree.root.cell("#address-cells") == tree.root.cell("#size-cells") == 2
    assert tree.root.strings("compatible") == ("argosy,virt",)
    assert tree.phandle(tree.root.cell("interrupt-parent")) is node(tree, "/interrupt-controller@8000000")
    cpu = node(tree, "/cpus/cpu@100")
    assert (cpu.strings("device_type"), cpu.strings("compatible")) == (("cpu",), ("arm,armv8",))
    assert cpu.strings("enable-method") == ("psci",)
    assert node(tree, "/memory@40000000").strings("device_type") == ("memory",)
    assert "enable-method" not in node(built(MACHINES["arm-bare"]), "/cpus/cpu@0").properties


@pytest.mark.parametrize("method", ["hvc", "smc"])
def test_psci(method: str) -> None:
    """The conduit is published by the node's method."""
    psci = node(built(replace(V3, psci=method)), "/psci")
    assert psci.strings("method") == (method,) and psci.strings("compatible") == ("arm,psci-1.0", "arm,psci-0.2")
    assert built(MACHINES["arm-bare"]).at("/psci") is None


def test_a_gicv3() -> None:
    """Distributor of 64 KiB, then the redistributors and their count; ITS and v2m frame are its children."""
    gic = node(built(V3), "/interrupt-controller@8000000")
    assert gic.strings("compatible") == ("arm,gic-v3",) and gic.cell("#interrupt-cells") == 3
    assert gic.properties["interrupt-controller"] == b"" and gic.cell("#redistributor-regions") == 2
    assert gic.reg() == ((0x8000000, 0x10000), (0x80A0000, 0x40000), (0x1_0000_0000, 0x20000))
    its, v2m = gic.children
    assert its.strings("compatible") == ("arm,gic-v3-its",) and its.cell("#msi-cells") == 1
    assert its.reg() == ((0x8080000, 0x20000),) and its.properties["msi-controller"] == b""
    assert v2m.strings("compatible") == ("arm,gic-v2m-frame",) and v2m.reg() == ((0x8020000, 0x1000),)
    assert (v2m.cell("arm,msi-base-spi"), v2m.cell("arm,msi-num-spis")) == (80, 32)
    one = node(built(MACHINES["arm-bare"]), "/interrupt-controller@8000000")
    assert "#redistributor-regions" not in one.properties and not one.children and one.properties["ranges"] == b""


def test_a_gicv2() -> None:
    """Distributor and CPU interface; a PPI names the CPUs in its flags."""
    tree = built(replace(V2, personality="xen"))
    gic = node(tree, "/interrupt-controller@8000000")
    assert gic.strings("compatible") == ("arm,gic-400",)
    assert gic.reg() == ((0x8000000, 0x1000), (0x8010000, 0x2000))
    assert [child.name for child in gic.children] == ["v2m@8020000"]
    assert node(tree, "/hypervisor").cells("interrupts") == (1, 15, 0xF08)


def test_xens_node() -> None:
    """Version first; grant table and regions for foreign pages; the event channel's PPI 31, level, active low."""
    hypervisor = node(built(V3), "/hypervisor")
    assert hypervisor.strings("compatible") == ("xen,xen-4.22", "xen,xen")
    assert hypervisor.reg() == ((0x38000000, 0x1000000), (0x1_4000_0000, 0x100000))
    assert hypervisor.cells("interrupts") == (1, 15, 8)
    assert node(built(replace(V3, xen=None)), "/hypervisor").reg() == ((0x38000000, 0x1000000),)


@pytest.mark.parametrize(
    ("personality", "compatible"),
    [("kvm", "linux,kvm"), ("hyperv", "microsoft,hyperv"), ("smccc", "argosy,smccc"), ("jailhouse", ""), ("", "")],
)
def test_nodes_of_other_hypervisors(personality: str, compatible: str) -> None:
    """Some have a node, some have none."""
    found = built(replace(V3, personality=personality)).at("/hypervisor")
    assert (found.strings("compatible") if found else ("",)) == (compatible,)


def test_the_argo_node() -> None:
    """As its docstring publishes it."""
    argo = node(built(V3), "/argo@a2f0000")
    assert argo.strings("compatible") == ("argosy,argo-1", "argosy,argo") and argo.reg() == ((0xA2F0000, 0x1000),)
    assert argo.cells("interrupts") == (0, 8, 4) and argo.cell("argosy,vector-policy") == 0
    assert argo.strings("argosy,doors") == ("hvc", "smc", "mmio")
    assert argo.quads("argosy,door-selectors") == (0xC6004152, 0xC3004152, 0x0A2F0000)
    assert argo.strings("argosy,notifications") == ("virq", "line")
    assert argo.strings("argosy,services") == ("net",) and argo.cells("argosy,service-ports") == (0xC0000, 2)
    assert (argo.cell("argosy,revision"), argo.cell("argosy,features")) == (1, 0)
    bare = node(built(V2), "/argo")
    assert argo_from_tree(built(V2)) == ARGO_BARE and bare.cells("argosy,vectors") == (32, 1019)
    assert {"reg", "interrupts", "argosy,services", "argosy,notifications"}.isdisjoint(bare.properties)


@pytest.mark.parametrize(
    ("interrupt", "cells"),
    [
        (Interrupt(32), (0, 0, 1)), (Interrupt(1019, True), (0, 987, 4)), (Interrupt(33, False, True), (0, 1, 2)),
        (Interrupt(40, True, True), (0, 8, 8)), (Interrupt(16), (1, 0, 1)), (Interrupt(31, True), (1, 15, 4)),
    ],
)  # fmt: skip
def test_interrupts_have_three_cells(interrupt: Interrupt, cells: tuple[int, int, int]) -> None:
    """0 for SPIs counted from INTID 32, 1 for PPIs counted from 16; 1, 2 edge, 4, 8 level."""
    tree = built(replace(V3, argo=replace(ARGO_ARM, interrupt=interrupt)))
    assert node(tree, "/argo@a2f0000").cells("interrupts") == cells
    read_back = argo_from_tree(tree)
    assert read_back is not None and read_back.interrupt == interrupt


@pytest.mark.parametrize("number", [15, 1020, 8192])
def test_interrupts_that_a_tree_cannot_name(number: int) -> None:
    """SGIs and LPIs are nobody's line."""
    with pytest.raises(ValueError, match=f"INTID {number} is neither"):
        built(replace(V3, argo=replace(ARGO_ARM, interrupt=Interrupt(number))))


def test_numbers_that_no_cell_holds() -> None:
    """32 bits."""
    argo = replace(ARGO_BARE, vectors=(1, 1 << 32))
    with pytest.raises(ValueError, match=r"argosy,vectors: .* 32 bits"):
        built(replace(V3, argo=argo))


def test_a_pc_has_no_tree() -> None:
    """Only machines with a GIC."""
    assert PC.arch is Arch.X86_64
    with pytest.raises(ValueError, match="with a GIC"):
        devicetree.build(PC)


BLOB = devicetree.build(V3)


@given(st.lists(st.tuples(st.integers(0, len(BLOB) - 1), st.integers(0, 255)), max_size=8))
@settings(max_examples=150)
def test_changed_blobs_are_read_or_refused(edits: list[tuple[int, int]]) -> None:
    """Nothing but FdtError reaches a guest."""
    data = bytearray(BLOB)
    for at, value in edits:
        data[at] = value
    try:
        tree = fdt.parse(data)
        for found in tree.root.walk():
            found.reg()
        argo_from_tree(tree)
    except FdtError:
        pass


@given(
    st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=6),
    st.lists(st.integers(0, 0xFF_FFFF_FFFF), min_size=1, max_size=6, unique=True),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=3, unique=True),
    st.sampled_from([GIC_V2, GIC_V3]),
)
@settings(max_examples=40)
def test_any_machine_is_read_back(vectors: list[int], mpidrs: list[int], memory: list[int], gic: Gic) -> None:
    """Numbers of any size survive the cells."""
    argo = replace(ARGO_ARM, policy=VectorPolicy.SUGGESTED, vectors=tuple(vectors))
    machine = replace(
        V3, processors=tuple(mpidrs), memory=tuple(Range(base, base // 2) for base in memory), argo=argo, gic=gic
    )
    tree = built(machine)
    assert argo_from_tree(tree) == argo
    assert [cpu.reg()[0][0] for cpu in node(tree, "/cpus").children] == mpidrs
    assert [child.reg()[0] for child in tree.root.children if child.name.startswith("memory@")] == list(machine.memory)
