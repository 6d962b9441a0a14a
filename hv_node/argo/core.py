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
_NOTIFY: Final = int(Op.NOTIFY)

# All operations but sendv and notify: (core, caller, arg1, arg2, arg3, arg4, ctx).
_OPERATIONS: Final[dict[int, Callable[[Argo, Domain, int, int, int, int, int], int]]] = {
    Op.REGISTER_RING: register_ring,
    Op.UNREGISTER_RING: unregister_ring,
}

# (source, destination, destination's port, source's port): 0 or a negated errno
SendTo = Callable[[Domain, Domain, int, int | None], int]
# (caller, source port, domid, port, message type, iovs, ctx, token): a result or PENDING
Implicit = Callable[[Domain, int, int, int, int, tuple[int, ...], int, object], int]
# (caller, operation, arg1, arg2, arg3, arg4, ctx, token): a result or PENDING; None: it knows no such operation
Others = Callable[[Domain, int, int, int, int, int, int, object], "int | None"]


class Argo:
    """Argo of one hypervisor.

    `on_payload_written(ring)` runs when a message lies in the ring and its tx_ptr is not yet published;
    `on_notify_window(ring)` between the two sections of notify's job A, when the room has been measured and
    the waiters have not been scanned. `allocate(what)` may answer False: memory has run out. None where
    unused.

    Experimental, not upstream, None where unused: `implicit` has the result of a sendv to an id that is nobody's;
    `implicit_query(caller, domid, port)` finds (domain, port) for an entry of notify about such an id, or (None, port);
    `on_uplink(caller, payload, message_type)` takes what a nested hypervisor sends upwards; `on_reset(domain)` hears of
    soft resets; `others` has operations that Xen does not know. `through` goes into the envelope of a sendv to another
    hypervisor as its `op`.
    """

    __slots__ = (
        "allocate",
        "enabled",
        "implicit",
        "implicit_query",
        "lookup",
        "loud",
        "mac_permissive",
        "on_notify_window",
        "on_payload_written",
        "on_reset",
        "on_uplink",
        "others",
        "permissive",
        "send_to",
        "sink",
        "through",
        "xsm",
    )

    def __init__(self, domains: DomainTable, xsm: Xsm, sink: Sink, options: ArgoOptions) -> None:
        self.lookup = domains.lookup
        self.set_xsm(xsm)
        self.sink = sink
        self.enabled = options.enabled
        self.mac_permissive = options.mac_permissive
        self.on_payload_written: Callable[[Ring], None] | None = None
        self.on_notify_window: Callable[[Ring], None] | None = None
        self.allocate: Callable[[Allocation], bool] | None = None
        self.implicit: Implicit | None = None
        self.implicit_query: Callable[[Domain, int, int], tuple[Domain | None, int]] | None = None
        self.on_uplink: Callable[[Domain, bytes, int], int] | None = None
        self.on_reset: Callable[[Domain], None] | None = None
        self.others: Others | None = None
        self.through = _SENDV

    def set_xsm(self, xsm: Xsm) -> None:
        """Another security module decides from now on; what was allowed before is not looked at again.

        One that has `send_to(source, destination, port, source port or None)` is asked that instead of `send`.  One
        whose `loud` is False tells of its denials itself.
        """
        self.xsm = xsm
        self.loud: bool = getattr(xsm, "loud", True)
        self.permissive = xsm.permissive
        by_port: SendTo | None = getattr(xsm, "send_to", None)
        self.send_to: SendTo = by_port or (lambda source, destination, *_: xsm.send(source, destination))

    def op(
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
        """argo_op of a 64-bit caller: `cmd` u32, arguments u64, pointers guest virtual in `ctx`.

        PENDING: the sink completes `token` later.
        """
        if a3 > U32_MAX or a4 > U32_MAX:
            return _BIG
        if not self.enabled:
            return _OFF
        if not self.permissive:
            denied = self.xsm.enable(caller)
            if denied:
                return denied
        if cmd == _SENDV:
            return sendv(self, caller, a1, a2, a3, a4, ctx, IOV_ARRAYS, token)
        if cmd == _NOTIFY:
            return notify(self, caller, a1, a2, a3, a4, ctx, token)
        operation = _OPERATIONS.get(cmd)
        if operation is None:
            found = None if self.others is None else self.others(caller, cmd, a1, a2, a3, a4, ctx, token)
            return _UNKNOWN if found is None else found
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
        return sendv(self, caller, a1, a2, a3, a4, ctx, IOV_COMPAT_ARRAYS, token)

    def domain_init(self, domain: Domain) -> None:
        """A domain was created and entered into the table."""
        lifecycle.domain_init(self, domain)

    def domain_kill(self, domain: Domain) -> None:
        """A domain starts dying, or its last reference goes: harmless when done before."""
        lifecycle.domain_kill(self, domain)

    def soft_reset(self, domain: Domain) -> None:
        """A domain is reset without being destroyed."""
        lifecycle.soft_reset(self, domain)
        if self.on_reset is not None:
            self.on_reset(domain)
