"""The machines below the outermost hypervisor: who may execute an instruction, and what it does unintercepted.

Sources: Intel SDM vol. 2 and 3, AMD APM vol. 3, Arm ARM (DDI 0487).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hmx.trap import Kind
from hv_node.doors.personality import CPL, EL0_EL1, EL1, KERNEL, NOWHERE, Otherwise, SiliconRow

_X86: Final = (
    SiliconRow(Kind.CPUID, CPL, Otherwise.UD, Otherwise.NATIVE, "Intel SDM 2A CPUID"),
    SiliconRow(Kind.RDMSR, KERNEL, Otherwise.GP, Otherwise.GP, "Intel SDM 2B RDMSR"),
    SiliconRow(Kind.WRMSR, KERNEL, Otherwise.GP, Otherwise.GP, "Intel SDM 2D WRMSR"),
    SiliconRow(Kind.IN, KERNEL, Otherwise.GP, Otherwise.ALL_ONES, "Intel SDM 2A IN: CPL above IOPL without a TSS bit"),
    SiliconRow(Kind.OUT, KERNEL, Otherwise.GP, Otherwise.IGNORE, "Intel SDM 2B OUT: CPL above IOPL without a TSS bit"),
    SiliconRow(Kind.LOAD, CPL, Otherwise.GP, Otherwise.ALL_ONES, "Intel SDM 3A 4.6: paging decides"),
    SiliconRow(Kind.STORE, CPL, Otherwise.GP, Otherwise.IGNORE, "Intel SDM 3A 4.6: paging decides"),
    SiliconRow(Kind.HLT_WFI, KERNEL, Otherwise.GP, Otherwise.NATIVE, "Intel SDM 2A HLT"),
)
INTEL: Final = (
    SiliconRow(Kind.VMCALL, CPL, Otherwise.UD, Otherwise.UD, "Intel SDM 3C 31.3 VMCALL"),
    SiliconRow(Kind.VMMCALL, NOWHERE, Otherwise.UD, Otherwise.UD, "Intel SDM 2D: no such instruction"),
    *_X86,
)
AMD: Final = (
    SiliconRow(Kind.VMCALL, NOWHERE, Otherwise.UD, Otherwise.UD, "AMD APM 3: no such instruction"),
    SiliconRow(Kind.VMMCALL, CPL, Otherwise.UD, Otherwise.UD, "AMD APM 3 VMMCALL: #UD unless intercepted"),
    *_X86,
)
ARMV8: Final = (
    SiliconRow(Kind.HVC, EL1, Otherwise.UNDEF, Otherwise.UNDEF, "Arm ARM C6.2 HVC: UNDEFINED at EL0 and without EL2"),
    SiliconRow(Kind.SMC, EL1, Otherwise.UNDEF, Otherwise.UNDEF, "Arm ARM C6.2 SMC: UNDEFINED at EL0 and without EL3"),
    SiliconRow(Kind.LOAD, EL0_EL1, Otherwise.UNDEF, Otherwise.ALL_ONES, "Arm ARM D8: the bus decides"),
    SiliconRow(Kind.STORE, EL0_EL1, Otherwise.UNDEF, Otherwise.IGNORE, "Arm ARM D8: the bus decides"),
    SiliconRow(Kind.HLT_WFI, EL0_EL1, Otherwise.UNDEF, Otherwise.NATIVE, "Arm ARM C6.2 WFI, SCTLR_EL1.nTWI"),
)

CPUS: Final[dict[str, Sequence[SiliconRow]]] = {"intel": INTEL, "amd": AMD, "armv8": ARMV8}
