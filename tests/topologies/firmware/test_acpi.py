"""ACPI tables that the planner builds, read by the guest's reader and held against numbers of ACPI 6.5."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmx import acpi as reader
from hmx.acpi import AcpiError, Table
from hmx.acpi_resources import ExtendedInterrupt, IoPorts, Irq, Memory32
from hmx.aml import Device
from hmx.firmware import ArgoDevice, Door, Interrupt, Offer, VectorPolicy, argo_from_acpi
from hmx.trap import Arch
from tests.topologies.firmware.machines import ARGO_X86, GIC_V2, GIC_V3, MACHINES, PC, RAM, memory
from topologies.firmware import acpi
from topologies.firmware.machine import Gic, Machine, Range, Uxen

BASE = 0xF_0000


def built(machine: Machine, base: int = BASE) -> tuple[dict[str, Table], dict[str, Device]]:
    """The tables by signature and the devices by path, as a guest that searches [base, base + 4 KiB) finds them."""
    blob = acpi.build(machine, base)
    read = memory(base, blob.data)
    tables = reader.tables(read, reader.find_rsdp(read, base, base + 0x1000))
    return {table.signature: table for table in tables}, reader.devices(tables)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("base", [0xE0010, BASE, 0x4100_0000, 0x2_0000_0000])
def test_a_guest_reads_what_was_described(name: str, base: int) -> None:
    """Root pointer, sums, addresses: wherever the blob lies, the guest finds its Argo device and its processors."""
    machine = MACHINES[name]
    tables, devices = built(machine, base)
    assert argo_from_acpi(devices) == machine.argo
    assert ("SSDT" in tables) is (machine.argo is not None)
    assert ("FACS" in tables) is not machine.hardware_reduced
    fadt = reader.fadt(tables["FACP"])
    assert (fadt.hardware_reduced, fadt.psci) == (machine.hardware_reduced, machine.psci)
    assert fadt.dsdt == tables["DSDT"].address
    assert [device.names["_UID"] for device in devices.values() if device.hid == "ACPI0007"] == list(
        range(len(machine.processors))
    )


def test_the_blob_says_where_tables_lie() -> None:
    """64-byte boundaries behind the root pointer; nothing overlaps; revisions as ACPI 6.5 has them."""
    blob = acpi.build(MACHINES["x86-uxen-drivers"], BASE)
    places = sorted(blob.tables.values())
    for (address, length), (after, _) in zip(places, places[1:] + [(BASE + len(blob.data), 0)], strict=True):
        assert address + length <= after and (after % 64 == 0)
    assert blob.tables["RSD PTR "] == (BASE, 36) and blob.data[:8] == b"RSD PTR " and blob.data[15] == 2
    assert blob.data[16:20] == bytes(4)
    revisions = {name: blob.table(name)[8] for name in blob.tables if name not in ("RSD PTR ", "FACS")}
    assert revisions == {"XSDT": 1, "FACP": 6, "APIC": 5, "DSDT": 2, "SSDT": 2}
    assert blob.table("FACP")[131] == 3 and blob.table("DSDT")[10:28] == b"ARGOSYARGOSY  \x01\0\0\0"


@pytest.mark.parametrize("base", [0, 8, BASE + 1, -16])
def test_a_base_that_no_root_pointer_has(base: int) -> None:
    """16-byte boundaries, not address 0."""
    with pytest.raises(ValueError, match="16-byte boundary"):
        acpi.build(PC, base)


def test_processors_of_a_pc() -> None:
    """Ids up to 254 are local APICs, 255 and above x2APICs; IRQ 7 is overridden: edge, active high."""
    madt = reader.madt(built(PC)[0]["APIC"])
    assert madt.local_apic == 0xFEE00000 and madt.flags == 0
    assert [(row["uid"], row["apic_id"], row["flags"]) for row in madt.named("local apic")] == [
        (0, 0, 1), (1, 2, 1), (2, 254, 1)
    ]  # fmt: skip
    assert [(row["uid"], row["apic_id"], row["flags"]) for row in madt.named("local x2apic")] == [
        (3, 255, 1), (4, 300, 1)
    ]  # fmt: skip
    assert madt.named("io apic") == ({"id": 0, "address": 0xFEC00000, "gsi_base": 0},)
    assert madt.named("override") == ({"bus": 0, "irq": 7, "gsi": 7, "flags": 5},)
    many = reader.madt(built(MACHINES["x86-many"])[0]["APIC"])
    assert (len(many.named("local apic")), len(many.named("local x2apic"))) == (255, 45)


def test_a_uid_that_has_no_byte_makes_an_x2apic() -> None:
    """The local APIC entry has a byte for the processor's UID as well."""
    madt = reader.madt(built(replace(PC, processors=(*range(1000, 1256), 5)))[0]["APIC"])
    assert madt.named("local apic") == () and madt.named("local x2apic")[-1] == {"apic_id": 5, "flags": 1, "uid": 256}


