"""The schema's verdicts in the words of a topology: pydantic's errors become diagnostics with positions.

pydantic knows where in the data an error is; the tree of marked nodes knows where in the text that came
from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from topologies.diagnose import Diagnostic, at, describe, quoting, show
from topologies.marks import Location, Mark, Node, find, key_mark
from topologies.merge import SECTIONS
from topologies.schema import field_at, keys_at, literals_at

_KEY: Final = "[key]"  # how pydantic marks errors of a map's key rather than its value


class Word(NamedTuple):
    """A word that is a boolean in YAML 1.1, or elsewhere."""

    word: str
    value: bool


WORDS: Final = (
    Word("on", True),
    Word("yes", True),
    Word("y", True),
    Word("true", True),
    Word("off", False),
    Word("no", False),
    Word("n", False),
    Word("false", False),
)


def translate(root: Node, error: ValidationError) -> Iterator[tuple[Location, Diagnostic]]:
    """One diagnostic for each error of validating the tree `root`, with its location."""
    for details in error.errors(include_url=False):
        location: Location = details["loc"]
        at_key = bool(location) and location[-1] == _KEY
        if at_key:
            location = location[:-1]
        if details["type"] == "missing":
            yield location, missing(root, location)
        elif details["type"] == "extra_forbidden":
            yield location, _unknown_key(root, location)
        else:
            node = find(root, location)
            mark = key_mark(root, location) if at_key or node is None else node.mark
            yield location, _wrong_value(mark, location, details)


def missing(root: Node, location: Location, choices: tuple[str, ...] = ()) -> Diagnostic:
    """The key at `location` is required and not there; it is reported where the map around it is named."""
    field = field_at(location)
    hint = f"{location[-1]}: {_lower(field.description or '')}" if field is not None else ""
    message = f"the key {show(location[-1])} is missing"
    return at(key_mark(root, location[:-1]), location, message, choices=choices, hint=hint)


def _unknown_key(root: Node, location: Location) -> Diagnostic:
    key, choices = str(location[-1]), keys_at(location[:-1])
    hint = ""
    for section in SECTIONS:
        if len(location) == 3 and section.name != location[0] and key in section.keys:
            hint = f"{key} is a key of {section.name}"
    return at(key_mark(root, location), location, "unknown key", value=key, choices=choices, hint=hint)


def _wrong_value(mark: Mark, location: Location, details: ErrorDetails) -> Diagnostic:
    value, context = details["input"], details.get("ctx", {})
    if details["type"] == "argosy":
        return at(mark, location, str(context["message"]), hint=str(context["hint"]))
    if details["type"] == "literal_error":
        choices = literals_at(location)
        if isinstance(value, str):
            return at(mark, location, f"{show(value)} is no choice here", value=value, choices=choices)
        return at(mark, location, f"expected one of the choices, not {describe(value)}", choices=choices)
    saying = SAYINGS.get(details["type"])
    if saying is None:
        return at(mark, location, _lower(details["msg"]))
    message, hint = saying(value, context)
    return at(mark, location, message, hint=hint)


def _text(value: Any, _context: dict[str, Any]) -> tuple[str, str]:
    scalar = isinstance(value, bool | int | float)
    return f"expected text, not {describe(value)}", quoting(value) if scalar else ""


def _boolean(value: Any, _context: dict[str, Any]) -> tuple[str, str]:
    hint = ""
    for row in WORDS:
        if isinstance(value, str) and value.lower() == row.word:
            hint = f"write {show(row.value)}; YAML 1.2 has no other booleans"
            if value == show(row.value):
                hint = "leave the quotes away"
    return f"expected true or false, not {describe(value)}", hint


def _integer(value: Any, _context: dict[str, Any]) -> tuple[str, str]:
    return f"expected an integer, not {describe(value)}", ""


def _map(value: Any, _context: dict[str, Any]) -> tuple[str, str]:
    return f"expected a map, not {describe(value)}", ""


def _list(value: Any, _context: dict[str, Any]) -> tuple[str, str]:
    scalar = isinstance(value, str | bool | int | float)
    return f"expected a list, not {describe(value)}", f"write [{show(value)}]" if scalar else ""


def _too_small(value: Any, context: dict[str, Any]) -> tuple[str, str]:
    return f"{show(value)} is too small: at least {context['ge']}", ""


def _too_large(value: Any, context: dict[str, Any]) -> tuple[str, str]:
    return f"{show(value)} is too large: at most {context['le']}", ""


def _too_short(_value: Any, context: dict[str, Any]) -> tuple[str, str]:
    return f"too few items: at least {context['min_length']}", ""


# Types of pydantic's errors and what we say instead: message and hint.
SAYINGS: Final[dict[str, Callable[[Any, dict[str, Any]], tuple[str, str]]]] = {
    "string_type": _text,
    "bool_type": _boolean,
    "int_type": _integer,
    "dict_type": _map,
    "model_type": _map,
    "list_type": _list,
    "greater_than_equal": _too_small,
    "less_than_equal": _too_large,
    "too_short": _too_short,
}


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
