"""Guest memory as a hypervisor reaches it, and the guest's windows (Xen common/argo.c, common/memory.c)."""

from __future__ import annotations

import mmap
import random
from struct import Struct

import pytest

from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, Access, MappedMemory, PageType, Window

EINVAL, EAGAIN, EPERM = Errno.EINVAL, Errno.EAGAIN, Errno.EPERM

# page type, readable, writable, error of a ring on it
TYPES = [
    ("ram_rw", True, True, None),
    ("ram_ro", True, False, EINVAL),
    ("logdirty", True, True, EAGAIN),
    ("mmio_direct", False, False, EPERM),
    ("paged", False, False, EAGAIN),
    ("shared", False, False, EAGAIN),
    ("invalid", False, False, EINVAL),
    ("grant", False, False, EINVAL),
]


def memory(npages: int = 4) -> tuple[bytearray, MappedMemory]:
    ram = bytearray(npages * PAGE_SIZE)
    return ram, MappedMemory(ram)


@pytest.mark.parametrize(("name", "readable", "writable", "error"), TYPES)
def test_page_types(name: str, readable: bool, writable: bool, error: Errno | None) -> None:
    """What a page of each type permits, between two ordinary ones."""
    ram, mem = memory()
    mem.set_page(1, PageType[name.upper()])
    assert mem.plain == (name == "ram_rw")
    word = Struct("<I")
    assert (mem.read(0, 0x1FFC, 8) is not None) == readable
    assert (mem.unpack(word, 0, 0x1FFC) is not None) == readable
    assert (mem.unpack(word, 0, 0x0FFE) is not None) == readable
    assert mem.readable(0, 0xFF0, 0x30) == (0x30 if readable else 0x10)
    assert mem.readable(0, 0x1000, 1) == (1 if readable else 0)
    assert mem.translate(0, 0x1234, Access.READ) == (0x1234 if readable else None)
    assert mem.translate(0, 0x1234, Access.WRITE) == (0x1234 if writable else None)
    assert mem.write(0, 0x0FFE, b"abcd") == writable
    assert bytes(ram[0x0FFE:0x1002]) == (b"abcd" if writable else b"ab\0\0")
    assert mem.read(0, 0x2000, 16) is not None
    taken = mem.ring([0, 1, 2])
    if error is None:
        assert not isinstance(taken, int)
    else:
        assert taken == -error
    mem.set_page(1, PageType.RAM_RW)
    assert mem.plain
    assert mem.write(0, 0x0FFE, b"wxyz")


def test_the_end_of_memory() -> None:
    """Beyond the last byte everything faults, and nothing raises, however large the address."""
    ram, mem = memory(1)
    for va in (PAGE_SIZE - 3, PAGE_SIZE, 1 << 63, (1 << 64) - 2):
        assert mem.read(0, va, 4) is None
        assert mem.unpack(Struct("<I"), 0, va) is None
        assert mem.translate(0, va + 3, Access.READ) is None
    assert mem.readable(0, PAGE_SIZE - 3, 8) == 3
    assert mem.readable(0, 1 << 63, 8) == 0
    assert not mem.write(0, PAGE_SIZE - 3, b"abcd")
    assert ram[-3:] == b"abc"
    assert not mem.write(0, (1 << 64) - 2, b"abcd")
    nothing = mem.read(0, PAGE_SIZE, 0)
    assert nothing is not None
    assert len(nothing) == 0


def test_views_are_live() -> None:
    """A read is a look at guest memory, not a copy."""
    ram, mem = memory(1)
    view = mem.read(0, 16, 4)
    assert view is not None
    ram[16:20] = b"live"
    assert bytes(view) == b"live"


def test_whole_pages_only() -> None:
    """Memory that is no number of pages is refused, and so is a page outside it."""
    for size in (0, 1, PAGE_SIZE + 1):
        with pytest.raises(ValueError, match="whole pages"):
            MappedMemory(bytearray(size))
    _, mem = memory(1)
    for gfn in (-1, 1):
        with pytest.raises(ValueError, match="outside"):
            mem.set_page(gfn, PageType.PAGED)


def test_no_writable_reference() -> None:
    """An ordinary page to which no writable reference can be had takes copies, not rings."""
    _, mem = memory()
    mem.set_page(1, PageType.RAM_RW, nowrite=True)
    assert mem.plain
    assert mem.write(0, PAGE_SIZE, b"x")
    assert mem.ring([0, 1]) == -EINVAL
    mem.set_page(1, PageType.RAM_RW)
    assert not isinstance(mem.ring([0, 1]), int)


