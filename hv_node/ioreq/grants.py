"""Grant tables of the domains of one hypervisor: what each granted, what others mapped, and copies on their behalf.

Source: Xen common/grant_table.c, public/grant_table.h.  Version 1 entries, status words as hmx/grants.py says.  Each
element of a list has a status of its own; the call's result is 0, or -EFAULT where the list itself is not there.
A mapping's dev_bus_addr, the machine address of the page, is here its place in the granter's RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hmx import grants
from hmx.errno import Errno
from hmx.grants import CopyFlag, GrantFlag, GrantOp, GrantStatus, MapFlag
from hmx.ioreq import GRANT_STATUS_INDEX
from hmx.memory import FAULT, PAGE_SIZE
from hmx.shm import fence
from hmx.xen import DOMID_SELF
from hv_node.doors.handlers import Call
from hv_node.ioreq.mapping import Mapped, is_extended, reachable

if TYPE_CHECKING:
    from hv_node.hvm import Hvm
    from hv_node.ioreq.hub import Ioreqs

_IN_USE: Final = int(GrantFlag.READING | GrantFlag.WRITING)
_NO_FRAME: Final = (1 << 64) - 1
Fields = tuple[int, ...]


@dataclass(slots=True)
class Table:
    """One domain's: where its frames lie in its own memory, and who uses an entry how often, to read and to write."""

    frames: dict[int, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    readers: dict[int, int] = field(default_factory=dict)
    writers: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handle:
    """A mapping: at which frame of the mapper's, of whose entry."""

    frame: int
    page: Mapped


class Grants:
    """All of them."""

    def __init__(self, hub: Ioreqs) -> None:
        self._hub = hub
        self._tables: dict[int, Table] = {}
        self._handles: dict[int, dict[int, Handle]] = {}  # by mapper
        self._next: dict[int, int] = {}

    def table(self, hvm: Hvm) -> Table:
        """A domain's table."""
        return self._tables.setdefault(hvm.domain.domid, Table())

    def place(self, hvm: Hvm, index: int, gfn: int) -> int:
        """XENMEM_add_to_physmap of a frame of the caller's own table.  -EINVAL: no such frame or page."""
        is_status = bool(index & GRANT_STATUS_INDEX)
        number = index & ~GRANT_STATUS_INDEX
        most = grants.MAX_STATUS_FRAMES if is_status else grants.MAX_FRAMES
        if number >= most or not reachable(hvm.domain.memory, gfn):
            return -Errno.EINVAL
        table = self.table(hvm)
        (table.statuses if is_status else table.frames)[number] = gfn
        hvm.domain.memory.write(0, gfn * PAGE_SIZE, bytes(PAGE_SIZE))
        return 0

    def any_for(self, granter: Hvm, mapper: Hvm) -> bool:
        """Whether a domain has mapped any granted page of another one."""
        mine = self._handles.get(mapper.domain.domid, {})
        return any(handle.page.domid == granter.domain.domid for handle in mine.values())

    # -- entries ----

    def _entry(self, granter: Hvm, gref: int) -> Fields | None:
        """(flags, domid, frame), None for a reference that is not there."""
        number, at = divmod(gref, grants.ENTRIES_PER_FRAME)
        gfn = self.table(granter).frames.get(number)
        if gfn is None or gref < grants.RESERVED_ENTRIES:
            return None
        return granter.domain.memory.unpack(grants.ENTRY, 0, gfn * PAGE_SIZE + at * grants.ENTRY.size)

    def _permits(self, granter: Hvm, gref: int, domid: int, write: bool) -> Fields | GrantStatus:
        entry = self._entry(granter, gref)
        if entry is None:
            return GrantStatus.BAD_GNTREF
        flags, whom, frame = entry
        if flags & GrantFlag.TYPE_MASK != GrantFlag.PERMIT_ACCESS or whom != domid:
            return GrantStatus.GENERAL_ERROR
        if write and flags & GrantFlag.READONLY:
            return GrantStatus.GENERAL_ERROR
        return entry if reachable(granter.domain.memory, frame, write) else GrantStatus.BAD_PAGE

    def _acquire(self, granter: Hvm, gref: int, domid: int, write: bool) -> int | GrantStatus:
        """The frame that is granted, in use from now on.  The status first, then the flags again: a guest that revokes
        does it the other way round, so one of both sees the other.
        """
        found = self._permits(granter, gref, domid, write)
        if isinstance(found, GrantStatus):
            return found
        self._use(granter, gref, write, 1)
        found = self._permits(granter, gref, domid, write)
        if isinstance(found, GrantStatus):
            self._use(granter, gref, write, -1)
            return found
        return found[2]

    def _use(self, granter: Hvm, gref: int, write: bool, change: int) -> None:
        table = self.table(granter)
        users = table.writers if write else table.readers
        count = users.get(gref, 0) + change
        if count:
            users[gref] = count
        else:
            users.pop(gref, None)
        status = GrantFlag.READING * (gref in table.readers) | _IN_USE * (gref in table.writers)
        number, at = divmod(gref, grants.STATUSES_PER_FRAME)
        gfn = table.statuses.get(number)
        if gfn is not None:
            fence()
            at = gfn * PAGE_SIZE + at * grants.STATUS.size
            granter.domain.memory.write(0, at, grants.STATUS.pack(status))
            fence()

    # -- the hypercall ----

    def op(self, _hub: Ioreqs, call: Call, cmd: int, address: int, count: int) -> int:
        """grant_table_op.  -ENOSYS: not served; -EINVAL: more elements than one call may have."""
        row = _SERVED.get(cmd)
        if row is None:
            return -Errno.ENOSYS
        count &= 0xFFFF_FFFF
        if count > grants.MAX_OPS:
            return -Errno.EINVAL
        hvm, layout = call.vcpu.hvm, grants.LAYOUT_OF[GrantOp(cmd)]
        memory = hvm.domain.memory
        for at in range(address, address + count * layout.size, layout.size):
            fields = memory.unpack(layout, call.ctx, at)
            if fields is FAULT:
                return -Errno.EFAULT
            result = row(self, hvm, fields, call.ctx)
            if isinstance(result, int):
                return result
            if not memory.write(call.ctx, at, layout.pack(*result)):
                return -Errno.EFAULT
        return 0

    def _granter(self, domid: int) -> Hvm | None:
        return self._hub.hvm(domid)

    def _map(self, hvm: Hvm, fields: Fields, _ctx: int) -> Fields:
        host, flags, gref, domid, _status, _handle, _bus = fields

        def answer(status: int, handle: int = 0, machine: int = 0) -> Fields:
            return host, flags, gref, domid, status, handle, machine

        granter = self._granter(domid)
        if granter is None:
            return answer(GrantStatus.BAD_DOMAIN)
        frame, offset = divmod(host, PAGE_SIZE)
        physmap = self._hub.physmap(hvm)
        if not flags & MapFlag.HOST_MAP:
            return answer(GrantStatus.GENERAL_ERROR)
        if offset or not is_extended(frame) or frame in physmap.pages:
            return answer(GrantStatus.BAD_VIRT_ADDR)
        write = not flags & MapFlag.READONLY
        gfn = self._acquire(granter, gref, hvm.domain.domid, write)
        if isinstance(gfn, GrantStatus):
            return answer(gfn)
        page = Mapped(domid, gfn, write, gref)
        physmap.put(frame, page)
        me = hvm.domain.domid
        handle = self._next.get(me, 0)
        self._next[me] = handle + 1 & 0xFFFF_FFFF
        self._handles.setdefault(me, {})[handle] = Handle(frame, page)
        return answer(GrantStatus.OKAY, handle, gfn * PAGE_SIZE)

    def _unmap(self, hvm: Hvm, fields: Fields, _ctx: int) -> Fields:
        host, bus, handle, _status = fields
        mine = self._handles.get(hvm.domain.domid, {})
        found = mine.get(handle)
        if found is None:
            return host, bus, handle, GrantStatus.BAD_HANDLE
        if host != found.frame * PAGE_SIZE:
            return host, bus, handle, GrantStatus.BAD_VIRT_ADDR
        del mine[handle]
        self._hub.physmap(hvm).take(found.frame)
        self._end(found.page)
        return host, bus, handle, GrantStatus.OKAY

    def _end(self, page: Mapped) -> None:
        granter = self._granter(page.domid)
        if granter is not None and page.gref is not None:
            self._use(granter, page.gref, page.writable, -1)

    def _setup(self, hvm: Hvm, fields: Fields, ctx: int) -> Fields | int:
        """Where the frames lie that were placed; the others are unknown to a translated guest, too."""
        domid, pad, count, _status, frame_list = fields
        if domid not in (DOMID_SELF, hvm.domain.domid):
            return domid, pad, count, GrantStatus.PERMISSION_DENIED, frame_list
        if count > grants.MAX_FRAMES:
            return domid, pad, count, GrantStatus.GENERAL_ERROR, frame_list
        table = self.table(hvm)
        for at in range(count):
            frame = grants.FRAME.pack(table.frames.get(at, _NO_FRAME))
            if not hvm.domain.memory.write(ctx, frame_list + at * grants.FRAME.size, frame):
                return -Errno.EFAULT
        return domid, pad, count, GrantStatus.OKAY, frame_list

    def _copy(self, hvm: Hvm, fields: Fields, _ctx: int) -> Fields:
        (*_ends, size, flags, _status) = fields
        status = self._copied(hvm, fields[0:3], fields[3:6], size, flags)
        return (*fields[:-1], status)

    def _copied(self, hvm: Hvm, source: Fields, dest: Fields, size: int, flags: int) -> GrantStatus:
        if source[2] + size > PAGE_SIZE or dest[2] + size > PAGE_SIZE:
            return GrantStatus.BAD_COPY_ARG
        ends: list[tuple[Hvm, int]] = []
        used: list[tuple[Hvm, int, bool]] = []
        status = GrantStatus.OKAY
        for (where, domid, _offset), is_gref, write in (
            (source, flags & CopyFlag.SOURCE_GREF, False), (dest, flags & CopyFlag.DEST_GREF, True),
        ):  # fmt: skip
            found = self._end_of_copy(hvm, where, domid, bool(is_gref), write)
            if isinstance(found, GrantStatus):
                status = found
                break
            owner, frame = found
            if is_gref:
                used.append((owner, where & 0xFFFF_FFFF, write))
            ends.append((owner, frame))
        if status is GrantStatus.OKAY:
            (giver, from_frame), (taker, to_frame) = ends
            data = giver.domain.memory.read(0, from_frame * PAGE_SIZE + source[2], size)
            if data is FAULT or not taker.domain.memory.write(0, to_frame * PAGE_SIZE + dest[2], bytes(data)):
                status = GrantStatus.BAD_PAGE
            else:
                hvm.counters.bytes_copied += size
        for owner, gref, write in used:
            self._use(owner, gref, write, -1)
        return status

    def _end_of_copy(
        self, hvm: Hvm, where: int, domid: int, is_gref: bool, write: bool
    ) -> tuple[Hvm, int] | GrantStatus:
        """Whose frame one end of a copy is.  One that is no grant is the caller's own."""
        if is_gref:
            owner = hvm if domid == DOMID_SELF else self._granter(domid)
            if owner is None:
                return GrantStatus.BAD_DOMAIN
            frame = self._acquire(owner, where & 0xFFFF_FFFF, hvm.domain.domid, write)
            return frame if isinstance(frame, GrantStatus) else (owner, frame)
        if domid not in (DOMID_SELF, hvm.domain.domid):
            return GrantStatus.PERMISSION_DENIED
        return (hvm, where) if reachable(hvm.domain.memory, where, write) else GrantStatus.BAD_PAGE

    def _query_size(self, hvm: Hvm, fields: Fields, _ctx: int) -> Fields:
        own = fields[0] in (DOMID_SELF, hvm.domain.domid)
        status = GrantStatus.OKAY if own else GrantStatus.PERMISSION_DENIED
        return fields[0], len(self.table(hvm).frames), grants.MAX_FRAMES, status

    def _set_version(self, _hvm: Hvm, fields: Fields, _ctx: int) -> Fields | int:
        return (1,) if fields[0] == 1 else -Errno.EINVAL

    def _get_version(self, hvm: Hvm, fields: Fields, _ctx: int) -> Fields | int:
        return (fields[0], 0, 1) if fields[0] in (DOMID_SELF, hvm.domain.domid) else -Errno.EPERM

    # -- death ----

    def died(self, hvm: Hvm) -> None:
        """A domain's mappings end, and its table is gone: who maps its pages keeps them until it unmaps them."""
        domid = hvm.domain.domid
        for handle in self._handles.pop(domid, {}).values():
            self._end(handle.page)
        self._tables.pop(domid, None)
        self._next.pop(domid, None)


_SERVED: Final[dict[int, Callable[[Grants, Hvm, Fields, int], Fields | int]]] = {
    GrantOp.MAP_GRANT_REF: Grants._map,
    GrantOp.UNMAP_GRANT_REF: Grants._unmap,
    GrantOp.SETUP_TABLE: Grants._setup,
    GrantOp.COPY: Grants._copy,
    GrantOp.QUERY_SIZE: Grants._query_size,
    GrantOp.SET_VERSION: Grants._set_version,
    GrantOp.GET_VERSION: Grants._get_version,
}
