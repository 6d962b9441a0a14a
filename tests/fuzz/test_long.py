"""A million operations on every surface; what counts as one, tests/fuzz/targets says (issue: 10^6 inputs each)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.engine import ROOT
from tests.fuzz.targets import TARGETS, target_named

OPERATIONS = 1_000_000
SEED = 1000


@pytest.mark.long
@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_a_million(name: str) -> None:
    """In an interpreter of its own, with another seed than `make fuzz` has."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--engine", "random"]
    command += ["--operations", str(OPERATIONS), "--seed", str(SEED)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    words = f" {target_named(name).counts}"
    assert int(done.stdout.rpartition(" inputs, ")[2].partition(words)[0]) >= OPERATIONS
