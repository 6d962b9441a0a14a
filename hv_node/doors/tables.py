"""The personalities that exist: what a person lays beside the manuals.  Later rows yield to earlier ones.

Sources: Intel SDM vol. 3C, Xen arch/x86/hvm and arch/arm, Linux virt/kvm, Hyper-V TLFS, VMware's and ACRN's
interfaces, Jailhouse, uXen; Arm SMCCC (DEN 0028).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hmx.arm_map import GIC_LAST, GICD_BASE
from hmx.doors import CONVENTIONS, doors_of
from hmx.hypervisors import AX_PROBE_LEAF, AX_V4V_LEAF, WHPX_V4V_LEAF
from hmx.trap import Arch, Kind
from hmx.uxen_enum import BITMAP_BYTES, BITMAP_PORT, CONTROL_PORT
from hmx.uxen_platform import CONFIG_ADDRESS, CONFIG_LAST, FIRST_ADDRESS, LAST_ADDRESS
from hmx.xen import HYPERCALL_MSR, VIRIDIAN_HYPERCALL_MSR
from hv_node.doors.personality import ANY, CPL, Guests, Intercept, NestedMsr, Otherwise, Personality, Row

_ALWAYS, _BITMAP, _STEAL = Intercept.ALWAYS, Intercept.BITMAP, Intercept.STEAL
_HV_MSRS: Final = (0x4000_0000, 0x4000_0001)  # guest OS id; hypercall page
_KVM_MSRS: Final = (0x4B56_4D00, 0x4B56_4D08)

_HVM: Final = (
    Row(Kind.CPUID, *ANY, _ALWAYS, "cpuid", Otherwise.NATIVE, 1, "Intel SDM 3C 26.1.2; AMD APM 2 15.9"),
    Row(Kind.RDMSR, *ANY, _BITMAP, "", Otherwise.GP, 1, "Intel SDM 3C 26.1.3"),
    Row(Kind.WRMSR, *ANY, _BITMAP, "", Otherwise.GP, 1, "Intel SDM 3C 26.1.3"),
    Row(Kind.IN, *ANY, _BITMAP, "", Otherwise.ALL_ONES, 1, "no device answers"),
    Row(Kind.OUT, *ANY, _BITMAP, "", Otherwise.IGNORE, 1, "no device answers"),
    Row(Kind.LOAD, *ANY, _ALWAYS, "", Otherwise.ALL_ONES, 1, "no device answers"),
    Row(Kind.STORE, *ANY, _ALWAYS, "", Otherwise.IGNORE, 1, "no device answers"),
    Row(Kind.HLT_WFI, *ANY, _ALWAYS, "idle", Otherwise.NATIVE, 1, "HLT exiting"),
)


def _calls(handler: str, source: str) -> tuple[Row, ...]:
    """Either vendor's call instruction: the silicon lets only its own through."""
    return tuple(Row(kind, *ANY, _ALWAYS, handler, Otherwise.UD, 1, source) for kind in (Kind.VMCALL, Kind.VMMCALL))


