"""Numbers and layouts of the Xen guest interface against tests/golden/evtchn.csv and the public headers."""

from __future__ import annotations

import pytest

from hmx import xen
from tests.golden import number, rows

AFTER = {row["case"]: row["after"] for row in rows("evtchn.csv")}


@pytest.mark.parametrize("op", list(xen.EvtchnOp), ids=lambda op: op.name)
def test_event_channel_operations(op: xen.EvtchnOp) -> None:
    """EVTCHNOP_* numbers."""
    assert op == number(AFTER[f"op_{op.name.lower()}"])


@pytest.mark.parametrize("state", list(xen.EvtchnState), ids=lambda state: state.name)
def test_event_channel_states(state: xen.EvtchnState) -> None:
    """EVTCHNSTAT_* numbers."""
    assert state == number(AFTER[f"state_{state.name.lower()}"])


@pytest.mark.parametrize(
    ("case", "value"),
    [
        ("hypercall_event_channel_op", xen.Hypercall.EVENT_CHANNEL_OP),
        ("nr_virqs", xen.NR_VIRQS),
        ("ports_2l_64bit", xen.EVTCHN_2L_PORTS),
        ("layout_vcpu_info_size", xen.VCPU_INFO_SIZE),
        ("layout_vcpu_info_count", xen.LEGACY_MAX_VCPUS),
        ("layout_vcpu_info.evtchn_upcall_pending_offset", xen.UPCALL_PENDING_OFFSET),
        ("layout_vcpu_info.evtchn_upcall_mask_offset", xen.UPCALL_MASK_OFFSET),
        ("layout_vcpu_info.evtchn_pending_sel_offset", xen.PENDING_SEL_OFFSET),
        ("layout_shared_info.evtchn_pending_offset", xen.EVTCHN_PENDING_OFFSET),
        ("layout_shared_info.evtchn_mask_offset", xen.EVTCHN_MASK_OFFSET),
    ],
)
def test_golden_numbers(case: str, value: int) -> None:
    """Limits and the layout of shared_info."""
    assert value == number(AFTER[case])


def test_hypercall_numbers() -> None:
    """Xen public/xen.h: memory_op 12, grant_table_op 20, event_channel_op 32, argo_op 39, dm_op 41."""
    assert {call.name: int(call) for call in xen.Hypercall} == {
        "MEMORY_OP": 12, "GRANT_TABLE_OP": 20, "EVENT_CHANNEL_OP": 32, "ARGO_OP": 39, "DM_OP": 41,
    }  # fmt: skip


def test_structures() -> None:
    """Sizes of the structures of 64-bit guests (Xen public/event_channel.h, public/memory.h)."""
    assert [s.size for s in (xen.BIND_VIRQ, xen.CLOSE, xen.SEND, xen.UNMASK, xen.BIND_VCPU)] == [12, 4, 4, 4, 8]
    assert (xen.STATUS.size, xen.ADD_TO_PHYSMAP.size) == (24, 24)


def test_virqs_per_vcpu() -> None:
    """TIMER 0, DEBUG 1, XENOPROF 7 and XENPMU 13 are per vCPU; ARGO is not (Xen public/xen.h)."""
    assert {0, 1, 7, 13} == xen.PER_VCPU_VIRQS


def test_cpuid_numbers() -> None:
    """XENSIG1..3 spell the name; base, number of leaves, feature bits (Xen public/arch-x86/cpuid.h)."""
    assert b"".join(word.to_bytes(4, "little") for word in xen.CPUID_SIGNATURE) == b"XenVMMXenVMM"
    assert (xen.CPUID_BASE, xen.CPUID_MAX_LEAF) == (0x4000_0000, 5)
    assert (xen.CPUID_HVM_VCPU_ID_PRESENT, xen.CPUID_HVM_DOMID_PRESENT) == (8, 16)
    assert xen.XENMEM_ADD_TO_PHYSMAP == 7 and xen.XENMAPSPACE_SHARED_INFO == 0 and xen.DOMID_SELF == 0x7FF0
