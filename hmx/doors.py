"""Doors: by which instruction, with which registers, at what declared cost a guest calls its hypervisor.

Both sides read these tables: the hypervisor to serve a call, the guest to make one and to rank the doors it
found. Wall-clock time never enters the choice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.trap import Arch, Kind


class Convention(NamedTuple):
    """Register slots of one way to make a Xen hypercall: where number, arguments and result are."""

    door: str
    arch: Arch
    kind: Kind
    number: int
    arguments: tuple[int, int, int, int, int]
    result: int
    width: int
    source: str


# Slots are those of hmx.trap: rax rbx rcx rdx rsi rdi r8 r9 r10 ... on x86, x0 .. x17 on Arm.
CONVENTIONS: Final = (
    Convention("hypercall", Arch.X86_64, Kind.VMCALL, 0, (5, 4, 3, 8, 6), 0, 64, "Xen public/arch-x86/xen-x86_64.h"),
    Convention("hypercall", Arch.X86_64, Kind.VMCALL, 0, (1, 2, 3, 4, 5), 0, 32, "Xen public/arch-x86/xen-x86_32.h"),
)


class DoorCost(NamedTuple):
    """What one call through a door costs by declaration: VM exits at each level, and where the figure comes from."""

    door: str
    arch: Arch
    exits: int
    source: str


DOOR_COSTS: Final = (DoorCost("hypercall", Arch.X86_64, 1, "Intel SDM vol. 3C 26.1.2: VMCALL exits unconditionally"),)


def convention(door: str, arch: Arch, width: int = 64) -> Convention:
    """The row for a door.  Raises KeyError when there is none."""
    for row in CONVENTIONS:
        if (row.door, row.arch, row.width) == (door, arch, width):
            return row
    raise KeyError(f"no register convention for door {door!r} on {arch.name} with {width}-bit registers")


def ranked(arch: Arch) -> list[str]:
    """The doors that exist on `arch`, cheapest first by declared exits; equal ones in the table's order."""
    rows = sorted((row for row in DOOR_COSTS if row.arch is arch), key=lambda row: row.exits)
    return [row.door for row in rows]
