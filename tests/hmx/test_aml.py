"""The guest's reader of ACPI byte code and resources (ACPI 6.5, 6.4 and 20).

The byte code of the sample was compiled by iasl from the source beside it, so the reader is held against another
implementation of the specification than this project's writer.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx import aml
from hmx.acpi_resources import AcpiError, ExtendedInterrupt, IoPorts, Irq, Memory32, Other, resources

#: Scope (\_SB) {
#:   Name (LOOS, 5)
#:   Device (DEVA) {
#:     Name (_HID, "ABCD0001")  Name (_CID, Package () { "one", EisaId ("PNP0C02") })
#:     Name (NULL, Zero)  Name (UNIT, One)  Name (ALLB, Ones)  Name (BYTE, 0xFE)  Name (WORD, 0xFEDC)
#:     Name (DWRD, 0xFEDCBA98)  Name (QWRD, 0xFEDCBA9876543210)  Name (TEXT, "text")  Name (BUFF, Buffer (6) {1, 2, 3})
#:     Name (PACK, Package () { 1, "two", Package () { 3 }, DEVB })
#:     Method (CNST, 0) { Return (Package () { 0x12345678, 1 }) }
#:     Method (CODE, 1) { If (Arg0 == 3) { Return (1) } Return (0) }
#:     Method (EXPR, 0) { Return (BYTE + 1) }
#:     OperationRegion (REGN, SystemIO, 0x330, 0x10)  Field (REGN, ByteAcc, NoLock, Preserve) { BIT0, 1, BIT1, 1 }
#:     Name (_CRS, ResourceTemplate () {
#:       Memory32Fixed (ReadWrite, 0xFEB00000, 0x200)  Memory32Fixed (ReadOnly, 0xFEC00000, 0x1000)
#:       Interrupt (ResourceConsumer, Level, ActiveLow, Shared) { 16, 17 }
#:       Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 40 }
#:       IRQNoFlags () { 7 }  IRQ (Level, ActiveLow, Shared) { 10, 11 }
#:       IO (Decode16, 0x330, 0x340, 0x10, 0x10)  DMA (Compatibility, NotBusMaster, Transfer8) { 2 } })
#:     Device (CHLD) { Name (_HID, EisaId ("PNP0A08")) } }
#:   Device (DEVB) { Name (_HID, "ABCD0002") } }
#: Scope (\_SB.DEVA.CHLD) { Name (LATE, 9)  Name (^UPPR, 8) }
#: Name (\_SB.DEVB.DIRT, 4)
SAMPLE = bytes.fromhex("""
1045165c5f53425f084c4f4f530a055b824f1344455641085f4849440d414243443030303100085f434944120c020d6f6e65000c41d00c02
084e554c4c0008554e49540108414c4c42ff08425954450afe08574f52440bdcfe08445752440c98badcfe08515752440e1032547698badc
fe08544558540d7465787400084255464611060a06010203085041434b1212040a010d74776f001204010a03444556421411434e535400a4
1209020c785634120a011412434f444501a00893680a03a40a01a40a00140f4558505200a472425954450a01005b805245474e010b30030a
105b81105245474e0142495430014249543101085f4352531146040a42860900010000b0fe00020000860900000000c0fe00100000890a00
0d02100000001100000089060003012800000022800023000c1847013003400310102a040079005b820f43484c44085f4849440c41d00a08
5b821444455642085f4849440d414243443030303200101f5c2f035f53425f4445564143484c44084c4154450a09085e555050520a08085c
2f035f53425f44455642444952540a04
""")


def test_devices_and_constants_of_the_sample() -> None:
    """Every kind of constant that iasl emits, in the devices where the source has them."""
    found = aml.devices((SAMPLE,))
    assert list(found) == ["\\_SB.DEVA", "\\_SB.DEVA.CHLD", "\\_SB.DEVB"]
    device = found["\\_SB.DEVA"]
    assert (device.hid, device.cids) == ("ABCD0001", ("one", "PNP0C02"))
    names = dict(device.names)
    for name in ("_HID", "_CID", "_CRS"):
        del names[name]
    assert names == {
        "NULL": 0, "UNIT": 1, "ALLB": (1 << 64) - 1, "BYTE": 0xFE, "WORD": 0xFEDC, "DWRD": 0xFEDCBA98,
        "QWRD": 0xFEDCBA9876543210, "TEXT": "text", "BUFF": b"\1\2\3\0\0\0",
        "PACK": (1, "two", (3,), aml.NamePath("\\_SB.DEVA.DEVB")), "CNST": (0x12345678, 1), "UPPR": 8,
    }  # fmt: skip
    assert found["\\_SB.DEVA.CHLD"].hid == "PNP0A08" and found["\\_SB.DEVA.CHLD"].names["LATE"] == 9
    assert found["\\_SB.DEVB"].integer("DIRT") == 4 and found["\\_SB.DEVB"].cids == ()


def test_resources_of_the_sample() -> None:
    """Descriptors in order; one that the reader does not know is kept as it stands."""
    assert aml.devices((SAMPLE,))["\\_SB.DEVA"].resources() == (
        Memory32(0xFEB00000, 0x200, True),
        Memory32(0xFEC00000, 0x1000, False),
        ExtendedInterrupt((16, 17), True, True),
        ExtendedInterrupt((40,), False, False),
        Irq((7,), False, False),
        Irq((10, 11), True, True),
        IoPorts(0x330, 0x340, 0x10, 0x10),
        Other(0x2A, b"\x04\x00"),
    )
    assert aml.devices((SAMPLE,))["\\_SB.DEVB"].resources() == ()


def test_a_later_block_adds_to_an_earlier_one() -> None:
    """An SSDT may open the scope of a device that the DSDT defined."""
    more = bytes.fromhex("10 11 5c 2e") + b"_SB_DEVB" + bytes.fromhex("08") + b"MORE" + b"\x01"
    assert aml.devices((SAMPLE, more))["\\_SB.DEVB"].names["MORE"] == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("a5", "opcode 0xa5"),
        ("5b 12", "opcode 0x5b12"),
        ("08 41", "in the middle"),
        ("08 41 42 43 44 70", "opcode 0x70 is no constant"),
        ("08 31 42 43 44 00", "is no name"),
        ("08 5e 41 42 43 44 00", "above the root"),
        ("08 41 42 43 44 0d 61", "string without an end"),
        ("08 41 42 43 44 0c 01 02", "in the middle"),
        ("10 20 5c 00", "does not fit"),
        ("10 00", "does not fit"),
        ("10 41 00", "does not fit"),
        ("08 41 42 43 44 12 04 01 00 00", "a package of 1 with 2"),
        ("08 41 42 43 44 11 05 0b 00 00", "does not fit"),
        ("08 41 42 43 44 11 03 0b 00 00", "in the middle"),
        ("08 41 42 43 44 11 06 0c 01 00 01 00", "no sensible size"),
        ("08 41 42 43 44 11 06 0d 61 00 00 00", "no sensible size"),
        ("5b 82 05 41 42 43 44 5b 82 05 41 42 43 44", "is there already"),
        ("5b 82 11 41 42 43 44 08 41 42 43 44 00 08 41 42 43 44 00", "is there already"),
        ("08 2f 21" + "41424344" * 33 + "00", "more than 32 segments"),
    ],
)
def test_byte_code_that_cannot_be_followed(code: str, words: str) -> None:
    """AcpiError with the offset, whatever is wrong."""
    with pytest.raises(AcpiError, match=words):
        assert aml.devices((bytes.fromhex(code),)) is None


def test_nesting_is_bounded() -> None:
    """Scopes and packages within each other end in AcpiError, not in Python's recursion limit."""
    scopes, packages = b"", b"\x00"
    for _ in range(60):
        scopes = b"\x10" + _length(len(scopes) + 1) + b"\x00" + scopes
        packages = b"\x12" + _length(len(packages) + 1) + b"\x01" + packages
    for code in (scopes, b"\x08ABCD" + packages):
        with pytest.raises(AcpiError, match="nested more than 24 deep"):
            aml.devices((code,))


