"""Implicit destinations and capabilities as a guest sees them: two operations of argo_op.  Experimental, not upstream.

A guest that names no domain sends to domain `DOMID_ANY` and is led by its table of implicit destinations, which its
toolstack programs (VirtIO-Argo notes of the Xen community, 2020-12: "implicit destinations").  Each entry is a slot
and each slot a capability: whoever holds it may use it, nobody else can name it.

DELEGATE passes a slot on, narrowed if the guest wishes, to the peer that another of its slots leads to.
QUERY_ENDPOINT tells the path and label of a domain to whoever may know them.  A hypervisor that has neither answers
-EOPNOTSUPP, as upstream does.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple


class SlotOp(IntEnum):
    """Operations of argo_op; the number space is that of hmx.notify.NotifyOp."""

    DELEGATE = 0x4000_0010  # a1: DELEGATE; a2, a3, a4: 0.  Result: 0
    QUERY_ENDPOINT = 0x4000_0011  # a1: QUERY_ENDPOINT; a2: buffer, a3: its size; a4: 0.  Result: bytes of the answer


class DelegateFlag(IntFlag):
    """Which of DELEGATE's restrictions count; what is not flagged stays as the slot has it."""

    PORTS = 1  # only these destination ports
    TYPES = 2  # only these message types
    RATE = 4  # at most so many messages a second
    DELEGABLE = 8  # the peer may pass it on (if the slot itself may be)


MAX_RANGES: Final = 8  # port ranges in one DELEGATE
MAX_TYPES: Final = 8  # message types in one DELEGATE
MAX_NAME: Final = 1024  # bytes of path and label together in an answer; longer ones are not told

DELEGATE: Final = Struct("<IIIIIHH16I8I")
"""slot, to_slot, flags, port (by which the peer names it; 0: as the slot is named), rate (messages/s), count of
ranges u16, count of types u16; 8 times first and last port; 8 types.  What lies beyond a count is 0."""
QUERY_ENDPOINT: Final = Struct("<HHI")  # domain_id, pad, flags (0)
ENDPOINT: Final = Struct("<HHHH")  # bytes of the path, bytes of the label, EndpointFlag, pad; both texts follow


class EndpointFlag(IntFlag):
    """What else is known of an endpoint."""

    REMOTE = 1  # it lives on another hypervisor


class DelegateCall(NamedTuple):
    """DELEGATE, taken apart."""

    slot: int
    to_slot: int
    flags: DelegateFlag
    port: int
    rate: int
    ranges: tuple[tuple[int, int], ...]
    types: tuple[int, ...]


_ALL_FLAGS: Final = int(DelegateFlag.PORTS | DelegateFlag.TYPES | DelegateFlag.RATE | DelegateFlag.DELEGABLE)


def parse_delegate(fields: tuple[int, ...]) -> DelegateCall | None:
    """The fields of DELEGATE as a guest wrote them; None: a flag, count, range or unused place that may not be."""
    slot, to_slot, flags, port, rate, ranges, types = fields[:7]
    ports, kinds = fields[7 : 7 + 2 * MAX_RANGES], fields[7 + 2 * MAX_RANGES :]
    if flags & ~_ALL_FLAGS or ranges > MAX_RANGES or types > MAX_TYPES:
        return None
    pairs = tuple(zip(ports[: 2 * ranges : 2], ports[1 : 2 * ranges : 2], strict=True))
    if any(ports[2 * ranges :]) or any(kinds[types:]) or any(first > last for first, last in pairs):
        return None
    if bool(flags & DelegateFlag.PORTS) != bool(ranges) or bool(flags & DelegateFlag.TYPES) != bool(types):
        return None
    if bool(flags & DelegateFlag.RATE) != bool(rate):
        return None
    return DelegateCall(slot, to_slot, DelegateFlag(flags), port, rate, pairs, kinds[:types])


def pack_delegate(call: DelegateCall) -> bytes:
    """DELEGATE as a guest lays it out."""
    ports = [port for pair in call.ranges for port in pair]
    ports += [0] * (2 * MAX_RANGES - len(ports))
    types = [*call.types, *[0] * (MAX_TYPES - len(call.types))]
    head = (call.slot, call.to_slot, int(call.flags), call.port, call.rate, len(call.ranges), len(call.types))
    return DELEGATE.pack(*head, *ports, *types)


class Endpoint(NamedTuple):
    """What QUERY_ENDPOINT tells.  `path` is "" for a guest that may know the label only."""

    path: str
    label: str
    flags: EndpointFlag


def pack_endpoint(endpoint: Endpoint) -> bytes | None:
    """The answer to QUERY_ENDPOINT; None where the texts are too long to be told."""
    path, label = endpoint.path.encode(), endpoint.label.encode()
    if len(path) + len(label) > MAX_NAME:
        return None
    return ENDPOINT.pack(len(path), len(label), int(endpoint.flags), 0) + path + label


def parse_endpoint(answer: bytes) -> Endpoint | None:
    """An answer to QUERY_ENDPOINT as a guest reads it; None if it is not one."""
    if len(answer) < ENDPOINT.size:
        return None
    path_size, label_size, flags, _ = ENDPOINT.unpack_from(answer)
    text = answer[ENDPOINT.size :]
    if len(text) != path_size + label_size:
        return None
    try:
        return Endpoint(text[:path_size].decode(), text[path_size:].decode(), EndpointFlag(flags))
    except UnicodeDecodeError:
        return None
