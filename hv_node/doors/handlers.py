"""What the handlers named in the personalities do with a call: Xen's own, other hypervisors', and the doors of ours.

Each takes the executor of its hypervisor and one decoded instruction, and answers it through the executor.  Sources
are cited per function; what is ours is experimental (hmx/doors.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from hmx.doors import CONVENTIONS, DESCRIBE, DOOR_MAGIC, DOOR_REVISION, DOOR_SIZE, Convention, DoorFeature
from hmx.errno import Errno
from hmx.hypervisors import AX_PROBE_RDX
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, FrameFlag, Kind, Vector, X86Reg
from hmx.uxen_enum import encode_bitmap, read_port
from hv_node.doors import smccc
from hv_node.doors.hypercalls import hypercall_page
from hv_node.doors.leaves import leaf_of
from hv_node.hvm import Vcpu

if TYPE_CHECKING:
    from hv_node.doors.executor import Executor

_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_WIDTH32: Final = int(FrameFlag.WIDTH32)
_EPERM: Final = -int(Errno.EPERM) & _M64
_ENOSYS: Final = -int(Errno.ENOSYS) & _M64
_KVM_ENOSYS: Final = -1000 & _M64
_HV_INVALID_CODE: Final = 2  # HV_STATUS_INVALID_HYPERCALL_CODE
_HV_OS_ID: Final = 0x4000_0000
_HV_PAGE: Final = 0x4000_0001
_VMWARE_MAGIC: Final = 0x564D_5868
_VMWARE_VERSION: Final = 10
_VMWARE_HZ: Final = 45
_VIRIDIAN: Final = 1 << 31
_V4V: Final = 39  # uXen's hypercall
_NO_WAKE: Final = 0x7FFF


class Call(NamedTuple):
    """One instruction, decoded: `slots` holds all eighteen registers, `selector` what the personality looked at."""

    vcpu: Vcpu
    seq: int
    kind: int
    flags: int
    privilege: int
    size: int
    selector: int
    ctx: int
    slots: tuple[int, ...]


Handler = Callable[["Executor", Call], None]


def _is_kernel(hv: Executor, call: Call) -> bool:
    return call.privilege == (1 if hv.personality.arch is Arch.AARCH64 else 0)


# ---- Xen ----


def xen_call(hv: Executor, call: Call) -> None:
    """Xen's hypercall: VMCALL exits at any CPL, so the privilege is Xen's own check (arch/x86/hvm/hypercall.c)."""
    slots = call.slots
    if not _is_kernel(hv, call):
        hv.answer(call, _EPERM)
    elif hv.personality.arch is Arch.AARCH64:
        hv.answer(call, hv.hypercall(call, slots[16] & _M32, slots[0] & _M32, *slots[1:5]))
    elif call.flags & _WIDTH32:
        hv.answer(call, hv.hypercall32(call, *(slot & _M32 for slot in slots[:6])))
    else:
        hv.answer(call, hv.hypercall(call, slots[0], slots[5] & _M32, slots[4], slots[3], slots[8], slots[6]))


def viridian_call(hv: Executor, call: Call) -> None:
    """Xen with Hyper-V's interface: bit 31 of eax says whose call it is (Xen arch/x86/hvm/viridian)."""
    if call.slots[X86Reg.RAX] & _VIRIDIAN and _is_kernel(hv, call):
        hv.answer(call, _HV_INVALID_CODE)
    else:
        xen_call(hv, call)


def write_hypercall_page(hv: Executor, call: Call) -> None:
    """WRMSR of the MSR that leaf +2 names: address and page index; there is one page (Xen arch/x86/msr.c)."""
    address = call.slots[X86Reg.RDX] << 32 | call.slots[X86Reg.RAX] & _M32
    page = hypercall_page(hv.call_instruction)
    if address & (PAGE_SIZE - 1) or not call.vcpu.hvm.domain.memory.write(call.ctx, address, page):
        hv.fault(call, Vector.GP)  # an index other than 0, or no such page
    else:
        hv.done(call, ())


def cpuid(hv: Executor, call: Call) -> None:
    """CPUID, at any CPL."""
    found = call.vcpu.hvm.domain.domid
    domid = None if hv.hides_domid(found) else found
    hv.done(call, leaf_of(hv.personality.name, hv.cpu_name, call.selector & _M32, domid, call.vcpu.index))


def accept(hv: Executor, call: Call) -> None:
    """A write that is taken and has no effect here."""
    hv.done(call, ())


def idle(hv: Executor, call: Call) -> None:
    """HLT and WFI: the guest's own loop does the waiting."""
    hv.done(call, call.slots[:1])


# ---- others' calls ----


