"""What the `argosy` command's exit codes mean.  Published: scripts and CI jobs rely on the numbers.

The command never lets a Python traceback decide its exit code: an internal error is `DIED`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class ExitCode(IntEnum):
    """The exit codes of every verb."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    NOTHING_TO_DO = 3
    INFRASTRUCTURE = 4
    DIED = 5
    TIMEOUT = 6
    INTERRUPTED = 130


class Row(NamedTuple):
    """One row of the published table."""

    code: int
    name: str
    meaning: str


EXIT_CODES: Final = (
    Row(0, "ok", "everything asked for was done, and every check passed"),
    Row(1, "check-failed", "a check failed, or a program raised or ended non-zero and no check expected it"),
    Row(2, "usage", "wrong usage, or an invalid topology"),
    Row(3, "nothing-to-do", "there is nothing to do"),
    Row(4, "infrastructure", "the machine or the fabric failed: no room, no permission, host unreachable"),
    Row(5, "died", "a node died by a signal or an internal error, and no check expected it"),
    Row(6, "timeout", "a deadline passed"),
    Row(130, "interrupted", "interrupted (Ctrl-C)"),
)


def describe(code: int) -> Row:
    """The row of `code`.  Raises KeyError for a code that is not published."""
    for row in EXIT_CODES:
        if row.code == code:
            return row
    raise KeyError(code)
