"""The IOMMU device on the wire: features, configuration, requests.

Source: VIRTIO 1.4, 5.13.  A request is a readable part (head and body) and a writable one (tail with the status).
Where the device does not answer, because it knows no such request or finds no tail, the used length is 0.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any, Final, NamedTuple, Self

from hmx.virtio.features import FeatureRow, Kind
from hmx.virtio.layout import Buffer, LayoutError, at_least, exactly, padded, record
from hmx.virtio.rings import Field

CONFIG_SIZE: Final = 40
HEAD_SIZE: Final = 4
TAIL_SIZE: Final = 4
REQUESTS_QUEUE, EVENTS_QUEUE = range(2)


class IommuFeature(IntEnum):
    """Feature bits (5.13.3)."""

    INPUT_RANGE = 0
    DOMAIN_RANGE = 1
    MAP_UNMAP = 2
    BYPASS = 3
    PROBE = 4
    MMIO = 5
    BYPASS_CONFIG = 6


FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(IommuFeature.INPUT_RANGE, Kind.DEVICE, note="input_start and input_end"),
    FeatureRow(IommuFeature.DOMAIN_RANGE, Kind.DEVICE, note="domain_start and domain_end"),
    FeatureRow(IommuFeature.MAP_UNMAP, Kind.DEVICE, note="the requests MAP and UNMAP"),
    FeatureRow(IommuFeature.BYPASS, Kind.DEVICE, note="endpoints without a domain pass; deprecated"),
    FeatureRow(IommuFeature.PROBE, Kind.DEVICE, note="the request PROBE"),
    FeatureRow(IommuFeature.MMIO, Kind.DEVICE, note="the flag MMIO of MAP"),
    FeatureRow(IommuFeature.BYPASS_CONFIG, Kind.DEVICE, note="the byte bypass of the configuration"),
)

CONFIG_FIELDS: Final = (
    Field("page_size_mask", 0, 8),
    Field("input_start", 8, 8),
    Field("input_end", 16, 8),
    Field("domain_start", 24, 4),
    Field("domain_end", 28, 4),
    Field("probe_size", 32, 4),
    Field("bypass", 36, 1),
)


class IommuConfig(NamedTuple):
    """The configuration space (5.13.4).  Ends are inclusive."""

    page_size_mask: int
    input_start: int = 0
    input_end: int = 0xFFFFFFFFFFFFFFFF
    domain_start: int = 0
    domain_end: int = 0xFFFFFFFF
    probe_size: int = 0
    bypass: int = 0

    def pack(self) -> bytes:
        """All 40 bytes."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From as many bytes as the device has.  Raises LayoutError without a page size."""
        return cls(*_CONFIG.unpack(padded("an IOMMU's configuration", data, 8, CONFIG_SIZE)))


_CONFIG: Final = record(CONFIG_FIELDS, CONFIG_SIZE, IommuConfig._fields)
BYPASS_OFFSET: Final = next(field.offset for field in CONFIG_FIELDS if field.name == "bypass")


class IommuType(IntEnum):
    """Requests."""

    ATTACH = 1
    DETACH = 2
    MAP = 3
    UNMAP = 4
    PROBE = 5


class IommuStatus(IntEnum):
    """The first byte of the tail."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    DEVERR = 3
    INVAL = 4
    RANGE = 5
    NOENT = 6
    FAULT = 7
    NOMEM = 8


class AttachFlag(IntFlag):
    """Flags of ATTACH."""

    BYPASS = 1


class MapFlag(IntFlag):
    """Flags of MAP."""

    READ = 1
    WRITE = 2
    MMIO = 4


class Attach(NamedTuple):
    """Attach an endpoint to a domain."""

    domain: int
    endpoint: int
    flags: int = 0
    reserved: int = 0


class Detach(NamedTuple):
    """Detach an endpoint."""

    domain: int
    endpoint: int


class Map(NamedTuple):
    """Map virt_start to virt_end, inclusive, to as many bytes from phys_start on."""

    domain: int
    virt_start: int
    virt_end: int
    phys_start: int
    flags: int


class Unmap(NamedTuple):
    """Take away all mappings that lie wholly in virt_start to virt_end, inclusive."""

    domain: int
    virt_start: int
    virt_end: int


class Probe(NamedTuple):
    """Ask for the properties of an endpoint."""

    endpoint: int


Request = Attach | Detach | Map | Unmap | Probe

HEAD_FIELDS: Final = (Field("type", 0, 1),)
TAIL_FIELDS: Final = (Field("status", 0, 1),)


class FaultReason(IntEnum):
    """Why an access failed."""

    UNKNOWN = 0
    DOMAIN = 1
    MAPPING = 2


class FaultFlag(IntFlag):
    """What kind of access it was, and whether `address` says where."""

    READ = 1
    WRITE = 2
    ADDRESS = 1 << 8


class Fault(NamedTuple):
    """A report on the event queue."""

    reason: int
    flags: int
    endpoint: int
    address: int

    def pack(self) -> bytes:
        """All 24 bytes."""
        return _FAULT.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Raises LayoutError."""
        return cls(*_FAULT.unpack_from(at_least("a fault", data, _FAULT.size)))


