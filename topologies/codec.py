"""Frozen dataclasses to JSON and back, driven by their type hints: scalars, `X | None`, tuples, dicts of text keys.

For what the launcher writes down about a run and reads again later: plans and configurations.  Bytes become
hexadecimal text, tuples lists.  Reading is strict: a missing or unknown field, or a value of the wrong type,
is a CodecError that names the place, so that a damaged file is recognised as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class CodecError(ValueError):
    """Data that is not the JSON form of the wanted class."""


def encode(value: Any) -> Any:
    """JSON data (dicts, lists, scalars) for a dataclass of the supported shapes."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: type[T], data: Any) -> T:
    """The `kind` whose `encode` is `data`.  Raises CodecError."""
    value: T = _decode(kind, data, kind.__name__)
    return value


def _decode(kind: Any, data: Any, place: str) -> Any:
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _decode_dataclass(kind, data, place)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        hints = get_type_hints(kind)
        items = _checked(list, data, place)
        if len(items) != len(hints):
            raise CodecError(f"{place}: expected {len(hints)} items, not {len(items)}")
        return kind(
            *(_decode(hint, item, f"{place}.{name}") for (name, hint), item in zip(hints.items(), items, strict=True))
        )
    if kind is bytes:
        return _hex(_checked(str, data, place), place)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return None if data is None else _decode(_part_of(arguments, data), data, place)
    if origin is tuple:
        items = _checked(list, data, place)
        if Ellipsis not in arguments:
            if len(items) != len(arguments):
                raise CodecError(f"{place}: expected {len(arguments)} items, not {len(items)}")
            return tuple(
                _decode(part, item, f"{place}[{index}]")
                for part, (index, item) in zip(arguments, _numbered(items), strict=True)
            )
        return tuple(_decode(arguments[0], item, f"{place}[{index}]") for index, item in _numbered(items))
    if origin is dict:
        entries = _checked(dict, data, place)
        return {key: _decode(arguments[1], item, f"{place}.{key}") for key, item in entries.items()}
    return _checked(kind, data, place)


def _part_of(arguments: tuple[Any, ...], data: Any) -> Any:
    """The part of a union that `data` is, or the first for an error."""
    parts = [part for part in arguments if part is not NoneType]
    return next((part for part in parts if isinstance(part, type) and type(data) is part), parts[0])


def _decode_dataclass(kind: Any, data: Any, place: str) -> Any:
    given = _checked(dict, data, place)
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        if field.name in given:
            values[field.name] = _decode(hints[field.name], given[field.name], f"{place}.{field.name}")
        elif field.default is MISSING:
            raise CodecError(f"{place}.{field.name} is missing")
    unknown = sorted(set(given) - set(values))
    if unknown:
        raise CodecError(f"{place} has no field {unknown[0]!r}")
    return kind(**values)


def _checked(kind: Any, data: Any, place: str) -> Any:
    if kind is float and type(data) is int:
        return float(data)  # JSON writers may drop the point
    # bool is an int for Python, not for JSON.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise CodecError(f"{place}: expected {kind.__name__}, not {type(data).__name__}")
    return data


def _hex(text: str, place: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise CodecError(f"{place}: expected hexadecimal digits") from None


def _numbered(items: Any) -> Iterable[tuple[int, Any]]:
    return enumerate(items)
