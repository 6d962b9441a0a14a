"""Which hypervisor of several sees an instruction: the rules of VMX, SVM and Arm's EL2, for guests of guests.

Every exit of the hardware lands with the outermost hypervisor.  It asks what the next one inwards would have seen on a
machine of its own, and reflects the exit if that one would have exited; so does each level.  The rules below say how
that question is answered, by instruction and range of selectors; the first that fits counts.

Sources: Intel SDM vol. 3C (numbered as in the edition of 2023), AMD APM vol. 2, Arm ARM (DDI 0487); Linux
arch/x86/kvm/{vmx,svm}/nested.c and arch/arm64/kvm, which decide as the manuals ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

from hmx.trap import Kind
from hv_node.doors.personality import ANY, SiliconRow


class Sees(Enum):
    """Who sees an instruction of a guest below several hypervisors.

    FIRST: the guest's own hypervisor, whatever its controls say: the hardware exits regardless.
    ASKED: the innermost hypervisor that asked for the exit; those further out asked for themselves and serve it.
    ONLY: the guest's own hypervisor if it asked; what others asked for does them no good while its guest runs.
    """

    FIRST = auto()
    ASKED = auto()
    ONLY = auto()


class Extension(NamedTuple):
    """A machine's virtualisation extension: a machine has the one whose call instruction it can execute.

    `entry` is the instruction by which a hypervisor enters its guest; below the outermost one it exits, too.
    """

    name: str
    call: Kind
    entry: str
    source: str


class Rule(NamedTuple):
    """Who sees an instruction with a selector in `first`..`last`."""

    extension: str
    instruction: Kind
    first: int
    last: int
    sees: Sees
    source: str


EXTENSIONS: Final = (
    Extension("vmx", Kind.VMCALL, "VMRESUME", "Intel SDM 3C 26.1.2"),
    Extension("svm", Kind.VMMCALL, "VMRUN", "AMD APM 2 15.5.1"),
    Extension("el2", Kind.HVC, "ERET", "Arm ARM HCR_EL2.NV (FEAT_NV): ERET at virtual EL2"),
)

# MSRs that have a bit in the bitmap.
_LOW: Final = (0x0000_0000, 0x0000_1FFF)
_HIGH: Final = (0xC000_0000, 0xC000_1FFF)
# The other vendor's call is #UD; who intercepts that for itself injects it again into a guest's guest.
_UD: Final = "Intel SDM 3C 26.2, AMD APM 2 15.12.7 (#UD); Linux arch/x86/kvm: vmx_check_intercept"

RULES: Final = (
    Rule("vmx", Kind.VMCALL, *ANY, Sees.FIRST, "Intel SDM 3C 26.1.2: unconditional"),
    Rule("vmx", Kind.VMMCALL, *ANY, Sees.ONLY, _UD),
    Rule("vmx", Kind.CPUID, *ANY, Sees.FIRST, "Intel SDM 3C 26.1.2: unconditional"),
    Rule("vmx", Kind.RDMSR, *_LOW, Sees.ASKED, "Intel SDM 3C 25.6.9: MSR bitmaps"),
    Rule("vmx", Kind.RDMSR, *_HIGH, Sees.ASKED, "Intel SDM 3C 25.6.9: MSR bitmaps"),
    Rule("vmx", Kind.RDMSR, *ANY, Sees.FIRST, "Intel SDM 3C 26.1.3: an index that no bitmap has"),
    Rule("vmx", Kind.WRMSR, *_LOW, Sees.ASKED, "Intel SDM 3C 25.6.9: MSR bitmaps"),
    Rule("vmx", Kind.WRMSR, *_HIGH, Sees.ASKED, "Intel SDM 3C 25.6.9: MSR bitmaps"),
    Rule("vmx", Kind.WRMSR, *ANY, Sees.FIRST, "Intel SDM 3C 26.1.3: an index that no bitmap has"),
    Rule("vmx", Kind.IN, *ANY, Sees.ASKED, "Intel SDM 3C 26.1.3: unconditional I/O exiting, I/O bitmaps"),
    Rule("vmx", Kind.OUT, *ANY, Sees.ASKED, "Intel SDM 3C 26.1.3: unconditional I/O exiting, I/O bitmaps"),
    Rule("vmx", Kind.LOAD, *ANY, Sees.ASKED, "Intel SDM 3C 29.3.3: EPT violation, of the EPT that has no such page"),
    Rule("vmx", Kind.STORE, *ANY, Sees.ASKED, "Intel SDM 3C 29.3.3: EPT violation, of the EPT that has no such page"),
    Rule("vmx", Kind.HLT_WFI, *ANY, Sees.ASKED, "Intel SDM 3C 26.1.3: HLT exiting"),
    Rule("svm", Kind.VMCALL, *ANY, Sees.ONLY, _UD),
    Rule("svm", Kind.VMMCALL, *ANY, Sees.ONLY, "AMD APM 2 15.9: #UD unless intercepted; Linux svm/nested.c"),
    Rule("svm", Kind.CPUID, *ANY, Sees.ASKED, "AMD APM 2 15.9: an intercept bit"),
    Rule("svm", Kind.RDMSR, *ANY, Sees.ASKED, "AMD APM 2 15.11: MSR_PROT and the MSRPM; what it has no bit for exits"),
    Rule("svm", Kind.WRMSR, *ANY, Sees.ASKED, "AMD APM 2 15.11: MSR_PROT and the MSRPM; what it has no bit for exits"),
    Rule("svm", Kind.IN, *ANY, Sees.ASKED, "AMD APM 2 15.10: IOIO_PROT and the IOPM"),
    Rule("svm", Kind.OUT, *ANY, Sees.ASKED, "AMD APM 2 15.10: IOIO_PROT and the IOPM"),
    Rule("svm", Kind.LOAD, *ANY, Sees.ASKED, "AMD APM 2 15.25.6: #VMEXIT(NPF), of the tables that have no such page"),
    Rule("svm", Kind.STORE, *ANY, Sees.ASKED, "AMD APM 2 15.25.6: #VMEXIT(NPF), of the tables that have no such page"),
    Rule("svm", Kind.HLT_WFI, *ANY, Sees.ASKED, "AMD APM 2 15.9: an intercept bit"),
    Rule("el2", Kind.HVC, *ANY, Sees.FIRST, "Arm ARM C6.2 HVC: to EL2, here the virtual one (FEAT_NV2)"),
    Rule("el2", Kind.SMC, *ANY, Sees.ASKED, "Arm ARM HCR_EL2.TSC; Linux arch/arm64/kvm: forward_smc_trap"),
    Rule("el2", Kind.LOAD, *ANY, Sees.ASKED, "Arm ARM D8.2: stage 2 fault, of the tables that have no such page"),
    Rule("el2", Kind.STORE, *ANY, Sees.ASKED, "Arm ARM D8.2: stage 2 fault, of the tables that have no such page"),
    Rule("el2", Kind.HLT_WFI, *ANY, Sees.ASKED, "Arm ARM HCR_EL2.TWI"),
)


def extension_of(cpu: Sequence[SiliconRow]) -> str:
    """The extension of a machine, "" for one that has none."""
    calls = {row.instruction for row in cpu if row.privileges}
    return next((row.name for row in EXTENSIONS if row.call in calls), "")


def rules_of(extension: str, instruction: int) -> tuple[Rule, ...]:
    """The rules of one instruction, in their order."""
    return tuple(row for row in RULES if row.extension == extension and row.instruction == instruction)


def sees(extension: str, instruction: int, selector: int) -> Sees:
    """Who sees an instruction; where nothing is said, the innermost that asked."""
    rules = rules_of(extension, instruction)
    return next((row.sees for row in rules if row.first <= selector <= row.last), Sees.ASKED)
