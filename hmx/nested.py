"""What a nested hypervisor and the one around it agree on.  Experimental, not upstream.

A nested hypervisor is a domain of its parent.  Upwards it sends with its parent's sendv, to `UPLINK_PORT` of
domain `DOMID_ANY`, which the parent's core takes for itself.  Downwards it receives in rings that it registered, one
for each of its vCPUs, for the partner `DOMID_XEN`: only the parent itself writes to those.

Both ways a message of `MESSAGE_TYPE` is one chunk of a longer whole (an envelope and its payload): this header, then
its bytes.

    seq u32 @0, total u32 @4, offset u32 @8, head u32 @12

`seq` numbers the chunks of one direction over all rings, modulo 2^32, so that a receiver puts rings together in the
order in which they were written.  `total` is the size of the whole, `offset` where in it this chunk lies, `head` the
size of its envelope, behind which the payload starts.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

DOMID_XEN: Final = 0x7FF2
"""The hypervisor itself as partner and as source of messages (Xen public/xen.h)."""
UPLINK_PORT: Final = 0x4172_0000
DOWNLINK_PORT: Final = 0x4172_0001
"""Of vCPU 0; those of the others follow."""
MESSAGE_TYPE: Final = int.from_bytes(b"Env1", "little")
CHUNK_HEADER: Final = struct.Struct("<IIII")
MAX_CHUNK: Final = 1 << 16
"""Bytes of one chunk at most, header included: so much the sender keeps per message under way."""


class ChunkHeader(NamedTuple):
    """The four words before a chunk's bytes."""

    seq: int
    total: int
    offset: int
    head: int
