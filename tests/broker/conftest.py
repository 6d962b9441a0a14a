"""What the tests of the broker's core begin with."""

from __future__ import annotations

import pytest

from tests.broker.support import CoreLab


@pytest.fixture
def lab() -> CoreLab:
    return CoreLab()
