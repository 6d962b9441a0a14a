"""Reading a program's arguments (`with:` in the topology), with errors that say what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from guest_node.files import safe_name
from guest_node.guest import Guest
from hmx.argo.abi import DOMID_ANY, Address
from hmx.services import ServiceError, port_of


class Unit(NamedTuple):
    """A unit, and how many bytes or seconds it stands for."""

    name: str
    factor: float


SIZE_UNITS: Final = (Unit("B", 1), Unit("KiB", 1024), Unit("MiB", 1048576), Unit("GiB", 1073741824))
TIME_UNITS: Final = (Unit("us", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0), Unit("m", 60.0))
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
MIN_RING: Final = 48


class ArgumentError(ValueError):
    """An argument that the program cannot use."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"with.{key}: {problem}")
        self.key = key


def check_keys(arguments: Mapping[str, Any], *known: str) -> None:
    """Refuse keys that the program does not know."""
    for key in arguments:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ArgumentError(key, f"no such argument.{meant} [valid: {', '.join(known)}]")


def text(arguments: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A text.  Required if there is no default."""
    value = arguments.get(key, default)
    if value is None:
        raise ArgumentError(key, "is missing")
    if not isinstance(value, str) or not value:
        raise ArgumentError(key, f"{value!r} is no text")
    return value


def choice(arguments: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """One of `choices`; the first is the default."""
    value = arguments.get(key, choices[0])
    if value not in choices:
        raise ArgumentError(key, f"{value!r} is none of {', '.join(choices)}")
    return str(value)


def yes_or_no(arguments: Mapping[str, Any], key: str) -> bool:
    """A boolean, false by default."""
    value = arguments.get(key, False)
    if not isinstance(value, bool):
        raise ArgumentError(key, f"{value!r} is neither true nor false")
    return value


def output_name(arguments: Mapping[str, Any], key: str, default: str = "") -> str:
    """A plain file name; `default` may be empty: no file."""
    if key not in arguments:
        return default
    name = text(arguments, key)
    if safe_name(name) != name:
        raise ArgumentError(key, f"{name!r} is no plain file name; try {safe_name(name)!r}")
    return name


def whole(arguments: Mapping[str, Any], key: str, default: int, least: int = 0, most: int = 2**32 - 1) -> int:
    """A whole number from `least` to `most`."""
    value = arguments.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ArgumentError(key, f"{value!r} is no whole number from {least} to {most}")
    return value


def size(arguments: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    """Bytes: a whole number, or a text such as "64KiB"."""
    value = arguments.get(key, default)
    count = _scaled(value, SIZE_UNITS)
    if count is None or count != int(count) or count < least:
        raise ArgumentError(key, f"{value!r} is no size of at least {least} bytes; write 65536 or 64KiB")
    return int(count)


def ring_size(arguments: Mapping[str, Any], key: str = "ring", default: int = 130992) -> int:
    """Data bytes of a ring: a size, rounded down to whole slots of 16 bytes."""
    return size(arguments, key, default, MIN_RING) // 16 * 16


def seconds(arguments: Mapping[str, Any], key: str, default: float) -> float:
    """A duration: a number of seconds, or a text such as "500ms"."""
    value = arguments.get(key, default)
    count = _scaled(value, TIME_UNITS)
    if count is None:
        raise ArgumentError(key, f"{value!r} is no duration; write 10, 10s or 500ms")
    return count


def peer(guest: Guest, key: str, *, optional: bool = False) -> int | None:
    """The domain id of the guest named by argument `key`; a number stands for itself."""
    value = guest.arguments.get(key)
    if value is None and optional:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value in guest.peers:
        return guest.peers[value]
    names = ", ".join(guest.peers) or "none"
    if value is None:
        raise ArgumentError(key, f"is missing [valid: {names}]")
    close = difflib.get_close_matches(str(value), list(guest.peers), 1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise ArgumentError(key, f"{value!r} is no guest on this hypervisor.{meant} [valid: {names}]")


def destination(guest: Guest, default_port: int) -> Address:
    """Where argument `to` (a guest, at `port`) or `service` (and `instance`) leads.

    A service is a well-known port of an implicit destination (experimental): who serves it is the toolstack's choice.
    """
    if "service" not in guest.arguments:
        domid = peer(guest, "to")
        assert domid is not None
        return Address(own_port(guest, default_port), domid)
    if "to" in guest.arguments:
        raise ArgumentError("to", "goes without `service`, which says it all")
    return Address(own_port(guest, default_port), DOMID_ANY)


def own_port(guest: Guest, default_port: int) -> int:
    """The port that argument `port` says, or `service` and `instance`."""
    arguments = guest.arguments
    if "service" not in arguments:
        return whole(arguments, "port", default_port, 1)
    if "port" in arguments:
        raise ArgumentError("port", "goes without `service`, which says it all")
    return service_port(arguments)


def service_port(arguments: Mapping[str, Any]) -> int:
    """The port of `service` and `instance`."""
    try:
        return port_of(text(arguments, "service"), whole(arguments, "instance", 0))
    except ServiceError as problem:
        raise ArgumentError("service", str(problem)) from None


def told(arguments: Mapping[str, Any]) -> str:
    """What the topology calls the destination."""
    name = arguments.get("service")
    return str(arguments.get("to")) if name is None else f"service {name}"


def _scaled(value: Any, units: tuple[Unit, ...]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if value >= 0 else None
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    number, name = match.groups()
    for unit in units:
        if unit.name == name or (not name and unit.factor == 1):
            return float(number) * unit.factor
    return None
