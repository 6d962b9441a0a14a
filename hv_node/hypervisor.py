"""A hypervisor without I/O: domains, doors, Argo and interrupts over shared pages that somebody else mapped.

The owner (a process shell, a simulation, a test) creates domains with their memory and vCPU areas, calls :meth:`run`
when a vCPU may have submitted frames, and rings the guests that :attr:`bells` names.  The hypervisor is the Argo
core's effect sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from hmx.argo.abi import UNREGISTER_RING, Op
from hmx.doors import CALL_INSTRUCTIONS, Convention, convention
from hmx.errno import Errno
from hmx.memory import FAULT, GuestMemory
from hmx.notify import MODES, NotifyOp
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
from hv_node.argo.model import Ring
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.doors.handlers import HANDLERS, Call
from hv_node.doors.hypercalls import HYPERCALLS
from hv_node.doors.leaves import native_leaf
from hv_node.doors.personality import Otherwise, Personality, Resolution, Trap, resolve
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import has_own_call, with_doors
from hv_node.effects import PENDING
from hv_node.hvm import TURN, AsyncCall, Hvm, Vcpu
from hv_node.interrupts.evtchn import EventChannels
from hv_node.interrupts.notification import Notification
from hv_node.xsm import Xsm

_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_LINK: Final = int(FrameFlag.LINK)
_ASYNC: Final = int(FrameFlag.ASYNC)
_WIDTH32: Final = int(FrameFlag.WIDTH32)
_DONE: Final = int(Outcome.DONE)
_CANCELED: Final = int(Outcome.CANCELED)
# The two words of a CALL frame's head, for an Argo call that is nothing special: kind and flags; register count.
_CALL_LINKED: Final = _LINK << 16
_NO_KIND: Final = 0xFFFF
_CALL_REGS: Final = 9
_ARGO_OP: Final = int(Hypercall.ARGO_OP)
_SENDV: Final = int(Op.SENDV)
_NOTIFY: Final = int(Op.NOTIFY)
_IMMEDIATE: Final = frozenset({Kind.HVC, Kind.SMC})
_SELECTORLESS: Final = frozenset({Kind.VMCALL, Kind.VMMCALL, Kind.HLT_WFI})
# Errors that real Xen returns from inside sendv in a 32-bit variable: a 64-bit guest finds them zero-extended.
_ZERO_EXTENDED: Final = frozenset(
    -code for code in (Errno.EAGAIN, Errno.ECONNREFUSED, Errno.EMSGSIZE, Errno.ENODEV, Errno.EBUSY)
)


_OPCODES: Final = {Kind.VMCALL: b"\x0f\x01\xc1", Kind.VMMCALL: b"\x0f\x01\xd9"}


def _own_call(personality: Personality, doors: Sequence[str]) -> Convention | None:
    """The convention of the hypervisor's own call instruction, if Argo is offered by it."""
    door = "hvc" if personality.arch is Arch.AARCH64 else "hypercall"
    if door not in doors or not has_own_call(personality, door):
        return None
    return convention(door, personality.arch, speaks=personality.abi)


