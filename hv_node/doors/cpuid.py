"""CPUID as a Xen HVM guest sees it: the hypervisor block and the few basic leaves that a probe reads.

Source: Xen public/arch-x86/cpuid.h; Intel SDM vol. 2A for leaves 0 and 1.
"""

from __future__ import annotations

from hmx.xen import (
    CPUID_BASE,
    CPUID_HVM_DOMID_PRESENT,
    CPUID_HVM_VCPU_ID_PRESENT,
    CPUID_HYPERVISOR_BIT,
    CPUID_MAX_LEAF,
    CPUID_SIGNATURE,
    HYPERCALL_MSR,
    XEN_VERSION,
)

Leaf = tuple[int, int, int, int]

_NONE: Leaf = (0, 0, 0, 0)
_BASIC: dict[int, Leaf] = {
    0: (1, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),  # "GenuineIntel" in ebx, edx, ecx; no basic leaf above 1
    1: (0, 0, CPUID_HYPERVISOR_BIT, 0),
}


def xen_leaf(leaf: int, domid: int, vcpu: int) -> Leaf:
    """(eax, ebx, ecx, edx) of `leaf` for vCPU `vcpu` of domain `domid`; zeros for a leaf that is not there."""
    match leaf - CPUID_BASE:
        case 0:
            return (CPUID_BASE + CPUID_MAX_LEAF, *CPUID_SIGNATURE)
        case 1:
            return (XEN_VERSION, 0, 0, 0)
        case 2:
            return (1, HYPERCALL_MSR, 0, 0)
        case 4:
            return (CPUID_HVM_VCPU_ID_PRESENT | CPUID_HVM_DOMID_PRESENT, vcpu, domid, 0)
    return _BASIC.get(leaf, _NONE)
