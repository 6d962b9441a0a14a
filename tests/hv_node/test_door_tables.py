"""The doors' tables a second time, written from the manuals: personalities, machines, leaves, ids, notification modes.

Sources: Intel SDM vol. 2 and 3C 26.1, AMD APM vol. 2 15.9 and vol. 3, Arm ARM (DDI 0487), SMCCC (DEN 0028); Xen
public headers and arch/, Linux virt/kvm, Hyper-V TLFS, VMware KB 1009458, ACRN, Jailhouse, uXen.  What a guest sees of
each instruction is in test_doors_all_golden.py; here is what no single instruction shows.
"""

from __future__ import annotations

import pytest

from hmx import arm_map, notify
from hmx.doors import CONVENTIONS
from hmx.hypervisors import SIGNATURES, UIDS
from hmx.trap import Arch, Kind
from hv_node.doors import smccc
from hv_node.doors.handlers import HANDLERS
from hv_node.doors.leaves import DOMID, VCPU, leaf_of, native_leaf
from hv_node.doors.personality import ANY, Intercept, Otherwise, Personality, Row
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import NAMED, PERSONALITIES, has_own_call, possible_doors, with_doors

# What VMX and SVM have in common: CPUID and HLT exit always, MSRs and ports by bitmaps, memory by the second
# translation.  An MSR that nobody serves is #GP, a port or address reads as ones.
HVM = """
    CPUID any ALWAYS cpuid NATIVE
    RDMSR any BITMAP - GP
    WRMSR any BITMAP - GP
    IN any BITMAP - ALL_ONES
    OUT any BITMAP - IGNORE
    LOAD any ALWAYS - ALL_ONES
    STORE any ALWAYS - IGNORE
    HLT_WFI any ALWAYS idle NATIVE
"""
# Under EL2: stage 2 faults, the interrupt controller's pages among them, and WFI trapped.
ARM = """
    LOAD gic ALWAYS gic ALL_ONES
    STORE gic ALWAYS gic IGNORE
    LOAD any ALWAYS - ALL_ONES
    STORE any ALWAYS - IGNORE
    HLT_WFI any ALWAYS idle NATIVE
"""
X86, AARCH64 = Arch.X86_64, Arch.AARCH64


def calls(handler: str) -> str:
    """Both vendors' call instructions go to one handler."""
    return f"VMCALL any ALWAYS {handler} UD\nVMMCALL any ALWAYS {handler} UD\n"