def _foreign(hv: Executor, call: Call, unknown: int, *, denied: int | Vector) -> None:
    """A call by another hypervisor's convention: Argo's number if the door is offered, else what they all answer."""
    row = hv.own_call
    if not _is_kernel(hv, call):
        if isinstance(denied, Vector):
            hv.fault(call, denied)
        else:
            hv.answer(call, denied)
    elif row is not None and call.slots[row.number] & _M32 == row.call and not call.flags & _WIDTH32:
        argo_call(hv, call, row)
    else:
        hv.answer(call, unknown)


def kvm_call(hv: Executor, call: Call) -> None:
    """KVM: -KVM_EPERM outside CPL 0, -KVM_ENOSYS for what it does not know (Linux arch/x86/kvm/x86.c)."""
    _foreign(hv, call, _KVM_ENOSYS, denied=_EPERM)


def hyperv_call(hv: Executor, call: Call) -> None:
    """Hyper-V: #UD outside CPL 0 and before the guest named itself; a status in rax (TLFS 3.7, 3.13)."""
    arm = hv.personality.arch is Arch.AARCH64
    if not arm and not call.vcpu.hvm.msrs.get(_HV_OS_ID):
        hv.fault(call, Vector.UD)
    else:
        _foreign(hv, call, _HV_INVALID_CODE, denied=Vector.UD)


def hyperv_msr(hv: Executor, call: Call) -> None:
    """Guest OS id and hypercall page: kept; enabling the page writes the call instruction into it (TLFS 3.13)."""
    msrs = call.vcpu.hvm.msrs
    if call.kind == Kind.RDMSR:
        value = msrs.get(call.selector, 0)
        hv.done(call, (value & _M32, 0, 0, value >> 32))
        return
    value = (call.slots[X86Reg.RDX] & _M32) << 32 | call.slots[X86Reg.RAX] & _M32
    if call.selector == _HV_PAGE and value & 1:
        page = hv.call_instruction + b"\xc3"
        if not call.vcpu.hvm.domain.memory.write(call.ctx, value & -PAGE_SIZE, page.ljust(PAGE_SIZE, b"\xcc")):
            hv.fault(call, Vector.GP)
            return
    msrs[call.selector] = value
    hv.done(call, ())


def acrn_call(hv: Executor, call: Call) -> None:
    """ACRN: #GP outside CPL 0, #UD for a user VM's call that it does not know (arch/x86/guest/vmcall.c)."""
    row = hv.own_call
    known = row is not None and call.slots[row.number] & _M32 == row.call
    if _is_kernel(hv, call) and not known:
        hv.fault(call, Vector.UD)
    else:
        _foreign(hv, call, _ENOSYS, denied=Vector.GP)


def jailhouse_call(hv: Executor, call: Call) -> None:
    """Jailhouse: -EPERM outside CPL 0, -ENOSYS for what it does not know (hypervisor/control.c)."""
    _foreign(hv, call, _ENOSYS, denied=_EPERM)


def uxen_call(hv: Executor, call: Call) -> None:
    """uXen: Xen's registers; 39 is v4v there (uXen xen/arch/x86/hvm/hvm.c)."""
    slots = call.slots
    if not _is_kernel(hv, call) or slots[0] & _M32 != _V4V:
        _foreign(hv, call, _ENOSYS, denied=_EPERM)
    else:
        hv.answer(call, hv.v4v_call(call, slots[5], slots[4], slots[3], slots[8], slots[6], slots[7]))


def uxen_storage(hv: Executor, call: Call) -> None:
    """The port bitmap of storage units: unit n is there while the device model has a ring for us at 0xD0000 + n
    (uXen dm/uxen_stor.c).
    """
    bitmap = encode_bitmap(hv.storage_units(call))
    value = read_port(bitmap, call.selector, min(call.size, DOOR_SIZE))
    keep = call.slots[X86Reg.RAX] & ~((1 << 8 * call.size) - 1) if call.size < DOOR_SIZE else 0
    hv.done(call, (keep | value,))


def pci_config(hv: Executor, call: Call) -> None:
    """PCI configuration mechanism #1, behind which uXen's platform device stands (PCI Local Bus 3.0, 3.2.2.3.2)."""
    device, rax = call.vcpu.hvm.platform, call.slots[X86Reg.RAX]
    if device is None or call.size not in (1, 2, 4):
        hv.absent(call)
    elif call.kind == Kind.IN:
        keep = rax & ~((1 << 8 * call.size) - 1) if call.size < DOOR_SIZE else 0
        hv.done(call, (keep | device.read_port(call.selector, call.size),))
    else:
        device.write_port(call.selector, call.size, rax)
        hv.done(call, ())


def uxen_platform(hv: Executor, call: Call) -> None:
    """A load or store of the platform device's BARs: control registers, state page, device table (uXen platform
    interface).
    """
    device, rax = call.vcpu.hvm.platform, call.slots[X86Reg.RAX]
    if device is None or call.size not in (1, 2, 4, 8):
        hv.absent(call)
    elif call.kind == Kind.LOAD:
        keep = rax & ~((1 << 8 * call.size) - 1) if call.size < DOOR_SIZE else 0
        hv.done(call, (keep | device.load(call.selector, call.size),))
    else:
        device.store(call.selector, call.size, rax)
        hv.done(call, ())


