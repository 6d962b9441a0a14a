"""What a hypervisor further out answers to a guest of a guest, as far as that can be known here (experimental).

A nested hypervisor executes its guests' instructions in a process of its own.  Where the composition says that one
further out answers, what is constant there is answered at once from that one's tables: leaves, magic numbers, what is
not served.  What needs the state of the nested hypervisor's own domain - its hypercall page, its interrupt controller,
its devices - does not belong to this guest and is not there.  A call of Argo goes to who can carry it further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from hmx.doors import Convention, convention
from hmx.errno import Errno
from hmx.trap import Arch
from hmx.xen import Hypercall
from hv_node.doors.composition import Resolution
from hv_node.doors.handlers import HANDLERS, Call
from hv_node.doors.leaves import DOMID, LEAVES, VCPU
from hv_node.doors.personality import Otherwise, Personality
from hv_node.doors.tables import DOOR, has_own_call
from hv_node.effects import PENDING

if TYPE_CHECKING:
    from hv_node.doors.executor import Executor

Stolen = Callable[[Call, int, int, int, int, int, int], int]
"""`stolen(call, level, cmd, a1, a2, a3, a4)`: argo_op of a guest that called past its own hypervisor.

The int32 result, or PENDING; then the operation completes with `call.vcpu` as its token, or, for a frame with ASYNC,
with `call.vcpu.token`.  Addresses are the guest's, which only its own hypervisor can translate.
"""

_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_ENOSYS: Final = -int(Errno.ENOSYS)
# Handlers that need the state of the domain that the nested hypervisor is.
STATEFUL: Final = frozenset({"hypercall-page", "hyperv-msr", "gic", "pci-config", "uxen-platform"})
# Leaves that would name that domain and its vCPU.
_HIDDEN: Final = frozenset((row.personality, row.leaf) for row in LEAVES if {DOMID, VCPU} & {*row[2:6]})


class Outer:
    """Level `level` around the executor `inner`.  To handlers it is an executor (hv_node/doors/handlers.py)."""

    def __init__(self, inner: Executor, level: int, personality: Personality) -> None:
        self.personality = personality
        self.cpu_name = inner.cpu_name
        self.call_instruction = inner.call_instruction
        self.answer, self.done, self.fault = inner.answer, inner.done, inner.fault
        self.all_ones, self.absent = inner.all_ones, inner.absent
        self._inner = inner
        self._level = level
        door = "hvc" if personality.arch is Arch.AARCH64 else "hypercall"
        own = has_own_call(personality, door)
        self._call = convention(door, personality.arch, speaks=personality.abi) if own else None

    @property
    def own_call(self) -> Convention | None:
        """The convention of its own call, if somebody carries calls further."""
        return None if self._inner.stolen is None else self._call

    def serve(self, call: Call, resolution: Resolution) -> None:
        """Answer an instruction that was resolved to this level."""
        name = resolution.handler
        if name.startswith(DOOR) and self._inner.stolen is None:
            self.absent(call)
        elif name not in HANDLERS or name in STATEFUL:
            self._inner.otherwise(call, resolution.otherwise)
        elif name == "cpuid" and (self.personality.name, call.selector & _M32) in _HIDDEN:
            self._inner.otherwise(call, Otherwise.ZERO)
        else:
            HANDLERS[name](cast("Executor", self), call)

    # -- what handlers call ----

    def hypercall(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """Xen's hypercalls act on the domain that calls: this guest is none of them, but for Argo's."""
        if number == Hypercall.ARGO_OP and self.own_call is not None:
            return self.argo_op(call, cmd, a1, a2, a3, a4)
        call.vcpu.hvm.counters.hypercalls += 1
        return _ENOSYS & _M64

    def hypercall32(self, call: Call, number: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """The same with 32-bit registers; PENDING stays what it is."""
        ret = self.hypercall(call, number, cmd, a1, a2, a3, a4)
        return ret if ret is PENDING else ret & _M32

    def argo_op(self, call: Call, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """argo_op by a door of this level.  The 64-bit result, or PENDING."""
        counters, stolen = call.vcpu.hvm.counters, self._inner.stolen
        counters.hypercalls += 1
        if stolen is None:
            return _ENOSYS & _M64
        counters.argo_ops += 1
        ret = self._inner.carried(stolen, call, self._level, cmd, a1, a2, a3, a4)
        return ret if ret is PENDING else ret & _M64

    def hides_domid(self, domid: int) -> bool:
        """Who is not to know its own id is its own hypervisor's affair."""
        return self._inner.hides_domid(domid)

    def v4v_call(self, call: Call, *_arguments: int) -> int:
        """v4v is not carried further."""
        call.vcpu.hvm.counters.hypercalls += 1
        return _ENOSYS & _M64

    def storage_units(self, _call: Call) -> tuple[int, ...]:
        """It shows this guest no storage."""
        return ()

    def mode_features(self) -> int:
        """How this guest is notified is its own hypervisor's affair."""
        return 0 if self._inner.stolen is None else self._inner.carried_features()