@pytest.mark.parametrize(
    ("gfns", "extents"),
    [
        ([2], ((2, 1),)),
        ([2, 3, 4], ((2, 3),)),
        ([4, 3, 2], ((4, 1), (3, 1), (2, 1))),
        ([0, 1, 5, 6, 7, 3], ((0, 2), (5, 3), (3, 1))),
        ([2, 2], ((2, 1), (2, 1))),
    ],
)
def test_extents(gfns: list[int], extents: tuple[tuple[int, int], ...]) -> None:
    """Neighbouring pages collapse; only a single extent offers the data area as one view."""
    _, mem = memory(8)
    ring = mem.ring(gfns)
    assert not isinstance(ring, int)
    assert ring.extents == tuple((gfn * PAGE_SIZE, n * PAGE_SIZE) for gfn, n in extents)
    assert ring.npages == len(gfns)
    assert (ring.flat is not None) == (len(extents) == 1)


@pytest.mark.parametrize("gfns", [[2], [2, 3, 4], [6, 1, 2, 4], [5, 3]])
def test_copy_in(gfns: list[int]) -> None:
    """Whatever the layout, a copy lands where the pages laid end to end have it, and nowhere else."""
    rng = random.Random(1)
    ram, mem = memory(8)
    ring = mem.ring(gfns)
    assert not isinstance(ring, int)
    logical = bytearray(len(gfns) * PAGE_SIZE)
    area = len(logical) - 64
    for _ in range(200):
        size = rng.choice((0, 1, 16, 4095, 4096, area))
        size = min(size, area)
        offset = rng.randint(0, area - size)
        data = rng.randbytes(size)
        ring.copy_in(offset, memoryview(data) if size & 1 else data)
        logical[64 + offset : 64 + offset + size] = data
        assert b"".join(ram[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE] for gfn in gfns) == logical
    rest = set(range(8)) - set(gfns)
    assert all(not any(ram[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]) for gfn in rest)
    ring.store_tx(0x1230)
    assert ring.load_tx() == 0x1230
    ram[gfns[0] * PAGE_SIZE : gfns[0] * PAGE_SIZE + 4] = (0xFFFFFFFF).to_bytes(4, "little")
    assert ring.load_rx() == 0xFFFFFFFF
    assert ram[gfns[0] * PAGE_SIZE + 4 : gfns[0] * PAGE_SIZE + 8] == b"\x30\x12\0\0"


def test_tx_is_published_behind_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied in is visible before the pointer is."""
    _, mem = memory(1)
    ring = mem.ring([0])
    assert not isinstance(ring, int)
    seen: list[int] = []
    monkeypatch.setattr("hmx.memory.fence", lambda: seen.append(ring.load_tx()))
    ring.store_tx(16)
    assert seen == [0]
    assert ring.load_tx() == 16
    Window(bytearray(4096), 0, 4096).publish()
    assert len(seen) == 2


def test_over_a_mapping() -> None:
    """A shared mapping serves as well as a bytearray; window and hypervisor see each other's words."""
    area = mmap.mmap(-1, 4 * PAGE_SIZE)
    mem = MappedMemory(area)
    ring = mem.ring([1, 2])
    assert not isinstance(ring, int)
    window = Window(area, PAGE_SIZE, 2 * PAGE_SIZE)
    window.store32(0, 48)
    assert ring.load_rx() == 48
    ring.store_tx(96)
    assert window.load32(4) == 96
    ring.copy_in(0, b"data")
    assert window.read(64, 4) == b"data"


def test_window() -> None:
    """Words and bytes at offsets from its address; views are read-only and live."""
    ram = bytearray(2 * PAGE_SIZE)
    window = Window(ram, PAGE_SIZE, PAGE_SIZE)
    window.store32(8, 0xFFFFFFFE)
    assert ram[PAGE_SIZE + 8 : PAGE_SIZE + 12] == b"\xfe\xff\xff\xff"
    assert window.load32(8) == 0xFFFFFFFE
    window.write(100, b"hello")
    view = window.view(100, 5)
    assert view.readonly
    assert bytes(view) == window.read(100, 5) == b"hello"
    target = bytearray(5)
    assert window.read_into(100, target) == 5
    assert target == b"hello"
    window.publish()
    assert not any(ram[:PAGE_SIZE])


@pytest.mark.parametrize(("gpa", "size"), [(2, 4), (0, 6), (PAGE_SIZE - 4, 8), (-4, 4)])
def test_bad_windows(gpa: int, size: int) -> None:
    """Not on words, or beyond the memory."""
    with pytest.raises(ValueError, match="window"):
        Window(bytearray(PAGE_SIZE), gpa, size)
