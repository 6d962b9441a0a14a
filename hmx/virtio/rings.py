"""What the split and the packed format of a virtqueue share: tables of layouts, sizes, the crossing test, chains.

Source: VIRTIO 1.4, 2.6 to 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import Final, NamedTuple, cast

from hmx.virtio.chain import QueueLayout, Segment
from hmx.virtio.memory import QueueMemory

U16: Final = 0xFFFF
U32: Final = 0xFFFF_FFFF
MAX_CHAIN_BYTES: Final = 1 << 32
"""The most bytes of one chain (VIRTIO 2.7.5)."""
MAX_TABLE: Final = 32768
"""The most descriptors that a device takes from one indirect table.

A driver may make no chain longer than its queue; drivers exist that do, so the bound is that of the largest queue.
"""

# Segment(address, size) runs Python code of NamedTuple; a device makes one for each descriptor.
make_segment: Final = cast(Callable[[tuple[int, int]], Segment], partial(tuple.__new__, Segment))
"""A Segment from (address, size), made by one call into C."""


class Field(NamedTuple):
    """One little-endian field of a structure: offset and size in bytes."""

    name: str
    offset: int
    size: int


class Part(NamedTuple):
    """One of the three parts of a queue: it is `fixed + each * queue size` bytes long."""

    name: str
    align: int
    fixed: int
    each: int


class Format(NamedTuple):
    """A virtqueue format: which sizes it allows, and its parts in the order of QueueLayout."""

    name: str
    smallest: int
    largest: int
    power_of_two: bool
    parts: tuple[Part, Part, Part]


class IndirectArea(NamedTuple):
    """Memory that a driver keeps its indirect tables in: one table of `entries` descriptors for each of the queue's.

    `address` is a multiple of 16.  A chain of more than `entries` segments takes descriptors of the ring instead.
    """

    address: int
    entries: int


_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


def struct_of(fields: Sequence[Field]) -> Struct:
    """The structure that a table of fields describes.  ValueError when fields overlap or are not in order."""
    text, end = "<", 0
    for field in fields:
        if field.offset < end:
            raise ValueError(f"{field.name} at {field.offset} lies in the field before it")
        text += f"{field.offset - end}x{_CODES[field.size]}"
        end = field.offset + field.size
    return Struct(text)


def offset_of(fields: Sequence[Field], name: str) -> int:
    """Where a field lies."""
    return next(field.offset for field in fields if field.name == name)


def part_size(part: Part, size: int) -> int:
    """Bytes of a part in a queue of `size` descriptors."""
    return part.fixed + part.each * size


def check_size(kind: Format, size: int) -> None:
    """ValueError for a queue size that the format does not allow."""
    if not kind.smallest <= size <= kind.largest:
        raise ValueError(f"a {kind.name} queue has {kind.smallest} to {kind.largest} descriptors, not {size}")
    if kind.power_of_two and size & size - 1:
        raise ValueError(f"the size of a {kind.name} queue is a power of two, not {size}")


def check_layout(kind: Format, layout: QueueLayout) -> None:
    """ValueError for a size or an address that the format does not allow."""
    check_size(kind, layout.size)
    for part, address in zip(kind.parts, layout[1:], strict=True):
        if address % part.align or not 0 <= address < 1 << 64:
            raise ValueError(f"the {part.name} of a {kind.name} queue at {address:#x} is not aligned to {part.align}")


def lay_out(kind: Format, size: int, base: int = 0) -> tuple[QueueLayout, int]:
    """The three parts one behind another from `base` on, each aligned; and the address behind the last."""
    check_size(kind, size)
    at, found = base, []
    for part in kind.parts:
        at += -at % part.align
        found.append(at)
        at += part_size(part, size)
    return QueueLayout(size, *found), at


def clear(kind: Format, layout: QueueLayout, memory: QueueMemory) -> None:
    """Zero all parts, as a driver does before it says where they are.  Raises BadAddress."""
    for part, address in zip(kind.parts, layout[1:], strict=True):
        memory.write(address, bytes(part_size(part, layout.size)))


def need_event(event: int, new: int, old: int, modulus: int = 0x1_0000) -> bool:
    """Whether an index that went from `old` to `new` has passed the element `event` (VIRTIO 2.7.7, 2.7.10).

    True iff `event` is one of old, old + 1, ... new - 1, all modulo `modulus`.
    """
    return (new - event - 1) % modulus < (new - old) % modulus


def check_chain(readable: Sequence[Segment], writable: Sequence[Segment], most: int) -> int:
    """The writable bytes of a chain that a driver wants to add; ValueError when no driver may add it."""
    count = len(readable) + len(writable)
    if not count:
        raise ValueError("a chain has at least one segment")
    if count > most:
        raise ValueError(f"a chain of {count} segments in a queue of {most} descriptors")
    total = 0
    for address, size in readable:
        if not 0 < size <= U32 or not 0 <= address < 1 << 64:
            raise ValueError(f"a segment of {size} bytes at {address:#x}")
        total += size
    room = -total
    for address, size in writable:
        if not 0 < size <= U32 or not 0 <= address < 1 << 64:
            raise ValueError(f"a segment of {size} bytes at {address:#x}")
        total += size
    room += total
    if total > MAX_CHAIN_BYTES:
        raise ValueError(f"a chain of {total} bytes; 2^32 is the most")
    return room
