"""Sizes and durations as people write them: `64MiB`, `500ms`, `5s`.

Sizes are bytes with binary prefixes (IEC 80000-13); durations are nanoseconds.  All arithmetic is on
integers: what cannot be expressed as a whole number of bytes or nanoseconds is an error, not a rounding.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

LARGEST: Final = (1 << 63) - 1


class Unit(NamedTuple):
    """A unit and how many bytes or nanoseconds it stands for."""

    name: str
    factor: int


# Largest first: the order in which a value is written back.
SIZE_UNITS: Final = (
    Unit("TiB", 1_099_511_627_776),
    Unit("GiB", 1_073_741_824),
    Unit("MiB", 1_048_576),
    Unit("KiB", 1_024),
    Unit("B", 1),
)
DURATION_UNITS: Final = (
    Unit("h", 3_600_000_000_000),
    Unit("m", 60_000_000_000),
    Unit("s", 1_000_000_000),
    Unit("ms", 1_000_000),
    Unit("us", 1_000),
    Unit("ns", 1),
)


class Spelling(NamedTuple):
    """A spelling that other tools use, and the unit of ours that its writer probably means."""

    written: str
    meant: str


SPELLINGS: Final = (
    Spelling("k", "KiB"),
    Spelling("kb", "KiB"),
    Spelling("ki", "KiB"),
    Spelling("m", "MiB"),
    Spelling("mb", "MiB"),
    Spelling("mi", "MiB"),
    Spelling("g", "GiB"),
    Spelling("gb", "GiB"),
    Spelling("gi", "GiB"),
    Spelling("t", "TiB"),
    Spelling("tb", "TiB"),
    Spelling("ti", "TiB"),
    Spelling("bytes", "B"),
    Spelling("sec", "s"),
    Spelling("second", "s"),
    Spelling("seconds", "s"),
    Spelling("min", "m"),
    Spelling("minutes", "m"),
    Spelling("msec", "ms"),
    Spelling("\u00b5s", "us"),
    Spelling("\u03bcs", "us"),
    Spelling("usec", "us"),
    Spelling("nsec", "ns"),
    Spelling("hours", "h"),
)

# No unit has more than seven letters, and nothing up to LARGEST has more than nineteen digits.
_QUANTITY = re.compile(r"(-?)([0-9]{1,30})(?:\.([0-9]{1,30}))? ?([^\W\d_]{0,10})")
_CLOCK = re.compile(r"([0-9]{1,4}):([0-5][0-9])(?::([0-5][0-9]))?")


class UnitError(ValueError):
    """What is wrong with a quantity (`message`), and how to write it (`hint`)."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def parse_size(text: str) -> int:
    """Bytes from `64MiB`, `1.5KiB` or `4096`.  Raises UnitError."""
    return _parse(text, "size", "bytes", SIZE_UNITS, SIZE_UNITS[-1], "a number and a unit, such as 64MiB")


def parse_duration(text: str) -> int:
    """Nanoseconds from `500ms`, `1.5s` or `2m`.  Raises UnitError."""
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        first, second, third = (int(part or 0) for part in clock.groups())
        seconds = first * 3600 + second * 60 + third if clock[3] else first * 60 + second
        raise UnitError(f"{text!r} is no duration", f"write {format_duration(seconds * 1_000_000_000)}")
    return _parse(text, "duration", "nanoseconds", DURATION_UNITS, None, "a number and a unit, such as 500ms or 5s")


def format_size(size: int) -> str:
    """The shortest exact way to write `size` bytes; parse_size gives it back."""
    return _format(size, SIZE_UNITS)


def format_duration(nanoseconds: int) -> str:
    """The shortest exact way to write a duration; parse_duration gives it back."""
    return "0s" if nanoseconds == 0 else _format(nanoseconds, DURATION_UNITS)


def _format(value: int, units: tuple[Unit, ...]) -> str:
    for unit in units:
        if value and value % unit.factor == 0:
            return f"{value // unit.factor}{unit.name}"
    return f"{value}{units[-1].name}"


def _parse(text: str, what: str, smallest: str, units: tuple[Unit, ...], bare: Unit | None, example: str) -> int:
    shown = repr(text if len(text) <= 40 else text[:37] + "...")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(f"{shown} is no {what}", f"write {example}")
    sign, whole, fraction, written = match[1], match[2], match[3] or "", match[4]
    if sign:
        raise UnitError(f"{shown}: a {what} is not negative", f"write {example}")
    unit = bare if not written else next((unit for unit in units if unit.name == written), None)
    if unit is None:
        number = whole + ("." + fraction if fraction else "")
        raise _no_unit(shown, what, number, written, units)
    value, rest = divmod(int(whole + fraction) * unit.factor, int("1" + "0" * len(fraction)))
    if rest:
        raise UnitError(f"{shown} is not a whole number of {smallest}", f"write {example}")
    if value > LARGEST:
        raise UnitError(f"{shown} is too large", f"at most {LARGEST} {smallest}")
    return value


def _no_unit(shown: str, what: str, number: str, written: str, units: tuple[Unit, ...]) -> UnitError:
    names = [unit.name for unit in units]
    known = ", ".join(reversed(names))
    if not written:
        return UnitError(f"{shown} has no unit", f"write {number}s for seconds [units: {known}]")
    lowered = written.lower()
    meant = [spelling.meant for spelling in SPELLINGS if spelling.written == lowered]
    meant += [name for name in names if name.lower() == lowered]
    for name in meant:
        if name in names:
            return UnitError(f"{shown} is no {what}", f"did you mean {number}{name}? [units: {known}]")
    return UnitError(f"{shown} is no {what}: {written!r} is no unit", f"units: {known}")
