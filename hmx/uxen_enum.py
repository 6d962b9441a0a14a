"""How uXen shows a guest its devices without any Xen interface: a bitmap of storage units behind sixteen I/O ports,
and a table of devices in a BAR of its platform PCI device.  Pure functions for both sides.

Bitmap: byte ports 0x330 to 0x33F, read only; unit n is bit n mod 8 of the byte at 0x330 + n / 8.  The device model sets
the bit of a unit that exists, and every driver reads it so.  The ACPI children UXS0000 to UXS0003 of the same register
report presence for a bit that is 0; why is not written down anywhere, so the polarity is an option here.  The port
before, 0x32F, is a control byte.

Table: 64 slots of 256 bytes {device type u8, instance u8, properties {type u8, length u8, data}}, ended by a property
of type 0xFF; a slot whose device type is 0xFF is empty.

Sources: uXen dm storage bitmap, Linux uxenstor, DSDT; uxen/platform_interface.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

CONTROL_PORT: Final = 0x32F
BITMAP_PORT: Final = 0x330
BITMAP_BYTES: Final = 16
MAX_UNITS: Final = BITMAP_BYTES * 8
STORAGE_PORT: Final = 0xD_0000  # v4v port of unit 0


class EnumerationError(ValueError):
    """What was read is no bitmap or no device table; what is to be written does not fit one."""


class Polarity(IntEnum):
    """The value of a unit's bit when the unit exists."""

    LEGACY_ACPI = 0
    DRIVERS = 1


class Control(IntFlag):
    """Bits of the control byte."""

    DISABLE_AHCI_CLONES = 1


class Consumer(NamedTuple):
    """One reader of the bitmap: how many bytes it reads, and the units that it would use."""

    name: str
    bytes: int
    units: int
    source: str


CONSUMERS: Final = (
    Consumer("linux", 2, 4, "uxenstor: one 16-bit read, at most four hosts"),
    Consumer("windows", 2, 16, "tests the 16-bit value for non-zero"),
    Consumer("macos", 16, 128, "scans all bytes"),
    Consumer("ax", 2, 16, "storage bitmap query of an attested VM"),
)


class AcpiChild(NamedTuple):
    """One child of the ACPI enumerator UXS0FFF: its hardware id and the unit whose bit its _STA reads."""

    hid: str
    unit: int


ACPI_CHILDREN: Final = (
    AcpiChild("UXS0000", 0),
    AcpiChild("UXS0001", 1),
    AcpiChild("UXS0002", 2),
    AcpiChild("UXS0003", 3),
)
STATUS_PRESENT: Final = 0x0F
STATUS_ABSENT: Final = 0x00
STATUS_HIDDEN: Final = 0x0B
"""_STA of the enumerator itself: present and working, not shown to people."""


def encode_bitmap(units: Iterable[int], polarity: Polarity = Polarity.DRIVERS) -> bytes:
    """The sixteen bytes that show `units` (0 to 127).  Raises EnumerationError for a unit that has no bit."""
    bits = 0
    for unit in units:
        if not 0 <= unit < MAX_UNITS:
            raise EnumerationError(f"storage unit {unit} has no bit: 0 to {MAX_UNITS - 1}")
        bits |= 1 << unit
    if polarity is Polarity.LEGACY_ACPI:
        bits ^= (1 << MAX_UNITS) - 1
    return bits.to_bytes(BITMAP_BYTES, "little")


def decode_bitmap(data: bytes, polarity: Polarity = Polarity.DRIVERS) -> tuple[int, ...]:
    """The units, ascending, that `data` (1 to 16 bytes, as read from 0x330 on) shows."""
    if not 0 < len(data) <= BITMAP_BYTES:
        raise EnumerationError(f"the bitmap has 1 to {BITMAP_BYTES} bytes, not {len(data)}")
    bits = int.from_bytes(data, "little")
    if polarity is Polarity.LEGACY_ACPI:
        bits ^= (1 << 8 * len(data)) - 1
    return tuple(unit for unit in range(8 * len(data)) if bits >> unit & 1)


def answered(data: bytes) -> bool:
    """Whether anybody answers at the ports: a port that nobody claims reads all ones.

    With the drivers' polarity it would look like every unit at once, so a guest asks this first.
    """
    return any(byte != 0xFF for byte in data)


def read_port(bitmap: bytes, port: int, size: int, control: int = 0) -> int:
    """What IN of `size` bytes (1, 2, 4) at `port` yields: the byte ports side by side, all ones beyond them."""
    value = 0
    for index in range(size):
        at = port + index
        if at == CONTROL_PORT:
            byte = control
        elif 0 <= at - BITMAP_PORT < BITMAP_BYTES:
            byte = bitmap[at - BITMAP_PORT]
        else:
            byte = 0xFF
        value |= byte << 8 * index
    return value


def units_for(consumer: str, bitmap: bytes) -> tuple[int, ...]:
    """The units that a driver named in :data:`CONSUMERS` would use.  Raises KeyError for another name."""
    for row in CONSUMERS:
        if row.name == consumer:
            return tuple(unit for unit in decode_bitmap(bitmap[: row.bytes]) if unit < row.units)
    raise KeyError(consumer)


