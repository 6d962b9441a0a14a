"""Golden traces of Xen's own Argo: return codes, every byte of every domain's memory, virtual interrupts.

The traces were recorded from Xen 4.22-dev, unmodified; hv_node/conform.py describes the format.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from hv_node.conform import replay

TRACES = sorted((Path(__file__).parent / "traces").glob("*.jsonl.gz"))


def test_all_traces_are_here() -> None:
    """42 files with 54,143 hypercalls."""
    assert len(TRACES) == 42
    assert sum(gzip.decompress(path.read_bytes()).count(b'{"ev":"op",') for path in TRACES) == 54143


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_trace(path: Path) -> None:
    """The core answers as Xen did, and leaves memory as Xen did."""
    outcome = replay(path)
    assert outcome.ops
    assert outcome.mismatches == []
