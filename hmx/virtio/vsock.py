"""The socket device on the wire: features, configuration, packets, events, and the arithmetic of credit.

Source: VIRTIO 1.4, 5.10.  The header has 44 bytes and is packed: its last field lies at 40.  Counters of bytes are u32
and run freely.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from hmx.virtio.features import FeatureRow, Kind
from hmx.virtio.layout import Buffer, LayoutError, at_least, padded, record
from hmx.virtio.rings import Field

CONFIG_SIZE: Final = 8
HEADER_SIZE: Final = 44
EVENT_SIZE: Final = 4
RX, TX, EVENTS = range(3)  # queues
U32: Final = 0xFFFFFFFF


class Cid(IntEnum):
    """Context ids that no guest may have."""

    HYPERVISOR = 0
    LOCAL = 1
    HOST = 2
    ANY32 = 0xFFFFFFFF
    ANY = 0xFFFFFFFFFFFFFFFF


class VsockFeature(IntEnum):
    """Feature bits (5.10.3)."""

    STREAM = 0
    SEQPACKET = 1
    NO_IMPLIED_STREAM = 2


FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(VsockFeature.STREAM, Kind.DEVICE, note="stream sockets"),
    FeatureRow(VsockFeature.SEQPACKET, Kind.DEVICE, note="seqpacket sockets"),
    FeatureRow(VsockFeature.NO_IMPLIED_STREAM, Kind.DEVICE, note="stream sockets only where STREAM says so"),
)


class SocketType(IntEnum):
    """`type` of a packet."""

    STREAM = 1
    SEQPACKET = 2


class Op(IntEnum):
    """`op` of a packet."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """`flags` of SHUTDOWN; once said, for ever."""

    RECEIVE = 1  # will not receive
    SEND = 2  # will not send


class Seq(IntFlag):
    """`flags` of RW on a seqpacket socket."""

    EOM = 1  # end of a message
    EOR = 2  # end of a record


class VsockEvent(IntEnum):
    """`id` of an event: TRANSPORT_RESET ends every connection; the driver reads guest_cid again, listeners stay."""

    TRANSPORT_RESET = 0


CONFIG_FIELDS: Final = (Field("guest_cid", 0, 8),)


class VsockConfig(NamedTuple):
    """The configuration space (5.10.4)."""

    guest_cid: int

    def pack(self) -> bytes:
        """All 8 bytes.  ValueError for a CID that no guest may have."""
        if not valid_guest_cid(self.guest_cid):
            raise ValueError(f"{self.guest_cid} is no CID for a guest")
        return _CONFIG.pack(self.guest_cid)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Raises LayoutError for less than a CID, and for one that is reserved."""
        (cid,) = _CONFIG.unpack(padded("a socket device's configuration", data, CONFIG_SIZE, CONFIG_SIZE))
        if not valid_guest_cid(cid):
            raise LayoutError(f"{cid:#x} is no CID for a guest")
        return cls(cid)


_CONFIG: Final = record(CONFIG_FIELDS, CONFIG_SIZE, VsockConfig._fields)


def valid_guest_cid(cid: int) -> bool:
    """Whether a guest may have this CID: 32 bits, none that is reserved."""
    return 0 <= cid <= U32 and cid not in frozenset(Cid)


class VsockHeader(NamedTuple):
    """The header of a packet.  `type` and `op` as they came, known or not; `len` is the payload's."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    def pack(self) -> bytes:
        """All 44 bytes."""
        return HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From the beginning of a buffer.  Raises LayoutError."""
        return cls(*HEADER.unpack_from(at_least("a packet's header", data, HEADER_SIZE)))


HEADER_FIELDS: Final = (
    Field("src_cid", 0, 8),
    Field("dst_cid", 8, 8),
    Field("src_port", 16, 4),
    Field("dst_port", 20, 4),
    Field("len", 24, 4),
    Field("type", 28, 2),
    Field("op", 30, 2),
    Field("flags", 32, 4),
    Field("buf_alloc", 36, 4),
    Field("fwd_cnt", 40, 4),
)
HEADER: Final = record(HEADER_FIELDS, HEADER_SIZE, VsockHeader._fields)

