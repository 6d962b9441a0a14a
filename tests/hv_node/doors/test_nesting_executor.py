"""A nested hypervisor executes its guests' instructions: its own answers, those of levels further out, exits per level.

What outer levels answer is Argosy's rule (docs/nesting.md); values are those that their own tables have.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from hmx.argo.abi import Op
from hmx.doors import DESCRIBE, DOOR_CALL, DOOR_MAGIC, DOOR_SMCCC_HVC, DoorFeature
from hmx.errno import Errno
from hmx.hypervisors import AX_PROBE_LEAF, AX_PROBE_RDX, AX_V4V_LEAF
from hmx.trap import Arch, Completion, FrameFlag, Kind, Outcome, Vector, int32
from hv_node.argo.options import parse_options
from hv_node.doors.handlers import HANDLERS, Call
from hv_node.doors.outer import STATEFUL
from hv_node.doors.personality import ANY, Intercept, Otherwise, Personality, Row
from hv_node.doors.tables import PERSONALITIES, possible_doors, with_doors, with_nested_msr
from hv_node.effects import PENDING
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.machine import Guest, Machine

X86, ARM = Arch.X86_64, Arch.AARCH64
UNKNOWN_OP = 0x3FFF
EOPNOTSUPP, ENOSYS = -int(Errno.EOPNOTSUPP), -int(Errno.ENOSYS)
MSR, LEAF, PORT = 0x4000_00E0, 0x4172_6730, 0x4152


def parent(name: str, arch: Arch = X86, *, stolen: tuple[str, ...] = (), msr: str = "default") -> Personality:
    row = PERSONALITIES[name, arch]
    return with_nested_msr(with_doors(row, possible_doors(row), stolen), msr)


class Nested(Machine):
    """A hypervisor with parents; `stolen` notes what reaches them and answers `ret`."""

    def __init__(
        self,
        personality: str,
        *parents: Personality,
        arch: Arch = X86,
        cpu: str = "intel",
        carried: bool = False,
        doors: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(personality=personality, arch=arch, cpu=cpu)
        row = PERSONALITIES[personality, arch]
        self.carried: list[tuple[Any, ...]] = []
        self.ret = 42
        self.core = Hypervisor(
            row, cpu, parse_options("on,mac-permissive")[0], xsm_by_name("dummy"),
            doors=possible_doors(row) if doors is None else doors, parents=parents,
            stolen=self.stolen if carried else None,
        )  # fmt: skip

    def stolen(self, call: Call, level: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        self.carried.append((call.vcpu.hvm.domain.domid, level, cmd, a1, a2, a3, a4))
        return self.ret


def door(kind: Kind, where: int, cmd: int, *arguments: int) -> dict[str, Any]:
    """A call by a door of ours on x86."""
    a = (*arguments, 0, 0, 0, 0)
    return {"kind": kind, "regs": (DOOR_CALL, a[1], 0, 0, a[0], cmd, a[3], 0, a[2]), "address": where, "size": 4}


def levels(guest: Guest, family: str = "exits") -> tuple[int, ...]:
    counters = asdict(guest.hvm.counters)
    found = sorted(name for name in counters if name.startswith(f"{family}_l"))
    return tuple(counters[name] for name in found)


def test_its_own_guests_are_served_as_without_parents() -> None:
    """Register, send, receive its signal, through the path of many calls and through single frames."""
    machine = Nested("xen", parent("kvm"))
    a, b = machine.guest(1), machine.guest(2)
    assert b.register(9) == 0
    assert b.bind_virq() > 0
    assert [a.send(2, 9, b"x" * 64) for _ in range(3)] == [64] * 3
    assert a.argo(UNKNOWN_OP) == EOPNOTSUPP
    assert machine.core.hvm(2).counters.interrupts_posted == 1  # type: ignore[union-attr]


def test_exits_per_level() -> None:
    """Each trap is one at every level; entries are counted apart; sends in a window count like single ones."""
    machine = Nested("xen", parent("kvm"), parent("hyperv"))
    a, b = machine.guest(1), machine.guest(2)
    b.register(9)
    for slot in range(5):
        a.submit(Kind.VMCALL, a.send_regs(2, 9, b"x", slot=slot))
    a.run()
    assert levels(a) == (5, 5, 5) and levels(a, "resumes") == (15, 5)
    a.trap(Kind.CPUID, (0, 0, 0, 0), address=0)
    a.trap(Kind.RDMSR, (0,), address=0x10, privilege=3)  # the silicon's own: no exit
    assert levels(a) == (6, 6, 6) and levels(a, "resumes") == (18, 6)
    assert a.hvm.counters.exits == 7, "one a frame, as without parents"


def test_without_parents_there_are_no_levels_to_count() -> None:
    """The counters are those that they were."""
    guest = Machine().guest(1)
    assert levels(guest) == () and "exits_l0" not in asdict(guest.hvm.counters)


def test_ax_shows_itself_to_a_guest_s_guest() -> None:
    """CPUID's magic leaf is taken at L0, before Xen at L1 sees it; v4v is not carried on."""
    guest = Nested("xen", parent("ax")).guest(1)
    done = guest.trap(Kind.CPUID, (AX_PROBE_LEAF, 0, 0, 0), address=AX_PROBE_LEAF)
    assert done.regs[:4] == (0, 0, 0, AX_PROBE_RDX)
    assert levels(guest) == (1, 0) and levels(guest, "resumes") == (0,)
    done = guest.trap(Kind.CPUID, (AX_V4V_LEAF,), address=AX_V4V_LEAF)
    assert int32(done.regs[0]) == ENOSYS
    done = guest.trap(Kind.CPUID, (AX_V4V_LEAF,), address=AX_V4V_LEAF, privilege=3)
    assert done.outcome == Outcome.DONE and not any(done.regs)
    xen = guest.trap(Kind.CPUID, (0, 0, 0, 0), address=0x4000_0000)
    assert xen.regs[1] == 0x566E_6558, "all other leaves are L1's"


