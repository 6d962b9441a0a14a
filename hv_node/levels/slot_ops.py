"""DELEGATE and QUERY_ENDPOINT as a guest calls them: arguments, guest memory, answers.  Experimental, not upstream."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from hmx.errno import Errno
from hmx.memory import FAULT
from hmx.slots import (
    DELEGATE,
    QUERY_ENDPOINT,
    Endpoint,
    EndpointFlag,
    SlotOp,
    pack_endpoint,
    parse_delegate,
)
from hv_node.domain import Domain
from hv_node.levels.delegation import Delegation
from hv_node.levels.revocation import Ticket


class Refusal(NamedTuple):
    """What can be wrong with a call, in the order in which it is looked for; DELEGATE goes on in delegation.py."""

    op: SlotOp
    rule: str
    errno: Errno
    note: str


REFUSALS: Final = (
    Refusal(SlotOp.DELEGATE, "superfluous argument", Errno.EINVAL, "a2, a3 and a4 are 0"),
    Refusal(SlotOp.DELEGATE, "structure", Errno.EFAULT, ""),
    Refusal(SlotOp.DELEGATE, "fields", Errno.EINVAL, "an unknown flag, a count over 8, a range that ends early, rest"),
    Refusal(SlotOp.QUERY_ENDPOINT, "superfluous argument", Errno.EINVAL, "a4 is 0"),
    Refusal(SlotOp.QUERY_ENDPOINT, "structure", Errno.EFAULT, ""),
    Refusal(SlotOp.QUERY_ENDPOINT, "fields", Errno.EINVAL, "pad and flags are 0"),
    Refusal(SlotOp.QUERY_ENDPOINT, "not for the caller", Errno.ESRCH, "unknown, or not to be known: one answer"),
    Refusal(SlotOp.QUERY_ENDPOINT, "buffer too small", Errno.EMSGSIZE, ""),
    Refusal(SlotOp.QUERY_ENDPOINT, "buffer", Errno.EFAULT, ""),
)
_ERRNO: Final = {(row.op, row.rule): -int(row.errno) for row in REFUSALS}


class Asked(Protocol):
    """The part of a security policy that has a say in QUERY_ENDPOINT."""

    def query(self, asker: Domain, subject: Domain) -> int:
        """May `asker` know where `subject` lives and what its label is?  0 or a negated errno."""


def delegate(delegation: Delegation, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int) -> Ticket:
    """DELEGATE.  While the ticket is not done, the call is pending; its `ret` is the result."""
    if a2 or a3 or a4:
        return Ticket(_ERRNO[SlotOp.DELEGATE, "superfluous argument"])
    fields = caller.memory.unpack(DELEGATE, ctx, a1)
    if fields is FAULT:
        return Ticket(_ERRNO[SlotOp.DELEGATE, "structure"])
    call = parse_delegate(fields)
    if call is None:
        return Ticket(_ERRNO[SlotOp.DELEGATE, "fields"])
    return delegation.delegate(caller, call)


def query_endpoint(
    delegation: Delegation, judge: Asked, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int
) -> int:
    """QUERY_ENDPOINT: the size of the answer, or a refusal.

    A confined guest may ask about whom it may answer, and is told the label only: where others live is what it must
    not depend on.
    """
    op = SlotOp.QUERY_ENDPOINT
    if a4:
        return _ERRNO[op, "superfluous argument"]
    fields = caller.memory.unpack(QUERY_ENDPOINT, ctx, a1)
    if fields is FAULT:
        return _ERRNO[op, "structure"]
    domid, pad, flags = fields
    if pad or flags:
        return _ERRNO[op, "fields"]
    slots = delegation.slots
    subject = slots.directory.domain(domid) if slots.may_name(caller.domid, domid) else None
    path = slots.directory.path_of(domid)
    if subject is None or path is None or (subject is not caller and judge.query(caller, subject)):
        return _ERRNO[op, "not for the caller"]
    confined = slots.confined(caller.domid)
    far = EndpointFlag(0) if confined or slots.is_local(path) else EndpointFlag.REMOTE
    answer = pack_endpoint(Endpoint("" if confined else "/".join(path), slots.directory.label_of(domid), far))
    if answer is None or len(answer) > a3:
        return _ERRNO[op, "buffer too small"]
    return len(answer) if caller.memory.write(ctx, a2, answer) else _ERRNO[op, "buffer"]
