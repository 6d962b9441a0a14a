"""Grant tables, version 1: a guest's list of pages that others may use, and the operations on it.

Source: Xen public/grant_table.h, docs/misc/grant-tables.txt.  One thing differs, and is experimental: the bits
GTF_reading and GTF_writing, which Xen sets in a version 1 entry by compare-exchange beside bits of the guest's, stand
in a status word of their own, as they do for version 2 (get_status_frames).  So each shared word has one writer.  The
rule of version 2 then holds: a guest that revokes stores 0 to the entry's flags, fences, and looks at the status; the
hypervisor stores the status, fences, and looks at the flags again.

Grant-DMA addresses are those of Linux drivers/xen/grant-dma-ops.c.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from hmx.memory import PAGE_SIZE


class GrantOp(IntEnum):
    """Operations of grant_table_op."""

    MAP_GRANT_REF = 0
    UNMAP_GRANT_REF = 1
    SETUP_TABLE = 2
    DUMP_TABLE = 3
    TRANSFER = 4
    COPY = 5
    QUERY_SIZE = 6
    UNMAP_AND_REPLACE = 7
    SET_VERSION = 8
    GET_STATUS_FRAMES = 9
    GET_VERSION = 10
    SWAP_GRANT_REF = 11
    CACHE_FLUSH = 12


class GrantFlag(IntFlag):
    """Flags of an entry.  READING and WRITING stand in the status word."""

    INVALID = 0
    PERMIT_ACCESS = 1
    ACCEPT_TRANSFER = 2
    TYPE_MASK = 3
    READONLY = 4
    READING = 8
    WRITING = 16


class GrantStatus(IntEnum):
    """GNTST_*: what became of one operation."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


class MapFlag(IntFlag):
    """GNTMAP_*."""

    DEVICE_MAP = 1
    HOST_MAP = 2
    READONLY = 4


class CopyFlag(IntFlag):
    """GNTCOPY_*: an end is a grant reference, else a frame of the domain that it names."""

    SOURCE_GREF = 1
    DEST_GREF = 2


class OpRow(NamedTuple):
    """An operation that is served: the layout of one element of its list."""

    op: GrantOp
    layout: str
    source: str


OPS: Final = (
    OpRow(GrantOp.MAP_GRANT_REF, "<QIIHhIQ", "grant_table.h: host_addr, flags, ref, dom, OUT status, handle, dev_bus"),
    OpRow(GrantOp.UNMAP_GRANT_REF, "<QQIhxx", "grant_table.h: host_addr, dev_bus_addr, handle, OUT status"),
    OpRow(GrantOp.SETUP_TABLE, "<HHIh6xQ", "grant_table.h: dom, pad, nr_frames, OUT status, frame_list"),
    OpRow(GrantOp.COPY, "<QHH4xQHH4xHHhxx", "grant_table.h: source, dest, len, flags, OUT status"),
    OpRow(GrantOp.QUERY_SIZE, "<HxxIIhxx", "grant_table.h: dom, OUT nr_frames, max_nr_frames, status"),
    OpRow(GrantOp.SET_VERSION, "<I", "grant_table.h: IN/OUT version"),
    OpRow(GrantOp.GET_VERSION, "<HHI", "grant_table.h: dom, pad, OUT version"),
)
LAYOUT_OF: Final = {row.op: struct.Struct(row.layout) for row in OPS}
FRAME: Final = struct.Struct("<Q")

ENTRY: Final = struct.Struct("<HHI")  # flags, domid, frame
ENTRIES_PER_FRAME: Final = PAGE_SIZE // ENTRY.size
STATUS: Final = struct.Struct("<H")
STATUSES_PER_FRAME: Final = PAGE_SIZE // STATUS.size
MAX_FRAMES: Final = 64
MAX_STATUS_FRAMES: Final = MAX_FRAMES * ENTRIES_PER_FRAME // STATUSES_PER_FRAME
RESERVED_ENTRIES: Final = 8  # the first ones, for the toolstack
MAX_OPS: Final = 512  # elements of one call that are served; the caller comes again for more

DMA_GRANT: Final = 1 << 63
_GREF_SHIFT: Final = 12


def dma_address(gref: int, offset: int = 0) -> int:
    """The address by which a device reaches byte `offset` from the start of the page that `gref` grants.

    Following grefs grant the following pages: an offset may be larger than a page.
    """
    return (DMA_GRANT | gref << _GREF_SHIFT) + offset


def split_dma(address: int) -> tuple[int, int]:
    """(gref, offset in its page) of a grant-DMA address.  ValueError for one that is none."""
    if not address & DMA_GRANT or address >> 64:
        raise ValueError(f"{address:#x} is no grant-DMA address")
    return (address & ~DMA_GRANT) >> _GREF_SHIFT, address & (PAGE_SIZE - 1)
