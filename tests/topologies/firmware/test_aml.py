"""The AML encoder, against byte sequences of ACPI 6.5 chapters 6.4 and 20 and of iasl."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx import aml as reader
from hmx.acpi_resources import ExtendedInterrupt, IoPorts, Irq, Memory32, resources
from hmx.firmware import Interrupt
from topologies.firmware import aml


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"), (62, "3f"), (63, "4104"), (0xFFD, "4fff"), (0xFFE, "810001"), (0xF_FFFC, "8fffff"),
        (0xF_FFFD, "c1000001"),
    ],
)  # fmt: skip
def test_package_lengths_count_themselves(size: int, encoded: str) -> None:
    """One byte up to 63; then the low nibble first, and eight bits more for each further byte."""
    assert aml.package_length(size).hex() == encoded


def test_packages_have_a_limit() -> None:
    """28 bits."""
    assert aml.package_length((1 << 28) - 5).hex() == "cfffffff"
    with pytest.raises(ValueError, match="a package of"):
        aml.package_length((1 << 28) - 4)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("ARGO", b"ARGO"), ("_SB", b"_SB_"), ("\\_SB.ARGO", b"\\\x2e_SB_ARGO"), ("\\_SB", b"\\_SB_"), ("\\", b"\\\0"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)  # fmt: skip
def test_names(path: str, encoded: bytes) -> None:
    """Segments of four; two have a prefix of their own, more are counted."""
    assert aml.name(path) == encoded


@pytest.mark.parametrize("path", ["TOOLONG", "1ABC", "\u00c4BCD"])
def test_no_names(path: str) -> None:
    """Four ASCII characters at most, and no digit first."""
    with pytest.raises(ValueError, match="no ACPI name"):
        aml.name(path)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"), (1, "01"), (2, "0a02"), (0xFF, "0aff"), (0x100, "0b0001"), (0x1_0000, "0c00000100"),
        (1 << 32, "0e0000000001000000"), ("ab", "0d616200"), (b"\1\2", "11050a020102"), ((1, "a"), "120602010d6100"),
        ((), "120200"),
    ],
)  # fmt: skip
def test_constants(value: aml.Item, encoded: str) -> None:
    """The shortest encoding there is."""
    assert aml.constant(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64, "a\0b", "\u00e4", (0,) * 256])
def test_no_constants(value: aml.Item) -> None:
    """64 bits, ASCII without NUL, 255 elements."""
    with pytest.raises(ValueError, match=r"64 bits|ACPI string|elements"):
        aml.constant(value)


def test_eisa_ids_go_back_and_forth() -> None:
    """PNP0C0A is 0x0A0CD041 (ACPI 6.5, 19.3.4)."""
    assert aml.eisa_id("PNP0C0A") == 0x0A0CD041
    assert reader.eisa_id(aml.eisa_id("ABZF09E")) == "ABZF09E"


def test_definitions_are_those_of_iasl() -> None:
    """Compiled by iasl from the same source."""
    found = aml.if_equal(aml.ARG0, aml.integer(3), aml.returns(aml.integer(1)))
    method = aml.method("CODE", found, aml.returns(aml.integer(0)), arguments=1)
    assert method.hex() == "1410434f444501a00793680a03a401a400"
    assert aml.method("_EVT", arguments=1, serialized=True).hex() == "14065f45565409"
    assert aml.io_region("REGN", 0x330, 0x10).hex() == "5b805245474e010b30030a10"
    assert aml.byte_field("REGN", ("BIT0", "BIT1")).hex() == "5b81105245474e0142495430014249543101"
    assert aml.device("CHLD", aml.named("_HID", aml.eisa_id("PNP0A08"))).hex() == "5b820f43484c44085f4849440c41d00a08"
    assert aml.notify("\\_SB.VGEN", 0x80).hex() == "865c2e5f53425f5647454e0a80"


def test_resources_are_those_of_iasl() -> None:
    """Compiled by iasl; and the guest reads what was meant."""
    cases = {
        aml.memory32(0xFEB00000, 0x200): ("86090001 0000b0fe 00020000", Memory32(0xFEB00000, 0x200, True)),
        aml.interrupt(Interrupt(40)): ("890600 03 01 28000000", ExtendedInterrupt((40,), False, False)),
        aml.interrupt(Interrupt(16, True, True), Interrupt(17, True, True)): (
            "890a00 05 02 10000000 11000000", ExtendedInterrupt((16, 17), True, True)
        ),
        aml.irq(7): ("228000", Irq((7,), False, False)),
        aml.io(0x330, 0x10): ("4701 3003 3003 01 10", IoPorts(0x330, 0x330, 1, 0x10)),
    }  # fmt: skip
    for encoded, (wanted, meaning) in cases.items():
        assert encoded == bytes.fromhex(wanted)
        assert resources(encoded + b"\x79\x00") == (meaning,)
    assert aml.resources(aml.irq(7)) == b"\x08_CRS\x11\x08\x0a\x05\x22\x80\x00\x79\x00"
    with pytest.raises(ValueError, match="share trigger"):
        aml.interrupt(Interrupt(1), Interrupt(2, True))


def test_resources_that_have_no_encoding() -> None:
    """Below 4 GiB, within 64 Ki ports, 32 bits of interrupt: the last that fits, and the first that does not."""
    assert aml.memory32(0xFFFF_F000, 0x1000) and aml.io(0xFFFF, 1) and aml.interrupt(Interrupt(0xFFFF_FFFF))
    for base, size in ((0xFFFF_F001, 0x1000), (0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="4 GiB"):
            aml.memory32(base, size)
    for port, count in ((0xFFFF, 2), (0, 256)):
        with pytest.raises(ValueError, match="ports at"):
            aml.io(port, count)
    with pytest.raises(ValueError, match="32 bits"):
        aml.interrupt(Interrupt(1 << 32))


ITEMS = st.recursive(
    st.integers(0, (1 << 64) - 1)
    | st.text(st.characters(min_codepoint=1, max_codepoint=127))
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=6).map(tuple),
    max_leaves=20,
)


@given(ITEMS)
def test_any_constant_is_read_back(value: aml.Item) -> None:
    """What the encoder writes into a device, the guest's reader finds there."""
    found = reader.devices((aml.scope("\\_SB", aml.device("DEV", aml.named("DATA", value))),))
    assert found["\\_SB.DEV"].names == {"DATA": value}
