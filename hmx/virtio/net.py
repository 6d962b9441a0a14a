"""The network device on the wire: features (some beyond bit 63), configuration, headers, control messages.

Source: VIRTIO 1.4, 5.1.  The header before each packet has at least 12 bytes, whatever was negotiated; 10 bytes were
the legacy device's.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from hmx.virtio.features import FeatureRow, Kind
from hmx.virtio.layout import Buffer, LayoutError, at_least, padded, record
from hmx.virtio.rings import Field

CONFIG_SIZE: Final = 28
CONFIG_LEAST: Final = 6  # mac
HEADER_SIZE: Final = 12
RX_LEAST: Final = 1526  # bytes of a receive buffer without MRG_RXBUF: header and a full frame
RX_LEAST_GSO: Final = 65601  # ... where the device may send segments to be merged (5.1.6.3.1; the header included)


class NetFeature(IntEnum):
    """Feature bits (5.1.3)."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GSO = 6
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    DEVICE_STATS = 50
    HASH_TUNNEL = 51
    VQ_NOTF_COAL = 52
    NOTF_COAL = 53
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56
    HASH_REPORT = 57
    GUEST_HDRLEN = 59
    RSS = 60
    RSC_EXT = 61
    STANDBY = 62
    SPEED_DUPLEX = 63
    RSS_CONTEXT = 64
    GUEST_UDP_TUNNEL_GSO = 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 66
    HOST_UDP_TUNNEL_GSO = 67
    HOST_UDP_TUNNEL_GSO_CSUM = 68
    OUT_NET_HEADER = 69
    IPSEC = 70


_F: Final = NetFeature
_D: Final = Kind.DEVICE

# What needs what: 5.1.3.1.
FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(_F.CSUM, _D, note="the device completes checksums"),
    FeatureRow(_F.GUEST_CSUM, _D, note="the driver does"),
    FeatureRow(_F.CTRL_GUEST_OFFLOADS, _D, note="the driver's offloads can be switched"),
    FeatureRow(_F.MTU, _D, note="mtu"),
    FeatureRow(_F.MAC, _D, note="mac"),
    FeatureRow(_F.GSO, Kind.LEGACY, note="any kind of segmentation"),
    FeatureRow(_F.GUEST_TSO4, _D, (_F.GUEST_CSUM,)),
    FeatureRow(_F.GUEST_TSO6, _D, (_F.GUEST_CSUM,)),
    FeatureRow(_F.GUEST_ECN, _D, (), (_F.GUEST_TSO4, _F.GUEST_TSO6)),
    FeatureRow(_F.GUEST_UFO, _D, (_F.GUEST_CSUM,)),
    FeatureRow(_F.HOST_TSO4, _D, (_F.CSUM,)),
    FeatureRow(_F.HOST_TSO6, _D, (_F.CSUM,)),
    FeatureRow(_F.HOST_ECN, _D, (), (_F.HOST_TSO4, _F.HOST_TSO6)),
    FeatureRow(_F.HOST_UFO, _D, (_F.CSUM,)),
    FeatureRow(_F.MRG_RXBUF, _D, note="a packet may fill several receive buffers"),
    FeatureRow(_F.STATUS, _D, note="status"),
    FeatureRow(_F.CTRL_VQ, _D, note="the control queue"),
    FeatureRow(_F.CTRL_RX, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.CTRL_VLAN, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.CTRL_RX_EXTRA, _D, note="SHOULD NOT without CTRL_VQ, so it is not refused"),
    FeatureRow(_F.GUEST_ANNOUNCE, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.MQ, _D, (_F.CTRL_VQ,), note="several pairs of queues"),
    FeatureRow(_F.CTRL_MAC_ADDR, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.DEVICE_STATS, _D),
    FeatureRow(_F.HASH_TUNNEL, _D, (_F.CTRL_VQ,), (_F.RSS, _F.HASH_REPORT)),
    FeatureRow(_F.VQ_NOTF_COAL, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.NOTF_COAL, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.GUEST_USO4, _D, (_F.GUEST_CSUM,)),
    FeatureRow(_F.GUEST_USO6, _D, (_F.GUEST_CSUM,)),
    FeatureRow(_F.HOST_USO, _D, (_F.CSUM,)),
    FeatureRow(_F.HASH_REPORT, _D, note="SHOULD NOT without CTRL_VQ, so it is not refused"),
    FeatureRow(_F.GUEST_HDRLEN, _D),
    FeatureRow(_F.RSS, _D, (_F.CTRL_VQ,)),
    FeatureRow(_F.RSC_EXT, _D, (), (_F.HOST_TSO4, _F.HOST_TSO6)),
    FeatureRow(_F.STANDBY, _D),
    FeatureRow(_F.SPEED_DUPLEX, _D, note="speed and duplex"),
    FeatureRow(_F.RSS_CONTEXT, _D, (_F.CTRL_VQ, _F.RSS)),
    FeatureRow(_F.GUEST_UDP_TUNNEL_GSO, _D, (_F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_USO4, _F.GUEST_USO6)),
    FeatureRow(_F.GUEST_UDP_TUNNEL_GSO_CSUM, _D, (_F.GUEST_UDP_TUNNEL_GSO,)),
    FeatureRow(_F.HOST_UDP_TUNNEL_GSO, _D, (_F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_USO)),
    FeatureRow(_F.HOST_UDP_TUNNEL_GSO_CSUM, _D, (_F.HOST_UDP_TUNNEL_GSO,)),
    FeatureRow(_F.OUT_NET_HEADER, _D),
    FeatureRow(_F.IPSEC, _D),
)

