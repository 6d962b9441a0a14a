"""resolve() through several levels: who answers an instruction of a guest's guest (devices.md of the specification:
who sees the call; Intel SDM 3C 26.1, AMD APM 2 15.9 to 15.11, Arm ARM HCR_EL2).
"""

from __future__ import annotations

import pytest

from hmx.hypervisors import AX_PROBE_LEAF, AX_V4V_LEAF
from hmx.trap import Arch, Kind
from hv_node.doors.composition import Composition, Resolution, resolve
from hv_node.doors.personality import (
    ANY,
    Guests,
    Intercept,
    NestedMsr,
    Otherwise,
    Personality,
    Row,
    Trap,
)
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import NAMED, PERSONALITIES, possible_doors, with_doors, with_nested_msr

MSR, LEAF, PORT = 0x4000_00E0, 0x4172_6730, 0x4152
ARCH_OF = {"intel": Arch.X86_64, "amd": Arch.X86_64, "armv8": Arch.AARCH64}


def table(
    *rows: tuple[Kind, Intercept, str],
    guests: Guests = Guests.VIRTUAL,
    nested_msr: NestedMsr = NestedMsr.KEEP,
    exits: int = 1,
    privileges: tuple[int, ...] = (),
) -> Personality:
    made = tuple(Row(kind, *ANY, how, name, Otherwise.ZERO, exits, "", privileges) for kind, how, name in rows)
    return Personality("t", Arch.X86_64, "", made, guests, nested_msr)


def asks(kind: Kind, name: str = "own") -> Personality:
    return table((kind, Intercept.BITMAP, name))


#: A hypervisor that asks for nothing that these tests look at.
DEAF = asks(Kind.HLT_WFI)


def find(cpu: str, kind: Kind, selector: int, *names: str, privilege: int | None = None, msr: str = "") -> Resolution:
    """Named personalities, L0 first, each with every door that it can have."""
    arch = ARCH_OF[cpu]
    tables = [PERSONALITIES[name, arch] for name in names]
    tables = [with_doors(each, possible_doors(each)) for each in tables]
    if msr:
        tables[0] = with_nested_msr(tables[0], msr)
    kernel = 1 if arch is Arch.AARCH64 else 0
    return resolve(Trap(kind, selector, kernel if privilege is None else privilege), tables, CPUS[cpu])


def short(found: Resolution) -> tuple[int, str, tuple[int, ...]]:
    return found.level, found.handler or found.otherwise.name, found.exits