#: By personality: instruction, selector, how it is intercepted, handler, what happens otherwise, further privileges.
TABLES = {
    # Xen intercepts its one MSR; a read of it is zero.
    ("xen", X86): calls("hypercall")
    + """
        RDMSR 0x40000000 ALWAYS - ZERO
        WRMSR 0x40000000 ALWAYS hypercall-page GP
    """
    + HVM,
    # Hyper-V's MSRs lie where Xen's was, and Xen's moves to 0x40000200.
    ("xen-viridian", X86): calls("viridian-call")
    + """
        RDMSR 0x40000000-0x40000001 ALWAYS hyperv-msr GP
        WRMSR 0x40000000-0x40000001 ALWAYS hyperv-msr GP
        WRMSR 0x40000200 ALWAYS hypercall-page GP
        RDMSR 0x40000200 ALWAYS - ZERO
    """
    + HVM,
    # KVM rewrites the other vendor's call, so either works wherever #UD is taken; its MSRs are "KVM" in ASCII.
    ("kvm", X86): """
        VMCALL any ALWAYS kvm-call UD 0123
        VMMCALL any ALWAYS kvm-call UD 0123
        RDMSR 0x4B564D00-0x4B564D08 BITMAP - ZERO
        WRMSR 0x4B564D00-0x4B564D08 BITMAP accept IGNORE
    """
    + HVM,
    ("hyperv", X86): calls("hyperv-call")
    + """
        RDMSR 0x40000000-0x40000001 BITMAP hyperv-msr GP
        WRMSR 0x40000000-0x40000001 BITMAP hyperv-msr GP
    """
    + HVM,
    # The backdoor, "VX" and the port behind it, answers user mode too: #GP is intercepted.
    ("vmware", X86): "IN 0x5658-0x5659 BITMAP vmware-port ALL_ONES 0123\n" + HVM,
    ("acrn", X86): calls("acrn-call") + HVM,
    # uXen drops writes of MSRs that it does not know.
    ("uxen", X86): calls("uxen-call")
    + """
        IN 0x32F-0x33F BITMAP uxen-storage ALL_ONES
        IN 0xCF8-0xCFF BITMAP pci-config ALL_ONES
        OUT 0xCF8-0xCFF BITMAP pci-config IGNORE
        LOAD 0xFEDFA000-0xFEDFFFFF ALWAYS uxen-platform ALL_ONES
        STORE 0xFEDFA000-0xFEDFFFFF ALWAYS uxen-platform IGNORE
        RDMSR 0x40000000 ALWAYS - ZERO
        WRMSR 0x40000000 ALWAYS hypercall-page GP
        WRMSR any BITMAP - IGNORE
    """
    + HVM,
    # Two leaves that the thin L0 takes before anybody further in.
    ("ax", X86): """
        CPUID 0x35F9E064 STEAL ax-probe NATIVE
        CPUID 0x3717AC0F STEAL v4v-cpuid NATIVE
    """
    + HVM,
    ("whpx", X86): "CPUID 0x35AF3466 ALWAYS v4v-cpuid NATIVE\n" + HVM,
    ("jailhouse", X86): calls("jailhouse-call") + HVM,
    ("pv-only", X86): "",
    ("bare-metal", X86): "",
    # Xen's own immediate, SMCCC's zero, and nothing else; SMC is trapped by HCR_EL2.TSC.
    ("xen", AARCH64): """
        HVC 0xEA1 ALWAYS hypercall UNDEF
        HVC 0 ALWAYS smccc UNDEF
        HVC any ALWAYS - UNDEF
        SMC 0 ALWAYS smccc UNDEF
        SMC any ALWAYS - UNDEF
    """
    + ARM,
    # KVM looks at no HVC immediate; an SMC with another one than zero is answered, with -1.
    ("kvm", AARCH64): """
        HVC any ALWAYS smccc UNDEF
        SMC 0 ALWAYS smccc MINUS_ONE
        SMC any ALWAYS - MINUS_ONE
    """
    + ARM,
    ("smccc", AARCH64): """
        HVC 0 ALWAYS smccc UNDEF
        HVC any ALWAYS - UNDEF
        SMC any ALWAYS - MINUS_ONE
    """
    + ARM,
    ("hyperv", AARCH64): """
        HVC 1 ALWAYS hyperv-call UNDEF
        HVC 0 ALWAYS smccc UNDEF
        HVC any ALWAYS - UNDEF
        SMC any ALWAYS - MINUS_ONE
    """
    + ARM,
    # "JH".  Jailhouse hands SMC of any immediate to its SMCCC code.
    ("jailhouse", AARCH64): """
        HVC 0x4A48 ALWAYS jailhouse-call UNDEF
        HVC 0 ALWAYS smccc UNDEF
        HVC any ALWAYS - UNDEF
        SMC any ALWAYS smccc UNDEF
    """
    + ARM,
    # EL3 alone: no stage 2, no EL2.  The interrupt controller is the machine's own, without an exit.
    ("firmware", AARCH64): """
        SMC 0 ALWAYS smccc UNDEF
        LOAD gic ALWAYS gic ALL_ONES free
        STORE gic ALWAYS gic IGNORE free
    """,
    ("pv-only", AARCH64): "",
    ("bare-metal", AARCH64): "",
}
#: The ABI of each personality's own call instruction, where Argo has a convention for one.
ABIS = {
    ("xen", X86): "xen", ("xen-viridian", X86): "xen", ("kvm", X86): "kvm", ("hyperv", X86): "hyperv",
    ("acrn", X86): "acrn", ("uxen", X86): "uxen", ("jailhouse", X86): "jailhouse", ("xen", AARCH64): "xen",
}  # fmt: skip


