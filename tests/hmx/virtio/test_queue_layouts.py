"""Layouts, sizes, areas and bytes of virtqueues (VIRTIO 2.7, 2.8.10.1, 2.8.13, 2.8.14, 2.9)."""

from __future__ import annotations

from typing import Final

import pytest

from hmx.virtio import packed, split
from hmx.virtio.chain import DeviceQueue, DriverQueue, QueueBroken, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import FlatMemory
from hmx.virtio.queues import (
    device_queue,
    driver_queue,
    format_of,
    gather,
    notification,
    queue_area,
    queue_bytes,
    scatter,
    valid_layout,
    valid_size,
)
from hmx.virtio.rings import Field, IndirectArea, check_chain, need_event, offset_of, part_size, struct_of
from tests.golden import number, rows
from tests.hmx.virtio.queue_rig import EVENT, INDIRECT, PACKED, Rig

LAYOUTS: Final = [row for row in rows("virtio_layouts.csv") if row["struct"].startswith(("split_", "packed_"))]
STRUCTURES: Final = {
    "split_desc": split.DESCRIPTOR_FIELDS,
    "split_used_elem": split.USED_FIELDS,
    "packed_desc": packed.DESCRIPTOR_FIELDS,
    "packed_event_suppress": packed.EVENT_FIELDS,
}
PARTS: Final = {
    "split_desc_table": split.SPLIT.parts[0],
    "split_avail": split.SPLIT.parts[1],
    "split_used": split.SPLIT.parts[2],
    "packed_desc_ring": packed.PACKED.parts[0],
}


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: f"{row['struct']}-{row['n']}-{row['field']}")
def test_layout(row: dict[str, str]) -> None:
    """Every offset, size and alignment of the golden table."""
    name, field, offset, size = row["struct"], row["field"], number(row["offset"]), number(row["size"])
    if name in STRUCTURES:
        fields = STRUCTURES[name]
        if field == "(size)":
            assert struct_of(fields).size == size
        else:
            assert next((each.offset, each.size) for each in fields if each.name == field) == (offset, size)
        return
    part, count = PARTS[name], number(row["n"])
    if field == "(size)":
        assert (part_size(part, count), part.align) == (size, number(row["align"]))
    elif field in ("flags", "idx"):
        assert next((each.offset, each.size) for each in split.RING_FIELDS if each.name == field) == (offset, size)
    elif field.endswith("_event"):
        assert (part_size(part, count) - split.EVENT_SIZE, split.EVENT_SIZE) == (offset, size)
    elif field.startswith("ring[0]"):
        inner = offset_of(split.USED_FIELDS, field.partition(".")[2]) if "." in field else 0
        assert split.RING + inner == offset
    else:
        assert split.RING + part.each * (count - 1) == offset


def test_what_is_wrong_is_named() -> None:
    """A layout's error says which format and which part."""
    for features, kind, parts in (
        (0, "split", ("descriptor table", "available ring", "used ring")),
        (PACKED, "packed", ("descriptor ring", "driver event suppression", "device event suppression")),
    ):
        for index, part in enumerate(parts, 1):
            values = [4, 0, 0x100, 0x200]
            values[index] += 1
            with pytest.raises(ValueError, match=f"the {part} of a {kind} queue at {values[index]:#x} is not"):
                driver_queue(QueueLayout(*values), features, FlatMemory(bytearray(4096)))
        with pytest.raises(ValueError, match=f"a {kind} queue has 1 to 32768 descriptors, not 0"):
            queue_area(0, features)


def test_parts_of_a_packed_queue() -> None:
    """A ring and two structures of four bytes, which need an alignment of four (VIRTIO 2.8.10.1)."""
    assert [(part.align, part.fixed, part.each) for part in packed.PACKED.parts] == [(16, 0, 16), (4, 4, 0), (4, 4, 0)]
    assert struct_of(packed.EVENT_FIELDS).size == 4


def test_flags() -> None:
    """VIRTIO 2.7.5, 2.7.6, 2.7.8; 2.8.1 to 2.8.7, 2.8.10."""
    for module in (split, packed):
        assert (module.NEXT, module.WRITE, module.INDIRECT) == (1, 2, 4)
    assert (split.NO_INTERRUPT, split.NO_NOTIFY) == (1, 1)
    assert (packed.AVAIL, packed.USED) == (0x80, 0x8000)
    assert (packed.ENABLE, packed.DISABLE, packed.DESC) == (0, 1, 2)


