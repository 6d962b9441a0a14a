"""What is wrong with a topology, said so that it can be mended.

A :class:`Diagnostic` names the place (file:line:column), the path in the topology, the value, the choices
there are, the nearest one, and a hint.  All of a file's errors are collected and raised together as one
:class:`TopologyError`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TextIO

from topologies.exitcodes import ExitCode
from topologies.marks import Location, Mark, Scalar, render

_SHOWN_CHOICES: Final = 12
_SHOWN_LETTERS: Final = 40
# Beyond these a nearest name costs more than it tells.
_COMPARED_CHOICES: Final = 100
_COMPARED_LETTERS: Final = 60
_ALIKE: Final = 0.62  # share of letters in common; hv9 and hv0 have 0.67


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error.  `line` 0: it concerns the file as a whole; `path` "" the text rather than a value in it."""

    file: str
    line: int
    column: int
    path: str
    message: str
    suggestion: str = ""
    valid: tuple[str, ...] = ()
    hint: str = ""

    def text(self) -> str:
        """The error as printed: one line, and one more where there is a hint."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{place} {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
        if self.suggestion:
            text += f". Did you mean {self.suggestion!r}?"
        if self.valid:
            text += f" [valid: {_choices(self.valid)}]"
        return printable(text) + (f"\n    hint: {printable(self.hint)}" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        """The error for programs; `valid` is complete here."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "message": self.message,
            "suggestion": self.suggestion,
            "valid": list(self.valid),
            "hint": self.hint,
        }


class TopologyError(Exception):
    """A topology that cannot be used: all its errors, in the order of the text.  `exit_code` is what a verb
    returns.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        super().__init__()
        self.diagnostics: tuple[Diagnostic, ...] = in_order(diagnostics)

    def __str__(self) -> str:
        return "\n".join(diagnostic.text() for diagnostic in self.diagnostics)


class EmptyTopology(TopologyError):
    """A sound topology without a single hypervisor or guest: there is nothing to do."""

    exit_code = ExitCode.NOTHING_TO_DO


def at(
    mark: Mark,
    location: Location,
    message: str,
    *,
    value: str = "",
    choices: Sequence[str] = (),
    suggestion: str = "",
    hint: str = "",
) -> Diagnostic:
    """A diagnostic at `mark`; unless one is given, the nearest of `choices` to `value` is its suggestion."""
    valid = tuple(choices)
    suggestion = suggestion or (nearest(value, valid) if value else "")
    return Diagnostic(*mark, render(location), message, suggestion, valid, hint)


def in_order(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Sorted by position.  Of equal messages at one position the first stays: a value may be inherited many
    times.
    """
    unique: dict[tuple[str, int, int, str], Diagnostic] = {}
    for diagnostic in diagnostics:
        key = (diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.message)
        unique.setdefault(key, diagnostic)
    return tuple(sorted(unique.values(), key=lambda found: (found.file, found.line, found.column)))


@lru_cache(maxsize=1024)
def nearest(word: str, choices: tuple[str, ...]) -> str:
    """The choice that `word` is most probably a misspelling of, or ""; the first of those equally alike."""
    if len(choices) > _COMPARED_CHOICES or len(word) > _COMPARED_LETTERS:
        return ""
    matcher = difflib.SequenceMatcher(b=word.lower())
    best, likeness = "", _ALIKE
    for choice in choices:
        matcher.set_seq1(choice.lower())
        if matcher.quick_ratio() > likeness and matcher.ratio() > likeness:
            best, likeness = choice, matcher.ratio()
    return best


def show(value: Any) -> str:
    """A value as YAML would write it, cut to a length that fits a line."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_LETTERS else value[: _SHOWN_LETTERS - 3] + "...")
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int | float):
        digits = str(value)
        return digits if len(digits) <= _SHOWN_LETTERS else digits[: _SHOWN_LETTERS - 3] + "..."
    if isinstance(value, dict):
        return "a map"
    return "a list"


def describe(value: Any) -> str:
    """`show`, with the kind of value where a person might take it for another: `5 (an integer)`."""
    if isinstance(value, bool):
        return f"{show(value)} (a boolean)"
    if isinstance(value, int):
        return f"{show(value)} (an integer)"
    if isinstance(value, float):
        return f"{show(value)} (a number)"
    return show(value)


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not simply show."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def emit(stream: TextIO, text: str) -> None:
    """Write text whatever the stream's encoding: characters that it does not have are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def quoting(value: Scalar) -> str:
    """How to turn a scalar that is not text into text, or what to write instead of nothing."""
    return "write KEY: VALUE" if value is None else f'write it in quotes: "{show(value)}"'


def _choices(valid: tuple[str, ...]) -> str:
    shown = ", ".join(valid[:_SHOWN_CHOICES])
    more = len(valid) - _SHOWN_CHOICES
    return f"{shown}, ... {more} more" if more > 0 else shown