@pytest.mark.parametrize(
    ("interrupt", "flags"),
    [(Interrupt(9), 5), (Interrupt(9, True), 13), (Interrupt(9, False, True), 7), (Interrupt(9, True, True), 15)],
)
def test_flags_of_overrides(interrupt: Interrupt, flags: int) -> None:
    """Polarity in bits 0-1 (1 high, 3 low), trigger in bits 2-3 (1 edge, 3 level)."""
    machine = replace(PC, overrides=(PC.overrides[0]._replace(interrupt=interrupt),))
    assert reader.madt(built(machine)[0]["APIC"]).named("override")[0]["flags"] == flags


def test_the_controller_of_an_arm_machine() -> None:
    """GICC for each processor with its MPIDR, GICD with its version, redistributors, ITS, MSI frame."""
    madt = reader.madt(built(MACHINES["arm-v3"])[0]["APIC"])
    assert [entry.name for entry in madt.entries] == [*["gicc"] * 3, "gicd", "gicr", "gicr", "its", "gic msi frame"]
    assert [(row["number"], row["uid"], row["mpidr"], row["flags"]) for row in madt.named("gicc")] == [
        (0, 0, 0, 1), (1, 1, 1, 1), (2, 2, 0x100, 1)
    ]  # fmt: skip
    assert {row["base"] for row in madt.named("gicc")} == {0} and madt.named("gicc")[0]["maintenance"] == 25
    assert madt.named("gicd") == ({"id": 0, "base": 0x8000000, "vector_base": 0, "version": 3},)
    assert [tuple(row.values()) for row in madt.named("gicr")] == [(0x80A0000, 0x40000), (0x1_0000_0000, 0x20000)]
    assert madt.named("its") == ({"id": 0, "base": 0x8080000},)
    assert madt.named("gic msi frame") == ({"id": 0, "base": 0x8020000, "flags": 1, "spi_count": 32, "spi_base": 80},)
    old = reader.madt(built(MACHINES["arm-v2"])[0]["APIC"])
    assert [entry.name for entry in old.entries] == ["gicc", "gicc", "gicd", "gic msi frame"]
    assert old.named("gicc")[0]["base"] == 0x8010000 and old.named("gicd")[0]["version"] == 2


@pytest.mark.parametrize(
    ("name", "flags", "pc", "arm", "identity"),
    [
        ("x86", 1 << 20 | 1, 0x24, 0, b""),
        ("x86-many", 1 << 20 | 1, 0x24, 0, b"XenVMM"),
        ("x86-bare", 0x135, 0x24, 0, b""),
        ("arm-v3", 1 << 20, 0, 3, b"XenVMM"),
        ("arm-v2", 1 << 20, 0, 1, b"MsHyperV"),
        ("arm-bare", 1 << 20, 0, 0, b""),
    ],
)
def test_flags_of_the_fadt(name: str, flags: int, pc: int, arm: int, identity: bytes) -> None:
    """Bytes at 112, 109, 129 and 268 (ACPI 6.5, table 5.9)."""
    data = built(MACHINES[name])[0]["FACP"].data
    assert len(data) == 276
    assert struct.unpack_from("<I", data, 112) == (flags,) and struct.unpack_from("<H", data, 109) == (pc,)
    assert struct.unpack_from("<H", data, 129) == (arm,) and data[268:276] == identity.ljust(8, b"\0")


def test_identities_have_eight_bytes_at_most() -> None:
    """What is longer would be cut off."""
    assert [(row.personality, row.identity) for row in acpi.HYPERVISOR_IDS] == [
        ("xen", "XenVMM"),
        ("hyperv", "MsHyperV"),
    ]


def test_fixed_hardware_of_a_pc() -> None:
    """Registers from 0x600 on: events (4 bytes), control (2), timer (4), once as ports and once as addresses."""
    tables = built(MACHINES["x86-bare"])[0]
    data = tables["FACP"].data
    assert struct.unpack_from("<H", data, 46) == (9,)
    assert [struct.unpack_from("<I", data, at)[0] for at in (56, 64, 76)] == [0x600, 0x604, 0x608]
    assert (data[88], data[89], data[91]) == (4, 2, 4) and data[96:100] == b"\xff\xff\xff\xff"
    assert data[148:160].hex() == "012000030006000000000000"
    assert data[172:184].hex() == "011000020406000000000000"
    assert data[208:220].hex() == "012000030806000000000000"
    facs = tables["FACS"]
    assert struct.unpack_from("<I", data, 36) == struct.unpack_from("<Q", data, 132)[:1] == (facs.address,)
    assert struct.unpack_from("<I", data, 40) == struct.unpack_from("<Q", data, 140)[:1] == (tables["DSDT"].address,)
    assert len(facs.data) == 64 and facs.data[32] == 2 and facs.address % 64 == 0
    reduced = built(PC)[0]["FACP"].data
    assert reduced[56:92] == bytes(36) and reduced[36:40] == bytes(4) and reduced[148:220] == bytes(72)