@pytest.mark.parametrize(
    ("features", "good", "bad"),
    [
        (0, (1, 2, 4, 256, 16384, 32768), (0, -1, 3, 5, 255, 32767, 65536)),
        (PACKED, (1, 2, 3, 5, 255, 32767, 32768), (0, -1, 32769, 65536)),
    ],
)
def test_sizes(features: int, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    """Split: a power of two, 1 to 32768.  Packed: any of 1 to 32768 (VIRTIO 2.7, 2.8)."""
    assert all(valid_size(size, features) for size in good)
    assert not any(valid_size(size, features) for size in bad)
    memory = FlatMemory(bytearray(1 << 20))
    for size in bad:
        layout = QueueLayout(size, 0, 0x80000, 0xA0000)
        with pytest.raises(ValueError, match=f"not {size}"):
            driver_queue(layout, features, memory)
        with pytest.raises(QueueBroken, match=f"not {size}"):
            device_queue(layout, features, memory)
        with pytest.raises(ValueError):
            queue_area(size, features)


@pytest.mark.parametrize(
    ("features", "part", "least"),
    [(0, 1, 16), (0, 2, 2), (0, 3, 4), (PACKED, 1, 16), (PACKED, 2, 4), (PACKED, 3, 4)],
)
def test_alignment(features: int, part: int, least: int) -> None:
    """Each part is aligned as its format asks, no more than that; a driver's own mistake is a ValueError, for a device
    it is the driver's (VIRTIO 2.7, 2.8.10.1).
    """
    memory = FlatMemory(bytearray(4096))
    values = [4, 0x100, 0x200, 0x300]
    values[part] += least
    assert valid_layout(QueueLayout(*values), features)
    driver_queue(QueueLayout(*values), features, memory)
    device_queue(QueueLayout(*values), features, memory)
    values[part] -= least // 2
    assert not valid_layout(QueueLayout(*values), features)
    with pytest.raises(ValueError, match="aligned"):
        driver_queue(QueueLayout(*values), features, memory)
    with pytest.raises(QueueBroken, match="aligned"):
        device_queue(QueueLayout(*values), features, memory)
    values[part] = 1 << 64
    assert not valid_layout(QueueLayout(*values), features)
    assert not valid_layout(QueueLayout(4, -16, 0, 0), features)


@pytest.mark.parametrize("features", [0, PACKED])
def test_areas(features: int) -> None:
    """Three parts one behind another, each aligned, then the tables: no overlap, nothing wasted but padding."""
    for size in (1, 2, 4, 8) if not features else (1, 2, 3, 5):
        layout, indirect, end = queue_area(size, features, 0x1000)
        parts = format_of(features).parts
        starts = [0x1000, *layout[2:], end]
        assert layout[:2] == (size, 0x1000) and indirect is None
        for part, start, following in zip(parts, starts, starts[1:], strict=False):
            assert start % part.align == 0
            assert 0 <= following - start - part_size(part, size) < 4
        assert valid_layout(layout, features)
        assert queue_bytes(size, features) == end - 0x1000
        layout, indirect, end = queue_area(size, features | INDIRECT, 0x1000, 5)
        assert indirect == IndirectArea(starts[-1] + -starts[-1] % 16, 5)
        assert end == indirect.address + 16 * 5 * size
        assert queue_area(size, features, 0x1000, 5).indirect is None, "not without the feature"
    assert queue_area(4, features, 8).layout.descriptors == 16


def test_a_driver_zeroes_its_queue() -> None:
    """All three parts, and nothing else (VIRTIO 2.7.10.1, 2.8.13)."""
    for features in (0, PACKED):
        area = queue_area(4, features, 16)
        content = bytearray(b"\xff" * (area.end + 16))
        driver_queue(area.layout, features, FlatMemory(content))
        holes = sum(content[16 : area.end])
        assert content[:16] == content[area.end :] == b"\xff" * 16
        assert holes in (0, 0xFF * 2), "the padding before the used ring"
        with pytest.raises(ValueError, match="outside"):
            driver_queue(area.layout, features, FlatMemory(bytearray(area.end - 1)))


@pytest.mark.parametrize(
    ("event", "new", "old", "modulus", "expected"),
    [
        (0, 1, 0, 8, True),
        (1, 1, 0, 8, False),
        (7, 0, 7, 8, True),
        (0, 0, 7, 8, False),
        (5, 1, 5, 8, True),
        (3, 3, 3, 8, False),
    ],
)
def test_crossing(event: int, new: int, old: int, modulus: int, expected: bool) -> None:
    """The crossing test for positions of a packed queue, which count modulo two laps (VIRTIO 2.8.10)."""
    assert need_event(event, new, old, modulus) is expected


def test_fields_do_not_overlap() -> None:
    """A table of fields is in the order of memory."""
    assert struct_of([Field("a", 1, 1), Field("b", 4, 8)]).format == "<1xB2xQ"
    with pytest.raises(ValueError, match="b at 1"):
        struct_of([Field("a", 0, 2), Field("b", 1, 1)])


@pytest.mark.parametrize(
    ("readable", "writable", "words"),
    [
        ((), (), "at least one"),
        (((0, 1),) * 5, (), "5 segments in a queue of 4"),
        (((0, 0),), (), "0 bytes"),
        ((), ((0, 1), (16, 0)), "0 bytes at 0x10"),
        (((0, 1 << 32),), (), "4294967296 bytes"),
        (((-1, 1),), (), "-0x1"),
        (((0, -1),), (), "-1 bytes"),
        ((), ((1 << 64, 1),), "0x10000000000000000"),
        (((0, 0xFFFF_FFFF),), ((0, 2),), r"2\^32"),
    ],
)
def test_chains_that_no_driver_may_add(
    readable: tuple[tuple[int, int], ...], writable: tuple[tuple[int, int], ...], words: str
) -> None:
    """ValueError: the driver's own mistake, before anything is written (VIRTIO 2.6, 2.7.5.2)."""
    for features in (0, PACKED):
        rig = Rig(4, features)
        driver = rig.driver()
        with pytest.raises(ValueError, match=words):
            driver.add([Segment(*each) for each in readable], [Segment(*each) for each in writable], None)
        assert driver.free == 4 and not rig.memory.writes
    limit = check_chain([Segment(0, 0xFFFF_FFFE)], [Segment(0, 2)], 4)
    assert limit == 2, "2^32 bytes are allowed"


# -- the bytes of a chain ----


def test_gather() -> None:
    """The bytes of all segments in their order, as a copy."""
    content = bytearray(range(64))
    memory = FlatMemory(content, 0x1000)
    assert gather(memory, ()) == b""
    found = gather(memory, [Segment(0x1010, 4)])
    assert gather(memory, [Segment(0x1020, 2), Segment(0x1000, 1), Segment(0x1020, 2)]) == bytes((32, 33, 0, 32, 33))
    content[16] = 255
    assert found == bytes((16, 17, 18, 19))


@pytest.mark.parametrize("pieces", [[(0x103F, 2)], [(0xFFF, 1)], [(0x1000, 1), (0x2000, 1)], [((1 << 64) - 1, 1)]])
def test_segments_that_are_not_there(pieces: list[tuple[int, int]]) -> None:
    """A driver's bad address is QueueBroken for the device, in both directions."""
    memory = FlatMemory(bytearray(64), 0x1000)
    bad = [Segment(*piece) for piece in pieces]
    with pytest.raises(QueueBroken, match="outside"):
        gather(memory, bad)
    with pytest.raises(QueueBroken, match="outside"):
        scatter(memory, bad, b"x" * sum(size for _, size in bad))


def test_gather_is_bounded() -> None:
    """Segments may overlap: a driver with 64 bytes of memory could ask for 4 GiB."""
    memory = FlatMemory(bytearray(64))
    assert len(gather(memory, [Segment(0, 64)] * 4, 256)) == 256
    for pieces in ([Segment(0, 64)] * 5, [Segment(0, 257)]):
        with pytest.raises(QueueBroken, match="256 are the most"):
            gather(memory, pieces, 256)
    with pytest.raises(QueueBroken, match="67108864 are the most"):
        gather(memory, [Segment(0, 0xFFFF_FFF0)])


def test_scatter() -> None:
    """From the first segment on; what is left of the segments stays as it was."""
    content = bytearray(32)
    memory = FlatMemory(content)
    pieces = [Segment(8, 2), Segment(0, 4), Segment(16, 1)]
    scatter(memory, pieces, b"abcde")
    assert content == b"cde" + bytes(5) + b"ab" + bytes(22)
    scatter(memory, pieces, memoryview(b"A"))
    assert content[8:10] == b"Ab"
    scatter(memory, pieces, b"1234567")
    assert content[16] == ord("7")
    scatter(memory, (), b"")
    scatter(memory, [Segment(99, 1)], b"")
    before = bytes(content)
    with pytest.raises(ValueError, match="8 bytes for segments of 7"):
        scatter(memory, pieces, b"12345678")
    assert content == before


def test_ends_are_what_transports_expect() -> None:
    """DriverQueue and DeviceQueue, whichever the format."""
    for features in (0, PACKED):
        rig = Rig(4, features)
        driver: DriverQueue = rig.driver()
        device: DeviceQueue = rig.device()
        assert (driver.size, driver.free, driver.outstanding, device.size) == (4, 4, 0, 4)


def test_notifications() -> None:
    """The queue's index; with NOTIFICATION_DATA the position of the last publish above it (VIRTIO 2.9)."""
    data = 1 << Feature.NOTIFICATION_DATA
    for features, expected in ((0, 0x0002_0003), (PACKED | EVENT, 0x8002_0003)):
        driver = Rig(4, features | data).driver()
        for _ in range(2):
            driver.add([Segment(0, 1)], [], None)
        assert notification(3, driver, features | data) == (0x8000_0003 if features else 3)
        driver.publish()
        driver.add([Segment(0, 1)], [], None)
        assert notification(3, driver, features | data) == expected
        assert notification(3, driver, features) == 3