EVENT_FIELDS: Final = (Field("id", 0, 4),)
EVENT: Final = record(EVENT_FIELDS, EVENT_SIZE, ("id",))


class OpRow(NamedTuple):
    """One operation: whether its packets may have a payload and spend credit, and whether a peer has to answer one
    that finds no connection with RST.
    """

    op: Op
    payload: bool
    answered: bool
    flags: int  # the bits that mean something, on some type of socket


OPS: Final[tuple[OpRow, ...]] = (
    OpRow(Op.REQUEST, False, True, 0),
    OpRow(Op.RESPONSE, False, True, 0),
    OpRow(Op.RST, False, False, 0),  # never answered, or two sides would do nothing else
    OpRow(Op.SHUTDOWN, False, True, Shutdown.RECEIVE | Shutdown.SEND),
    OpRow(Op.RW, True, True, Seq.EOM | Seq.EOR),
    OpRow(Op.CREDIT_UPDATE, False, True, 0),
    OpRow(Op.CREDIT_REQUEST, False, True, 0),
)
_OPS: Final = {int(row.op): row for row in OPS}


def unpack_packet(data: Buffer) -> tuple[VsockHeader, Buffer]:
    """Header and payload of a packet; bytes behind the payload are dropped.

    Raises LayoutError: no header, less than `len` bytes behind it, a CID beyond 32 bits, an operation that there is
    not, or a payload where there is none.  A type that is not known is no error: it is answered with RST.
    """
    header = VsockHeader.unpack(data)
    row = _OPS.get(header.op)
    if row is None:
        raise LayoutError(f"operation {header.op}")
    if header.len > len(data) - HEADER_SIZE:
        raise LayoutError(f"a payload of {header.len} bytes in a packet of {len(data)}")
    if header.len and not row.payload:
        raise LayoutError(f"{row.op.name} with {header.len} bytes of payload")
    if header.src_cid > U32 or header.dst_cid > U32:
        raise LayoutError(f"CIDs {header.src_cid:#x} and {header.dst_cid:#x}; the upper 32 bits are zero")
    return header, data[HEADER_SIZE : HEADER_SIZE + header.len]


def reset_for(header: VsockHeader) -> VsockHeader | None:
    """The RST that answers a packet nobody can take, or None: it must not be answered."""
    row = _OPS.get(header.op)
    if row is not None and not row.answered:
        return None
    return VsockHeader(header.dst_cid, header.src_cid, header.dst_port, header.src_port, 0, header.type, Op.RST)


# -- credit (5.10.6.3); only payload bytes count ----


def peer_free(buf_alloc: int, fwd_cnt: int, tx_cnt: int) -> int:
    """Bytes that may be sent to a peer that said `buf_alloc` and `fwd_cnt`, `tx_cnt` having been sent.

    0 where the peer's numbers cannot be: more in flight than it has room for, also after it made its buffer smaller.
    """
    return max(0, buf_alloc - in_flight(fwd_cnt, tx_cnt))


def in_flight(fwd_cnt: int, tx_cnt: int) -> int:
    """Bytes sent that the peer has not passed on, modulo 2^32."""
    return tx_cnt - fwd_cnt & U32


def plausible(fwd_cnt: int, tx_cnt: int, previous_fwd: int) -> bool:
    """Whether a peer may say `fwd_cnt` now: not less than before, not more than it was sent."""
    return in_flight(previous_fwd, fwd_cnt) <= in_flight(previous_fwd, tx_cnt)


def stream_allowed(features: int) -> bool:
    """Whether there are stream sockets: negotiated, or implied by neither STREAM nor NO_IMPLIED_STREAM (5.10.3.1)."""
    said = features >> VsockFeature.STREAM & 1
    return bool(said or not features >> VsockFeature.NO_IMPLIED_STREAM & 1)


def seqpacket_allowed(features: int) -> bool:
    """Whether there are seqpacket sockets."""
    return bool(features >> VsockFeature.SEQPACKET & 1)
