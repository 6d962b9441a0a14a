"""The store in memory."""

from __future__ import annotations

import pytest

from guest_node.virtio.models.store import MemoryStore


def test_it_keeps_what_is_written() -> None:
    """Bytes at offsets; a punched or zeroed range reads as zeros."""
    store = MemoryStore(10, b"abcdefgh")
    assert store.size == 10
    store.pwrite(2, b"XY")
    assert store.pread(0, 10) == b"abXYefgh\0\0"
    store.zero(0, 3)
    store.punch(7, 3)
    store.flush()
    assert store.pread(0, 10) == b"\0\0\0Yefg\0\0\0"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (10, 1), (0, 11), (9, 2), (0, -1)])
def test_ranges_that_it_has_not(offset: int, size: int) -> None:
    """An error, and no growth."""
    store = MemoryStore(10)
    for operation in (store.pread, store.zero, store.punch):
        with pytest.raises(OSError, match="not in a store"):
            operation(offset, size)
    if size > 0:
        with pytest.raises(OSError, match="not in a store"):
            store.pwrite(offset, bytes(size))
    assert store.size == 10
