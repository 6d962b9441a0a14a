"""Resource templates, which a device's _CRS holds: IRQ, I/O port, 32-bit memory and extended interrupt descriptors.

Others are kept as they stand.  Lengths are checked; whatever is wrong ends in :class:`AcpiError`.

Source: ACPI 6.5, chapter 6.4.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple


class AcpiError(ValueError):
    """ACPI tables, byte code or resources are not what they must be."""


class Irq(NamedTuple):
    """ISA interrupts."""

    numbers: tuple[int, ...]
    level: bool
    active_low: bool


class ExtendedInterrupt(NamedTuple):
    """Global system interrupts (x86) or INTIDs (Arm)."""

    numbers: tuple[int, ...]
    level: bool
    active_low: bool


class Memory32(NamedTuple):
    """A fixed range of guest physical memory."""

    base: int
    length: int
    writable: bool


class IoPorts(NamedTuple):
    """A range of I/O ports that begins between two bounds."""

    minimum: int
    maximum: int
    alignment: int
    length: int


class Other(NamedTuple):
    """A descriptor that this reader does not know; `tag` as it stands, large ones with bit 7."""

    tag: int
    data: bytes


Resource = Irq | ExtendedInterrupt | Memory32 | IoPorts | Other
END_TAG: Final = 0x79


def resources(template: bytes) -> tuple[Resource, ...]:
    """The descriptors of a resource template.  Raises AcpiError."""
    found: list[Resource] = []
    at = 0
    while at < len(template):
        tag = template[at]
        if tag & 0x80:
            head, length = 3, int.from_bytes(template[at + 1 : at + 3], "little")
        else:
            head, length = 1, tag & 7
        data = template[at + head : at + head + length]
        if len(data) != length or at + head > len(template):
            raise AcpiError(f"a resource descriptor {tag:#x} runs out of its template")
        if tag == END_TAG:
            return tuple(found)
        found.append(_resource(tag, data))
        at += head + length
    raise AcpiError("a resource template without an end tag")


def _resource(tag: int, data: bytes) -> Resource:
    try:
        if tag in (0x22, 0x23):
            mask = int.from_bytes(data[:2], "little")
            flags = data[2] if tag == 0x23 else 1
            return Irq(tuple(n for n in range(16) if mask >> n & 1), not flags & 1, bool(flags & 8))
        if tag == 0x47:
            return IoPorts(*struct.unpack_from("<xHHBB", data))
        if tag == 0x86:
            writable, base, length = struct.unpack("<BII", data)
            return Memory32(base, length, bool(writable & 1))
        if tag == 0x89:
            flags, count = struct.unpack_from("<BB", data)
            return ExtendedInterrupt(struct.unpack_from(f"<{count}I", data, 2), not flags & 2, bool(flags & 4))
    except struct.error as error:
        raise AcpiError(f"resource descriptor {tag:#x}: {error}") from None
    return Other(tag, data)
