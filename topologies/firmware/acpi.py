"""Builds ACPI tables for a guest: one blob, to be placed at a guest physical address that is given beforehand.

The blob begins with the root pointer (revision 2), so on a PC it belongs somewhere in 0xE0000-0xFFFFF, where a guest
searches on 16-byte boundaries; the rest follows on 64-byte boundaries: XSDT, FADT, FACS (unless hardware-reduced),
MADT, DSDT, and an SSDT when the machine has Argo.  Layouts of FADT and MADT entries are the tables of :mod:`hmx.acpi`.

There is no hardware behind the fixed power-management registers of a machine that is not hardware-reduced; the FADT
names their ports because an operating system insists on them.

Source: ACPI 6.5, chapter 5.2.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from hmx import acpi
from hmx.acpi import FADT_FIELDS, FADT_SIZE, HEADER, MADT_HEAD, MADT_OF, RSDP, RSDP_ALIGNMENT, RSDP_SIGNATURE
from hmx.firmware import Interrupt
from hmx.trap import Arch
from topologies.firmware import namespace
from topologies.firmware.machine import LOCAL_APIC, Gic, Machine

OEM: Final = b"ARGOSY"
OEM_TABLE: Final = b"ARGOSY  "
CREATOR: Final = b"ARGO"
REVISION: Final = 1
ALIGNMENT: Final = 64
FACS_SIZE: Final = 64
MAX_APIC_ID: Final = 254
"""The largest local APIC id that fits a "local apic" entry: 255 means everybody."""

_HEADER_SUM: Final = 9
_RSDP_SUM: Final = 8
_RSDP_SUM_OF_ALL: Final = 32


class Revision(NamedTuple):
    """The revision that a table's header states."""

    signature: str
    revision: int


REVISIONS: Final = (
    Revision("XSDT", 1),
    Revision("FACP", 6),
    Revision("APIC", 5),
    Revision("DSDT", 2),
    Revision("SSDT", 2),
)
_REVISION_OF: Final = {row.signature: row.revision for row in REVISIONS}
FADT_MINOR: Final = 3


class HypervisorId(NamedTuple):
    """The FADT's hypervisor identity, by which some guests find out where they are."""

    personality: str
    identity: str
    source: str


HYPERVISOR_IDS: Final = (
    HypervisorId("xen", "XenVMM", "Linux arch/arm/xen/enlighten.c"),
    HypervisorId("hyperv", "MsHyperV", "Linux arch/arm64/hyperv/mshyperv.c"),
)
_IDENTITY_OF: Final = {row.personality: row.identity for row in HYPERVISOR_IDS}


class Blob(NamedTuple):
    """The bytes to be placed at `base`, and where each table lies: signature -> (address, length)."""

    base: int
    data: bytes
    tables: dict[str, tuple[int, int]]

    def table(self, signature: str) -> bytes:
        """One table's bytes."""
        address, length = self.tables[signature]
        return self.data[address - self.base : address - self.base + length]


def build(machine: Machine, base: int) -> Blob:
    """The tables of `machine` for `base`.  Raises ValueError for a base that no root pointer can have."""
    if base % RSDP_ALIGNMENT or base <= 0:
        raise ValueError(f"a root pointer lies on a 16-byte boundary, not at {base:#x}")
    found: dict[str, bytes] = {"DSDT": table("DSDT", namespace.dsdt(machine))}
    if machine.argo is not None:
        found["SSDT"] = table("SSDT", namespace.ssdt(machine.argo))
    found["APIC"] = table("APIC", madt(machine))
    if not machine.hardware_reduced:
        found["FACS"] = struct.pack("<4sI", b"FACS", FACS_SIZE).ljust(32, b"\0") + b"\2".ljust(32, b"\0")
    # What others point at comes first; the length of the two that point is known beforehand.
    listed = ["FACP", *(signature for signature in found if signature in ("APIC", "SSDT"))]
    at = _aligned(base + RSDP.size)
    places = {"XSDT": (at, HEADER.size + 8 * len(listed))}
    at = _aligned(at + places["XSDT"][1])
    places["FACP"] = (at, FADT_SIZE)
    at = _aligned(at + FADT_SIZE)
    for signature, data in found.items():
        places[signature] = (at, len(data))
        at = _aligned(at + len(data))
    found["FACP"] = table("FACP", fadt(machine, places["DSDT"][0], places.get("FACS", (0, 0))[0]))
    found["XSDT"] = table("XSDT", b"".join(struct.pack("<Q", places[signature][0]) for signature in listed))
    blob = bytearray(at - base)
    blob[: RSDP.size] = rsdp(places["XSDT"][0])
    for signature, (address, length) in places.items():
        blob[address - base : address - base + length] = found[signature]
    return Blob(base, bytes(blob), {"RSD PTR ": (base, RSDP.size), **places})


def _aligned(address: int) -> int:
    return (address + ALIGNMENT - 1) & -ALIGNMENT


def table(signature: str, body: bytes) -> bytes:
    """A table: its header, whose sum makes all bytes add up to 0, and its body."""
    length = HEADER.size + len(body)
    head = HEADER.pack(
        signature.encode(), length, _REVISION_OF[signature], 0, OEM, OEM_TABLE, REVISION, CREATOR, REVISION
    )
    data = bytearray(head + body)
    data[_HEADER_SUM] = -sum(data) & 0xFF
    return bytes(data)


