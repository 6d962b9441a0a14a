"""The volatile write-back cache of a block device (VIRTIO 1.4, 5.2.6.2)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guest_node.virtio.models.cache import BLOCK, CACHE_SIZE, RUN_MAX, WriteBackCache
from guest_node.virtio.models.store import MemoryStore
from tests.doubles.virtio_stores import JournalStore, failing

SIZE = 64 * BLOCK


def fill(character: str, count: int = 1) -> bytes:
    """`count` sectors of one character."""
    return character.encode() * 512 * count


def test_a_write_stays_in_the_cache_until_a_flush() -> None:
    """5.2.6.2: a write is volatile until a FLUSH after it; the store is touched by nothing else."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(0, fill("a"))
    assert store.log == []
    assert cache.pread(0, 512) == fill("a")
    cache.flush()
    assert store.log[-3:] == [("pwrite", 0, 512), ("fdatasync begins",), ("fdatasync returned",)]
    assert bytes(store.stable[:512]) == fill("a")
    assert cache.dirty == 0


def test_its_size() -> None:
    """16 MiB, and what is beyond goes to the store, the oldest first."""
    assert CACHE_SIZE == 16 * 1024 * 1024
    store = JournalStore(SIZE)
    cache = WriteBackCache(store, size=32 * BLOCK)
    for number in range(32):
        cache.pwrite(number * BLOCK, bytes([number]) * BLOCK)
    assert store.log == []
    assert cache.dirty == 32
    cache.pwrite(40 * BLOCK, b"z" * BLOCK)
    assert store.log == [("pwrite", 0, 2 * BLOCK)]
    assert cache.dirty == 31
    assert cache.evictions == 2
    assert cache.pread(0, BLOCK) == bytes([0]) * BLOCK
    assert cache.pread(BLOCK, 2 * BLOCK) == bytes([1]) * BLOCK + bytes([2]) * BLOCK


def test_a_write_beyond_the_size_of_the_cache() -> None:
    """It goes through the cache, most of it into the store."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store, size=4 * BLOCK)
    data = bytes(range(256)) * (SIZE // 256)
    cache.pwrite(0, data)
    assert cache.dirty <= 4
    assert cache.pread(0, SIZE) == data
    cache.flush()
    assert bytes(store.stable) == data


def test_neighbours_are_written_at_once() -> None:
    """A flush makes long writes, up to a limit, from what came in pieces and in any order."""
    store = JournalStore(4 * RUN_MAX)
    cache = WriteBackCache(store)
    for number in reversed(range(2 * RUN_MAX // BLOCK)):
        cache.pwrite(number * BLOCK, bytes(BLOCK))
    cache.pwrite(3 * RUN_MAX + 512, fill("a"))
    cache.flush()
    assert store.calls("pwrite") == [
        ("pwrite", 0, RUN_MAX), ("pwrite", RUN_MAX, RUN_MAX), ("pwrite", 3 * RUN_MAX + 512, 512),
    ]


def test_sectors_of_a_block_that_were_not_written_are_the_store_s() -> None:
    """A cached block need not be whole."""
    store = JournalStore(SIZE, b"s" * SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(512, fill("a"))
    cache.pwrite(3 * 512, fill("b", 2))
    expected = fill("s") + fill("a") + fill("s") + fill("b", 2) + fill("s", 3)
    assert cache.pread(0, BLOCK) == expected
    assert cache.pread(4 * 512, 1024) == fill("b") + fill("s")
    cache.flush()
    assert store.calls("pwrite") == [("pwrite", 512, 512), ("pwrite", 3 * 512, 1024)]
    assert bytes(store.stable[:BLOCK]) == expected


def test_a_failed_flush_forgets_nothing() -> None:
    """After an fdatasync that failed, the kernel's pages are clean: what was written before is written again."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(0, fill("a"))
    store.fail = failing("flush")
    with pytest.raises(OSError, match="flush fails"):
        cache.flush()
    assert bytes(store.stable[:512]) == bytes(512)
    assert cache.dirty == 1
    assert cache.pread(0, 512) == fill("a")
    cache.flush()
    assert bytes(store.stable[:512]) == fill("a")


