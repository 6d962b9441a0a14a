"""How VirtIO-Argo cuts what queues have to say: nothing is lost, nothing is too large, changes come last.

Source: docs/virtio-argo.md, data plane; Argo takes 8 iovs in a sendv, none of them empty.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_node.virtio.argo_image import Area, RingImage, plan_image
from guest_node.virtio.argo_pack import MOST_BUFFERS, SMALLEST_MESSAGE, Batch, few, largest_in, message_limit, pack
from hmx.virtio.argo import FLOWS, MAX_MSG_SIZE, Flow, Variant, decode, flow_of
from hmx.virtio.chain import QueueBroken
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.memory import BadAddress, FlatMemory
from hmx.virtio.msg import MsgId

PACKED = feature_set(Feature.RING_PACKED)


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    found = []
    for queue in range(draw(st.integers(1, 3))):
        data = draw(st.lists(st.binary(max_size=600), max_size=9))
        total = sum(map(len, data))
        pieces: list[tuple[int, int]] = []
        at = 0
        while at < total:
            step = draw(st.integers(1, total - at))
            pieces.append((len(pieces) << 32 | draw(st.integers(0, 1)) << 31, step))
            at += step
        ranges, offset = [], 0
        for changed in draw(st.lists(st.binary(min_size=1, max_size=500), max_size=5)):
            offset += draw(st.integers(1, 50))
            ranges.append((offset, changed))
            offset += len(changed)
        found.append(Batch(7, queue, ranges, pieces, [d if i & 1 else memoryview(d) for i, d in enumerate(data)]))
    return found


@given(batches(), st.sampled_from(FLOWS), st.sampled_from((SMALLEST_MESSAGE, 300, 1000, 1 << 16)))
def test_everything_arrives(given_batches: list[Batch], flow: Flow, limit: int) -> None:
    """Put together again, it is what it was; changes of a queue come behind its bytes, and only the last ends them."""
    images = {batch.queue: bytearray(5000) for batch in given_batches}
    bytes_of: dict[int, dict[int, bytes]] = {batch.queue: {} for batch in given_batches}
    done: set[int] = set()
    for message in pack(given_batches, flow.driver, flow.joined, limit):
        data = b"".join(message)
        assert 0 < len(data) <= limit and len(message) <= MOST_BUFFERS and all(len(buffer) for buffer in message)
        for update in decode(memoryview(data)):
            assert update.dev_num == 7 and update.queue not in done
            assert update.msg_id in (MsgId.DATA, flow.driver)
            assert not (update.ranges and update.msg_id == MsgId.DATA)
            assert flow.joined or not (update.pieces and update.msg_id != MsgId.DATA)
            for handle, view in update.pieces:
                bytes_of[update.queue][handle] = bytes(view)
            for offset, view in update.ranges:
                images[update.queue][offset : offset + len(view)] = view
            if update.ranges and not update.more:
                done.add(update.queue)
    for batch in given_batches:
        image = bytearray(5000)
        for offset, changed in batch.ranges:
            image[offset : offset + len(changed)] = changed
        assert images[batch.queue] == image
        whole = b"".join(bytes(data) for data in batch.payload)
        at = 0
        parts = bytes_of[batch.queue]
        for handle, length in batch.pieces:
            got = b""
            while len(got) < length:
                got += parts.pop(handle + len(got))
            assert got == whole[at : at + length]
            at += length
        assert not parts
        assert batch.queue in done or not batch.ranges


@pytest.mark.parametrize(("variant", "messages"), [(Variant.INLINE, 1), (Variant.MIRROR, 2)])
def test_what_fits_takes_one_message_or_two(variant: Variant, messages: int) -> None:
    """Inline: changes and bytes together.  Mirror: bytes, then changes.  Of several queues as of one."""
    flow = flow_of(variant)
    batch = Batch(1, 0, [(0, bytes(32)), (256, b"ab")], [(0, 4096)], [bytes(16), bytes(4080)])
    assert len(pack([batch], flow.driver, flow.joined, 8192)) == messages
    assert len(pack([batch, batch._replace(queue=1)], flow.driver, flow.joined, 16384)) == messages
    assert len(pack([batch._replace(pieces=[], payload=[])], flow.driver, flow.joined, 8192)) == 1
    assert pack([batch._replace(pieces=[], payload=[], ranges=[])], flow.driver, flow.joined, 8192) == []


def test_tables_are_cut_at_sixteen_bits() -> None:
    """msg_size is a le16: more changes, or more pieces, than it can count come in several messages."""
    ranges = [(16 * index, bytes([index & 255]) * 8) for index in range(6000)]
    flow = flow_of(0)
    messages = pack([Batch(0, 0, ranges, [], [])], flow.driver, flow.joined, 1 << 20)
    updates = [update for message in messages for update in decode(memoryview(b"".join(message)))]
    assert [(at, bytes(view)) for u in updates for at, view in u.ranges] == ranges
    assert [update.more for update in updates] == [True] * (len(updates) - 1) + [False] and len(updates) > 1
    pieces = [(1 << 32 | index << 20, 1) for index in range(5000)]
    messages = pack([Batch(0, 0, [(0, b"x")], pieces, [b"y" * 5000])], flow.driver, flow.joined, 1 << 20)
    updates = [update for message in messages for update in decode(memoryview(b"".join(message)))]
    assert sum(len(update.pieces) for update in updates) == 5000
    assert all(24 + 16 * len(update.pieces) <= MAX_MSG_SIZE for update in updates)


@given(st.lists(st.binary(max_size=9000), max_size=30))
def test_few_buffers(buffers: list[bytes]) -> None:
    """At most seven iovs, none empty, the same bytes; large ones are not copied unless there are too many."""
    found = few(list(buffers))
    assert b"".join(found) == b"".join(buffers)
    assert len(found) <= MOST_BUFFERS or not buffers
    assert len(found) <= 1 or all(found)


def test_of_too_many_large_buffers_the_smallest_neighbours_are_joined() -> None:
    """What is joined is copied once more: the others stay the objects that they were."""
    buffers = [bytes(size) for size in (60000, 60000, 60000, 9000, 10000, 9000, 60000, 60000, 60000)]
    found = few(list(buffers))
    assert [len(buffer) for buffer in found] == [60000, 60000, 60000, 28000, 60000, 60000, 60000]
    assert all(any(buffer is kept for kept in buffers) for buffer in found if len(buffer) == 60000)


def test_the_limit_of_a_message() -> None:
    """Half of a ring, so that copying and reading overlap; of a tiny ring everything, of a huge one 256 KiB."""
    assert [message_limit(size) for size in (480, 1000, 1024, 65504)] == [480, 1000, 512, 32752]
    assert [message_limit(size) for size in (1 << 19, 1 << 20)] == [1 << 18, 1 << 18]
    assert largest_in(65536) == 32752


@given(
    st.lists(st.tuples(st.integers(0, 126), st.binary(min_size=1, max_size=9), st.booleans()), max_size=30),
    st.integers(0, 30),
)
def test_changes_make_the_other_image_equal(stores: list[tuple[int, bytes, bool]], when: int) -> None:
    """What was stored, and nothing else, travels: sorted, without overlap, as it stands at that time."""
    near, far, plain = RingImage(136), RingImage(136), FlatMemory(bytearray(136))
    stored: set[int] = set()
    for index, (at, data, word) in enumerate(stores):
        if index == when:
            far.apply(near.changes(), (Area(0, 136),))
            stored.clear()
        if word:
            near.store16(at & ~1, data[0])
            plain.store16(at & ~1, data[0])
            stored.update((at & ~1, at | 1))
        else:
            near.write(at, data)
            plain.write(at, data)
            stored.update(range(at, at + len(data)))
    changes = near.changes()
    assert {index for offset, data in changes for index in range(offset, offset + len(data))} == stored
    assert all(a + len(x) < b for (a, x), (b, _) in pairwise(changes))
    far.apply(changes, (Area(0, 136),))
    assert bytes(far.read(0, 136)) == bytes(near.read(0, 136)) == bytes(plain.read(0, 136))
    assert near.changes() == []


def test_an_image_has_ends() -> None:
    """As every QueueMemory."""
    image = RingImage(10)
    for call in (
        lambda: image.load16(1),
        lambda: image.load16(10),
        lambda: image.load16(-2),
        lambda: image.store16(9, 1),
        lambda: image.store16(10, 1),
        lambda: image.read(8, 3),
        lambda: image.read(-1, 1),
        lambda: image.read(0, -1),
        lambda: image.write(8, b"abc"),
        lambda: image.write(-1, b"a"),
    ):
        with pytest.raises(BadAddress):
            call()
    assert image.changes() == []
    image.write(0, b"ab")
    image.forget()
    image.fence()
    assert image.changes() == [] and bytes(image.read(0, 2)) == b"ab" and image.load16(0) == 0x6261


@pytest.mark.parametrize(
    ("features", "layout", "size", "driver", "device"),
    [
        (0, (8, 0, 128, 152), 222, ((0, 150),), ((152, 222),)),
        (PACKED, (8, 0, 128, 132), 136, ((0, 132),), ((0, 128), (132, 136))),
        (PACKED, (3, 0, 48, 52), 56, ((0, 52),), ((0, 48), (52, 56))),
    ],
)
def test_the_image_of_a_queue(
    features: int,
    layout: tuple[int, ...],
    size: int,
    driver: tuple[tuple[int, int], ...],
    device: tuple[tuple[int, int], ...],
) -> None:
    """VIRTIO 2.7, 2.8: the parts one behind another; the packed ring is written by both, each area by its owner."""
    plan = plan_image(layout[0], features)
    assert (plan.layout, plan.size, plan.driver, plan.device) == (layout, size, driver, device)
    image = RingImage(plan.size)
    for areas in (plan.driver, plan.device):
        for at in range(plan.size):
            if any(start <= at < end for start, end in areas):
                image.apply([(at, b"x")], areas)
            else:
                with pytest.raises(QueueBroken):
                    image.apply([(at, b"x")], areas)
        for area in areas:
            image.apply([(area.start, bytes(area.end - area.start))], areas)
            with pytest.raises(QueueBroken):
                image.apply([(area.start, bytes(area.end - area.start + 1))], areas)
    with pytest.raises(ValueError):
        plan_image(6 if not features else 0, features)
