"""What else a hypervisor keeps from confined guests, and where slots and policy meet its instructions."""

from __future__ import annotations

from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.slots import QUERY_ENDPOINT, SlotOp, parse_endpoint
from hmx.trap import Kind, int32
from hmx.v4v import abi as v4v_abi
from hmx.xen import CPUID_HVM_DOMID_PRESENT, CPUID_HVM_VCPU_ID_PRESENT, Hypercall
from hv_node.config import DomainConfig, HypervisorConfig, PolicyConfig, SlotConfig
from hv_node.doors.leaves import leaf_of
from hv_node.effects import PENDING
from hv_node.uplinks.around import is_joined
from hv_node.uplinks.joint import Joint
from tests.doubles.hypervisor_node import configured
from tests.doubles.machine import Guest, Machine
from tests.hv_node.test_v4v_doors import v4v

NO_DEVICE = -Errno.ENODEV


def config(personality: str = "xen", *, policy: PolicyConfig | None = None, confined: bool = True) -> HypervisorConfig:
    """d1 is confined and led to d2's port 5 as storage; d0 is the device model."""
    domains = tuple(
        DomainConfig(f"d{domid}", domid, 4096, 1, implicit_only=confined and domid == 1) for domid in range(3)
    )
    return configured(
        personality=personality, domains=domains, path=("hv0",), policy=policy,
        slots=(SlotConfig("d1", 0, None, 0xD0000, ("hv0", "d2"), 5),) if confined else (),
    )  # fmt: skip


def built(given: HypervisorConfig) -> tuple[Machine, Joint, list[Guest]]:
    machine = Machine(personality=given.personality)
    joint = Joint(given, machine.core, 1, lambda: 0)
    return machine, joint, [machine.guest(domid, is_control=not domid) for domid in range(3)]


def test_the_leaf_with_the_domain_id() -> None:
    """Xen public/arch-x86/cpuid.h, leaf +4: without its flag the id is not told; the vCPU's is."""
    _, _, (_, prisoner, other) = built(config())
    leaf = 0x4000_0004
    flags, vcpu, domid, _ = prisoner.trap(Kind.CPUID, (leaf,), address=leaf).regs[:4]
    assert (flags, vcpu, domid) == (CPUID_HVM_VCPU_ID_PRESENT, 0, 0)
    flags, _, domid, _ = other.trap(Kind.CPUID, (leaf,), address=leaf).regs[:4]
    assert (flags, domid) == (CPUID_HVM_VCPU_ID_PRESENT | CPUID_HVM_DOMID_PRESENT, 2)
    assert leaf_of("xen-viridian", "intel", 0x4000_0104, None, 1)[:3] == (CPUID_HVM_VCPU_ID_PRESENT, 1, 0)
    assert leaf_of("kvm", "intel", 0x4000_0001, None, 0) == leaf_of("kvm", "intel", 0x4000_0001, 7, 0)


def test_by_frames() -> None:
    """The whole way: a send by slot, and QUERY_ENDPOINT, from a hypercall frame."""
    _, joint, (_, prisoner, other) = built(config())
    assert other.register(5) == 0
    assert prisoner.send(DOMID_ANY, 0xD0000, b"hello") == 5
    assert prisoner.send(2, 5, b"hello") == -Errno.ESRCH
    QUERY_ENDPOINT.pack_into(other.ram, PAGE_SIZE, 1, 0, 0)
    size = other.argo(SlotOp.QUERY_ENDPOINT, PAGE_SIZE, 2 * PAGE_SIZE, 256, 0)
    told = parse_endpoint(bytes(other.ram[2 * PAGE_SIZE : 2 * PAGE_SIZE + size]))
    assert told is not None and told.path == "hv0/d1"
    assert other.argo(SlotOp.DELEGATE, 1 << 40, 0, 0, 0) == -Errno.EFAULT
    assert other.argo(0x4000_0013) == -Errno.EOPNOTSUPP
    assert joint.furniture.inspect()["confined"] == ["d1"]


def test_a_delegate_that_stays_pending() -> None:
    """The frame is answered when it is complete, with the whole result."""
    machine, _, (_, guest, _) = built(config())
    tokens: list[Any] = []

    def others(_caller: Any, _cmd: int, *arguments: Any) -> int:
        tokens.append(arguments[-1])
        return PENDING

    machine.core.argo.others = others
    guest.submit(Kind.VMCALL, guest.regs(Hypercall.ARGO_OP, SlotOp.DELEGATE, 0))
    assert guest.run() == []
    machine.core.complete(tokens[0], -Errno.EACCES)
    (done,) = [guest.side.collect() for _ in range(guest.side.completed())]
    assert int32(done.regs[0]) == -Errno.EACCES


def test_a_hypervisor_without_levels_knows_no_such_call() -> None:
    """As upstream: -EOPNOTSUPP; and nothing stands in front of the core."""
    machine = Machine()
    guest = machine.guest(1)
    assert guest.argo(SlotOp.DELEGATE, 0) == -Errno.EOPNOTSUPP
    assert machine.core.argo.permissive


@pytest.mark.parametrize("personality", ["uxen", "ax"])
def test_v4v(personality: str) -> None:
    """It names domains and asks nobody: confined guests have none, and nobody has under a policy, a late one too."""
    _, joint, (_, prisoner, other) = built(config(personality))
    assert v4v(prisoner, personality, v4v_abi.Op.NOTIFY) == NO_DEVICE
    assert v4v(other, personality, v4v_abi.Op.NOTIFY) != NO_DEVICE
    joint.furniture.judge_by(PolicyConfig("firewall", ()))
    assert v4v(other, personality, v4v_abi.Op.NOTIFY) == NO_DEVICE
    _, _, guests = built(config(personality, policy=PolicyConfig("firewall", ())))
    assert {v4v(guest, personality, v4v_abi.Op.NOTIFY) for guest in guests} == {NO_DEVICE}


def test_who_needs_a_level() -> None:
    """One guest that is confined, one slot, or a policy."""
    assert is_joined(config())
    assert not is_joined(config(confined=False))
    assert is_joined(config(confined=False, policy=PolicyConfig("firewall", ())))