def expected(text: str) -> list[tuple[object, ...]]:
    """The rows of one of the tables above as the code has them, without their sources."""
    found: list[tuple[object, ...]] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, selector, intercept, handler, otherwise, *more = line.split()
        low, _, high = selector.partition("-")
        if selector == "any":
            first, last = ANY
        elif selector == "gic":
            first, last = arm_map.GICD_BASE, arm_map.GIC_LAST
        else:
            first, last = int(low, 0), int(high or low, 0)
        privileges = tuple(int(digit) for word in more if word.isdigit() for digit in word)
        exits = 0 if "free" in more else 1
        found.append((
            Kind[instruction], first, last, Intercept[intercept], "" if handler == "-" else handler,
            Otherwise[otherwise], exits, privileges,
        ))  # fmt: skip
    return found


def cells(row: Row) -> tuple[object, ...]:
    """A row of the code without its source."""
    return (*row[:7], row.privileges)


@pytest.mark.parametrize(("name", "arch"), TABLES)
def test_a_personality(name: str, arch: Arch) -> None:
    """Row by row, in order; a cited source in each; handlers exist."""
    found = PERSONALITIES[name, arch]
    assert [cells(row) for row in found.rows] == expected(TABLES[name, arch])
    assert (found.name, found.arch, found.abi) == (name, arch, ABIS.get((name, arch), ""))
    assert all(row.source for row in found.rows)
    assert {row.handler for row in found.rows} <= {"", *HANDLERS}


def test_every_personality_is_here() -> None:
    """Twenty, each once."""
    assert [(row.name, row.arch) for row in NAMED] == list(TABLES)


@pytest.mark.parametrize("row", NAMED, ids=lambda row: f"{row.name}-{row.arch.name.lower()}")
def test_no_row_hides_a_later_one(row: Personality) -> None:
    """A general row in front of a specific one.  uXen's own row for every other MSR takes the place of HVM's."""
    hidden = [
        line.instruction
        for index, line in enumerate(row.rows)
        for earlier in row.rows[:index]
        if earlier.instruction is line.instruction and earlier.first <= line.first and line.last <= earlier.last
    ]
    assert hidden == ([Kind.WRMSR] if row.name == "uxen" else [])


def test_xen_s_own_calls() -> None:
    """Hypercall 39, by an instruction that names nothing (Xen public/xen.h)."""
    rows = [row for row in CONVENTIONS if row.speaks == "xen" and row.arch is X86]
    assert [(row.door, row.kind, row.selector, row.call, row.width) for row in rows] == [
        ("hypercall", Kind.VMCALL, 0, 39, 64),
        ("hypercall", Kind.VMCALL, 0, 39, 32),
    ]


#: Doors of ours in front of a personality: instruction, selector, how VMX or EL2 comes to see it.
DOOR_ROWS = {
    X86: [
        (Kind.WRMSR, 0x400000E0, Intercept.BITMAP, "door-msr"),
        (Kind.CPUID, 0x41726730, Intercept.ALWAYS, "door-cpuid"),
        (Kind.IN, 0x4152, Intercept.BITMAP, "door-pio"),
        (Kind.STORE, 0xFEDF8000, Intercept.ALWAYS, "door-mmio"),
    ],
    AARCH64: [
        (Kind.HVC, 0, Intercept.ALWAYS, "door-hvc"),
        (Kind.SMC, 0, Intercept.ALWAYS, "door-smc"),
        (Kind.STORE, 0x0A2F0000, Intercept.ALWAYS, "door-mmio"),
    ],
}


