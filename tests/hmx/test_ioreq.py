"""Layouts and numbers of I/O requests and grants, as Xen's public headers have them (hvm/ioreq.h, hvm/dm_op.h,
memory.h, grant_table.h).
"""

from __future__ import annotations

import pytest

from hmx import grants, ioreq, xen
from hmx.grants import CopyFlag, GrantFlag, GrantOp, GrantStatus, MapFlag
from hmx.ioreq import BufIoreq, Dmop, IoreqState, IoreqType, MapSpace, Memop, RangeType
from hmx.trap import Arch


def test_a_slot_is_thirty_two_bytes() -> None:
    """addr 0, data 8, count 16, size 20, vp_eport 24, state 3:0, data_is_ptr 4, dir 5, df 6 of byte 30, type 31."""
    word = ioreq.last_word(IoreqState.INPROCESS, True, IoreqType.COPY)
    raw = ioreq.head(0x1122_3344_5566_7788, 0x99AA, 4, 7) + ioreq.LAST_WORD.pack(word)
    assert raw == bytes.fromhex("8877665544332211 AA99000000000000 01000000 04000000 07000000 0000 22 01")
    assert len(raw) == ioreq.SIZE == 32 and ioreq.SLOTS_PER_PAGE * ioreq.SIZE == 4096
    found = ioreq.unpack(ioreq.SLOT.unpack(raw))
    assert found == ioreq.Ioreq(0x1122_3344_5566_7788, 0x99AA, 4, 7, 2, True, 1, 1)
    assert ioreq.with_state(word, IoreqState.RESP_READY) == 0x0123_0000
    assert ioreq.last_word(IoreqState.READY, False, IoreqType.PIO) == 0x0001_0000
    assert (ioreq.DATA_OFFSET, ioreq.PORT_OFFSET, ioreq.STATE_OFFSET) == (8, 24, 28)


def test_numbers_of_requests() -> None:
    """Types, states, ranges, ways of buffering."""
    assert [(each.name, int(each)) for each in IoreqType] == [
        ("PIO", 0), ("COPY", 1), ("PCI_CONFIG", 2), ("TIMEOFFSET", 7), ("INVALIDATE", 8),
    ]  # fmt: skip
    assert [int(each) for each in IoreqState] == [0, 1, 2, 3]
    assert [(each.name, int(each)) for each in RangeType] == [("PORT", 0), ("MEMORY", 1), ("PCI", 2)]
    assert [(each.name, int(each)) for each in BufIoreq] == [("OFF", 0), ("LEGACY", 1), ("ATOMIC", 2)]
    assert (ioreq.MAX_SERVERS, ioreq.MAX_RANGES) == (8, 256)
    assert (xen.Hypercall.DM_OP, xen.Hypercall.GRANT_TABLE_OP, xen.EvtchnOp.BIND_INTERDOMAIN) == (41, 20, 0)
    assert xen.BIND_INTERDOMAIN.pack(1, 0, 2, 3) == bytes.fromhex("01000000 02000000 03000000")


DMOPS = {
    # op: number, the fields packed as 1, 2, 3 ..., x86, Arm
    "CREATE_IOREQ_SERVER": (1, "01 02 0300 0400", True, True),
    "GET_IOREQ_SERVER_INFO": (2, "0100 0200 03000000 0400000000000000 0500000000000000", True, True),
    "MAP_IO_RANGE": (3, "0100 0200 03000000 0400000000000000 0500000000000000", True, True),
    "UNMAP_IO_RANGE": (4, "0100 0200 03000000 0400000000000000 0500000000000000", True, True),
    "SET_IOREQ_SERVER_STATE": (5, "0100 02 03", True, True),
    "DESTROY_IOREQ_SERVER": (6, "0100 0200", True, True),
    "TRACK_DIRTY_VRAM": (7, None, True, False),
    "SET_PCI_INTX_LEVEL": (8, None, True, False),
    "SET_ISA_IRQ_LEVEL": (9, "01 02", True, False),
    "SET_PCI_LINK_ROUTE": (10, None, True, False),
    "MODIFIED_MEMORY": (11, None, True, False),
    "SET_MEM_TYPE": (12, None, True, False),
    "INJECT_EVENT": (13, None, True, False),
    "INJECT_MSI": (14, "01000000 02000000 0300000000000000", True, False),
    "MAP_MEM_TYPE": (15, None, True, False),
    "REMOTE_SHUTDOWN": (16, None, True, False),
    "RELOCATE_MEMORY": (17, None, True, False),
    "PIN_MEMORY_CACHEATTR": (18, None, True, False),
    "SET_IRQ_LEVEL": (19, "01000000 02 03 0400", False, True),
    "NR_VCPUS": (20, "01000000", True, True),
    "DMA": (0x4172_0000, "0100000000000000 02000000 03000000 04000000 00000000", True, True),
}


