"""From one trap frame to its architectural answer: decode, resolve against the personality, hand to a handler.

What handlers (hv_node/doors/handlers.py) need of their hypervisor is here: its Argo, its Xen hypercalls, and the ways
in which an instruction can end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hmx.argo.abi import UNREGISTER_RING, Op
from hmx.doors import CALL_INSTRUCTIONS, Convention, convention
from hmx.errno import Errno
from hmx.memory import FAULT
from hmx.notify import MODES, NotifyOp
from hmx.trap import KNOWN_FLAGS, MAX_REGS, Arch, FrameFlag, Kind, Outcome, Vector, X86Reg, int32
from hmx.uxen_enum import MAX_UNITS, STORAGE_PORT
from hmx.v4v.abi import Op as V4vOp
from hmx.xen import Hypercall
from hv_node.argo.core import Argo
from hv_node.doors.composition import Composition, Resolution
from hv_node.doors.handlers import HANDLERS, Call
from hv_node.doors.hypercalls import HYPERCALLS
from hv_node.doors.leaves import native_leaf
from hv_node.doors.outer import Outer, Stolen
from hv_node.doors.personality import Otherwise, Personality
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import has_own_call, with_doors, without_doors
from hv_node.effects import PENDING
from hv_node.hvm import AsyncCall, Hvm, Vcpu, count_levels
from hv_node.v4v.core import V4v

MoreCalls = Callable[[Call, int, int, int, int], int | None]
"""`more(call, number, cmd, a1, a2)`: the result of a hypercall of device models, None for another one."""
_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_ASYNC: Final = int(FrameFlag.ASYNC)
_DONE: Final = int(Outcome.DONE)
_V4V_SENDS: Final = frozenset({int(V4vOp.SEND), int(V4vOp.SENDV)})
_IMMEDIATE: Final = frozenset({Kind.HVC, Kind.SMC})
_OURS: Final = frozenset(int(operation) for operation in NotifyOp)
_SELECTORLESS: Final = frozenset({Kind.VMCALL, Kind.VMMCALL, Kind.HLT_WFI})
_CALLS: Final = frozenset({Kind.VMCALL, Kind.VMMCALL, Kind.HVC, Kind.SMC})  # a LINK looks at their result register
_OPTIONAL: Final = frozenset({"v4v-cpuid", "gic", "pci-config", "uxen-platform"})  # absent where they say so
_OPCODES: Final = {Kind.VMCALL: b"\x0f\x01\xc1", Kind.VMMCALL: b"\x0f\x01\xd9"}
# Errors that real Xen returns from inside sendv in a 32-bit variable: a 64-bit guest finds them zero-extended.
ZERO_EXTENDED: Final = frozenset(
    -code for code in (Errno.EAGAIN, Errno.ECONNREFUSED, Errno.EMSGSIZE, Errno.ENODEV, Errno.EBUSY)
)


def _own_call(personality: Personality, doors: Sequence[str]) -> Convention | None:
    """The convention of the hypervisor's own call instruction, if Argo is offered by it."""
    door = "hvc" if personality.arch is Arch.AARCH64 else "hypercall"
    if door not in doors or not has_own_call(personality, door):
        return None
    return convention(door, personality.arch, speaks=personality.abi)


