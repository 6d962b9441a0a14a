"""The frame of a call through a door: registers by the door's convention, and the instruction that calls."""

from __future__ import annotations

from guest_node.vcpu import Trap
from hmx.doors import Convention
from hmx.guestside import door_call


def door_trap(row: Convention, *values: int, call: int | None = None) -> Trap:
    """The frame of one call through `row`: only as many registers as it names; `call` replaces Argo's number."""
    kind, regs, address, size, privilege, imm = door_call(row, *values, call=call)
    return Trap(kind, regs, address=address, size=size, privilege=privilege, imm=imm)
