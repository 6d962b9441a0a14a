"""The layout of vCPU areas, trap frames and completions against tests/golden/trap_abi.csv."""

from __future__ import annotations

from typing import Any

import pytest

from hmx import trap, vcpu_area
from hmx.trap import Arch, Completion, Frame, FrameFlag, Kind, Outcome, X86Reg
from hmx.vcpu_area import GuestSide, HypervisorSide, Post, Word
from tests.golden import number, rows

ROWS = rows("trap_abi.csv")


def of(record: str) -> list[dict[str, str]]:
    return [row for row in ROWS if row["record"] == record]


def named(record: str, name: str) -> dict[str, str]:
    return next(row for row in ROWS if (row["record"], row["field"]) == (record, name))


@pytest.mark.parametrize(
    "row", [r for r in of("area") if r["field"] in {w.name.lower() for w in Word}], ids=lambda r: r["field"]
)
def test_shared_words_stand_where_the_layout_puts_them(row: dict[str, str]) -> None:
    """Each shared u32 has a 64-byte line of its own; offset as in the golden layout."""
    assert Word[row["field"].upper()] == number(row["offset"])


def test_every_shared_word_of_the_layout_exists() -> None:
    """No word of the layout is missing from the code, and the code has no word of its own."""
    golden = {row["field"] for row in of("area") if row["size"] == "4" and row["writer"] != "-"}
    assert golden == {word.name.lower() for word in Word}


def test_area_header_is_written_field_by_field() -> None:
    """magic, major, minor, arch and the three ring sizes, at their offsets."""
    area = bytearray(vcpu_area.AREA_SIZE)
    HypervisorSide(memoryview(area), Arch.AARCH64)
    for row in of("area"):
        offset, size = number(row["offset"]), number(row["size"])
        found = area[offset : offset + size]
        if row["field"] == "magic":
            assert bytes(found) == b"AVCA"
        elif row["field"] in {"major", "sq_entries", "cq_entries", "post_entries"}:
            assert int.from_bytes(found, "little") == number(row["value"])
        elif row["field"] == "arch":
            assert int.from_bytes(found, "little") == number(named("arch", "aarch64")["value"])


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("post", vcpu_area.POSTS_OFFSET),
        ("submission_ring", vcpu_area.SQ_OFFSET),
        ("completion_ring", vcpu_area.CQ_OFFSET),
    ],
)
def test_rings_stand_where_the_layout_puts_them(name: str, offset: int) -> None:
    """Offset of each ring in the area."""
    assert offset == number(named("area", name)["offset"])


def test_area_is_ten_pages() -> None:
    """The area's size."""
    assert number(named("area", "total")["size"]) == vcpu_area.AREA_SIZE


def submitted_bytes(kind: int = 1, regs: tuple[int, ...] = (), seq: int = 0, **fields: int) -> bytes:
    """One frame as a guest writes it."""
    area = bytearray(vcpu_area.AREA_SIZE)
    HypervisorSide(memoryview(area))
    guest = GuestSide(memoryview(area))
    guest.seq = seq
    guest.submit(kind, regs, **fields)
    return bytes(area[vcpu_area.SQ_OFFSET : vcpu_area.SQ_OFFSET + trap.FRAME_SIZE])


@pytest.mark.parametrize("name", ["seq", "kind", "flags", "privilege", "size", "imm", "address", "context"])
def test_frame_field_stands_where_the_layout_puts_it(name: str) -> None:
    """A frame that is zero but for one field has that field's bytes at its place and nothing else."""
    row = named("frame", name)
    offset, size = number(row["offset"]), number(row["size"])
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    blank: dict[str, Any] = {"kind": 0}
    raw = submitted_bytes(**{**blank, name: value})
    expected = bytearray(trap.FRAME_SIZE)
    expected[offset : offset + size] = value.to_bytes(size, "little")
    assert raw == bytes(expected)


