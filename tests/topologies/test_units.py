"""Sizes and durations: IEC 80000-13 binary prefixes, SI prefixes of the second; exact integers only."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies.units import LARGEST, UnitError, format_duration, format_size, parse_duration, parse_size

SIZES = (
    ("0B", 0),
    ("1B", 1),
    ("4096", 4096),
    ("1KiB", 1024),
    ("64KiB", 65536),
    ("64MiB", 67108864),
    ("64 MiB", 67108864),
    ("1GiB", 1073741824),
    ("2TiB", 2199023255552),
    ("1.5KiB", 1536),
    ("0.5GiB", 536870912),
    ("9223372036854775807", LARGEST),
)
DURATIONS = (
    ("1ns", 1),
    ("0s", 0),
    ("7us", 7_000),
    ("500ms", 500_000_000),
    ("5s", 5_000_000_000),
    ("5 s", 5_000_000_000),
    ("1.5s", 1_500_000_000),
    ("2m", 120_000_000_000),
    ("3h", 10_800_000_000_000),
    ("0.25us", 250),
)


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: str, size: int) -> None:
    """topology.md: `memory: 64MiB`."""
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "nanoseconds"), DURATIONS)
def test_durations(text: str, nanoseconds: int) -> None:
    """topology.md: `linger: 500ms`, `within: 20s`."""
    assert parse_duration(text) == nanoseconds


WRITTEN_BACK = (
    (0, "0B", "0s"),
    (1, "1B", "1ns"),
    (1_000, "1000B", "1us"),
    (1_024, "1KiB", "1024ns"),
    (1_000_000, "1000000B", "1ms"),
    (1_048_576, "1MiB", "1048576ns"),
    (1_500_000_000, "1500000000B", "1500ms"),
    (1_073_741_824, "1GiB", "1073741824ns"),
    (60_000_000_000, "58593750KiB", "1m"),
    (1_099_511_627_776, "1TiB", "1099511627776ns"),
    (7_200_000_000_000, "7031250000KiB", "2h"),
    (1_000_000_000, "1000000000B", "1s"),
)


@pytest.mark.parametrize(("value", "size", "duration"), WRITTEN_BACK)
def test_values_are_written_in_their_largest_exact_unit(value: int, size: str, duration: str) -> None:
    """A resolved topology is read by people."""
    assert format_size(value) == size
    assert format_duration(value) == duration


@given(st.integers(0, LARGEST))
def test_what_is_written_is_read_back(value: int) -> None:
    """Writing and reading are exact inverses."""
    assert parse_size(format_size(value)) == value
    assert parse_duration(format_duration(value)) == value


MEANT = (
    ("64k", "64KiB"),
    ("64K", "64KiB"),
    ("64KB", "64KiB"),
    ("64kB", "64KiB"),
    ("64Ki", "64KiB"),
    ("64M", "64MiB"),
    ("64MB", "64MiB"),
    ("64Mi", "64MiB"),
    ("64mib", "64MiB"),
    ("1.5G", "1.5GiB"),
    ("2GB", "2GiB"),
    ("2Gi", "2GiB"),
    ("2T", "2TiB"),
    ("2TB", "2TiB"),
    ("2Ti", "2TiB"),
    ("2gib", "2GiB"),
    ("9bytes", "9B"),
    ("9b", "9B"),
    ("5sec", "5s"),
    ("5second", "5s"),
    ("5seconds", "5s"),
    ("5S", "5s"),
    ("5min", "5m"),
    ("5minutes", "5m"),
    ("5msec", "5ms"),
    ("5\u00b5s", "5us"),
    ("5\u03bcs", "5us"),
    ("5usec", "5us"),
    ("5nsec", "5ns"),
    ("5hours", "5h"),
)


@pytest.mark.parametrize(("text", "meant"), MEANT)
def test_other_tools_spellings_are_refused_with_ours(text: str, meant: str) -> None:
    """Nothing is guessed (a megabyte has 10^6 bytes); what was probably meant is named."""
    parse = parse_size if meant.endswith("B") else parse_duration
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert caught.value.message == f"{text!r} is no {'size' if parse is parse_size else 'duration'}"
    assert caught.value.hint.startswith(f"did you mean {meant}? [units: ")


WRONG = (
    (parse_size, "", "'' is no size", "write a number and a unit, such as 64MiB"),
    (parse_size, "MiB", "'MiB' is no size", "write a number and a unit, such as 64MiB"),
    (parse_size, "-1MiB", "'-1MiB': a size is not negative", "write a number and a unit, such as 64MiB"),
    (parse_size, "1,5MiB", "'1,5MiB' is no size", "write a number and a unit, such as 64MiB"),
    (parse_size, "64  MiB", "'64  MiB' is no size", "write a number and a unit, such as 64MiB"),
    (parse_size, "0.1B", "'0.1B' is not a whole number of bytes", "write a number and a unit, such as 64MiB"),
    (parse_size, "8388608TiB", "'8388608TiB' is too large", "at most 9223372036854775807 bytes"),
    (parse_size, "5s", "'5s' is no size: 's' is no unit", "units: B, KiB, MiB, GiB, TiB"),
    (parse_size, "\u0663KiB", "'\u0663KiB' is no size", "write a number and a unit, such as 64MiB"),
    (parse_duration, "5", "'5' has no unit", "write 5s for seconds [units: ns, us, ms, s, m, h]"),
    (parse_duration, "1:30", "'1:30' is no duration", "write 90s"),
    (parse_duration, "2:00", "'2:00' is no duration", "write 2m"),
    (parse_duration, "1:00:01", "'1:00:01' is no duration", "write 3601s"),
    (parse_duration, "5 days", "'5 days' is no duration: 'days' is no unit", "units: ns, us, ms, s, m, h"),
    (
        parse_duration,
        "1.5ns",
        "'1.5ns' is not a whole number of nanoseconds",
        "write a number and a unit, such as 500ms or 5s",
    ),
    (
        parse_duration,
        "x" * 50,
        f"'{'x' * 37}...' is no duration",
        "write a number and a unit, such as 500ms or 5s",
    ),
)


@pytest.mark.parametrize(("parse", "text", "message", "hint"), WRONG)
def test_errors_say_what_to_write(parse: object, text: str, message: str, hint: str) -> None:
    """Every refusal names the quantity and how to write it."""
    assert parse in (parse_size, parse_duration)
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9.]{0,50} ?[a-zA-Z]{0,12}", fullmatch=True))
def test_no_text_gives_another_exception(text: str) -> None:
    """Any text is a quantity in range or a UnitError."""
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(UnitError):
            assert 0 <= parse(text) <= LARGEST
