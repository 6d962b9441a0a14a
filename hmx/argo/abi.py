"""Argo's binary interface: operations, limits, flags and structures (Xen public/argo.h and common/argo.c).

All structures are little-endian and packed as C lays them out; `struct.Struct` objects carry the layout,
the comment beside each names its fields in order. Page size is 4096 on every architecture and page frame
numbers are u64.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

HYPERCALL_ARGO: Final = 39
VIRQ_ARGO: Final = 11  # one binding per domain, on vCPU 0

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0  # Argo does not resolve it: it is an unknown domain
DOMID_ANY: Final = 0x7FF4  # Argo's wildcard partner; the value that Xen also calls DOMID_INVALID

SLOT: Final = 16  # alignment of message starts and of ring lengths
RING_HEADER_SIZE: Final = 64  # the data area starts here in page 0
MESSAGE_HEADER_SIZE: Final = 16
MIN_RING_LEN: Final = 48
MAX_RING_LEN: Final = 0x100_0000  # the bound on `len`; the page limit below makes 0xFFFFC0 the real maximum
MAX_RING_PAGES: Final = 4096
MAX_PAYLOAD: Final = 0xFF_FFE0  # one iov, or their sum, whatever the ring
MAX_IOVS: Final = 8
MAX_RINGS_PER_DOMAIN: Final = 128
MAX_NOTIFY_ENTRIES: Final = 256
MAX_PENDING_PER_RING: Final = 32
HASH_BUCKETS: Final = 32

U32_MAX: Final = 0xFFFF_FFFF


class Op(IntEnum):
    """The first argument of the hypercall.

    5 was v4v's sendv, 6 to 8 are OpenXT's viptables; like every other number they answer -EOPNOTSUPP.
    """

    REGISTER_RING = 1
    UNREGISTER_RING = 2
    SENDV = 3
    NOTIFY = 4


class RegisterFlag(IntFlag):
    """Fourth argument of register_ring."""

    FAIL_EXIST = 1


class NotifyFlag(IntFlag):
    """What notify writes back for one ring."""

    EXISTS = 0x01
    SHARED = 0x02  # the matching ring is the wildcard ring
    EMPTY = 0x04
    SUFFICIENT = 0x08
    EMSGSIZE = 0x10
    EBUSY = 0x20


class Address(NamedTuple):
    """An endpoint: (port, domain id)."""

    port: int
    domid: int


ADDR: Final = Struct("<IHH")  # aport, domain_id, pad
SEND_ADDR: Final = Struct("<IHHIHH")  # source aport, domain_id, pad; destination aport, domain_id, pad
IOV: Final = Struct("<QII")  # buffer VA, iov_len, pad (x86-64, Arm64, Arm32)
IOV_COMPAT: Final = Struct("<III")  # the same for 32-bit x86 callers
REGISTER_RING: Final = Struct("<IHHI")  # aport, partner_id, pad, len
UNREGISTER_RING: Final = Struct("<IHH")  # aport, partner_id, pad
RING_HEADER: Final = Struct("<II56x")  # rx_ptr, tx_ptr, reserved
RING_DATA: Final = Struct("<II")  # nent, pad; entries follow at +8
# ring aport, domain_id, pad; flags, pad, space_required, max_message_size
RING_DATA_ENT: Final = Struct("<IHHHHII")
# len (these 16 bytes included), source aport, domain_id, pad; message_type
MESSAGE_HEADER: Final = Struct("<IIHHI")
GFN: Final = Struct("<Q")

RX_PTR: Final = 0  # byte offsets in the ring's first page
TX_PTR: Final = 4
ENT_FLAGS: Final = 8  # byte offsets in a ring_data entry
ENT_MAX_MESSAGE_SIZE: Final = 16

#: iov arrays of 0 to 8 elements, unpacked in one call: (va, len, pad) repeated.
IOV_ARRAYS: Final[tuple[Struct, ...]] = tuple(Struct("<" + "QII" * n) for n in range(MAX_IOVS + 1))
IOV_COMPAT_ARRAYS: Final[tuple[Struct, ...]] = tuple(Struct("<" + "III" * n) for n in range(MAX_IOVS + 1))
