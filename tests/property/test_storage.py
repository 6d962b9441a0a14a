"""A disk whose process or machine dies at any moment, against a model of what may be left of it.

Source: VIRTIO 1.4, 5.2.6.2: what an answered FLUSH covers is on stable storage, each other sector is old or new.  The
back end is the real one, the block device's model over its write-back cache; below it is a store that dies in any of
its calls or fails, above it a driver whose requests are carried out in any order.  Back ends that break the rule, each
in a way of its own, show that the model notices.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from guest_node.virtio.models.blk import BlkModel
from guest_node.virtio.models.cache import BLOCK, WriteBackCache
from guest_node.virtio.models.store import Store
from hmx.virtio.blk import SEGMENT, BlkFeature, BlkType
from hmx.virtio.features import feature_set
from tests.doubles.broken_caches import BROKEN
from tests.doubles.crash_store import SECTOR, CrashStore, Died
from tests.doubles.disk_model import DiskModel, Wrong

SECTORS = 48
CACHE = 3 * BLOCK
TAKEN = feature_set(BlkFeature.FLUSH, BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES)
OK = b"\0"
ZEROS = bytes(SECTOR)

Back = Callable[[Store], Store]
"""From the store to what the device model gets in front of it."""


def honest(store: Store) -> Store:
    return WriteBackCache(store, size=CACHE)


# ---- what a driver does ----


class Ask(NamedTuple):
    """One request."""

    kind: BlkType
    sector: int = 0
    sectors: int = 1


class Batch(NamedTuple):
    """Requests that are submitted together; they are carried out in any order.  `kept`: so many, then a reset."""

    asks: tuple[Ask, ...]
    kept: int | None = None


class Trouble(NamedTuple):
    """From now on: after `die_in` more calls the process dies, and with it the machine; or the next call fails."""

    die_in: int = 0
    machine: bool = False
    fails: str = ""


Plan = list[Batch | Trouble]

KINDS = (
    BlkType.IN, BlkType.OUT, BlkType.OUT, BlkType.OUT, BlkType.WRITE_ZEROES, BlkType.FLUSH,
    BlkType.DISCARD,
)  # fmt: skip
asks = st.builds(Ask, st.sampled_from(KINDS), st.integers(0, SECTORS - 1), st.sampled_from((1, 2, 3, 9, 20)))
batches = st.lists(asks, min_size=1, max_size=4).flatmap(
    lambda found: st.builds(Batch, st.just(tuple(found)), st.one_of(st.none(), st.none(), st.integers(0, len(found))))
)
troubles = st.one_of(
    st.builds(Trouble, st.integers(0, 12), st.booleans()),
    st.builds(Trouble, fails=st.sampled_from(("flush", "pwrite", "zero", "punch"))),
)
plans = st.tuples(
    st.lists(st.one_of(batches, batches, batches, troubles), min_size=1, max_size=14), st.integers(0, 1 << 16)
)


class Chain:
    """A request as a device model gets it."""

    queue = 0

    def __init__(self, readable: bytes, writable: int) -> None:
        self.readable: bytes | memoryview = readable
        self.writable = writable
        self.answer = b""

    def complete(self, written: bytes | memoryview = b"") -> None:
        assert not self.answer, "completed twice"
        self.answer = bytes(written)


class Torture:
    """One disk through all its lives.  `complaints`: what the model does not allow."""

    def __init__(self, back: Back, seed: int, store: type[CrashStore] = CrashStore) -> None:
        self.known = DiskModel(SECTORS, ZEROS)
        self.complaints: list[Wrong] = []
        self.lives = 0
        self._back = back
        self._store = store
        self._chance = random.Random(seed)
        self._machine = False
        self._writes = 0
        self._live(bytes(SECTORS * SECTOR))

    def run(self, plan: Plan) -> list[Wrong]:
        """Carry it out, and let the machine die at its end."""
        for step in plan:
            if isinstance(step, Trouble):
                if step.fails:
                    self.store.fails = step.fails
                else:
                    self.store.die_in, self._machine = step.die_in, step.machine
                continue
            try:
                self._batch(step)
            except Died:
                self._die(self._machine)
        self._die(machine=True)
        return self.complaints

    def _batch(self, batch: Batch) -> None:
        pending = [self._submit(ask) for ask in batch.asks]
        self._chance.shuffle(pending)
        for number, (chain, told) in enumerate(pending):
            if number == batch.kept:
                break
            self.model.request(chain)
            told(chain.answer)
        if batch.kept is not None:
            self.model.reset()
            self.model.start(TAKEN)
            self.known.reset()

    def _submit(self, ask: Ask) -> tuple[Chain, Callable[[bytes], None]]:
        """The request, with what tells the model of its answer."""
        known, sector = self.known, ask.sector
        count = min(ask.sectors, SECTORS - sector)
        header = struct.pack("<IIQ", ask.kind, 0, sector)
        if ask.kind == BlkType.FLUSH:
            flush = known.flush_begins()
            return Chain(header, 1), lambda answer: known.flush_ends(flush, answer == OK)
        if ask.kind == BlkType.IN:
            read = known.read_begins(sector, count)
            return Chain(header, count * SECTOR + 1), lambda answer: self._was_read(read, answer)
        if ask.kind == BlkType.OUT:
            self._writes += 1
            values = [struct.pack("<II", self._writes, at) * (SECTOR // 8) for at in range(sector, sector + count)]
            data = b"".join(values)
        else:
            values = [ZEROS] * count
            header, data = struct.pack("<IIQ", ask.kind, 0, 0), SEGMENT.pack(sector, count, 0)
        begins = known.discard_begins if ask.kind == BlkType.DISCARD else known.write_begins
        write = begins(sector, values)
        return Chain(header + data, 1), lambda answer: known.write_ends(write, answer == OK)

    def _was_read(self, read: int, answer: bytes) -> None:
        data = answer[:-1]
        values = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        self.complaints += self.known.read_ends(read, values if answer[-1:] == OK else None)

    def _die(self, machine: bool) -> None:
        image = self.store.left(machine=machine)
        found = [image[at : at + SECTOR] for at in range(0, len(image), SECTOR)]
        self.complaints += self.known.wrong(found)
        self.known.reset(lost=True)
        self._live(image)

    def _live(self, image: bytes) -> None:
        self.lives += 1
        self.store = self._store(image, self._chance)
        self.model = BlkModel(self._back(self.store))
        self.model.start(TAKEN)


@given(plans)
@settings(max_examples=250)
def test_a_disk_that_dies_at_any_moment(plan: tuple[Plan, int]) -> None:
    """Whatever dies and whenever: the model allows what is left, and every read."""
    steps, seed = plan
    assert Torture(honest, seed).run(steps) == []


@pytest.mark.long
@given(plans)
@settings(max_examples=3000)
def test_a_disk_that_dies_at_any_moment_very_often(plan: tuple[Plan, int]) -> None:
    """The same, more of it."""
    steps, seed = plan
    assert Torture(honest, seed).run(steps) == []


# ---- what the model must notice ----


EVICTED_AND_FAILED: Plan = [
    *(Batch((Ask(BlkType.OUT, sector, 16),)) for sector in (0, 16, 32)),
    Trouble(fails="flush"),
    Batch((Ask(BlkType.FLUSH),)),
    Batch((Ask(BlkType.FLUSH),)),
]
"""Chance alone comes here seldom: more than the cache holds, and two flushes of which the first fails."""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_back_end_is_caught(broken: type[WriteBackCache]) -> None:
    """There is a history in which the model complains, and it is soon found; the honest back end passes it."""

    def caught(plan: tuple[Plan, int]) -> bool:
        steps, seed = plan
        return bool(Torture(partial(broken, size=CACHE), seed).run(steps))

    likely = st.one_of(plans, st.tuples(st.just(EVICTED_AND_FAILED), st.integers(0, 1 << 16)))
    steps, seed = find(likely, caught, settings=settings(max_examples=3000, phases=[Phase.generate], database=None))
    assert Torture(honest, seed).run(steps) == []


class TearsASector(CrashStore):
    """Half of a sector is new: a disk whose sectors are not written as one."""

    def left(self, *, machine: bool) -> bytes:
        image = super().left(machine=machine)
        for sector, values in self._since.items():
            middle, end = sector * SECTOR + SECTOR // 2, (sector + 1) * SECTOR
            image = image[:middle] + values[-1][SECTOR // 2 :] + image[end:]
        return image


def test_a_torn_sector_is_caught() -> None:
    """Each sector is old or new, as a whole."""

    def caught(plan: tuple[Plan, int]) -> bool:
        steps, seed = plan
        return bool(Torture(honest, seed, TearsASector).run(steps))

    find(plans, caught, settings=settings(max_examples=3000, phases=[Phase.generate], database=None))


# ---- the model by itself ----


def test_what_a_flush_covers() -> None:
    """5.2.6.2: what was answered before it was submitted; what came between its begin and its end, not."""
    known = DiskModel(2, 0)
    first = known.write_begins(0, [1, 1])
    known.write_ends(first)
    second = known.write_begins(0, [2])
    flush = known.flush_begins()
    known.write_ends(second)
    third = known.write_begins(1, [3])
    known.flush_ends(flush)
    assert (known.possible(0), known.possible(1)) == ((1, 2), (1, 3))
    known.write_ends(third)
    known.flush_ends(known.flush_begins())
    assert (known.possible(0), known.possible(1)) == ((2,), (3,))
    assert [wrong.sector for wrong in known.wrong([1, 3])] == [0]
    assert known.wrong([2, 3]) == [] and known.unsure() == 0


def test_what_is_not_covered() -> None:
    """A flush that failed, a write that failed, and one whose answer was lost with the device."""
    known = DiskModel(4, 0)
    for sector in range(4):
        write = known.write_begins(sector, [sector + 1])
        if sector < 2:
            known.write_ends(write, ok=sector == 0)
    known.flush_ends(known.flush_begins(), ok=False)
    assert [known.possible(sector) for sector in range(3)] == [(0, 1), (0, 2), (0, 3)]
    known.reset(lost=True)
    known.flush_ends(known.flush_begins())
    assert [known.possible(sector) for sector in range(4)] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    known.write_ends(known.write_begins(0, [9, 9, 9]))
    known.flush_ends(known.flush_begins())
    assert [known.possible(sector) for sector in range(4)] == [(9,), (9,), (9,), (0, 4)]


def test_writes_at_the_same_time_come_in_any_order() -> None:
    """Both were answered before the flush: either may have been the last one; what was before both is gone."""
    known = DiskModel(1, 0)
    one, two = known.write_begins(0, [1]), known.write_begins(0, [2])
    known.write_ends(two)
    known.write_ends(one)
    known.flush_ends(known.flush_begins())
    assert known.possible(0) == (1, 2)


def test_what_a_discard_leaves() -> None:
    """What was stable, or nothing; what was volatile is not sure any more, nor what is written beside it."""
    known = DiskModel(2, 0)
    known.write_ends(known.write_begins(0, [1, 1]))
    known.flush_ends(known.flush_begins())
    known.write_ends(known.write_begins(0, [2]))
    beside = known.write_begins(1, [3])
    discard = known.discard_begins(0, [0, 0])
    known.write_ends(beside)
    for value in (0, 1, 2):
        assert known.read_ends(known.read_begins(0, 1), [value]) == []
    known.write_ends(discard)
    known.flush_ends(known.flush_begins())
    assert (set(known.possible(0)), set(known.possible(1))) == ({0, 1, 2}, {0, 1, 3})
    known.write_ends(known.write_begins(0, [4, 4]))
    assert len(known.read_ends(known.read_begins(0, 2), [0, 1])) == 2
    known.flush_ends(known.flush_begins())
    assert (known.possible(0), known.possible(1)) == ((4,), (4,))


def test_what_a_read_may_see() -> None:
    """What was answered before it was submitted, unless the device lost it; or what is under way beside it."""
    known = DiskModel(1, 0)
    known.write_ends(known.write_begins(0, [1]))
    read = known.read_begins(0, 1)
    beside = known.write_begins(0, [2])
    assert known.read_ends(read, [2]) == []
    read = known.read_begins(0, 1)
    known.write_ends(beside)
    assert known.read_ends(read, [1]) == []
    assert str(known.read_ends(known.read_begins(0, 1), [1])[0]) == "a read: sector 0 holds 1, not 2"
    assert known.read_ends(known.read_begins(0, 1), None) == []
    known.reset()
    assert len(known.read_ends(known.read_begins(0, 1), [1])) == 1, "a reset loses nothing"
    known.reset(lost=True)
    assert [known.read_ends(known.read_begins(0, 1), [value]) for value in (0, 1, 2)] == [[], [], []]
