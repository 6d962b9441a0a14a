"""What hypervisors tell each other about slots.  Experimental, not upstream.

Each message is a request that is answered by 0 or a negated errno, once the other side has done what it says and
everybody whom it had to tell in turn has done so too.  As a record a message is a list, its name first, of integers,
strings and lists; `read` takes nothing for granted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeGuard

from hmx.argo.abi import U32_MAX
from hv_node.levels.narrowing import Narrowing, Ranges, normal
from hv_node.levels.slot_table import LAST_NUMBER, MAX_DEPTH, Path, SlotId

MAX_CHAIN: Final = 16  # slots from the toolstack's to the last one that was made from it
MAX_ITEMS: Final = 256  # ports ranges or message types of a narrowing
MAX_SERIAL: Final = (1 << 63) - 1
MAX_RATE: Final = 1e9


class Grant(NamedTuple):
    """A slot was passed on to `holder`, a guest of yours.  `parent` calls it `serial`."""

    parent: SlotId
    serial: int
    holder: Path
    source_port: int | None
    port: int | None
    to: Path
    to_port: int | None
    narrowing: Narrowing
    delegable: bool
    chain: tuple[SlotId, ...]


class Revoke(NamedTuple):
    """That slot, and all that were made from it, are gone."""

    parent: SlotId
    serial: int


class Narrow(NamedTuple):
    """That slot, and all that were made from it, let no more pass than this."""

    parent: SlotId
    serial: int
    narrowing: Narrowing


class Forget(NamedTuple):
    """What came through this slot may not be answered any more."""

    slot: SlotId


class ForgetSource(NamedTuple):
    """What came from this guest, by a slot that leads upwards, may not be answered until it sends again."""

    source: Path


Message = Grant | Revoke | Narrow | Forget | ForgetSource


class MessageError(ValueError):
    """A record that is no message."""


def record(message: Message) -> list[Any]:
    """The message as lists, strings, numbers and None."""
    return [type(message).__name__, *(_plain(field) for field in message)]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def read(found: object) -> Message:
    """The message that a record holds.  Raises MessageError."""
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise MessageError("no record of a message about slots")
    reader = _READERS.get(found[0])
    if reader is None:
        raise MessageError(f"no message {found[0]!r}")
    kind, fields = reader
    if len(found) - 1 != len(fields):
        raise MessageError(f"{found[0]}: {len(found) - 1} fields, not {len(fields)}")
    return kind(*(take(value) for take, value in zip(fields, found[1:], strict=True)))


def _whole(value: object, last: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last


def _integer(last: int) -> Callable[[object], int]:
    def take(value: object) -> int:
        if not _whole(value, last):
            raise MessageError(f"{value!r:.40} is no integer from 0 to {last}")
        return value

    return take


_port = _integer(U32_MAX)


def _port_or_none(value: object) -> int | None:
    return None if value is None else _port(value)


def _items(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise MessageError(f"{value!r:.40} is no list of at most {most}")
    return value


def _path(value: object) -> Path:
    names = _items(value, MAX_DEPTH)
    if not all(isinstance(name, str) and name for name in names):
        raise MessageError(f"{value!r:.40} is no path")
    return tuple(names)


def _slot(value: object) -> SlotId:
    parts = _items(value, 2)
    if len(parts) != 2 or not (holder := _path(parts[0])):
        raise MessageError(f"{value!r:.40} names no slot")
    return SlotId(holder, _integer(LAST_NUMBER)(parts[1]))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise MessageError(f"{value!r:.40} is no truth value")
    return value


def _chain(value: object) -> tuple[SlotId, ...]:
    return tuple(_slot(link) for link in _items(value, MAX_CHAIN))


def _ranges(value: object) -> Ranges:
    found = []
    for pair in _items(value, MAX_ITEMS):
        ends = _items(pair, 2)
        if len(ends) != 2 or _port(ends[0]) > _port(ends[1]):
            raise MessageError(f"{pair!r:.40} is no range of ports")
        found.append((ends[0], ends[1]))
    return normal(tuple(found))


def _narrowing(value: object) -> Narrowing:
    parts = _items(value, 3)
    if len(parts) != 3:
        raise MessageError(f"{value!r:.40} is no narrowing")
    types = None if parts[1] is None else tuple(_port(kind) for kind in _items(parts[1], MAX_ITEMS))
    rate = parts[2]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= MAX_RATE:
        raise MessageError(f"{rate!r:.40} is no rate")
    return Narrowing(_ranges(parts[0]), types, rate)


_SERIAL: Final = _integer(MAX_SERIAL)
_Field = Callable[[object], Any]
_READERS: Final[dict[str, tuple[Callable[..., Message], tuple[_Field, ...]]]] = {
    "Grant": (
        Grant,
        (_slot, _SERIAL, _path, _port_or_none, _port_or_none, _path, _port_or_none, _narrowing, _flag, _chain),
    ),
    "Revoke": (Revoke, (_slot, _SERIAL)),
    "Narrow": (Narrow, (_slot, _SERIAL, _narrowing)),
    "Forget": (Forget, (_slot,)),
    "ForgetSource": (ForgetSource, (_path,)),
}