DOORS = [
    (Kind.WRMSR, MSR, "msr"), (Kind.CPUID, LEAF, "cpuid"), (Kind.IN, PORT, "pio"), (Kind.STORE, 0xFEDF_8000, "mmio"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "where", "name"), DOORS)
@pytest.mark.parametrize("cpu", ["intel", "amd"])
def test_a_stolen_door_is_carried(kind: Kind, where: int, name: str, cpu: str) -> None:
    """L0 takes the call with the guest's registers, and the guest gets what comes back."""
    machine = Nested("kvm", parent("xen", stolen=(name,)), cpu=cpu, carried=True)
    guest = machine.guest(7)
    done = guest.trap(**door(kind, where, DESCRIBE))
    assert done.regs[:2] == (DOOR_MAGIC, 1) and done.regs[4] == DoorFeature.ARGO
    assert machine.carried == [], "the door describes itself"
    done = guest.trap(**door(kind, where, Op.SENDV, 1, 2, 3, 4))
    assert (done.outcome, int32(done.regs[0])) == (Outcome.DONE, 42)
    assert machine.carried == [(7, 0, Op.SENDV, 1, 2, 3, 4)]
    machine.ret = -int(Errno.EAGAIN)
    assert int32(guest.trap(**door(kind, where, Op.SENDV)).regs[0]) == -Errno.EAGAIN
    assert levels(guest) == (3, 0)
    guest.trap(**(door(kind, where, Op.SENDV) | {"privilege": 3}))
    assert len(machine.carried) == 2, "kernels only"


@pytest.mark.parametrize(("kind", "where", "name"), DOORS)
def test_a_stolen_door_that_nobody_carries_is_absent(kind: Kind, where: int, name: str) -> None:
    """The guest sees KVM without doors: #GP, an empty leaf, ones, nothing; L0 reflected the exit after all."""
    guest = Nested("kvm", parent("xen", stolen=(name,))).guest(1)
    done = guest.trap(**door(kind, where, DESCRIBE))
    match name:
        case "msr":
            assert (done.outcome, done.vector) == (Outcome.FAULT, Vector.GP)
        case "cpuid":
            assert done.outcome == Outcome.DONE and not any(done.regs)
        case "pio":
            assert done.regs == (0xFFFF_FFFF,)
        case "mmio":
            assert done.outcome == Outcome.IGNORED
    assert levels(guest) == (1, 1) and levels(guest, "resumes") == (1,)


