"""v4v's binary interface as uXen has it: operations, magics, domain ids, flags and structures (uXen public/v4v.h).

Every structure is packed and little-endian; `struct.Struct` objects carry the layout, the comment beside each names
its fields in order.  A ring's identity and length stand in its own header in guest memory, page frames in a list with
a header of its own.  The message header, the size of a ring's header (64) and the smallest ring (48) are Argo's, bit
for bit: they stand in :mod:`hmx.argo.abi`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

HYPERCALL_V4V: Final = 39  # the number that Argo took over
IRQ_V4V: Final = 7  # the ISA line of a guest, one for all its rings, raised and lowered at once

RING_MAGIC: Final = 0xAC67_E163_E726_7F2F
PFN_LIST_MAGIC: Final = 0x91DD_6159_045B_302D
RING_DATA_MAGIC: Final = 0x4CE4_D30F_BC82_E92A

DOMID_SELF: Final = 0x7FF0  # the first reserved id; v4v does not resolve it
DOMID_DM: Final = 0x7FF1  # the device model of the calling domain
DOMID_HV: Final = 0x7FF2  # the hypervisor itself: used between an attested domain and its hypervisor
DOMID_UUID: Final = 0x7FFE  # "the domain whose token I pass"
DOMID_ANY: Final = 0x7FFF
DOMID_INVALID: Final = DOMID_ANY
DOMID_NONE: Final = DOMID_ANY

PORT_NONE: Final = 0
MAX_RING_LEN: Final = 0x100_0000  # also the bound on one iov and on the sum of all
MAX_RING_PAGES: Final = 4096

MESSAGE_TYPE_DGRAM: Final = 0x3C2C_1DB8  # what drivers put into the header, no business of the hypervisor
MESSAGE_TYPE_STREAM: Final = 0x70F6_A8E5


class Op(IntEnum):
    """The first argument of the hypercall."""

    REGISTER_RING = 1
    UNREGISTER_RING = 2
    SEND = 3
    NOTIFY = 4
    SENDV = 5
    POKE = 6
    CREATE_RING = 7
    SIGNAL = 8
    TEST = 0x10
    DEBUG = 0x11


class NotifyFlag(IntFlag):
    """What notify writes back for one ring."""

    EMPTY = 1  # by an equality that no empty ring meets
    EXISTS = 2
    PENDING = 4  # the caller waits for room now
    SUFFICIENT = 8


class Operation(NamedTuple):
    """An operation: its arguments in order, whether only the host may call it, and whether uXen builds it in."""

    op: Op
    arguments: tuple[str, ...]
    privileged: bool
    built: bool
    source: str


OPERATIONS: Final = (
    Operation(Op.REGISTER_RING, ("ring", "pfn list", "partner token", "fail_exist"), False, True, "ring_add"),
    Operation(Op.UNREGISTER_RING, ("ring",), False, True, "ring_remove"),
    Operation(Op.SEND, ("source", "destination", "buffer", "length", "message type"), False, True, "send"),
    Operation(Op.NOTIFY, ("ring data",), False, True, "notify"),
    Operation(Op.SENDV, ("source", "destination", "iovs", "iov count", "message type"), False, True, "send"),
    Operation(Op.POKE, ("destination",), False, False, "compiled out"),
    Operation(Op.CREATE_RING, ("ring id",), True, True, "ring_create"),
    Operation(Op.SIGNAL, ("", "", "", "domid"), True, True, "signal"),
    Operation(Op.TEST, (), False, False, "compiled out"),
    Operation(Op.DEBUG, (), False, False, "compiled out"),
)

ADDR: Final = Struct("<IH")  # port, domain
RING_ID: Final = Struct("<IHH")  # port, domain, partner
RING_HEADER: Final = Struct("<QIHHIII36x")  # magic, port, domain, partner, len, rx_ptr, tx_ptr, nine reserved words
PFN_LIST: Final = Struct("<QII24x")  # magic, npage, pad, reserved; page frame numbers (u64) follow
RING_DATA: Final = Struct("<QII32x")  # magic, nent, pad, reserved; entries follow
RING_DATA_ENT: Final = Struct("<IHHII")  # port, domain, flags, space_required, max_message_size
IOV: Final = Struct("<QQ")  # buffer VA, length
TOKEN: Final = Struct("<16s")
MAGIC: Final = Struct("<Q")
PFN: Final = Struct("<Q")

RING_ID_AT: Final = 8  # byte offsets in the ring's header
RX_PTR: Final = 20
TX_PTR: Final = 24
ENT_FLAGS: Final = 6  # byte offsets in a ring data entry
ENT_MAX_MESSAGE_SIZE: Final = 12
