"""docs/comparison.md shows what is counted (issue 6, part 4)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_comparison_is_what_is_counted() -> None:
    """Every cell, once more: the same numbers."""
    words = [sys.executable, str(ROOT / "docs" / "comparison.py"), "--check"]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
