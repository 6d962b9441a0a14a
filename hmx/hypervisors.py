"""How a hypervisor shows that it is there: CPUID signatures on x86; SMCCC vendor ids and a device-tree node on Arm.

Both sides read these tables: the hypervisor to announce itself, the guest's probe to recognise it.  A block of CPUID
leaves may begin at any multiple of 0x100 from 0x40000000 on, and several hypervisors may announce themselves side by
side, so a guest scans them all.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CPUID_FIRST: Final = 0x4000_0000
CPUID_LAST: Final = 0x4001_0000
CPUID_STEP: Final = 0x100
CPUID_PRESENT: Final = 1 << 31  # of leaf 1 ECX


class Signature(NamedTuple):
    """EBX, ECX, EDX of the first leaf of a hypervisor's block; `abi` is what its hypercall door speaks."""

    name: str
    ebx: int
    ecx: int
    edx: int
    abi: str
    source: str


SIGNATURES: Final = (
    Signature("xen", 0x566E_6558, 0x6558_4D4D, 0x4D4D_566E, "xen", "Xen public/arch-x86/cpuid.h"),
    Signature("kvm", 0x4B4D_564B, 0x564B_4D56, 0x0000_004D, "kvm", "Linux virt/kvm/x86/cpuid.rst"),
    Signature("hyperv", 0x7263_694D, 0x666F_736F, 0x7648_2074, "hyperv", "Hyper-V TLFS 2.4.1"),
    Signature("vmware", 0x6177_4D56, 0x4D56_6572, 0x6572_6177, "vmware", "VMware KB 1009458"),
    Signature("acrn", 0x4E52_4341, 0x4E52_4341, 0x4E52_4341, "acrn", "ACRN arch/x86/guest/vcpuid.c"),
    Signature("jailhouse", 0x6C69_614A, 0x7375_6F68, 0x0000_0065, "jailhouse", "Jailhouse hypervisor/arch/x86"),
    Signature("uxen", 0x6E65_5875, 0x6F6E_7369, 0x6E65_5874, "uxen", "uXen xen/arch/x86/traps.c"),
    Signature("ax", 0x6E65_5861, 0x6F6E_7369, 0x6E65_5874, "ax", "uXen ax.h"),
    Signature("whpx", 0x7870_6857, 0x6F6E_7369, 0x6E65_5874, "whpx", "uXen dm/whpx"),
)
BY_SIGNATURE: Final = {(row.ebx, row.ecx, row.edx): row for row in SIGNATURES}
SIGNATURE_OF: Final = {row.name: row for row in SIGNATURES}

AX_PROBE_LEAF: Final = 0x35F9_E064  # CPUID leaf that a thin L0 answers before anybody further in sees it
AX_PROBE_RDX: Final = 0xFEE1_DEAD
AX_V4V_LEAF: Final = 0x3717_AC0F
WHPX_V4V_LEAF: Final = 0x35AF_3466

SMCCC_VERSION: Final = 0x8000_0000
SMCCC_VENDOR_COUNT: Final = 0x8600_FF00
SMCCC_VENDOR_UID: Final = 0x8600_FF01
SMCCC_VENDOR_REVISION: Final = 0x8600_FF03
SMCCC_UNKNOWN: Final = (1 << 64) - 1  # "not supported": x0 is -1


class Uid(NamedTuple):
    """w0 to w3 of the vendor-hypervisor UID call; `abi` is what its HVC door speaks."""

    name: str
    w0: int
    w1: int
    w2: int
    w3: int
    abi: str
    source: str


UIDS: Final = (
    Uid("xen", 0xDC12_18A7, 0x6943_98C6, 0xD179_CF9A, 0x67E6_DE8D, "xen", "Xen arch/arm/vsmc.c"),
    Uid("kvm", 0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D, "smccc", "Linux include/linux/arm-smccc.h"),
    Uid("hyperv", 0x4D32_BA58, 0xCD24_4764, 0x8EEF_6C75, 0x1659_7024, "smccc", "openvmm hvdef"),
    Uid("smccc", 0x6F67_7241, 0x0000_7973, 0, 0, "smccc", "experimental: no vendor of this emulator's own"),
)
BY_UID: Final = {(row.w0, row.w1, row.w2, row.w3): row for row in UIDS}
UID_OF: Final = {row.name: row for row in UIDS}

NODE: Final = "hypervisor"  # the root's child of this name, with or without a unit address


class TreeNode(NamedTuple):
    """What the node /hypervisor of a device tree is compatible with; Xen's names its version first."""

    name: str
    compatible: str
    abi: str
    source: str


HYPERVISOR_NODES: Final = (
    TreeNode("xen", "xen,xen", "xen", "Linux bindings: xen,xen"),
    TreeNode("kvm", "linux,kvm", "smccc", "Linux arch/powerpc/kernel/kvm.c, the only user"),
    TreeNode("hyperv", "microsoft,hyperv", "smccc", "openvmm; Linux patches of 2024"),
    TreeNode("smccc", "argosy,smccc", "smccc", "experimental: a hypervisor that only answers by its vendor id"),
)
NODE_OF: Final = {row.name: row for row in HYPERVISOR_NODES}
BY_COMPATIBLE: Final = {row.compatible: row for row in HYPERVISOR_NODES}