class Hypervisor:
    """One hypervisor: its domains, its personality, its Argo."""

    def __init__(
        self,
        personality: Personality,
        cpu: str,
        options: ArgoOptions,
        xsm: Xsm,
        on_event: Callable[..., None] | None = None,
        *,
        doors: Sequence[str] = ("hypercall", "hvc"),
        notifications: Sequence[str] = (),
    ) -> None:
        """`cpu` names the machine below; `doors` are those by which Argo is offered, `notifications` the experimental
        ways to be told beside VIRQ_ARGO.  `on_event(code, *fields)` is told what a person may want to know; it must
        not raise.
        """
        self.personality = personality
        self.cpu_name = cpu
        self.notifications = tuple(notifications)
        self.domains = DomainTable()
        self.argo = Argo(self.domains, xsm, self, options)
        self.bells: dict[Vcpu, None] = {}
        self.call_instruction = next((_OPCODES[row.kind] for row in CALL_INSTRUCTIONS if row.cpu == cpu), b"")
        self.own_call = _own_call(personality, doors)
        self._offered = with_doors(personality, doors)
        self._silicon = CPUS[cpu]
        self._on_event = on_event
        self._hvms: dict[int, Hvm] = {}
        self._resolved: dict[tuple[int, int, int], Resolution] = {}
        self._quick_kind = self._kind_of_quick_calls()

    def _kind_of_quick_calls(self) -> int:
        """The frame kind that is Xen's hypercall on a 64-bit x86 machine, if Argo is offered by it."""
        if self.own_call is not None and self.own_call.arch is Arch.X86_64 and self.own_call.speaks == "xen":
            for kind in (Kind.VMCALL, Kind.VMMCALL):
                if self._resolve(kind, 0, 0).handler in ("hypercall", "viridian-call"):
                    return int(kind)
        return _NO_KIND

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
        notification = Notification(self.personality.arch, len(areas), self.notifications)
        hvm = Hvm(domain, EventChannels(len(areas)), notification)
        arch = self.personality.arch
        hvm.vcpus.extend(Vcpu(hvm, index, HypervisorSide(area, arch)) for index, area in enumerate(areas))
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
        alone, linked = self._quick_kind, self._quick_kind | _CALL_LINKED
        done = messages = copied = 0
        while done < count:
            seq, what, shape, _, ctx, number, _, _, a2, a1, cmd, a4, _, a3 = unpack(
                buffer, SQ_OFFSET + head % SQ_ENTRIES * FRAME_SIZE
            )
            if number != _ARGO_OP or shape != _CALL_REGS:
                break
            cmd &= _M32
            if (what != alone and (what != linked or not chain)) or not _SENDV <= cmd <= _NOTIFY:
                break
            done += 1
            head = (head + 1) & _M32
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
        self._execute(vcpu, head, regs)

    def _execute(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        """Any frame: decode defensively, resolve it against the personality, answer architecturally."""
        seq, kind, flags, privilege, size, imm, nregs, level, zero, address, ctx = head
        selector = imm if kind in _IMMEDIATE else 0 if kind in _SELECTORLESS else address
        slots = regs + (0,) * (MAX_REGS - len(regs))
        call = Call(vcpu, seq, kind, flags, privilege, size, selector, ctx, slots)
        if flags & ~KNOWN_FLAGS or zero or level or nregs > MAX_REGS:
            self._undefined(call)
            return
        resolution = self._resolve(kind, selector, privilege)
        handler = HANDLERS.get(resolution.handler)
        if handler is None:
            self._otherwise(call, resolution.otherwise)
        else:
            handler(self, call)

    def _resolve(self, kind: int, selector: int, privilege: int) -> Resolution:
        if kind not in _SELECTORLESS:
            return resolve(Trap(kind, selector, privilege), (self._offered,), self._silicon)
        key = (kind, selector, privilege)
        found = self._resolved.get(key)
        if found is None:
            found = self._resolved[key] = resolve(Trap(kind, 0, privilege), (self._offered,), self._silicon)
        return found

    # -- what handlers call ----

    def hypercall(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """A native Xen hypercall from kernel mode.  The 64-bit result, or PENDING."""
        if number == Hypercall.ARGO_OP and self.own_call is not None:
            return self.argo_op(call, cmd, a1, a2, a3, a4)
        hvm = call.vcpu.hvm
        hvm.counters.hypercalls += 1
        handler = HYPERCALLS.get(number)
        return (-Errno.ENOSYS if handler is None else handler(self, hvm, cmd, a1, call.ctx)) & _M64

    def hypercall32(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """A Xen hypercall with 32-bit registers: number eax, arguments ebx ecx edx esi edi."""
        if number != Hypercall.ARGO_OP or self.own_call is None:
            return self.hypercall(call, number, cmd, a1, a2, a3, a4) & _M32
        counters = call.vcpu.hvm.counters
        counters.hypercalls += 1
        counters.argo_ops += 1
        ret = self.argo.op_compat(call.vcpu.hvm.domain, cmd, a1, a2, a3, a4, self._token(call), call.ctx)
        if ret is PENDING:
            return ret
        if cmd == Op.SENDV and ret >= 0:
            counters.messages += 1
            counters.bytes_copied += ret
        return ret & _M32

    def argo_op(self, call: Call, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """argo_op of a 64-bit caller in kernel mode, by whatever door.  The 64-bit result, or PENDING."""
        hvm = call.vcpu.hvm
        counters = hvm.counters
        counters.hypercalls += 1
        counters.argo_ops += 1
        if cmd not in (Op.SENDV, Op.NOTIFY):
            return self._ring_op(call, hvm, cmd, a1, a2, a3, a4) & _M64
        ret = self.argo.op(hvm.domain, cmd, a1, a2, a3, a4, self._token(call), call.ctx)
        if ret is PENDING:
            return ret
        if cmd == Op.SENDV:
            if ret >= 0:
                counters.messages += 1
                counters.bytes_copied += ret
            elif ret in _ZERO_EXTENDED:
                return ret & _M32
        return ret & _M64

    def _ring_op(self, call: Call, hvm: Hvm, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """An operation that may change which interrupt a ring has."""
        domain, chosen, ctx = hvm.domain, hvm.notification, call.ctx

        def argo(operation: int) -> int:
            return self.argo.op(domain, operation, a1, a2, a3, a4, self._token(call), ctx)

        match cmd:
            case NotifyOp.REGISTER_RING_EX:
                index = call.vcpu.index
                return chosen.register(domain.memory, ctx, a1, index, lambda: argo(Op.REGISTER_RING))
            case NotifyOp.SET_NOTIFICATION:
                return chosen.set_notification(a1, a2, a3)
        key = domain.memory.unpack(UNREGISTER_RING, ctx, a1)
        ret = argo(cmd)
        if key is not FAULT and not ret:
            if cmd == Op.REGISTER_RING:
                chosen.registered(key[0], key[1], call.vcpu.index)
            elif cmd == Op.UNREGISTER_RING:
                chosen.unregistered(key[0], key[1])
        return ret

    def mode_features(self) -> int:
        """The notification modes as bits of a door's features."""
        return sum(row.feature for row in MODES if row.name in self.notifications)

    def v4v_call(self, call: Call, op: int, *arguments: int) -> int:  # noqa: ARG002
        """A v4v operation: a hypervisor built without v4v answers -ENOSYS."""
        return -Errno.ENOSYS & _M64

    def _token(self, call: Call) -> Vcpu | AsyncCall:
        """What an operation that stays pending is completed with."""
        vcpu = call.vcpu
        if not call.flags & _ASYNC:
            return vcpu
        vcpu.token = AsyncCall(vcpu, call.seq)
        return vcpu.token

    def answer(self, call: Call, ret: int) -> None:
        """End a call with `ret` in the result register; a PENDING one ends later."""
        vcpu = call.vcpu
        if ret is PENDING:
            if call.flags & _ASYNC:
                vcpu.linked_to = vcpu.token
                vcpu.deferred += 1
            else:
                vcpu.seq = vcpu.blocked = call.seq
            return
        vcpu.chain = int32(ret) >= 0
        vcpu.area.complete(call.seq, _DONE, (ret & _M64,))

    def done(self, call: Call, regs: tuple[int, ...]) -> None:
        """The instruction was executed; `regs` are the first registers after it."""
        call.vcpu.chain = True
        call.vcpu.area.complete(call.seq, _DONE, regs)

    def fault(self, call: Call, vector: int) -> None:
        """The instruction ended in an exception."""
        call.vcpu.chain = False
        call.vcpu.area.complete(call.seq, Outcome.FAULT, (), vector)

    def absent(self, call: Call) -> None:
        """One of our doors was knocked at in a way it does not know: what its hypervisor does without it."""
        trap = Trap(call.kind, call.selector, call.privilege)
        resolution = resolve(trap, (self.personality,), self._silicon)
        handler = HANDLERS.get(resolution.handler)
        if handler is None or resolution.handler == "v4v-cpuid":
            self._otherwise(call, resolution.otherwise)
        else:
            handler(self, call)

    def all_ones(self, call: Call) -> None:
        """A read that no device answers; one of less than 32 bits replaces part of the register only."""
        ones = (1 << 8 * min(call.size, 8)) - 1
        self.done(call, (ones if call.size >= 4 else call.slots[X86Reg.RAX] | ones,))

    def _undefined(self, call: Call) -> None:
        self.fault(call, Vector.UD if self.personality.arch is Arch.X86_64 else 0)

    def _otherwise(self, call: Call, otherwise: Otherwise) -> None:
        match otherwise:
            case Otherwise.UD | Otherwise.UNDEF:
                self._undefined(call)
            case Otherwise.GP:
                self.fault(call, Vector.GP)
            case Otherwise.IGNORE:
                call.vcpu.chain = True
                call.vcpu.area.complete(call.seq, Outcome.IGNORED)
            case Otherwise.ALL_ONES:
                self.all_ones(call)
            case Otherwise.ENOSYS:
                self.done(call, (-Errno.ENOSYS & _M64,))
            case Otherwise.MINUS_ONE:
                self.done(call, (_M64,))
            case Otherwise.ZERO:
                self.done(call, (0, 0, 0, 0))
            case Otherwise.NATIVE:
                leaf = call.kind == Kind.CPUID
                self.done(call, native_leaf(self.cpu_name, call.selector & _M32) if leaf else call.slots[:1])

    # -- the sink of the Argo core ----

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        """Raise a per-domain VIRQ, or what the domain chose instead for Argo: dropped while nothing is bound, coalesced
        while its post is unconsumed.
        """
        hvm = self._hvms.get(domid)
        if hvm is None:
            return  # dying: the binding is gone
        counters = hvm.counters
        counters.interrupts_raised += 1
        if hvm.notification.active:
            chosen = hvm.notification.target((ring.port, ring.partner) if isinstance(ring, Ring) else None)
            if chosen is not None:
                self._interrupt(hvm, *chosen)
                return
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

    def _interrupt(self, hvm: Hvm, index: int, entry: int) -> None:
        """Post an interrupt that needs no event channel."""
        vcpu = hvm.vcpus[index]
        if not vcpu.area.post(entry):
            hvm.counters.interrupts_coalesced += 1
            return
        hvm.counters.interrupts_posted += 1
        if vcpu.area.guest_sleeps():
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
