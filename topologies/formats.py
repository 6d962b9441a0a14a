"""How a verb prints, and what it does when nobody reads."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TextIO


class Format(StrEnum):
    """For people, or one JSON object for programs."""

    TABLE = "table"
    JSON = "json"


class CompareFormat(StrEnum):
    """How a comparison is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def silence(stream: TextIO) -> None:
    """Let everything that still goes to `stream`, whose reader has left, go nowhere.

    Without it the interpreter would stumble over the same broken pipe once more when it flushes at its end, and change
    the exit code for it.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