CONFIG_FIELDS: Final = (
    Field("mac", 0, 6),
    Field("status", 6, 2),
    Field("max_virtqueue_pairs", 8, 2),
    Field("mtu", 10, 2),
    Field("speed", 12, 4),
    Field("duplex", 16, 1),
    Field("rss_max_key_size", 17, 1),
    Field("rss_max_indirection_table_length", 18, 2),
    Field("supported_hash_types", 20, 4),
    Field("supported_tunnel_types", 24, 4),
)


class NetStatus(IntFlag):
    """`status` of the configuration."""

    LINK_UP = 1
    ANNOUNCE = 2


class Duplex(IntEnum):
    """`duplex`.  The specification's requirements have HALF and FULL the other way round than its description; these
    are the description's, which Linux takes too.
    """

    HALF = 0
    FULL = 1
    UNKNOWN = 0xFF


class NetConfig(NamedTuple):
    """The configuration space (5.1.4).  `speed` in Mbit/s, all ones: unknown."""

    mac: bytes
    status: int = 0
    max_virtqueue_pairs: int = 0
    mtu: int = 0
    speed: int = 0
    duplex: int = 0
    rss_max_key_size: int = 0
    rss_max_indirection_table_length: int = 0
    supported_hash_types: int = 0
    supported_tunnel_types: int = 0

    def pack(self) -> bytes:
        """All 28 bytes.  ValueError for a MAC of another size than 6."""
        if len(self.mac) != CONFIG_LEAST:
            raise ValueError(f"a MAC has {CONFIG_LEAST} bytes, not {len(self.mac)}")
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From as many bytes as the device has.  Raises LayoutError without a MAC."""
        return cls(*_CONFIG.unpack(padded("a network device's configuration", data, CONFIG_LEAST, CONFIG_SIZE)))


_CONFIG: Final = record(CONFIG_FIELDS, CONFIG_SIZE, NetConfig._fields)


class HeaderFlag(IntFlag):
    """`flags` of a packet's header (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    UDP_TUNNEL_CSUM = 8


class Gso(IntEnum):
    """`gso_type` of a packet's header, without the bits of GsoFlag."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


class GsoFlag(IntFlag):
    """Bits that go with a Gso."""

    UDP_TUNNEL_IPV4 = 0x20
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80


class NetHeader(NamedTuple):
    """The header before a packet.  `num_buffers`: 0 from the driver, 1 from a device without MRG_RXBUF."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int = HEADER_SIZE) -> bytes:
        """`size` bytes; what is beyond 12 is zero."""
        return _HEADER.pack(*self).ljust(size, b"\0")

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From the beginning of a buffer.  Raises LayoutError."""
        return cls(*_HEADER.unpack_from(at_least("a packet's header", data, HEADER_SIZE)))


HEADER_FIELDS: Final = (
    Field("flags", 0, 1),
    Field("gso_type", 1, 1),
    Field("hdr_len", 2, 2),
    Field("gso_size", 4, 2),
    Field("csum_start", 6, 2),
    Field("csum_offset", 8, 2),
    Field("num_buffers", 10, 2),
)
_HEADER: Final = record(HEADER_FIELDS, HEADER_SIZE, NetHeader._fields)


class HeaderSize(NamedTuple):
    """With one of `features` negotiated the header has `size` bytes."""

    size: int
    features: tuple[NetFeature, ...]


# The first row that fits.
HEADER_SIZES: Final[tuple[HeaderSize, ...]] = (
    HeaderSize(32, (NetFeature.OUT_NET_HEADER, NetFeature.IPSEC)),
    HeaderSize(24, (NetFeature.GUEST_UDP_TUNNEL_GSO, NetFeature.HOST_UDP_TUNNEL_GSO)),
    HeaderSize(20, (NetFeature.HASH_REPORT,)),
)


def header_size(features: int) -> int:
    """Bytes of the header with what was negotiated: 12 and more."""
    for row in HEADER_SIZES:
        if any(features >> bit & 1 for bit in row.features):
            return row.size
    return HEADER_SIZE


def rx_least(features: int) -> int:
    """The least bytes that a receive buffer must have (5.1.6.3.1)."""
    if features >> NetFeature.MRG_RXBUF & 1:
        return header_size(features)
    gso = (NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6, NetFeature.GUEST_UFO)
    return RX_LEAST_GSO if any(features >> bit & 1 for bit in gso) else RX_LEAST


def control_queue(features: int, max_pairs: int) -> int | None:
    """The number of the control queue, or None: behind all pairs that can be, or behind the first (5.1.2)."""
    if not features >> NetFeature.CTRL_VQ & 1:
        return None
    several = features >> NetFeature.MQ & 1 or features >> NetFeature.RSS & 1
    return 2 * (max_pairs if several else 1)


class ControlClass(IntEnum):
    """Classes of control messages (5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6


class Ack(IntEnum):
    """The writable byte of a control message."""

    OK = 0
    ERR = 1


class NetControl(NamedTuple):
    """The readable part of a control message."""

    control_class: int
    command: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The bytes."""
        return bytes((self.control_class, self.command)) + self.data

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Raises LayoutError for less than class and command."""
        if len(data) < 2:
            raise LayoutError(f"{len(data)} bytes are no control message")
        return cls(data[0], data[1], bytes(data[2:]))
