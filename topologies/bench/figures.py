"""Small statistics over the rounds of a run."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(samples: Sequence[float], share: float) -> float:
    """The sample below which `share` (0 to 1) of the samples lie, interpolated.  ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the middle two."""
    return quantile(samples, 0.5)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, ours over theirs.  Only samples of the same round may be compared.

    ValueError when the rounds do not pair up, or theirs is not positive.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    if any(their <= 0 for their in theirs):
        raise ValueError("a figure that is not positive")
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def speed_ratio(ours: float, theirs: float, larger_is_better: bool) -> float:
    """Over 1 when ours is the better one, for rates and for times alike."""
    return ours / theirs if larger_is_better else theirs / ours