def test_addresses_beyond_4_gib_have_no_narrow_form() -> None:
    """DSDT and FACS of 32 bits are 0 where the wide ones count."""
    data = built(MACHINES["x86-bare"], 0x2_0000_0000)[0]["FACP"].data
    assert data[36:44] == bytes(8) and struct.unpack_from("<QQ", data, 132)[0] > 1 << 32


def test_devices_of_a_uxen_guest() -> None:
    """v4v on ISA IRQ 7; the enumerator owns 0x330-0x33F and is hidden; four children; the control byte is taken."""
    devices = built(MACHINES["x86-uxen"])[1]
    v4v, parent = devices["\\_SB.UXV4"], devices["\\_SB.UXSE"]
    assert (v4v.hid, v4v.cids, v4v.names["_STA"]) == ("UXV0100", ("uxenv4v",), 0x0F)
    assert v4v.resources() == (Irq((7,), False, False),)
    assert (parent.hid, parent.cids, parent.names["_STA"]) == ("UXS0FFF", ("uxsenum",), 0x0B)
    assert parent.resources() == (IoPorts(0x330, 0x330, 1, 0x10),)
    children = [devices[f"\\_SB.UXSE.UXS{unit}"] for unit in range(4)]
    assert [child.hid for child in children] == ["UXS0000", "UXS0001", "UXS0002", "UXS0003"]
    assert [child.names["_UID"] for child in children] == [0, 1, 2, 3]
    assert IoPorts(0x32F, 0x32F, 1, 1) in devices["\\_SB.MBRD"].resources()
    assert "\\_SB.UXSE" not in built(MACHINES["x86-uxen-plain"])[1]


@pytest.mark.parametrize(("name", "bit"), [("x86-uxen", b"\0"), ("x86-uxen-drivers", b"\1")])
def test_polarity_of_the_enumerators_children(name: str, bit: bytes) -> None:
    """_STA is 0x0F when the child's field has the value that means presence: 0 of old, 1 as drivers read it."""
    dsdt = built(MACHINES[name])[0]["DSDT"].data
    for unit in range(4):
        body = b"\x93USP%d" % unit + bit + b"\xa4\x0a\x0f"
        assert b"_STA\0\xa0" + bytes((len(body) + 1,)) + body + b"\xa4\0" in dsdt


def test_ports_that_the_motherboard_claims() -> None:
    """Of the `pio` door, and of the fixed registers where there are such; a machine without any has no such device."""
    devices = built(replace(PC, hardware_reduced=False))[1]
    board = devices["\\_SB.MBRD"]
    assert board.hid == "PNP0C02"
    assert board.resources() == (IoPorts(0x4152, 0x4152, 1, 4), IoPorts(0x600, 0x600, 1, 0x10))
    assert "\\_SB.MBRD" not in built(replace(PC, argo=None))[1]
    assert "\\_SB.MBRD" not in built(MACHINES["arm-v3"])[1]


def test_virtio_mmio_devices() -> None:
    """LNRO0005 with a window of 0x200 bytes and a level line each (Linux virtio_mmio.c)."""
    devices = [device for device in built(PC)[1].values() if device.hid == "LNRO0005"]
    assert [device.names["_UID"] for device in devices] == [0, 1] and devices[0].names["_CCA"] == 1
    assert [device.resources() for device in devices] == [
        (Memory32(0xFEB00000, 0x200, True), ExtendedInterrupt((16,), True, False)),
        (Memory32(0xFEB00200, 0x200, True), ExtendedInterrupt((17,), True, False)),
    ]


def test_generation_id_and_events() -> None:
    """ADDR is {low, high} of the id's address; the GED claims its interrupts and notifies with 0x80."""
    tables, devices = built(MACHINES["x86-ged-argo"])
    assert devices["\\_SB.VGEN"].names["ADDR"] == (0x1000, 1)
    assert devices["\\_SB.VGEN"].cids == ("VM_Gen_Counter", "VMGENCTR")
    events = devices["\\_SB.GED0"]
    assert events.hid == "ACPI0013"
    assert events.resources() == (ExtendedInterrupt((20,), False, False), ExtendedInterrupt((300,), True, False))
    dsdt = tables["DSDT"].data
    assert b"_EVT\x09" in dsdt
    assert b"\x93\x68\x0a\x14\x86\\\x2e_SB_VGEN\x0a\x80" in dsdt
    assert b"\x93\x68\x0b\x2c\x01\x86\\\x2e_SB_ARGO\x0a\x80" in dsdt


