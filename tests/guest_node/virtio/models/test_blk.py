"""The block device, one request at a time, as a driver may send it and as none should (VIRTIO 1.4, 5.2)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.virtio.models.blk import WRITABLE_MAX, BlkModel, BlkOptions
from guest_node.virtio.models.cache import WriteBackCache
from hmx.virtio.features import feature_set
from tests.doubles.virtio_stores import JournalStore, failing

SECTORS = 64
RO, BLK_SIZE, FLUSH, WCE, MQ, DISCARD, ZEROES = 5, 6, 9, 11, 12, 13, 14
ALL = feature_set(RO, BLK_SIZE, FLUSH, WCE, MQ, DISCARD, ZEROES, 32)
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"
NO_ANSWER = b""


class Chain:
    """A request whose answer is kept, with what the store had been told by then."""

    queue = 0

    def __init__(self, readable: bytes, writable: int, log: list[tuple[object, ...]] | None = None) -> None:
        self.readable: bytes | memoryview = readable
        self.writable = writable
        self.answer: bytes | None = None
        self._log = log if log is not None else []

    def complete(self, written: bytes | memoryview = b"") -> None:
        assert self.answer is None, "completed twice"
        assert len(written) <= self.writable
        self.answer = bytes(written)
        self._log.append(("answered", bytes(written[-1:])))


class Disk:
    """A model in front of a recording store, live with `features` of what it offers."""

    def __init__(self, options: BlkOptions | None = None, features: int = ALL, cache: bool = True) -> None:
        self.store = JournalStore(SECTORS * 512, bytes(range(SECTORS)) * 512)
        self.model = BlkModel(WriteBackCache(self.store) if cache else self.store, options)
        self.model.start(features & (self.model.features | feature_set(32)))

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", writable: int = 1) -> bytes:
        return self.raw(struct.pack("<IIQ", kind, 0, sector) + data, writable)

    def raw(self, readable: bytes, writable: int) -> bytes:
        chain = Chain(readable, writable, self.store.log)
        self.model.request(chain)
        assert chain.answer is not None, "a request of a block device is answered at once"
        return chain.answer


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def test_reading_and_writing() -> None:
    """5.2.6: data of the disk in 512-byte sectors; the status is the last writable byte, behind the data."""
    disk = Disk()
    assert disk.ask(1, 3, b"x" * 1024) == OK
    before = disk.store.pread(2 * 512, 512)
    assert disk.ask(0, 2, writable=4 * 512 + 1) == before + b"x" * 1024 + disk.store.pread(5 * 512, 512) + OK


@pytest.mark.parametrize(
    ("kind", "sector", "data", "writable", "status"),
    [
        (0, 0, b"", 513, OK),
        (0, 63, b"", 513, OK),
        (0, 64, b"", 513, IOERR),
        (0, 63, b"", 1025, IOERR),
        (0, (1 << 64) - 1, b"", 513, IOERR),
        (0, 0, b"", 512, IOERR),
        (0, 0, b"", 1, IOERR),
        (1, 63, bytes(512), 1, OK),
        (1, 64, bytes(512), 1, IOERR),
        (1, 63, bytes(1024), 1, IOERR),
        (1, 0, bytes(511), 1, IOERR),
        (1, 0, b"", 1, IOERR),
        (4, 0, b"", 1, OK),
        (8, 0, b"", 21, OK),
        (8, 0, b"", 20, IOERR),
        (10, 0, b"", 7, UNSUPP),
        (11, 0, segment(0, 64), 1, OK),
        (11, 0, segment(0, 65), 1, IOERR),
        (11, 0, segment(1, 64), 1, IOERR),
        (11, 0, segment(0, 1, 1), 1, UNSUPP),
        (11, 0, segment(0, 1, 2), 1, UNSUPP),
        (11, 0, b"", 1, IOERR),
        (11, 0, segment(0, 1)[:15], 1, IOERR),
        (11, 0, segment(0, 1) + b"x", 1, IOERR),
        (13, 0, segment(0, 64, 0), 1, OK),
        (13, 0, segment(0, 64, 1), 1, OK),
        (13, 0, segment(0, 1, 2), 1, UNSUPP),
        (13, 0, segment(64, 1), 1, IOERR),
        (14, 0, segment(0, 1), 1, UNSUPP),
        (2, 0, b"", 1, UNSUPP),
        (26, 0, b"", 1, UNSUPP),
        (0x80000000, 0, b"", 1, UNSUPP),
    ],
)
def test_the_status_of_a_request(kind: int, sector: int, data: bytes, writable: int, status: bytes) -> None:
    """5.2.6.2: IOERR for what the disk has not or a wrong length, UNSUPP for what it does not do or unknown flags."""
    disk = Disk()
    answer = disk.ask(kind, sector, data, writable)
    assert answer[-1:] == status
    assert len(answer) == writable
    assert disk.model.counts == {{OK: "OK", IOERR: "IOERR", UNSUPP: "UNSUPP"}[status]: 1}
    if status != OK:
        assert not disk.store.calls("pwrite", "zero", "punch")


@pytest.mark.parametrize("writable", [0, WRITABLE_MAX + 1, 1 << 32])
def test_no_place_for_a_status(writable: int) -> None:
    """5.2.6: a chain without a status byte is returned empty and counted, as is one whose status nobody can reach."""
    disk = Disk()
    assert disk.ask(1, 0, bytes(512), writable) == NO_ANSWER
    assert disk.model.counts == {"no room for a status": 1}
    assert not disk.store.log[:-1]


@pytest.mark.parametrize("size", range(16))
def test_a_header_that_is_cut_off(size: int) -> None:
    """5.2.6: 16 bytes, or an error."""
    assert Disk().raw(bytes(size), 1) == IOERR


@pytest.mark.parametrize("identity", [b"", b"disk", b"exactly-twenty-bytes"])
def test_the_identity(identity: bytes) -> None:
    """5.2.6: 20 bytes padded with NUL; 20 characters have none; the status is behind whatever room there is."""
    disk = Disk(BlkOptions(identity=identity))
    assert disk.ask(8, writable=21) == identity.ljust(20, b"\0") + OK
    assert disk.ask(8, writable=31) == identity.ljust(30, b"\0") + OK
    with pytest.raises(ValueError, match="20"):
        BlkOptions(identity=bytes(21))


@pytest.mark.parametrize(("kind", "data"), [(1, bytes(512)), (11, segment(0, 1)), (13, segment(0, 1))])
def test_a_read_only_disk(kind: int, data: bytes) -> None:
    """5.2.6.2: with RO offered a write is IOERR and changes nothing, whether the driver took RO or not."""
    for features in (ALL, ALL & ~feature_set(RO)):
        disk = Disk(BlkOptions(read_only=True), features)
        disk.model.start(features | feature_set(DISCARD, ZEROES))  # a driver that took what is not offered
        assert disk.ask(kind, 0, data) == IOERR
        assert disk.store.log == [("answered", IOERR)]
        assert disk.ask(0, 0, writable=513)[-1:] == OK


@pytest.mark.parametrize(("kind", "bit"), [(11, DISCARD), (13, ZEROES), (4, FLUSH)])
def test_requests_that_were_not_negotiated(kind: int, bit: int) -> None:
    """5.2.6.1: they do not exist then."""
    disk = Disk(features=ALL & ~feature_set(bit))
    assert disk.ask(kind, 0, segment(0, 1) if kind != 4 else b"") == UNSUPP


def test_write_zeroes() -> None:
    """5.2.6.2: afterwards the sectors read as zeros, those around them as before; all segments of a request count."""
    disk = Disk()
    disk.ask(1, 4, b"x" * 2048)
    assert disk.ask(13, 0, segment(5, 2) + segment(10, 1, 1)) == OK
    assert disk.ask(0, 4, writable=2049) == b"x" * 512 + bytes(1024) + b"x" * 512 + OK
    assert disk.ask(0, 10, writable=513) == bytes(512) + OK
    assert disk.store.calls("zero", "punch") == [("zero", 5 * 512, 1024), ("zero", 10 * 512, 512)]


def test_discard() -> None:
    """5.2.6: the store is told; a segment of no sectors says nothing."""
    disk = Disk()
    assert disk.ask(11, 0, segment(5, 0) + segment(6, 2)) == OK
    assert disk.store.calls("zero", "punch") == [("punch", 6 * 512, 1024)]


@pytest.mark.parametrize("bad", [segment(64, 1), segment(0, 33), segment(0, 1, 4)])
def test_one_bad_segment_spoils_the_request(bad: bytes) -> None:
    """Nothing is done before all segments are known to be good."""
    disk = Disk(BlkOptions(segment_sectors=32))
    assert disk.ask(13, 0, segment(0, 32) + bad) in (IOERR, UNSUPP)
    assert not disk.store.calls("zero")


def test_the_limits_of_segments() -> None:
    """5.2.4: max_*_seg segments of max_*_sectors sectors."""
    disk = Disk(BlkOptions(segment_sectors=4, segments=2))
    assert disk.ask(13, 0, segment(0, 4) * 2) == OK
    assert disk.ask(13, 0, segment(0, 4) * 3) == IOERR
    assert disk.ask(11, 0, segment(0, 5)) == IOERR


def config(model: BlkModel, offset: int, size: int) -> int:
    return int.from_bytes(model.config()[offset : offset + size], "little")


def test_configuration() -> None:
    """5.2.4: what the driver reads, at its offsets."""
    model = Disk(BlkOptions(queues=3, block_size=4096, size_max=8192, seg_max=5, segment_sectors=77, segments=9)).model
    places = {
        (0, 8): SECTORS, (8, 4): 8192, (12, 4): 5, (20, 4): 4096, (32, 1): 1, (34, 2): 3,
        (36, 4): 77, (40, 4): 9, (44, 4): 8, (48, 4): 77, (52, 4): 9, (56, 1): 1,
    }  # fmt: skip
    assert {place: config(model, *place) for place in places} == places
    assert model.queue_sizes == (128,) * 3
    bare = Disk(BlkOptions(discard=False, write_zeroes=False)).model
    assert not any(bare.config()[36:57])
    for queues, block_size in ((0, 512), (1, 256), (1, 1536)):
        with pytest.raises(ValueError, match="queue"):
            BlkOptions(queues=queues, block_size=block_size)


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        (BlkOptions(), (BLK_SIZE, FLUSH, WCE, DISCARD, ZEROES)),
        (BlkOptions(flush=False), (BLK_SIZE, DISCARD, ZEROES)),
        (BlkOptions(read_only=True), (RO, BLK_SIZE, FLUSH, WCE)),
        (BlkOptions(discard=False, write_zeroes=False), (BLK_SIZE, FLUSH, WCE)),
        (BlkOptions(queues=2, size_max=512, seg_max=1), (1, 2, BLK_SIZE, FLUSH, WCE, MQ, DISCARD, ZEROES)),
    ],
)
def test_what_is_offered(options: BlkOptions, bits: tuple[int, ...]) -> None:
    """5.2.3: only what the disk does."""
    assert Disk(options).model.features == feature_set(*bits)


class TestDurability:
    """5.2.6.2: when a write is stable."""

    def test_no_flush_is_answered_before_fdatasync_returned(self) -> None:
        """FLUSH: everything written before is on stable storage when the answer goes out."""
        disk = Disk()
        assert disk.ask(1, 3, b"x" * 512) == OK
        assert disk.store.log == [("answered", OK)]
        assert disk.ask(4) == OK
        names = [entry[0] for entry in disk.store.log]
        assert names == ["answered", "pwrite", "fdatasync begins", "fdatasync returned", "answered"]
        assert bytes(disk.store.stable[3 * 512 : 4 * 512]) == b"x" * 512

    def test_the_proof_sees_a_device_that_lies(self) -> None:
        """A model that answers before fdatasync leaves another log."""
        disk = Disk()
        disk.ask(1, 3, b"x" * 512)
        flush = disk.model._store.flush
        disk.model._store.flush = lambda: None  # type: ignore[method-assign]
        assert disk.ask(4) == OK
        assert disk.store.log[-1] == ("answered", OK)
        assert ("fdatasync returned",) not in disk.store.log
        flush()

    @pytest.mark.parametrize("fails", ["pwrite", "flush"])
    def test_an_error_of_the_flush_is_ioerr_and_not_forgotten(self, fails: str) -> None:
        """The data stay dirty: the next FLUSH brings them to the disk."""
        disk = Disk()
        disk.ask(1, 3, b"x" * 512)
        disk.store.fail = failing(fails)
        assert disk.ask(4) == IOERR
        assert bytes(disk.store.stable[3 * 512 : 4 * 512]) != b"x" * 512
        assert disk.ask(0, 3, writable=513) == b"x" * 512 + OK
        assert disk.ask(4) == OK
        assert bytes(disk.store.stable[3 * 512 : 4 * 512]) == b"x" * 512

    @pytest.mark.parametrize(("kind", "data"), [(1, b"x" * 512), (13, segment(0, 1)), (11, segment(0, 1))])
    def test_without_flush_each_change_is_stable_when_it_is_answered(self, kind: int, data: bytes) -> None:
        """Case 1: FLUSH was offered, not accepted, nor CONFIG_WCE."""
        disk = Disk(features=ALL & ~feature_set(FLUSH, WCE))
        assert config(disk.model, 32, 1) == 0
        assert disk.ask(kind, 0, data) == OK
        assert disk.store.log[-2:] == [("fdatasync returned",), ("answered", OK)]
        disk.store.fail = failing("flush")
        assert disk.ask(kind, 0, data) == IOERR

    def test_a_disk_that_offers_no_flush(self) -> None:
        """There is no moment at which a driver could ask for it."""
        disk = Disk(BlkOptions(flush=False))
        disk.ask(1, 0, b"x" * 512)
        assert disk.store.log[-2:] == [("fdatasync returned",), ("answered", OK)]

    def test_the_cache_can_be_switched_off(self) -> None:
        """Case 2: with CONFIG_WCE and writeback 0 a write is stable when it is answered."""
        disk = Disk()
        disk.ask(1, 0, b"x" * 512)
        assert disk.model.write_config(32, b"\0")
        assert disk.store.log[-1] == ("fdatasync returned",)
        assert config(disk.model, 32, 1) == 0
        disk.ask(1, 1, b"y" * 512)
        assert disk.store.log[-2:] == [("fdatasync returned",), ("answered", OK)]
        assert disk.model.write_config(32, b"\1")
        disk.ask(1, 2, b"z" * 512)
        assert disk.store.log[-1:] == [("answered", OK)]
        assert len(disk.store.calls("fdatasync returned")) == 2

    def test_a_switch_that_cannot_flush_fails(self) -> None:
        """The mode stays, and so do the data."""
        disk = Disk()
        disk.ask(1, 0, b"x" * 512)
        disk.store.fail = failing("flush")
        assert not disk.model.write_config(32, b"\0")
        assert config(disk.model, 32, 1) == 1
        assert disk.model.counts["cache mode"] == 1

    @pytest.mark.parametrize(
        ("offset", "data"), [(31, b"\0"), (33, b"\0"), (32, b"\2"), (32, b"\0\0"), (32, b""), (0, b"\0")]
    )
    def test_nothing_else_can_be_written(self, offset: int, data: bytes) -> None:
        """5.2.5.1: writeback alone, 0 or 1."""
        assert not Disk().model.write_config(offset, data)

    def test_config_wce_without_flush_stays_write_through(self) -> None:
        """5.2.5.2: writeback begins at 0, and what is said to be cached could never be flushed."""
        disk = Disk(features=ALL & ~feature_set(FLUSH))
        assert config(disk.model, 32, 1) == 0
        assert disk.model.write_config(32, b"\1")
        disk.ask(1, 0, b"x" * 512)
        assert disk.store.log[-2:] == [("fdatasync returned",), ("answered", OK)]
        assert not Disk(features=ALL & ~feature_set(WCE)).model.write_config(32, b"\0")

    def test_a_reset_drains_the_cache(self) -> None:
        """What a front end that died has written goes to the image; an error is the next FLUSH's."""
        disk = Disk()
        disk.ask(1, 0, b"x" * 512)
        disk.store.fail = failing("flush")
        disk.model.reset()
        assert disk.model.counts["reset"] == 1
        disk.model.start(ALL & disk.model.features)
        assert disk.ask(4) == OK
        assert bytes(disk.store.stable[:512]) == b"x" * 512
        disk.ask(1, 1, b"y" * 512)
        disk.model.reset()
        assert bytes(disk.store.stable[512:1024]) == b"y" * 512
        assert not disk.model.write_config(32, b"\0")

    def test_two_front_ends_of_one_disk_see_the_same(self) -> None:
        """The cache belongs to the disk, not to a front end."""
        store = JournalStore(SECTORS * 512)
        cache = WriteBackCache(store)
        models = [BlkModel(cache), BlkModel(cache)]
        for model in models:
            model.start(model.features)
        write = Chain(struct.pack("<IIQ", 1, 0, 0) + b"x" * 512, 1)
        models[0].request(write)
        read = Chain(struct.pack("<IIQ", 0, 0, 0), 513)
        models[1].request(read)
        assert read.answer == b"x" * 512 + OK


