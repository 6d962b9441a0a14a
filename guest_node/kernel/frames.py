"""The frame of a call through a door: registers by the door's convention, and the instruction that calls."""

from __future__ import annotations

from guest_node.vcpu import Trap
from hmx.doors import DOOR_SIZE, Convention
from hmx.trap import Arch, Kind


def door_trap(row: Convention, *values: int, call: int | None = None) -> Trap:
    """The frame of one call through `row`: only as many registers as it names; `call` replaces Argo's number."""
    regs = [0] * (max(row.number, row.result, *row.arguments) + 1)
    regs[row.number] = row.call if call is None else call
    for slot, value in zip(row.arguments, values, strict=False):
        regs[slot] = value
    immediate = row.selector if row.kind in (Kind.HVC, Kind.SMC) else 0
    size = DOOR_SIZE if row.kind in (Kind.IN, Kind.STORE) else 0
    privilege = 1 if row.arch is Arch.AARCH64 else 0
    address = 0 if immediate else row.selector
    return Trap(row.kind, tuple(regs), address=address, size=size, privilege=privilege, imm=immediate)
