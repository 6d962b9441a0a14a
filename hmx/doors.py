"""Doors: by which instruction, with which registers, at what declared cost a guest calls its hypervisor.

Both sides read these tables: the hypervisor to serve a call, the guest to make one and to rank the doors it found.
Wall-clock time never enters the choice.

Xen's own conventions are upstream's.  Every other one is experimental, revision 1: a number that no hypervisor uses
says that the call is Argo's, `DESCRIBE` asks a door for its revision and features, and an answer without the magic
means that there is no door.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final, NamedTuple

from hmx.trap import Arch, Kind

DOOR_CALL: Final = 0x4172_6730  # what the number register holds: "Arg0", read as a big-endian word
DOOR_SMCCC_HVC: Final = 0xC600_4152  # fast call, 64 bit, owner 6: vendor hypervisor
DOOR_SMCCC_SMC: Final = 0xC300_4152  # fast call, 64 bit, owner 3: OEM
DOOR_MSR: Final = 0x4000_00E0  # in 0x40000000-0x400000FF, which no silicon has
DOOR_PORT: Final = 0x4152
DESCRIBE: Final = 0x8000_0000  # a command that every door of ours answers itself
DOOR_MAGIC: Final = 0x6F67_7241  # "Argo" in the bytes of a little-endian word
DOOR_REVISION: Final = 1
DOOR_SIZE: Final = 4  # bytes of the access that calls, for IN and STORE

MMIO_DOOR: Final = {Arch.X86_64: 0xFEDF_8000, Arch.AARCH64: 0x0A2F_0000}


class DoorFeature(IntFlag):
    """What a door's DESCRIBE promises."""

    ARGO = 1  # argo_op as upstream
    NOTIFICATION = 2  # the experimental operations that choose interrupts


class Convention(NamedTuple):
    """Register slots of one way to make a call: where number, arguments (the command first) and result are.

    `speaks` is the hypervisor ABI that has this convention, "" for those that any hypervisor may offer; `selector` is
    the leaf, MSR, port, address or immediate that calls; `call` is Argo's value in the number register.
    """

    door: str
    arch: Arch
    speaks: str
    kind: Kind
    selector: int
    number: int
    call: int
    arguments: tuple[int, int, int, int, int]
    result: int
    width: int
    source: str


_XEN64: Final = (5, 4, 3, 8, 6)
_OURS: Final = (5, 4, 1, 8, 6)
_SMCCC: Final = (1, 2, 3, 4, 5)

# Slots are those of hmx.trap: rax rbx rcx rdx rsi rdi r8 r9 r10 ... on x86, x0 .. x17 on Arm.  VMCALL stands for the
# call instruction of the machine: VMMCALL on AMD.
CONVENTIONS: Final = (
    Convention(
        "hypercall", Arch.X86_64, "xen", Kind.VMCALL, 0, 0, 39, _XEN64, 0, 64, "Xen public/arch-x86/xen-x86_64.h"
    ),
    Convention(
        "hypercall", Arch.X86_64, "xen", Kind.VMCALL, 0, 0, 39, (1, 2, 3, 4, 5), 0, 32,
        "Xen public/arch-x86/xen-x86_32.h",
    ),
    Convention(
        "hypercall", Arch.X86_64, "uxen", Kind.VMCALL, 0, 0, DOOR_CALL, _XEN64, 0, 64,
        "experimental: 39 is v4v there",
    ),
    Convention(
        "hypercall", Arch.X86_64, "kvm", Kind.VMCALL, 0, 0, DOOR_CALL, (1, 2, 3, 4, 5), 0, 64,
        "experimental, on Linux virt/kvm/x86/hypercalls.rst",
    ),
    Convention(
        "hypercall", Arch.X86_64, "hyperv", Kind.VMCALL, 0, 2, 0x1_6730, (3, 6, 5, 4, 7), 0, 64,
        "experimental, on Hyper-V TLFS 3.5: control in rcx, fast",
    ),
    Convention(
        "hypercall", Arch.X86_64, "acrn", Kind.VMCALL, 0, 6, 0x8000_6730, (5, 4, 3, 8, 7), 0, 64,
        "experimental, on ACRN public/acrn_hv_defs.h: number in r8",
    ),
    Convention(
        "hypercall", Arch.X86_64, "jailhouse", Kind.VMCALL, 0, 0, 0x6730, (5, 4, 3, 8, 7), 0, 64,
        "experimental, on Jailhouse asm/jailhouse_hypercall.h",
    ),
    Convention("msr", Arch.X86_64, "", Kind.WRMSR, DOOR_MSR, 0, DOOR_CALL, _OURS, 0, 64, "experimental"),
    Convention("cpuid", Arch.X86_64, "", Kind.CPUID, DOOR_CALL, 0, DOOR_CALL, _OURS, 0, 64, "experimental"),
    Convention("pio", Arch.X86_64, "", Kind.IN, DOOR_PORT, 0, DOOR_CALL, _OURS, 0, 64, "experimental"),
    Convention(
        "mmio", Arch.X86_64, "", Kind.STORE, MMIO_DOOR[Arch.X86_64], 0, DOOR_CALL, _OURS, 0, 64, "experimental"
    ),
    Convention(
        "hvc", Arch.AARCH64, "xen", Kind.HVC, 0xEA1, 16, 39, (0, 1, 2, 3, 4), 0, 64, "Xen public/arch-arm.h"
    ),
    Convention("hvc", Arch.AARCH64, "", Kind.HVC, 0, 0, DOOR_SMCCC_HVC, _SMCCC, 0, 64, "experimental, on SMCCC 2.5"),
    Convention("smc", Arch.AARCH64, "", Kind.SMC, 0, 0, DOOR_SMCCC_SMC, _SMCCC, 0, 64, "experimental, on SMCCC 2.5"),
    Convention(
        "mmio", Arch.AARCH64, "", Kind.STORE, MMIO_DOOR[Arch.AARCH64], 0, DOOR_CALL, _SMCCC, 0, 64, "experimental"
    ),
)  # fmt: skip


