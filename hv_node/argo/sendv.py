"""sendv: one message from a domain's buffers into another domain's ring (Xen common/argo.c).

This is the path of every byte, so it is one function without detours. The order of checks is the order of
the text. A domain that lives on another hypervisor owns no rings here: where none is found, the far hypervisor goes on
from there, through this same function.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    IOV_ARRAYS,
    MAX_IOVS,
    MAX_PAYLOAD,
    MAX_RING_PAGES,
    MESSAGE_HEADER,
    MESSAGE_HEADER_SIZE,
    RING_HEADER_SIZE,
    SEND_ADDR,
    VIRQ_ARGO,
)
from hmx.errno import Errno
from hmx.memory import FAULT, PAGE_SIZE, GuestMemory, RingPages
from hmx.nested import UPLINK_PORT
from hv_node.argo.model import Allocation, Ring, wait_for_space
from hv_node.argo.order import refusal
from hv_node.domain import Domain

if TYPE_CHECKING:
    from hv_node.argo.core import Argo

_OP = "sendv"
_ADDRESSES = refusal(_OP, "addresses")
_NIOV = refusal(_OP, "iov count over 8")
_IOV_ARRAY = refusal(_OP, "iov array")
_PAD = refusal(_OP, "address pad")
_SPOOFED = refusal(_OP, "source is another domain")
_UNKNOWN = refusal(_OP, "destination unknown")
_NO_ARGO = refusal(_OP, "caller without Argo")
_DST_OFF = refusal(_OP, "destination without Argo")
_NO_RING = refusal(_OP, "no matching ring")
_IOV_PAD = refusal(_OP, "iov pad")
_IOV_LEN = refusal(_OP, "iov too long")
_SUM = refusal(_OP, "payload over any ring")
_TOO_BIG = refusal(_OP, "payload over this ring")
_ABSENT = refusal(_OP, "ring pages absent")
_MAPPING = refusal(_OP, "ring page mapping")
_BUSY = refusal(_OP, "ring full, too many wait")
_WAITER_MEMORY = refusal(_OP, "ring full, memory for waiter")
_FULL = refusal(_OP, "ring full")
_PAYLOAD = refusal(_OP, "payload")

_pack_header = MESSAGE_HEADER.pack
_pack_header_into = MESSAGE_HEADER.pack_into
_SEND_ONE = Struct(SEND_ADDR.format + IOV.format.lstrip("<"))  # how a kernel lays a send of one buffer
_AT_ONCE = SEND_ADDR.size
HIDDEN = -int(Errno.ESRCH)  # a policy's way to say that no such domain is there for this caller
MAX_RING_PAYLOAD = MAX_RING_PAGES * PAGE_SIZE - RING_HEADER_SIZE - 2 * MESSAGE_HEADER_SIZE  # of the largest ring


def sendv(
    core: Argo,
    caller: Domain,
    a1: int,
    a2: int,
    niov: int,
    message_type: int,
    ctx: int,
    iov_arrays: tuple[Struct, ...],
    token: object,
) -> int:
    """arg1: addresses; arg2: iovs, laid out by `iov_arrays[count]`.  The payload's size, a refusal, or PENDING."""
    memory = caller.memory
    single = None
    if niov == 1 and a2 - a1 == _AT_ONCE and iov_arrays is IOV_ARRAYS:
        single = memory.unpack(_SEND_ONE, ctx, a1)  # both structures lie side by side: one look
    if single is not None:
        src_port, src_domid, src_pad, dst_port, dst_domid, dst_pad = single[:6]
        iovs = single[6:]
    else:
        addresses = memory.unpack(SEND_ADDR, ctx, a1)
        if addresses is FAULT:
            return _ADDRESSES
        if niov > MAX_IOVS:
            return _NIOV
        found = memory.unpack(iov_arrays[niov], ctx, a2) if niov else ()
        if found is FAULT:
            return _IOV_ARRAY
        src_port, src_domid, src_pad, dst_port, dst_domid, dst_pad = addresses
        iovs = found
    if src_pad or dst_pad:
        return _PAD
    domid = caller.domid
    if src_domid != domid and src_domid != DOMID_ANY:
        return _SPOOFED
    dst = core.lookup(dst_domid)
    if dst is None:
        return _unresolved(core, caller, src_port, dst_domid, dst_port, message_type, iovs, ctx, token)
    if not core.permissive:
        denied = core.send_to(caller, dst, dst_port, src_port)
        if denied:
            if core.loud and denied != HIDDEN:
                core.sink.event("argo-send-denied", domid, dst_domid)
            return denied
    if caller.argo is None:
        return _NO_ARGO
    dst_argo = dst.argo
    if dst_argo is None:
        return _DST_OFF
    rings = dst_argo.rings
    ring = rings.get((dst_port, domid)) or rings.get((dst_port, DOMID_ANY))
    if ring is None:
        if dst.remote is not None:
            return dst.remote.send(caller, dst, src_port, dst_port, message_type, iovs, ctx, token)
        return _NO_RING

    total = 0
    index = 1
    while index < 3 * niov:
        size = iovs[index]
        if iovs[index + 1]:
            return _IOV_PAD
        if size > MAX_PAYLOAD:
            return _IOV_LEN
        total += size
        if total > MAX_PAYLOAD:
            return _SUM
        index += 3
    ring_len = ring.len
    slots = (total + 31) & ~15  # header and payload, rounded up
    if slots >= ring_len:
        return _TOO_BIG
    pages = ring.pages
    if pages is None:
        return _ABSENT
    if core.allocate is not None and not core.allocate(Allocation.PAGE_MAPPING):
        return _MAPPING
    tx = ring.tx
    rx = (pages.load_rx() + 15) & 0xFFFF_FFF0
    if rx >= ring_len:
        rx = 0
    free = ring_len if rx == tx else rx - tx if rx > tx else rx - tx + ring_len
    if slots >= free:
        return _full(core, ring, caller, total)

    # A message starts on a slot boundary, so its header never wraps; its payload may.
    flat = pages.flat
    if flat is not None:
        _pack_header_into(flat, tx, total + 16, src_port, domid, 0, message_type)
    else:
        pages.copy_in(tx, _pack_header(total + 16, src_port, domid, 0, message_type))
    at = tx + 16
    if at == ring_len:
        at = 0
    index = 0
    while index < 3 * niov:
        size = iovs[index + 1]
        if size:
            data = memory.read(ctx, iovs[index], size)
            if data is FAULT:
                return _fault(memory, ctx, iovs[index], size, pages, at, ring_len)
            end = at + size
            if end > ring_len:
                head = ring_len - at
                pages.copy_in(at, data[:head])
                pages.copy_in(0, data[head:])
                end -= ring_len
            else:
                if flat is not None:
                    flat[at:end] = data
                else:
                    pages.copy_in(at, data)
                if end == ring_len:
                    end = 0
            at = end
        index += 3
    tx += slots
    if tx >= ring_len:
        tx -= ring_len
    if core.on_payload_written is not None:
        core.on_payload_written(ring)
    ring.tx = tx
    pages.store_tx(tx)
    core.sink.raise_virq(dst_domid, VIRQ_ARGO, ring)
    return total


