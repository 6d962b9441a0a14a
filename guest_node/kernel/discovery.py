"""What a guest finds of uXen's storage: units by a port bitmap, each a v4v port of the device model (uXen uxenstor)."""

from __future__ import annotations

from typing import Final

from guest_node.vcpu import Trap, Vcpu
from hmx.trap import Kind, Outcome
from hmx.uxen_enum import BITMAP_PORT, STORAGE_PORT, answered, units_for

_WORD: Final = 2


async def storage_ports(vcpu: Vcpu) -> tuple[int, ...]:
    """The v4v ports of the storage units that are there, as uXen's Linux driver looks for them: one 16-bit IN.

    () where the port answers all ones: no uXen.
    """
    done = await vcpu.trap(Trap(Kind.IN, (0,), address=BITMAP_PORT, size=_WORD))
    if done.outcome != Outcome.DONE:
        return ()
    data = (done.regs[0] & 0xFFFF).to_bytes(_WORD, "little")
    return tuple(STORAGE_PORT + unit for unit in units_for("linux", data)) if answered(data) else ()
