"""notify: wake those who wait for room in my rings, then ask about others' rings (Xen common/argo.c).

Job A runs before any argument is looked at. Job B stops at the first entry that fails; what it wrote back
before stays written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmx.argo.abi import (
    DOMID_ANY,
    ENT_FLAGS,
    ENT_MAX_MESSAGE_SIZE,
    MAX_NOTIFY_ENTRIES,
    RING_DATA,
    RING_DATA_ENT,
    VIRQ_ARGO,
    NotifyFlag,
)
from hmx.argo.ring import max_message_size
from hmx.memory import FAULT
from hv_node.argo.model import DomainArgo, wait_for_space
from hv_node.argo.order import refusal
from hv_node.domain import Domain

if TYPE_CHECKING:
    from hv_node.argo.core import Argo

_OP = "notify"
_ARGUMENT = refusal(_OP, "superfluous argument")
_NO_ARGO = refusal(_OP, "caller without Argo")
_HEADER = refusal(_OP, "header")
_MANY = refusal(_OP, "more than 256 entries")
_ENTRY = refusal(_OP, "entry")
_WAITER_MEMORY = refusal(_OP, "memory for waiter")
_WRITE_BACK = refusal(_OP, "write-back")

_EXISTS = int(NotifyFlag.EXISTS)
_SHARED = int(NotifyFlag.SHARED)
_EMPTY = int(NotifyFlag.EMPTY)
_SUFFICIENT = int(NotifyFlag.SUFFICIENT)
_EMSGSIZE = int(NotifyFlag.EMSGSIZE)
_EBUSY = int(NotifyFlag.EBUSY)


def notify(core: Argo, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int) -> int:
    """arg1: ring data, or 0 for job A alone.  0 or a refusal."""
    if a2 or a3 or a4:
        return _ARGUMENT
    argo = caller.argo
    if argo is None:
        return _NO_ARGO
    if argo.waiters or core.on_notify_window is not None:
        _wake_senders(core, argo)
    if not a1:
        return 0
    header = caller.memory.unpack(RING_DATA, ctx, a1)
    if header is FAULT:
        return _HEADER
    count = header[0]
    if count > MAX_NOTIFY_ENTRIES:
        return _MANY
    entry = a1 + RING_DATA.size
    for _ in range(count):
        ret = _answer(core, caller, entry, ctx)
        if ret:
            return ret
        entry += RING_DATA_ENT.size
    return 0


def _wake_senders(core: Argo, argo: DomainArgo) -> None:
    """Job A: signal every waiter whose size fits its ring now; each is forgotten as it is signalled."""
    woken: list[int] = []
    for ring in argo.in_order:
        if not ring.pending and core.on_notify_window is None:
            continue
        space = ring.space()
        if not space:
            continue
        if core.on_notify_window is not None:
            core.on_notify_window(ring)
        fitting = [domid for domid, size in ring.pending.items() if size <= space]
        for domid in fitting:
            argo.forget(ring, domid, core.lookup)
        # The oldest waiter of a ring first; rings visited later are signalled earlier.
        woken[:0] = fitting
    for domid in woken:
        core.sink.raise_virq(domid, VIRQ_ARGO)


def _answer(core: Argo, caller: Domain, entry: int, ctx: int) -> int:
    """Job B for one entry: judge the ring, arm or disarm the caller's wake-up there, write back."""
    memory = caller.memory
    fields = memory.unpack(RING_DATA_ENT, ctx, entry)
    if fields is FAULT:
        return _ENTRY
    port, domid, _, _, _, wanted, largest = fields
    flags = 0
    target = core.lookup(domid)
    if target is not None and target.argo is not None:
        if not core.permissive:
            denied = core.xsm.send(caller, target)
            if denied:
                core.sink.event("argo-send-denied", caller.domid, domid)
                return denied
        rings = target.argo.rings
        ring = rings.get((port, caller.domid)) or rings.get((port, DOMID_ANY))
        if ring is not None:
            flags = _EXISTS | _SHARED if ring.wildcard else _EXISTS
            largest = max_message_size(ring.len)
            space = ring.space()
            if wanted > largest:
                flags |= _EMSGSIZE
            elif space >= wanted:
                target.argo.forget(ring, caller.domid, core.lookup)
                flags |= _SUFFICIENT
            else:
                queued = wait_for_space(ring, caller, wanted, core.allocate)
                if queued is False:
                    flags |= _EBUSY
                elif queued is not True:
                    return _WAITER_MEMORY
            if space == largest:
                flags |= _EMPTY
    if not memory.write(ctx, entry + ENT_FLAGS, flags.to_bytes(2, "little")):
        return _WRITE_BACK
    if not memory.write(ctx, entry + ENT_MAX_MESSAGE_SIZE, largest.to_bytes(4, "little")):
        return _WRITE_BACK
    return 0
