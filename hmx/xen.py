"""Facts of the Xen guest interface that a hypervisor and its guests must agree on, Argo aside.

Sources: Xen public/xen.h, public/event_channel.h, public/memory.h, public/arch-x86/cpuid.h,
public/arch-x86/xen.h. Structures are those of a 64-bit x86 guest.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

DOMID_SELF: Final = 0x7FF0


class Hypercall(IntEnum):
    """Hypercall numbers served so far (Xen public/xen.h)."""

    MEMORY_OP = 12
    GRANT_TABLE_OP = 20
    EVENT_CHANNEL_OP = 32
    ARGO_OP = 39
    DM_OP = 41


class EvtchnOp(IntEnum):
    """Sub-operations of event_channel_op (Xen public/event_channel.h)."""

    BIND_INTERDOMAIN = 0
    BIND_VIRQ = 1
    CLOSE = 3
    SEND = 4
    STATUS = 5
    BIND_VCPU = 8
    UNMASK = 9


class EvtchnState(IntEnum):
    """What a port is, as EVTCHNOP_status reports it."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


BIND_INTERDOMAIN: Final = struct.Struct("<HHII")  # remote_dom, pad, remote_port, OUT local_port
BIND_VIRQ: Final = struct.Struct("<III")  # virq, vcpu, OUT port
CLOSE: Final = struct.Struct("<I")  # port
SEND: Final = struct.Struct("<I")  # port
UNMASK: Final = struct.Struct("<I")  # port
BIND_VCPU: Final = struct.Struct("<II")  # port, vcpu
STATUS: Final = struct.Struct("<HHIIIQ")  # IN dom, pad, port; OUT status, vcpu, union (virq in its low half)

NR_VIRQS: Final = 24
# Virtual interrupts bound per vCPU; all others are bound on vCPU 0 only.
PER_VCPU_VIRQS: Final = frozenset({0, 1, 7, 13})  # TIMER, DEBUG, XENOPROF, XENPMU

XENMEM_ADD_TO_PHYSMAP: Final = 7
XENMAPSPACE_SHARED_INFO: Final = 0
ADD_TO_PHYSMAP: Final = struct.Struct("<HHIQQ")  # domid, size, space, idx, gpfn

# shared_info of an x86_64 guest, 2-level event channels.
VCPU_INFO_SIZE: Final = 64
UPCALL_PENDING_OFFSET: Final = 0  # u8 in vcpu_info
UPCALL_MASK_OFFSET: Final = 1  # u8 in vcpu_info
PENDING_SEL_OFFSET: Final = 8  # u64 in vcpu_info
EVTCHN_PENDING_OFFSET: Final = 2048
EVTCHN_MASK_OFFSET: Final = 2560
EVTCHN_2L_PORTS: Final = 4096
LEGACY_MAX_VCPUS: Final = 32

CPUID_BASE: Final = 0x4000_0000
CPUID_MAX_LEAF: Final = 5
CPUID_SIGNATURE: Final = (0x566E_6558, 0x6558_4D4D, 0x4D4D_566E)  # "XenVMMXenVMM" in ebx, ecx, edx
CPUID_HYPERVISOR_BIT: Final = 1 << 31  # of leaf 1 ECX: a hypervisor is present
CPUID_HVM_DOMID_PRESENT: Final = 1 << 4  # of leaf +4 EAX: ECX holds the domain's own id
CPUID_HVM_VCPU_ID_PRESENT: Final = 1 << 3  # of leaf +4 EAX: EBX holds the vCPU's id
XEN_VERSION: Final = 4 << 16 | 22
HYPERCALL_MSR: Final = 0x4000_0000
VIRIDIAN_HYPERCALL_MSR: Final = 0x4000_0200  # where Hyper-V's leaves and MSRs come first
