"""Words that a guest and its hypervisor share.

Every such word has one writer for its whole life: Python has no atomic read-modify-write on shared memory.
An aligned element of a memoryview cast to "H", "I" or "Q" is loaded and stored by CPython as one access, so a
reader sees the old or the new value and never a mixture. `fence` is a full barrier (taking and releasing a
lock): it stands before every publishing store, and between arming a sleep flag and looking again.

All accesses to shared words go through the seven functions here, which keeps them easy to find and to replace.
Words are little-endian in the interface; this module refuses to load on a big-endian machine.
"""

from __future__ import annotations

import operator
import sys
from _thread import allocate_lock
from collections.abc import Callable
from typing import Final, cast

if sys.byteorder != "little":  # the casts below use the machine's own byte order
    raise ImportError("hmx.shm needs a little-endian machine")

WritableBuffer = bytearray | memoryview


def words16(buffer: WritableBuffer) -> memoryview:
    """`buffer` (writable, length a multiple of 2) as u16 words: the indices of virtqueues."""
    return memoryview(buffer).cast("B").cast("H")


def words32(buffer: WritableBuffer) -> memoryview:
    """`buffer` (writable, length a multiple of 4) as u32 words."""
    return memoryview(buffer).cast("B").cast("I")


def words64(buffer: WritableBuffer) -> memoryview:
    """`buffer` (writable, length a multiple of 8) as u64 words."""
    return memoryview(buffer).cast("B").cast("Q")


# Aliases of C functions, so that an access costs one call: (words, index) and (words, index, value).
_Load = Callable[[memoryview, int], int]
_Store = Callable[[memoryview, int, int], None]
load16: Final = cast(_Load, operator.getitem)
store16: Final = cast(_Store, operator.setitem)
load32: Final = cast(_Load, operator.getitem)
store32: Final = cast(_Store, operator.setitem)
load64: Final = cast(_Load, operator.getitem)
store64: Final = cast(_Store, operator.setitem)

_barrier = allocate_lock()


def fence() -> None:
    """Order every store before this call before every load and store after it, as seen by other processes."""
    with _barrier:
        pass
