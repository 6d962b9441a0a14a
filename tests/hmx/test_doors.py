"""Register conventions and declared costs of doors (Xen public/arch-x86; Intel SDM vol. 3C)."""

from __future__ import annotations

import pytest

from hmx.doors import CALL_INSTRUCTIONS, CONVENTIONS, DOOR_COSTS, convention, ranked
from hmx.trap import Arch, Kind, X86Reg

#: Xen's calling conventions, written down from the public headers: width -> number, five arguments, result.
XEN = {
    64: (["RAX"], ["RDI", "RSI", "RDX", "R10", "R8"], "RAX"),
    32: (["RAX"], ["RBX", "RCX", "RDX", "RSI", "RDI"], "RAX"),
}


@pytest.mark.parametrize("width", [64, 32])
def test_xen_hypercall_registers(width: int) -> None:
    """Number in (r|e)ax; rdi rsi rdx r10 r8, or ebx ecx edx esi edi; result in (r|e)ax; by VMCALL."""
    number, arguments, result = XEN[width]
    row = convention("hypercall", Arch.X86_64, width)
    assert row.kind is Kind.VMCALL
    assert [X86Reg(row.number).name] == number
    assert [X86Reg(slot).name for slot in row.arguments] == arguments
    assert X86Reg(row.result).name == result


def test_a_door_that_is_not_there_is_named() -> None:
    """KeyError says which door, architecture, width and speaker were asked for."""
    with pytest.raises(KeyError, match="'msr' on X86_64 with 32-bit registers of xen"):
        convention("msr", Arch.X86_64, 32)
    with pytest.raises(KeyError, match="'hypercall' on AARCH64"):
        convention("hypercall", Arch.AARCH64)
    with pytest.raises(KeyError, match="of anyone"):
        convention("hypercall", Arch.X86_64, speaks="")


#: The doors of ours, written down from docs/doors.md: instruction, what it names, number register and number.
OURS = {
    ("msr", Arch.X86_64): (Kind.WRMSR, 0x400000E0, "RAX", 0x41726730),
    ("cpuid", Arch.X86_64): (Kind.CPUID, 0x41726730, "RAX", 0x41726730),
    ("pio", Arch.X86_64): (Kind.IN, 0x4152, "RAX", 0x41726730),
    ("mmio", Arch.X86_64): (Kind.STORE, 0xFEDF8000, "RAX", 0x41726730),
    ("hvc", Arch.AARCH64): (Kind.HVC, 0, 0, 0xC6004152),
    ("smc", Arch.AARCH64): (Kind.SMC, 0, 0, 0xC3004152),
    ("mmio", Arch.AARCH64): (Kind.STORE, 0x0A2F0000, 0, 0x41726730),
}


@pytest.mark.parametrize(("door", "arch"), OURS)
def test_doors_of_ours(door: str, arch: Arch) -> None:
    """Arguments in rdi rsi rbx r10 r8, or x1 to x5; the result in rax or x0."""
    kind, selector, number, call = OURS[door, arch]
    row = convention(door, arch, speaks="")
    assert (row.kind, row.selector, row.call, row.width) == (kind, selector, call, 64)
    if arch is Arch.X86_64:
        assert X86Reg(row.number).name == number and X86Reg(row.result).name == "RAX"
        assert [X86Reg(slot).name for slot in row.arguments] == ["RDI", "RSI", "RBX", "R10", "R8"]
    else:
        assert (row.number, row.result, row.arguments) == (number, 0, (1, 2, 3, 4, 5))


#: Argo by the calls of other hypervisors: number register and number, arguments.
SPOKEN = {
    "uxen": ("RAX", 0x41726730, ["RDI", "RSI", "RDX", "R10", "R8"]),
    "kvm": ("RAX", 0x41726730, ["RBX", "RCX", "RDX", "RSI", "RDI"]),
    "hyperv": ("RCX", 0x16730, ["RDX", "R8", "RDI", "RSI", "R9"]),
    "acrn": ("R8", 0x80006730, ["RDI", "RSI", "RDX", "R10", "R9"]),
    "jailhouse": ("RAX", 0x6730, ["RDI", "RSI", "RDX", "R10", "R9"]),
}


@pytest.mark.parametrize("abi", SPOKEN)
def test_calls_of_other_hypervisors(abi: str) -> None:
    """Each in the registers of its own hypercall, with a number of ours; the result in rax."""
    number, call, arguments = SPOKEN[abi]
    row = convention("hypercall", Arch.X86_64, speaks=abi)
    assert (row.kind, row.selector, X86Reg(row.number).name, row.call) == (Kind.VMCALL, 0, number, call)
    assert [X86Reg(slot).name for slot in row.arguments] == arguments
    assert (row.result, row.width) == (X86Reg.RAX, 64)


def test_xen_on_arm() -> None:
    """HVC #0xEA1: number x16, arguments x0 to x4, result x0 (Xen public/arch-arm.h)."""
    row = convention("hvc", Arch.AARCH64)
    assert (row.kind, row.selector, row.number, row.call) == (Kind.HVC, 0xEA1, 16, 39)
    assert (row.arguments, row.result) == ((0, 1, 2, 3, 4), 0)


def test_doors_are_ranked_by_closeness_and_declared_cost() -> None:
    """The architecture's own call first; every ranked door has a convention, and none is ranked twice."""
    assert ranked(Arch.X86_64) == ["hypercall", "msr", "cpuid", "pio", "mmio"]
    assert ranked(Arch.AARCH64) == ["hvc", "smc", "mmio"]
    assert {(row.door, row.arch) for row in CONVENTIONS} == {(row.door, row.arch) for row in DOOR_COSTS}
    assert [(row.closeness, row.exits, row.cycles) for row in DOOR_COSTS] == [
        (0, 1, 20_850), (1, 1, 20_850), (2, 1, 20_850), (3, 1, 21_480), (4, 1, 22_110),
        (0, 1, 20_850), (1, 1, 20_850), (4, 1, 22_110),
    ]  # fmt: skip


def test_the_call_instruction_of_a_vendor() -> None:
    """Intel SDM 2A, AMD APM 3: the vendor string of leaf 0."""
    assert {row.vendor: row.kind for row in CALL_INSTRUCTIONS} == {
        b"GenuineIntel": Kind.VMCALL, b"AuthenticAMD": Kind.VMMCALL,
    }  # fmt: skip
    assert [row.cpu for row in CALL_INSTRUCTIONS] == ["intel", "amd"]
