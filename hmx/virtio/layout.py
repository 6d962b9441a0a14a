"""Structures of device types: a table of fields, the `struct.Struct` it stands for, and careful unpacking.

Everything is little-endian (VIRTIO 1.4, 1.4).  A structure's values are a NamedTuple with the table's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from hmx.virtio.rings import Field

Buffer = bytes | bytearray | memoryview

_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class LayoutError(ValueError):
    """Bytes of the other side that are no such structure."""


def record(fields: Sequence[Field], size: int, values: Sequence[str]) -> Struct:
    """The structure of `size` bytes that a table describes; what is in no field is zero.

    `values`: the names of the values that it packs.  A field of another size than 1, 2, 4 or 8 is bytes.  ValueError
    when fields overlap, reach beyond `size`, or are not those of `values`.
    """
    if tuple(values) != tuple(field.name for field in fields):
        raise ValueError(f"the fields {[field.name for field in fields]} are not {list(values)}")
    text, end = "<", 0
    for field in fields:
        if field.offset < end:
            raise ValueError(f"{field.name} at {field.offset} lies in the field before it")
        text += _gap(field.offset - end) + _CODES.get(field.size, f"{field.size}s")
        end = field.offset + field.size
    if end > size:
        raise ValueError(f"{end} bytes of fields in {size}")
    return Struct(text + _gap(size - end))


def _gap(size: int) -> str:
    return f"{size}x" if size else ""


def exactly(what: str, data: Buffer, size: int) -> Buffer:
    """`data`, which has to be `size` bytes.  Raises LayoutError."""
    if len(data) != size:
        raise LayoutError(f"{what} has {size} bytes, not {len(data)}")
    return data


def at_least(what: str, data: Buffer, size: int) -> Buffer:
    """`data`, which has to have `size` bytes or more.  Raises LayoutError."""
    if len(data) < size:
        raise LayoutError(f"{what} has {size} bytes at least, not {len(data)}")
    return data


def padded(what: str, data: Buffer, least: int, size: int) -> bytes:
    """The first `size` bytes of a configuration space, which may be shorter or longer than we know.

    What is missing reads as zero.  Raises LayoutError for less than the `least` bytes that every such device has.
    """
    return bytes(at_least(what, data, least)[:size]).ljust(size, b"\0")