def test_dm_ops() -> None:
    """Numbers, structures, architectures (Arm supports 1 to 6, 19 and 20)."""
    assert {row.op.name for row in ioreq.DMOPS} == set(DMOPS) == set(Dmop.__members__)
    for row in ioreq.DMOPS:
        number, data, x86, arm = DMOPS[row.op.name]
        assert (int(row.op), row.x86, row.arm) == (number, x86, arm), row
        if data is None:
            assert row.layout == "" and row.op not in ioreq.LAYOUT_OF
        else:
            layout = ioreq.LAYOUT_OF[row.op]
            count = len(layout.unpack(bytes(layout.size)))
            assert layout.pack(*range(1, count + 1)) == bytes.fromhex(data), row
    assert (ioreq.DMOP_HEAD.size, ioreq.DMOP_BUF.size, ioreq.DMOP_MAX_BUFS) == (8, 16, 2)


def test_memory_ops() -> None:
    """add_to_physmap_batch, remove_from_physmap, acquire_resource."""
    assert [int(each) for each in Memop] == [7, 15, 23, 28]
    assert [int(each) for each in MapSpace] == [0, 1, 4]
    assert ioreq.REMOVE_FROM_PHYSMAP.pack(1, 2) == bytes.fromhex("0100 000000000000 0200000000000000")
    assert ioreq.ADD_TO_PHYSMAP_BATCH.pack(1, 4, 3, 2, 5, 6, 7) == bytes.fromhex(
        "0100 0400 0300 0200 0500000000000000 0600000000000000 0700000000000000"
    )
    assert ioreq.ACQUIRE_RESOURCE.pack(1, 0, 2, 3, 0, 4, 5) == bytes.fromhex(
        "0100 0000 02000000 03000000 00000000 0400000000000000 0500000000000000"
    )


def test_windows() -> None:
    """Eight a machine, apart, with interrupts of their own; Arm's are Xen's but for Argo's line."""
    for arch, base, irqs in (
        (Arch.X86_64, 0xFEB0_0000, (5, 9, 10, 11, 3, 4, 6, 12)),
        (Arch.AARCH64, 0x0200_0000, (33, 34, 35, 36, 37, 38, 40, 41)),
    ):
        rows = ioreq.windows(arch)
        assert [row.base for row in rows] == [base + index * 0x200 for index in range(8)]
        assert tuple(row.irq for row in rows) == irqs


GRANT_OPS = {
    "MAP_GRANT_REF": (0, "0100000000000000 02000000 03000000 0400 0500 06000000 0700000000000000"),
    "UNMAP_GRANT_REF": (1, "0100000000000000 0200000000000000 03000000 0400 0000"),
    "SETUP_TABLE": (2, "0100 0200 03000000 0400 000000000000 0500000000000000"),
    "COPY": (
        5,
        "0100000000000000 0200 0300 00000000 0400000000000000 0500 0600 00000000 0700 0800 0900 0000",
    ),
    "QUERY_SIZE": (6, "0100 0000 02000000 03000000 0400 0000"),
    "SET_VERSION": (8, "01000000"),
    "GET_VERSION": (10, "0100 0200 03000000"),
}


def test_grant_operations() -> None:
    """Structures of a 64-bit guest."""
    assert {row.op.name for row in grants.OPS} == set(GRANT_OPS)
    for op, layout in grants.LAYOUT_OF.items():
        number, data = GRANT_OPS[op.name]
        count = len(layout.unpack(bytes(layout.size)))
        assert int(op) == number and layout.pack(*range(1, count + 1)) == bytes.fromhex(data), op
    assert [int(each) for each in GrantOp] == list(range(13))
    assert grants.ENTRY.pack(1, 2, 3) == bytes.fromhex("0100 0200 03000000")
    assert (grants.ENTRIES_PER_FRAME, grants.STATUSES_PER_FRAME, grants.RESERVED_ENTRIES) == (512, 2048, 8)


def test_grant_numbers() -> None:
    """GTF_*, GNTST_*, GNTMAP_*, GNTCOPY_*."""
    names = ("PERMIT_ACCESS", "ACCEPT_TRANSFER", "READONLY", "READING", "WRITING")
    assert [int(GrantFlag[name]) for name in names] == [1, 2, 4, 8, 16]
    assert [int(each) for each in GrantStatus] == list(range(0, -14, -1))
    assert [int(each) for each in (MapFlag.DEVICE_MAP, MapFlag.HOST_MAP, MapFlag.READONLY)] == [1, 2, 4]
    assert (int(CopyFlag.SOURCE_GREF), int(CopyFlag.DEST_GREF)) == (1, 2)


def test_dma_addresses() -> None:
    """Bit 63, reference, offset (Linux grant-dma-ops.c); offsets run on into the following references."""
    assert grants.dma_address(5, 0x123) == 0x8000_0000_0000_5123
    assert grants.split_dma(grants.dma_address(5, 0x1123)) == (6, 0x123)
    for wrong in (0x5123, 1 << 64, 1 << 62):
        with pytest.raises(ValueError, match="no grant-DMA address"):
            grants.split_dma(wrong)