def rsdp(xsdt: int) -> bytes:
    """The root pointer.  There is no RSDT: a guest that knows only 32-bit tables finds none."""
    data = bytearray(RSDP.pack(RSDP_SIGNATURE, 0, OEM, 2, 0, RSDP.size, xsdt, 0))
    data[_RSDP_SUM] = -sum(data[: acpi.RSDP_V1_SIZE]) & 0xFF
    data[_RSDP_SUM_OF_ALL] = -sum(data) & 0xFF
    return bytes(data)


def fadt(machine: Machine, dsdt: int, facs: int) -> bytes:
    """The body of the FADT."""
    values: dict[str, int | bytes] = {
        "dsdt": dsdt if dsdt < 1 << 32 else 0,
        "x_dsdt": dsdt,
        "flags": acpi.FADT_HARDWARE_REDUCED,
        "minor": FADT_MINOR,
        "hypervisor": _IDENTITY_OF.get(machine.personality, "").encode(),
    }
    if machine.arch is Arch.X86_64:
        values["pc_boot"] = acpi.PC_NO_VGA | acpi.PC_NO_CMOS_CLOCK
        values["flags"] = acpi.FADT_WBINVD | acpi.FADT_HARDWARE_REDUCED
    if machine.psci:
        values["arm_boot"] = acpi.ARM_PSCI_COMPLIANT | (acpi.ARM_PSCI_USE_HVC if machine.psci == "hvc" else 0)
    if not machine.hardware_reduced:
        values |= _fixed_hardware(machine, facs)
    body = bytearray(FADT_SIZE - HEADER.size)
    for row in FADT_FIELDS:
        if row.name in values:
            struct.pack_into(row.format, body, row.offset - HEADER.size, values[row.name])
    return bytes(body)


def _fixed_hardware(machine: Machine, facs: int) -> dict[str, int | bytes]:
    event, control, timer = machine.pm_base, machine.pm_base + 4, machine.pm_base + 8
    return {
        "flags": acpi.FADT_WBINVD
        | acpi.FADT_PROC_C1
        | acpi.FADT_POWER_BUTTON
        | acpi.FADT_SLEEP_BUTTON
        | acpi.FADT_TIMER_EXTENDED,
        "facs": facs if facs < 1 << 32 else 0,
        "x_facs": facs,
        "sci": machine.sci,
        "pm1a_event": event,
        "pm1a_control": control,
        "pm_timer": timer,
        "pm1_event_length": 4,
        "pm1_control_length": 2,
        "pm_timer_length": 4,
        "c2_latency": 0xFFFF,
        "c3_latency": 0xFFFF,
        "x_pm1a_event": _io_address(event, 32),
        "x_pm1a_control": _io_address(control, 16),
        "x_pm_timer": _io_address(timer, 32),
    }


def _io_address(port: int, bits: int) -> bytes:
    """A generic address structure in I/O space; its access size is 2 for words, 3 for double words."""
    return struct.pack("<BBBBQ", 1, bits, 0, 2 if bits == 16 else 3, port)


def madt(machine: Machine) -> bytes:
    """The body of the MADT: processors first, then what delivers interrupts to them."""
    if machine.gic is not None:
        return MADT_HEAD.pack(0, 0) + _gic(machine, machine.gic)
    parts = [MADT_HEAD.pack(LOCAL_APIC, 0)]
    for uid, apic_id in enumerate(machine.processors):
        kind = "local apic" if apic_id <= MAX_APIC_ID and uid <= 0xFF else "local x2apic"
        parts.append(_entry(kind, uid=uid, apic_id=apic_id, flags=acpi.CPU_ENABLED))
    parts += [_entry("io apic", id=row.id, address=row.address, gsi_base=row.gsi_base) for row in machine.io_apics]
    parts += [
        _entry("override", bus=0, irq=row.irq, gsi=row.interrupt.number, flags=_inti(row.interrupt))
        for row in machine.overrides
    ]
    return b"".join(parts)


def _inti(interrupt: Interrupt) -> int:
    polarity = acpi.POLARITY_LOW if interrupt.active_low else acpi.POLARITY_HIGH
    return polarity | (acpi.TRIGGER_LEVEL if interrupt.level else acpi.TRIGGER_EDGE)


def _gic(machine: Machine, gic: Gic) -> bytes:
    parts = [
        _entry(
            "gicc",
            number=uid,
            uid=uid,
            flags=acpi.CPU_ENABLED,
            base=gic.cpu_interface,
            maintenance=gic.maintenance,
            mpidr=mpidr,
        )
        for uid, mpidr in enumerate(machine.processors)
    ]
    parts.append(_entry("gicd", base=gic.distributor, version=gic.version))
    parts += [_entry("gicr", base=region.base, length=region.size) for region in gic.redistributors]
    if gic.its:
        parts.append(_entry("its", base=gic.its))
    if gic.v2m is not None:
        parts.append(
            _entry(
                "gic msi frame",
                base=gic.v2m.base,
                flags=acpi.MSI_FRAME_SPI_SELECT,
                spi_count=gic.v2m.count,
                spi_base=gic.v2m.first,
            )
        )
    return b"".join(parts)


def _entry(kind: str, **fields: int) -> bytes:
    row = MADT_OF[kind]
    layout = struct.Struct(row.layout)
    return layout.pack(row.type, layout.size, *(fields.pop(field, 0) for field in row.fields))