#: cpu, instruction, selector, hypervisors from L0 on: level, handler or what happens, exits.
CASES = [
    # The call instruction always goes to the guest's own hypervisor on VMX; on SVM only if it intercepts it.
    ("intel", Kind.VMCALL, 0, "xen kvm", (1, "kvm-call", (1, 1))),
    ("intel", Kind.VMCALL, 0, "xen vmware", (1, "UD", (1, 1))),
    ("amd", Kind.VMMCALL, 0, "xen kvm", (1, "kvm-call", (1, 1))),
    ("amd", Kind.VMMCALL, 0, "xen vmware", (-1, "UD", (0, 0))),
    ("amd", Kind.VMMCALL, 0, "xen kvm vmware", (-1, "UD", (0, 0, 0))),
    ("intel", Kind.VMCALL, 0, "xen kvm vmware", (2, "UD", (1, 1, 1))),
    # The other vendor's call: #UD, which KVM intercepts for its own guests.
    ("intel", Kind.VMMCALL, 0, "xen kvm", (1, "kvm-call", (1, 1))),
    ("intel", Kind.VMMCALL, 0, "kvm xen", (-1, "UD", (0, 0))),
    ("intel", Kind.VMMCALL, 0, "xen acrn", (-1, "UD", (0, 0))),
    ("intel", Kind.VMMCALL, 0, "xen kvm acrn", (-1, "UD", (0, 0, 0))),
    ("intel", Kind.VMMCALL, 0, "xen kvm pv-only", (1, "kvm-call", (1, 1, 0))),
    ("amd", Kind.VMCALL, 0, "kvm xen", (-1, "UD", (0, 0))),
    ("amd", Kind.VMCALL, 0, "xen kvm", (1, "kvm-call", (1, 1))),
    # CPUID: the guest's own hypervisor, but for AX's leaves and its door.
    ("intel", Kind.CPUID, 0x4000_0000, "xen kvm", (1, "cpuid", (1, 1))),
    ("intel", Kind.CPUID, 0x4000_0000, "ax kvm", (1, "cpuid", (1, 1))),
    ("intel", Kind.CPUID, AX_PROBE_LEAF, "ax kvm", (0, "ax-probe", (1, 0))),
    ("amd", Kind.CPUID, AX_V4V_LEAF, "ax kvm", (0, "v4v-cpuid", (1, 0))),
    ("intel", Kind.CPUID, LEAF, "ax kvm", (0, "door-cpuid", (1, 0))),
    ("intel", Kind.CPUID, LEAF, "xen kvm", (1, "door-cpuid", (1, 1))),
    ("amd", Kind.CPUID, LEAF, "xen ax kvm", (1, "door-cpuid", (1, 1, 0))),
    ("intel", Kind.CPUID, AX_PROBE_LEAF, "ax ax", (0, "ax-probe", (1, 0))),
    # Ports and pages: the innermost that asked.
    ("intel", Kind.IN, PORT, "xen kvm", (1, "door-pio", (1, 1))),
    ("amd", Kind.OUT, 0x80, "xen kvm", (1, "IGNORE", (1, 1))),
    ("intel", Kind.STORE, 0xFEDF_8000, "xen kvm hyperv", (2, "door-mmio", (1, 1, 1))),
    ("amd", Kind.HLT_WFI, 0, "xen kvm", (1, "idle", (1, 1))),
    # MSRs, with bitmaps that hold.
    ("intel", Kind.WRMSR, MSR, "xen kvm", (1, "door-msr", (1, 1))),
    ("amd", Kind.WRMSR, MSR, "xen kvm", (1, "door-msr", (1, 1))),
    ("intel", Kind.RDMSR, 0x10, "xen kvm", (1, "GP", (1, 1))),
    # Arm: HVC to the caller's EL2 whatever it says, SMC by TSC, which all of them set.
    ("armv8", Kind.HVC, 0xEA1, "kvm xen", (1, "hypercall", (1, 1))),
    ("armv8", Kind.HVC, 0xEA1, "xen kvm", (1, "smccc", (1, 1))),
    ("armv8", Kind.HVC, 5, "kvm xen", (1, "UNDEF", (1, 1))),
    ("armv8", Kind.HVC, 0, "xen kvm", (1, "door-hvc", (1, 1))),
    ("armv8", Kind.SMC, 0, "xen kvm", (1, "door-smc", (1, 1))),
    ("armv8", Kind.STORE, 0x0A2F_0000, "xen kvm", (1, "door-mmio", (1, 1))),
    ("armv8", Kind.HLT_WFI, 0, "xen kvm", (1, "idle", (1, 1))),
    # Firmware is no hypervisor: the one on it has the machine.
    ("armv8", Kind.HVC, 0xEA1, "firmware xen", (1, "hypercall", (0, 1))),
    ("armv8", Kind.SMC, 0, "firmware xen", (1, "door-smc", (0, 1))),
    ("armv8", Kind.HVC, 0, "firmware xen kvm", (2, "door-hvc", (0, 1, 1))),
    ("armv8", Kind.SMC, 0, "firmware bare-metal", (0, "door-smc", (1, 0))),
    ("armv8", Kind.HVC, 0, "firmware bare-metal", (-1, "UNDEF", (0, 0))),
    ("armv8", Kind.SMC, 0, "firmware firmware", (0, "door-smc", (1, 0))),
    ("armv8", Kind.SMC, 0, "bare-metal firmware", (1, "door-smc", (0, 1))),
    ("armv8", Kind.SMC, 5, "kvm firmware", (0, "MINUS_ONE", (1, 0))),
    ("armv8", Kind.SMC, 5, "kvm xen firmware", (1, "UNDEF", (1, 1, 0))),
    # Where nothing traps, the machine is left to whoever is inside, and nothing is taken from those outside.
    ("intel", Kind.VMCALL, 0, "bare-metal xen", (1, "hypercall", (0, 1))),
    ("intel", Kind.VMCALL, 0, "bare-metal vmware", (-1, "UD", (0, 0))),
    ("intel", Kind.CPUID, 0, "pv-only xen", (1, "cpuid", (0, 1))),
    ("amd", Kind.VMMCALL, 0, "pv-only xen", (1, "hypercall", (0, 1))),
    ("intel", Kind.WRMSR, MSR, "kvm pv-only xen", (2, "door-msr", (1, 0, 1))),
    ("intel", Kind.CPUID, 0, "pv-only bare-metal", (-1, "NATIVE", (0, 0))),
    ("intel", Kind.VMCALL, 0, "xen pv-only", (0, "hypercall", (1, 0))),
    ("amd", Kind.VMMCALL, 0, "xen bare-metal", (0, "hypercall", (1, 0))),
]