def test_a_failed_write_forgets_nothing() -> None:
    """The same where the write to the store failed."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(0, fill("a"))
    store.fail = failing("pwrite")
    with pytest.raises(OSError, match="pwrite fails"):
        cache.flush()
    assert store.calls("fdatasync begins") == []
    cache.flush()
    assert bytes(store.stable[:512]) == fill("a")


def test_an_eviction_that_fails_is_the_error_of_the_write_that_caused_it() -> None:
    """Nothing leaves the cache without being in the store."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store, size=2 * BLOCK)
    cache.pwrite(0, b"a" * 2 * BLOCK)
    store.fail = failing("pwrite")
    with pytest.raises(OSError, match="pwrite fails"):
        cache.pwrite(8 * BLOCK, b"b" * BLOCK)
    assert cache.pread(0, 2 * BLOCK) == b"a" * 2 * BLOCK
    assert cache.pread(8 * BLOCK, BLOCK) == bytes(BLOCK)
    cache.pwrite(8 * BLOCK, b"b" * BLOCK)
    cache.flush()
    assert bytes(store.stable[: 2 * BLOCK]) == b"a" * 2 * BLOCK
    assert bytes(store.stable[8 * BLOCK : 9 * BLOCK]) == b"b" * BLOCK


@pytest.mark.parametrize("how", ["evicted", "zeroed", "punched"])
def test_what_cannot_be_written_again_is_lost_for_good(how: str) -> None:
    """A flush that follows a failed one must not confirm what only the failed one could have saved."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store, size=2 * BLOCK)
    if how == "evicted":
        cache.pwrite(0, b"a" * 3 * BLOCK)
    elif how == "zeroed":
        cache.zero(0, BLOCK)
    else:
        cache.punch(0, BLOCK)
    store.fail = failing("flush")
    for message in ("flush fails", "may be lost", "may be lost"):
        with pytest.raises(OSError, match=message) as error:
            cache.flush()
        assert error.value.errno == errno.EIO


def test_what_was_flushed_before_is_not_lost() -> None:
    """Evictions before a good flush are stable: a later failure does not touch them."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store, size=2 * BLOCK)
    cache.pwrite(0, b"a" * 3 * BLOCK)
    cache.flush()
    cache.pwrite(0, b"b" * BLOCK)
    store.fail = failing("flush")
    with pytest.raises(OSError, match="flush fails"):
        cache.flush()
    cache.flush()
    assert bytes(store.stable[: 2 * BLOCK]) == b"b" * BLOCK + b"a" * BLOCK


