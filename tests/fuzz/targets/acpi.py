"""Property: memory holds tables, or AcpiError says in few words why not; what is accepted lies where it says, adds up
to zero, and its MADT, FADT and devices are read or refused the same way.

Input: a choice, then memory from a base on.  With bit 0 of the choice every checksum is made right first, so that what
stands behind it is reached; with bit 1 the first table is taken for a MADT, and one for a FADT.
"""

from __future__ import annotations

import struct

from hmx import acpi
from hmx.acpi import AcpiError
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
BASE = 0xE0000
WORDS = 400  # an error quotes what it found


def resealed(data: bytes) -> bytes:
    """The same memory with right checksums: of a root pointer at its start, its XSDT, what that lists, their DSDT."""
    memory = bytearray(data)

    def seal(address: int) -> int:
        """The size of the table there, 0 for none that lies inside."""
        at = address - BASE
        if not 0 <= at <= len(memory) - 36:
            return 0
        (length,) = struct.unpack_from("<I", memory, at + 4)
        if not 36 <= length <= len(memory) - at:
            return 0
        memory[at + 9] = 0
        memory[at + 9] = -sum(memory[at : at + length]) & 0xFF
        return int(length)

    if len(memory) < 36:
        return bytes(memory)
    (xsdt,) = struct.unpack_from("<Q", memory, 24)
    for place in range(xsdt - BASE + 36, xsdt - BASE + min(seal(xsdt), 36 + 8 * 16), 8):
        (entry,) = struct.unpack_from("<Q", memory, place) if 0 <= place <= len(memory) - 8 else (0,)
        if seal(entry) >= acpi.FADT_SIZE and memory[entry - BASE : entry - BASE + 4] == b"FACP":
            for offset, layout in ((40, "<I"), (140, "<Q")):
                seal(struct.unpack_from(layout, memory, entry - BASE + offset)[0])
    seal(xsdt)
    memory[8] = memory[32] = 0
    memory[8] = -sum(memory[:20]) & 0xFF
    memory[32] = -sum(memory[:36]) & 0xFF
    return bytes(memory)


def one_input(data: bytes) -> None:
    """Walk the tables, then read each of them."""
    choices = Choices(data)
    how = choices.u8()
    memory = resealed(choices.rest()) if how & 1 else choices.rest()

    def read(address: int, size: int) -> bytes | None:
        at = address - BASE
        return memory[at : at + size] if 0 <= at <= len(memory) - size else None

    TALLY.count += 1
    try:
        found = acpi.tables(read, acpi.find_rsdp(read, BASE, BASE + max(len(memory), 1)))
    except AcpiError as error:
        assert len(str(error)) < WORDS
        if how & 2:
            _read_each(acpi.Table("", BASE, memory.ljust(36, b"\0")))
        return
    for table in found:
        assert read(table.address, len(table.data)) == table.data
        assert table.signature == "FACS" or not sum(table.data) & 0xFF
        _read_each(table)
    try:
        devices = acpi.devices(found)
    except AcpiError as error:
        assert len(str(error)) < WORDS
    else:
        assert all(name == device.path for name, device in devices.items())


def _read_each(table: acpi.Table) -> None:
    TALLY.count += 1
    try:
        read = acpi.madt(table)
        assert sum(entry.name == "" and not entry.fields for entry in read.entries) <= len(table.data) // 2
        assert all(len(read.named(row.name)) <= len(read.entries) for row in acpi.MADT_ENTRIES)
    except AcpiError as error:
        assert len(str(error)) < WORDS
    try:
        assert acpi.fadt(table).psci in ("", "hvc", "smc")
    except AcpiError as error:
        assert len(str(error)) < WORDS