@pytest.mark.parametrize(("name", "arch"), [("vmware", X86), ("smccc", AARCH64)])
def test_the_rows_of_our_doors(name: str, arch: Arch) -> None:
    """Each stands in front of the personality's own rows, at one selector."""
    own = PERSONALITIES[name, arch]
    found = with_doors(own, ("hypercall", "msr", "cpuid", "pio", "mmio", "hvc", "smc")).rows
    wanted = DOOR_ROWS[arch]
    assert [(row.instruction, row.first, row.intercept, row.handler) for row in found[: len(wanted)]] == wanted
    assert all((row.first, row.otherwise, row.exits) == (row.last, Otherwise.NATIVE, 1) for row in found[: len(wanted)])
    assert found[len(wanted) :] == own.rows


def test_which_doors_a_personality_can_have() -> None:
    """Xen's HVC is Argo's own call and needs no row of ours; EL3 alone has SMC; where nothing traps there is none."""
    xen = PERSONALITIES["xen", AARCH64]
    assert has_own_call(xen, "hvc") and not has_own_call(xen, "smc")
    assert [row.handler for row in with_doors(xen, ("hvc", "smc")).rows][:2] == ["door-smc", "hypercall"]
    assert possible_doors(xen) == ("hvc", "smc", "mmio")
    assert possible_doors(PERSONALITIES["firmware", AARCH64]) == ("smc",)
    assert possible_doors(PERSONALITIES["pv-only", X86]) == possible_doors(PERSONALITIES["bare-metal", AARCH64]) == ()
    assert possible_doors(PERSONALITIES["vmware", X86]) == ("msr", "cpuid", "pio", "mmio")
    assert possible_doors(PERSONALITIES["acrn", X86]) == ("hypercall", "msr", "cpuid", "pio", "mmio")


#: What a machine does: privileges that may execute it, what the others get, what happens unintercepted.
X86_SILICON = {
    Kind.CPUID: ("0123", "UD", "NATIVE"),
    Kind.RDMSR: ("0", "GP", "GP"),
    Kind.WRMSR: ("0", "GP", "GP"),
    Kind.IN: ("0", "GP", "ALL_ONES"),
    Kind.OUT: ("0", "GP", "IGNORE"),
    Kind.LOAD: ("0123", "GP", "ALL_ONES"),
    Kind.STORE: ("0123", "GP", "IGNORE"),
    Kind.HLT_WFI: ("0", "GP", "NATIVE"),
}
SILICON = {
    "intel": {Kind.VMCALL: ("0123", "UD", "UD"), Kind.VMMCALL: ("", "UD", "UD")} | X86_SILICON,
    "amd": {Kind.VMCALL: ("", "UD", "UD"), Kind.VMMCALL: ("0123", "UD", "UD")} | X86_SILICON,
    "armv8": {
        Kind.HVC: ("1", "UNDEF", "UNDEF"),
        Kind.SMC: ("1", "UNDEF", "UNDEF"),
        Kind.LOAD: ("01", "UNDEF", "ALL_ONES"),
        Kind.STORE: ("01", "UNDEF", "IGNORE"),
        Kind.HLT_WFI: ("01", "UNDEF", "NATIVE"),
    },
}


@pytest.mark.parametrize("cpu", SILICON)
def test_a_machine(cpu: str) -> None:
    """Intel SDM vol. 2 and AMD APM vol. 3, the instructions' pages; Arm ARM C6.2: EL0 executes WFI, not HVC or SMC."""
    found = {
        row.instruction: ("".join(map(str, row.privileges)), row.denied.name, row.native.name) for row in CPUS[cpu]
    }
    assert found == SILICON[cpu]
    assert len(found) == len(CPUS[cpu]) and set(CPUS) == set(SILICON)


