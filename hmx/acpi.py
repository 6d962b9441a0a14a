"""ACPI tables as a guest finds them: the root pointer, the tables behind it, and what MADT and FADT say.

Memory is reached through a function `read(address, length)` that gives bytes or, for a range that is not there, None.
Every length is bounded and every checksum verified before anything is believed; whatever is wrong ends in
:class:`AcpiError`.  Byte code is read by :mod:`hmx.aml`.

The layouts below are tables that the builder of the same blobs uses as well.

Source: ACPI 6.5, chapter 5.2 (MADT of revision 5: GICC of 80 bytes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from hmx import aml
from hmx.acpi_resources import AcpiError

__all__ = ["AcpiError", "Fadt", "Madt", "MadtEntry", "Table", "devices", "fadt", "find_rsdp", "load", "madt", "tables"]

Read = Callable[[int, int], bytes | bytearray | memoryview | None]

RSDP_SIGNATURE: Final = b"RSD PTR "
RSDP_ALIGNMENT: Final = 16
RSDP_V1_SIZE: Final = 20
RSDP: Final = struct.Struct("<8sB6sBIIQB3x")  # signature, sum, oem, revision, rsdt, length, xsdt, sum of all
BIOS_WINDOW: Final = (0xE0000, 0x100000)
"""Where a PC's guest looks for the root pointer."""

HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")  # signature, length, revision, sum, oem, table id and revision, creator
MAX_TABLE: Final = 1 << 20
MAX_TABLES: Final = 128
MAX_SEARCH: Final = 1 << 20


class FadtField(NamedTuple):
    """One field of the FADT: where it lies, and its struct format."""

    name: str
    offset: int
    format: str


FADT_SIZE: Final = 276
FADT_FIELDS: Final = (
    FadtField("facs", 36, "<I"),
    FadtField("dsdt", 40, "<I"),
    FadtField("sci", 46, "<H"),
    FadtField("pm1a_event", 56, "<I"),
    FadtField("pm1a_control", 64, "<I"),
    FadtField("pm_timer", 76, "<I"),
    FadtField("pm1_event_length", 88, "<B"),
    FadtField("pm1_control_length", 89, "<B"),
    FadtField("pm_timer_length", 91, "<B"),
    FadtField("c2_latency", 96, "<H"),
    FadtField("c3_latency", 98, "<H"),
    FadtField("pc_boot", 109, "<H"),
    FadtField("flags", 112, "<I"),
    FadtField("arm_boot", 129, "<H"),
    FadtField("minor", 131, "<B"),
    FadtField("x_facs", 132, "<Q"),
    FadtField("x_dsdt", 140, "<Q"),
    FadtField("x_pm1a_event", 148, "<12s"),
    FadtField("x_pm1a_control", 172, "<12s"),
    FadtField("x_pm_timer", 208, "<12s"),
    FadtField("hypervisor", 268, "<8s"),
)

FADT_WBINVD: Final = 1 << 0
FADT_PROC_C1: Final = 1 << 2
FADT_POWER_BUTTON: Final = 1 << 4
FADT_SLEEP_BUTTON: Final = 1 << 5
FADT_TIMER_EXTENDED: Final = 1 << 8
FADT_HARDWARE_REDUCED: Final = 1 << 20
ARM_PSCI_COMPLIANT: Final = 1 << 0
ARM_PSCI_USE_HVC: Final = 1 << 1
PC_NO_VGA: Final = 1 << 2
PC_NO_CMOS_CLOCK: Final = 1 << 5


class MadtRow(NamedTuple):
    """One kind of MADT entry: its type, name, layout from the type byte on, and the fields behind type and length."""

    type: int
    name: str
    layout: str
    fields: tuple[str, ...]


