"""uXen's bitmap of storage units and its table of platform devices (dm, uxenstor, uxen/platform_interface.h)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.uxen_enum import (
    ACPI_CHILDREN,
    BITMAP_PORT,
    CONSUMERS,
    CONTROL_PORT,
    HOTPLUG_EVENT,
    SLOT_SIZE,
    STATE_MAGIC,
    STATE_PAGE,
    TABLE_SIZE,
    Control,
    ControlRegister,
    Device,
    DeviceType,
    EnumerationError,
    Polarity,
    PropertyType,
    answered,
    child_status,
    decode_bitmap,
    decode_property,
    decode_slot,
    decode_table,
    encode_bitmap,
    encode_property,
    encode_slot,
    encode_table,
    read_port,
    units_for,
)

UNITS = st.frozensets(st.integers(0, 127))


def test_a_unit_is_a_bit() -> None:
    """Unit n is bit n mod 8 of the byte n / 8 on; set means present."""
    assert encode_bitmap([0, 3, 15, 127]) == b"\x09\x80" + bytes(13) + b"\x80"
    assert decode_bitmap(b"\x09\x80" + bytes(13) + b"\x80") == (0, 3, 15, 127)
    assert encode_bitmap([]) == bytes(16)


def test_the_opposite_polarity_is_an_option() -> None:
    """The ACPI children report presence for a bit that is 0: the same units, every bit the other way round."""
    assert [(row.name, row.value) for row in Polarity] == [("LEGACY_ACPI", 0), ("DRIVERS", 1)]
    assert encode_bitmap([0], Polarity.LEGACY_ACPI) == b"\xfe" + b"\xff" * 15
    assert decode_bitmap(b"\xfe\xff", Polarity.LEGACY_ACPI) == (0,)
    assert decode_bitmap(b"\xfe\xff")[0] == 1


@given(UNITS, st.sampled_from(Polarity))
def test_bitmaps_go_back_and_forth(units: frozenset[int], polarity: Polarity) -> None:
    """Decoding undoes encoding; both polarities complement each other."""
    data = encode_bitmap(units, polarity)
    assert decode_bitmap(data, polarity) == tuple(sorted(units))
    assert set(decode_bitmap(data, Polarity(1 - polarity))) == set(range(128)) - units


@pytest.mark.parametrize("unit", [-1, 128])
def test_units_beyond_the_bitmap_have_no_bit(unit: int) -> None:
    """Units from 128 on cannot be shown."""
    with pytest.raises(EnumerationError, match="has no bit: 0 to 127"):
        encode_bitmap([unit])


@pytest.mark.parametrize("data", [b"", bytes(17)])
def test_no_other_length_is_a_bitmap(data: bytes) -> None:
    """1 to 16 bytes."""
    with pytest.raises(EnumerationError, match="1 to 16 bytes"):
        decode_bitmap(data)


def test_ports_are_byte_ports() -> None:
    """A 16-bit read at 0x330 gives units 0 to 15; the control byte lies before it; nobody answers behind it."""
    bitmap = encode_bitmap([1, 8, 120])
    assert (CONTROL_PORT, BITMAP_PORT) == (0x32F, 0x330)
    assert read_port(bitmap, 0x330, 2) == 0x0102
    assert read_port(bitmap, 0x331, 1) == 1
    assert read_port(bitmap, 0x32F, 1, control=1) == 1 and [bit.value for bit in Control] == [1]
    assert read_port(bitmap, 0x32F, 2, control=1) == 0x0201
    assert read_port(bitmap, 0x33F, 2) == 0xFF01
    assert read_port(bitmap, 0x32E, 1) == read_port(bitmap, 0x340, 1) == 0xFF
    assert read_port(bitmap, 0x330, 4) == 0x0102


def test_all_ones_is_nobody() -> None:
    """An absent port reads all ones; it must not look like every unit at once."""
    assert not answered(b"\xff\xff")
    assert answered(b"\xff\xfe") and answered(bytes(16))


def test_what_each_driver_makes_of_the_bitmap() -> None:
    """Linux takes at most four hosts from 16 bits, Windows looks at 16 bits, macOS at all bytes, AX at 16 bits."""
    units = encode_bitmap([0, 3, 4, 15, 16, 127])
    assert [(row.name, row.bytes, row.units) for row in CONSUMERS] == [
        ("linux", 2, 4), ("windows", 2, 16), ("macos", 16, 128), ("ax", 2, 16)
    ]  # fmt: skip
    assert units_for("linux", units) == (0, 3)
    assert units_for("windows", units) == units_for("ax", units) == (0, 3, 4, 15)
    assert units_for("macos", units) == (0, 3, 4, 15, 16, 127)
    with pytest.raises(KeyError, match="beos"):
        units_for("beos", units)


def test_status_of_the_acpi_children() -> None:
    """UXS0000 to UXS0003 read bits 0 to 3; legacy: 0x0F when the bit is 0, 0 when it is 1."""
    assert [(child.hid, child.unit) for child in ACPI_CHILDREN] == [
        ("UXS0000", 0), ("UXS0001", 1), ("UXS0002", 2), ("UXS0003", 3)
    ]  # fmt: skip
    bitmap = encode_bitmap([0, 2])
    assert [child_status(bitmap, child.unit) for child in ACPI_CHILDREN] == [0, 0x0F, 0, 0x0F]
    assert [child_status(bitmap, child.unit, Polarity.DRIVERS) for child in ACPI_CHILDREN] == [0x0F, 0, 0x0F, 0]


# ---- the device table -------------------------------------------------------------------------------------

MAC = bytes.fromhex("525400123456")
#: A network interface as uXen's device model lays it out: type, instance, MACADDR, MTU 16384 in network order, end.
NET = bytes.fromhex("00 01  00 06 52 54 00 12 34 56  01 02 40 00  ff 00")


def test_numbers_of_the_platform_device() -> None:
    """Types, properties, registers and magics of uxen/platform_interface.h."""
    assert [(row.name, row.value) for row in DeviceType] == [
        ("NET", 0), ("HID", 1), ("NULL_NET", 2), ("FB", 3), ("STOR", 4)
    ]  # fmt: skip
    assert [(row.name, row.value) for row in PropertyType] == [("MACADDR", 0), ("MTU", 1), ("HIDTYPE", 2)]
    assert [(row.name, row.value) for row in ControlRegister] == [
        ("EVENTS_ENABLED", 0), ("EVENTS", 4), ("BALLOON_MIN", 8), ("BALLOON_MAX", 12), ("BALLOON_CURRENT", 16),
        ("FILETIME_LOW", 20), ("FILETIME_HIGH", 24),
    ]  # fmt: skip
    assert STATE_PAGE.pack(STATE_MAGIC, 1) == bytes.fromhex("2816534701000000")
    assert HOTPLUG_EVENT == 4 and TABLE_SIZE == 16384


def test_a_network_interface_in_its_slot() -> None:
    """MACADDR has 6 bytes, MTU is a u16 in network byte order, HIDTYPE a u32 in the guest's."""
    device = Device(
        DeviceType.NET,
        1,
        (encode_property(PropertyType.MACADDR, MAC), encode_property(PropertyType.MTU, 16384)),
    )
    slot = encode_slot(device)
    assert slot == NET.ljust(256, b"\0") and decode_slot(slot) == device
    assert decode_property(PropertyType.MACADDR, MAC) == MAC
    assert decode_property(PropertyType.MTU, b"\x40\x00") == 16384
    assert encode_property(PropertyType.HIDTYPE, 2) == (2, b"\x02\0\0\0")
    assert decode_property(PropertyType.HIDTYPE, b"\x02\0\0\0") == 2


