"""Virtqueues of whichever format was negotiated, the areas that they lie in, and the bytes of their chains.

Source: VIRTIO 1.4, 2.6 to 2.9.  RING_PACKED chooses the format; RING_INDIRECT_DESC, RING_EVENT_IDX and IN_ORDER are
followed by both ends.  After a reset of a device or a queue (RING_RESET) its ends are simply made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hmx.virtio.chain import QueueBroken, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import BadAddress, Buffer, QueueMemory
from hmx.virtio.packed import PACKED
from hmx.virtio.packed_device import PackedDevice
from hmx.virtio.packed_driver import PackedDriver
from hmx.virtio.rings import Format, IndirectArea, check_layout, check_size, lay_out
from hmx.virtio.split import SPLIT
from hmx.virtio.split_device import SplitDevice
from hmx.virtio.split_driver import SplitDriver

AnyDriverQueue = SplitDriver | PackedDriver
AnyDeviceQueue = SplitDevice | PackedDevice

MOST_GATHERED: Final = 64 << 20
"""Bytes that a device collects for one chain unless it says otherwise: segments may overlap, so a driver with little
memory can describe 4 GiB.
"""


class Area(NamedTuple):
    """Where a queue lies in one contiguous area, and the first address behind it."""

    layout: QueueLayout
    indirect: IndirectArea | None
    end: int


def format_of(features: int) -> Format:
    """The format that these features mean."""
    return PACKED if features >> Feature.RING_PACKED & 1 else SPLIT


def queue_area(size: int, features: int, base: int = 0, entries: int = 0) -> Area:
    """The parts of a queue of `size` descriptors from `base` on, then indirect tables of `entries` descriptors each
    (with RING_INDIRECT_DESC).  ValueError for a size that the format does not allow.
    """
    layout, end = lay_out(format_of(features), size, base)
    if not entries or not features >> Feature.RING_INDIRECT_DESC & 1:
        return Area(layout, None, end)
    end += -end % 16
    return Area(layout, IndirectArea(end, entries), end + 16 * entries * size)


def queue_bytes(size: int, features: int, entries: int = 0) -> int:
    """Bytes that a queue needs in a 16-aligned area."""
    return queue_area(size, features, 0, entries).end


def valid_size(size: int, features: int) -> bool:
    """Whether the format allows this many descriptors."""
    try:
        check_size(format_of(features), size)
    except ValueError:
        return False
    return True


def valid_layout(layout: QueueLayout, features: int) -> bool:
    """Whether the format allows this size and these addresses (QueueReady, SET_VQUEUE)."""
    try:
        check_layout(format_of(features), layout)
    except ValueError:
        return False
    return True


def driver_queue(
    layout: QueueLayout, features: int, memory: QueueMemory, indirect: IndirectArea | None = None
) -> AnyDriverQueue:
    """The driver's end of a new queue, whose memory it zeroes.  ValueError for a layout that cannot be."""
    if features >> Feature.RING_PACKED & 1:
        return PackedDriver(layout, features, memory, indirect)
    return SplitDriver(layout, features, memory, indirect)


def device_queue(
    layout: QueueLayout, features: int, memory: QueueMemory, position: int | None = None
) -> AnyDeviceQueue:
    """The device's end.  QueueBroken for a layout that cannot be.

    `position`: that of an earlier device end which had nothing in flight, to go on where it stopped.
    """
    if features >> Feature.RING_PACKED & 1:
        return PackedDevice(layout, features, memory, position)
    return SplitDevice(layout, features, memory, position)


def notification(index: int, queue: AnyDriverQueue, features: int) -> int:
    """The 32-bit value of an available-buffer notification for queue `index` (VIRTIO 2.9)."""
    if features >> Feature.NOTIFICATION_DATA & 1:
        return index | queue.notification_data() << 16
    return index


def total(segments: Sequence[Segment]) -> int:
    """Bytes of all segments."""
    return sum([size for _, size in segments])


def gather(memory: QueueMemory, segments: Sequence[Segment], most: int = MOST_GATHERED) -> bytes:
    """The bytes of segments, one behind another.  QueueBroken for one that is not there, or more than `most` bytes."""
    try:
        if len(segments) == 1 and segments[0].size <= most:
            return bytes(memory.read(*segments[0]))
        size = total(segments)
        if size > most:
            raise QueueBroken(f"a chain with {size} bytes for the device; {most} are the most here")
        return b"".join([bytes(memory.read(address, length)) for address, length in segments])
    except BadAddress as error:
        raise QueueBroken(str(error)) from error


def scatter(memory: QueueMemory, segments: Sequence[Segment], data: Buffer) -> None:
    """Write `data` into segments from the first on.  QueueBroken for one that is not there; ValueError for more data
    than they hold, before anything is written.
    """
    left = len(data)
    if left > total(segments):
        raise ValueError(f"{left} bytes for segments of {total(segments)}")
    if not left:
        return
    try:
        if left <= segments[0].size:
            memory.write(segments[0].address, data)
            return
        view, done = memoryview(data), 0
        for address, size in segments:
            step = min(size, left - done)
            if not step:
                return
            memory.write(address, view[done : done + step])
            done += step
    except BadAddress as error:
        raise QueueBroken(str(error)) from error