MADT_ENTRIES: Final = (
    MadtRow(0x00, "local apic", "<BBBBI", ("uid", "apic_id", "flags")),
    MadtRow(0x01, "io apic", "<BBBxII", ("id", "address", "gsi_base")),
    MadtRow(0x02, "override", "<BBBBIH", ("bus", "irq", "gsi", "flags")),
    MadtRow(0x09, "local x2apic", "<BB2xIII", ("apic_id", "flags", "uid")),
    MadtRow(
        0x0B,
        "gicc",
        "<BB2xIIIIIQQQQIQQBxH",
        (
            "number", "uid", "flags", "parking", "performance", "parked", "base", "gicv", "gich", "maintenance",
            "redistributor", "mpidr", "efficiency", "spe",
        ),
    ),
    MadtRow(0x0C, "gicd", "<BB2xIQIB3x", ("id", "base", "vector_base", "version")),
    MadtRow(0x0D, "gic msi frame", "<BB2xIQIHH", ("id", "base", "flags", "spi_count", "spi_base")),
    MadtRow(0x0E, "gicr", "<BB2xQI", ("base", "length")),
    MadtRow(0x0F, "its", "<BB2xIQ4x", ("id", "base")),
)  # fmt: skip
MADT_OF: Final = {row.name: row for row in MADT_ENTRIES}
_MADT_BY_TYPE: Final = {row.type: row for row in MADT_ENTRIES}
MADT_HEAD: Final = struct.Struct("<II")  # local APIC address, flags
_BLOCKS: Final = ("DSDT", "SSDT")
CPU_ENABLED: Final = 1
MSI_FRAME_SPI_SELECT: Final = 1
POLARITY_HIGH: Final = 1
POLARITY_LOW: Final = 3
TRIGGER_EDGE: Final = 1 << 2
TRIGGER_LEVEL: Final = 3 << 2


class Table(NamedTuple):
    """One table as it lay in memory, header included."""

    signature: str
    address: int
    data: bytes

    @property
    def revision(self) -> int:
        """Of the table's layout."""
        return self.data[8]

    @property
    def body(self) -> bytes:
        """What follows the header."""
        return self.data[HEADER.size :]


class MadtEntry(NamedTuple):
    """One entry; `name` is "" and `fields` empty for a type that this reader does not know."""

    type: int
    name: str
    fields: dict[str, int]


class Madt(NamedTuple):
    """The interrupt model: the local APICs' address, flags (bit 0: there are legacy 8259s), entries in order."""

    local_apic: int
    flags: int
    entries: tuple[MadtEntry, ...]

    def named(self, name: str) -> tuple[dict[str, int], ...]:
        """The fields of all entries of one kind."""
        return tuple(entry.fields for entry in self.entries if entry.name == name)


class Fadt(NamedTuple):
    """The fixed description, as far as a guest of ours asks for it.  `psci` is "hvc", "smc" or ""."""

    dsdt: int
    facs: int
    hardware_reduced: bool
    psci: str
    hypervisor: str


def find_rsdp(read: Read, start: int = BIOS_WINDOW[0], end: int = BIOS_WINDOW[1]) -> int:
    """The address of the first valid root pointer (revision 2) in [start, end), at most 1 MiB.  Raises AcpiError."""
    if not 0 <= start < end or end - start > MAX_SEARCH:
        raise AcpiError(f"no window to search: {start:#x} to {end:#x}")
    for address in range((start + RSDP_ALIGNMENT - 1) & -RSDP_ALIGNMENT, end - RSDP.size + 1, RSDP_ALIGNMENT):
        head = read(address, len(RSDP_SIGNATURE))
        if head is not None and bytes(head) == RSDP_SIGNATURE and _root(read, address):
            return address
    raise AcpiError(f"no root pointer between {start:#x} and {end:#x}")


def _root(read: Read, address: int) -> int:
    """The XSDT's address by the root pointer at `address`; 0 when the pointer is not valid."""
    data = read(address, RSDP.size)
    if data is None or len(data) != RSDP.size or sum(data) & 0xFF or sum(data[:RSDP_V1_SIZE]) & 0xFF:
        return 0
    signature, _, _, revision, _, length, xsdt, _ = RSDP.unpack(data)
    return int(xsdt) if signature == RSDP_SIGNATURE and revision >= 2 and length == RSDP.size else 0