def _full(core: Argo, ring: Ring, caller: Domain, total: int) -> int:
    """No room now: the caller waits for it, if the queue takes it."""
    queued = wait_for_space(ring, caller, total, core.allocate)
    if queued is True:
        return _FULL
    return _BUSY if queued is False else _WAITER_MEMORY


def _fault(
    memory: GuestMemory, ctx: int, va: int, size: int, pages: RingPages, at: int, ring_len: int
) -> int:
    """A buffer faults: what precedes the faulting page is copied, beyond tx, and nothing is published."""
    reach = memory.readable(ctx, va, size)
    data = memory.read(ctx, va, reach) if reach else FAULT
    if data is not FAULT:
        head = min(reach, ring_len - at)
        pages.copy_in(at, data[:head])
        if reach > head:
            pages.copy_in(0, data[head:])
    return _PAYLOAD


def _unresolved(
    core: Argo,
    caller: Domain,
    src_port: int,
    domid: int,
    port: int,
    message_type: int,
    iovs: tuple[int, ...],
    ctx: int,
    token: object,
) -> int:
    """The destination is nobody's id.  Experimental, not upstream, beyond the refusal."""
    if caller.nested and domid == DOMID_ANY and port == UPLINK_PORT and core.on_uplink is not None:
        regular, data = gather(caller.memory, ctx, iovs)
        return core.on_uplink(caller, data, message_type) if regular else _PAYLOAD
    if core.implicit is None:
        return _UNKNOWN
    return core.implicit(caller, src_port, domid, port, message_type, iovs, ctx, token)