FAULT_FIELDS: Final = (
    Field("reason", 0, 1),
    Field("flags", 4, 4),
    Field("endpoint", 8, 4),
    Field("address", 16, 8),
)
_FAULT: Final = record(FAULT_FIELDS, 24, Fault._fields)


class RequestRow(NamedTuple):
    """One request: its body behind the head, `size` bytes in all."""

    type: IommuType
    values: Any
    size: int
    fields: tuple[Field, ...]


REQUESTS: Final[tuple[RequestRow, ...]] = (
    RequestRow(
        IommuType.ATTACH, Attach, 16,
        (Field("domain", 0, 4), Field("endpoint", 4, 4), Field("flags", 8, 4), Field("reserved", 12, 4)),
    ),
    RequestRow(IommuType.DETACH, Detach, 16, (Field("domain", 0, 4), Field("endpoint", 4, 4))),
    RequestRow(
        IommuType.MAP, Map, 32,
        (
            Field("domain", 0, 4), Field("virt_start", 4, 8), Field("virt_end", 12, 8), Field("phys_start", 20, 8),
            Field("flags", 28, 4),
        ),
    ),
    RequestRow(
        IommuType.UNMAP, Unmap, 24,
        (Field("domain", 0, 4), Field("virt_start", 4, 8), Field("virt_end", 12, 8)),
    ),
    RequestRow(IommuType.PROBE, Probe, 68, (Field("endpoint", 0, 4),)),
)  # fmt: skip
_HEAD: Final = record(HEAD_FIELDS, HEAD_SIZE, ("type",))
_TAIL: Final = record(TAIL_FIELDS, TAIL_SIZE, ("status",))
_BODIES: Final[dict[int, tuple[RequestRow, Struct]]] = {
    int(row.type): (row, record(row.fields, row.size, row.values._fields)) for row in REQUESTS
}
_BY_VALUES: Final = {row.values: row for row in REQUESTS}


def pack_request(request: Request) -> bytes:
    """The readable part of a request."""
    row = _BY_VALUES[type(request)]
    return _HEAD.pack(row.type) + _BODIES[row.type][1].pack(*request)


def unpack_request(readable: Buffer) -> Request:
    """The request that a readable part is.  Raises LayoutError: the device cannot answer, the used length is 0."""
    (number,) = _HEAD.unpack_from(at_least("a request", readable, HEAD_SIZE))
    found = _BODIES.get(number)
    if found is None:
        raise LayoutError(f"request {number}")
    row, body = found
    values = body.unpack(exactly(row.type.name, readable[HEAD_SIZE:], row.size))
    request: Request = row.values(*values)
    return request


def pack_tail(status: IommuStatus) -> bytes:
    """The end of the writable part."""
    return _TAIL.pack(status)


def unpack_tail(written: Buffer) -> IommuStatus:
    """The status at the end of what the device wrote.  Raises LayoutError: it did not answer, or nonsense."""
    data = at_least("an answer", written, TAIL_SIZE)
    (status,) = _TAIL.unpack_from(data, len(data) - TAIL_SIZE)
    try:
        return IommuStatus(status)
    except ValueError:
        raise LayoutError(f"status {status}") from None