XEN_X86_64: Final = (
    *_calls("hypercall", "Intel SDM 3C 26.1.2; Xen arch/x86/hvm/hypercall.c"),
    Row(Kind.RDMSR, HYPERCALL_MSR, HYPERCALL_MSR, _ALWAYS, "", Otherwise.ZERO, 1, "Xen arch/x86/msr.c"),
    Row(Kind.WRMSR, HYPERCALL_MSR, HYPERCALL_MSR, _ALWAYS, "hypercall-page", Otherwise.GP, 1, "Xen arch/x86/msr.c"),
    *_HVM,
)
XEN_VIRIDIAN: Final = (
    *_calls("viridian-call", "Xen arch/x86/hvm/viridian/viridian.c"),
    Row(Kind.RDMSR, *_HV_MSRS, _ALWAYS, "hyperv-msr", Otherwise.GP, 1, "Xen arch/x86/hvm/viridian/viridian.c"),
    Row(Kind.WRMSR, *_HV_MSRS, _ALWAYS, "hyperv-msr", Otherwise.GP, 1, "Xen arch/x86/hvm/viridian/viridian.c"),
    Row(
        Kind.WRMSR, VIRIDIAN_HYPERCALL_MSR, VIRIDIAN_HYPERCALL_MSR, _ALWAYS, "hypercall-page", Otherwise.GP, 1,
        "Xen arch/x86/msr.c",
    ),
    Row(
        Kind.RDMSR, VIRIDIAN_HYPERCALL_MSR, VIRIDIAN_HYPERCALL_MSR, _ALWAYS, "", Otherwise.ZERO, 1,
        "Xen arch/x86/msr.c",
    ),
    *_HVM,
)  # fmt: skip
KVM_X86_64: Final = (
    Row(Kind.VMCALL, *ANY, _ALWAYS, "kvm-call", Otherwise.UD, 1, "Linux virt/kvm/x86/hypercalls.rst", CPL),
    Row(Kind.VMMCALL, *ANY, _ALWAYS, "kvm-call", Otherwise.UD, 1, "Linux: the wrong vendor's call is patched", CPL),
    Row(Kind.RDMSR, *_KVM_MSRS, _BITMAP, "", Otherwise.ZERO, 1, "Linux virt/kvm/x86/msr.rst"),
    Row(Kind.WRMSR, *_KVM_MSRS, _BITMAP, "accept", Otherwise.IGNORE, 1, "Linux virt/kvm/x86/msr.rst"),
    *_HVM,
)
HYPERV_X86_64: Final = (
    *_calls("hyperv-call", "Hyper-V TLFS 3"),
    Row(Kind.RDMSR, *_HV_MSRS, _BITMAP, "hyperv-msr", Otherwise.GP, 1, "Hyper-V TLFS 3.13"),
    Row(Kind.WRMSR, *_HV_MSRS, _BITMAP, "hyperv-msr", Otherwise.GP, 1, "Hyper-V TLFS 3.13"),
    *_HVM,
)
VMWARE: Final = (
    Row(Kind.IN, 0x5658, 0x5659, _BITMAP, "vmware-port", Otherwise.ALL_ONES, 1, "VMware KB 1009458", CPL),
    *_HVM,
)
ACRN: Final = (*_calls("acrn-call", "ACRN arch/x86/guest/vmcall.c"), *_HVM)
UXEN: Final = (
    *_calls("uxen-call", "uXen xen/arch/x86/hvm/hvm.c"),
    Row(
        Kind.IN, CONTROL_PORT, BITMAP_PORT + BITMAP_BYTES - 1, _BITMAP, "uxen-storage", Otherwise.ALL_ONES, 1,
        "uXen dm/uxen_stor.c: bitmap of v4v storage units",
    ),
    Row(
        Kind.IN, CONFIG_ADDRESS, CONFIG_LAST, _BITMAP, "pci-config", Otherwise.ALL_ONES, 1,
        "PCI Local Bus 3.0, 3.2.2.3.2",
    ),
    Row(
        Kind.OUT, CONFIG_ADDRESS, CONFIG_LAST, _BITMAP, "pci-config", Otherwise.IGNORE, 1,
        "PCI Local Bus 3.0, 3.2.2.3.2",
    ),
    Row(
        Kind.LOAD, FIRST_ADDRESS, LAST_ADDRESS, _ALWAYS, "uxen-platform", Otherwise.ALL_ONES, 1,
        "uXen platform device 5853:5173: registers, state page, device table",
    ),
    Row(
        Kind.STORE, FIRST_ADDRESS, LAST_ADDRESS, _ALWAYS, "uxen-platform", Otherwise.IGNORE, 1,
        "uXen platform device 5853:5173: registers, state page, device table",
    ),
    Row(Kind.RDMSR, HYPERCALL_MSR, HYPERCALL_MSR, _ALWAYS, "", Otherwise.ZERO, 1, "uXen, as Xen"),
    Row(Kind.WRMSR, HYPERCALL_MSR, HYPERCALL_MSR, _ALWAYS, "hypercall-page", Otherwise.GP, 1, "uXen, as Xen"),
    Row(Kind.WRMSR, *ANY, _BITMAP, "", Otherwise.IGNORE, 1, "uXen xen/arch/x86/hvm/vmx: unclaimed writes are dropped"),
    *_HVM,
)  # fmt: skip
AX: Final = (
    Row(Kind.CPUID, AX_PROBE_LEAF, AX_PROBE_LEAF, _STEAL, "ax-probe", Otherwise.NATIVE, 1, "uXen ax.h"),
    Row(Kind.CPUID, AX_V4V_LEAF, AX_V4V_LEAF, _STEAL, "v4v-cpuid", Otherwise.NATIVE, 1, "uXen ax.h"),
    *_HVM,
)
WHPX: Final = (
    Row(Kind.CPUID, WHPX_V4V_LEAF, WHPX_V4V_LEAF, _ALWAYS, "v4v-cpuid", Otherwise.NATIVE, 1, "uXen dm/whpx"),
    *_HVM,
)
JAILHOUSE_X86_64: Final = (*_calls("jailhouse-call", "Jailhouse hypervisor/arch/x86/vcpu.c"), *_HVM)

