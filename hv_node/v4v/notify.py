"""notify: wake those who wait for room in my rings, then ask about others' rings (uXen common/v4v.c).

The wake-up pass runs before any argument is looked at.  The questions end at the first entry that fails; what was
written back before stays written.  How many there may be is ours (hv_node/v4v/limits.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmx.memory import FAULT
from hmx.v4v.abi import (
    ENT_FLAGS,
    ENT_MAX_MESSAGE_SIZE,
    MAGIC,
    RING_DATA,
    RING_DATA_ENT,
    RING_DATA_MAGIC,
    NotifyFlag,
)
from hmx.v4v.ring import max_message_size
from hv_node.argo.model import Allocation
from hv_node.domain import Domain
from hv_node.v4v.channel import validate
from hv_node.v4v.limits import limit
from hv_node.v4v.model import DomainV4v
from hv_node.v4v.order import refusal

if TYPE_CHECKING:
    from hv_node.v4v.core import V4v

_OP = "notify"
_OFF = refusal(_OP, "caller without v4v")
_UNREADABLE = refusal(_OP, "magic unreadable")
_MAGIC = refusal(_OP, "magic")
_HEADER = refusal(_OP, "header")
_ENTRY = refusal(_OP, "entry")
_WRITE_BACK = refusal(_OP, "write-back")

_MOST, _TOO_MANY = limit(_OP)

_EMPTY = int(NotifyFlag.EMPTY)
_EXISTS = int(NotifyFlag.EXISTS)
_PENDING = int(NotifyFlag.PENDING)
_SUFFICIENT = int(NotifyFlag.SUFFICIENT)


def notify(core: V4v, caller: Domain, a1: int, _a2: int, _a3: int, _a4: int, ctx: int) -> int:
    """arg1: ring data, or 0 for the wake-up pass alone.  0 or a refusal."""
    state = core.state(caller)
    if state is None:
        return _OFF
    wake_senders(core, state)
    if not a1:
        return 0
    memory = caller.memory
    magic = memory.unpack(MAGIC, ctx, a1)
    if magic is FAULT:
        return _UNREADABLE
    if magic[0] != RING_DATA_MAGIC:
        return _MAGIC
    header = memory.unpack(RING_DATA, ctx, a1)
    if header is FAULT:
        return _HEADER
    if header[1] > _MOST:
        return _TOO_MANY
    entry = a1 + RING_DATA.size
    for _ in range(header[1]):
        ret = _answer(core, caller, entry, ctx)
        if ret:
            return ret
        entry += RING_DATA_ENT.size
    return 0


def wake_senders(core: V4v, state: DomainV4v) -> None:
    """Signal every waiter whose size fits its ring now; each is forgotten as it is signalled."""
    woken: list[int] = []
    for ring in state.in_order:
        space = ring.space() if ring.pending else 0
        if not space:
            continue
        fitting = [domid for domid, size in ring.pending.items() if size <= space]
        for domid in fitting:
            del ring.pending[domid]
        # The oldest waiter of a ring first; rings visited later are signalled earlier.
        woken[:0] = fitting
    for domid in woken:
        core.signal_domain(domid)


def _answer(core: V4v, caller: Domain, entry: int, ctx: int) -> int:
    """One entry: judge the ring, arm or disarm the caller's wake-up there, write back."""
    memory = caller.memory
    fields = memory.unpack(RING_DATA_ENT, ctx, entry)
    if fields is FAULT:
        return _ENTRY
    port, named, _, wanted, largest = fields
    domid = validate(core, caller, named)
    if domid < 0:
        return domid
    flags = 0
    target = core.states.get(domid)
    ring = None if target is None else target.match(port, caller.domid)
    if ring is not None:
        flags = _EXISTS
        largest = max_message_size(ring.len)
        space = ring.space()
        if space >= wanted:
            ring.pending.pop(caller.domid, None)
            flags |= _SUFFICIENT
        else:
            # Without memory for the waiter uXen says PENDING all the same.
            if core.allocate is None or core.allocate(Allocation.WAITER):
                ring.wait(caller.domid, wanted)
            flags |= _PENDING
        if space == largest:
            flags |= _EMPTY
    if not memory.write(ctx, entry + ENT_FLAGS, flags.to_bytes(2, "little")):
        return _WRITE_BACK
    if not memory.write(ctx, entry + ENT_MAX_MESSAGE_SIZE, largest.to_bytes(4, "little")):
        return _WRITE_BACK
    return 0
