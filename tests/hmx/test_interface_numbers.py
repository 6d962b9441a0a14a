"""Numbers of the guest interface, written down a second time from Xen's headers and the processor manuals."""

from __future__ import annotations

import pytest

from hmx.doors import CONVENTIONS, convention
from hmx.trap import LINK_RESULTS, Arch, Kind, Vector, X86Reg
from hmx.xen import EvtchnOp, EvtchnState, Hypercall


def test_hypercall_numbers() -> None:
    """Xen public/xen.h, __HYPERVISOR_*."""
    assert {call.name: call.value for call in Hypercall} == {
        "MEMORY_OP": 12,
        "EVENT_CHANNEL_OP": 32,
        "ARGO_OP": 39,
    }


def test_event_channel_numbers() -> None:
    """Xen public/event_channel.h, EVTCHNOP_* and EVTCHNSTAT_*."""
    names = {"BIND_VIRQ": 1, "CLOSE": 3, "SEND": 4, "STATUS": 5, "BIND_VCPU": 8, "UNMASK": 9}
    assert {op.name: op.value for op in EvtchnOp} == names
    states = ["CLOSED", "UNBOUND", "INTERDOMAIN", "PIRQ", "VIRQ", "IPI"]
    assert [(state.name, state.value) for state in EvtchnState] == [(s, n) for n, s in enumerate(states)]


def test_exception_vectors() -> None:
    """Intel SDM vol. 3A, table 6-1."""
    assert {vector.name: vector.value for vector in Vector} == {"UD": 6, "GP": 13}


@pytest.mark.parametrize(
    ("width", "arguments"), [(64, "RDI RSI RDX R10 R8"), (32, "RBX RCX RDX RSI RDI")], ids=["64", "32"]
)
def test_registers_of_an_x86_hypercall(width: int, arguments: str) -> None:
    """Xen public/arch-x86/xen-x86_64.h and xen-x86_32.h: number and result in rax, five arguments."""
    row = convention("hypercall", Arch.X86_64, width)
    assert row.kind is Kind.VMCALL
    assert [X86Reg(slot).name for slot in row.arguments] == arguments.split()
    assert (X86Reg(row.number), X86Reg(row.result)) == (X86Reg.RAX, X86Reg.RAX)


def test_there_are_no_other_conventions() -> None:
    """A door or a width that nobody serves has no registers."""
    assert {(row.door, row.arch, row.width) for row in CONVENTIONS} == {
        ("hypercall", Arch.X86_64, 64),
        ("hypercall", Arch.X86_64, 32),
    }
    with pytest.raises(KeyError, match="msr"):
        convention("msr", Arch.X86_64)


def test_calls_whose_result_decides_about_linked_frames() -> None:
    """Project trap frame, version 1: VMCALL, VMMCALL, HVC and SMC have a result register, rax or x0."""
    assert {row.kind: row.slot for row in LINK_RESULTS} == {
        Kind.VMCALL: 0,
        Kind.VMMCALL: 0,
        Kind.HVC: 0,
        Kind.SMC: 0,
    }