#: name: what leaf +0 spells in EBX, ECX, EDX; VMware's and KVM's and Jailhouse's are padded with zeros where short.
SPELLED = {
    "xen": (b"XenVMMXenVMM", "xen"),
    "kvm": (b"KVMKVMKVM\0\0\0", "kvm"),
    "hyperv": (b"Microsoft Hv", "hyperv"),
    "vmware": (b"VMwareVMware", "vmware"),
    "acrn": (b"ACRNACRNACRN", "acrn"),
    "jailhouse": (b"Jailhouse\0\0\0", "jailhouse"),
    "uxen": (b"uXenisnotXen", "uxen"),
    "ax": (b"aXenisnotXen", "ax"),
    "whpx": (b"WhpxisnotXen", "whpx"),
}


def test_signatures() -> None:
    """The twelve letters of each hypervisor, and the convention that its call speaks."""
    found = {
        row.name: (b"".join(word.to_bytes(4, "little") for word in (row.ebx, row.ecx, row.edx)), row.abi)
        for row in SIGNATURES
    }
    assert found == SPELLED


def test_vendor_uids() -> None:
    """Xen's a736 12dc ..., as its header writes it; KVM's 28b46fb6-2ec5-11e9-a9ca-4b564d003a74; ours says Argosy."""
    assert [row[:6] for row in UIDS] == [
        ("xen", 0xDC1218A7, 0x694398C6, 0xD179CF9A, 0x67E6DE8D, "xen"),
        ("kvm", 0xB66FB428, 0xE911C52E, 0x564BCAA9, 0x743A004D, "smccc"),
        ("hyperv", 0x4D32BA58, 0xCD244764, 0x8EEF6C75, 0x16597024, "smccc"),
        ("smccc", int.from_bytes(b"Argo", "little"), int.from_bytes(b"sy", "little"), 0, 0, "smccc"),
    ]


def spelled(text: bytes) -> tuple[int, int, int]:
    """EBX, ECX, EDX."""
    ebx, ecx, edx = (int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))
    return ebx, ecx, edx


XEN, HV = spelled(b"XenVMMXenVMM"), spelled(b"Microsoft Hv")
#: Every leaf that a personality serves; domain 5, vCPU 1.  Leaf +4 of Xen: bits 3 and 4 say that the ids are there.
LEAVES = {
    "xen": {
        0x40000000: (0x40000005, *XEN),
        0x40000001: (4 << 16 | 22, 0, 0, 0),
        0x40000002: (1, 0x40000000, 0, 0),
        0x40000004: (0x18, 1, 5, 0),
    },
    "xen-viridian": {
        0x40000000: (0x40000006, *HV),
        0x40000001: (0x31237648, 0, 0, 0),
        0x40000100: (0x40000105, *XEN),
        0x40000101: (4 << 16 | 22, 0, 0, 0),
        0x40000102: (1, 0x40000200, 0, 0),
        0x40000104: (0x18, 1, 5, 0),
    },
    # Clock sources, old and new MSRs, and stable across vCPUs (bits 0, 3, 24).
    "kvm": {0x40000000: (0x40000001, *spelled(b"KVMKVMKVM\0\0\0")), 0x40000001: (1 << 24 | 9, 0, 0, 0)},
    # Leaf 3: AccessHypercallMsrs; PostMessages and SignalEvents.
    "hyperv": {
        0x40000000: (0x40000006, *HV),
        0x40000001: (0x31237648, 0, 0, 0),
        0x40000003: (1 << 5, 3 << 4, 0, 0),
    },
    "vmware": {0x40000000: (0x40000010, *spelled(b"VMwareVMware")), 0x40000010: (2_000_000, 0, 0, 0)},
    "acrn": {0x40000000: (0x40000010, *spelled(b"ACRNACRNACRN"))},
    "jailhouse": {0x40000000: (0x40000001, *spelled(b"Jailhouse\0\0\0"))},
    "uxen": {0x40000000: (0x40000002, *spelled(b"uXenisnotXen")), 0x40000002: (1, 0x40000000, 0, 0)},
    "ax": {0x40000000: (0x40000000, *spelled(b"aXenisnotXen"))},
    "whpx": {0x40000000: (0x40000000, *spelled(b"WhpxisnotXen"))},
    "pv-only": {},
    "bare-metal": {},
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaves(name: str) -> None:
    """Those and no others in two blocks: a leaf that nobody serves reads as zeros."""
    first = 0x4000_0000
    found = {
        leaf: regs
        for leaf in (*range(first - 0x10, first + 0x40), *range(first + 0x100, first + 0x120))
        if any(regs := leaf_of(name, "amd", leaf, 5, 1))
    }
    assert found == LEAVES[name]
    assert DOMID < 0 and VCPU < 0, "no register holds a negative value, so these mark what is filled in"


def test_the_silicon_s_own_leaves() -> None:
    """Leaf 0 spells the maker in EBX, EDX, ECX; leaf 1 ECX bit 31 says that there is a hypervisor.

    A leaf beyond the last gives zeros here: the last one's values, which Intel gives, are zeros too (SDM 2A CPUID).
    """
    for cpu, maker in (("intel", b"GenuineIntel"), ("amd", b"AuthenticAMD")):
        last, ebx, ecx, edx = native_leaf(cpu, 0)
        assert (last, b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx))) == (1, maker)
        assert native_leaf(cpu, 1, hypervisor=True) == (0, 0, 1 << 31, 0)
        assert native_leaf(cpu, 1) == (0, 0, 0, 0)
        assert leaf_of("bare-metal", cpu, 0x40000000, 5, 1)[1:] != XEN


