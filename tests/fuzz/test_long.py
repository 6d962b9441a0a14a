"""A million operations on every surface; what counts as one, tests/fuzz/targets says (issue: 10^6 inputs each)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.engine import ROOT
from tests.fuzz.targets import TARGETS, target_named

OPERATIONS = 1_000_000
PROCESSES = 2


@pytest.mark.long
@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_a_million(name: str) -> None:
    """Half of them in each of two processes, with seeds of their own."""
    share = str(OPERATIONS // PROCESSES)
    command = [sys.executable, "-m", "tests.fuzz", name, "--engine", "random", "--operations", share]
    running = [
        subprocess.Popen([*command, "--seed", str(1000 + seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for seed in range(PROCESSES)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, outputs
    words = f" {target_named(name).counts}"
    counted = [int(output.rpartition(" inputs, ")[2].partition(words)[0]) for output in outputs]
    assert sum(counted) >= OPERATIONS
