"""The v4v core: the hypercall and the domain events, without I/O (uXen common/v4v.c).

It is given the domains, a sink for its effects, the way to signal a domain, and options, and answers each call with
an int32: 0 or a byte count, or a negated errno.  Calls run one after the other, which is stricter than uXen's lock
per calling domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from hmx.argo.abi import U32_MAX
from hmx.v4v.abi import OPERATIONS, Op
from hv_node.argo.model import Allocation
from hv_node.domain import Domain, DomainTable
from hv_node.effects import Sink
from hv_node.v4v.model import DomainV4v
from hv_node.v4v.notify import notify
from hv_node.v4v.order import refusal
from hv_node.v4v.register import create_ring, register_ring, unregister_ring
from hv_node.v4v.send import send

_GENERIC_PATH: Final = refusal("any", "host outside the system path")
_UNKNOWN: Final = refusal("other", "unknown operation")
_NOT_HOST: Final = refusal("privileged", "caller not the host")

_Handler = Callable[["V4v", Domain, int, int, int, int, int, int], int]


class V4vOptions(NamedTuple):
    """`enabled`: domains get v4v at all; `dm_domid`: the domain that `DOMID_DM` stands for."""

    enabled: bool = True
    dm_domid: int = 0


def _signal(core: V4v, _caller: Domain, _a1: int, _a2: int, _a3: int, a4: int, _a5: int, _ctx: int) -> int:
    """arg4: the domain to signal.  0, whether or not there is such a domain."""
    core.signal_domain(a4)
    return 0


def _without_fifth(handler: Callable[[V4v, Domain, int, int, int, int, int], int]) -> _Handler:
    return lambda core, caller, a1, a2, a3, a4, _a5, ctx: handler(core, caller, a1, a2, a3, a4, ctx)


_HANDLERS: Final[dict[Op, _Handler]] = {
    Op.REGISTER_RING: _without_fifth(register_ring),
    Op.UNREGISTER_RING: _without_fifth(unregister_ring),
    Op.SEND: lambda core, caller, a1, a2, a3, a4, a5, ctx: send(core, caller, a1, a2, a3, a4, a5, ctx, False),
    Op.NOTIFY: _without_fifth(notify),
    Op.SENDV: lambda core, caller, a1, a2, a3, a4, a5, ctx: send(core, caller, a1, a2, a3, a4, a5, ctx, True),
    Op.CREATE_RING: _without_fifth(create_ring),
    Op.SIGNAL: _signal,
}

#: What the hypercall answers to, by number: the handler, and whether it is the host's alone.
_OPERATIONS: Final = {int(row.op): (_HANDLERS[row.op], row.privileged) for row in OPERATIONS if row.built}


class V4v:
    """v4v of one hypervisor.

    `signal(domid)` raises a guest's ISA line 7, or makes the upcall to the host.  `allocate(what)` may answer False:
    memory has run out; None where unused.  `controls(host, target)`: may the host register a ring for `target` by
    its id?
    """

    __slots__ = ("allocate", "controls", "lookup", "options", "signal", "sink", "states", "tokens")

    def __init__(
        self,
        domains: DomainTable,
        sink: Sink,
        options: V4vOptions,
        signal: Callable[[int], None],
        controls: Callable[[Domain, Domain], bool] = lambda host, _target: host.is_control,
    ) -> None:
        self.lookup = domains.lookup
        self.sink = sink
        self.options = options
        self.signal = signal
        self.controls = controls
        self.allocate: Callable[[Allocation], bool] | None = None
        self.states: dict[int, DomainV4v] = {}
        self.tokens: dict[bytes, int] = {}

    def op(
        self,
        caller: Domain,
        cmd: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        *,
        token: object = None,  # noqa: ARG002  (no operation of v4v answers PENDING)
        ctx: int = 0,
        system: bool = True,
    ) -> int:
        """The hypercall: `cmd`, `a4` and `a5` u32 (higher bits are cut off), `a1` to `a3` guest virtual in `ctx`.

        `system`: a call by the host came through its privileged path, as its v4v driver's do.
        """
        host = self.is_host(caller)
        if host and not system:
            return _GENERIC_PATH
        operation = _OPERATIONS.get(cmd & U32_MAX)
        if operation is None:
            return _UNKNOWN
        handler, privileged = operation
        if privileged and not host:
            return _NOT_HOST
        return handler(self, caller, a1, a2, a3, a4 & U32_MAX, a5 & U32_MAX, ctx)

    def is_host(self, domain: Domain) -> bool:
        """Whether `domain` is the one that runs the device models."""
        return domain.is_control

    def state(self, domain: Domain) -> DomainV4v | None:
        """The domain's v4v state; None where v4v is off for it, or it is dying."""
        return self.states.get(domain.domid)

    def resolve(self, token: bytes) -> int | None:
        """The domain whose partner token this is."""
        return self.tokens.get(token)

    def signal_domain(self, domid: int) -> None:
        """Signal a domain, if it has v4v."""
        if domid in self.states:
            self.signal(domid)

    def domain_init(self, domain: Domain, token: bytes | None = None) -> None:
        """A domain was created.  `token`: 16 bytes by which the host may name it; ValueError for others or if taken."""
        if not self.options.enabled:
            return
        if token is not None:
            if len(token) != 16 or token in self.tokens:
                raise ValueError("a partner token has 16 bytes and belongs to one domain")
            self.tokens[token] = domain.domid
        self.states[domain.domid] = DomainV4v(domain, token)

    def domain_kill(self, domain: Domain) -> None:
        """A domain starts dying: its rings go, nobody is signalled; others' rings stay.  Harmless when done before."""
        state = self.states.pop(domain.domid, None)
        if state is None:
            return
        if state.token is not None:
            del self.tokens[state.token]
        for ring in state.in_order:
            state.delete(ring)

    def suspend(self, domain: Domain) -> None:
        """A domain is suspended: its rings become placeholders; guest memory stays as it is."""
        state = self.states.get(domain.domid)
        if state is not None:
            for ring in state.in_order:
                ring.reset()

    def resume(self, domain: Domain) -> None:
        """A domain runs again: it is signalled, so that its driver registers its rings anew."""
        self.signal_domain(domain.domid)
