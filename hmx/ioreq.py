"""I/O requests: how a hypervisor hands an access of one domain to the device model in another.

The structures of a synchronisation page, the operations of dm_op, and the memory operations that a device model needs
besides.  Layouts are those of 64-bit callers, little-endian.  Sources: Xen public/hvm/ioreq.h, public/hvm/dm_op.h,
public/memory.h.  What has no source there is experimental, not upstream, and says so.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from hmx.trap import Arch


class IoreqType(IntEnum):
    """What kind of access an ioreq is."""

    PIO = 0
    COPY = 1  # MMIO
    PCI_CONFIG = 2
    TIMEOFFSET = 7
    INVALIDATE = 8


class IoreqState(IntEnum):
    """Whose turn a slot is: the hypervisor writes READY and NONE, the device model INPROCESS and RESP_READY."""

    NONE = 0
    READY = 1
    INPROCESS = 2
    RESP_READY = 3


SIZE: Final = 32
SLOTS_PER_PAGE: Final = 128
DATA_OFFSET: Final = 8
PORT_OFFSET: Final = 24
STATE_OFFSET: Final = 28
"""Of the word that holds state, direction and type: one store publishes all of them."""

_HEAD: Final = struct.Struct("<QQIII")  # addr, data, count, size, vp_eport
LAST_WORD: Final = struct.Struct("<I")  # pad u16, then state 3:0, data_is_ptr 4, dir 5, df 6 of a byte, then type
DATA: Final = struct.Struct("<Q")
SLOT: Final = struct.Struct("<QQIIII")

STATE_SHIFT: Final = 16
STATE_MASK: Final = 0xF << STATE_SHIFT
DIR_READ: Final = 1 << 21
TYPE_SHIFT: Final = 24


class Ioreq(NamedTuple):
    """One access.  `address`: guest physical, or a port.  `is_read`: the guest wants data, else `data` is what it
    writes.  `size` is 1, 2, 4 or 8 bytes, `repeat` what Xen calls count.  `port` is the vCPU's event channel, in the target's numbers.
    """

    address: int
    data: int
    size: int
    port: int
    state: int
    is_read: bool
    type: int
    repeat: int = 1


def head(address: int, data: int, size: int, port: int, count: int = 1) -> bytes:
    """The 28 bytes of a slot that come before the word with its state."""
    return _HEAD.pack(address, data, count, size, port)


def last_word(state: int, is_read: bool, kind: int) -> int:
    """The word that says whose turn it is."""
    return state << STATE_SHIFT | (DIR_READ if is_read else 0) | kind << TYPE_SHIFT


def with_state(word: int, state: int) -> int:
    """`word` with another state."""
    return word & ~STATE_MASK | state << STATE_SHIFT


def unpack(fields: tuple[int, ...]) -> Ioreq:
    """A slot, from the fields of SLOT."""
    address, data, count, size, port, word = fields
    return Ioreq(
        address, data, size, port, (word & STATE_MASK) >> STATE_SHIFT, bool(word & DIR_READ), word >> TYPE_SHIFT, count
    )


# ---- servers ----

MAX_SERVERS: Final = 8  # per target domain
MAX_RANGES: Final = 256  # per server and type


class RangeType(IntEnum):
    """What a server's range is made of (XEN_DMOP_IO_RANGE_*)."""

    PORT = 0
    MEMORY = 1
    PCI = 2


class BufIoreq(IntEnum):
    """How a server wants buffered requests handled (HVM_IOREQSRV_BUFIOREQ_*)."""

    OFF = 0
    LEGACY = 1
    ATOMIC = 2


class Dmop(IntEnum):
    """Operations of dm_op.  DMA is experimental, not upstream: the copy that was proposed in 2021 and never merged."""

    CREATE_IOREQ_SERVER = 1
    GET_IOREQ_SERVER_INFO = 2
    MAP_IO_RANGE = 3
    UNMAP_IO_RANGE = 4
    SET_IOREQ_SERVER_STATE = 5
    DESTROY_IOREQ_SERVER = 6
    TRACK_DIRTY_VRAM = 7
    SET_PCI_INTX_LEVEL = 8
    SET_ISA_IRQ_LEVEL = 9
    SET_PCI_LINK_ROUTE = 10
    MODIFIED_MEMORY = 11
    SET_MEM_TYPE = 12
    INJECT_EVENT = 13
    INJECT_MSI = 14
    MAP_MEM_TYPE = 15
    REMOTE_SHUTDOWN = 16
    RELOCATE_MEMORY = 17
    PIN_MEMORY_CACHEATTR = 18
    SET_IRQ_LEVEL = 19
    NR_VCPUS = 20
    DMA = 0x4172_0000


class DmopRow(NamedTuple):
    """One operation: the layout behind the 8 bytes of op and pad, and on which architectures it is served here.

    A `layout` of "" means that nothing is served: Xen knows the operation, these domains have no use for it.
    """

    op: Dmop
    layout: str
    x86: bool
    arm: bool
    source: str


