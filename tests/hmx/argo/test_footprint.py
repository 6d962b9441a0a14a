"""What a call touches, from its arguments alone."""

from __future__ import annotations

import pytest

from hmx.argo.abi import IOV, IOV_COMPAT, RING_DATA
from hmx.argo.footprint import Footprint, footprint
from hmx.memory import PAGE_SIZE, MappedMemory

RAM = bytearray(4 * PAGE_SIZE)
MEMORY = MappedMemory(RAM)
END = len(RAM)

for index, (va, size) in enumerate([(0x2000, 100), (0, 0), (0x3000, 7)]):
    IOV.pack_into(RAM, 0x100 + 16 * index, va, size, 0)
    IOV_COMPAT.pack_into(RAM, 0x200 + 12 * index, va, size, 0)
RING_DATA.pack_into(RAM, 0x300, 2, 0)
RING_DATA.pack_into(RAM, 0x400, 257, 0)
RING_DATA.pack_into(RAM, 0x500, 256, 0)

NOTHING: Footprint = ((), ())


@pytest.mark.parametrize(
    ("cmd", "args", "expected"),
    [
        (1, (0x40, 0x80, 3, 0), (((0x40, 12), (0x80, 24)), ())),
        (1, (0x40, 0x80, 4097, 0), NOTHING),
        (2, (0x40, 0, 0, 0), (((0x40, 8),), ())),
        (3, (0x40, 0x100, 3, 0), (((0x40, 16), (0x100, 48), (0x2000, 100), (0x3000, 7)), ())),
        (3, (0x40, 0x100, 0, 0), (((0x40, 16),), ())),
        (3, (0x40, 0x100, 9, 0), (((0x40, 16),), ())),
        (3, (0x40, END - 8, 1, 0), (((0x40, 16), (END - 8, 16)), ())),
        (4, (0, 0, 0, 0), NOTHING),
        (
            4,
            (0x300, 0, 0, 0),
            (((0x300, 8), (0x308, 40)), ((0x310, 2), (0x318, 4), (0x324, 2), (0x32C, 4))),
        ),
        (4, (0x400, 0, 0, 0), (((0x400, 8),), ())),
        (4, (0x900, 0, 0, 0), (((0x900, 8),), ())),
        (4, (END, 0, 0, 0), (((END, 8),), ())),
        (5, (1, 2, 3, 4), NOTHING),
    ],
)
def test_footprints(cmd: int, args: tuple[int, ...], expected: Footprint) -> None:
    """Reads and writes of each operation; a structure that cannot be read ends the list."""
    assert footprint(cmd, args, MEMORY) == expected


def test_256_entries() -> None:
    """The most that notify answers."""
    reads, writes = footprint(4, (0x500, 0, 0, 0), MEMORY)
    assert reads == ((0x500, 8), (0x508, 256 * 20))
    assert len(writes) == 512


def test_compat() -> None:
    """A 32-bit x86 caller's iovs have 12 bytes."""
    reads, _ = footprint(3, (0x40, 0x200, 3, 0), MEMORY, compat=True)
    assert reads == ((0x40, 16), (0x200, 36), (0x2000, 100), (0x3000, 7))
