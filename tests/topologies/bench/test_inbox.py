"""What a measured guest says of its samples fits into its report, and says what all of them would."""

from __future__ import annotations

import random

import pytest

from guest_node.guest import fits
from topologies.bench.figures import quantile
from topologies.bench.inbox import MOST_SAMPLES, spread
from topologies.bench.rows import ROWS


@pytest.mark.parametrize("count", [1, 2, 3, MOST_SAMPLES - 1, MOST_SAMPLES, MOST_SAMPLES + 1, 8_000, 50_001])
def test_quantiles_stay(count: int) -> None:
    """Evenly by rank: the median and the 99th percentile lie where they lay, within a step of the ranks."""
    samples = list(range(count))
    random.Random(1).shuffle(samples)
    told = spread(samples)
    assert 0 < len(told) <= MOST_SAMPLES
    step = -(-count // MOST_SAMPLES)
    for share in (0.5, 0.99):
        assert abs(quantile(told, share) - quantile(samples, share)) <= step


def test_samples_of_every_row_fit_into_a_report() -> None:
    """Even if each took a tenth of a second: a row must not fail because a machine is slow (guest.result: 48 KiB)."""
    most = max(row.sends for row in ROWS)
    fits({"samples_ns": spread([99_999_999] * most), **dict.fromkeys("abcdefgh", 10**12)})