def test_names_of_the_argo_device() -> None:
    """What another driver would evaluate, by the names that the docstring publishes."""
    device = built(PC)[1]["\\_SB.ARGO"]
    assert device.names["ADRS"] == (
        ("msr", 0x400000E0), ("pio", 0x4152), ("cpuid", 0x41726730), ("mmio", 0xFEDF8000)
    )  # fmt: skip
    assert (device.names["APOL"], device.names["AVEC"], device.names["_STA"]) == (1, (0xD0, 0xC0), 0x0F)
    assert device.names["ANTF"] == ("virq", "line", "vector-per-cpu")
    assert device.names["ASVC"] == (("storage", 0xD0000, 128), ("discovery", 0xA0000, 1))
    assert device.resources() == (Memory32(0xFEDF8000, 0x1000, True), ExtendedInterrupt((10,), False, False))


@pytest.mark.parametrize(
    "changes",
    [
        {"processors": ()}, {"processors": (1, 1)}, {"psci": "eret"}, {"psci": "hvc"}, {"gic": GIC_V3},
        {"arch": Arch.AARCH64}, {"arch": Arch.AARCH64, "gic": GIC_V3, "hardware_reduced": False},
        {"arch": Arch.AARCH64, "gic": GIC_V3, "uxen": Uxen()}, {"arch": Arch.AARCH64, "gic": Gic(2, 1)},
        {"arch": Arch.AARCH64, "gic": Gic(3, 1)}, {"arch": Arch.AARCH64, "gic": replace(GIC_V2, cpu_interface=0)},
    ],
)  # fmt: skip
def test_machines_that_no_firmware_describes(changes: dict[str, object]) -> None:
    """Refused when the description is made."""
    with pytest.raises(ValueError, match=r"machine|PSCI|GIC|uXen"):
        replace(PC, **changes)  # type: ignore[arg-type]


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
ARGO = st.builds(
    ArgoDevice,
    doors=st.lists(st.builds(Door, NAMES, st.integers(0, (1 << 64) - 1)), max_size=6).map(tuple),
    policy=st.just(VectorPolicy.SUGGESTED),
    vectors=st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=8).map(tuple),
    interrupt=st.none() | st.builds(Interrupt, st.integers(0, 0xFFFF_FFFF), st.booleans(), st.booleans()),
    mmio=st.none() | st.integers(0, 0xFFFF_F000),
    notifications=st.lists(NAMES, max_size=5).map(tuple),
    services=st.lists(st.builds(Offer, NAMES, st.integers(0, 0xFFFF_FFFF), st.integers(0, 4096)), max_size=9).map(
        tuple
    ),
    features=st.integers(0, (1 << 64) - 1),
)


@given(ARGO)
@settings(max_examples=40)
def test_any_argo_device_is_read_back(argo: ArgoDevice) -> None:
    """The facts of :mod:`hmx.firmware` survive the byte code."""
    assert argo_from_acpi(built(Machine(Arch.X86_64, (0,), RAM, argo=argo))[1]) == argo


BLOB = acpi.build(MACHINES["x86-uxen-drivers"], BASE)


@given(st.lists(st.tuples(st.integers(0, len(BLOB.data) - 1), st.integers(0, 255)), max_size=6), st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_changed_blobs_are_read_or_refused(edits: list[tuple[int, int]], sum_up: bool) -> None:
    """Nothing but AcpiError reaches a guest, with the tables' sums left wrong and with them made right again."""
    data = bytearray(BLOB.data)
    for at, value in edits:
        data[at] = value
    if sum_up:
        for address, length in BLOB.tables.values():
            if address != BASE:
                at = address - BASE
                data[at + 9] = (data[at + 9] - sum(data[at : at + length])) & 0xFF
    read = memory(BASE, bytes(data))
    try:
        tables = reader.tables(read, reader.find_rsdp(read, BASE, BASE + 0x1000))
        for device in reader.devices(tables).values():
            device.resources()
        argo_from_acpi(reader.devices(tables))
        for table in tables:
            if table.signature == "APIC":
                reader.madt(table)
    except AcpiError:
        pass


def test_ranges_are_pairs() -> None:
    """A region is a base and a size, in this order."""
    assert Range(1, 2) == (1, 2) and ARGO_X86.mmio == 0xFEDF8000
