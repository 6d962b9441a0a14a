"""Queues whose memory a test reads and writes field by field, with offsets of its own (VIRTIO 2.7, 2.8).

Nothing here uses the layouts of hmx/virtio: what the code and this file agree on, two people read in the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest

from hmx.virtio.chain import QueueBroken, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import Buffer, FlatMemory
from hmx.virtio.queues import AnyDeviceQueue, AnyDriverQueue, device_queue, driver_queue
from hmx.virtio.rings import IndirectArea
from hmx.virtio.split_driver import SplitDriver

MEMORY: Final = 0x10_0000
DESCRIPTORS, DRIVER, DEVICE, TABLES = 0x1000, 0x4000, 0x8000, 0xC000
N, W, IND, A, U = 1, 2, 4, 0x80, 0x8000  # descriptor flags; IND: INDIRECT
ENABLE, DISABLE, DESC = 0, 1, 2

INDIRECT: Final = 1 << Feature.RING_INDIRECT_DESC
EVENT: Final = 1 << Feature.RING_EVENT_IDX
PACKED: Final = 1 << Feature.RING_PACKED
IN_ORDER: Final = 1 << Feature.IN_ORDER


class WatchedMemory(FlatMemory):
    """Remembers where was written, and how often, in order."""

    __slots__ = ("writes",)

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(buffer)
        self.writes: list[tuple[int, int]] = []

    def store16(self, address: int, value: int) -> None:
        self.writes.append((address, 2))
        super().store16(address, value)

    def write(self, address: int, data: Buffer) -> None:
        self.writes.append((address, len(data)))
        super().write(address, data)


class LoggedMemory(WatchedMemory):
    """Writes down every access by the name of its address."""

    __slots__ = ("log", "names")

    def __init__(self, buffer: bytearray, names: dict[int, str]) -> None:
        super().__init__(buffer)
        self.names = names
        self.log: list[str] = []

    def _note(self, what: str, address: int) -> None:
        self.log.append(f"{what} {self.names.get(address, 'entry')}")

    def load16(self, address: int) -> int:
        self._note("load", address)
        return super().load16(address)

    def store16(self, address: int, value: int) -> None:
        self._note("store", address)
        super().store16(address, value)

    def read(self, address: int, size: int) -> memoryview:
        self._note("load", address)
        return super().read(address, size)

    def write(self, address: int, data: Buffer) -> None:
        self._note("store", address)
        super().write(address, data)

    def fence(self) -> None:
        self.log.append("fence")


class Rig:
    """One queue in a megabyte of memory, and the ends that a test asks for."""

    def __init__(self, size: int = 4, features: int = 0, *, entries: int = 0) -> None:
        self.size, self.features = size, features
        self.bytes = bytearray(MEMORY)
        self.memory: WatchedMemory = WatchedMemory(self.bytes)
        self.layout = QueueLayout(size, DESCRIPTORS, DRIVER, DEVICE)
        self.area = IndirectArea(TABLES, entries) if entries else None

    def log(self, names: dict[int, str]) -> list[str]:
        """From now on, new ends write down what they do."""
        memory = LoggedMemory(self.bytes, names)
        self.memory = memory
        return memory.log

    def driver(self, index: int = 0) -> AnyDriverQueue:
        """A driver's end; `index`: as if that many buffers had come and gone (split only)."""
        driver = driver_queue(self.layout, self.features, self.memory, self.area)
        if index:
            assert isinstance(driver, SplitDriver)
            driver._made = driver._shown = driver._next = driver._seen = index
            self.avail_idx = self.used_idx = index
        self.memory.writes.clear()
        return driver

    def device(self, position: int | None = None) -> AnyDeviceQueue:
        """A device's end."""
        return device_queue(self.layout, self.features, self.memory, position)

    # -- raw fields ----

    def _get(self, at: int, layout: str) -> Any:
        return struct.unpack_from(layout, self.bytes, at)

    def u16(self, at: int) -> int:
        """A u16 in memory."""
        return int(self._get(at, "<H")[0])

    def put16(self, at: int, value: int) -> None:
        """Store a u16."""
        struct.pack_into("<H", self.bytes, at, value)

    def descriptor(self, index: int, table: int = DESCRIPTORS) -> tuple[int, int, int, int]:
        """Split: addr, len, flags, next.  Packed: addr, len, id, flags."""
        found: tuple[int, int, int, int] = self._get(table + 16 * index, "<QIHH")
        return found

    def is_indirect(self, index: int) -> bool:
        """Whether a descriptor of the ring names a table."""
        return bool(self.descriptor(index)[3 if self.features & PACKED else 2] & IND)

    def returned(self, slots: int) -> list[tuple[int, int, int]]:
        """Slot, id and length of what the device wrote into the first `slots` (split: but of chain 0 with length 0)."""
        if self.features & PACKED:
            found = [(slot, *self.descriptor(slot)) for slot in range(slots)]
            return [(slot, identity, length) for slot, _, length, identity, flags in found if flags & U]
        return [(slot, *self.used(slot)) for slot in range(slots) if self.used(slot) != (0, 0)]

    def describe(self, index: int, address: int, size: int, third: int, fourth: int, table: int = DESCRIPTORS) -> None:
        """Write a descriptor; the fields in the order of memory."""
        struct.pack_into("<QIHH", self.bytes, table + 16 * index, address, size, third, fourth)

    def head(self, slot: int) -> int:
        """An element of the available ring."""
        return self.u16(DRIVER + 4 + 2 * slot)

    def offer(self, *heads: int) -> None:
        """Split: make chains available, as a driver would."""
        index = self.avail_idx
        for head in heads:
            self.put16(DRIVER + 4 + 2 * (index % self.size), head)
            index = (index + 1) % 0x1_0000
        self.avail_idx = index

    def used(self, slot: int) -> tuple[int, int]:
        """An element of the used ring: id, len."""
        found: tuple[int, int] = self._get(DEVICE + 4 + 8 * slot, "<II")
        return found

    def use(self, *elements: tuple[int, int]) -> None:
        """Split: return chains, as a device would."""
        index = self.used_idx
        for element in elements:
            struct.pack_into("<II", self.bytes, DEVICE + 4 + 8 * (index % self.size), *element)
            index = (index + 1) % 0x1_0000
        self.used_idx = index

    @property
    def avail_flags(self) -> int:
        return self.u16(DRIVER)

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self.put16(DRIVER, value)

    @property
    def avail_idx(self) -> int:
        return self.u16(DRIVER + 2)

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self.put16(DRIVER + 2, value)

    @property
    def used_event(self) -> int:
        return self.u16(DRIVER + 4 + 2 * self.size)

    @used_event.setter
    def used_event(self, value: int) -> None:
        self.put16(DRIVER + 4 + 2 * self.size, value)

    @property
    def used_flags(self) -> int:
        return self.u16(DEVICE)

    @used_flags.setter
    def used_flags(self, value: int) -> None:
        self.put16(DEVICE, value)

    @property
    def used_idx(self) -> int:
        return self.u16(DEVICE + 2)

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        self.put16(DEVICE + 2, value)

    @property
    def avail_event(self) -> int:
        return self.u16(DEVICE + 4 + 8 * self.size)

    @avail_event.setter
    def avail_event(self, value: int) -> None:
        self.put16(DEVICE + 4 + 8 * self.size, value)

    # packed: offset, wrap counter, flags

    @property
    def driver_event(self) -> tuple[int, int, int]:
        return self._event(DRIVER)

    @driver_event.setter
    def driver_event(self, value: tuple[int, int, int]) -> None:
        self._set_event(DRIVER, value)

    @property
    def device_event(self) -> tuple[int, int, int]:
        return self._event(DEVICE)

    @device_event.setter
    def device_event(self, value: tuple[int, int, int]) -> None:
        self._set_event(DEVICE, value)

    def _event(self, at: int) -> tuple[int, int, int]:
        where, flags = self._get(at, "<HH")
        return where & 0x7FFF, where >> 15, flags

    def _set_event(self, at: int, value: tuple[int, int, int]) -> None:
        offset, wrap, flags = value
        struct.pack_into("<HH", self.bytes, at, offset | wrap << 15, flags)


def segments(pairs: Iterable[tuple[int, int]]) -> tuple[Segment, ...]:
    """Pairs of address and size as segments."""
    return tuple(Segment(*pair) for pair in pairs)


def one(size: int = 8, address: int = 0x1_0000) -> tuple[Segment, ...]:
    """One segment."""
    return (Segment(address, size),)


def broken(match: str, operation: Callable[[], object], *others: Callable[[], object]) -> None:
    """The operation breaks the queue; it and others say the same afterwards."""
    with pytest.raises(QueueBroken, match=match):
        operation()
    for again in (operation, *others):
        with pytest.raises(QueueBroken, match=match):
            again()
