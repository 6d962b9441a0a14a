"""The block device on the wire: features, configuration, requests.

Source: VIRTIO 1.4, 5.2.  A request is one stream of bytes in each direction, wherever its descriptors begin: 16 bytes
of header and what is written; then what is read, and the status as the last writable byte.  The unit is always 512
bytes, whatever blk_size says.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from hmx.virtio.features import FeatureRow, Kind
from hmx.virtio.layout import Buffer, LayoutError, at_least, padded, record
from hmx.virtio.rings import Field

SECTOR: Final = 512
ID_SIZE: Final = 20  # of GET_ID; a name of 20 bytes has no NUL
STATUS_SIZE: Final = 1
CONFIG_SIZE: Final = 96
CONFIG_LEAST: Final = 8  # capacity


class BlkFeature(IntEnum):
    """Feature bits (5.2.3)."""

    BARRIER = 0
    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    SCSI = 7
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17


FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(BlkFeature.BARRIER, Kind.LEGACY, note="barriers between requests"),
    FeatureRow(BlkFeature.SIZE_MAX, Kind.DEVICE, note="size_max: the longest segment"),
    FeatureRow(BlkFeature.SEG_MAX, Kind.DEVICE, note="seg_max: the most segments of a request"),
    FeatureRow(BlkFeature.GEOMETRY, Kind.DEVICE, note="cylinders, heads, sectors"),
    FeatureRow(BlkFeature.RO, Kind.DEVICE, note="read-only"),
    FeatureRow(BlkFeature.BLK_SIZE, Kind.DEVICE, note="blk_size: the best unit; requests still count 512"),
    FeatureRow(BlkFeature.SCSI, Kind.LEGACY, note="SCSI commands"),
    FeatureRow(BlkFeature.FLUSH, Kind.DEVICE, note="the request FLUSH; writes may be volatile until then"),
    FeatureRow(BlkFeature.TOPOLOGY, Kind.DEVICE, note="the best alignment"),
    FeatureRow(
        BlkFeature.CONFIG_WCE, Kind.DEVICE, (BlkFeature.FLUSH,), offer_only=True,
        note="writeback can be switched; it begins at 0 for a driver that took this without FLUSH",
    ),
    FeatureRow(BlkFeature.MQ, Kind.DEVICE, note="num_queues queues, not one"),
    FeatureRow(BlkFeature.DISCARD, Kind.DEVICE, note="the request DISCARD"),
    FeatureRow(BlkFeature.WRITE_ZEROES, Kind.DEVICE, note="the request WRITE_ZEROES"),
    FeatureRow(BlkFeature.LIFETIME, Kind.DEVICE, note="the request GET_LIFETIME"),
    FeatureRow(BlkFeature.SECURE_ERASE, Kind.DEVICE, note="the request SECURE_ERASE"),
    FeatureRow(BlkFeature.ZONED, Kind.DEVICE, note="a zoned device"),
)  # fmt: skip


CONFIG_FIELDS: Final = (
    Field("capacity", 0, 8),
    Field("size_max", 8, 4),
    Field("seg_max", 12, 4),
    Field("cylinders", 16, 2),
    Field("heads", 18, 1),
    Field("sectors", 19, 1),
    Field("blk_size", 20, 4),
    Field("physical_block_exp", 24, 1),
    Field("alignment_offset", 25, 1),
    Field("min_io_size", 26, 2),
    Field("opt_io_size", 28, 4),
    Field("writeback", 32, 1),
    Field("num_queues", 34, 2),
    Field("max_discard_sectors", 36, 4),
    Field("max_discard_seg", 40, 4),
    Field("discard_sector_alignment", 44, 4),
    Field("max_write_zeroes_sectors", 48, 4),
    Field("max_write_zeroes_seg", 52, 4),
    Field("write_zeroes_may_unmap", 56, 1),
    Field("max_secure_erase_sectors", 60, 4),
    Field("max_secure_erase_seg", 64, 4),
    Field("secure_erase_sector_alignment", 68, 4),
    Field("zone_sectors", 72, 4),
    Field("max_open_zones", 76, 4),
    Field("max_active_zones", 80, 4),
    Field("max_append_sectors", 84, 4),
    Field("write_granularity", 88, 4),
    Field("model", 92, 1),
)


class BlkConfig(NamedTuple):
    """The configuration space (5.2.4); sizes in sectors of 512 bytes unless the specification says otherwise."""

    capacity: int
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    writeback: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0
    max_secure_erase_sectors: int = 0
    max_secure_erase_seg: int = 0
    secure_erase_sector_alignment: int = 0
    zone_sectors: int = 0
    max_open_zones: int = 0
    max_active_zones: int = 0
    max_append_sectors: int = 0
    write_granularity: int = 0
    model: int = 0

    def pack(self) -> bytes:
        """All 96 bytes."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From as many bytes as the device has.  Raises LayoutError without a capacity."""
        return cls(*_CONFIG.unpack(padded("a block device's configuration", data, CONFIG_LEAST, CONFIG_SIZE)))


