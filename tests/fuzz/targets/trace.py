"""Property: a file is a trace that is replayed, with or without mismatches, or TraceError with the place; nothing else.

Input: a file, plain or compressed.  It lies in memory: the reader is given its path there.
"""

from __future__ import annotations

import os
from pathlib import Path

from hv_node.conform import TraceError, replay
from tests.fuzz.targets import Tally

TALLY = Tally()
_FILE = os.memfd_create("trace")
_PATH = Path(f"/proc/self/fd/{_FILE}")


def one_input(data: bytes) -> None:
    """Replay one file."""
    TALLY.count += max(1, data.count(b"\n"))
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    try:
        outcome = replay(_PATH)
    except TraceError as error:
        assert error.path == _PATH and error.line >= 0
        return
    assert outcome.ops >= 0