_GIC: Final = (
    Row(Kind.LOAD, GICD_BASE, GIC_LAST, _ALWAYS, "gic", Otherwise.ALL_ONES, 1, "Arm IHI 0069: the distributor traps"),
    Row(Kind.STORE, GICD_BASE, GIC_LAST, _ALWAYS, "gic", Otherwise.IGNORE, 1, "Arm IHI 0069: the distributor traps"),
)
_ARM: Final = (
    *_GIC,
    Row(Kind.LOAD, *ANY, _ALWAYS, "", Otherwise.ALL_ONES, 1, "stage 2 fault, no device answers"),
    Row(Kind.STORE, *ANY, _ALWAYS, "", Otherwise.IGNORE, 1, "stage 2 fault, no device answers"),
    Row(Kind.HLT_WFI, *ANY, _ALWAYS, "idle", Otherwise.NATIVE, 1, "Arm ARM HCR_EL2.TWI"),
)
XEN_AARCH64: Final = (
    Row(Kind.HVC, 0xEA1, 0xEA1, _ALWAYS, "hypercall", Otherwise.UNDEF, 1, "Xen public/arch-arm.h"),
    Row(Kind.HVC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Xen arch/arm/vsmc.c"),
    Row(Kind.HVC, *ANY, _ALWAYS, "", Otherwise.UNDEF, 1, "Xen arch/arm/traps.c"),
    Row(Kind.SMC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Xen arch/arm/vsmc.c, HCR_EL2.TSC"),
    Row(Kind.SMC, *ANY, _ALWAYS, "", Otherwise.UNDEF, 1, "Xen arch/arm/vsmc.c"),
    *_ARM,
)
KVM_AARCH64: Final = (
    Row(Kind.HVC, *ANY, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Linux arch/arm64/kvm/hypercalls.c"),
    Row(Kind.SMC, 0, 0, _ALWAYS, "smccc", Otherwise.MINUS_ONE, 1, "Linux arch/arm64/kvm/handle_exit.c"),
    Row(Kind.SMC, *ANY, _ALWAYS, "", Otherwise.MINUS_ONE, 1, "Linux arch/arm64/kvm/handle_exit.c"),
    *_ARM,
)
SMCCC: Final = (
    Row(Kind.HVC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Arm DEN 0028 2.9"),
    Row(Kind.HVC, *ANY, _ALWAYS, "", Otherwise.UNDEF, 1, "Arm DEN 0028 2.9: the immediate must be 0"),
    Row(Kind.SMC, *ANY, _ALWAYS, "", Otherwise.MINUS_ONE, 1, "Arm DEN 0028 5.2: not supported"),
    *_ARM,
)
HYPERV_AARCH64: Final = (
    Row(Kind.HVC, 1, 1, _ALWAYS, "hyperv-call", Otherwise.UNDEF, 1, "Hyper-V TLFS 3.7: HVC #1"),
    Row(Kind.HVC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Hyper-V TLFS, SMCCC vendor range"),
    Row(Kind.HVC, *ANY, _ALWAYS, "", Otherwise.UNDEF, 1, "Hyper-V TLFS 3.7"),
    Row(Kind.SMC, *ANY, _ALWAYS, "", Otherwise.MINUS_ONE, 1, "Arm DEN 0028 5.2: not supported"),
    *_ARM,
)
JAILHOUSE_AARCH64: Final = (
    Row(Kind.HVC, 0x4A48, 0x4A48, _ALWAYS, "jailhouse-call", Otherwise.UNDEF, 1, "Jailhouse asm/jailhouse_hypercall.h"),
    Row(Kind.HVC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Jailhouse hypervisor/arch/arm-common/smccc.c"),
    Row(Kind.HVC, *ANY, _ALWAYS, "", Otherwise.UNDEF, 1, "Jailhouse hypervisor/arch/arm64/traps.c"),
    Row(Kind.SMC, *ANY, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Jailhouse hypervisor/arch/arm-common/smccc.c"),
    *_ARM,
)
FIRMWARE: Final = (
    Row(Kind.SMC, 0, 0, _ALWAYS, "smccc", Otherwise.UNDEF, 1, "Arm DEN 0028: EL3 answers"),
    *(row._replace(exits=0, source="Arm IHI 0069: the machine's own controller") for row in _GIC),
)

NAMED: Final = (
    Personality("xen", Arch.X86_64, "xen", XEN_X86_64),
    Personality("xen-viridian", Arch.X86_64, "xen", XEN_VIRIDIAN),
    Personality("kvm", Arch.X86_64, "kvm", KVM_X86_64),
    Personality("hyperv", Arch.X86_64, "hyperv", HYPERV_X86_64),
    Personality("vmware", Arch.X86_64, "", VMWARE),
    Personality("acrn", Arch.X86_64, "acrn", ACRN),
    Personality("uxen", Arch.X86_64, "uxen", UXEN),
    Personality("ax", Arch.X86_64, "", AX),
    Personality("whpx", Arch.X86_64, "", WHPX),
    Personality("jailhouse", Arch.X86_64, "jailhouse", JAILHOUSE_X86_64),
    Personality("pv-only", Arch.X86_64, "", (), Guests.MACHINE),
    Personality("bare-metal", Arch.X86_64, "", (), Guests.MACHINE),
    Personality("xen", Arch.AARCH64, "xen", XEN_AARCH64),
    Personality("kvm", Arch.AARCH64, "", KVM_AARCH64),
    Personality("smccc", Arch.AARCH64, "", SMCCC),
    Personality("hyperv", Arch.AARCH64, "", HYPERV_AARCH64),
    Personality("jailhouse", Arch.AARCH64, "", JAILHOUSE_AARCH64),
    Personality("firmware", Arch.AARCH64, "", FIRMWARE, Guests.MACHINE),
    Personality("pv-only", Arch.AARCH64, "", (), Guests.MACHINE),
    Personality("bare-metal", Arch.AARCH64, "", (), Guests.MACHINE),
)
PERSONALITIES: Final = {(row.name, row.arch): row for row in NAMED}

DOOR: Final = "door-"  # what the handlers of our doors begin with
DOOR_INTERCEPT: Final = {
    Kind.WRMSR: _BITMAP,
    Kind.CPUID: _ALWAYS,
    Kind.IN: _BITMAP,
    Kind.STORE: _ALWAYS,
    Kind.HVC: _ALWAYS,
    Kind.SMC: _ALWAYS,
}


def has_own_call(personality: Personality, door: str) -> bool:
    """Whether the hypervisor's own ABI has a call instruction that serves as `door`."""
    return bool(personality.abi) and any(
        row.speaks == personality.abi and row.door == door and row.arch is personality.arch for row in CONVENTIONS
    )


def possible_doors(personality: Personality) -> tuple[str, ...]:
    """The doors that a hypervisor of this personality can offer: none where nothing traps."""
    if not personality.rows:
        return ()
    if personality.name == "firmware":
        return ("smc",)
    return tuple(
        door
        for door in doors_of(personality.arch)
        if door != "hypercall" or has_own_call(personality, door)
    )


def with_doors(personality: Personality, doors: Sequence[str], stolen: Sequence[str] = ()) -> Personality:
    """`personality` with rows for the doors of ours that it offers in front of its own.

    Those in `stolen` it takes before a hypervisor further in sees them; so does one that steals the instruction anyway.
    """
    steals = {row.instruction for row in personality.rows if row.intercept is _STEAL}
    rows = tuple(
        Row(
            found.kind, found.selector, found.selector,
            _STEAL if found.door in stolen or found.kind in steals else DOOR_INTERCEPT[found.kind],
            f"{DOOR}{found.door}", Otherwise.NATIVE, 1, found.source,
        )
        for found in CONVENTIONS
        if found.arch is personality.arch and found.door in doors and not found.speaks
        and not has_own_call(personality, found.door)
    )  # fmt: skip
    return personality._replace(rows=rows + personality.rows)


def without_doors(personality: Personality) -> Personality:
    """`personality` as it was before `with_doors`."""
    return personality._replace(rows=tuple(row for row in personality.rows if not row.handler.startswith(DOOR)))


def with_nested_msr(personality: Personality, wish: str) -> Personality:
    """`personality` with its rule for the MSR intercepts of hypervisors on it: keep, steal or never; else its own.

    Raises KeyError for any other word than those and `default`.
    """
    return personality if wish == "default" else personality._replace(nested_msr=NestedMsr[wish.upper()])