_CONFIG: Final = record(CONFIG_FIELDS, CONFIG_SIZE, BlkConfig._fields)
WRITEBACK_OFFSET: Final = next(field.offset for field in CONFIG_FIELDS if field.name == "writeback")


class BlkType(IntEnum):
    """Requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


class BlkStatus(IntEnum):
    """The last writable byte of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


class SegmentFlag(IntFlag):
    """Flags of a segment of DISCARD, WRITE_ZEROES or SECURE_ERASE."""

    UNMAP = 1


class Data(Enum):
    """What goes with a request."""

    NONE = "nothing"
    READ = "whole sectors to the driver"
    WRITE = "whole sectors to the device"
    ID = "20 bytes to the driver"
    BYTES = "bytes to the driver"
    SEGMENTS = "segments to the device"


class TypeRow(NamedTuple):
    """One request: its data, the feature without which there is no such request, the segment flags that it may have.

    `writes`: it changes the disk, so that a read-only device refuses it.
    """

    type: BlkType
    data: Data
    feature: BlkFeature | None
    writes: bool
    flags: SegmentFlag


_NO_FLAG: Final = SegmentFlag(0)

TYPES: Final[tuple[TypeRow, ...]] = (
    TypeRow(BlkType.IN, Data.READ, None, False, _NO_FLAG),
    TypeRow(BlkType.OUT, Data.WRITE, None, True, _NO_FLAG),
    TypeRow(BlkType.FLUSH, Data.NONE, BlkFeature.FLUSH, False, _NO_FLAG),
    TypeRow(BlkType.GET_ID, Data.ID, None, False, _NO_FLAG),
    TypeRow(BlkType.GET_LIFETIME, Data.BYTES, BlkFeature.LIFETIME, False, _NO_FLAG),
    TypeRow(BlkType.DISCARD, Data.SEGMENTS, BlkFeature.DISCARD, True, _NO_FLAG),
    TypeRow(BlkType.WRITE_ZEROES, Data.SEGMENTS, BlkFeature.WRITE_ZEROES, True, SegmentFlag.UNMAP),
    TypeRow(BlkType.SECURE_ERASE, Data.SEGMENTS, BlkFeature.SECURE_ERASE, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_APPEND, Data.WRITE, BlkFeature.ZONED, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_REPORT, Data.BYTES, BlkFeature.ZONED, False, _NO_FLAG),
    TypeRow(BlkType.ZONE_OPEN, Data.NONE, BlkFeature.ZONED, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_CLOSE, Data.NONE, BlkFeature.ZONED, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_FINISH, Data.NONE, BlkFeature.ZONED, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_RESET, Data.NONE, BlkFeature.ZONED, True, _NO_FLAG),
    TypeRow(BlkType.ZONE_RESET_ALL, Data.NONE, BlkFeature.ZONED, True, _NO_FLAG),
)
_TYPES: Final = {int(row.type): row for row in TYPES}


