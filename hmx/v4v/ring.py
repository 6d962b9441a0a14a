"""Ring arithmetic where v4v's differs from Argo's (uXen common/v4v.c).

Sends reckon as Argo does (:mod:`hmx.argo.ring`).  The room that notify reports does not: an empty ring is one slot
roomier than any message may be, and the guest's rx_ptr is taken as it stands, in signed 32-bit arithmetic.
"""

from __future__ import annotations

from hmx.argo.abi import HASH_BUCKETS, MESSAGE_HEADER_SIZE, SLOT, U32_MAX

_SIGN = 0x8000_0000


def _signed(value: int) -> int:
    """`value` as an int32 would hold it."""
    return ((value + _SIGN) & U32_MAX) - _SIGN


def payload_space(ring_len: int, rx: int, tx: int) -> int:
    """The payload bytes that notify believes to fit; `rx` is the guest's, unchecked.  A placeholder has none."""
    if not ring_len:
        return 0
    if rx == tx:
        return ring_len - MESSAGE_HEADER_SIZE
    free = _signed(rx - tx)
    if free < 0:
        free = _signed(free + ring_len)
    return max(_signed(free - MESSAGE_HEADER_SIZE - SLOT), 0)


def max_message_size(ring_len: int) -> int:
    """The largest payload that an empty ring takes, in uint32: 0xFFFFFFE0 for a placeholder."""
    return (ring_len - MESSAGE_HEADER_SIZE - SLOT) & U32_MAX


def bucket(port: int, domid: int, partner: int) -> int:
    """The hash bucket (0..31) of a ring in its owner's table; it shows only in the order of wake-ups."""
    return ((port >> 16) ^ port ^ domid ^ partner) & (HASH_BUCKETS - 1)