@pytest.mark.parametrize(("kind", "operation"), [(0, "pread"), (1, "pwrite"), (11, "punch"), (13, "zero")])
def test_an_error_of_the_store_is_ioerr(kind: int, operation: str) -> None:
    """5.2.6: nothing else can be said to a driver."""
    disk = Disk(cache=False)
    disk.store.fail = failing(operation)
    data: dict[int, bytes] = {1: bytes(512), 11: segment(0, 1), 13: segment(0, 1)}
    assert disk.ask(kind, 0, data.get(kind, b""), 513 if kind == 0 else 1)[-1:] == IOERR


def test_a_store_that_became_shorter() -> None:
    """An answer is as long as was asked for, or an error."""
    disk = Disk(cache=False)
    disk.store.pread = lambda offset, size: bytes(size - 1)  # type: ignore[method-assign]
    assert disk.ask(0, 0, writable=513) == bytes(512) + IOERR


@given(
    readable=st.one_of(
        st.binary(max_size=1100),
        st.builds(
            lambda kind, sector, data: struct.pack("<IIQ", kind, 0, sector) + data,
            st.integers(0, 16),
            st.one_of(st.integers(0, 70), st.integers(0, 2**64 - 1)),
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from([bytes(512), bytes(1024)]),
                st.builds(segment, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 3)),
            ),
        ),
    ),
    writable=st.one_of(st.integers(0, 1100), st.just(513)),
    features=st.integers(0, 1 << 17),
    options=st.sampled_from([BlkOptions(), BlkOptions(read_only=True), BlkOptions(flush=False, discard=False)]),
)
@settings(max_examples=400, deadline=None)
def test_no_chain_brings_it_down(readable: bytes, writable: int, features: int, options: BlkOptions) -> None:
    """Any bytes and any room: one answer, whose last byte is a status, and nothing outside the disk."""
    disk = Disk(options, features)
    answer = disk.raw(readable, writable)
    assert len(answer) == writable
    if writable:
        assert answer[-1] in (0, 1, 2)
    assert disk.store.size == SECTORS * 512