@pytest.mark.parametrize(
    ("kind", "value"),
    [(PropertyType.MACADDR, b"abcd"), (PropertyType.MACADDR, 5), (PropertyType.MTU, 1 << 16), (PropertyType.MTU, b"x")],
)
def test_values_that_a_property_cannot_hold(kind: PropertyType, value: bytes | int) -> None:
    """EnumerationError names the property."""
    with pytest.raises(EnumerationError, match=kind.name):
        encode_property(kind, value)


def test_data_of_another_length_is_no_property() -> None:
    """Six bytes of a MAC, not five."""
    with pytest.raises(EnumerationError, match="MACADDR: 6 bytes, not 5"):
        decode_property(PropertyType.MACADDR, MAC[:5])


def test_a_table_has_64_slots_of_256_bytes() -> None:
    """A slot whose device type is 0xFF is empty, wherever it lies."""
    nic, stor = Device(DeviceType.NET, 0), Device(DeviceType.STOR, 3)
    table = encode_table([nic, None, stor])
    assert len(table) == 16384 and table[256] == 0xFF and table[512] == 4 and set(table[768:]) == {0xFF}
    assert decode_table(table) == ((0, nic), (2, stor))
    assert decode_table(encode_table([nic] * 64))[63] == (63, nic)
    with pytest.raises(EnumerationError, match="65 devices for 64 slots"):
        encode_table([nic] * 65)
    with pytest.raises(EnumerationError, match="16384 bytes"):
        decode_table(table[:-1])


def test_what_does_not_fit_a_slot_is_refused() -> None:
    """250 bytes of data in one property fill a slot: header 2, property 2, data 250, end 2."""
    full = Device(0, 0, ((7, bytes(250)),))
    assert decode_slot(encode_slot(full)) == full
    for device in (Device(0, 0, ((7, bytes(251)),)), Device(0xFF, 0), Device(0, 256), Device(0, 0, ((0xFF, b""),))):
        with pytest.raises(EnumerationError):
            encode_slot(device)
    with pytest.raises(EnumerationError, match="below 255 and 256"):
        encode_slot(Device(0, 0, ((1, bytes(256)),)))


def test_a_list_without_an_end_is_refused() -> None:
    """A hostile slot cannot lead a reader out of it."""
    for slot in (b"\0\0" + bytes(254), b"\0\0\x01\xff" + bytes(252), b"\0\0" + b"\x01\xfb" + bytes(252)):
        with pytest.raises(EnumerationError, match="do not end within"):
            decode_slot(slot)
    with pytest.raises(EnumerationError, match="256 bytes"):
        decode_slot(b"\0")


@given(st.binary(min_size=SLOT_SIZE, max_size=SLOT_SIZE))
def test_any_slot_reads_or_is_refused(slot: bytes) -> None:
    """Nothing but EnumerationError; what reads, encodes to what reads the same."""
    try:
        device = decode_slot(slot)
    except EnumerationError:
        return
    assert decode_slot(encode_slot(device)) == device
