"""What a v4v guest lays into memory for a call, and reads out of it afterwards (uXen public/v4v.h)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack
from typing import NamedTuple

from hmx.argo.abi import Address
from hmx.v4v.abi import (
    DOMID_ANY,
    PFN_LIST,
    PFN_LIST_MAGIC,
    RING_DATA,
    RING_DATA_ENT,
    RING_DATA_MAGIC,
    RING_HEADER,
    RING_ID,
    RING_MAGIC,
)


class SpaceAnswer(NamedTuple):
    """What notify wrote back for one ring: `NotifyFlag` bits and the largest payload that it can ever take."""

    flags: int
    max_message_size: int


def ring_header(port: int, partner: int, ring_len: int, rx: int = 0, tx: int = 0) -> bytes:
    """The 64 bytes at the start of a ring's first page.  The hypervisor fills the owner in."""
    return RING_HEADER.pack(RING_MAGIC, port, DOMID_ANY, partner, ring_len, rx, tx)


def ring_id(port: int, owner: int, partner: int) -> bytes:
    """The argument of create_ring: a ring's identity."""
    return RING_ID.pack(port, owner, partner)


def pfn_list(gfns: Sequence[int]) -> bytes:
    """The list of a ring's pages, in ring order."""
    return PFN_LIST.pack(PFN_LIST_MAGIC, len(gfns), 0) + pack(f"<{len(gfns)}Q", *gfns)


def ring_data(queries: Iterable[tuple[Address, int]]) -> bytes:
    """The argument of notify: for each ring its address and the payload bytes wanted there."""
    entries = [RING_DATA_ENT.pack(port, domid, 0, wanted, 0) for (port, domid), wanted in queries]
    return RING_DATA.pack(RING_DATA_MAGIC, len(entries), 0) + b"".join(entries)


def answers(data: bytes) -> list[SpaceAnswer]:
    """The answers in the ring data that notify has written to."""
    return [SpaceAnswer(entry[2], entry[4]) for entry in RING_DATA_ENT.iter_unpack(data[RING_DATA.size :])]
