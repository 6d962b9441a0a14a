"""The nesting tables a second time, written from the manuals.

Sources: Intel SDM vol. 3C 25.6.9 and 26.1, AMD APM vol. 2 15.9 to 15.12 and 15.25, Arm ARM (HCR_EL2, FEAT_NV2).
"""

from __future__ import annotations

import pytest

from hmx.trap import Arch, Kind
from hv_node.doors.nesting import EXTENSIONS, RULES, Sees, extension_of, sees
from hv_node.doors.personality import ANY, CPL, Guests, Intercept, NestedMsr, Otherwise, SiliconRow
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import NAMED, PERSONALITIES, with_doors, with_nested_msr, without_doors

#: By extension: instruction, selectors, who sees it.
WANTED = {
    # Unconditional: CPUID, VMCALL; MSRs that no bitmap covers.  By controls, bitmaps and EPT: the rest.
    "vmx": """
        VMCALL any FIRST
        VMMCALL any ONLY
        CPUID any FIRST
        RDMSR 0x0-0x1FFF ASKED
        RDMSR 0xC0000000-0xC0001FFF ASKED
        RDMSR any FIRST
        WRMSR 0x0-0x1FFF ASKED
        WRMSR 0xC0000000-0xC0001FFF ASKED
        WRMSR any FIRST
        IN any ASKED
        OUT any ASKED
        LOAD any ASKED
        STORE any ASKED
        HLT_WFI any ASKED
    """,
    # Nothing of these is unconditional.  VMMCALL is #UD unless the guest's own hypervisor intercepts it; so is the
    # other vendor's call, unless it intercepts #UD.
    "svm": """
        VMCALL any ONLY
        VMMCALL any ONLY
        CPUID any ASKED
        RDMSR any ASKED
        WRMSR any ASKED
        IN any ASKED
        OUT any ASKED
        LOAD any ASKED
        STORE any ASKED
        HLT_WFI any ASKED
    """,
    # HVC goes to the caller's EL2; the rest by HCR_EL2.TSC, stage 2, HCR_EL2.TWI.
    "el2": """
        HVC any FIRST
        SMC any ASKED
        LOAD any ASKED
        STORE any ASKED
        HLT_WFI any ASKED
    """,
}


def test_the_rules() -> None:
    """Every row, in its order."""
    wanted = []
    for extension, text in WANTED.items():
        for line in filter(str.strip, text.splitlines()):
            instruction, selector, seen = line.split()
            low, _, high = selector.partition("-")
            first, last = ANY if selector == "any" else (int(low, 0), int(high, 0))
            wanted.append((extension, Kind[instruction], first, last, Sees[seen]))
    assert [row[:5] for row in RULES] == wanted


@pytest.mark.parametrize(
    ("index", "who"),
    [(0, "ASKED"), (0x1FFF, "ASKED"), (0x2000, "FIRST"), (0x400000E0, "FIRST"), (0xBFFFFFFF, "FIRST")]
    + [(0xC0000000, "ASKED"), (0xC0001FFF, "ASKED"), (0xC0002000, "FIRST"), (0xC0010000, "FIRST")],
)
@pytest.mark.parametrize("kind", [Kind.RDMSR, Kind.WRMSR])
def test_the_edges_of_vmx_s_bitmaps(kind: Kind, index: int, who: str) -> None:
    """Intel SDM 3C 25.6.9: 0 to 1FFF and C0000000 to C0001FFF.  AMD's has bits for C0010000 too, and an exit that the
    same control asks for where it has none (APM 2 15.11).
    """
    assert sees("vmx", kind, index) is Sees[who]
    assert sees("svm", kind, index) is Sees.ASKED


def test_machines_and_their_extensions() -> None:
    """A machine has the extension whose call instruction it executes; what enters a guest."""
    assert {name: extension_of(cpu) for name, cpu in CPUS.items()} == {"intel": "vmx", "amd": "svm", "armv8": "el2"}
    assert [row[:3] for row in EXTENSIONS] == [
        ("vmx", Kind.VMCALL, "VMRESUME"), ("svm", Kind.VMMCALL, "VMRUN"), ("el2", Kind.HVC, "ERET"),
    ]  # fmt: skip
    plain = (SiliconRow(Kind.CPUID, CPL, Otherwise.UD, Otherwise.NATIVE, ""),)
    assert extension_of(plain) == "" and sees("", Kind.CPUID, 0) is Sees.ASKED
    assert {row.instruction for row in RULES if row.extension == "vmx"} == {row.instruction for row in CPUS["intel"]}
    assert {row.instruction for row in RULES if row.extension == "svm"} == {row.instruction for row in CPUS["amd"]}
    assert {row.instruction for row in RULES if row.extension == "el2"} == {row.instruction for row in CPUS["armv8"]}


def test_what_personalities_are_to_hypervisors_on_them() -> None:
    """Where nothing traps, and on firmware, they have the machine."""
    others = {(row.name, row.arch): row.guests for row in NAMED if row.guests is not Guests.VIRTUAL}
    x86, arm = Arch.X86_64, Arch.AARCH64
    assert others == {
        ("pv-only", x86): Guests.MACHINE, ("pv-only", arm): Guests.MACHINE, ("bare-metal", x86): Guests.MACHINE,
        ("bare-metal", arm): Guests.MACHINE, ("firmware", arm): Guests.MACHINE,
    }  # fmt: skip
    assert {row.nested_msr for row in NAMED} == {NestedMsr.KEEP}


def test_a_topology_may_say_what_becomes_of_nested_msrs() -> None:
    """nested-msr: keep, steal, never; default is the personality's own."""
    kvm = PERSONALITIES["kvm", Arch.X86_64]
    found = [with_nested_msr(kvm, word).nested_msr.name for word in ("default", "keep", "steal", "never")]
    assert found == ["KEEP", "KEEP", "STEAL", "NEVER"]
    never = with_nested_msr(kvm, "never")
    assert with_nested_msr(never, "default") is never and never.rows is kvm.rows
    with pytest.raises(KeyError):
        with_nested_msr(kvm, "often")


@pytest.mark.parametrize("personality", NAMED, ids=lambda row: f"{row.name}-{row.arch.name}")
def test_stolen_doors(personality: object) -> None:
    """Those that are named, and whatever a personality steals by that instruction anyway: AX, CPUID."""
    row = next(each for each in NAMED if each is personality)
    doors = ("msr", "cpuid", "pio", "mmio", "smc")
    for stolen in ((), ("msr",), doors):
        made = with_doors(row, doors, stolen)
        thief = {each.handler for each in made.rows if each.intercept is Intercept.STEAL and "door" in each.handler}
        offered = {each.handler for each in made.rows if "door" in each.handler}
        own = {"door-cpuid"} if row.name == "ax" else set()
        assert thief == offered & ({f"door-{door}" for door in stolen} | own)
        assert without_doors(made) == row
