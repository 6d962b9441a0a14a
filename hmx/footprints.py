"""Which guest memory any trap frame reads: what a guest on another host than its hypervisor ships with it.

Calls of Argo by every door (hmx/doors.py), its experimental operations, v4v's, and Xen's other hypercalls.  The guest's
end does not know which hypervisor it has: where a frame could be several calls, it reads what any of them would.  Too
much only costs bytes; too little would be a fault.  Experimental, not upstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol

from hmx import xen
from hmx.argo.abi import GFN, MAX_IOVS, MAX_RING_LEN, MAX_RING_PAGES, Op
from hmx.argo.footprint import footprint
from hmx.doors import CONVENTIONS, Convention
from hmx.hypervisors import AX_V4V_LEAF, WHPX_V4V_LEAF
from hmx.notify import REGISTER_RING_EX, NotifyOp
from hmx.slots import DELEGATE, QUERY_ENDPOINT, SlotOp
from hmx.trap import Arch, Frame, FrameFlag, Kind
from hmx.v4v import abi as v4v

Range = tuple[int, int]
_M32: Final = 0xFFFF_FFFF
_WIDTH32: Final = int(FrameFlag.WIDTH32)
_HVC_XEN: Final = 0xEA1
_MOST_V4V_IOVS: Final = 1024
_SAME: Final = {Kind.VMMCALL: Kind.VMCALL}


class Structure(NamedTuple):
    """An operation of argo_op beside upstream's four: what it reads at its first argument."""

    op: int
    size: int


STRUCTURES: Final = (
    Structure(NotifyOp.REGISTER_RING_EX, REGISTER_RING_EX.size),
    Structure(SlotOp.DELEGATE, DELEGATE.size),
    Structure(SlotOp.QUERY_ENDPOINT, QUERY_ENDPOINT.size),
)
_STRUCTURES: Final = {row.op: row.size for row in STRUCTURES}


class XenCall(NamedTuple):
    """A hypercall of Xen's beside Argo's: what it reads at its second argument, at most."""

    number: int
    size: int


XEN_CALLS: Final = (
    XenCall(xen.Hypercall.MEMORY_OP, xen.ADD_TO_PHYSMAP.size),
    XenCall(xen.Hypercall.EVENT_CHANNEL_OP, xen.STATUS.size),
)
_XEN_CALLS: Final = {row.number: row.size for row in XEN_CALLS}


class Reader(Protocol):
    """What is needed of the guest's own memory."""

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        """The structure at `va`, or None."""


def frame_reads(frame: Frame, arch: Arch, memory: Reader) -> list[Range]:
    """(address, bytes) of what `frame` may have read.  Nothing for a frame that is no call."""
    reads: list[Range] = []
    kind = _SAME.get(Kind(frame.kind), frame.kind) if frame.kind in _KINDS else frame.kind
    width = 32 if frame.flags & _WIDTH32 else 64
    for row in CONVENTIONS:
        if row.arch is arch and row.kind == kind and row.width == width and _named(row, frame):
            mask = _M32 if width == 32 else -1
            cmd, *arguments = (frame.reg(slot) & mask for slot in row.arguments)
            reads += _argo(cmd & _M32, arguments, memory, frame.context, compat=width == 32)
    if arch is Arch.X86_64:
        reads += _of_x86(frame, kind, memory)
    elif kind == Kind.HVC and frame.imm == _HVC_XEN:
        reads += _xen(frame.reg(16) & _M32, frame.reg(1))
    return reads


_KINDS: Final = frozenset(int(kind) for kind in Kind)


def _named(row: Convention, frame: Frame) -> bool:
    """Whether the frame's number, and where there is one its selector, are those of `row`."""
    if row.selector and row.kind not in (Kind.HVC, Kind.SMC) and frame.address != row.selector:
        return False
    return frame.reg(row.number) & _M32 == row.call & _M32


def _of_x86(frame: Frame, kind: int, memory: Reader) -> list[Range]:
    if kind == Kind.VMCALL:
        number = frame.reg(0) & _M32
        reads = _xen(number, frame.reg(4))
        if number == v4v.HYPERCALL_V4V:
            reads += _v4v(frame, memory)
        return reads
    if kind == Kind.CPUID and frame.address & _M32 in (AX_V4V_LEAF, WHPX_V4V_LEAF):
        return _v4v(frame, memory)
    return []


def _argo(cmd: int, args: Sequence[int], memory: Reader, ctx: int, compat: bool) -> list[Range]:
    if cmd in _STRUCTURES:
        reads = [(args[0], _STRUCTURES[cmd])]
        if cmd == NotifyOp.REGISTER_RING_EX and args[2] <= MAX_RING_PAGES:
            reads.append((args[1], GFN.size * args[2]))
        return reads
    reads = list(footprint(cmd, args, memory, ctx=ctx, compat=compat)[0])
    if cmd == Op.SENDV and 0 < args[2] <= MAX_IOVS and sum(n for _, n in reads[2:]) > MAX_RING_LEN:
        del reads[2:]  # more than any ring takes: refused before a byte of it is read
    return reads


def _xen(number: int, argument: int) -> list[Range]:
    return [(argument, _XEN_CALLS[number])] if number in _XEN_CALLS else []


def _v4v(frame: Frame, memory: Reader) -> list[Range]:
    op, a1, a2, a3, a4 = (frame.reg(slot) for slot in (5, 4, 3, 8, 6))
    ctx, a4 = frame.context, a4 & _M32
    match op & _M32:
        case v4v.Op.REGISTER_RING:
            reads = [(a1, v4v.RING_HEADER.size), (a2, v4v.PFN_LIST.size), (a3, v4v.TOKEN.size)]
            header = memory.unpack(v4v.PFN_LIST, ctx, a2)
            if header is not None and header[1] <= v4v.MAX_RING_PAGES:
                reads.append((a2 + v4v.PFN_LIST.size, v4v.PFN.size * header[1]))
            return reads
        case v4v.Op.UNREGISTER_RING | v4v.Op.CREATE_RING:
            return [(a1, v4v.RING_HEADER.size)]
        case v4v.Op.SEND:
            payload = [(a3, a4)] if a4 <= v4v.MAX_RING_LEN else []
            return [(a1, v4v.ADDR.size), (a2, v4v.ADDR.size), *payload]
        case v4v.Op.SENDV:
            return [(a1, v4v.ADDR.size), (a2, v4v.ADDR.size), *_iovs(memory, ctx, a3, min(a4, _MOST_V4V_IOVS))]
        case v4v.Op.NOTIFY:
            header = memory.unpack(v4v.RING_DATA, ctx, a1)
            count = 0 if header is None else min(header[1], v4v.MAX_RING_PAGES)
            return [(a1, v4v.RING_DATA.size + v4v.RING_DATA_ENT.size * count)]
    return []


def _iovs(memory: Reader, ctx: int, at: int, count: int) -> list[Range]:
    reads = [(at, v4v.IOV.size * count)]
    for where in range(at, at + v4v.IOV.size * count, v4v.IOV.size):
        iov = memory.unpack(v4v.IOV, ctx, where)
        if iov is None:
            break
        reads.append((iov[0], iov[1]))
    return reads if sum(n for _, n in reads[1:]) <= v4v.MAX_RING_LEN else reads[:1]
