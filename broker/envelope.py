"""Envelope version 1: what one level of hypervisors hands to another through its uplink (experimental, not
upstream).

Layout: `[ver, kind, cookie, origin_epoch, origin_seq, src_path, dst, hops_left, label, op, port_src,
port_dst, msg_type, offset, length, ret]`.  Envelopes travel on the request lane only, so nothing between two
endpoints overtakes.  `(origin_epoch, src_path, origin_seq)` names an operation for its whole life, repeats
included; `src_path` is appended to by each level and never by a guest.  `offset` and `length` point into the
payload of the frame that carries the envelope; whoever assembles a frame sets the offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from broker import codec
from broker.fields import I32, LABEL, PATH, U8, U32, U64, Field, FieldType, RecordError, check_fields
from broker.frames import MAX_PAYLOAD

VERSION: Final = 1


class EnvelopeKind(IntEnum):
    """What an envelope is for; numbered from 1, new ones are appended."""

    SEND = 1
    RESULT = 2
    QUERY = 3
    WAKE = 4
    INTERRUPT = 5
    ENDPOINT_DIED = 6
    CANCEL = 7


class Use(IntEnum):
    """Which credit a record takes: of the window, that and room for its result, or that room."""

    ORDINARY = 1
    REQUEST = 2
    RESULT = 3


class KindRow(NamedTuple):
    """How an envelope kind uses the lane's credit."""

    kind: EnvelopeKind
    use: Use


KINDS: Final = (
    KindRow(EnvelopeKind.SEND, Use.REQUEST),
    KindRow(EnvelopeKind.RESULT, Use.RESULT),
    KindRow(EnvelopeKind.QUERY, Use.REQUEST),
    KindRow(EnvelopeKind.WAKE, Use.ORDINARY),
    KindRow(EnvelopeKind.INTERRUPT, Use.ORDINARY),
    KindRow(EnvelopeKind.ENDPOINT_DIED, Use.ORDINARY),
    KindRow(EnvelopeKind.CANCEL, Use.ORDINARY),
)
_USES: Final = {int(row.kind): row.use for row in KINDS}

_VERSION: Final = FieldType("envelope version 1", int, VERSION, VERSION)
_KIND: Final = FieldType("an envelope kind, 1 to 7", int, EnvelopeKind.SEND, EnvelopeKind.CANCEL)
_EXTENT: Final = FieldType(f"an integer from 0 to {MAX_PAYLOAD}", int, 0, MAX_PAYLOAD)

FIELDS: Final = (
    Field("ver", _VERSION),
    Field("kind", _KIND),
    Field("cookie", U64),
    Field("origin_epoch", U64),
    Field("origin_seq", U64),
    Field("src_path", PATH),
    Field("dst", PATH),
    Field("hops_left", U8),
    Field("label", LABEL),
    Field("op", U32),
    Field("port_src", U32),
    Field("port_dst", U32),
    Field("msg_type", U32),
    Field("offset", _EXTENT),
    Field("length", _EXTENT),
    Field("ret", I32),
)
OFFSET_AT: Final = 13
LENGTH_AT: Final = 14


class Envelope(NamedTuple):
    """One operation, answer or signal between levels.  Integers are as wide as `FIELDS` says."""

    ver: int
    kind: int
    cookie: int
    origin_epoch: int
    origin_seq: int
    src_path: tuple[str | int, ...]
    dst: tuple[str | int, ...]
    hops_left: int
    label: str
    op: int
    port_src: int
    port_dst: int
    msg_type: int
    offset: int
    length: int
    ret: int

    @property
    def use(self) -> Use:
        """Which credit this envelope takes."""
        return _USES[self.kind]


def validate(values: Sequence[Any]) -> Envelope:
    """Check an array that claims to be an envelope.  RecordError names the field that is not right."""
    if len(values) != len(FIELDS):
        raise RecordError("envelope", "length", len(values), f"{len(FIELDS)} fields")
    check_fields("envelope", FIELDS, values)
    envelope = Envelope._make(values)
    return envelope._replace(src_path=tuple(envelope.src_path), dst=tuple(envelope.dst))


def pack(envelope: Envelope, length: int) -> tuple[bytes, bytes]:
    """The encoded bytes before and after the offset field, for a payload of `length` bytes."""
    head = codec.array_header(len(FIELDS)) + codec.pack_items(envelope[:OFFSET_AT])
    return head, codec.pack_items((length, envelope.ret))


def result_of(request: Envelope, ret: int) -> Envelope:
    """The RESULT envelope that answers `request`: same cookie and origin, ends swapped, no payload."""
    return request._replace(
        kind=EnvelopeKind.RESULT, src_path=request.dst, dst=request.src_path, offset=0, length=0, ret=ret
    )
