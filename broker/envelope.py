"""Envelope version 1: what one level of hypervisors hands to another through its uplink (experimental, not
upstream).

Layout: `[ver, kind, cookie, origin_epoch, origin_seq, src_path, dst, hops_left, label, op, port_src,
port_dst, msg_type, offset, length, ret]`.  Envelopes travel on the request lane only, so nothing between two
endpoints overtakes.  `(origin_epoch, src_path, origin_seq)` names an operation for its whole life, repeats
included; `src_path` climbs from the speaker, is appended to by each level and never by a guest, and is the
absolute path when read backwards; `dst` is absolute, from the fabric down.  A step is a name, a name with its
incarnation, nothing (the hypervisor itself), or `*` (all of them).  `offset` and `length` point into the
payload of the frame that carries the envelope; whoever assembles a frame sets the offset.
"""

from __future__ import annotations

import itertools
import operator
import struct
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
USES: Final = {int(row.kind): row.use for row in KINDS}

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
        return USES[self.kind]


def _tightest(field: Field) -> str:
    """The struct code of the narrowest integer that holds every value of `field`."""
    low, high = field.type.low, field.type.high
    return next(code for code, least, most in _CODES if least <= low and high <= most)


_CODES: Final = (("B", 0, 0xFF), ("i", -(1 << 31), (1 << 31) - 1), ("I", 0, 0xFFFFFFFF), ("Q", 0, (1 << 64) - 1))
_INTEGERS: Final = [(at, field) for at, field in enumerate(FIELDS) if field.type.base is int]
_RANGES: Final = struct.Struct("<" + "".join(_tightest(field) for _, field in _INTEGERS))
_integers = operator.itemgetter(*(at for at, _ in _INTEGERS))
assert [field.name for _, field in _INTEGERS if field.type not in (U8, U32, U64, I32)] == [
    "ver", "kind", "offset", "length",
], "of integers, these have bounds that are not the whole range of a struct code"  # fmt: skip
KIND_AT: Final = 1
SOURCE_AT: Final = 5
DESTINATION_AT: Final = 6
HOPS_AT: Final = 7
LABEL_AT: Final = 8


def _shape(kind: type, source: type, destination: type) -> tuple[type, ...]:
    types = [field.type.base for field in FIELDS]
    types[KIND_AT], types[SOURCE_AT], types[DESTINATION_AT] = kind, source, destination
    return tuple(types)


_SHAPES: Final = frozenset(
    itertools.starmap(_shape, itertools.product((int, EnvelopeKind), (list, tuple), (list, tuple)))
)
_MAX_SEEN: Final = 4096
_seen: set[tuple[Any, ...]] = set()
"""Paths of names that were found right: an endpoint sends many envelopes.  Emptied when it is full."""


def _is_path(path: tuple[Any, ...]) -> bool:
    if path in _seen:
        return True
    if not PATH.accepts(path):
        return False
    if all(type(step) is str for step in path):  # True and 1.0 would be found where 1 is kept
        if len(_seen) >= _MAX_SEEN:
            _seen.clear()
        _seen.add(path)
    return True


def at_once(values: Sequence[Any]) -> Envelope | None:
    """An envelope of right values by way of whole-record checks; None: :func:`validate` says what is wrong."""
    if tuple(map(type, values)) not in _SHAPES:
        return None
    ver, kind, _, _, _, source, destination, _, label, _, _, _, _, offset, length, _ = values
    most = _EXTENT.high
    if ver != VERSION or kind not in USES or len(label) > LABEL.high:
        return None
    if not (0 <= offset <= most and 0 <= length <= most):
        return None
    try:
        _RANGES.pack(*_integers(values))
    except struct.error:
        return None
    source, destination = tuple(source), tuple(destination)
    try:
        if not ((source in _seen or _is_path(source)) and (destination in _seen or _is_path(destination))):
            return None
    except TypeError:  # an array within a path cannot be looked up
        return None
    if type(values) is Envelope and source is values[SOURCE_AT] and destination is values[DESTINATION_AT]:
        return values
    fields = list(values)
    fields[SOURCE_AT], fields[DESTINATION_AT] = source, destination
    return Envelope._make(fields)


def validate(values: Sequence[Any]) -> Envelope:
    """Check an array that claims to be an envelope.  RecordError names the field that is not right."""
    checked = at_once(values)
    if checked is not None:
        return checked
    if len(values) != len(FIELDS):
        raise RecordError("envelope", "length", len(values), f"{len(FIELDS)} fields")
    check_fields("envelope", FIELDS, values)
    envelope = Envelope._make(values)
    return envelope._replace(src_path=tuple(envelope.src_path), dst=tuple(envelope.dst))


_HEADER: Final = codec.array_header(len(FIELDS))


def pack(envelope: Envelope, length: int, hops_left: int | None = None) -> tuple[bytes, bytes]:
    """The encoded bytes before and after the offset field, for a payload of `length` bytes; with other hops, if any."""
    fields: tuple[object, ...] = envelope[:OFFSET_AT]
    if hops_left is not None:
        fields = (*fields[:HOPS_AT], hops_left, *fields[HOPS_AT + 1 :])
    head = _HEADER + codec.pack(fields)[1:]  # without the one byte that makes them an array
    return head, codec.pack((length, envelope.ret))[1:]


def result_of(request: Envelope, ret: int) -> Envelope:
    """The RESULT envelope that answers `request`, said where its destination is: same cookie and origin, no payload.

    Paths climb from the speaker and descend to the one spoken to, so each end's is the other's read backwards.
    """
    return request._replace(
        kind=EnvelopeKind.RESULT,
        src_path=request.dst[::-1],
        dst=request.src_path[::-1],
        offset=0,
        length=0,
        ret=ret,
    )