def test_zeroing_and_punching_forget_what_was_written() -> None:
    """5.2.6.2: after WRITE_ZEROES reads return zeros, whatever was in the cache."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(0, b"a" * 3 * BLOCK)
    cache.zero(512, 2 * BLOCK)
    assert cache.pread(0, 3 * BLOCK) == fill("a") + bytes(2 * BLOCK) + fill("a", 7)
    cache.punch(0, 512)
    cache.flush()
    assert bytes(store.stable[: 3 * BLOCK]) == bytes(512 + 2 * BLOCK) + fill("a", 7)


@pytest.mark.parametrize("operation", ["zero", "punch"])
def test_zeroing_that_fails_changes_nothing(operation: str) -> None:
    """What was written is still there."""
    store = JournalStore(SIZE)
    cache = WriteBackCache(store)
    cache.pwrite(0, fill("a"))
    store.fail = failing(operation)
    with pytest.raises(OSError, match="fails"):
        getattr(cache, operation)(0, 512)
    assert cache.pread(0, 512) == fill("a")
    cache.flush()
    assert bytes(store.stable[:512]) == fill("a")


def test_a_large_range_costs_no_more_than_the_cache_holds() -> None:
    """Zeroing all of a large disk looks at what is dirty, not at every block of the range."""
    size = 1 << 40

    class Huge(MemoryStore):
        def zero(self, offset: int, size: int) -> None:
            """A file system does that in no time."""

        size = 1 << 40

    cache = WriteBackCache(Huge(0))
    cache.pwrite(1 << 39, fill("a"))
    cache.zero(0, size)
    assert cache.dirty == 0


def test_a_piece_of_a_sector_is_refused() -> None:
    """Sectors are what is valid or not."""
    cache = WriteBackCache(MemoryStore(SIZE))
    for offset, data in ((1, bytes(512)), (0, bytes(511))):
        with pytest.raises(ValueError, match="whole sectors"):
            cache.pwrite(offset, data)


class CacheMachine(RuleBasedStateMachine):
    """Writes, flushes and failures at random beside a plain array, and what a crash may leave of it."""

    SECTORS = 64

    def __init__(self) -> None:
        super().__init__()
        self.store = JournalStore(self.SECTORS * 512)
        self.cache = WriteBackCache(self.store, size=3 * BLOCK)
        self.model = bytearray(self.SECTORS * 512)
        self.durable: list[set[bytes]] = [{bytes(512)} for _ in range(self.SECTORS)]  # what each sector may be
        self.count = 0

    def _range(self, sector: int, count: int) -> tuple[int, int]:
        return sector * 512, min(count, self.SECTORS - sector) * 512

    def _changed(self, offset: int, data: bytes, ok: bool) -> None:
        for at in range(0, len(data), 512):
            self.durable[(offset + at) // 512].add(data[at : at + 512])
        if ok:
            self.model[offset : offset + len(data)] = data

    @rule(sector=st.integers(0, 63), count=st.integers(1, 20), fails=st.booleans())
    def write(self, sector: int, count: int, fails: bool) -> None:
        offset, size = self._range(sector, count)
        self.count += 1
        data = self.count.to_bytes(4, "little") * (size // 4)
        self._attempt(lambda: self.cache.pwrite(offset, data), offset, data, "pwrite" if fails else "")

    @rule(sector=st.integers(0, 63), count=st.integers(1, 64), fails=st.booleans())
    def zero(self, sector: int, count: int, fails: bool) -> None:
        offset, size = self._range(sector, count)
        self._attempt(lambda: self.cache.zero(offset, size), offset, bytes(size), "zero" if fails else "")

    def _attempt(self, operation: object, offset: int, data: bytes, fails: str) -> None:
        assert callable(operation)
        self.store.fail = failing(fails)
        try:
            operation()
        except OSError:
            self._changed(offset, data, False)
            # A failed write leaves each sector old or new: reads tell which.
            now = self.cache.pread(offset, len(data))
            for at in range(0, len(data), 512):
                old = self.model[offset + at : offset + at + 512]
                assert now[at : at + 512] in (old, data[at : at + 512])
            self.model[offset : offset + len(data)] = now
        else:
            self._changed(offset, data, True)
        self.store.fail = failing()

    @rule(fails=st.sampled_from(["", "", "flush", "pwrite"]))
    def flush(self, fails: str) -> None:
        self.store.fail = failing(fails)
        try:
            self.cache.flush()
        except OSError:
            pass
        else:
            for sector in range(self.SECTORS):
                self.durable[sector] = {bytes(self.model[sector * 512 : sector * 512 + 512])}
        self.store.fail = failing()

    @invariant()
    def reads_are_right(self) -> None:
        assert self.cache.pread(0, len(self.model)) == bytes(self.model)

    @invariant()
    def a_crash_leaves_what_was_flushed_or_later(self) -> None:
        for sector in range(self.SECTORS):
            assert bytes(self.store.stable[sector * 512 : sector * 512 + 512]) in self.durable[sector]

    @invariant()
    def it_stays_small(self) -> None:
        assert self.cache.dirty <= 3


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(offset=st.integers(0, 100), size=st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_reads_of_any_range(offset: int, size: int) -> None:
    """A read may begin and end anywhere among whole, partial and clean blocks."""
    store = MemoryStore(201 * 512, b"s" * 201 * 512)
    cache = WriteBackCache(store)
    expected = bytearray(store.pread(0, store.size))
    for start, count in ((8, 8), (17, 3), (30, 40), (100, 1)):
        cache.pwrite(start * 512, fill("c", count))
        expected[start * 512 : (start + count) * 512] = fill("c", count)
    assert cache.pread(offset * 512, size * 512) == expected[offset * 512 : (offset + size) * 512]