UNKNOWN = (2**64 - 1,)
#: function id: x0 to x3.  SMCCC 1.2 is 1 << 16 | 2.
FUNCTIONS = {
    "xen": {
        0x80000000: (0x10002, 0, 0, 0),
        0x8600FF00: (3, 0, 0, 0),
        0x8600FF01: (0xDC1218A7, 0x694398C6, 0xD179CF9A, 0x67E6DE8D),
        0x8600FF03: (0, 1, 0, 0),
    },
    "kvm": {
        0x80000000: (0x10001, 0, 0, 0),
        0x86000000: (1, 0, 0, 0),
        0x8600FF01: (0xB66FB428, 0xE911C52E, 0x564BCAA9, 0x743A004D),
    },
    "smccc": {0x80000000: (0x10001, 0, 0, 0), 0x8600FF01: (0x6F677241, 0x7973, 0, 0)},
    "hyperv": {
        0x80000000: (0x10002, 0, 0, 0),
        0x8600FF01: (0x4D32BA58, 0xCD244764, 0x8EEF6C75, 0x16597024),
    },
    "jailhouse": {0x80000000: (0x10001, 0, 0, 0)},
    "firmware": {0x80000000: (0x10002, 0, 0, 0)},
}


@pytest.mark.parametrize("name", [*FUNCTIONS, "pv-only"])
def test_functions(name: str) -> None:
    """Arm DEN 0028: version, the vendor's count, UID and revision; everything else is -1 in x0."""
    ids = (*range(0x80000000, 0x80000008), *range(0x86000000, 0x86000008), *range(0x8600FF00, 0x8600FF08))
    found = {number: regs for number in ids if (regs := smccc.call(name, number)) != UNKNOWN}
    assert found == FUNCTIONS.get(name, {})


def test_notification_modes() -> None:
    """docs/interrupts.md: names, operations, first argument, whether rings have their own, bit of DESCRIBE."""
    set_mode, register = 0x40000002, 0x40000001
    assert [(*row[:4], int(row.feature)) for row in notify.MODES] == [
        ("virq", set_mode, 0, False, 0x100),
        ("line", set_mode, 1, False, 0x200),
        ("vector-per-cpu", set_mode, 2, False, 0x400),
        ("vector-per-ring", register, None, True, 0x800),
        ("vectors-by-priority", register, None, True, 0x1000),
    ]
    assert notify.REGISTER_RING_EX.size == 32 and all(row.note for row in notify.MODES)
