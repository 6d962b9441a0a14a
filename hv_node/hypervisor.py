"""A hypervisor without I/O: domains, doors, Argo and interrupts over shared pages that somebody else mapped.

The owner (a process shell, a simulation, a test) creates domains with their memory and vCPU areas, calls :meth:`run`
when a vCPU may have submitted frames, and rings the guests that :attr:`bells` names.  The hypervisor is the Argo
core's effect sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from hmx.argo.abi import Op
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, GuestMemory
from hmx.trap import (
    CALL,
    FRAME_SIZE,
    KNOWN_FLAGS,
    MAX_REGS,
    RESULT,
    Arch,
    FrameFlag,
    Kind,
    Outcome,
    Vector,
    X86Reg,
    int32,
)
from hmx.vcpu_area import CQ_ENTRIES, CQ_OFFSET, SQ_ENTRIES, SQ_OFFSET, HypervisorSide
from hmx.xen import EVTCHN_MASK_OFFSET, Hypercall
from hv_node.argo.core import Argo
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.doors.cpuid import xen_leaf
from hv_node.doors.hypercalls import HYPERCALLS, hypercall_page
from hv_node.doors.personality import Otherwise, Personality, Resolution, SiliconRow, Trap, resolve
from hv_node.effects import PENDING
from hv_node.hvm import TURN, AsyncCall, Hvm, Vcpu
from hv_node.interrupts.evtchn import EventChannels
from hv_node.xsm import Xsm

_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_LINK: Final = int(FrameFlag.LINK)
_ASYNC: Final = int(FrameFlag.ASYNC)
_WIDTH32: Final = int(FrameFlag.WIDTH32)
_DONE: Final = int(Outcome.DONE)
_CANCELED: Final = int(Outcome.CANCELED)
# The two words of a CALL frame's head, for an Argo call that is nothing special: kind and flags; register count.
_CALL_ALONE: Final = int(Kind.VMCALL)
_CALL_LINKED: Final = int(Kind.VMCALL) | _LINK << 16
_CALL_REGS: Final = 9
_ARGO_OP: Final = int(Hypercall.ARGO_OP)
_SENDV: Final = int(Op.SENDV)
_SELECTORLESS: Final = frozenset({Kind.VMCALL, Kind.VMMCALL, Kind.HVC, Kind.SMC, Kind.HLT_WFI})
# Errors that real Xen returns from inside sendv in a 32-bit variable: a 64-bit guest finds them zero-extended.
_ZERO_EXTENDED: Final = frozenset(
    -code for code in (Errno.EAGAIN, Errno.ECONNREFUSED, Errno.EMSGSIZE, Errno.ENODEV, Errno.EBUSY)
)


class Hypervisor:
    """One hypervisor: its domains, its personality, its Argo."""

    def __init__(
        self,
        personality: Personality,
        cpu: Sequence[SiliconRow],
        options: ArgoOptions,
        xsm: Xsm,
        on_event: Callable[..., None] | None = None,
    ) -> None:
        """`on_event(code, *fields)` is told what a person may want to know; it must not raise."""
        self.personality = personality
        self.cpu = cpu
        self.domains = DomainTable()
        self.argo = Argo(self.domains, xsm, self, options)
        self.bells: dict[Vcpu, None] = {}
        self._on_event = on_event
        self._hvms: dict[int, Hvm] = {}
        self._resolved: dict[tuple[int, int], Resolution] = {}

    # -- domains ----

    def create_domain(
        self,
        domid: int,
        memory: GuestMemory,
        areas: Sequence[memoryview],
        *,
        name: str = "",
        is_control: bool = False,
    ) -> Hvm:
        """Create a domain with its memory and one zeroed vCPU area per vCPU.  ValueError for a domid in use."""
        domain = Domain(domid, memory, is_control=is_control, name=name)
        self.domains.create(domain)
        hvm = Hvm(domain, EventChannels(len(areas)))
        hvm.vcpus.extend(Vcpu(hvm, index, HypervisorSide(area, Arch.X86_64)) for index, area in enumerate(areas))
        self._hvms[domid] = hvm
        self.argo.domain_init(domain)
        return hvm

    def kill_domain(self, domid: int) -> None:
        """The domain starts dying: its Argo state goes, its id still resolves.  Nothing happens twice."""
        hvm = self._hvms.pop(domid, None)
        if hvm is None:
            return
        for vcpu in hvm.vcpus:
            self.bells.pop(vcpu, None)
        self.argo.domain_kill(hvm.domain)

    def free_domain(self, domid: int) -> None:
        """The last reference is gone: the id no longer resolves."""
        self.kill_domain(domid)
        self.domains.remove(domid)

    def hvm(self, domid: int) -> Hvm | None:
        """A living domain's state."""
        return self._hvms.get(domid)

    def counters(self) -> dict[str, dict[str, int]]:
        """`arch.*` counters by domain name."""
        return {hvm.domain.name: asdict(hvm.counters) for hvm in self._hvms.values()}

    # -- frames ----

    def run(self, vcpu: Vcpu, budget: int = TURN) -> int:
        """Execute up to `budget` submitted frames of one vCPU, in order.  Returns how many were taken."""
        area = vcpu.area
        if area.backlog and area.repost() and area.guest_sleeps():
            self.bells[vcpu] = None
        count = area.submitted()
        if not count or vcpu.blocked is not None:
            return 0
        count = min(count, area.room() - vcpu.deferred, budget)
        taken = 0
        while taken < count and vcpu.blocked is None:
            quick = self._run_calls(vcpu, count - taken)
            taken += quick
            if not quick:
                head, regs = area.take()
                taken += 1
                self._step(vcpu, head, regs)
        if taken:
            self._finish(vcpu)
        return taken

    def _run_calls(self, vcpu: Vcpu, count: int) -> int:
        """The one path that matters: Argo calls by 64-bit VMCALL in which nothing is out of the ordinary.

        What `_step` does with such a frame, in one loop and with one look at each frame.  Stops before the first
        frame that is anything else, or that a failure before it cancels.  Returns how many frames were executed.
        """
        if vcpu.deferred:
            return 0  # answers to ASYNC frames come in between
        area, domain, op = vcpu.area, vcpu.hvm.domain, self.argo.op
        buffer, unpack, pack = area.buffer, CALL.unpack_from, RESULT.pack_into
        head, tail, chain = area.sq_head, area.cq_tail, vcpu.chain
        done = messages = copied = 0
        while done < count:
            seq, what, shape, _, ctx, number, _, _, a2, a1, cmd, a4, _, a3 = unpack(
                buffer, SQ_OFFSET + head % SQ_ENTRIES * FRAME_SIZE
            )
            if number != _ARGO_OP or shape != _CALL_REGS:
                break
            if what != _CALL_ALONE and (what != _CALL_LINKED or not chain):
                break
            done += 1
            head = (head + 1) & _M32
            cmd &= _M32
            ret = op(domain, cmd, a1, a2, a3, a4, vcpu, ctx)
            if ret is PENDING:
                vcpu.seq = vcpu.blocked = seq
                break
            if ret >= 0:
                chain = True
                if cmd == _SENDV:
                    messages += 1
                    copied += ret
            else:
                chain = False
                ret &= _M32 if cmd == _SENDV and ret in _ZERO_EXTENDED else _M64
            pack(buffer, CQ_OFFSET + tail % CQ_ENTRIES * FRAME_SIZE, seq, _DONE, 0, 0, 1, 0, ret)
            tail = (tail + 1) & _M32
        if done:
            area.sq_head, area.cq_tail, vcpu.chain = head, tail, chain
            counters = vcpu.hvm.counters
            counters.exits += done
            counters.hypercalls += done
            counters.argo_ops += done
            counters.messages += messages
            counters.bytes_copied += copied
        return done

    def _finish(self, vcpu: Vcpu) -> None:
        vcpu.area.publish()
        if vcpu.area.guest_sleeps():
            self.bells[vcpu] = None

    def _step(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        """Order one frame against its neighbours, then execute it."""
        seq = head[0]
        flags = head[2]
        if flags & _LINK:
            if vcpu.linked_to is not None:
                vcpu.linked_to.held.append((head, regs))
                vcpu.deferred += 1
                return
            if not vcpu.chain:
                vcpu.area.complete(seq, _CANCELED)
                return
        else:
            vcpu.linked_to = None
        vcpu.hvm.counters.exits += 1
        # A 64-bit VMCALL in which nothing is out of the ordinary.
        if (
            head[1] == Kind.VMCALL
            and not flags & ~_LINK
            and not head[3]
            and not head[7]
            and not head[8]
            and 9 <= head[6] <= MAX_REGS
        ):
            ret = self._hypercall64(vcpu, regs, head[10], vcpu)
            if ret is PENDING:
                vcpu.seq = seq
                vcpu.blocked = seq
                return
            vcpu.chain = ret < 0x8000_0000
            vcpu.area.complete(seq, _DONE, (ret,))
            return
        self._execute(vcpu, head, regs)

    def _hypercall64(self, vcpu: Vcpu, regs: tuple[int, ...], ctx: int, token: object) -> int:
        """A native hypercall from kernel mode.  The value for rax, or PENDING."""
        hvm = vcpu.hvm
        counters = hvm.counters
        counters.hypercalls += 1
        cmd = regs[5] & _M32
        if regs[0] == Hypercall.ARGO_OP:
            counters.argo_ops += 1
            ret = self.argo.op(hvm.domain, cmd, regs[4], regs[3], regs[8], regs[6], token, ctx)
            if ret is PENDING:
                return ret
            if cmd == Op.SENDV:
                if ret >= 0:
                    counters.messages += 1
                    counters.bytes_copied += ret
                elif ret in _ZERO_EXTENDED:
                    return ret & _M32
            return ret & _M64
        handler = HYPERCALLS.get(regs[0])
        ret = -Errno.ENOSYS if handler is None else handler(self, hvm, cmd, regs[4], ctx)
        return ret & _M64

    def _execute(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        """Any frame: decode defensively, resolve it against the personality, answer architecturally."""
        seq, kind, flags, privilege, size, _imm, nregs, level, zero, address, ctx = head
        slots = regs + (0,) * (MAX_REGS - len(regs))
        if flags & ~KNOWN_FLAGS or zero or level or nregs > MAX_REGS:
            self._fault(vcpu, seq, Vector.UD)
            return
        resolution = self._resolve(kind, address, privilege)
        match resolution.handler:
            case "hypercall":
                self._call(vcpu, seq, flags, privilege, slots, ctx)
            case "cpuid":
                leaf = xen_leaf(address & _M32, vcpu.hvm.domain.domid, vcpu.index)
                self._done(vcpu, seq, leaf)
            case "hypercall-page":
                self._write_hypercall_page(vcpu, seq, slots, ctx)
            case "idle":
                self._done(vcpu, seq, slots[:1])
            case _:
                self._otherwise(vcpu, seq, resolution.otherwise, size, slots)

    def _resolve(self, kind: int, selector: int, privilege: int) -> Resolution:
        if kind not in _SELECTORLESS:
            return resolve(Trap(kind, selector, privilege), (self.personality,), self.cpu)
        key = (kind, privilege)
        found = self._resolved.get(key)
        if found is None:
            found = self._resolved[key] = resolve(Trap(kind, 0, privilege), (self.personality,), self.cpu)
        return found

    def _call(self, vcpu: Vcpu, seq: int, flags: int, privilege: int, slots: tuple[int, ...], ctx: int) -> None:
        """A hypercall off the hot path: user mode, 32-bit registers, or ASYNC."""
        token: Vcpu | AsyncCall = AsyncCall(vcpu, seq) if flags & _ASYNC else vcpu
        if privilege:
            ret = -Errno.EPERM & _M64  # Xen's software check: VMCALL itself exits at any CPL
        elif flags & _WIDTH32:
            ret = self._hypercall32(vcpu, slots, ctx, token)
        else:
            ret = self._hypercall64(vcpu, slots, ctx, token)
        if ret is PENDING:
            if isinstance(token, AsyncCall):
                vcpu.linked_to = token
                vcpu.deferred += 1
            else:
                vcpu.seq = vcpu.blocked = seq
            return
        vcpu.chain = int32(ret) >= 0
        vcpu.area.complete(seq, _DONE, (ret,))

    def _hypercall32(self, vcpu: Vcpu, slots: tuple[int, ...], ctx: int, token: object) -> int:
        """A hypercall with 32-bit registers: number eax, arguments ebx ecx edx esi edi."""
        hvm = vcpu.hvm
        hvm.counters.hypercalls += 1
        number, cmd, a1, a2, a3, a4 = (slots[slot] & _M32 for slot in range(6))
        if number == Hypercall.ARGO_OP:
            hvm.counters.argo_ops += 1
            ret = self.argo.op_compat(hvm.domain, cmd, a1, a2, a3, a4, token, ctx)
            if ret is PENDING:
                return ret
            if cmd == Op.SENDV and ret >= 0:
                hvm.counters.messages += 1
                hvm.counters.bytes_copied += ret
            return ret & _M32
        handler = HYPERCALLS.get(number)
        return (-Errno.ENOSYS if handler is None else handler(self, hvm, cmd, a1, ctx)) & _M32

    def _write_hypercall_page(self, vcpu: Vcpu, seq: int, slots: tuple[int, ...], ctx: int) -> None:
        address = slots[X86Reg.RDX] << 32 | slots[X86Reg.RAX] & _M32
        if address & (PAGE_SIZE - 1) or not vcpu.hvm.domain.memory.write(ctx, address, hypercall_page()):
            self._fault(vcpu, seq, Vector.GP)  # an index other than 0, or no such page
        else:
            self._done(vcpu, seq, ())

    def _otherwise(self, vcpu: Vcpu, seq: int, otherwise: Otherwise, size: int, slots: tuple[int, ...]) -> None:
        rax = slots[X86Reg.RAX]
        match otherwise:
            case Otherwise.UD | Otherwise.UNDEF:
                self._fault(vcpu, seq, Vector.UD)
            case Otherwise.GP:
                self._fault(vcpu, seq, Vector.GP)
            case Otherwise.IGNORE:
                vcpu.chain = True
                vcpu.area.complete(seq, Outcome.IGNORED)
            case Otherwise.ALL_ONES:
                ones = (1 << 8 * min(size, 8)) - 1
                self._done(vcpu, seq, (ones if size >= 4 else rax | ones,))
            case Otherwise.ENOSYS:
                self._done(vcpu, seq, (-Errno.ENOSYS & _M64,))
            case Otherwise.MINUS_ONE:
                self._done(vcpu, seq, (_M64,))
            case Otherwise.ZERO | Otherwise.NATIVE:
                self._done(vcpu, seq, (0, 0, 0, 0))

    def _done(self, vcpu: Vcpu, seq: int, regs: tuple[int, ...]) -> None:
        vcpu.chain = True
        vcpu.area.complete(seq, _DONE, regs)

    def _fault(self, vcpu: Vcpu, seq: int, vector: Vector) -> None:
        vcpu.chain = False
        vcpu.area.complete(seq, Outcome.FAULT, (), vector)

    # -- the sink of the Argo core ----

    def raise_virq(self, domid: int, virq: int) -> None:
        """Raise a per-domain VIRQ: dropped while unbound, coalesced while its post is unconsumed."""
        hvm = self._hvms.get(domid)
        if hvm is None:
            return  # dying: the binding is gone
        counters = hvm.counters
        counters.interrupts_raised += 1
        route = hvm.routes.get(virq) or hvm.route(virq)
        if route is None:
            counters.interrupts_dropped += 1
            return
        vcpu, entry, port = route
        if not vcpu.area.post(entry):
            counters.interrupts_coalesced += 1
            return
        counters.interrupts_posted += 1
        if not self._masked(hvm, port) and vcpu.area.guest_sleeps():
            self.bells[vcpu] = None

    def _masked(self, hvm: Hvm, port: int) -> bool:
        if hvm.shared_info is None:
            return False
        bits = hvm.domain.memory.read(0, hvm.shared_info + EVTCHN_MASK_OFFSET + (port >> 3), 1)
        return bits is not None and bool(bits[0] >> (port & 7) & 1)

    def post(self, domid: int, vcpu: int, entry: int) -> None:
        """Post an interrupt entry to a vCPU."""
        hvm = self._hvms.get(domid)
        if hvm is None:
            return
        target = hvm.vcpus[vcpu]
        if target.area.post(entry) and target.area.guest_sleeps():
            self.bells[target] = None

    def complete(self, token: object, ret: int) -> None:
        """A pending operation ended: answer its frame and let what waited behind it go on."""
        if isinstance(token, AsyncCall):
            self._complete_async(token, ret)
            return
        assert isinstance(token, Vcpu)
        if token.blocked is None:
            return
        token.area.complete(token.blocked, _DONE, (ret & _M64,))
        token.chain = ret >= 0
        token.blocked = None
        self._finish(token)

    def _complete_async(self, call: AsyncCall, ret: int) -> None:
        vcpu = call.vcpu
        vcpu.deferred -= 1
        vcpu.area.complete(call.seq, _DONE, (ret & _M64,))
        if vcpu.linked_to is call:
            vcpu.linked_to = None
        # Its followers form a chain of their own; the chain of the frames that overtook them is not theirs to change.
        overtaken, vcpu.chain = vcpu.chain, ret >= 0
        for head, regs in call.held:
            vcpu.deferred -= 1
            self._step(vcpu, head, regs)
        vcpu.chain = overtaken
        self._finish(vcpu)

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None:
        """Nothing lies above an L0 in this version."""
        raise NotImplementedError("a hypervisor of this version has no uplink")

    def set_timer(self, key: object, deadline_ns: int) -> None:
        """No operation of this version waits for a time."""
        raise NotImplementedError("a hypervisor of this version has no timers")

    def event(self, code: str, *fields: Any) -> None:
        """Pass an event of the core on to the owner."""
        if self._on_event is not None:
            self._on_event(code, *fields)
