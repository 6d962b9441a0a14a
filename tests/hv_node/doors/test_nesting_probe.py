"""The guest's probe below nested hypervisors: it survives every pair, and what it chooses reaches an Argo.

Expected choices are the project's rule (closeness, then declared cost) applied by hand to who sees which instruction.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from guest_node.kernel.frames import door_trap
from guest_node.kernel.probe import Probe, Sign, probe
from guest_node.vcpu import Vcpu
from hmx.errno import Errno
from hmx.trap import Arch, Outcome, int32
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.handlers import Call
from hv_node.doors.personality import Personality
from hv_node.doors.tables import NAMED, PERSONALITIES, possible_doors, with_doors, with_nested_msr
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

X86, ARM = Arch.X86_64, Arch.AARCH64
MACHINES = (("intel", X86), ("amd", X86), ("armv8", ARM))
UNKNOWN_OP = 0x3FFF_FFFF
NAMES = {arch: [row.name for row in NAMED if row.arch is arch] for arch in (X86, ARM)}
PAIRS = [(cpu, arch, outer, inner) for cpu, arch in MACHINES for outer in NAMES[arch] for inner in NAMES[arch]]


def hypervisor(
    cpu: str, inner: Personality, doors: tuple[str, ...], *parents: Personality, carried: list[int] | None = None
) -> Hypervisor:
    """`carried` notes the levels to which calls are carried; their Argo knows no operation."""
    options, _ = parse_options("on,mac-permissive")

    def stolen(_call: Call, level: int, *_arguments: int) -> int:
        assert carried is not None
        carried.append(level)
        return -Errno.EOPNOTSUPP

    return Hypervisor(
        inner, cpu, options, xsm_by_name("dummy"), doors=doors, parents=parents,
        stolen=None if carried is None else stolen,
    )  # fmt: skip


async def look(core: Hypervisor, arch: Arch, carried: list[int] | None = None) -> tuple[Probe, int | None]:
    """What a guest of `core` finds, and whose Argo answers by the door it chose: 1 the nested one's, 0 L0's."""
    carried = [] if carried is None else carried
    memory = SharedMemory(1 << 16)
    areas, bells = InlineMachine(core, random.Random(0)).create_domain(1, memory, 1, name="g")
    vcpu = Vcpu(0, GuestSide(areas[0], arch), bells[0])
    vcpu.start()
    found = await probe(vcpu, arch)
    if found.door is None:
        return found, None
    carried.clear()
    done = await vcpu.trap(door_trap(found.door, UNKNOWN_OP))
    assert (done.outcome, int32(done.regs[found.door.result])) == (Outcome.DONE, -Errno.EOPNOTSUPP)
    return found, carried[0] if carried else 1


def run(main: Coroutine[Any, Any, tuple[Probe, int | None]]) -> tuple[Probe, int | None]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def offering(name: str, arch: Arch) -> Personality:
    row = PERSONALITIES[name, arch]
    return with_doors(row, possible_doors(row))


#: What a guest takes of a hypervisor that has everything: its own call, or MSRs where it has none for Argo.
CALLED = ("xen", "xen-viridian", "kvm", "hyperv", "acrn", "uxen", "jailhouse")
BEST = dict.fromkeys(CALLED, "hypercall") | dict.fromkeys(("vmware", "ax", "whpx"), "msr")
BEST_ON_ARM = dict.fromkeys(("xen", "kvm", "smccc", "hyperv", "jailhouse"), "hvc") | {"firmware": "smc"}
NO_TABLE = ("pv-only", "bare-metal")


@pytest.mark.parametrize(("cpu", "arch", "outer", "inner"), PAIRS)
def test_every_pair(cpu: str, arch: Arch, outer: str, inner: str) -> None:
    """Both offer all they can, and nobody carries a call past L1: L1's best door, or none where nothing traps to it."""
    own = PERSONALITIES[inner, arch]
    core = hypervisor(cpu, own, possible_doors(own), offering(outer, arch))
    found, level = run(look(core, arch))
    best = (BEST if arch is X86 else BEST_ON_ARM).get(inner)
    if inner in NO_TABLE or (inner == "firmware" and outer not in NO_TABLE):
        assert found.door is None and level is None
        assert found.why == "no door to Argo was found"
    else:
        assert found.door is not None and (found.door.door, level) == (best, 1)