def child_status(bitmap: bytes, unit: int, polarity: Polarity = Polarity.LEGACY_ACPI) -> int:
    """_STA of the ACPI child for `unit`."""
    bit = bitmap[unit // 8] >> unit % 8 & 1
    return STATUS_PRESENT if bit == polarity else STATUS_ABSENT


# ---- the platform device ----------------------------------------------------------------------------------

PLATFORM_VENDOR: Final = 0x5853
PLATFORM_DEVICE: Final = 0x5173
STATE_MAGIC: Final = 0x4753_1628
STATE_PAGE: Final = struct.Struct("<II")  # magic, v4v_running
SLOTS: Final = 64
SLOT_SIZE: Final = 256
TABLE_SIZE: Final = SLOTS * SLOT_SIZE
EMPTY: Final = 0xFF
LIST_END: Final = 0xFF
HOTPLUG_EVENT: Final = 0x4


class ControlRegister(IntEnum):
    """Byte offsets of the u32 registers of BAR 0."""

    EVENTS_ENABLED = 0x00
    EVENTS = 0x04
    BALLOON_MIN = 0x08
    BALLOON_MAX = 0x0C
    BALLOON_CURRENT = 0x10
    FILETIME_LOW = 0x14
    FILETIME_HIGH = 0x18


class DeviceType(IntEnum):
    """First byte of a slot."""

    NET = 0
    HID = 1
    NULL_NET = 2
    FB = 3
    STOR = 4


class PropertyType(IntEnum):
    """First byte of a property."""

    MACADDR = 0
    MTU = 1
    HIDTYPE = 2


class PropertyLayout(NamedTuple):
    """How a property's data is laid out."""

    type: PropertyType
    layout: str
    source: str


PROPERTIES: Final = (
    PropertyLayout(PropertyType.MACADDR, "6s", "uXen dm/hw/uxen_net.c"),
    PropertyLayout(PropertyType.MTU, ">H", "uXen dm/hw/uxen_net.c: network byte order"),
    PropertyLayout(PropertyType.HIDTYPE, "<I", "uXen dm/hw/uxen_hid.c: the guest's byte order"),
)
_LAYOUTS: Final = {row.type: struct.Struct(row.layout) for row in PROPERTIES}

Property = tuple[int, bytes]


class Device(NamedTuple):
    """One occupied slot; `type` and property types may be numbers that this table does not know."""

    type: int
    instance: int
    properties: tuple[Property, ...] = ()


def encode_property(kind: PropertyType, value: bytes | int) -> Property:
    """A property from its value: 6 bytes for MACADDR, a number for MTU and HIDTYPE.  Raises EnumerationError."""
    layout = _LAYOUTS[kind]
    try:
        data = layout.pack(value)
    except struct.error as error:
        raise EnumerationError(f"{kind.name}: {error}") from None
    if isinstance(value, bytes) and value != data:
        raise EnumerationError(f"{kind.name}: {layout.size} bytes, not {len(value)}")
    return int(kind), data


def decode_property(kind: PropertyType, data: bytes) -> bytes | int:
    """The value of a property's data.  Raises EnumerationError for another length."""
    layout = _LAYOUTS[kind]
    if len(data) != layout.size:
        raise EnumerationError(f"{kind.name}: {layout.size} bytes, not {len(data)}")
    value: bytes | int = layout.unpack(data)[0]
    return value


def encode_slot(device: Device | None) -> bytes:
    """The 256 bytes of a slot; None is an empty one.  Raises EnumerationError when the properties do not fit."""
    if device is None:
        return bytes([EMPTY]) * SLOT_SIZE
    if not (0 <= device.type < EMPTY and 0 <= device.instance <= 0xFF):
        raise EnumerationError(f"device type {device.type}, instance {device.instance}: below 255 and 256")
    slot = bytearray((device.type, device.instance))
    for kind, data in device.properties:
        if not 0 <= kind < LIST_END or len(data) > 0xFF:
            raise EnumerationError(f"property of type {kind} with {len(data)} bytes: below 255 and 256")
        slot += bytes((kind, len(data))) + data
    slot += bytes((LIST_END, 0))
    if len(slot) > SLOT_SIZE:
        raise EnumerationError(f"a slot has {SLOT_SIZE} bytes; these properties need {len(slot)}")
    return bytes(slot).ljust(SLOT_SIZE, b"\0")


def decode_slot(slot: bytes) -> Device | None:
    """What one slot of 256 bytes holds, None when empty.  Raises EnumerationError for a list that runs out of it."""
    if len(slot) != SLOT_SIZE:
        raise EnumerationError(f"a slot has {SLOT_SIZE} bytes, not {len(slot)}")
    if slot[0] == EMPTY:
        return None
    found: list[Property] = []
    at = 2
    while at + 2 <= SLOT_SIZE:
        kind, length = slot[at], slot[at + 1]
        if kind == LIST_END:
            return Device(slot[0], slot[1], tuple(found))
        if at + 2 + length > SLOT_SIZE:
            break
        found.append((kind, bytes(slot[at + 2 : at + 2 + length])))
        at += 2 + length
    raise EnumerationError(f"the properties of device type {slot[0]} instance {slot[1]} do not end within its slot")


def encode_table(devices: Sequence[Device | None]) -> bytes:
    """The whole of BAR 2: at most 64 devices in the order of their slots, None for a slot left empty."""
    if len(devices) > SLOTS:
        raise EnumerationError(f"{len(devices)} devices for {SLOTS} slots")
    slots = [encode_slot(device) for device in devices]
    return b"".join(slots).ljust(TABLE_SIZE, bytes([EMPTY]))


def decode_table(table: bytes) -> tuple[tuple[int, Device], ...]:
    """The occupied slots of BAR 2 as (slot number, device).  Raises EnumerationError."""
    if len(table) != TABLE_SIZE:
        raise EnumerationError(f"the device table has {TABLE_SIZE} bytes, not {len(table)}")
    slots = [decode_slot(table[at : at + SLOT_SIZE]) for at in range(0, TABLE_SIZE, SLOT_SIZE)]
    return tuple((number, device) for number, device in enumerate(slots) if device is not None)
