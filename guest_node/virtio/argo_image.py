"""One side's own copy of a virtqueue: memory that knows what was written to it.

VirtIO-Argo shares no memory.  Driver and device each keep all three parts of a queue here, in one image, and run on it
the same code as on shared memory.  What one side stores is noted, travels to the other side and is applied there,
but only to parts that this other side may not write itself.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hmx.shm import load16, store16, words16
from hmx.virtio.chain import QueueBroken, QueueLayout
from hmx.virtio.features import Feature, has
from hmx.virtio.memory import BadAddress, Buffer
from hmx.virtio.packed import PACKED
from hmx.virtio.rings import Format, lay_out, part_size
from hmx.virtio.split import SPLIT


class Owner(NamedTuple):
    """Which parts of a queue (0 descriptors, 1 driver area, 2 device area) the two sides write."""

    format: Format
    driver: tuple[int, ...]
    device: tuple[int, ...]


OWNERS: Final = (
    Owner(SPLIT, (0, 1), (2,)),
    Owner(PACKED, (0, 1), (0, 2)),
)


class Area(NamedTuple):
    """Bytes `start` to `end` of an image."""

    start: int
    end: int


class ImagePlan(NamedTuple):
    """The image of a queue: its layout, its size in bytes, and what each side may write."""

    layout: QueueLayout
    size: int
    driver: tuple[Area, ...]
    device: tuple[Area, ...]


def plan_image(size: int, features: int) -> ImagePlan:
    """The one layout that VirtIO-Argo has for a queue of `size` descriptors: the parts one behind another from 0 on.

    ValueError for a size that the format does not allow.
    """
    owner = OWNERS[has(features, Feature.RING_PACKED)]
    layout, end = lay_out(owner.format, size)
    areas = [
        Area(start, start + part_size(part, size)) for part, start in zip(owner.format.parts, layout[1:], strict=True)
    ]
    return ImagePlan(layout, end, _joined(areas, owner.driver), _joined(areas, owner.device))


def _joined(areas: Sequence[Area], which: Iterable[int]) -> tuple[Area, ...]:
    """These areas; what lies without a gap between is one, since changes are sent without regard to parts."""
    found: list[Area] = []
    for index in which:
        area = areas[index]
        if found and found[-1].end == area.start:
            area = Area(found.pop().start, area.end)
        found.append(area)
    return tuple(found)


class RingImage:
    """A QueueMemory of `size` bytes from address 0 on that notes what is stored through it."""

    __slots__ = ("_bytes", "_changed", "_size", "_words")

    def __init__(self, size: int) -> None:
        self._bytes = memoryview(bytearray(size + (size & 1)))
        self._words = words16(self._bytes)
        self._size = size
        self._changed: list[tuple[int, int]] = []  # (start, end), in the order of the stores

    def load16(self, address: int) -> int:
        """A u16 at an even address."""
        if address & 1 or not 0 <= address <= self._size - 2:
            raise BadAddress(address, 2)
        return load16(self._words, address >> 1)

    def store16(self, address: int, value: int) -> None:
        """Store a u16 at an even address."""
        if address & 1 or not 0 <= address <= self._size - 2:
            raise BadAddress(address, 2)
        store16(self._words, address >> 1, value)
        self._changed.append((address, address + 2))

    def read(self, address: int, size: int) -> memoryview:
        """A view of `size` bytes."""
        if size < 0 or not 0 <= address <= self._size - size:
            raise BadAddress(address, size)
        return self._bytes[address : address + size]

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes."""
        end = address + len(data)
        if not 0 <= address <= end <= self._size:
            raise BadAddress(address, len(data))
        self._bytes[address:end] = data
        self._changed.append((address, end))

    def fence(self) -> None:
        """Nobody else reads this memory, so there is nothing to order."""

    def forget(self) -> None:
        """What was stored so far need not travel: the other side has the same."""
        self._changed.clear()

    def changes(self) -> list[tuple[int, bytes]]:
        """What was stored since the last call, as it stands now: (offset, bytes), in order, without overlap.

        Nothing that was not stored is among it: in a packed ring the other side may have written the bytes between.
        """
        changed = self._changed
        if not changed:
            return []
        changed.sort()
        data = self._bytes
        found: list[tuple[int, bytes]] = []
        start, end = changed[0]
        for first, last in changed:
            if first > end:
                found.append((start, bytes(data[start:end])))
                start, end = first, last
            elif last > end:
                end = last
        found.append((start, bytes(data[start:end])))
        changed.clear()
        return found

    def apply(self, ranges: Iterable[tuple[int, Buffer]], allowed: tuple[Area, ...]) -> None:
        """Store what the other side changed.  Raises QueueBroken for what it may not change; the rest may be stored."""
        data = self._bytes
        for offset, new in ranges:
            end = offset + len(new)
            for area in allowed:
                if area[0] <= offset and end <= area[1]:
                    break
            else:
                raise QueueBroken(f"{len(new)} bytes at offset {offset} of the queue's image are not the other side's")
            data[offset:end] = new