def test_a_carried_call_may_take_its_time() -> None:
    """PENDING holds the vCPU back until the sink completes its token; an ASYNC frame holds back only its followers."""
    machine = Nested("kvm", parent("xen", stolen=("pio",)), carried=True)
    guest, machine.ret = machine.guest(1), PENDING
    submitted = door(Kind.IN, PORT, Op.SENDV)
    guest.submit(**submitted)
    guest.submit(Kind.CPUID, (0, 0, 0, 0))
    assert guest.run() == []
    machine.core.complete(guest.vcpu, 5)
    first, second = guest.run()
    assert first.regs == (5,) and second.outcome == Outcome.DONE
    guest.submit(**submitted, flags=FrameFlag.ASYNC)
    guest.submit(Kind.CPUID, (0, 0, 0, 0))
    assert len(guest.run()) == 1
    machine.core.complete(guest.vcpu.token, 6)
    assert guest.side.collect().regs == (6,)


def test_smccc_doors_share_their_immediate_with_everybody() -> None:
    """L0 steals HVC #0 by the function id; other functions are still L1's."""
    machine = Nested("kvm", parent("kvm", ARM, stolen=("hvc",)), arch=ARM, cpu="armv8", carried=True)
    guest = machine.guest(1)
    done = guest.trap(Kind.HVC, (DOOR_SMCCC_HVC, Op.SENDV, 1, 2, 3, 4), privilege=1)
    assert done.regs == (42,) and machine.carried == [(1, 0, Op.SENDV, 1, 2, 3, 4)]
    version = guest.trap(Kind.HVC, (0x8000_0000,), privilege=1)
    assert version.regs[0] == 0x1_0001
    assert levels(guest) == (2, 1)


def executed(machine: Nested, kind: Kind, regs: tuple[int, ...] = (0, 0, 0, 0), **fields: int) -> Completion:
    return machine.guest(1).trap(kind, regs, **fields)


def test_what_a_guest_sees_of_l0_where_l1_takes_nothing() -> None:
    """Leaves, MSRs, ports, calls: L0's constants, without what belongs to L1's own domain."""

    def bare(name: str = "xen", **options: Any) -> Nested:
        return Nested("bare-metal", parent(name), **options)

    assert executed(bare(), Kind.CPUID, address=0x4000_0000).regs[1] == 0x566E_6558
    ids = executed(bare(), Kind.CPUID, address=0x4000_0004)
    assert ids.outcome == Outcome.DONE and not any(ids.regs), "the domain id there would be L1's"
    call = (39, 0, 0, 0, 0, UNKNOWN_OP)
    assert int32(executed(bare(), Kind.VMCALL, call).regs[0]) == ENOSYS
    assert int32(executed(bare(), Kind.VMCALL, (32,)).regs[0]) == ENOSYS
    carrying = bare(carried=True)
    assert int32(executed(carrying, Kind.VMCALL, call).regs[0]) == 42
    assert carrying.carried == [(1, 0, UNKNOWN_OP, 0, 0, 0, 0)]
    assert int32(executed(bare(carried=True), Kind.VMCALL, (39, 1), flags=FrameFlag.WIDTH32).regs[0]) == 42
    waiting = bare(carried=True)
    waiting.ret = PENDING
    guest = waiting.guest(1)
    guest.submit(Kind.VMCALL, (39, 1), flags=FrameFlag.WIDTH32)
    assert guest.run() == []
    assert int32(executed(bare(), Kind.VMCALL, (39,), privilege=3).regs[0]) == -Errno.EPERM
    page = executed(bare(), Kind.WRMSR, (0x1000, 0, 0, 0), address=0x4000_0000)
    assert (page.outcome, page.vector) == (Outcome.FAULT, Vector.GP), "L1's hypercall page is not this guest's"
    assert executed(bare(), Kind.RDMSR, address=0x4000_0000).regs[0] == 0
    hyperv = executed(bare("hyperv"), Kind.VMCALL)
    assert hyperv.vector == Vector.UD, "it has no name there"
    version = executed(bare("vmware"), Kind.IN, (0x564D_5868, 0, 10, 0), address=0x5658, size=4)
    assert version.regs[1] == 0x564D_5868
    units = executed(bare("uxen"), Kind.IN, (0, 0, 0, 0), address=0x330, size=4)
    assert units.outcome == Outcome.DONE and units.regs[0] & 0xFF == 0
    ones = executed(bare("uxen"), Kind.IN, (0, 0, 0, 0), address=0xCFC, size=4)
    assert ones.regs == (0xFFFF_FFFF,)
    known = executed(bare("kvm", carried=True), Kind.VMCALL, (DOOR_CALL, DESCRIBE, 0, 0, 0))
    assert known.regs[0] == DOOR_MAGIC
    unknown = executed(bare("kvm"), Kind.VMCALL, (DOOR_CALL, DESCRIBE, 0, 0, 0))
    assert int32(unknown.regs[0]) == -1000


