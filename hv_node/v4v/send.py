"""send and sendv: one message from a domain's buffers into another domain's ring (uXen common/v4v.c).

Both are one routine: send has one buffer, sendv an array of them, as many as hv_node/v4v/limits.py allows.  The order
of checks is the order of the text.  uXen reads the array twice, to add the sizes up and to copy; so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hmx.argo.abi import MESSAGE_HEADER, MESSAGE_HEADER_SIZE
from hmx.argo.ring import advance, free_space, sanitise_rx
from hmx.memory import FAULT
from hmx.v4v.abi import ADDR, IOV, MAX_RING_LEN
from hv_node.argo.model import Allocation
from hv_node.domain import Domain
from hv_node.v4v.channel import validate
from hv_node.v4v.limits import limit
from hv_node.v4v.model import V4vRing
from hv_node.v4v.order import refusal
from hv_node.v4v.pages import V4vPages

if TYPE_CHECKING:
    from hv_node.v4v.core import V4v

_OP = "send"
_SOURCE = refusal(_OP, "source address")
_DESTINATION = refusal(_OP, "destination address")
_OFF = refusal(_OP, "caller without v4v")
_DST_OFF = refusal(_OP, "destination unknown or without v4v")
_NO_RING = refusal(_OP, "no matching ring")
_PLACEHOLDER = refusal(_OP, "placeholder")
_IOV = refusal(_OP, "iov")
_IOV_LEN = refusal(_OP, "iov over 16 MiB")
_SUM = refusal(_OP, "payload over 16 MiB")
_TOO_BIG = refusal(_OP, "payload over this ring")
_ABSENT = refusal(_OP, "ring pages absent")
_WAITER_MEMORY = refusal(_OP, "ring full, memory for waiter")
_FULL = refusal(_OP, "ring full")
_PAYLOAD = refusal(_OP, "payload")
_MOST_IOVS, _TOO_MANY_IOVS = limit("sendv")


def send(core: V4v, caller: Domain, a1: int, a2: int, a3: int, a4: int, a5: int, ctx: int, vector: bool) -> int:
    """arg1: source; arg2: destination; arg3: a buffer of arg4 bytes or, if `vector`, arg4 iovs; arg5: message type.

    The payload's size, or a refusal.
    """
    memory = caller.memory
    source = memory.unpack(ADDR, ctx, a1)
    if source is FAULT:
        return _SOURCE
    destination = memory.unpack(ADDR, ctx, a2)
    if destination is FAULT:
        return _DESTINATION
    if core.state(caller) is None:
        return _OFF
    dst_domid = validate(core, caller, destination[1])
    if dst_domid < 0:
        return dst_domid
    dst = core.states.get(dst_domid)
    if dst is None:
        return _DST_OFF
    ring = dst.match(destination[0], caller.domid)
    if ring is None:
        core.signal_domain(dst_domid)  # its driver may look, and register what is missing
        return _NO_RING
    if not ring.len:
        # The ring will be empty when it comes: its registration shall wake whatever waits.
        return _wait(core, ring, caller, 0, _PLACEHOLDER)
    total = _sizes(caller, a3, a4, ctx) if vector else a4
    if total < 0:
        return total
    ring_len = ring.len
    slots = (total + MESSAGE_HEADER_SIZE + 15) & ~15  # header and payload, rounded up
    if slots >= ring_len:
        return _TOO_BIG
    pages = ring.pages
    if pages is None:
        return _ABSENT
    tx = ring.tx
    if slots >= free_space(ring_len, sanitise_rx(pages.load_rx(), ring_len), tx):
        return _wait(core, ring, caller, total, _FULL)
    header = MESSAGE_HEADER.pack(total + MESSAGE_HEADER_SIZE, source[0], caller.domid, 0, a5)
    at = pages.copy_in(tx, header, ring_len)
    buffers = _buffers(caller, a3, a4, ctx) if vector else iter([(a3, a4)])
    if at < 0 or not _copy(caller, buffers, total, pages, at, ring_len, ctx):
        return _PAYLOAD
    ring.tx = advance(tx, slots, ring_len)
    pages.store_tx(ring.tx)
    core.signal_domain(dst_domid)
    return total


def _wait(core: V4v, ring: V4vRing, caller: Domain, size: int, answer: int) -> int:
    """No room now: the caller waits for `size` bytes of it."""
    known = caller.domid in ring.pending
    if not known and core.allocate is not None and not core.allocate(Allocation.WAITER):
        return _WAITER_MEMORY
    ring.wait(caller.domid, size)
    return answer


def _sizes(caller: Domain, iovs: int, count: int, ctx: int) -> int:
    """The sum of `count` iovs, or a refusal."""
    if count > _MOST_IOVS:
        return _TOO_MANY_IOVS
    unpack = caller.memory.unpack
    total = 0
    for at in range(iovs, iovs + count * IOV.size, IOV.size):
        iov = unpack(IOV, ctx, at)
        if iov is FAULT:
            return _IOV
        if iov[1] > MAX_RING_LEN:
            return _IOV_LEN
        total += iov[1]
        if total > MAX_RING_LEN:
            return _SUM
    return total


def _buffers(caller: Domain, iovs: int, count: int, ctx: int) -> Iterator[tuple[int, int]]:
    """The iovs once more, as (address, size)."""
    for at in range(iovs, iovs + count * IOV.size, IOV.size):
        iov = caller.memory.unpack(IOV, ctx, at)
        yield (at, MAX_RING_LEN + 1) if iov is FAULT else iov  # one that no message has room for


def _copy(
    caller: Domain,
    buffers: Iterator[tuple[int, int]],
    left: int,
    pages: V4vPages,
    at: int,
    ring_len: int,
    ctx: int,
) -> bool:
    """Copy the buffers, of `left` bytes together, to `at` and on.

    False: a fault, or a buffer that has grown since its size was taken; what precedes it is copied, beyond tx, and
    not published.
    """
    memory = caller.memory
    for va, size in buffers:
        if not size:
            continue
        if size > left:
            return False
        left -= size
        data = memory.read(ctx, va, size)
        if data is FAULT:
            reach = memory.readable(ctx, va, size)
            head = memory.read(ctx, va, reach) if reach else FAULT
            if head is not FAULT:
                pages.copy_in(at, head, ring_len)
            return False
        at = pages.copy_in(at, data, ring_len)
        if at < 0:
            return False
    return True