@pytest.mark.parametrize(("cpu", "kind", "selector", "names", "wanted"), CASES)
def test_who_answers(cpu: str, kind: Kind, selector: int, names: str, wanted: tuple[int, str, tuple[int, ...]]) -> None:
    """One instruction in kernel mode."""
    assert short(find(cpu, kind, selector, *names.split())) == wanted


def test_an_exception_goes_to_who_intercepts_it() -> None:
    """VMware's backdoor from CPL 3: #GP, which VMware intercepts and Xen does not, wherever it stands."""
    assert short(find("intel", Kind.IN, 0x5658, "xen", "vmware", privilege=3)) == (1, "vmware-port", (1, 1))
    assert short(find("intel", Kind.IN, 0x5658, "vmware", "xen", privilege=3)) == (0, "vmware-port", (1, 0))
    assert short(find("intel", Kind.IN, 0x5658, "vmware", "xen")) == (1, "ALL_ONES", (1, 1))
    assert short(find("intel", Kind.IN, PORT, "vmware", "xen", privilege=3)) == (-1, "GP", (0, 0))
    # WRMSR at CPL 3 is an exception too, not an index that no bitmap has.
    thief = table((Kind.WRMSR, Intercept.BITMAP, "outer"), privileges=(3,))
    found = resolve(Trap(Kind.WRMSR, MSR, 3), (thief, asks(Kind.WRMSR)), CPUS["intel"])
    assert short(found) == (0, "outer", (1, 0))
    drops = DEAF._replace(nested_msr=NestedMsr.NEVER)
    inner = table((Kind.WRMSR, Intercept.BITMAP, "inner"), privileges=(3,))
    found = resolve(Trap(Kind.WRMSR, 0x10, 3), (drops, inner), CPUS["amd"])
    assert short(found) == (1, "inner", (1, 1)), "nor an intercept that a parent drops"


@pytest.mark.parametrize("word", ["steal", "never"])
@pytest.mark.parametrize("kind", [Kind.RDMSR, Kind.WRMSR])
def test_a_parent_that_keeps_or_drops_msr_intercepts(kind: Kind, word: str) -> None:
    """L1's bitmaps do not hold; what VMX exits for regardless is L1's all the same."""
    for cpu in ("intel", "amd"):
        assert short(find(cpu, kind, 0x10, "xen", "kvm", msr=word)) == (0, "GP", (1, 0))
        assert short(find(cpu, kind, 0xC000_0080, "xen", "uxen", msr=word)) == (0, "GP", (1, 0))
    outside = 0x4B56_4D00
    mine = (1, "accept" if kind is Kind.WRMSR else "ZERO", (1, 1))
    assert short(find("intel", kind, outside, "xen", "kvm", msr=word)) == mine
    assert short(find("amd", kind, outside, "xen", "kvm", msr=word)) == (0, "GP", (1, 0))
    assert short(find("amd", kind, outside, "xen", "kvm", msr="keep")) == mine


@pytest.mark.parametrize("word", ["steal", "never"])
def test_the_msr_door_below_such_a_parent(word: str) -> None:
    """Reached at L1 on VMX, unless L0 steals and has one itself; on SVM at L0, or nowhere where L0 has none."""
    stolen = word == "steal"
    assert find("intel", Kind.WRMSR, MSR, "xen", "kvm", msr=word).level == (0 if stolen else 1)
    assert short(find("amd", Kind.WRMSR, MSR, "xen", "kvm", msr=word)) == (0, "door-msr", (1, 0))
    plain = with_nested_msr(PERSONALITIES["xen", Arch.X86_64], word)
    inner = with_doors(PERSONALITIES["kvm", Arch.X86_64], ("msr",))
    assert short(resolve(Trap(Kind.WRMSR, MSR, 0), (plain, inner), CPUS["amd"])) == (0, "GP", (1, 0))
    assert short(resolve(Trap(Kind.WRMSR, MSR, 0), (plain, inner), CPUS["intel"])) == (1, "door-msr", (1, 1))


