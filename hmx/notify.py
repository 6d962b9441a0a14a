"""How a guest asks to be interrupted for Argo without event channels: operations of argo_op, experimental.

Upstream knows VIRQ_ARGO only.  A hypervisor that offers more serves the operations below; others answer -EOPNOTSUPP
to them, as upstream does.  REGISTER_RING_EX is register_ring with a message-signalled interrupt of the ring's own;
SET_NOTIFICATION chooses what is raised for rings without one, and for room in a peer's ring.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple


class NotifyOp(IntEnum):
    """Operations of argo_op beside upstream's four."""

    REGISTER_RING_EX = 0x4000_0001  # a1: REGISTER_RING_EX, a2: page frames, a3: their count, a4: register flags
    SET_NOTIFICATION = 0x4000_0002  # a1: mode, a2: vCPU, a3: vector or INTID


# aport, partner, pad, len; flags (0), address, data, pad.  The first four are register_ring's own structure.
REGISTER_RING_EX: Final = Struct("<IHHIIQII")


class Mode(IntEnum):
    """First argument of SET_NOTIFICATION."""

    VIRQ = 0
    LINE = 1
    VECTOR_PER_CPU = 2


class ModeRow(NamedTuple):
    """A way to be notified, as topologies name it: what it needs from the hypervisor."""

    name: str
    operation: NotifyOp
    mode: Mode | None  # argument of SET_NOTIFICATION
    own_vectors: bool  # rings may have vectors of their own
    feature: int  # bit in a door's DESCRIBE
    note: str


class ModeFeature(IntFlag):
    """Bits 8 and up of a door's features: the modes that the hypervisor offers."""

    VIRQ = 1 << 8
    LINE = 1 << 9
    VECTOR_PER_CPU = 1 << 10
    VECTOR_PER_RING = 1 << 11
    VECTORS_BY_PRIORITY = 1 << 12


MODES: Final = (
    ModeRow("virq", NotifyOp.SET_NOTIFICATION, Mode.VIRQ, False, ModeFeature.VIRQ, "VIRQ_ARGO by event channel: Xen's"),
    ModeRow("line", NotifyOp.SET_NOTIFICATION, Mode.LINE, False, ModeFeature.LINE, "one line for all: uXen's IRQ 7"),
    ModeRow(
        "vector-per-cpu", NotifyOp.SET_NOTIFICATION, Mode.VECTOR_PER_CPU, False, ModeFeature.VECTOR_PER_CPU,
        "a vector for each vCPU, raised where the ring was registered",
    ),
    ModeRow(
        "vector-per-ring", NotifyOp.REGISTER_RING_EX, None, True, ModeFeature.VECTOR_PER_RING,
        "a message-signalled interrupt for each ring, which several may share",
    ),
    ModeRow(
        "vectors-by-priority", NotifyOp.REGISTER_RING_EX, None, True, ModeFeature.VECTORS_BY_PRIORITY,
        "several vectors a vCPU in different priority classes, rings assigned by urgency",
    ),
)  # fmt: skip
MODE_OF: Final = {row.name: row for row in MODES}

LINE_IRQ: Final = 7  # ISA: uXen's one interrupt for all rings
FIRST_VECTOR: Final = 16
"""The lowest vector that a local APIC accepts (Intel SDM vol. 3A 10.5.2), of a ring's own or a vCPU's.

That 16 to 31 are the processor's exceptions is for a guest's kernel to mind."""
UNKNOWN_MODE: Final = 0xFFFF_FFFF
"""No mode: -EINVAL from a hypervisor that has SET_NOTIFICATION, -EOPNOTSUPP from one that has not."""
