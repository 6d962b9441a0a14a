"""The dm_op hypercall: decoded in Xen's order, then handed to the target's servers, lines or memory.

Source: Xen common/dm.c, arch/x86/hvm/dm.c, arch/arm/dm.c.  Operations that Xen has and that have nothing to act on here
(dirty VRAM, PCI links, memory types, events of vCPUs) answer -EOPNOTSUPP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hmx import ioreq
from hmx.errno import Errno
from hmx.ioreq import Dmop
from hmx.memory import FAULT
from hmx.trap import Arch
from hv_node.doors.handlers import Call

if TYPE_CHECKING:
    from hv_node.hvm import Hvm
    from hv_node.ioreq.hub import Ioreqs, Target

_ROW_OF: Final = {int(row.op): row for row in ioreq.DMOPS}
Buffer = tuple[int, int]  # address, size


class DmopCall:
    """One call: who calls, about whom, with which buffers."""

    __slots__ = ("buffers", "caller", "ctx", "hub", "target")

    def __init__(self, hub: Ioreqs, call: Call, target: Target, buffers: tuple[Buffer, ...]) -> None:
        self.hub = hub
        self.caller: Hvm = call.vcpu.hvm
        self.ctx = call.ctx
        self.target = target
        self.buffers = buffers

    def write_back(self, op: Dmop, *fields: int) -> int:
        """Store the operation's structure with its results.  0 or -EFAULT."""
        data = ioreq.LAYOUT_OF[op].pack(*fields)
        at = self.buffers[0][0] + ioreq.DMOP_HEAD.size
        return 0 if self.caller.domain.memory.write(self.ctx, at, data) else -Errno.EFAULT


def dm_op(hub: Ioreqs, call: Call, domid: int, count: int, address: int) -> int:
    """Xen's order of refusals: buffers, domain, right, operation, structure."""
    caller = call.vcpu.hvm
    memory = caller.domain.memory
    if count > ioreq.DMOP_MAX_BUFS:
        return -Errno.E2BIG
    buffers: list[Buffer] = []
    for at in range(count):
        fields = memory.unpack(ioreq.DMOP_BUF, call.ctx, address + at * ioreq.DMOP_BUF.size)
        if fields is FAULT:
            return -Errno.EFAULT
        buffers.append((fields[0], fields[1]))
    target = hub.target(caller, domid & 0xFFFF)
    if isinstance(target, int):
        return target
    if not buffers or buffers[0][1] < ioreq.DMOP_HEAD.size:
        return -Errno.EFAULT
    start, size = buffers[0]
    head = memory.unpack(ioreq.DMOP_HEAD, call.ctx, start)
    if head is FAULT:
        return -Errno.EFAULT
    row = _ROW_OF.get(head[0])
    arm = hub.arch is Arch.AARCH64
    if row is None or not row.layout or not (row.arm if arm else row.x86):
        return -Errno.EOPNOTSUPP
    layout = ioreq.LAYOUT_OF[row.op]
    if size < ioreq.DMOP_HEAD.size + layout.size:
        return -Errno.EFAULT
    arguments = memory.unpack(layout, call.ctx, start + ioreq.DMOP_HEAD.size)
    if arguments is FAULT:
        return -Errno.EFAULT
    if head[1]:
        return -Errno.EINVAL
    return _OPS[row.op](DmopCall(hub, call, target, tuple(buffers)), *arguments)


def _create(this: DmopCall, buffering: int, pad: int, more: int, _ident: int) -> int:
    if pad or more:
        return -Errno.EINVAL
    ident = this.target.servers.create(this.caller, buffering)
    return ident if ident < 0 else this.write_back(Dmop.CREATE_IOREQ_SERVER, buffering, 0, 0, ident)


def _info(this: DmopCall, ident: int, flags: int, *_out: int) -> int:
    """The event channel of buffered requests.  Reserved frames, which were the old way to the pages, do not exist."""
    if flags & ~ioreq.NO_GFNS:
        return -Errno.EINVAL
    server = this.target.servers.of(this.caller, ident)
    if isinstance(server, int):
        return server
    if not flags & ioreq.NO_GFNS:
        return -Errno.ENOMEM
    port = 0 if server.buffered is None else server.buffered.port
    return this.write_back(Dmop.GET_IOREQ_SERVER_INFO, ident, flags, port, 0, 0)


def _map(this: DmopCall, ident: int, pad: int, kind: int, first: int, last: int) -> int:
    servers = this.target.servers
    server = -Errno.EINVAL if pad else servers.of(this.caller, ident)
    return server if isinstance(server, int) else servers.map_range(server, kind, first, last)


def _unmap(this: DmopCall, ident: int, pad: int, kind: int, first: int, last: int) -> int:
    servers = this.target.servers
    server = -Errno.EINVAL if pad else servers.of(this.caller, ident)
    return server if isinstance(server, int) else servers.unmap_range(server, kind, first, last)


def _set_state(this: DmopCall, ident: int, enabled: int, pad: int) -> int:
    server = -Errno.EINVAL if pad else this.target.servers.of(this.caller, ident)
    if isinstance(server, int):
        return server
    this.target.servers.set_state(server, bool(enabled))
    return 0


def _destroy(this: DmopCall, ident: int, pad: int) -> int:
    server = -Errno.EINVAL if pad else this.target.servers.of(this.caller, ident)
    if isinstance(server, int):
        return server
    this.target.servers.destroy(server)
    return 0


def _isa(this: DmopCall, irq: int, level: int) -> int:
    return this.target.lines.set_isa_irq_level(irq, level)


def _irq(this: DmopCall, irq: int, level: int, pad: int, more: int) -> int:
    return -Errno.EINVAL if pad or more else this.target.lines.set_irq_level(irq, level)


def _msi(this: DmopCall, data: int, pad: int, address: int) -> int:
    return -Errno.EINVAL if pad else this.target.lines.inject_msi(address, data)


def _nr_vcpus(this: DmopCall, _out: int) -> int:
    return this.write_back(Dmop.NR_VCPUS, len(this.target.hvm.vcpus))


def _dma(this: DmopCall, address: int, size: int, flags: int, endpoint: int) -> int:
    if len(this.buffers) < ioreq.DMOP_MAX_BUFS:
        return -Errno.EINVAL
    return this.hub.dma(this.caller, this.target, this.ctx, this.buffers[1], address, size, flags, endpoint)


_OPS: Final[dict[Dmop, Callable[..., int]]] = {
    Dmop.CREATE_IOREQ_SERVER: _create,
    Dmop.GET_IOREQ_SERVER_INFO: _info,
    Dmop.MAP_IO_RANGE: _map,
    Dmop.UNMAP_IO_RANGE: _unmap,
    Dmop.SET_IOREQ_SERVER_STATE: _set_state,
    Dmop.DESTROY_IOREQ_SERVER: _destroy,
    Dmop.SET_ISA_IRQ_LEVEL: _isa,
    Dmop.INJECT_MSI: _msi,
    Dmop.SET_IRQ_LEVEL: _irq,
    Dmop.NR_VCPUS: _nr_vcpus,
    Dmop.DMA: _dma,
}
