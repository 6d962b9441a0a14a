"""One v4v call is bounded, whatever counts a guest passes (experimental; errnos as Xen common/argo.c has them)."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.v4v.abi import DOMID_DM, IOV, RING_DATA, RING_DATA_ENT, Op
from hmx.v4v.layout import ring_data
from hv_node.v4v.limits import LIMITS
from tests.hv_node.v4v.language import World
from tests.hv_node.v4v.world import ARGS, DATA, IOVS

HUGE = (0xFFFF_FFFF, 0x8000_0000, 1 << 20, 1025)


class Counting(MappedMemory):
    """RAM that counts how often a structure is read."""

    __slots__ = ("reads",)
    reads: int

    def unpack(self, layout: struct.Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        self.reads += 1
        return super().unpack(layout, ctx, va)


def world(pages: int = 256) -> tuple[World, Counting]:
    """Guest 1 with 1 MiB of counted RAM and a ring of its own; the host has one for it."""
    made = World()
    made.run("register g1 port=5 partner=DM len=64; register host port=7 partner=g1 len=64")
    old = made.ram[1]
    made.ram[1] = bytearray(pages * PAGE_SIZE)
    made.ram[1][: len(old)] = old
    memory = Counting(made.ram[1])
    memory.reads = 0
    made.domain(1).memory = memory
    return made, memory


def test_the_bounds() -> None:
    """1024 of each, and the errnos of Argo, whose own bounds are 256 and 8."""
    assert [(row.op, row.what, row.most, row.errno) for row in LIMITS] == [
        ("notify", "entries", 1024, Errno.EACCES), ("sendv", "iovs", 1024, Errno.EINVAL),
    ]  # fmt: skip


@pytest.mark.parametrize("count", HUGE)
def test_notify_refuses_more_than_1024_entries_unseen(count: int) -> None:
    """-EACCES; not one entry is read, and none is written."""
    made, memory = world()
    made.put(1, DATA, ring_data([])[:8] + count.to_bytes(4, "little"))
    before = bytes(made.ram[1])
    assert made.op(1, Op.NOTIFY, DATA) == -Errno.EACCES
    assert memory.reads == 2 and made.ram[1] == before


def test_notify_takes_1024_entries() -> None:
    """All of them are answered, one read each."""
    made, memory = world()
    entry = RING_DATA_ENT.pack(7, DOMID_DM, 0, 0, 0)
    made.put(1, DATA, ring_data([])[:8] + (1024).to_bytes(4, "little") + bytes(36) + entry * 1024)
    assert made.op(1, Op.NOTIFY, DATA) == 0
    assert memory.reads == 2 + 1024
    assert made.ram[1][DATA + RING_DATA.size + 1023 * 16 + 6] == 0x0A


def test_the_wake_up_pass_comes_first() -> None:
    """uXen notify: who waits on the caller's rings is signalled before any argument is judged, refused or not."""
    made, _ = world()
    made.run("send host to=g1:5 bytes=16; send host to=g1:5 bytes=16")
    ring = made.ring(1, 5, 0)
    assert ring is not None and ring.pending
    ring.tx = 0  # as after a drain: rx and tx meet
    made.put(1, DATA, ring_data([])[:8] + (0xFFFF_FFFF).to_bytes(4, "little"))
    del made.signals[:]
    assert made.op(1, Op.NOTIFY, DATA) == -Errno.EACCES
    assert made.signals == [0] and not ring.pending


@pytest.mark.parametrize("count", HUGE)
def test_sendv_refuses_more_than_1024_iovs_unseen(count: int) -> None:
    """-EINVAL, even where every iov is empty: not one is read."""
    made, memory = world()
    made.put(1, ARGS, struct.pack("<IH2xIH", 9, 0, 7, DOMID_DM))
    assert made.op(1, Op.SENDV, ARGS, ARGS + 8, IOVS, count, 1) == -Errno.EINVAL
    assert memory.reads == 2


def test_sendv_takes_1024_iovs() -> None:
    """Empty ones but the last: its bytes arrive; each iov is read twice, as uXen does."""
    made, memory = world()
    made.put(1, ARGS, struct.pack("<IH2xIH", 9, 0, 7, DOMID_DM))
    made.put(1, DATA, IOV.pack(0, 0) * 1023 + IOV.pack(0x9000, 4))
    assert made.op(1, Op.SENDV, ARGS, ARGS + 8, DATA, 1024, 1) == 4
    assert memory.reads == 2 + 2 * 1024


def test_bounds_come_after_what_precedes_them() -> None:
    """A forbidden destination, a missing ring, a placeholder: each answers as before, whatever the count."""
    made, _ = world()
    made.put(1, ARGS, struct.pack("<IH2xIH", 9, 0, 7, 2))
    assert made.op(1, Op.SENDV, ARGS, ARGS + 8, IOVS, 0xFFFF_FFFF, 1) == -Errno.EPERM
    made.put(1, ARGS, struct.pack("<IH2xIH", 9, 0, 8, DOMID_DM))
    assert made.op(1, Op.SENDV, ARGS, ARGS + 8, IOVS, 0xFFFF_FFFF, 1) == -Errno.ECONNREFUSED


@pytest.mark.parametrize("op", ["notify", "sendv"])
def test_no_call_takes_long(op: str) -> None:
    """The worst accepted call and a refused one: far below the seconds that 2^20 entries took."""
    made, _ = world(1024)
    entry = RING_DATA_ENT.pack(7, DOMID_DM, 0, 1 << 30, 0)
    made.put(1, ARGS, struct.pack("<IH2xIH", 9, 0, 7, DOMID_DM))
    for count in (1024, 1 << 17):
        if op == "notify":
            made.put(1, DATA, ring_data([])[:8] + count.to_bytes(4, "little") + bytes(36) + entry * count)
            begin = time.process_time()
            made.op(1, Op.NOTIFY, DATA)
        else:
            made.put(1, DATA, IOV.pack(0, 0) * count)
            begin = time.process_time()
            made.op(1, Op.SENDV, ARGS, ARGS + 8, DATA, count, 1)
        assert time.process_time() - begin < 0.1
