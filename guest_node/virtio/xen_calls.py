"""Xen's hypercalls for device models and for guests that grant pages, made on the spot.

All of them complete locally, so none is awaited.  Arguments lie in scratch pages of the caller's.  Sources: Xen
public/hvm/dm_op.h, public/memory.h, public/grant_table.h, public/event_channel.h.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from guest_node.kernel.argo import hypercall_trap
from hmx import grants, ioreq, xen
from hmx.argo.calls import Buffer
from hmx.errno import describe
from hmx.grants import GrantOp
from hmx.ioreq import Dmop, MapSpace, Memop
from hmx.memory import PAGE_SIZE
from hmx.trap import Outcome, int32
from hmx.xen import EvtchnOp, Hypercall

if TYPE_CHECKING:
    from guest_node.kernel.boot import Kernel
    from guest_node.vcpu import Vcpu

_PAGES: Final = 8
_LISTS: Final = PAGE_SIZE  # where lists start in the scratch pages
MAP_BATCH: Final = 256
GRANT_BATCH: Final = 128


class XenRefused(OSError):
    """A hypercall failed; `errno` says how."""

    def __init__(self, what: str, ret: int) -> None:
        super().__init__(-ret, f"{what}: {describe(ret)}")


class XenCalls:
    """The calls of one guest, by `vcpu` (the first unless said).  OSError ENOSYS where there is no Xen."""

    def __init__(self, kernel: Kernel, vcpu: int = 0) -> None:
        call = kernel.probe.own_call()
        if call is None:
            raise OSError(errno.ENOSYS, "device models need Xen's hypercalls, and no Xen was found")
        self.kernel = kernel
        self.vcpu: Vcpu = kernel.vcpus[vcpu]
        self.memory = kernel.memory
        self.hypercalls = 0
        self._call = call
        self._at = kernel.memory.pages.allocate(_PAGES) * PAGE_SIZE

    def close(self) -> None:
        """Give the scratch pages back."""
        self.memory.pages.release(self._at // PAGE_SIZE, _PAGES)

    def hypercall(self, number: int, *arguments: int) -> int:
        """The int32 result."""
        self.hypercalls += 1
        done = self.vcpu.trap_now(hypercall_trap(self._call, number, *arguments))
        return int32(done.regs[self._call.result]) if done.outcome == Outcome.DONE else -errno.ENOSYS

    def _put(self, offset: int, data: Buffer) -> int:
        at = self._at + offset
        self.memory.buffer[at : at + len(data)] = data
        return at

    def _get(self, offset: int, size: int) -> bytes:
        return bytes(self.memory.buffer[self._at + offset : self._at + offset + size])

    # -- dm_op ----

    def dm_op(self, target: int, op: Dmop, *fields: int, second: tuple[int, int] | None = None) -> tuple[int, ...]:
        """One operation; its structure as it came back.  Raises XenRefused.  `second`: (address, size) of a buffer."""
        layout = ioreq.LAYOUT_OF[op]
        data = ioreq.DMOP_HEAD.pack(op, 0) + layout.pack(*fields)
        buffers = [(self._put(0, data), len(data)), *([second] if second is not None else [])]
        listed = self._put(_LISTS, b"".join([ioreq.DMOP_BUF.pack(*each) for each in buffers]))
        ret = self.hypercall(Hypercall.DM_OP, target, len(buffers), listed)
        if ret < 0:
            raise XenRefused(f"dm_op {op.name.lower()} on domain {target}", ret)
        return layout.unpack(self._get(ioreq.DMOP_HEAD.size, layout.size))

    # -- event channels ----

    def bind_interdomain(self, domid: int, port: int) -> int:
        """The local port.  Raises XenRefused."""
        at = self._put(0, xen.BIND_INTERDOMAIN.pack(domid, 0, port, 0))
        ret = self.hypercall(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.BIND_INTERDOMAIN, at)
        if ret < 0:
            raise XenRefused(f"bind_interdomain to port {port} of domain {domid}", ret)
        local: int = xen.BIND_INTERDOMAIN.unpack(self._get(0, xen.BIND_INTERDOMAIN.size))[3]
        return local

    def send(self, port: int) -> int:
        """EVTCHNOP_send; 0 or a negated errno."""
        return self.hypercall(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.SEND, self._put(0, xen.SEND.pack(port)))

    def close_port(self, port: int) -> int:
        """EVTCHNOP_close; 0 or a negated errno."""
        return self.hypercall(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.CLOSE, self._put(0, xen.CLOSE.pack(port)))

    # -- memory ----

    def acquire(self, target: int, server: int, frame: int, gfn: int) -> None:
        """Place a page of an IOREQ server at frame `gfn` of ours.  Raises XenRefused."""
        listed = self._put(_LISTS, ioreq.BATCH_INDEX.pack(gfn))
        data = ioreq.ACQUIRE_RESOURCE.pack(target, ioreq.RESOURCE_IOREQ_SERVER, server, 1, 0, frame, listed)
        ret = self.hypercall(Hypercall.MEMORY_OP, Memop.ACQUIRE_RESOURCE, self._put(0, data))
        if ret < 0:
            raise XenRefused("acquire_resource", ret)

    def map_foreign(self, target: int, pages: Sequence[tuple[int, int]]) -> list[int]:
        """Map (frame of ours, page frame of theirs) pairs, at most MAP_BATCH; an error for each, 0 for none.  Raises
        XenRefused where none could be tried.
        """
        count, errors = len(pages), _LISTS + 16 * len(pages)
        indexes = self._put(_LISTS, b"".join([ioreq.BATCH_INDEX.pack(theirs) for _, theirs in pages]))
        self._put(_LISTS + 8 * count, b"".join([ioreq.BATCH_INDEX.pack(ours) for ours, _ in pages]))
        data = ioreq.ADD_TO_PHYSMAP_BATCH.pack(
            xen.DOMID_SELF, MapSpace.GMFN_FOREIGN, count, target, indexes, indexes + 8 * count, self._at + errors
        )
        ret = self.hypercall(Hypercall.MEMORY_OP, Memop.ADD_TO_PHYSMAP_BATCH, self._put(0, data))
        if ret < 0:
            raise XenRefused(f"mapping {count} pages of domain {target}", ret)
        size = ioreq.BATCH_ERROR.size
        return [each for (each,) in ioreq.BATCH_ERROR.iter_unpack(self._get(errors, size * count))]

    def unmap(self, frame: int) -> int:
        """Unmap what is at a frame of ours; 0 or a negated errno."""
        data = ioreq.REMOVE_FROM_PHYSMAP.pack(xen.DOMID_SELF, frame)
        return self.hypercall(Hypercall.MEMORY_OP, Memop.REMOVE_FROM_PHYSMAP, self._put(0, data))

    def place_grant_frame(self, index: int, gfn: int) -> None:
        """Have a frame of our grant table at a page of ours.  Raises XenRefused."""
        data = xen.ADD_TO_PHYSMAP.pack(xen.DOMID_SELF, 0, MapSpace.GRANT_TABLE, index, gfn)
        ret = self.hypercall(Hypercall.MEMORY_OP, Memop.ADD_TO_PHYSMAP, self._put(0, data))
        if ret < 0:
            raise XenRefused(f"placing grant frame {index:#x}", ret)

    # -- grants ----

    def grant_op(self, op: GrantOp, elements: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """At most GRANT_BATCH elements of one operation, as they came back.  Raises XenRefused."""
        layout = grants.LAYOUT_OF[op]
        listed = self._put(_LISTS, b"".join([layout.pack(*each) for each in elements]))
        ret = self.hypercall(Hypercall.GRANT_TABLE_OP, op, listed, len(elements))
        if ret < 0:
            raise XenRefused(f"grant_table_op {op.name.lower()}", ret)
        return list(layout.iter_unpack(self._get(_LISTS, layout.size * len(elements))))


def chunks(items: Sequence[tuple[int, ...]], size: int) -> Sequence[Sequence[tuple[int, ...]]]:
    """Runs of at most `size` items."""
    return [items[at : at + size] for at in range(0, len(items), size)]