DMOPS: Final = (
    DmopRow(Dmop.CREATE_IOREQ_SERVER, "<BBHH", True, True, "dm_op.h: handle_bufioreq, pad, OUT id"),
    DmopRow(Dmop.GET_IOREQ_SERVER_INFO, "<HHIQQ", True, True, "dm_op.h: id, flags, OUT bufioreq port, two gfns"),
    DmopRow(Dmop.MAP_IO_RANGE, "<HHIQQ", True, True, "dm_op.h: id, pad, type, start, end"),
    DmopRow(Dmop.UNMAP_IO_RANGE, "<HHIQQ", True, True, "dm_op.h: id, pad, type, start, end"),
    DmopRow(Dmop.SET_IOREQ_SERVER_STATE, "<HBB", True, True, "dm_op.h: id, enabled, pad"),
    DmopRow(Dmop.DESTROY_IOREQ_SERVER, "<HH", True, True, "dm_op.h: id, pad"),
    DmopRow(Dmop.TRACK_DIRTY_VRAM, "", True, False, "dm_op.h"),
    DmopRow(Dmop.SET_PCI_INTX_LEVEL, "", True, False, "dm_op.h"),
    DmopRow(Dmop.SET_ISA_IRQ_LEVEL, "<BB", True, False, "dm_op.h: isa_irq, level"),
    DmopRow(Dmop.SET_PCI_LINK_ROUTE, "", True, False, "dm_op.h"),
    DmopRow(Dmop.MODIFIED_MEMORY, "", True, False, "dm_op.h"),
    DmopRow(Dmop.SET_MEM_TYPE, "", True, False, "dm_op.h"),
    DmopRow(Dmop.INJECT_EVENT, "", True, False, "dm_op.h"),
    DmopRow(Dmop.INJECT_MSI, "<IIQ", True, False, "dm_op.h: data, pad, addr"),
    DmopRow(Dmop.MAP_MEM_TYPE, "", True, False, "dm_op.h"),
    DmopRow(Dmop.REMOTE_SHUTDOWN, "", True, False, "dm_op.h"),
    DmopRow(Dmop.RELOCATE_MEMORY, "", True, False, "dm_op.h"),
    DmopRow(Dmop.PIN_MEMORY_CACHEATTR, "", True, False, "dm_op.h"),
    DmopRow(Dmop.SET_IRQ_LEVEL, "<IBBH", False, True, "dm_op.h: irq, level, pad; Arm only"),
    DmopRow(Dmop.NR_VCPUS, "<I", True, True, "dm_op.h: OUT vcpus"),
    DmopRow(Dmop.DMA, "<QIII4x", True, True, "experimental: address, size, flags, endpoint; second buffer: bytes"),
)

DMOP_HEAD: Final = struct.Struct("<II")  # op, pad
DMOP_BUF: Final = struct.Struct("<QQ")  # address, size
DMOP_MAX_BUFS: Final = 2
NO_GFNS: Final = 1  # flag of GET_IOREQ_SERVER_INFO
DMA_MAX: Final = 1 << 16


class DmaFlag(IntFlag):
    """Experimental.  FETCH takes bytes from the target's memory, STORE puts them there: one of the two."""

    STORE = 1


LAYOUT_OF: Final = {row.op: struct.Struct(row.layout) for row in DMOPS if row.layout}


# ---- memory operations of a device model ----


class Memop(IntEnum):
    """Sub-operations of memory_op (Xen public/memory.h)."""

    ADD_TO_PHYSMAP = 7
    REMOVE_FROM_PHYSMAP = 15
    ADD_TO_PHYSMAP_BATCH = 23
    ACQUIRE_RESOURCE = 28


class MapSpace(IntEnum):
    """What add_to_physmap places into a domain's address space (XENMAPSPACE_*)."""

    SHARED_INFO = 0
    GRANT_TABLE = 1
    GMFN_FOREIGN = 4


GRANT_STATUS_INDEX: Final = 1 << 31
"""XENMAPIDX_grant_table_status: with MapSpace.GRANT_TABLE, a status frame instead of one of entries."""
RESOURCE_IOREQ_SERVER: Final = 0
FRAME_BUFIOREQ: Final = 0
FRAME_IOREQ: Final = 1  # and the following ones
REMOVE_FROM_PHYSMAP: Final = struct.Struct("<H6xQ")  # domid, gpfn
ADD_TO_PHYSMAP_BATCH: Final = struct.Struct("<HHHHQQQ")  # domid, space, size, foreign domid, idxs, gpfns, errs
ACQUIRE_RESOURCE: Final = struct.Struct("<HHIIIQQ")  # domid, type, id, nr_frames, flags, frame, frame_list
BATCH_INDEX: Final = struct.Struct("<Q")
BATCH_ERROR: Final = struct.Struct("<i")
EXTENDED_BASE: Final = 1 << 40
"""Where guests here place foreign and granted pages, above any RAM: an extended region (experimental choice)."""
EXTENDED_PAGES: Final = 1 << 20


# ---- where devices are ----


class WindowRow(NamedTuple):
    """The register window of a virtio-mmio device: guest physical base and its interrupt, an ISA IRQ or an INTID."""

    arch: Arch
    base: int
    irq: int
    source: str


WINDOW_SIZE: Final = 0x200
_X86: Final = "experimental: the hole below the APICs, ISA IRQs that nothing else has"
_ARM: Final = "Xen public/arch-arm.h: GUEST_VIRTIO_MMIO_BASE, SPIs 33 to 43 without the line of Argo"

# As many as fit on each machine; a device that a topology places is one of them by index.
WINDOWS: Final = (
    WindowRow(Arch.X86_64, 0xFEB0_0000, 5, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0200, 9, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0400, 10, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0600, 11, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0800, 3, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0A00, 4, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0C00, 6, _X86),
    WindowRow(Arch.X86_64, 0xFEB0_0E00, 12, _X86),
    WindowRow(Arch.AARCH64, 0x0200_0000, 33, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0200, 34, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0400, 35, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0600, 36, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0800, 37, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0A00, 38, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0C00, 40, _ARM),
    WindowRow(Arch.AARCH64, 0x0200_0E00, 41, _ARM),
)


def windows(arch: Arch) -> tuple[WindowRow, ...]:
    """The windows of a machine, in the order of their indexes."""
    return tuple(row for row in WINDOWS if row.arch is arch)
