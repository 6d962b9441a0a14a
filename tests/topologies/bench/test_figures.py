"""Medians, quantiles and ratios; what the ledger sums up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies.bench.figures import median, quantile, ratios, speed_ratio
from topologies.bench.ledger import DIRECT, Ledger, bodies, stamp

SIZES = (16, 64, 256, DIRECT, DIRECT + 1, 4096)


@pytest.mark.parametrize(("samples", "middle"), [([3.0], 3.0), ([1.0, 9.0], 5.0), ([9.0, 1.0, 2.0], 2.0)])
def test_the_median_is_the_middle(samples: list[float], middle: float) -> None:
    assert median(samples) == middle


def test_quantiles_interpolate() -> None:
    samples = [float(n) for n in range(101)]
    assert quantile(samples, 0.99) == 99.0
    assert quantile(samples, 0.995) == 99.5
    assert quantile(samples, 1.0) == 100.0


def test_no_samples_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@given(st.lists(st.floats(1, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_among_its_samples(samples: list[float], share: float) -> None:
    assert min(samples) <= quantile(samples, share) <= max(samples)


def test_ratios_pair_rounds() -> None:
    """Only figures of the same round are compared: the median of ratios is not the ratio of medians."""
    ours, theirs = [1.0, 10.0, 100.0], [1.0, 100.0, 10.0]
    assert ratios(ours, theirs) == [1.0, 0.1, 10.0]
    with pytest.raises(ValueError, match="3 rounds against 2"):
        ratios(ours, theirs[:2])
    with pytest.raises(ValueError, match="not positive"):
        ratios([1.0], [0.0])


def test_a_speed_ratio_over_one_is_better() -> None:
    assert speed_ratio(200.0, 100.0, larger_is_better=True) == 2.0
    assert speed_ratio(200.0, 100.0, larger_is_better=False) == 0.5


# ---- the ledger ----


def stamped(size: int, sequence: int) -> bytearray:
    message = bodies(size)[sequence % 4]
    stamp(message, sequence)
    return message


@pytest.mark.parametrize("size", SIZES)
def test_every_message_once_in_order_is_what_is_expected(size: int) -> None:
    ledger = Ledger(size)
    for sequence in range(11):
        ledger.take(stamped(size, sequence))
    assert (ledger.count, ledger.checksum) == (11, Ledger(size).expect(11))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 1, 3], [0, 1, 2, 4], [1, 2, 3, 4], [0, 5, 2, 3]])
def test_another_order_is_noticed(size: int, order: list[int]) -> None:
    ledger = Ledger(size)
    for sequence in order:
        ledger.take(stamped(size, sequence))
    assert ledger.checksum != Ledger(size).expect(4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at", [0, 7, 8, -1])
def test_one_wrong_byte_is_noticed(size: int, at: int) -> None:
    ledger = Ledger(size)
    for sequence in range(4):
        message = stamped(size, sequence)
        if sequence == 2:
            message[at] ^= 1
        ledger.take(memoryview(message))
    assert ledger.checksum != Ledger(size).expect(4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [0, 7, -1])
def test_a_cut_message_is_noticed(size: int, keep: int) -> None:
    ledger = Ledger(size)
    ledger.take(stamped(size, 0)[:keep])
    assert ledger.checksum != Ledger(size).expect(1)
