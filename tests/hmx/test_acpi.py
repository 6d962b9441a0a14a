"""The guest's reader of ACPI tables (ACPI 6.5, 5.2)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx import acpi
from hmx.acpi import AcpiError, Madt, Table
from hmx.firmware import argo_from_acpi
from tests.hmx.test_aml import EDITS, SAMPLE, changed


def summed(signature: bytes, body: bytes, revision: int = 1) -> bytes:
    """A table whose bytes add up to 0."""
    head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, b"OEM", b"TABLE", 1, b"ME", 1)
    data = bytearray(head + body)
    data[9] = -sum(data) & 0xFF
    return bytes(data)


def pointer(xsdt: int, revision: int = 2) -> bytes:
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"OEM", revision, 0, 36, xsdt, 0))
    data[8] = -sum(data[:20]) & 0xFF
    data[32] = -sum(data) & 0xFF
    return bytes(data)


def fixed(dsdt: int, facs: int = 0, **at: int) -> bytes:
    """An FADT; `at` are further bytes by their offset in the table, `b131=3`."""
    data = bytearray(276)
    struct.pack_into("<I", data, 36, facs)
    struct.pack_into("<I", data, 40, dsdt)
    for offset, value in at.items():
        data[int(offset[1:])] = value
    return summed(b"FACP", bytes(data[36:]), 6)


class Memory:
    """Pieces of memory by address; everything else is not there."""

    def __init__(self, **pieces: bytes) -> None:
        self.pieces = {int(name[1:], 16): bytearray(data) for name, data in pieces.items()}

    def read(self, address: int, length: int) -> bytes | None:
        for base, data in self.pieces.items():
            if base <= address and address + length <= base + len(data):
                return bytes(data[address - base : address - base + length])
        return None


def memory() -> Memory:
    """A root pointer that is not on the first boundary, an XSDT, and five tables behind it."""
    return Memory(
        xe0000=bytes(64) + pointer(0x2000) + bytes(64),
        x2000=summed(b"XSDT", struct.pack("<QQ", 0x3000, 0x5000)),
        x3000=fixed(0x4000, 0x6000),
        x4000=summed(b"DSDT", SAMPLE, 2),
        x5000=summed(b"SSDT", bytes.fromhex("5b820b") + b"SSDV" + b"\x08ONE_\x01", 2),
        x6000=struct.pack("<4sI", b"FACS", 64).ljust(64, b"\xff"),
    )


def test_tables_are_found_from_the_root_pointer() -> None:
    """16-byte boundaries are searched; FADT leads to DSDT and FACS; DSDT is read before SSDTs."""
    found = memory()
    root = acpi.find_rsdp(found.read, 0xE0000, 0xE0080)
    assert root == 0xE0040
    got = acpi.tables(found.read, root)
    assert [(table.signature, table.address) for table in got] == [
        ("XSDT", 0x2000), ("FACP", 0x3000), ("DSDT", 0x4000), ("FACS", 0x6000), ("SSDT", 0x5000)
    ]  # fmt: skip
    assert got[2].revision == 2 and got[2].body == SAMPLE
    assert list(acpi.devices(reversed(got))) == ["\\_SB.DEVA", "\\_SB.DEVA.CHLD", "\\_SB.DEVB", "\\SSDV"]
    assert argo_from_acpi(acpi.devices(got)) is None


def test_where_a_pc_looks() -> None:
    """0xE0000 to 0xFFFFF when nothing else is asked; memory that is not there is passed over."""
    found = Memory(xffff0=b"", xfffd0=bytes(12) + bytes(4) + pointer(0x10)[:32], xf0000=pointer(0x1000))
    assert acpi.find_rsdp(found.read) == 0xF0000
    with pytest.raises(AcpiError, match="no root pointer between 0xe0000 and 0x100000"):
        acpi.find_rsdp(Memory().read)
    for start, end in ((0, 0), (5, 4), (-16, 16), (0, (1 << 20) + 1)):
        with pytest.raises(AcpiError, match="no window"):
            acpi.find_rsdp(found.read, start, end)


@pytest.mark.parametrize("at", range(36))
def test_a_root_pointer_with_a_changed_byte_is_none(at: int) -> None:
    """Both sums are verified: there is no byte that may change."""
    found = memory()
    found.pieces[0xE0000][64 + at] ^= 0x10
    with pytest.raises(AcpiError, match="no root pointer"):
        acpi.find_rsdp(found.read, 0xE0000, 0xE0080)
    with pytest.raises(AcpiError, match="no valid root pointer at 0xe0040"):
        acpi.tables(found.read, 0xE0040)


def test_a_root_pointer_of_revision_0_has_no_xsdt() -> None:
    """ACPI 1.0 knew only 32-bit tables."""
    with pytest.raises(AcpiError, match="no root pointer"):
        acpi.find_rsdp(Memory(xe0000=pointer(0x2000, revision=0)).read, 0xE0000, 0xE0040)


@pytest.mark.parametrize("base", [0x2000, 0x3000, 0x4000, 0x5000])
def test_every_checksum_is_verified(base: int) -> None:
    """One changed byte in the body of any table; FACS has no sum."""
    found = memory()
    found.pieces[base][-1] ^= 1
    with pytest.raises(AcpiError, match=f"checksum .* at {base:#x} is wrong"):
        acpi.tables(found.read, 0xE0040)


@pytest.mark.parametrize(
    ("base", "data", "words"),
    [
        (0x2000, summed(b"XSDT", bytes(12)), "XSDT of 12 bytes"),
        (0x2000, summed(b"XSDT", bytes(8 * 129)), "XSDT of 1032"),
        (0x2000, summed(b"RSDT", bytes(8)), "'RSDT', not XSDT"),
        (0x2000, b"XSDT" + bytes(40), "claims 0 bytes"),
        (0x2000, b"XSDT\x00\x00\x11\x00" + bytes(40), "claims 1114112 bytes"),
        (0x2000, b"XSDT\x00\x10\x00\x00" + bytes(40), "reaches beyond memory"),
        (0x3000, bytes(8), "no table at 0x3000"),
        (0x3000, summed(b"FACP", bytes(80)), "FADT of 116 bytes"),
        (0x3000, fixed(0x5000), "'SSDT', not DSDT"),
        (0x3000, fixed(0x4000, 0x5000), "'SSDT', not FACS"),
    ],
)
def test_tables_that_are_not_what_they_must_be(base: int, data: bytes, words: str) -> None:
    """Lengths are bounded before anything is read, and a pointer leads to the table that it names."""
    found = memory()
    found.pieces[base] = bytearray(data)
    with pytest.raises(AcpiError, match=words):
        acpi.tables(found.read, 0xE0040)


@pytest.mark.parametrize(
    ("at", "psci", "reduced"),
    [
        ({}, "", False),
        ({"b114": 0x10}, "", True),
        ({"b129": 1}, "smc", False),
        ({"b129": 3}, "hvc", False),
        ({"b129": 2}, "", False),
    ],
)
def test_what_the_fadt_says(at: dict[str, int], psci: str, reduced: bool) -> None:
    """Flag bit 20 is hardware-reduced; ARM_BOOT_ARCH bit 0 is PSCI, bit 1 says by HVC."""
    found = acpi.fadt(Table("FACP", 0, fixed(0x4000, 0x6000, b268=0x58, b269=0x65, **at)))
    assert found == acpi.Fadt(0x4000, 0x6000, reduced, psci, "Xe")


def test_the_wide_addresses_of_the_fadt_win() -> None:
    """X_DSDT at 140 and X_FIRMWARE_CTRL at 132 count before their 32-bit elders."""
    found = acpi.fadt(Table("FACP", 0, fixed(0x4000, 0x6000, b141=0x70, b144=1, b133=0x80, b136=2)))
    assert (found.dsdt, found.facs) == (0x1_0000_7000, 0x2_0000_8000)


#: One entry of each kind, by hand from the specification: bytes, name, fields.
ENTRIES = [
    ("00 08 01 02 01000000", "local apic", {"uid": 1, "apic_id": 2, "flags": 1}),
    ("01 0c 03 00 0000c0fe 18000000", "io apic", {"id": 3, "address": 0xFEC00000, "gsi_base": 24}),
    ("02 0a 00 07 15000000 0500", "override", {"bus": 0, "irq": 7, "gsi": 21, "flags": 5}),
    ("09 10 0000 2c010000 01000000 04000000", "local x2apic", {"apic_id": 300, "flags": 1, "uid": 4}),
    (
        "0b 50 0000 01000000 02000000 03000000 04000000 05000000 0600000000000000 0700000000000000 0800000000000000"
        "0900000000000000 0a000000 0b00000000000000 0c00000000000000 0d 00 0e00",
        "gicc",
        {
            "number": 1, "uid": 2, "flags": 3, "parking": 4, "performance": 5, "parked": 6, "base": 7, "gicv": 8,
            "gich": 9, "maintenance": 10, "redistributor": 11, "mpidr": 12, "efficiency": 13, "spe": 14,
        },
    ),
    (
        "0c 18 0000 01000000 0000000800000000 02000000 03 000000",
        "gicd",
        {"id": 1, "base": 0x8000000, "vector_base": 2, "version": 3},
    ),
    (
        "0d 18 0000 01000000 0000020800000000 01000000 2000 5000",
        "gic msi frame",
        {"id": 1, "base": 0x8020000, "flags": 1, "spi_count": 32, "spi_base": 80},
    ),
    ("0e 10 0000 00000a0800000000 00000400", "gicr", {"base": 0x80A0000, "length": 0x40000}),
    ("0f 14 0000 01000000 0000080800000000 00000000", "its", {"id": 1, "base": 0x8080000}),
    ("7f 03 aa", "", {}),
]  # fmt: skip


def interrupts(entries: bytes) -> Madt:
    return acpi.madt(Table("APIC", 0, summed(b"APIC", bytes.fromhex("0000e0fe01000000") + entries)))


def test_every_kind_of_madt_entry() -> None:
    """Fields lie where the specification has them; an unknown kind is skipped by its length."""
    found = interrupts(b"".join(bytes.fromhex(data) for data, _, _ in ENTRIES))
    assert (found.local_apic, found.flags) == (0xFEE00000, 1)
    assert [(entry.name, entry.fields) for entry in found.entries] == [(name, fields) for _, name, fields in ENTRIES]
    assert found.entries[-1].type == 0x7F
    assert found.named("gicr") == ({"base": 0x80A0000, "length": 0x40000},)


@pytest.mark.parametrize(
    ("entries", "words"),
    [("00", "type 0"), ("00 00", "type 0"), ("00 01", "type 0"), ("00 09 01 02 01000000", "runs out"),
     ("00 06 01 02 0100", "'local apic' has 6 bytes, not 8")],
)  # fmt: skip
def test_madt_entries_that_run_out(entries: str, words: str) -> None:
    """A length below 2 would never get anywhere."""
    with pytest.raises(AcpiError, match=words):
        interrupts(bytes.fromhex(entries))
    with pytest.raises(AcpiError, match="without its head"):
        acpi.madt(Table("APIC", 0, summed(b"APIC", bytes(7))))


@given(st.binary(max_size=300))
def test_any_entries_read_or_are_refused(data: bytes) -> None:
    """MADT entries from nowhere."""
    try:
        interrupts(data)
    except AcpiError:
        pass


@given(st.sampled_from([0xE0000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]), EDITS, st.booleans())
def test_changed_tables_read_or_are_refused(base: int, edits: list[tuple[int, int]], sum_up: bool) -> None:
    """Nothing but AcpiError, with the sums left wrong and with the sums made right again."""
    found = memory()
    data = bytearray(changed(bytes(found.pieces[base]), edits))
    if sum_up and base != 0xE0000:
        data[9] = (data[9] - sum(data)) & 0xFF
    found.pieces[base] = data
    try:
        acpi.devices(acpi.tables(found.read, acpi.find_rsdp(found.read, 0xE0000, 0xE0080)))
    except AcpiError:
        pass
