"""`argosy compare` counts in virtual time; a run in processes counts the same (issue 6, part 4)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from topologies.compare.cells import Cell, cells
from topologies.compare.figures import COALESCE, NAMES, Figures, per_request
from topologies.compare.labs import topology
from topologies.compare.measure import LONG, SHORT, counted, measure
from topologies.runtime import Outcome

SIX = (
    "blk-read-4KiB/argo-inline/hypercall/virq/L0",
    "blk-write-64KiB/argo-mirror/hypercall/virq/L0",
    "blk-read-4KiB/argo-inline/msr/virq/L0",
    "blk-read-512/mmio-foreign/hypercall/virq/L0",
    "blk-write-4KiB/mmio-grant-copy/hypercall/virq/L0",
    "peek-5/dma/hypercall/virq/L0",
)


def in_processes(cell: Cell, directory: Path) -> Figures:
    """The figures of a cell, by two runs of `argosy run`."""
    found = []
    for requests in (SHORT, LONG):
        lab = directory / f"{requests}.yaml"
        lab.write_text(json.dumps(topology(cell, requests)))
        words = ["run", str(lab), "--format", "json", "--run-dir", str(directory / str(requests))]
        done = subprocess.run(
            [sys.executable, "-m", "topologies.cli", *words],
            capture_output=True, text=True, timeout=50, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(counted(Outcome.from_json(json.loads(done.stdout))))
    return per_request(found[0], found[1], LONG - SHORT)


@pytest.mark.parametrize("name", SIX)
def test_processes_count_what_virtual_time_counts(name: str, tmp_path: Path) -> None:
    """All that does not depend on who is awake: copies, pages, notifications, round trips."""
    cell = next(cell for cell in cells() if cell.name == name)
    near, far = measure(cell), in_processes(cell, tmp_path)
    exact = [figure for figure in NAMES if figure not in COALESCE]
    assert {figure: getattr(far, figure) for figure in exact} == {figure: getattr(near, figure) for figure in exact}
