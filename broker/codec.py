"""The one place where bytes from a socket become Python values: MessagePack, cut down to what records need.

Specification: the MessagePack format (msgpack.org).  Allowed are nil, booleans, integers, floats, UTF-8
strings, binaries and arrays.  Maps and extension types (timestamps included) are refused even when empty,
because a record is an array whose fields have positions.  The bound on one array's length also bounds
memory: the decoder allocates an array as soon as it reads the announced length, so three hostile bytes per
nesting level would otherwise cost half a megabyte each.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]

MAX_ARRAY: Final = 256
"""Items in one array, at any depth."""

MAX_TEXT: Final = 65536
"""Bytes of one string or binary."""

MAX_DEPTH: Final = 8
"""Arrays within arrays that a record's free fields may hold, the record itself included."""

_shorten = reprlib.Repr()
_shorten.maxlevel = 2
_shorten.maxlist = _shorten.maxtuple = 4
_shorten.maxstring = _shorten.maxother = 60


_PACKER: Final = msgpack.Packer(use_bin_type=True)  # empties itself after every value, one that failed included


class CodecError(ValueError):
    """These bytes are not one well-formed value of the allowed kinds, or this value has no encoding."""


def _refuse_map(_pairs: object) -> object:
    raise CodecError("maps are not allowed")


def _refuse_extension(code: int, _data: bytes) -> object:
    raise CodecError(f"extension type {code} is not allowed")


def show(value: object) -> str:
    """A short `repr` for messages: bounded in length and depth whatever a peer sent."""
    return _shorten.repr(value)


def pack(value: object) -> bytes:
    """Encode one value.  CodecError when it holds something that has no encoding."""
    try:
        packed: bytes = _PACKER.pack(value)
    except (ValueError, TypeError, OverflowError, UnicodeError) as error:
        raise CodecError(f"{show(value)} cannot be encoded: {error}") from None
    return packed


def array_header(count: int) -> bytes:
    """The bytes that announce an array of `count` items (0 to 65535)."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big")


def pack_items(values: Sequence[object]) -> bytes:
    """Encode values one behind another, without the header that would make them an array."""
    return pack(list(values))[len(array_header(len(values))) :]


def unpack_array(data: bytes | memoryview) -> list[Any]:
    """Decode exactly one array that fills `data`.  CodecError for everything else."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            object_pairs_hook=_refuse_map,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ARRAY,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_TEXT,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(str(error) or type(error).__name__) from None
    if type(value) is not list:
        raise CodecError(f"an array was expected, not {show(value)}")
    return value


def shallow(value: object, depth: int = MAX_DEPTH) -> bool:
    """Whether `value` is made of encodable scalars and of arrays nested at most `depth` deep."""
    if value is None or isinstance(value, (bool, float, str, bytes)):
        return True
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    if not isinstance(value, (list, tuple)) or depth == 0 or len(value) > MAX_ARRAY:
        return False
    items: Sequence[object] = value
    return all(shallow(item, depth - 1) for item in items)
