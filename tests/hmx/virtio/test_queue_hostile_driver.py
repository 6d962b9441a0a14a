"""What a driver can do to a device's end of a virtqueue: each rule that it may break, and what is said of it.

A broken queue stays broken, whatever the memory says later: only a reset, which makes a new end, revives it.
"""

from __future__ import annotations

import pytest

from hmx.virtio.chain import QueueBroken
from tests.hmx.virtio.queue_rig import IN_ORDER, IND, INDIRECT, PACKED, A, N, Rig, U, W, broken

TABLE = 0x20000


# -- a device and its driver, split ----


@pytest.mark.parametrize(
    ("descriptors", "words"),
    [
        ([(0x1000, 8, N, 1), (0x1000, 8, N, 0)], "more than 4 descriptors, or a loop"),
        ([(0x1000, 8, N, 0)], "loop"),
        ([(0x1000, 8, N, 4)], "goes on at 4 in a queue of 4"),
        ([(0x1000, 8, N, 0xFFFF)], "goes on at 65535"),
        ([(0x1000, 0, 0, 0)], "descriptor 0 has no bytes"),
        ([(0x1000, 1, N, 2), (0, 0, 0, 0), (0x1000, 0, W, 0)], "descriptor 2 has no bytes"),
        ([(0x1000, 8, W | N, 1), (0x1000, 8, 0, 0)], "readable descriptor 1 comes after"),
        ([(0x1000, 0xFFFF_FFFF, N, 1), (0x1000, 2, 0, 0)], r"4294967297 bytes; 2\^32"),
        ([(0x1000, 0xFFFF_FFFF, W | N, 1), (0x1000, 2, W, 0)], r"4294967297 bytes; 2\^32"),
        ([(TABLE, 16, IND | N, 1), (0x1000, 1, 0, 0)], "INDIRECT and has a NEXT"),
        ([(TABLE, 0, IND, 0)], "table of chain 0 has 0 bytes"),
        ([(TABLE, 15, IND, 0)], "has 15 bytes"),
        ([(TABLE, 33, IND, 0)], "has 33 bytes"),
        ([(0xF_FFF8, 16, IND, 0)], "16 bytes at 0xffff8 are outside"),
        ([((1 << 64) - 16, 32, IND, 0)], "outside"),
    ],
)
def test_a_chain_that_breaks_a_rule(descriptors: list[tuple[int, int, int, int]], words: str) -> None:
    """VIRTIO 2.7.4.2, 2.7.5.2, 2.7.5.3.1."""
    rig = Rig(4, INDIRECT)
    for index, descriptor in enumerate(descriptors):
        rig.describe(index, *descriptor)
    rig.describe(0, 0x1000, 8, 0, 0, TABLE)
    rig.describe(1, 0x1000, 8, 0, 0, TABLE)
    rig.offer(0)
    device = rig.device()
    broken(words, device.pop, device.publish, lambda: device.want_notifications(True))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(0x1000, 8, N, 1), (0x1000, 8, N, 0)], "more than 2 links, or a loop"),
        ([(0x1000, 8, N, 2), (0x1000, 8, 0, 0)], "goes on at 2 of 2"),
        ([(0x1000, 8, IND, 0), (0x1000, 8, 0, 0)], "entry 0 .* INDIRECT again"),
        ([(0x1000, 8, N, 1), (0x1000, 0, 0, 0)], "entry 1 .* no bytes"),
        ([(0x1000, 8, W | N, 1), (0x1000, 8, 0, 0)], "entry 1 .* readable after a writable"),
        ([(0x1000, 0xFFFF_FFFF, N, 1), (0x1000, 2, 0, 0)], r"2\^32"),
    ],
)
def test_a_table_that_breaks_a_rule(entries: list[tuple[int, int, int, int]], words: str) -> None:
    """VIRTIO 2.7.5.3.1; the direct descriptor before the table counts with it."""
    for before in (False, True):
        rig = Rig(4, INDIRECT)
        for index, entry in enumerate(entries):
            rig.describe(index, *entry, TABLE)
        rig.describe(1, TABLE, 32, IND, 0)
        rig.describe(2, 0x1000, 1, N, 1)
        rig.offer(2 if before else 1)
        broken(words, rig.device().pop)


def test_readable_in_a_table_after_writable_before_it() -> None:
    """Readable comes before writable in the whole chain (VIRTIO 2.7.4.2)."""
    rig = Rig(4, INDIRECT)
    rig.describe(0, 0x1000, 1, W | N, 1)
    rig.describe(1, TABLE, 16, IND, 0)
    rig.describe(0, 0x1000, 8, 0, 0, TABLE)
    rig.offer(0)
    broken("entry 0 .* readable after a writable", rig.device().pop)


