"""Pages of other domains in a domain's address space, and the memory operations that put them there.

Source: Xen common/memory.c, arch/x86/mm.c (XENMEM_add_to_physmap_batch, _remove_from_physmap, _acquire_resource).
The hypervisor checks the right and counts each page.  What makes a page reachable is the guest's silicon, which is told
of it by the success of the call (guest_node/virtio/foreign.py): the hypervisor itself never follows such a mapping, so
an argument of a hypercall may not lie there.

Here a page is placed above `EXTENDED_BASE` only: a page of RAM is not replaced by a foreign one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hmx import ioreq
from hmx.errno import Errno
from hmx.ioreq import MapSpace, Memop
from hmx.memory import FAULT, PAGE_SIZE, Access, GuestMemory
from hmx.xen import ADD_TO_PHYSMAP, DOMID_SELF
from hv_node.doors.handlers import Call

if TYPE_CHECKING:
    from hv_node.hvm import Hvm
    from hv_node.ioreq.hub import Ioreqs

FIRST_EXTENDED: Final = ioreq.EXTENDED_BASE // PAGE_SIZE
LAST_EXTENDED: Final = (1 << 52) // PAGE_SIZE - 1
MAX_BATCH: Final = 512  # pages of one call that are looked at; Xen would preempt itself and go on


@dataclass(frozen=True, slots=True)
class Mapped:
    """A page that is there: whose, which, and for a granted one its reference."""

    domid: int
    gfn: int
    writable: bool
    gref: int | None = None


class PhysMap:
    """What a domain has mapped of others, by its own page frame."""

    __slots__ = ("_counters", "pages")

    def __init__(self, hvm: Hvm) -> None:
        self.pages: dict[int, Mapped] = {}
        self._counters = hvm.counters

    def put(self, frame: int, page: Mapped) -> None:
        """Map a page.  The owner has looked whether the frame may be used."""
        self.pages[frame] = page
        self._counters.pages_mapped += 1

    def take(self, frame: int) -> Mapped | None:
        """Unmap what is at a frame."""
        page = self.pages.pop(frame, None)
        if page is not None:
            self._counters.pages_unmapped += 1
        return page


def is_extended(frame: int) -> bool:
    """Whether a foreign page may be placed at a frame."""
    return FIRST_EXTENDED <= frame <= LAST_EXTENDED


def reachable(memory: GuestMemory, gfn: int, write: bool = True) -> bool:
    """Whether a domain has an ordinary page there."""
    if not 0 <= gfn < memory.size // PAGE_SIZE:
        return False
    at = gfn * PAGE_SIZE
    return memory.translate(0, at, Access.WRITE if write else Access.READ) is not FAULT


def memory_op(hub: Ioreqs, call: Call, cmd: int, arg: int, _a2: int) -> int | None:
    """The operations of a device model and of grant tables; None for those that are others' affair."""
    match cmd:
        case Memop.ADD_TO_PHYSMAP:
            return _place_grant_frame(hub, call, arg)
        case Memop.REMOVE_FROM_PHYSMAP:
            return _remove(hub, call, arg)
        case Memop.ADD_TO_PHYSMAP_BATCH:
            return _batch(hub, call, arg)
        case Memop.ACQUIRE_RESOURCE:
            return _acquire(hub, call, arg)
    return None


def _place_grant_frame(hub: Ioreqs, call: Call, arg: int) -> int | None:
    """A frame of the caller's grant table, or of its status words, at a page of its own."""
    hvm = call.vcpu.hvm
    fields = hvm.domain.memory.unpack(ADD_TO_PHYSMAP, call.ctx, arg)
    if fields is FAULT or fields[2] != MapSpace.GRANT_TABLE:
        return None
    domid, _size, _space, index, gfn = fields
    if domid not in (DOMID_SELF, hvm.domain.domid):
        return -Errno.EPERM
    return hub.grants.place(hvm, index, gfn)


def _remove(hub: Ioreqs, call: Call, arg: int) -> int:
    hvm = call.vcpu.hvm
    fields = hvm.domain.memory.unpack(ioreq.REMOVE_FROM_PHYSMAP, call.ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, frame = fields
    if domid not in (DOMID_SELF, hvm.domain.domid):
        return -Errno.EPERM
    page = hub.physmap(hvm).pages.get(frame)
    if page is None or page.gref is not None:  # a granted page goes by its own operation
        return -Errno.ENOENT
    hub.physmap(hvm).take(frame)
    return 0


def _batch(hub: Ioreqs, call: Call, arg: int) -> int:
    """Pages of another domain, at frames of the caller's; each has an error of its own."""
    hvm, ctx = call.vcpu.hvm, call.ctx
    memory = hvm.domain.memory
    fields = memory.unpack(ioreq.ADD_TO_PHYSMAP_BATCH, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, space, size, foreign, indexes, frames, errors = fields
    if domid not in (DOMID_SELF, hvm.domain.domid):
        return -Errno.EPERM
    if space != MapSpace.GMFN_FOREIGN or size > MAX_BATCH:
        return -Errno.EINVAL
    target = hub.target(hvm, foreign)
    if isinstance(target, int):
        return target
    if target.guard is not None:
        return -Errno.EPERM  # it would go around its IOMMU
    physmap, theirs = hub.physmap(hvm), target.hvm.domain.memory
    for at in range(size):
        index = memory.unpack(ioreq.BATCH_INDEX, ctx, indexes + 8 * at)
        frame = memory.unpack(ioreq.BATCH_INDEX, ctx, frames + 8 * at)
        if index is FAULT or frame is FAULT:
            return -Errno.EFAULT
        ret = 0
        if not is_extended(frame[0]) or not reachable(theirs, index[0]):
            ret = -Errno.EINVAL
        elif frame[0] in physmap.pages:
            ret = -Errno.EBUSY  # Xen would replace it; here a frame is emptied first, so that every page is counted
        else:
            physmap.put(frame[0], Mapped(foreign, index[0], True))
        if not memory.write(ctx, errors + 4 * at, ioreq.BATCH_ERROR.pack(ret)):
            return -Errno.EFAULT
    return 0


def _acquire(hub: Ioreqs, call: Call, arg: int) -> int:
    """The pages of an IOREQ server, placed at the frames that the caller names."""
    hvm, ctx = call.vcpu.hvm, call.ctx
    memory = hvm.domain.memory
    fields = memory.unpack(ioreq.ACQUIRE_RESOURCE, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, kind, ident, count, flags, first, frame_list = fields
    if flags:
        return -Errno.EINVAL
    target = hub.target(hvm, domid)
    if isinstance(target, int):
        return target
    if kind != ioreq.RESOURCE_IOREQ_SERVER:
        return -Errno.EOPNOTSUPP
    server = target.servers.of(hvm, ident)
    if isinstance(server, int):
        return server
    if not count or first + count > ioreq.FRAME_IOREQ + 1:
        return -Errno.EINVAL
    for at in range(count):
        gfn = memory.unpack(ioreq.BATCH_INDEX, ctx, frame_list + 8 * at)
        if gfn is FAULT:
            return -Errno.EFAULT
        if first + at == ioreq.FRAME_BUFIOREQ:
            ret = 0 if server.buffering else -Errno.ENOENT
        else:
            ret = target.servers.place(server, gfn[0])
        if ret:
            return ret
    return 0