def v4v_cpuid(hv: Executor, call: Call) -> None:
    """v4v by CPUID: op in rdi, arguments in rsi rdx r10 r8 r9; status in rax, whom to wake in rdi (uXen ax.h)."""
    slots = call.slots
    if not _is_kernel(hv, call):
        hv.absent(call)
        return
    ret = hv.v4v_call(call, slots[5], slots[4], slots[3], slots[8], slots[6], slots[7])
    hv.done(call, (ret & _M64, 0, 0, 0, 0, _NO_WAKE))


def ax_probe(hv: Executor, call: Call) -> None:
    """The leaf by which AX shows itself (uXen ax.h)."""
    hv.done(call, (0, 0, 0, AX_PROBE_RDX))


def vmware_port(hv: Executor, call: Call) -> None:
    """VMware's backdoor: a magic in eax, a command in ecx; served at any CPL (VMware KB 1009458)."""
    eax, command = call.slots[X86Reg.RAX] & _M32, call.slots[X86Reg.RCX] & 0xFFFF
    if eax != _VMWARE_MAGIC or call.size != DOOR_SIZE:
        if call.privilege:
            hv.fault(call, Vector.GP)
        else:
            hv.all_ones(call)
    elif command == _VMWARE_VERSION:
        hv.done(call, (6, _VMWARE_MAGIC, 2, 0))
    elif command == _VMWARE_HZ:
        hv.done(call, (2_000_000_000, 0, 0, 0))
    else:
        hv.done(call, (_M32, 0, 0, 0))


def smccc_call(hv: Executor, call: Call) -> None:
    """HVC or SMC #0: a function id in w0 (Arm DEN 0028)."""
    hv.done(call, smccc.call(hv.personality.name, call.slots[0] & _M32))


def gic(hv: Executor, call: Call) -> None:
    """A load or store of the interrupt controller's registers; x0 is the register that is moved."""
    controller, vcpu = call.vcpu.hvm.gic, call.vcpu.index
    if controller is None or call.size not in (1, 2, 4, 8):
        hv.absent(call)
    elif call.kind == Kind.LOAD:
        hv.done(call, (controller.load(vcpu, call.selector, call.size),))
    else:
        controller.store(vcpu, call.selector, call.slots[0] & (1 << 8 * call.size) - 1, call.size)
        hv.done(call, ())


# ---- ours ----


def door_call(hv: Executor, call: Call) -> None:
    """One of our doors.  Without its number, or from user mode, it is not there."""
    row = _DOOR_OF[hv.personality.arch, call.kind]
    sized = call.kind not in (Kind.IN, Kind.STORE) or call.size == DOOR_SIZE
    if not sized or call.slots[row.number] & _M32 != row.call or not _is_kernel(hv, call) or call.flags & _WIDTH32:
        hv.absent(call)
    else:
        argo_call(hv, call, row)


def argo_call(hv: Executor, call: Call, row: Convention) -> None:
    """An Argo call by a convention of ours: the door answers DESCRIBE itself."""
    cmd, *arguments = (call.slots[slot] for slot in row.arguments)
    cmd &= _M32
    if cmd == DESCRIBE:
        modes = hv.mode_features()
        features = int(DoorFeature.ARGO | (DoorFeature.NOTIFICATION if modes else 0)) | modes
        if row.arch is Arch.AARCH64:
            hv.done(call, (DOOR_MAGIC, DOOR_REVISION, features))
        else:
            hv.done(call, (DOOR_MAGIC, DOOR_REVISION, 0, 0, features))
        return
    hv.answer(call, hv.argo_op(call, cmd, *arguments))


_DOOR_OF: Final[dict[tuple[Arch, int], Convention]] = {
    (row.arch, row.kind): row for row in CONVENTIONS if not row.speaks
}

HANDLERS: Final[dict[str, Handler]] = {
    "hypercall": xen_call,
    "viridian-call": viridian_call,
    "hypercall-page": write_hypercall_page,
    "cpuid": cpuid,
    "idle": idle,
    "accept": accept,
    "kvm-call": kvm_call,
    "hyperv-call": hyperv_call,
    "hyperv-msr": hyperv_msr,
    "acrn-call": acrn_call,
    "jailhouse-call": jailhouse_call,
    "uxen-call": uxen_call,
    "v4v-cpuid": v4v_cpuid,
    "uxen-storage": uxen_storage,
    "pci-config": pci_config,
    "uxen-platform": uxen_platform,
    "ax-probe": ax_probe,
    "vmware-port": vmware_port,
    "smccc": smccc_call,
    "gic": gic,
    "door-msr": door_call,
    "door-cpuid": door_call,
    "door-pio": door_call,
    "door-mmio": door_call,
    "door-hvc": door_call,
    "door-smc": door_call,
}