class DoorCost(NamedTuple):
    """What one call through a door costs by declaration.

    `closeness` ranks doors by how near they are to what the architecture means for calls, 0 the nearest; then `exits`
    (traps at one level) and `cycles` of an exit and entry.
    """

    door: str
    arch: Arch
    closeness: int
    exits: int
    cycles: int
    source: str


# Cycles are those of one machine, measured once with /dev/kvm from an exit to a process and back (at a nominal 3 GHz);
# for doors without a figure of their own, those of WRMSR.  They only order doors that are equally close.
DOOR_COSTS: Final = (
    DoorCost("hypercall", Arch.X86_64, 0, 1, 20_850, "Intel SDM vol. 3C 26.1.2: VMCALL exits unconditionally"),
    DoorCost("msr", Arch.X86_64, 1, 1, 20_850, "Intel SDM vol. 3C 26.1.3"),
    DoorCost("cpuid", Arch.X86_64, 2, 1, 20_850, "Intel SDM vol. 3C 26.1.2: CPUID exits unconditionally"),
    DoorCost("pio", Arch.X86_64, 3, 1, 21_480, "Intel SDM vol. 3C 26.1.3"),
    DoorCost("mmio", Arch.X86_64, 4, 1, 22_110, "Intel SDM vol. 3C 29.3.3"),
    DoorCost("hvc", Arch.AARCH64, 0, 1, 20_850, "Arm ARM D1.10: HVC traps to EL2"),
    DoorCost("smc", Arch.AARCH64, 1, 1, 20_850, "Arm ARM D1.10, HCR_EL2.TSC"),
    DoorCost("mmio", Arch.AARCH64, 4, 1, 22_110, "Arm ARM D8: stage 2 fault"),
)
COST_OF: Final = {(row.door, row.arch): row for row in DOOR_COSTS}


class CallInstruction(NamedTuple):
    """The call instruction of a CPU vendor, by the vendor string of CPUID leaf 0 (EBX, EDX, ECX)."""

    cpu: str
    vendor: bytes
    kind: Kind
    source: str


CALL_INSTRUCTIONS: Final = (
    CallInstruction("intel", b"GenuineIntel", Kind.VMCALL, "Intel SDM vol. 3C 31.3"),
    CallInstruction("amd", b"AuthenticAMD", Kind.VMMCALL, "AMD APM vol. 3 VMMCALL"),
)


def convention(door: str, arch: Arch, width: int = 64, speaks: str = "xen") -> Convention:
    """The row for a door of a hypervisor with ABI `speaks`.  Raises KeyError when there is none."""
    rows = [row for row in CONVENTIONS if (row.door, row.arch, row.width) == (door, arch, width)]
    for row in rows:
        if row.speaks == speaks:
            return row
    for row in rows:
        if not row.speaks:
            return row
    raise KeyError(f"no convention for door {door!r} on {arch.name} with {width}-bit registers of {speaks or 'anyone'}")


def doors_of(arch: Arch) -> tuple[str, ...]:
    """The doors that exist on `arch`."""
    return tuple(row.door for row in DOOR_COSTS if row.arch is arch)


def ranked(arch: Arch) -> list[str]:
    """The doors that exist on `arch`, the best first: by closeness, then declared exits, then cycles."""
    rows = [row for row in DOOR_COSTS if row.arch is arch]
    return [row.door for row in sorted(rows, key=lambda row: (row.closeness, row.exits, row.cycles))]