class Executor:
    """Executes the frames of one hypervisor's guests.  `post(domid, vcpu, entry)` posts an interrupt.

    `parents` are the hypervisors around it, the outermost first, with their doors; `stolen` is told of a call of Argo
    that one of them takes from a guest; without it those doors are absent.  `hides_domid(domid)`: a domain is not to
    know its own id (experimental, not upstream).
    """

    def __init__(
        self,
        personality: Personality,
        cpu: str,
        argo: Argo,
        post: Callable[[int, int, int], None],
        doors: Sequence[str],
        notifications: Sequence[str],
        v4v: V4v | None = None,
        parents: Sequence[Personality] = (),
        stolen: Stolen | None = None,
    ) -> None:
        self.personality = personality
        self.cpu_name = cpu
        self.argo = argo
        self.notifications = tuple(notifications)
        self.call_instruction = next((_OPCODES[row.kind] for row in CALL_INSTRUCTIONS if row.cpu == cpu), b"")
        self.own_call = _own_call(personality, doors)
        self._v4v = v4v
        self._post = post
        self.stolen = stolen
        self.forward: Stolen | None = None  # who carries further what is called by our own doors
        self.more: MoreCalls | None = None  # under Xen: what device models call
        self.hides_domid: Callable[[int], bool] = lambda _domid: False
        self._level = len(parents)
        self._composed = Composition((*parents, with_doors(personality, doors)), CPUS[cpu])
        self._doorless = Composition((*map(without_doors, parents), personality), CPUS[cpu])
        self._around = tuple(Outer(self, level, table) for level, table in enumerate(parents))

    def kind_of_xen_call(self) -> Kind | None:
        """The instruction that is Xen's hypercall on this x86 machine, if Argo is offered by it."""
        own = self.own_call if self.forward is None else None
        if own is not None and own.arch is Arch.X86_64 and own.speaks == "xen":
            for kind in (Kind.VMCALL, Kind.VMMCALL):
                found = self.resolve(kind, 0, 0)
                if found.level == self._level and found.handler in ("hypercall", "viridian-call"):
                    return kind
        return None

    def execute(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        """Any frame: decode defensively, resolve it against the personality, answer architecturally."""
        seq, kind, flags, privilege, size, imm, nregs, level, zero, address, ctx = head
        selector = imm if kind in _IMMEDIATE else 0 if kind in _SELECTORLESS else address
        slots = regs + (0,) * (MAX_REGS - len(regs))
        call = Call(vcpu, seq, kind, flags, privilege, size, selector, ctx, slots)
        if flags & ~KNOWN_FLAGS or zero or level or nregs > MAX_REGS:
            self._undefined(call)
            return
        resolution = self._composed.resolve(kind, selector, privilege)
        if self._level:
            count_levels(vcpu.hvm.counters, resolution.exits, resolution.resumes)
            if 0 <= resolution.level < self._level:
                self.outer(resolution.level, call, resolution)
                return
        handler = HANDLERS.get(resolution.handler)
        if handler is None:
            servers = vcpu.hvm.servers
            if servers is None or resolution.level != self._level or not servers.take(call, resolution.otherwise):
                self.otherwise(call, resolution.otherwise)
        else:
            handler(self, call)

    def resolve(self, kind: int, selector: int, privilege: int) -> Resolution:
        """Who answers an instruction."""
        return self._composed.resolve(kind, selector, privilege)

    def outer(self, level: int, call: Call, resolution: Resolution) -> None:
        """A hypervisor further out answers: constants at once, calls of Argo through `stolen`."""
        self._around[level].serve(call, resolution)

    # -- what handlers call ----

    def hypercall(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """A native Xen hypercall from kernel mode.  The 64-bit result, or PENDING."""
        if number == Hypercall.ARGO_OP and self.own_call is not None:
            return self.argo_op(call, cmd, a1, a2, a3, a4)
        hvm = call.vcpu.hvm
        hvm.counters.hypercalls += 1
        found = None if self.more is None else self.more(call, number, cmd, a1, a2)
        if found is not None:
            return found & _M64
        handler = HYPERCALLS.get(number)
        return (-Errno.ENOSYS if handler is None else handler(self._post, hvm, cmd, a1, call.ctx)) & _M64

    def hypercall32(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """A Xen hypercall with 32-bit registers: number eax, arguments ebx ecx edx esi edi."""
        if number != Hypercall.ARGO_OP or self.own_call is None:
            return self.hypercall(call, number, cmd, a1, a2, a3, a4) & _M32
        counters = call.vcpu.hvm.counters
        counters.hypercalls += 1
        counters.argo_ops += 1
        if self.forward is not None:
            ret = self.carried(self.forward, call, self._level - 1, cmd, a1, a2, a3, a4)
            return ret if ret is PENDING else ret & _M32
        if cmd not in (Op.SENDV, Op.NOTIFY):
            ret = self._ring_op(call, call.vcpu.hvm, cmd, a1, a2, a3, a4)
            return ret if ret is PENDING else ret & _M32
        ret = self.argo.op_compat(call.vcpu.hvm.domain, cmd, a1, a2, a3, a4, self.token(call), call.ctx)
        if ret is PENDING:
            return ret
        if cmd == Op.SENDV and ret >= 0:
            counters.sent(ret)
        return ret & _M32

    def argo_op(self, call: Call, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """argo_op of a 64-bit caller in kernel mode, by whatever door.  The 64-bit result, or PENDING."""
        hvm = call.vcpu.hvm
        counters = hvm.counters
        counters.hypercalls += 1
        counters.argo_ops += 1
        if self.forward is not None:
            ret = self.carried(self.forward, call, self._level - 1, cmd, a1, a2, a3, a4)
            return ret if ret is PENDING else ret & _M64
        if cmd not in (Op.SENDV, Op.NOTIFY):
            ret = self._ring_op(call, hvm, cmd, a1, a2, a3, a4)
            return ret if ret is PENDING else ret & _M64
        ret = self.argo.op(hvm.domain, cmd, a1, a2, a3, a4, self.token(call), call.ctx)
        if ret is PENDING:
            return ret
        if cmd == Op.SENDV:
            if ret >= 0:
                counters.sent(ret)
            elif ret in ZERO_EXTENDED:
                return ret & _M32
        return ret & _M64

    def carried(self, by: Stolen, call: Call, level: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """argo_op that a hypervisor further out serves, but for what is ours: how our guest is interrupted."""
        if cmd == NotifyOp.SET_NOTIFICATION:
            return call.vcpu.hvm.notification.set_notification(a1, a2, a3)
        self.token(call)
        ret = by(call, level, cmd, a1, a2, a3, a4)
        return ret & _M32 if cmd == Op.SENDV and ret in ZERO_EXTENDED else ret

    def carried_features(self) -> int:
        """The notification modes of a guest whose calls are carried: a ring's own interrupt is none of them."""
        return sum(row.feature for row in MODES if row.name in self.notifications and not row.own_vectors)

    def _ring_op(self, call: Call, hvm: Hvm, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """An operation that may change which interrupt a ring has."""
        domain, chosen, ctx = hvm.domain, hvm.notification, call.ctx
        if cmd in _OURS and not self.argo.enabled:
            return -Errno.EOPNOTSUPP

        def argo(operation: int) -> int:
            return self.argo.op(domain, operation, a1, a2, a3, a4, self.token(call), ctx)

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
        if self.forward is not None:
            return self.carried_features()
        return sum(row.feature for row in MODES if row.name in self.notifications)

    def v4v_call(self, call: Call, op: int, *arguments: int) -> int:
        """A v4v operation; a hypervisor without v4v answers -ENOSYS."""
        call.vcpu.hvm.counters.hypercalls += 1
        if self._v4v is None:
            return -Errno.ENOSYS & _M64
        ret = self._v4v.op(call.vcpu.hvm.domain, op, *arguments, ctx=call.ctx)
        if op in _V4V_SENDS and ret >= 0:
            call.vcpu.hvm.counters.sent(ret)
        return ret & _M64

    def storage_units(self, call: Call) -> tuple[int, ...]:
        """The v4v storage units of the calling guest: those for which the device model has a ring."""
        if self._v4v is None:
            return ()
        domid = call.vcpu.hvm.domain.domid
        model = self._v4v.states.get(self._v4v.options.dm_domid)
        if model is None:
            return ()
        return tuple(unit for unit in range(MAX_UNITS) if model.match(STORAGE_PORT + unit, domid) is not None)

    def token(self, call: Call) -> Vcpu | AsyncCall:
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
        """The instruction was executed; `regs` are the first registers after it.  A call fails as its result says."""
        call.vcpu.chain = not (regs and call.kind in _CALLS and int32(regs[0]) < 0)
        call.vcpu.area.complete(call.seq, _DONE, regs)

    def fault(self, call: Call, vector: int) -> None:
        """The instruction ended in an exception."""
        call.vcpu.chain = False
        call.vcpu.area.complete(call.seq, Outcome.FAULT, (), vector)

    def absent(self, call: Call) -> None:
        """One of our doors was knocked at in a way it does not know: what its hypervisor does without it."""
        resolution = self._doorless.resolve(call.kind, call.selector, call.privilege)
        if self._level:  # a door that was stolen and is absent: the level that took it reflects the exit after all
            taken = self._composed.resolve(call.kind, call.selector, call.privilege)
            more = [max(0, count - old) for count, old in zip(resolution.exits, taken.exits, strict=True)]
            again = [max(0, count - old) for count, old in zip(resolution.resumes, taken.resumes, strict=True)]
            count_levels(call.vcpu.hvm.counters, more, again)
        if 0 <= resolution.level < self._level and resolution.handler not in _OPTIONAL:
            self.outer(resolution.level, call, resolution)
            return
        handler = HANDLERS.get(resolution.handler)
        if handler is None or resolution.handler in _OPTIONAL:
            self.otherwise(call, resolution.otherwise)
        else:
            handler(self, call)

    def cancel(self, call: Call) -> None:
        """The instruction was not executed, and touched nothing."""
        call.vcpu.chain = False
        call.vcpu.area.complete(call.seq, Outcome.CANCELED)

    def all_ones(self, call: Call) -> None:
        """A read that no device answers; one of less than 32 bits replaces part of the register only."""
        ones = (1 << 8 * min(call.size, 8)) - 1
        self.done(call, (ones if call.size >= 4 else call.slots[X86Reg.RAX] | ones,))

    def _undefined(self, call: Call) -> None:
        self.fault(call, Vector.UD if self.personality.arch is Arch.X86_64 else 0)

    def otherwise(self, call: Call, otherwise: Otherwise) -> None:
        """Nobody serves the instruction: what the guest sees."""
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
