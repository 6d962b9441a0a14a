"""The entropy device on the wire: one queue of writable buffers, no features, no configuration.

Source: VIRTIO 1.4, 5.4.
"""

from __future__ import annotations

from typing import Final

from hmx.virtio.features import FeatureRow

FEATURES: Final[tuple[FeatureRow, ...]] = ()
REQUEST_QUEUE: Final = 0
LEAST: Final = 1  # random bytes that a device puts into each buffer


def valid_answer(writable: int, written: int) -> bool:
    """Whether a device may have written so many bytes into a buffer of `writable`: at least one, none beyond."""
    return LEAST <= written <= writable