@pytest.mark.parametrize("cpu", ["intel", "amd"])
def test_a_parent_steals_what_it_serves_itself(cpu: str) -> None:
    """Its own MSRs, wherever the index is: every exit lands with it first.  What it only refuses is none of them."""
    assert short(find(cpu, Kind.WRMSR, 0x4000_0000, "xen", "xen", msr="steal")) == (0, "hypercall-page", (1, 0))
    assert short(find(cpu, Kind.RDMSR, 0x4000_0000, "xen", "hyperv", msr="steal")) == (0, "ZERO", (1, 0))
    assert short(find(cpu, Kind.WRMSR, 0x4000_0000, "xen", "xen", msr="keep")) == (1, "hypercall-page", (1, 1))
    refused = find(cpu, Kind.WRMSR, 0x4000_0000, "kvm", "xen", msr="steal")
    assert short(refused) == ((1, "hypercall-page", (1, 1)) if cpu == "intel" else (0, "GP", (1, 0)))
    assert short(find(cpu, Kind.IN, PORT, "xen", "kvm", msr="steal")) == (1, "door-pio", (1, 1)), "MSRs only"
    tables = (DEAF, with_nested_msr(PERSONALITIES["xen", Arch.X86_64], "steal"), asks(Kind.WRMSR))
    assert resolve(Trap(Kind.WRMSR, 0x4000_0000, 0), tables, CPUS[cpu]).level == 1


def test_steal_and_never_differ_where_the_parent_does_not_ask() -> None:
    """STEAL asks for the exits and has nothing to say; NEVER asks for nothing, and the silicon answers, or who is
    further out.
    """
    trap, inner, outer = Trap(Kind.WRMSR, 0x10, 0), asks(Kind.WRMSR), asks(Kind.WRMSR, "outer")
    steals, drops = (DEAF._replace(nested_msr=word) for word in (NestedMsr.STEAL, NestedMsr.NEVER))
    assert short(resolve(trap, (DEAF, inner), CPUS["amd"])) == (1, "own", (1, 1))
    assert short(resolve(trap, (steals, inner), CPUS["amd"])) == (0, "GP", (1, 0))
    assert short(resolve(trap, (drops, inner), CPUS["amd"])) == (-1, "GP", (0, 0))
    assert short(resolve(trap, (outer, steals, inner), CPUS["amd"])) == (1, "GP", (1, 1, 0))
    assert short(resolve(trap, (outer, drops, inner), CPUS["amd"])) == (0, "outer", (1, 0, 0))
    assert short(resolve(trap, (outer, steals, DEAF), CPUS["amd"])) == (0, "outer", (1, 0, 0)), "nobody wanted it"
    quiet = table((Kind.WRMSR, Intercept.NEVER, "x"), nested_msr=NestedMsr.STEAL)
    assert short(resolve(trap, (quiet, inner), CPUS["intel"])) == (0, "GP", (1, 0))
    for word in (steals, drops):  # it is the others' intercepts that are dropped
        own = word._replace(rows=inner.rows)
        assert short(resolve(trap, (outer, own), CPUS["amd"])) == (1, "own", (1, 1))
        assert short(resolve(trap, (own,), CPUS["amd"])) == (0, "own", (1,))
        machine = word._replace(guests=Guests.MACHINE)
        assert short(resolve(trap, (machine, inner), CPUS["amd"])) == (1, "own", (0, 1)), "it has no say"
    port = trap._replace(instruction=Kind.IN)
    assert short(resolve(port, (steals, asks(Kind.IN)), CPUS["amd"])) == (1, "own", (1, 1)), "MSRs only"


def test_a_thief_inside_a_parent_that_drops_sees_nothing() -> None:
    """Its intercept is one of those that do not hold."""
    thief = table((Kind.WRMSR, Intercept.STEAL, "stolen"))
    drops = DEAF._replace(nested_msr=NestedMsr.NEVER)
    assert short(resolve(Trap(Kind.WRMSR, 0x10, 0), (DEAF, thief), CPUS["amd"])) == (1, "stolen", (1, 1))
    assert short(resolve(Trap(Kind.WRMSR, 0x10, 0), (drops, thief), CPUS["amd"])) == (-1, "GP", (0, 0))