def gather(memory: GuestMemory, ctx: int, iovs: tuple[int, ...]) -> tuple[bool, bytes]:
    """What a sendv's buffers hold, for somebody who copies it elsewhere (experimental, not upstream).

    True: everything is in order, and these are its bytes. False: something is not, and whoever finds the ring judges
    what; these are the bytes before the first fault, none where no ring could take them.
    """
    parts: list[bytes] = []
    total = 0
    regular = True
    for index in range(0, len(iovs), 3):
        va, size, pad = iovs[index : index + 3]
        total += size
        if pad or total > MAX_RING_PAYLOAD:
            return False, b""
        if not size or not regular:
            continue
        data = memory.read(ctx, va, size)
        if data is FAULT:
            regular = False
            reach = memory.readable(ctx, va, size)
            data = memory.read(ctx, va, reach) if reach else FAULT
        if data is not FAULT:
            parts.append(bytes(data))
    return regular, parts[0] if len(parts) == 1 else b"".join(parts)


class Buffers(Protocol):
    """The part of guest memory that a sendv reads its payload from."""

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:
        """As GuestMemory's."""

    def readable(self, ctx: int, va: int, n: int) -> int:
        """As GuestMemory's."""


class _Given:
    """Memory of a caller whose addresses and iovs are known already; the buffers lie in `buffers`."""

    __slots__ = ("_addresses", "iovs", "read", "readable")

    def __init__(self, addresses: tuple[int, ...], iovs: tuple[int, ...], buffers: Buffers) -> None:
        self._addresses = addresses
        self.iovs = iovs
        self.read = buffers.read
        self.readable = buffers.readable

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:  # noqa: ARG002
        return self._addresses if layout is SEND_ADDR else self.iovs


class _Messages:
    """Whole messages, one after the other: each is the only buffer of a sendv, from its first byte on."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.message: bytes | memoryview = b""

    def read(self, ctx: int, va: int, n: int) -> Any:  # noqa: ARG002
        return self.message

    def readable(self, ctx: int, va: int, n: int) -> int:  # noqa: ARG002
        return n


def send_several(
    core: Argo,
    caller: Domain,
    messages: Sequence[bytes | memoryview],
    src_port: int,
    domid: int,
    port: int,
    message_type: int,
    stop: Container[int],
) -> list[int]:
    """A sendv of `caller` for each message, in order, check by check as any other: their results (experimental).

    Up to and with the first one whose result is among `stop`.
    """
    memory, results, buffers = caller.memory, [], _Messages()
    given: Any = _Given((src_port, DOMID_ANY, 0, port, domid, 0), (), buffers)
    caller.memory = given
    try:
        for message in messages:
            buffers.message = message
            given.iovs = (0, len(message), 0)
            ret = sendv(core, caller, 0, 0, 1, message_type, 0, IOV_ARRAYS, None)
            results.append(ret)
            if ret in stop:
                break
    finally:
        caller.memory = memory
    return results


def send_given(
    core: Argo,
    caller: Domain,
    buffers: Buffers,
    src_port: int,
    domid: int,
    port: int,
    message_type: int,
    iovs: tuple[int, ...],
    ctx: int,
    token: object,
) -> int:
    """A sendv of `caller` whose addresses and iovs are known, check by check as any other (experimental)."""
    memory = caller.memory
    given: Any = _Given((src_port, DOMID_ANY, 0, port, domid, 0), iovs, buffers)
    caller.memory = given
    try:
        return sendv(core, caller, 0, 0, len(iovs) // 3, message_type, ctx, IOV_ARRAYS, token)
    finally:
        caller.memory = memory