def load(read: Read, address: int, signature: str = "") -> Table:
    """The table at `address`, its checksum verified; FACS has none.  Raises AcpiError."""
    head = read(address, HEADER.size)
    if head is None or len(head) != HEADER.size:
        raise AcpiError(f"no table at {address:#x}")
    found, length = struct.unpack_from("<4sI", head)
    name = found.decode("latin-1")
    if signature and name != signature:
        raise AcpiError(f"the table at {address:#x} is {name!r}, not {signature}")
    if not HEADER.size <= length <= MAX_TABLE:
        raise AcpiError(f"the {name!r} table at {address:#x} claims {length} bytes")
    data = read(address, length)
    if data is None or len(data) != length:
        raise AcpiError(f"the {name!r} table at {address:#x} reaches beyond memory")
    data = bytes(data)
    if name != "FACS" and sum(data) & 0xFF:
        raise AcpiError(f"the checksum of the {name!r} table at {address:#x} is wrong")
    return Table(name, address, data)


def tables(read: Read, rsdp: int) -> tuple[Table, ...]:
    """All tables behind the root pointer at `rsdp`: XSDT, those that it lists, DSDT and FACS.  Raises AcpiError."""
    address = _root(read, rsdp)
    if not address:
        raise AcpiError(f"no valid root pointer at {rsdp:#x}")
    xsdt = load(read, address, "XSDT")
    if len(xsdt.body) % 8 or len(xsdt.body) // 8 > MAX_TABLES:
        raise AcpiError(f"an XSDT of {len(xsdt.body)} bytes")
    found = [xsdt]
    for (entry,) in struct.iter_unpack("<Q", xsdt.body):
        table = load(read, entry)
        found.append(table)
        if table.signature == "FACP":
            fixed = fadt(table)
            found.append(load(read, fixed.dsdt, "DSDT"))
            if fixed.facs:
                found.append(load(read, fixed.facs, "FACS"))
    return tuple(found)


def devices(found: Iterable[Table]) -> dict[str, aml.Device]:
    """Every device of DSDT and SSDTs by its path.  Raises AcpiError."""
    blocks = sorted((table for table in found if table.signature in _BLOCKS), key=lambda table: table.signature)
    return aml.devices(tuple(table.body for table in blocks))


def fadt(table: Table) -> Fadt:
    """What the FADT says.  Raises AcpiError when it is shorter than revision 6."""
    if len(table.data) < FADT_SIZE:
        raise AcpiError(f"an FADT of {len(table.data)} bytes; revision 6 has {FADT_SIZE}")
    value = {row.name: struct.unpack_from(row.format, table.data, row.offset)[0] for row in FADT_FIELDS}
    psci = ""
    if value["arm_boot"] & ARM_PSCI_COMPLIANT:
        psci = "hvc" if value["arm_boot"] & ARM_PSCI_USE_HVC else "smc"
    return Fadt(
        value["x_dsdt"] or value["dsdt"],
        value["x_facs"] or value["facs"],
        bool(value["flags"] & FADT_HARDWARE_REDUCED),
        psci,
        value["hypervisor"].rstrip(b"\0").decode("latin-1"),
    )


def madt(table: Table) -> Madt:
    """The entries of the MADT.  Raises AcpiError for one that runs out of it or is shorter than its kind."""
    body = table.body
    if len(body) < MADT_HEAD.size:
        raise AcpiError("a MADT without its head")
    local_apic, flags = MADT_HEAD.unpack_from(body)
    entries = []
    at = MADT_HEAD.size
    while at < len(body):
        kind = body[at]
        length = body[at + 1] if at + 1 < len(body) else 0
        if length < 2 or at + length > len(body):
            raise AcpiError(f"the MADT entry of type {kind} at {at:#x} runs out of the table")
        row = _MADT_BY_TYPE.get(kind)
        if row is None:
            entries.append(MadtEntry(kind, "", {}))
        else:
            layout = struct.Struct(row.layout)
            if length < layout.size:
                raise AcpiError(f"the MADT entry {row.name!r} has {length} bytes, not {layout.size}")
            values = layout.unpack_from(body, at)
            entries.append(MadtEntry(kind, row.name, dict(zip(row.fields, values[2:], strict=True))))
        at += length
    return Madt(local_apic, flags, tuple(entries))
