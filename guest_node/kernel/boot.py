"""A guest's start: find the hypervisor, choose a door, arrange to be interrupted.

The probe reads CPUID, which never faults: leaf 1 says whether any hypervisor is there, the blocks from 0x40000000 on
say which.  Then the shared_info page is placed and VIRQ_ARGO bound to an event channel (Xen public/memory.h,
public/event_channel.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from guest_node.kernel.argo import Argo, GuestMemoryView, hypercall_trap
from guest_node.vcpu import Trap, Vcpu
from hmx import xen
from hmx.argo.abi import VIRQ_ARGO
from hmx.cpu.evtchn import EventChannelPage
from hmx.doors import Convention, convention, ranked
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, Kind, Outcome, int32
from hmx.xen import EvtchnOp, Hypercall

_BLOCK: Final = 0x100
_LAST_BLOCK: Final = 0x4001_0000


class BootError(Exception):
    """The guest cannot run here; the message says what it looked for and what it found."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the probe found: the hypervisor's CPUID base, its version, this domain's id, and the door chosen."""

    base: int
    version: int
    domid: int
    door: Convention


@dataclass(frozen=True, slots=True)
class Kernel:
    """A booted guest kernel.  Its Argo calls go through vCPU 0, where VIRQ_ARGO is bound."""

    vcpus: tuple[Vcpu, ...]
    memory: GuestMemoryView
    probe: Probe
    argo: Argo
    page: EventChannelPage
    virq_port: int


async def _cpuid(vcpu: Vcpu, leaf: int) -> tuple[int, ...]:
    done = await vcpu.trap(Trap(Kind.CPUID, (leaf, 0, 0, 0), address=leaf))
    return done.regs if done.outcome == Outcome.DONE else (0, 0, 0, 0)


async def probe(vcpu: Vcpu) -> Probe:
    """Find Xen and the door to it.  BootError when there is none."""
    if not (await _cpuid(vcpu, 1))[2] & xen.CPUID_HYPERVISOR_BIT:
        raise BootError("CPUID leaf 1 announces no hypervisor: there is nobody to call")
    found = []
    for base in range(xen.CPUID_BASE, _LAST_BLOCK + 1, _BLOCK):
        leaf = await _cpuid(vcpu, base)
        if leaf[1:] == xen.CPUID_SIGNATURE:
            version = (await _cpuid(vcpu, base + 1))[0]
            features, _, domid, _ = await _cpuid(vcpu, base + 4)
            if not features & xen.CPUID_HVM_DOMID_PRESENT:
                domid = xen.DOMID_SELF
            return Probe(base, version, domid, convention(ranked(Arch.X86_64)[0], Arch.X86_64))
        if any(leaf):
            found.append(b"".join(reg.to_bytes(4, "little") for reg in leaf[1:]).decode("latin-1"))
    raise BootError(f"no Xen among the hypervisors that CPUID announces: {found or 'none'}")


async def boot(vcpus: Sequence[Vcpu], memory: GuestMemoryView) -> Kernel:
    """Probe, place shared_info, bind VIRQ_ARGO, all on vCPU 0.  BootError when the hypervisor refuses."""
    vcpu = vcpus[0]
    found = await probe(vcpu)
    frame = memory.pages.allocate(1)
    window = memory.window(frame * PAGE_SIZE, PAGE_SIZE)
    window.write(0, bytes(PAGE_SIZE))
    window.publish()
    arguments = memory.pages.allocate(1) * PAGE_SIZE
    ram = memory.buffer

    async def call(number: int, cmd: int) -> int:
        done = await vcpu.trap(hypercall_trap(found.door, number, cmd, arguments))
        return int32(done.regs[found.door.result]) if done.outcome == Outcome.DONE else -Errno.ENOSYS

    xen.ADD_TO_PHYSMAP.pack_into(ram, arguments, xen.DOMID_SELF, 0, xen.XENMAPSPACE_SHARED_INFO, 0, frame)
    ret = await call(Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP)
    if ret < 0:
        raise BootError(f"the hypervisor refuses to place shared_info at frame {frame}: {_name(ret)}")
    page = EventChannelPage(window)
    for each in vcpus:
        each.attach_page(page)

    argo = Argo(vcpu, memory, found.door)
    xen.BIND_VIRQ.pack_into(ram, arguments, VIRQ_ARGO, 0, 0)
    ret = await call(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.BIND_VIRQ)
    if ret < 0:
        raise BootError(f"the hypervisor refuses to bind VIRQ_ARGO: {_name(ret)}")
    port = xen.BIND_VIRQ.unpack_from(ram, arguments)[2]
    vcpu.on_port(port, argo.virq)
    memory.pages.release(arguments // PAGE_SIZE, 1)
    return Kernel(tuple(vcpus), memory, found, argo, page, port)


def _name(ret: int) -> str:
    try:
        return Errno(-ret).name
    except ValueError:
        return str(ret)
