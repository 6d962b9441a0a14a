"""How a stream is cut into frames: to the measure of the peer's ring.

Specification: OpenXT's Linux Argo driver cuts at 32748 bytes, a quarter of its default ring, whatever the size of the
peer's; on small rings its large sends fail with EMSGSIZE.  Here the same quarter is taken of the peer's own ring.
"""

from __future__ import annotations

from typing import Final

from guest_node.drivers.stream_table import DEFAULT_RING_LEN, FRAME_LIMIT, HEADER_SIZE
from hmx.argo.abi import MESSAGE_HEADER_SIZE, SLOT
from hmx.argo.ring import max_message_size as largest_in
from hmx.argo.ring import used_by

SMALLEST_QUARTER: Final = 512  # of rings whose quarter is smaller, the whole is used
_DEFAULT_LARGEST: Final = largest_in(DEFAULT_RING_LEN)


def frame_limit(max_message_size: int) -> int:
    """Payload bytes of one data frame for a ring whose largest message is `max_message_size`.

    32748 for the Linux driver's default ring and above; for smaller ones what makes four frames fill the ring, so that
    sender and receiver overlap; for tiny ones all there is.
    """
    if max_message_size >= _DEFAULT_LARGEST:
        return FRAME_LIMIT
    quarter = (max_message_size + SLOT) // 4 // SLOT * SLOT - MESSAGE_HEADER_SIZE - HEADER_SIZE
    return quarter if quarter >= SMALLEST_QUARTER else min(max_message_size - HEADER_SIZE, FRAME_LIMIT)


def batch_limit(max_message_size: int) -> int:
    """How many of these frames an empty ring takes: a longer chain would be copied in vain."""
    return max(1, (max_message_size + SLOT) // used_by(HEADER_SIZE + frame_limit(max_message_size)))