class BlkHeader(NamedTuple):
    """The first 16 bytes of a request.  `type` as it came, known or not."""

    type: int
    reserved: int
    sector: int


HEADER_FIELDS: Final = (Field("type", 0, 4), Field("reserved", 4, 4), Field("sector", 8, 8))
REQUEST_HEADER: Final = record(HEADER_FIELDS, 16, BlkHeader._fields)


class BlkSegment(NamedTuple):
    """One range of sectors."""

    sector: int
    num_sectors: int
    flags: int = 0


SEGMENT_FIELDS: Final = (Field("sector", 0, 8), Field("num_sectors", 8, 4), Field("flags", 12, 4))
SEGMENT: Final = record(SEGMENT_FIELDS, 16, BlkSegment._fields)


class BlkLifetime(NamedTuple):
    """What GET_LIFETIME answers: as eMMC 5.0 has PRE_EOL_INFO and DEVICE_LIFE_TIME_EST_TYP_A and B."""

    pre_eol_info: int
    device_lifetime_est_typ_a: int
    device_lifetime_est_typ_b: int


LIFETIME_FIELDS: Final = (
    Field("pre_eol_info", 0, 2),
    Field("device_lifetime_est_typ_a", 2, 2),
    Field("device_lifetime_est_typ_b", 4, 2),
)
LIFETIME: Final = record(LIFETIME_FIELDS, 6, BlkLifetime._fields)


def pack_header(request_type: int, sector: int = 0) -> bytes:
    """The header of a request."""
    return REQUEST_HEADER.pack(request_type, 0, sector)


def unpack_header(readable: Buffer) -> BlkHeader:
    """The header at the beginning of a request's readable bytes.  Raises LayoutError."""
    return BlkHeader(*REQUEST_HEADER.unpack_from(at_least("a block request", readable, REQUEST_HEADER.size)))


def unpack_segments(data: Buffer) -> tuple[BlkSegment, ...]:
    """The segments behind the header of DISCARD and its like, at least one.  Raises LayoutError."""
    if not data or len(data) % SEGMENT.size:
        raise LayoutError(f"{len(data)} bytes are no segments of {SEGMENT.size}")
    return tuple(BlkSegment(*values) for values in SEGMENT.iter_unpack(data))


def refusal(header: BlkHeader, readable: int, writable: int, features: int) -> BlkStatus | None:
    """The status of a request that has no business with the disk's contents, or None: carry it out.

    `readable` and `writable`: bytes of the chain without header and status.  `features`: what was negotiated, and RO of
    a device that is read-only, whether the driver took it or not.  A request of the wrong shape ends with IOERR, one
    that is unknown or was not negotiated with UNSUPP.
    """
    row = _TYPES.get(header.type)
    if row is None or (row.feature is not None and not features >> row.feature & 1):
        return BlkStatus.UNSUPP
    if row.writes and features >> BlkFeature.RO & 1:
        return BlkStatus.IOERR
    match row.data:
        case Data.READ:
            good = not readable and writable > 0 and not writable % SECTOR
        case Data.WRITE:
            good = readable > 0 and not readable % SECTOR
        case Data.NONE:
            good = not readable
        case Data.ID:
            good = not readable and writable >= ID_SIZE
        case Data.BYTES:
            good = not readable and writable > 0
        case Data.SEGMENTS:
            good = readable > 0 and not readable % SEGMENT.size
    return None if good else BlkStatus.IOERR


def segment_refusal(request_type: int, segment: BlkSegment) -> BlkStatus | None:
    """UNSUPP for flags that segments of this request must not have, or None."""
    return BlkStatus.UNSUPP if segment.flags & ~int(_TYPES[request_type].flags) else None
