"""Reading the golden tables: CSV files written from the specifications alone, without sight of the code."""

from __future__ import annotations

import csv
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def rows(name: str) -> list[dict[str, str]]:
    """All rows of tests/golden/`name`, by column."""
    with (GOLDEN / name).open(newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> int:
    """A decimal or hexadecimal cell."""
    return int(text, 0)
