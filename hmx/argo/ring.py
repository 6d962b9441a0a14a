"""Ring arithmetic of Argo (Xen common/argo.c).

A ring is a data area of `ring_len` bytes, a multiple of 16.  `rx` and `tx` are byte offsets into it; equal
pointers mean empty, and one slot of 16 bytes always stays free so that full and empty differ.  Everything is
32-bit unsigned.
"""

from __future__ import annotations

from hmx.argo.abi import HASH_BUCKETS, MESSAGE_HEADER_SIZE, RING_HEADER_SIZE, SLOT, U32_MAX
from hmx.memory import PAGE_SIZE


def roundup16(value: int) -> int:
    """The next multiple of 16 in uint32 arithmetic (0xFFFFFFF1 and above wrap to 0)."""
    return (value + 15) & 0xFFFF_FFF0


def sanitise_rx(rx: int, ring_len: int) -> int:
    """What a guest's rx_ptr counts as: rounded UP to a slot, 0 when that lies outside the data area."""
    rx = (rx + 15) & 0xFFFF_FFF0
    return rx if rx < ring_len else 0


def sanitise_tx(tx: int, rx: int, ring_len: int) -> int:
    """The tx that a registration adopts: the guest's if valid, else its rx rounded up, else 0."""
    if tx < ring_len and not tx & (SLOT - 1):
        return tx
    return sanitise_rx(rx, ring_len)


def free_space(ring_len: int, rx: int, tx: int) -> int:
    """Bytes between tx and rx, the guard slot and headers included; `ring_len` when empty."""
    if rx == tx:
        return ring_len
    return rx - tx if rx > tx else rx - tx + ring_len


def payload_space(ring_len: int, rx: int, tx: int) -> int:
    """The largest payload that fits now, as Xen reckons it: 0 also where just a header fits."""
    free = free_space(ring_len, rx, tx)
    return free - 32 if free > 32 else 0


def fits(ring_len: int, rx: int, tx: int, size: int) -> bool:
    """Whether a message of `size` payload bytes can be enqueued now.  Strict: a slot stays free."""
    return roundup16(size) + MESSAGE_HEADER_SIZE < free_space(ring_len, rx, tx)


def ever_fits(ring_len: int, size: int) -> bool:
    """Whether a message of `size` payload bytes fits an empty ring; if not, a send answers -EMSGSIZE."""
    return roundup16(size) + MESSAGE_HEADER_SIZE < ring_len


def max_message_size(ring_len: int) -> int:
    """The largest payload that an empty ring takes."""
    return ring_len - 32


def used_by(size: int) -> int:
    """Ring bytes that a message of `size` payload bytes occupies."""
    return MESSAGE_HEADER_SIZE + roundup16(size)


def advance(position: int, step: int, ring_len: int) -> int:
    """`position` moved on by `step` bytes (0 <= step <= ring_len), wrapped."""
    position += step
    return position - ring_len if position >= ring_len else position


def npages_for(ring_len: int) -> int:
    """Pages that a ring of `ring_len` data bytes needs, its 64-byte header included."""
    return (ring_len + RING_HEADER_SIZE + PAGE_SIZE - 1) // PAGE_SIZE


def ring_len_for(npages: int) -> int:
    """The largest data area that fits `npages` pages."""
    return npages * PAGE_SIZE - RING_HEADER_SIZE


def bucket(port: int, domid: int, partner: int) -> int:
    """The hash bucket (0..31) of a ring in its owner's table; it shows only in the order of wake-ups."""
    value = 5381
    for byte in port.to_bytes(4, "little") + domid.to_bytes(2, "little") + partner.to_bytes(2, "little"):
        value = (value * 33 + byte) & U32_MAX
    return (value ^ (value >> 15)) & (HASH_BUCKETS - 1)
