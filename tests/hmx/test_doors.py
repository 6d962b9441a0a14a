"""Register conventions and declared costs of doors (Xen public/arch-x86; Intel SDM vol. 3C)."""

from __future__ import annotations

import pytest

from hmx.doors import CONVENTIONS, DOOR_COSTS, convention, ranked
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
    """KeyError says which door, architecture and width were asked for."""
    with pytest.raises(KeyError, match="'msr' on X86_64 with 64-bit"):
        convention("msr", Arch.X86_64)
    with pytest.raises(KeyError, match="AARCH64"):
        convention("hypercall", Arch.AARCH64)


def test_doors_are_ranked_by_declared_exits() -> None:
    """A VMCALL costs one exit; every ranked door has a convention, and no door is ranked twice."""
    assert [(row.door, row.arch, row.exits) for row in DOOR_COSTS] == [("hypercall", Arch.X86_64, 1)]
    assert ranked(Arch.X86_64) == ["hypercall"] and ranked(Arch.AARCH64) == []
    assert {row.door for row in CONVENTIONS} == {row.door for row in DOOR_COSTS}
