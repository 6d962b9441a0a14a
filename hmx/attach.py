"""The attach handshake: how a guest process is given its domain.  Experimental, not upstream.

Over an AF_UNIX SEQPACKET connection the guest sends one request, the hypervisor one reply with descriptors: guest RAM,
all vCPU areas in one file, then per vCPU the eventfd that rings the hypervisor and the socket that rings the guest.
The connection then stays open and says nothing more: its end is the end of the domain.

A nested hypervisor whose guests' Argo its parent serves says one thing more, for each of those guests: what it lends,
with one descriptor, the guest's RAM.  The parent answers only if it refuses, by a reply that says so.

A device model (experimental) is told after the reply, in the same form, whose pages it may map: one message with one
descriptor for each guest that it serves by virtio-mmio.  What it may touch there is what it mapped by hypercalls.

    request   magic u32 @0 ("AVAT"), version u16 @4, name length u16 @6, token 16 @8, name (UTF-8) @24
    loan      magic u32 @0 ("AVLN"), version u16 @4, name length u16 @6, domid u16 @8, zero u16 @10, zero u32 @12,
              memory u64 @16, name (UTF-8) @24
    reply     magic u32 @0, version u16 @4, status u16 @6 (0 attached, 1 refused), domid u16 @8, vcpus u16 @10,
              arch u16 @12, text length u16 @14, memory u64 @16, text (UTF-8) @24
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAGIC: Final = int.from_bytes(b"AVAT", "little")
VERSION: Final = 1
TOKEN_SIZE: Final = 16
MAX_NAME: Final = 255
MAX_MESSAGE: Final = 1024

_REQUEST: Final = struct.Struct("<IHH16s")
_REPLY: Final = struct.Struct("<IHHHHHHQ")
LOAN_MAGIC: Final = int.from_bytes(b"AVLN", "little")
_LOAN: Final = struct.Struct("<IHHHHIQ")


class AttachError(Exception):
    """A message of the handshake is not what it should be, or the hypervisor refused."""


class Request(NamedTuple):
    """Who wants to attach, and the token that the broker gave it."""

    name: str
    token: bytes


class Reply(NamedTuple):
    """What the domain is made of; `text` is empty unless `refused`, then it says why."""

    refused: bool
    domid: int
    vcpus: int
    arch: int
    memory: int
    text: str


class Loan(NamedTuple):
    """Whose memory a nested hypervisor lends: the guest's name and domain id there, and bytes."""

    name: str
    domid: int
    memory: int


def pack_loan(loan: Loan) -> bytes:
    """The loan as one message."""
    name = loan.name.encode()
    return _LOAN.pack(LOAN_MAGIC, VERSION, len(name), loan.domid, 0, 0, loan.memory) + name


def unpack_loan(data: bytes, descriptors: int) -> Loan:
    """Decode a loan that came with so many descriptors.  AttachError names what is wrong."""
    if len(data) < _LOAN.size:
        raise AttachError(f"loan of {len(data)} bytes; it has at least {_LOAN.size}")
    magic, version, length, domid, zero, more, memory = _LOAN.unpack_from(data)
    _check(magic, version, LOAN_MAGIC)
    name = data[_LOAN.size :]
    if not 0 < length <= MAX_NAME or length != len(name) or zero or more:
        raise AttachError(f"loan announces a name of {length} bytes and carries {len(name)}")
    if descriptors != 1:
        raise AttachError(f"loan with {descriptors} descriptors")
    try:
        return Loan(name.decode(), domid, memory)
    except UnicodeDecodeError:
        raise AttachError("loan: the name is not UTF-8") from None


def pack_request(request: Request) -> bytes:
    """The request as one message."""
    name = request.name.encode()
    return _REQUEST.pack(MAGIC, VERSION, len(name), request.token) + name


def unpack_request(data: bytes) -> Request:
    """Decode a request.  AttachError names the field that is wrong."""
    if len(data) < _REQUEST.size:
        raise AttachError(f"attach request of {len(data)} bytes; it has at least {_REQUEST.size}")
    magic, version, length, token = _REQUEST.unpack_from(data)
    _check(magic, version)
    name = data[_REQUEST.size :]
    if not 0 < length <= MAX_NAME or length != len(name):
        raise AttachError(f"attach request announces a name of {length} bytes and carries {len(name)}")
    try:
        return Request(name.decode(), token)
    except UnicodeDecodeError:
        raise AttachError("attach request: the name is not UTF-8") from None


def pack_reply(reply: Reply) -> bytes:
    """The reply as one message."""
    text = reply.text.encode()[: MAX_MESSAGE - _REPLY.size]
    head = _REPLY.pack(
        MAGIC, VERSION, int(reply.refused), reply.domid, reply.vcpus, reply.arch, len(text), reply.memory
    )
    return head + text


def unpack_reply(data: bytes) -> Reply:
    """Decode a reply.  AttachError names the field that is wrong."""
    if len(data) < _REPLY.size:
        raise AttachError(f"attach reply of {len(data)} bytes; it has at least {_REPLY.size}")
    magic, version, status, domid, vcpus, arch, length, memory = _REPLY.unpack_from(data)
    _check(magic, version)
    text = data[_REPLY.size : _REPLY.size + length].decode(errors="replace")
    return Reply(bool(status), domid, vcpus, arch, memory, text)


def accepted(data: bytes, descriptors: int, name: str) -> Reply:
    """The reply by which `name` was let in, with so many descriptors.  AttachError for every other one."""
    if not data:
        raise AttachError("the hypervisor closed the attach socket without a reply")
    reply = unpack_reply(data)
    if reply.refused:
        raise AttachError(f"the hypervisor refused to attach {name!r}: {reply.text}")
    if not reply.vcpus or descriptors != 2 + 2 * reply.vcpus:
        raise AttachError(f"attached with {descriptors} descriptors for {reply.vcpus} vCPUs")
    return reply


def _check(magic: int, version: int, expected: int = MAGIC) -> None:
    if magic != expected:
        raise AttachError(f"attach: magic is {magic:#x}, expected {expected:#x}")
    if version != VERSION:
        raise AttachError(f"attach: version is {version}, this side speaks {VERSION}")
