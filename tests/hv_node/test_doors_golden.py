"""The `xen` personality on an Intel machine against tests/golden/doors_xen.csv, through real frames."""

from __future__ import annotations

import re

import pytest

from hmx import xen
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.trap import Completion, Kind, Outcome, Vector, int32
from tests.doubles.machine import Guest, Machine
from tests.golden import rows

# A hypervisor built without Argo does not exist here, and the time leaf's values are the host's.
ROWS = [row for row in rows("doors_xen.csv") if "argo not built" not in row["selector"]]
PAGE = 32 * PAGE_SIZE
NAMES = {"eax": 0, "ebx": 1, "ecx": 2, "edx": 3}


def execute(guest: Guest, row: dict[str, str]) -> Completion:
    kind, selector, cpl = row["instruction"], row["selector"], int(row["cpl"])
    first = re.match(r"(0x[0-9a-fA-F]+|\d+)", selector)
    match kind:
        case "VMCALL" | "VMMCALL":
            return guest.trap(Kind[kind], guest.regs(int(first[0], 0) if first else 0), privilege=cpl)
        case "CPUID":
            assert first is not None
            return guest.trap(Kind.CPUID, (0, 0, 0, 0), address=int(first[0], 0), privilege=cpl)
        case "RDMSR" | "WRMSR":
            number = re.search(r"0x[0-9a-f]+", selector)
            assert number is not None
            index = 1 if "gpa|1" in selector else 0
            return guest.trap(Kind[kind], (PAGE | index, 0, 0, 0), address=int(number[0], 0), privilege=cpl)
        case "IN" | "OUT":
            return guest.trap(Kind[kind], (0,), address=0x5658, size=int(selector[-1]), privilege=cpl)
        case "HLT":
            return guest.trap(Kind.HLT_WFI, privilege=cpl)
    raise AssertionError(row)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['instruction']}-{r['selector']}-cpl{r['cpl']}")
def test_door(row: dict[str, str]) -> None:
    """What the guest sees of one instruction."""
    guest = Machine().guest(5, vcpus=1)
    done = execute(guest, row)
    outcome, result = row["outcome"], row["result"]
    if outcome.startswith("FAULT"):
        assert done.outcome == Outcome.FAULT
        assert done.vector == Vector[outcome.split("#")[1]]
        return
    if outcome == "IGNORED":
        assert done.outcome == Outcome.IGNORED
        return
    assert done.outcome == Outcome.DONE
    if row["instruction"] == "VMCALL" and result.startswith("-E"):
        assert int32(done.regs[0]) == -Errno[result[1:]]
    elif row["instruction"] == "VMCALL":
        assert int32(done.regs[0]) != -Errno.ENOSYS or "event" in result, "the call reached its handler"
    elif row["instruction"] == "IN":
        assert done.regs[0] == int(result, 0)
    elif row["instruction"] == "CPUID":
        check_leaf(done.regs, result)
    elif row["instruction"] == "WRMSR":
        check_hypercall_page(guest, row["selector"])


def check_leaf(regs: tuple[int, ...], result: str) -> None:
    for register, value in re.findall(r"\b(e[abcd]x)=(0x[0-9a-f]+|\d+)\b", result):
        assert regs[NAMES[register]] == int(value, 0), register
    for register, bit, value in re.findall(r"\b(e[abcd]x)\[(\d+)\]=(\d)", result):
        assert regs[NAMES[register]] >> int(bit) & 1 == int(value), (register, bit)
    if "own_domid" in result:
        assert regs[NAMES["ecx"]] == 5
    if "major" in result:
        assert regs[0] == xen.XEN_VERSION


def check_hypercall_page(guest: Guest, selector: str) -> None:
    page = bytes(guest.ram[PAGE : PAGE + PAGE_SIZE])
    if "iret" in selector:
        assert page[23 * 32 :][:2] == b"\x0f\x0b"
        return
    for number in (0, 32, 39, 127):
        stub = page[number * 32 : number * 32 + 9]
        assert stub == b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x01\xc1\xc3"


@pytest.mark.parametrize("kind", [Kind.HVC, Kind.SMC, Kind.VMMCALL, 0, 13, 0xFFFF])
def test_an_instruction_that_this_machine_lacks_is_undefined(kind: int) -> None:
    """Arm's calls, AMD's call and numbers that name no instruction end in #UD, not in an error of ours."""
    done = Machine().guest(1).trap(kind, (0,) * 9)
    assert (done.outcome, done.vector) == (Outcome.FAULT, Vector.UD)


@pytest.mark.parametrize("reserved", [{"flags": 8}, {"flags": 0x8000}])
def test_reserved_frame_bits_are_undefined(reserved: dict[str, int]) -> None:
    """A frame with a reserved bit is no instruction of this version (project trap frame, version 1)."""
    done = Machine().guest(1).trap(Kind.VMCALL, (39, 0, 0, 0, 0, 0, 0, 0, 0), **reserved)
    assert (done.outcome, done.vector) == (Outcome.FAULT, Vector.UD)


@pytest.mark.parametrize("offset", [12, 13, 14, 15])
def test_reserved_frame_bytes_are_undefined(offset: int) -> None:
    """A register count above 18, a level, and the bytes that are zero: each alone makes the frame undefined."""
    guest = Machine().guest(1)
    guest.submit(Kind.VMCALL, guest.regs(39, 4))
    area = guest.vcpu.area.buffer
    area[0x1000 + offset] = 19 if offset == 12 else 1
    (done,) = guest.run()
    assert (done.outcome, done.vector) == (Outcome.FAULT, Vector.UD)


def test_16_bit_in_keeps_the_upper_bits_of_rax() -> None:
    """IN of less than 32 bits replaces part of rax only (Intel SDM 2A)."""
    done = Machine().guest(1).trap(Kind.IN, (0x1122334455667788,), address=1, size=2)
    assert done.regs[0] == 0x112233445566FFFF
