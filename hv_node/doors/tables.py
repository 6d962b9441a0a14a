"""The personalities and machines that exist: what a person lays beside the manuals.

Sources: Intel SDM vol. 2 and 3C, Xen arch/x86/hvm and public/arch-x86/cpuid.h.
"""

from __future__ import annotations

from typing import Final

from hmx.trap import Arch, Kind
from hmx.xen import HYPERCALL_MSR
from hv_node.doors.personality import ANY, Intercept, Otherwise, Personality, Row, SiliconRow

XEN_X86_64: Final = (
    Row(
        Kind.VMCALL,
        *ANY,
        Intercept.ALWAYS,
        "hypercall",
        Otherwise.UD,
        1,
        "Intel SDM 3C 26.1.2; Xen hvm/hypercall.c",
    ),
    Row(Kind.CPUID, *ANY, Intercept.ALWAYS, "cpuid", Otherwise.NATIVE, 1, "Intel SDM 3C 26.1.2; Xen cpuid.c"),
    Row(
        Kind.RDMSR,
        HYPERCALL_MSR,
        HYPERCALL_MSR,
        Intercept.ALWAYS,
        "",
        Otherwise.ZERO,
        1,
        "Xen arch/x86/msr.c",
    ),
    Row(Kind.RDMSR, *ANY, Intercept.BITMAP, "", Otherwise.GP, 1, "Intel SDM 3C 26.1.3; Xen arch/x86/msr.c"),
    Row(
        Kind.WRMSR,
        HYPERCALL_MSR,
        HYPERCALL_MSR,
        Intercept.ALWAYS,
        "hypercall-page",
        Otherwise.GP,
        1,
        "Xen arch/x86/msr.c",
    ),
    Row(Kind.WRMSR, *ANY, Intercept.BITMAP, "", Otherwise.GP, 1, "Intel SDM 3C 26.1.3; Xen arch/x86/msr.c"),
    Row(Kind.IN, *ANY, Intercept.BITMAP, "", Otherwise.ALL_ONES, 1, "Xen hvm/emulate.c: no device answers"),
    Row(Kind.OUT, *ANY, Intercept.BITMAP, "", Otherwise.IGNORE, 1, "Xen hvm/emulate.c: no device answers"),
    Row(Kind.LOAD, *ANY, Intercept.ALWAYS, "", Otherwise.ALL_ONES, 1, "Xen hvm/emulate.c: no device answers"),
    Row(Kind.STORE, *ANY, Intercept.ALWAYS, "", Otherwise.IGNORE, 1, "Xen hvm/emulate.c: no device answers"),
    Row(Kind.HLT_WFI, *ANY, Intercept.ALWAYS, "idle", Otherwise.NATIVE, 1, "Xen hvm/vmx: HLT exiting"),
)

INTEL: Final = (
    SiliconRow(Kind.VMCALL, 3, Otherwise.UD, Otherwise.UD, "Intel SDM 3C 31.3 VMCALL"),
    SiliconRow(Kind.CPUID, 3, Otherwise.UD, Otherwise.NATIVE, "Intel SDM 2A CPUID"),
    SiliconRow(Kind.RDMSR, 0, Otherwise.GP, Otherwise.GP, "Intel SDM 2B RDMSR"),
    SiliconRow(Kind.WRMSR, 0, Otherwise.GP, Otherwise.GP, "Intel SDM 2D WRMSR"),
    SiliconRow(Kind.IN, 0, Otherwise.GP, Otherwise.ALL_ONES, "Intel SDM 2A IN: CPL above IOPL without a TSS bit"),
    SiliconRow(Kind.OUT, 0, Otherwise.GP, Otherwise.IGNORE, "Intel SDM 2B OUT: CPL above IOPL without a TSS bit"),
    SiliconRow(Kind.LOAD, 3, Otherwise.GP, Otherwise.ALL_ONES, "Intel SDM 3A 4.6: paging decides"),
    SiliconRow(Kind.STORE, 3, Otherwise.GP, Otherwise.IGNORE, "Intel SDM 3A 4.6: paging decides"),
    SiliconRow(Kind.HLT_WFI, 0, Otherwise.GP, Otherwise.IGNORE, "Intel SDM 2A HLT"),
)

PERSONALITIES: Final = {("xen", Arch.X86_64): Personality("xen", Arch.X86_64, XEN_X86_64)}
CPUS: Final = {"intel": INTEL}