@pytest.mark.parametrize(("cpu", "arch", "outer", "inner"), PAIRS)
def test_every_pair_whose_l0_steals_and_carries(cpu: str, arch: Arch, outer: str, inner: str) -> None:
    """L0 takes every door of ours that it has; L1 has only its own call.  The guest reaches one of them."""
    parent = PERSONALITIES[outer, arch]
    own = PERSONALITIES[inner, arch]
    call = ("hypercall",) if "hypercall" in possible_doors(own) else ("hvc",) if (inner, arch) == ("xen", ARM) else ()
    stolen = possible_doors(parent)
    carried: list[int] = []
    core = hypervisor(cpu, own, call, with_doors(parent, stolen, stolen), carried=carried)
    found, level = run(look(core, arch, carried))
    serves = bool(call)
    if outer in NO_TABLE and not serves:
        assert found.door is None
        return
    assert found.door is not None
    door = found.door.door
    if serves:
        assert (door, level) == ("hvc" if arch is ARM else "hypercall", 1)
    elif outer == "firmware":
        # A hypervisor at EL2 traps SMC before EL3 sees it, but firmware that steals is asked first.
        assert (door, level) == ("smc", 0)
    elif arch is ARM:
        # HVC #0 is stolen where L0 has that door; Xen's own HVC is not ours to steal.
        assert (door, level) == ("smc" if outer == "xen" and inner not in (*NO_TABLE, "firmware") else "hvc", 0)
    else:
        # Without a hypervisor at L1, L0's own call is there too; Hyper-V's needs a name that is L1's to give.
        call_of_parent = inner in NO_TABLE and outer in CALLED and outer != "hyperv"
        assert (door, level) == ("hypercall" if call_of_parent else "msr", 0)


@pytest.mark.parametrize("word", ["steal", "never"])
@pytest.mark.parametrize("outer", ["xen", "kvm", "hyperv", "vmware", "ax"])
def test_an_msr_door_that_is_out_of_reach(outer: str, word: str) -> None:
    """SVM below a parent that drops MSR intercepts: the guest takes ports.  On VMX the index exits regardless."""
    parent = with_nested_msr(PERSONALITIES[outer, X86], word)
    for cpu, door, sign in (("intel", "msr", Sign.PRESENT), ("amd", "pio", Sign.FAULT)):
        core = hypervisor(cpu, PERSONALITIES["vmware", X86], ("msr", "pio"), parent)
        found, level = run(look(core, X86))
        assert found.door is not None and (found.door.door, level) == (door, 1)
        assert {tried.sign for tried in found.attempts if tried.convention.door == "msr"} == {sign}


def test_ax_s_leaf_hides_the_nested_one() -> None:
    """AX offers a CPUID door that leads nowhere for this guest: the guest takes L1's port, or finds none."""
    parent = offering("ax", X86)
    for doors, wanted in ((("cpuid", "pio"), "pio"), (("cpuid",), None)):
        found, _ = run(look(hypervisor("intel", PERSONALITIES["vmware", X86], doors, parent), X86))
        assert (found.door.door if found.door else None) == wanted
        assert "ax" in {seen.name for seen in found.sightings}, "it shows itself to guests of guests"


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(("cpu", "arch"), MACHINES)
def test_deeper(cpu: str, arch: Arch, depth: int) -> None:
    """The guest's own hypervisor is found at any depth."""
    parents = [offering(NAMES[arch][at % 3], arch) for at in range(depth)]
    for name in ("kvm", "xen"):
        own = PERSONALITIES[name, arch]
        found, level = run(look(hypervisor(cpu, own, possible_doors(own), *parents), arch))
        assert found.door is not None and level == 1
        assert found.door.door == ("hvc" if arch is ARM else "hypercall")