@pytest.mark.parametrize("packed", [False, True])
def test_indirect_was_not_negotiated(packed: bool) -> None:
    """VIRTIO 2.7.5.3.1, 2.8.19."""
    rig = Rig(4, PACKED if packed else 0)
    rig.describe(0, 0x1000, 8, 0, 0, TABLE)
    rig.describe(0, TABLE, 16, 0 if packed else IND, IND | A if packed else 0)
    rig.offer(0)
    broken("not negotiated", rig.device().pop)


def test_heads_and_indexes() -> None:
    """A head is a descriptor of the table; a chain is the device's until it returns it; never more than the queue
    holds (VIRTIO 2.7.6, 2.7.13).
    """
    for head in (4, 5, 0xFFFF):
        rig = Rig(4)
        rig.describe(0, 0x1000, 8, 0, 0)
        rig.offer(head)
        broken(f"head {head} in a queue of 4", rig.device().pop)
    rig = Rig(4)
    rig.describe(0, 0x1000, 8, 0, 0)
    rig.offer(0, 0)
    device = rig.device()
    assert device.pop()
    broken("chain 0 was made available again", device.pop)
    for ahead in (5, 0x8000, 0xFFFF):
        rig = Rig(4)
        rig.avail_idx = ahead
        broken(f"from 0 to {ahead}, though at most 4", rig.device().pop)


def test_what_the_device_holds_counts() -> None:
    """Chains that were not returned, or not yet published, occupy the queue."""
    rig = Rig(2)
    rig.describe(0, 0x1000, 8, 0, 0)
    rig.describe(1, 0x1000, 8, 0, 0)
    rig.offer(0, 1)
    device = rig.device()
    chains = [device.pop(), device.pop()]
    assert chains[0]
    device.push(chains[0], 0)
    rig.offer(0)
    broken("from 2 to 3, though at most 0", device.pop)
    rig = Rig(2, IN_ORDER)
    rig.describe(0, 0x1000, 8, 0, 0)
    rig.describe(1, 0x1000, 8, 0, 0)
    rig.offer(0, 1)
    device = rig.device()
    first, second = device.pop(), device.pop()
    assert first and second
    device.push(second, 0)
    device.publish()
    rig.offer(1)
    broken("at most 0", device.pop)


def test_in_order_a_waiting_chain_is_not_free() -> None:
    """A chain that was pushed and waits for its turn was not returned."""
    for packed in (False, True):
        rig = Rig(4, IN_ORDER | (PACKED if packed else 0))
        for index, head in enumerate((0, 1, 1)):
            rig.describe(index, 0x1000, 8, head if packed else 0, A if packed else 0)
        rig.offer(0, 1)
        device = rig.device()
        first, second = device.pop(), device.pop()
        assert first and second
        device.push(second, 0)
        device.publish()
        rig.offer(1)
        broken("1 was made available again", device.pop)


def test_nothing_goes_back_to_a_broken_queue() -> None:
    """A chain that the device still has when the driver breaks the queue."""
    for features in (0, PACKED, IN_ORDER, PACKED | IN_ORDER):
        rig = Rig(4, features)
        rig.describe(0, 0x1000, 8, 0, A if features & PACKED else 0)
        rig.describe(1, 0x1000, 0, 1, A if features & PACKED else 0)
        rig.offer(0, 1)
        device = rig.device()
        chain = device.pop()
        assert chain
        before = bytes(rig.bytes)
        broken("descriptor 1 has no bytes", device.pop)
        with pytest.raises(QueueBroken, match="descriptor 1 has no bytes"):
            device.push(chain, 0)
        with pytest.raises(QueueBroken, match="descriptor 1 has no bytes"):
            device.publish()
        assert rig.bytes == before


def test_the_longest_chain() -> None:
    """2^32 bytes are allowed (VIRTIO 2.7.5.2); what the device may say that it wrote ends a byte before that."""
    for features in (0, PACKED):
        rig = Rig(4, features)
        for index, (size, flags) in enumerate(((0xFFFF_FFFF, N | W), (1, W))):
            rig.describe(index, 0x1000, size, *((0, flags | A) if features else (flags, 1)))
        rig.offer(0)
        device = rig.device()
        chain = device.pop()
        assert chain and sum(size for _, size in chain.writable) == 1 << 32
        with pytest.raises(ValueError, match="4294967296 bytes written"):
            device.push(chain, 1 << 32)
        device.push(chain, 0xFFFF_FFFF)


