"""Xen hypercalls other than Argo: the few that a guest needs to be interrupted.

Each takes a way to post interrupts, the calling domain's state and the first arguments, and returns Xen's result.
Sources: Xen common/memory.c, common/event_channel.c, public headers as in hmx/xen.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hmx import vcpu_area, xen
from hmx.cpu.evtchn import UNMASK_FLAG
from hmx.errno import Errno
from hmx.memory import FAULT, PAGE_SIZE

if TYPE_CHECKING:
    from hv_node.hvm import Hvm

Post = Callable[[int, int, int], None]
Handler = Callable[[Post, "Hvm", int, int, int], int]


def memory_op(post: Post, hvm: Hvm, cmd: int, arg: int, ctx: int) -> int:  # noqa: ARG001
    """XENMEM_add_to_physmap of the shared_info page; every other operation is -ENOSYS."""
    if cmd != xen.XENMEM_ADD_TO_PHYSMAP:
        return -Errno.ENOSYS
    fields = hvm.domain.memory.unpack(xen.ADD_TO_PHYSMAP, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, _size, space, index, gfn = fields
    if domid not in (xen.DOMID_SELF, hvm.domain.domid):
        return -Errno.EPERM
    if space != xen.XENMAPSPACE_SHARED_INFO or index != 0 or gfn >= hvm.domain.memory.size // PAGE_SIZE:
        return -Errno.EINVAL
    hvm.shared_info = gfn * PAGE_SIZE
    return 0


def event_channel_op(post: Post, hvm: Hvm, cmd: int, arg: int, ctx: int) -> int:
    """The operations of the table below; every other one is -ENOSYS."""
    operation = _EVTCHN_OPS.get(cmd)
    return -Errno.ENOSYS if operation is None else operation(post, hvm, cmd, arg, ctx)


def _bind_virq(_post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    memory = hvm.domain.memory
    fields = memory.unpack(xen.BIND_VIRQ, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    virq, vcpu, _ = fields
    port = hvm.evtchn.bind_virq(virq, vcpu)
    if port < 0:
        return port
    hvm.route(virq)
    if not memory.write(ctx, arg, xen.BIND_VIRQ.pack(virq, vcpu, port)):
        # Xen leaves the port bound here too: the guest has lost its number, nothing else.
        return -Errno.EFAULT
    return 0


def _close(_post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    fields = hvm.domain.memory.unpack(xen.CLOSE, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    ret = hvm.evtchn.close(fields[0])
    hvm.routes.clear()
    return ret


def _send(_post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    fields = hvm.domain.memory.unpack(xen.SEND, ctx, arg)
    return -Errno.EFAULT if fields is FAULT else hvm.evtchn.send(fields[0])


def _status(_post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    memory = hvm.domain.memory
    fields = memory.unpack(xen.STATUS, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, _pad, port, _state, _vcpu, _union = fields
    if domid not in (xen.DOMID_SELF, hvm.domain.domid):
        return -Errno.EPERM
    status = hvm.evtchn.status(port)
    if isinstance(status, int):
        return status
    state, vcpu, virq = status
    return 0 if memory.write(ctx, arg, xen.STATUS.pack(domid, 0, port, state, vcpu, virq)) else -Errno.EFAULT


def _bind_vcpu(post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    fields = hvm.domain.memory.unpack(xen.BIND_VCPU, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    before = hvm.evtchn.is_open(fields[0])
    ret = hvm.evtchn.bind_vcpu(*fields)
    hvm.routes.clear()
    if ret == 0 and before is not None and before != fields[1] and hvm.vcpus[before].area.guest_sleeps():
        # What was posted there while the port was masked rang no bell, and nothing else comes by there any more.
        # Port 0 is nobody's: its post only has the vCPU woken and look.
        post(hvm.domain.domid, before, vcpu_area.post_entry(vcpu_area.Post.PORT, 0))
    return ret


def _unmask(post: Post, hvm: Hvm, _cmd: int, arg: int, ctx: int) -> int:
    fields = hvm.domain.memory.unpack(xen.UNMASK, ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    vcpu = hvm.evtchn.is_open(fields[0])
    if vcpu is None:
        return -Errno.EINVAL
    # The mask bit is the guest process's to write: the request travels as a post (hmx/cpu/evtchn.py).
    post(hvm.domain.domid, vcpu, vcpu_area.post_entry(vcpu_area.Post.PORT, UNMASK_FLAG | fields[0]))
    return 0


_EVTCHN_OPS: Final[dict[int, Handler]] = {
    xen.EvtchnOp.BIND_VIRQ: _bind_virq,
    xen.EvtchnOp.CLOSE: _close,
    xen.EvtchnOp.SEND: _send,
    xen.EvtchnOp.STATUS: _status,
    xen.EvtchnOp.BIND_VCPU: _bind_vcpu,
    xen.EvtchnOp.UNMASK: _unmask,
}

HYPERCALLS: Final[dict[int, Handler]] = {
    xen.Hypercall.MEMORY_OP: memory_op,
    xen.Hypercall.EVENT_CHANNEL_OP: event_channel_op,
}

_STUB_SIZE: Final = 32
_STUBS: Final = PAGE_SIZE // _STUB_SIZE
_IRET: Final = 23


def hypercall_page(instruction: bytes) -> bytes:
    """What Xen writes into a guest's hypercall page: per number `mov eax, n; instruction; ret`, iret's slot UD2."""
    page = bytearray(b"\xcc" * PAGE_SIZE)
    for number in range(_STUBS):
        stub = b"\xb8" + number.to_bytes(4, "little") + instruction + b"\xc3"
        if number == _IRET:
            stub = b"\x0f\x0b"
        page[number * _STUB_SIZE : number * _STUB_SIZE + len(stub)] = stub
    return bytes(page)
