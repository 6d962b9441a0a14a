"""Types of record fields, as data, and the error that every refused record becomes.

A field type is what a value must be (a Python type after decoding), its bounds, and the words that an error
message uses for it.  Bounds are of the value for integers, of the length for text, bytes and arrays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from broker import codec

Record = Sequence[Any]
"""A record: an array whose first item, on the control and event lanes, is its name."""


class FieldType(NamedTuple):
    """What a field accepts.  `items` says what an array holds: "record" (a named record), "path" or "numbers"."""

    expected: str
    base: type
    low: int = 0
    high: int = 0
    pattern: str | None = None
    items: str | None = None

    def accepts(self, value: object) -> bool:
        """Whether `value` may stand in a field of this type."""
        if self.base is object:
            return codec.shallow(value)
        if self.base is int:
            return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
        if self.base is list:
            return isinstance(value, (list, tuple)) and self._accepts_items(value)
        if not isinstance(value, (str, bytes)) or not isinstance(value, self.base):
            return False
        if not self.low <= len(value) <= self.high:
            return False
        return self.pattern is None or (isinstance(value, str) and bool(re.fullmatch(self.pattern, value, re.ASCII)))

    def _accepts_items(self, value: Sequence[object]) -> bool:
        if not self.low <= len(value) <= self.high:
            return False
        if self.items == "path":
            return all(STEP.accepts(item) or U32.accepts(item) for item in value)
        if self.items == "numbers":
            return all(isinstance(item, (int, float)) and 0 <= item < 1 << 63 for item in value)
        return isinstance(value[0], str) and codec.shallow(value)


MAX_HOPS: Final = 32

ANY: Final = FieldType("made of nil, booleans, numbers, text, bytes and shallow arrays", object)
U8: Final = FieldType("an integer from 0 to 255", int, 0, 0xFF)
U32: Final = FieldType("an integer from 0 to 2^32 - 1", int, 0, 0xFFFFFFFF)
U64: Final = FieldType("an integer from 0 to 2^64 - 1", int, 0, 0xFFFFFFFFFFFFFFFF)
I32: Final = FieldType("an integer from -2^31 to 2^31 - 1", int, -0x80000000, 0x7FFFFFFF)
TEXT: Final = FieldType("text of at most 16384 characters", str, 0, 16384)
CODE: Final = FieldType("a code of 1 to 128 characters", str, 1, 128)
LABEL: Final = FieldType("a label of at most 255 characters", str, 0, 255)
NAME: Final = FieldType(
    "a name: 1 to 128 of letters, digits, '.', '_', '-', the first a letter or digit",
    str, 1, 128, r"[A-Za-z0-9][A-Za-z0-9._-]*",
)  # fmt: skip
STEP: Final = FieldType(
    "a step of a path: a name, a name and its incarnation ('app#2'), '*', or nothing",
    str, 0, 140, r"|\*|[A-Za-z0-9][A-Za-z0-9._-]*(#[1-9][0-9]{0,9})?",
)  # fmt: skip
KIND: Final = FieldType("one of hypervisor, guest, agent", str, 1, 16, r"hypervisor|guest|agent")
SECRET: Final = FieldType("1 to 64 bytes", bytes, 1, 64)
RECORD: Final = FieldType("an array that starts with a name and is shallow", list, 1, codec.MAX_ARRAY, None, "record")
PATH: Final = FieldType(f"a path of at most {MAX_HOPS} names or domain ids", list, 0, MAX_HOPS, None, "path")
PEER_STATE: Final = FieldType("one of up, down, dead", str, 2, 4, r"up|down|dead")
IMPAIRMENT: Final = FieldType("7 numbers, none negative", list, 7, 7, None, "numbers")


class Field(NamedTuple):
    """A field's name, as errors print it, and its type."""

    name: str
    type: FieldType


class RecordError(ValueError):
    """A record is not what its row of the vocabulary says: which record, which field, what it held, what was
    wanted.
    """

    def __init__(self, record: str, field: str, value: object, expected: str) -> None:
        self.record = record
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{record}.{field}: {codec.show(value)} is not {expected}")


def check_fields(record: str, fields: Sequence[Field], values: Sequence[object]) -> None:
    """Check `values` against `fields`, one to one.  RecordError names the first that does not fit."""
    for field, value in zip(fields, values, strict=True):
        if not field.type.accepts(value):
            raise RecordError(record, field.name, value, field.type.expected)
