"""The rig of the whole command, with a second host that is this machine too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PROGRAMS
from tests.e2e.rig import Rig


@pytest.fixture
def rig(short_tmp_path: Path) -> Iterator[Rig]:
    """The command in a world of its own, with the module `mine` next to its topologies."""
    made = Rig(short_tmp_path)
    made.program(PROGRAMS)
    try:
        yield made
    finally:
        made.close()
