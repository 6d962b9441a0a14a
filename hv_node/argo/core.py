"""The Argo core: argo_op and the domain events, without I/O (Xen common/argo.c).

It is given the domains, the security module, a sink for its effects and the boot options, and answers each
call with an int32: 0 or a byte count, or a negated errno. Calls run one after the other, which is one of
the orders that Xen's locks permit. Two hooks let a test store to guest memory where a real guest could do
so in the middle of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hmx.argo.abi import IOV_ARRAYS, IOV_COMPAT_ARRAYS, U32_MAX, Op
from hv_node.argo import lifecycle
from hv_node.argo.model import Allocation, Ring
from hv_node.argo.notify import notify
from hv_node.argo.options import ArgoOptions
from hv_node.argo.order import refusal
from hv_node.argo.register import register_ring, unregister_ring
from hv_node.argo.sendv import sendv
from hv_node.domain import Domain, DomainTable
from hv_node.effects import Sink
from hv_node.xsm import Xsm

_BIG: Final = refusal("any", "arg3 or arg4 over 32 bits")
_OFF: Final = refusal("any", "Argo off")
_UNKNOWN: Final = refusal("other", "unknown operation")
_SENDV: Final = int(Op.SENDV)

# All operations but sendv: (core, caller, arg1, arg2, arg3, arg4, ctx).
_OPERATIONS: Final[dict[int, Callable[[Argo, Domain, int, int, int, int, int], int]]] = {
    Op.REGISTER_RING: register_ring,
    Op.UNREGISTER_RING: unregister_ring,
    Op.NOTIFY: notify,
}


class Argo:
    """Argo of one hypervisor.

    `on_payload_written(ring)` runs when a message lies in the ring and its tx_ptr is not yet published;
    `on_notify_window(ring)` between the two sections of notify's job A, when the room has been measured and
    the waiters have not been scanned. `allocate(what)` may answer False: memory has run out. None where
    unused.
    """

    __slots__ = (
        "allocate",
        "enabled",
        "lookup",
        "mac_permissive",
        "on_notify_window",
        "on_payload_written",
        "permissive",
        "sink",
        "xsm",
    )

    def __init__(self, domains: DomainTable, xsm: Xsm, sink: Sink, options: ArgoOptions) -> None:
        self.lookup = domains.lookup
        self.xsm = xsm
        self.permissive = xsm.permissive
        self.sink = sink
        self.enabled = options.enabled
        self.mac_permissive = options.mac_permissive
        self.on_payload_written: Callable[[Ring], None] | None = None
        self.on_notify_window: Callable[[Ring], None] | None = None
        self.allocate: Callable[[Allocation], bool] | None = None

    def op(
        self,
        caller: Domain,
        cmd: int,
        a1: int,
        a2: int,
        a3: int,
        a4: int,
        token: object = None,  # noqa: ARG002  (an operation that answers PENDING completes it)
        ctx: int = 0,
    ) -> int:
        """argo_op of a 64-bit caller: `cmd` u32, arguments u64, pointers guest virtual in `ctx`."""
        if a3 > U32_MAX or a4 > U32_MAX:
            return _BIG
        if not self.enabled:
            return _OFF
        if not self.permissive:
            denied = self.xsm.enable(caller)
            if denied:
                return denied
        if cmd == _SENDV:
            return sendv(self, caller, a1, a2, a3, a4, ctx, IOV_ARRAYS)
        operation = _OPERATIONS.get(cmd)
        if operation is None:
            return _UNKNOWN
        return operation(self, caller, a1, a2, a3, a4, ctx)

    def op_compat(
        self,
        caller: Domain,
        cmd: int,
        a1: int,
        a2: int,
        a3: int,
        a4: int,
        token: object = None,
        ctx: int = 0,
    ) -> int:
        """argo_op of a 32-bit x86 caller: the low halves of the arguments, 12-byte iovs; all else is the same."""
        a1, a2, a3, a4 = a1 & U32_MAX, a2 & U32_MAX, a3 & U32_MAX, a4 & U32_MAX
        if cmd != _SENDV:
            return self.op(caller, cmd, a1, a2, a3, a4, token, ctx)
        if not self.enabled:
            return _OFF
        if not self.permissive:
            denied = self.xsm.enable(caller)
            if denied:
                return denied
        return sendv(self, caller, a1, a2, a3, a4, ctx, IOV_COMPAT_ARRAYS)

    def domain_init(self, domain: Domain) -> None:
        """A domain was created and entered into the table."""
        lifecycle.domain_init(self, domain)

    def domain_kill(self, domain: Domain) -> None:
        """A domain starts dying, or its last reference goes: harmless when done before."""
        lifecycle.domain_kill(self, domain)

    def soft_reset(self, domain: Domain) -> None:
        """A domain is reset without being destroyed."""
        lifecycle.soft_reset(self, domain)