def test_arm_s_l0_where_l1_takes_nothing() -> None:
    """SMCCC ids are L0's; its interrupt controller is L1's."""
    machine = Nested("bare-metal", parent("xen", ARM), arch=ARM, cpu="armv8")
    guest = machine.guest(1)
    assert guest.trap(Kind.HVC, (0x8600_FF01,), privilege=1).regs[0] == 0xDC12_18A7
    assert guest.trap(Kind.LOAD, (0,), address=0x0800_0000, size=4, privilege=1).regs == (0xFFFF_FFFF,)
    firm = Nested("bare-metal", PERSONALITIES["firmware", ARM], arch=ARM, cpu="armv8").guest(1)
    assert firm.trap(Kind.SMC, (0x8000_0000,), privilege=1).regs[0] == 0x1_0002
    assert firm.trap(Kind.HVC, (0x8000_0000,), privilege=1).outcome == Outcome.FAULT


def test_an_msr_door_out_of_reach() -> None:
    """Below a parent that drops bitmaps: on SVM L0's own door answers if carried, else #GP; on VMX it is L1's."""
    for word in ("steal", "never"):
        amd = Nested("kvm", parent("xen", msr=word), cpu="amd", carried=True)
        assert amd.guest(1).trap(**door(Kind.WRMSR, MSR, UNKNOWN_OP)).regs == (42,)
        alone = Nested("kvm", parent("xen", msr=word), cpu="amd")
        assert alone.guest(1).trap(**door(Kind.WRMSR, MSR, UNKNOWN_OP)).vector == Vector.GP
        plain = with_nested_msr(PERSONALITIES["xen", X86], word)
        intel = Nested("kvm", plain, carried=True)
        assert int32(intel.guest(1).trap(**door(Kind.WRMSR, MSR, UNKNOWN_OP)).regs[0]) == EOPNOTSUPP


def test_xen_s_own_call_below_a_hypervisor_that_takes_everything() -> None:
    """No shortcut for calls that are not this hypervisor's to answer."""
    thief = Row(Kind.VMCALL, *ANY, Intercept.STEAL, "hypercall", Otherwise.UD, 1, "")
    machine = Nested("xen", parent("kvm")._replace(rows=(thief,)))
    a = machine.guest(1)
    assert a.send(2, 9, b"x") == ENOSYS, "L0's, and not carried"
    assert levels(a) == (1, 0)


def test_every_handler_has_its_answer_from_outside() -> None:
    """A handler either needs the state of the domain that the nested hypervisor is, or can answer its guests."""
    needs_state = {"hypercall-page", "hyperv-msr", "gic", "pci-config", "uxen-platform"}
    constant = {"cpuid", "idle", "accept", "uxen-storage", "ax-probe", "vmware-port", "smccc", "v4v-cpuid"}
    calls = {name for name in HANDLERS if name == "hypercall" or name.endswith("-call")}
    doors = {name for name in HANDLERS if name.startswith("door-")}
    assert needs_state == STATEFUL
    assert set(HANDLERS) == needs_state | constant | calls | doors
