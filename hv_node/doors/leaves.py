"""CPUID as the guests of each x86 personality see it: the basic leaves a probe reads, and the hypervisors' blocks.

Sources: Intel SDM vol. 2A and AMD APM vol. 3 for leaves 0 and 1; Xen public/arch-x86/cpuid.h; Linux
virt/kvm/x86/cpuid.rst; Hyper-V TLFS 2.4; VMware KB 1009458; ACRN; Jailhouse; uXen.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.hypervisors import CPUID_PRESENT, SIGNATURE_OF
from hmx.xen import (
    CPUID_HVM_DOMID_PRESENT,
    CPUID_HVM_VCPU_ID_PRESENT,
    HYPERCALL_MSR,
    VIRIDIAN_HYPERCALL_MSR,
    XEN_VERSION,
)

Leaf = tuple[int, int, int, int]
DOMID: Final = -1  # in a row: the domain's own id
VCPU: Final = -2  # in a row: the vCPU's id
_NONE: Leaf = (0, 0, 0, 0)


class LeafRow(NamedTuple):
    """One leaf of a personality; eax, ebx, ecx, edx are values, DOMID or VCPU."""

    personality: str
    leaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    source: str


def _first(personality: str, name: str, leaf: int, last: int, source: str) -> LeafRow:
    """The leaf in which a block shows its signature and its last leaf."""
    found = SIGNATURE_OF[name]
    return LeafRow(personality, leaf, last, found.ebx, found.ecx, found.edx, source)


_XEN_HVM: Final = CPUID_HVM_VCPU_ID_PRESENT | CPUID_HVM_DOMID_PRESENT
_HV1: Final = 0x3123_7648  # "Hv#1"

LEAVES: Final = (
    _first("xen", "xen", 0x4000_0000, 0x4000_0005, "Xen public/arch-x86/cpuid.h"),
    LeafRow("xen", 0x4000_0001, XEN_VERSION, 0, 0, 0, "Xen public/arch-x86/cpuid.h"),
    LeafRow("xen", 0x4000_0002, 1, HYPERCALL_MSR, 0, 0, "Xen public/arch-x86/cpuid.h"),
    LeafRow("xen", 0x4000_0004, _XEN_HVM, VCPU, DOMID, 0, "Xen public/arch-x86/cpuid.h"),
    _first("xen-viridian", "hyperv", 0x4000_0000, 0x4000_0006, "Xen arch/x86/hvm/viridian/viridian.c"),
    LeafRow("xen-viridian", 0x4000_0001, _HV1, 0, 0, 0, "Hyper-V TLFS 2.4.2"),
    _first("xen-viridian", "xen", 0x4000_0100, 0x4000_0105, "Xen arch/x86/cpuid.c"),
    LeafRow("xen-viridian", 0x4000_0101, XEN_VERSION, 0, 0, 0, "Xen arch/x86/cpuid.c"),
    LeafRow("xen-viridian", 0x4000_0102, 1, VIRIDIAN_HYPERCALL_MSR, 0, 0, "Xen arch/x86/cpuid.c"),
    LeafRow("xen-viridian", 0x4000_0104, _XEN_HVM, VCPU, DOMID, 0, "Xen arch/x86/cpuid.c"),
    _first("kvm", "kvm", 0x4000_0000, 0x4000_0001, "Linux virt/kvm/x86/cpuid.rst"),
    LeafRow("kvm", 0x4000_0001, 0x0100_0009, 0, 0, 0, "Linux virt/kvm/x86/cpuid.rst: clocksource bits"),
    _first("hyperv", "hyperv", 0x4000_0000, 0x4000_0006, "Hyper-V TLFS 2.4.1"),
    LeafRow("hyperv", 0x4000_0001, _HV1, 0, 0, 0, "Hyper-V TLFS 2.4.2"),
    LeafRow("hyperv", 0x4000_0003, 0x20, 0x30, 0, 0, "Hyper-V TLFS 2.4.4: hypercall MSRs, post and signal"),
    _first("vmware", "vmware", 0x4000_0000, 0x4000_0010, "VMware KB 1009458"),
    LeafRow("vmware", 0x4000_0010, 2_000_000, 0, 0, 0, "VMware: TSC frequency in kHz"),
    _first("acrn", "acrn", 0x4000_0000, 0x4000_0010, "ACRN arch/x86/guest/vcpuid.c"),
    _first("jailhouse", "jailhouse", 0x4000_0000, 0x4000_0001, "Jailhouse asm/jailhouse_hypercall.h"),
    _first("uxen", "uxen", 0x4000_0000, 0x4000_0002, "uXen xen/arch/x86/traps.c"),
    LeafRow("uxen", 0x4000_0002, 1, HYPERCALL_MSR, 0, 0, "uXen xen/arch/x86/traps.c"),
    _first("ax", "ax", 0x4000_0000, 0x4000_0000, "uXen ax.h"),
    _first("whpx", "whpx", 0x4000_0000, 0x4000_0000, "uXen dm/whpx"),
)
_TABLE: Final = {(row.personality, row.leaf): row for row in LEAVES}


class Vendor(NamedTuple):
    """Leaf 0 of a machine: EBX, ECX, EDX spell its maker (in the order EBX, EDX, ECX)."""

    cpu: str
    ebx: int
    ecx: int
    edx: int
    source: str


VENDORS: Final = (
    Vendor("intel", 0x756E_6547, 0x6C65_746E, 0x4965_6E69, "Intel SDM 2A CPUID"),
    Vendor("amd", 0x6874_7541, 0x444D_4163, 0x6974_6E65, "AMD APM 3 E.3.1"),
)
_VENDOR_OF: Final = {row.cpu: row for row in VENDORS}


def native_leaf(cpu: str, leaf: int, *, hypervisor: bool = False) -> Leaf:
    """(eax, ebx, ecx, edx) of the silicon itself; its last basic leaf is 1."""
    vendor = _VENDOR_OF[cpu]
    match leaf:
        case 0:
            return (1, vendor.ebx, vendor.ecx, vendor.edx)
        case 1:
            return (0, 0, CPUID_PRESENT if hypervisor else 0, 0)
    return _NONE


def leaf_of(personality: str, cpu: str, leaf: int, domid: int | None, vcpu: int) -> Leaf:
    """(eax, ebx, ecx, edx) of `leaf` for vCPU `vcpu` of domain `domid`; zeros for a leaf that is not there.

    `domid` None: the domain is not told its id, as under a Xen that does not offer it.
    """
    row = _TABLE.get((personality, leaf))
    if row is None:
        return native_leaf(cpu, leaf, hypervisor=True)
    if domid is None and DOMID in row[2:6]:
        row = row._replace(eax=row.eax & ~CPUID_HVM_DOMID_PRESENT)
    eax, ebx, ecx, edx = ((domid or 0) if value == DOMID else vcpu if value == VCPU else value for value in row[2:6])
    return eax, ebx, ecx, edx