@pytest.mark.parametrize("slot", range(trap.MAX_REGS))
def test_registers_and_their_count(slot: int) -> None:
    """Register slots start at the golden offset; nregs counts those carried."""
    regs = (*(0,) * slot, 0xDEAD_BEEF_0123_4567)
    raw = submitted_bytes(kind=0, regs=regs)
    base = number(named("frame", "regs")["offset"])
    assert raw[base + 8 * slot :][:8] == (0xDEAD_BEEF_0123_4567).to_bytes(8, "little")
    assert raw[number(named("frame", "nregs")["offset"])] == slot + 1


@pytest.mark.parametrize("row", [r for r in of("frame") if r["field"].startswith("x86.r")], ids=lambda r: r["field"])
def test_x86_register_slots(row: dict[str, str]) -> None:
    """rax rbx rcx rdx rsi rdi r8 .. r15, in this order."""
    assert X86Reg[row["field"].removeprefix("x86.").upper()] == int(row["value"].removeprefix("slot "))


def test_completion_fields_stand_where_the_layout_puts_them() -> None:
    """Every named field of a completion, and zero in every byte without a name."""
    area = bytearray(vcpu_area.AREA_SIZE)
    HypervisorSide(memoryview(area)).complete(
        0x01020304, 0x0506, (0x1112131415161718,), 0x0708, 0x090A0B0C, 0x2122232425262728
    )
    raw = bytes(area[vcpu_area.CQ_OFFSET : vcpu_area.CQ_OFFSET + trap.FRAME_SIZE])
    values = {
        "seq": 0x01020304, "outcome": 0x0506, "vector": 0x0708, "error": 0x090A0B0C, "nregs": 1,
        "fault_address": 0x2122232425262728, "x86.rax": 0x1112131415161718,
    }  # fmt: skip
    expected = bytearray(trap.FRAME_SIZE)
    for name, value in values.items():
        row = named("completion", name)
        offset, size = number(row["offset"]), number(row["size"])
        expected[offset : offset + size] = value.to_bytes(size, "little")
    assert raw == bytes(expected)


@pytest.mark.parametrize(
    ("record", "enum"),
    [("kind", Kind), ("outcome", Outcome), ("post", Post), ("arch", Arch)],
    ids=lambda v: str(v),
)
def test_numbering(record: str, enum: type[Kind]) -> None:
    """Frame kinds, outcomes, post kinds and architectures carry the golden numbers, and there are no others."""
    golden = {row["field"].replace("/", "_").upper(): number(row["value"]) for row in of(record)}
    assert golden == {member.name: int(member) for member in enum}


def test_frame_flags() -> None:
    """LINK, ASYNC, WIDTH32 and their bits; the mask of known flags is their union."""
    golden = {row["field"]: number(row["value"]) for row in of("flag")}
    reserved = golden.pop("reserved_mask")
    assert golden == {flag.name: int(flag) for flag in FrameFlag}
    assert reserved ^ 0xFFFF == trap.KNOWN_FLAGS


def test_decoding_is_the_inverse_of_encoding() -> None:
    """A frame and a completion read back as they were written."""
    raw = submitted_bytes(
        seq=7, kind=Kind.WRMSR, flags=1, privilege=3, size=4, imm=9, address=1, context=2, regs=(5, 6)
    )
    assert trap.unpack_frame(memoryview(raw), 0) == Frame(7, Kind.WRMSR, 1, 3, 4, 9, 2, 0, 0, 1, 2, (5, 6))
    area = bytearray(vcpu_area.AREA_SIZE)
    HypervisorSide(memoryview(area)).complete(7, Outcome.FAULT, (1, 2), 13, 4, 5)
    done = trap.unpack_completion(memoryview(area), vcpu_area.CQ_OFFSET)
    assert done == Completion(7, Outcome.FAULT, 13, 4, 2, 5, (1, 2))


def test_a_result_is_an_int32() -> None:
    """Late errors arrive zero-extended, early ones sign-extended: both read the same."""
    assert trap.int32(0x00000000FFFFFF91) == trap.int32(0xFFFFFFFFFFFFFF91) == -111
    assert trap.int32(0x1_0000_0005) == 5


def test_exception_vectors() -> None:
    """#UD is vector 6, #GP is vector 13 (Intel SDM vol. 3A, table 6-1)."""
    assert {vector.name: int(vector) for vector in trap.Vector} == {"UD": 6, "GP": 13}