def test_what_came_before_is_not_taken_either() -> None:
    """A broken queue is broken as a whole: chains behind the bad one stay where they are."""
    rig = Rig(4)
    rig.describe(0, 0x1000, 8, 0, 0)
    rig.describe(1, 0x1000, 0, 0, 0)
    rig.offer(1, 0, 0)
    device = rig.device()
    broken("descriptor 1 has no bytes", device.pop)
    rig.describe(1, 0x1000, 8, 0, 0)
    broken("descriptor 1 has no bytes", device.pop)


# -- a device and its driver, packed ----


@pytest.mark.parametrize(
    ("descriptors", "words"),
    [
        ([(0x1000, 8, 0, N | A)] * 3, "chain at 0 needs more than 3 descriptors"),
        ([(0x1000, 0, 0, A)], "descriptor 0 has no bytes"),
        ([(0x1000, 8, 0, N | A), (0x1000, 0, 0, A)], "descriptor 1 has no bytes"),
        ([(0x1000, 8, 0, W | N | A), (0x1000, 8, 0, A)], "readable descriptor 1 comes after"),
        ([(0x1000, 0xFFFF_FFFF, 0, N | A), (0x1000, 2, 0, A)], r"4294967297 bytes; 2\^32"),
        ([(0x1000, 0xFFFF_FFFF, 0, W | N | A), (0x1000, 2, 0, W | A)], r"4294967297 bytes; 2\^32"),
        ([(TABLE, 16, 0, IND | N | A), (0x1000, 1, 0, A)], "INDIRECT descriptor 0 is part of a longer"),
        ([(0x1000, 1, 0, N | A), (TABLE, 16, 0, IND | A)], "INDIRECT descriptor 1 is part of a longer"),
        ([(TABLE, 0, 0, IND | A)], "table of descriptor 0 has 0 bytes"),
        ([(TABLE, 15, 0, IND | A)], "has 15 bytes"),
        ([(TABLE, 0xFFFF_FFF0, 0, IND | A)], "has 4294967280 bytes"),
        ([(0xF_FFF8, 16, 0, IND | A)], "16 bytes at 0xffff8 are outside"),
        ([(TABLE, 48, 0, IND | A)], "entry 2 .* no bytes"),
        ([(TABLE + 16, 32, 0, IND | A)], "entry 1 .* no bytes"),
        ([(TABLE + 32, 16, 0, IND | A)], "entry 0 .* no bytes"),
    ],
)
def test_a_packed_chain_that_breaks_a_rule(descriptors: list[tuple[int, int, int, int]], words: str) -> None:
    """VIRTIO 2.8.16, 2.8.19."""
    rig = Rig(3, PACKED | INDIRECT)
    for index, descriptor in enumerate(descriptors):
        rig.describe(index, *descriptor)
    rig.describe(0, 0x1000, 8, 0, 0, TABLE)
    rig.describe(1, 0x1000, 8, 0, 0, TABLE)
    device = rig.device()
    broken(words, device.pop, device.publish, lambda: device.want_notifications(True))


def test_a_packed_table_that_breaks_a_rule() -> None:
    """Order and total of its entries (VIRTIO 2.8.16)."""
    for entries, words in (
        ([(0x1000, 8, 0, W), (0x1000, 8, 0, 0)], "entry 1 .* readable after a writable"),
        ([(0x1000, 0xFFFF_FFFF, 0, 0), (0x1000, 2, 0, W)], r"2\^32"),
    ):
        rig = Rig(3, PACKED | INDIRECT)
        for index, entry in enumerate(entries):
            rig.describe(index, *entry, TABLE)
        rig.describe(0, TABLE, 32, 0, IND | A)
        broken(words, rig.device().pop)


def test_packed_slots_and_ids() -> None:
    """An id is out once; slots that the device has not given back cannot be available again."""
    rig = Rig(3, PACKED)
    rig.describe(0, 0x1000, 8, 7, A)
    rig.describe(1, 0x1000, 8, 7, A)
    device = rig.device()
    assert device.pop()
    broken("buffer 7 was made available again", device.pop)
    for published in (False, True):
        rig = Rig(3, PACKED)
        for index in range(3):
            rig.describe(index, 0x1000, 8, index, A)
        device = rig.device()
        chains = [device.pop() for _ in range(3)]
        rig.describe(0, 0x1000, 8, 3, U)  # the second lap
        assert chains[0]
        if published:
            device.push(chains[0], 0)
            device.publish()
            rig.describe(0, 0x1000, 8, 3, U)
            assert device.pop()
            rig.describe(1, 0x1000, 8, 4, U)
        broken("needs more than 0 descriptors", device.pop)