def _length(content: int) -> bytes:
    """A PkgLength of two bytes."""
    total = content + 2
    return bytes((0x40 | total & 15, total >> 4))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "without an end tag"),
        ("22 80 00", "without an end tag"),
        ("22 80", "runs out"),
        ("86", "runs out"),
        ("86 09", "runs out"),
        ("86 09 00 01", "runs out"),
        ("86 08 00 01 00 00 00 00 00 00 00 79 00", "0x86"),
        ("89 02 00 01 01 79 00", "0x89"),
        ("89 01 00 01 79 00", "0x89"),
        ("47 01 30 03 30 03 01", "runs out"),
    ],
)
def test_resources_that_run_out(template: str, words: str) -> None:
    """Every descriptor lies within its template, and holds what it says."""
    with pytest.raises(AcpiError, match=words):
        resources(bytes.fromhex(template))


def test_eisa_ids_are_spelled_out() -> None:
    """Three letters of five bits, four hexadecimal digits."""
    assert aml.eisa_id(0x0A0CD041) == "PNP0C0A"
    assert aml.eisa_id(0x080AD041) == "PNP0A08"


# ---- anything at all --------------------------------------------------------------------------------------

EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12)


def changed(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    copy = bytearray(data)
    for at, value in edits:
        copy[at % len(copy)] = value
    return bytes(copy)


@given(EDITS, st.integers(0, len(SAMPLE)))
def test_changed_byte_code_reads_or_is_refused(edits: list[tuple[int, int]], cut: int) -> None:
    """Nothing but AcpiError, from the walk or from what it found."""
    try:
        for device in aml.devices((changed(SAMPLE, edits)[cut:], SAMPLE[:cut])).values():
            assert len(device.cids) <= 0xFF and "\0" not in device.hid
            device.resources()
    except AcpiError:
        pass


@given(st.binary(max_size=300))
def test_any_bytes_read_or_are_refused(data: bytes) -> None:
    """Byte code and resources from nowhere."""
    for read in (lambda: aml.devices((data,)), lambda: resources(data)):
        try:
            read()
        except AcpiError:
            pass


@pytest.mark.parametrize(
    "code",
    [
        b"\x5b\x82\x03\x5c\x00\x08\x5c\x00\x00", b"\x08\x00\x01", b"\x08\x5c\x2f\x00\x01", b"\x14\x04\x5e\x00\x00",
        b"\x5b\x80\x5c\x00\x01\x01\x01",
    ],
    ids=["device and constant as the root", "null name", "no segments", "method above", "region"],
)  # fmt: skip
def test_what_is_defined_has_a_name(code: bytes) -> None:
    """ACPI 6.5 20.2.2: a null name stands for a scope that is there; nothing is defined as one (found by fuzzing)."""
    with pytest.raises(AcpiError):
        aml.devices((code,))


def test_buffers_grow_no_further_together_than_one_may() -> None:
    """A few bytes claim 64 KiB each: a block of a megabyte must not become gigabytes."""
    claim = b"\x11\x06\x0c\xff\xff\x00\x00"  # Buffer(0xFFFF) {}
    names = [b"\x08" + bytes((0x41 + n,)) + b"___" + claim for n in range(26)]
    assert aml.devices(tuple(names[:16])) == {}
    for blocks in (tuple(names[:17]), (b"".join(names[:17]),)):
        with pytest.raises(AcpiError, match="sensible size"):
            aml.devices(blocks)