def test_who_is_asked_in_turn() -> None:
    """SVM asks for CPUID by a bit: where the inner does not, the outer serves; VMX hands it to the inner, which then
    has nothing to say but what the silicon would.
    """
    trap, outer = Trap(Kind.CPUID, 0, 0), asks(Kind.CPUID, "outer")
    assert short(resolve(trap, (outer, DEAF), CPUS["amd"])) == (0, "outer", (1, 0))
    assert short(resolve(trap, (outer, DEAF), CPUS["intel"])) == (1, "NATIVE", (1, 1))
    assert short(resolve(trap, (DEAF, DEAF), CPUS["amd"])) == (-1, "NATIVE", (0, 0))
    assert short(resolve(trap, (DEAF, DEAF), CPUS["intel"])) == (1, "NATIVE", (1, 1))
    quiet = table((Kind.CPUID, Intercept.NEVER, "x"))
    assert short(resolve(trap, (outer, quiet), CPUS["amd"])) == (0, "outer", (1, 0))
    assert short(resolve(trap, (outer, quiet), CPUS["intel"])) == (1, "NATIVE", (1, 1))
    assert short(resolve(trap, (DEAF,), CPUS["intel"])) == (-1, "NATIVE", (0,)), "alone, it is as without nesting"
    for kind, cpu in ((Kind.SMC, "armv8"), (Kind.IN, "intel"), (Kind.STORE, "amd")):
        privilege = 1 if cpu == "armv8" else 0
        found = resolve(Trap(kind, 9, privilege), (asks(kind, "outer"), DEAF), CPUS[cpu])
        assert short(found) == (0, "outer", (1, 0))


@pytest.mark.parametrize("depth", range(1, 6))
def test_exits_per_level(depth: int) -> None:
    """One at each level for the trap; for the entries, what L0 needs grows as a power of two.

    Counted here step by step: an exit lands at L0; a level reflects by entering the next, which below L0 is a trap
    that the level above it answers.
    """
    counted = [[0] * depth, [0] * depth]

    def trap(answers: int, family: int) -> None:
        counted[family][0] += 1
        for level in range(answers):
            enter(level)
            counted[family][level + 1] += 1
        enter(answers)

    def enter(level: int) -> None:
        if level:
            trap(level - 1, 1)

    trap(depth - 1, 0)
    found = find("intel", Kind.CPUID, 0, *["kvm"] * depth)
    assert (found.exits, found.resumes) == (tuple(counted[0]), tuple(counted[1]))
    assert [one + more for one, more in zip(found.exits, found.resumes, strict=True)] == [
        2 ** (depth - 1 - level) for level in range(depth)
    ]


def test_exits_where_levels_are_no_hypervisors_or_rows_cost_more() -> None:
    """Bare metal pays nothing; a row's own exits are paid by every level that passes them on."""
    found = find("intel", Kind.CPUID, 0, "bare-metal", "kvm", "kvm")
    assert (found.exits, found.resumes) == ((0, 1, 1), (0, 1, 0))
    dear = table((Kind.CPUID, Intercept.ALWAYS, "dear"), exits=3)
    found = resolve(Trap(Kind.CPUID, 0, 0), (asks(Kind.CPUID), dear), CPUS["intel"])
    assert (found.exits, found.resumes) == ((3, 3), (3, 0))
    assert find("intel", Kind.IN, PORT, "kvm", "kvm", privilege=3).resumes == (0, 0)
    assert find("intel", Kind.CPUID, AX_PROBE_LEAF, "ax", "kvm").resumes == (0, 0)


def test_an_instruction_that_the_machine_lacks() -> None:
    """Arm's on x86: #UD, at any depth."""
    assert short(find("intel", Kind.HVC, 0, "xen", "kvm")) == (-1, "UD", (0, 0))
    assert short(resolve(Trap(Kind.CPUID, 0, 0), (), CPUS["intel"])) == (-1, "NATIVE", ())


@pytest.mark.parametrize("cpu", CPUS)
def test_remembered_answers_are_the_same(cpu: str) -> None:
    """Composition at every edge of every row and rule, twice, for pairs and triples; a bounded memory."""
    arch = ARCH_OF[cpu]
    rows = [with_doors(row, possible_doors(row)) for row in NAMED if row.arch is arch]
    stacks = [(outer, inner) for outer in rows for inner in rows[:4]] + [(rows[0],), (rows[1], rows[2], rows[0])]
    stacks += [(with_nested_msr(rows[0], "never"), rows[2])]
    edges = {0, 0x1FFF, 0x2000, 0xC000_0000, 0xC000_1FFF, 0xC000_2000, ANY[1]}
    edges |= {row.first + by for each in rows for row in each.rows for by in (-1, 0, 1) if row.first}
    edges |= {row.last + by for each in rows for row in each.rows for by in (0, 1) if row.last != ANY[1]}
    for stack in stacks:
        composition = Composition(stack, CPUS[cpu])
        for _ in range(2):
            for kind in (*Kind, 99):
                for selector in edges:
                    for privilege in (0, 1, 3, 4, 200):
                        wanted = resolve(Trap(kind, selector, privilege), stack, CPUS[cpu])
                        assert composition.resolve(kind, selector, privilege) == wanted
        assert len(composition._found) < 1500
