"""Every refusal of argo_op, in the order in which Xen looks for it (Xen common/argo.c).

Rows of one operation stand in order of precedence: when several apply, the first one is the answer. The
rows of "any" come before those of each operation; "other" is every number that names none. The code takes
its errnos from here when it is imported, so a cell is what a caller gets. `errno` None: the answer belongs
to another table, namely the security module's (hv_node/xsm.py) or the page rules' (hmx/memory.py).

Refusals that only a PV guest could meet (an argument array outside its address range) do not exist here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.errno import Errno


class Refusal(NamedTuple):
    """One check: the operation, what it finds wrong, what it answers, and where Xen makes it."""

    op: str
    rule: str
    errno: Errno | None
    source: str


_DISPATCH: Final = "do_argo_op"
_PAGES: Final = "find_ring_mfns"
_REGISTER: Final = "register_ring"
_UNREGISTER: Final = "unregister_ring"
_SENDV: Final = "sendv"
_INSERT: Final = "ringbuf_insert"
_IOVS: Final = "iov_count"
_REQUEUE: Final = "pending_requeue"
_NOTIFY: Final = "notify"
_ENTRY: Final = "fill_ring_data"

REFUSALS: Final = (
    Refusal("any", "arg3 or arg4 over 32 bits", Errno.EINVAL, _DISPATCH),
    Refusal("any", "Argo off", Errno.EOPNOTSUPP, _DISPATCH),
    Refusal("any", "XSM enable", None, _DISPATCH),
    Refusal("other", "unknown operation", Errno.EOPNOTSUPP, _DISPATCH),
    Refusal("register_ring", "page count over 4096", Errno.EINVAL, _DISPATCH),
    Refusal("register_ring", "unknown flag", Errno.EINVAL, _REGISTER),
    Refusal("register_ring", "structure", Errno.EFAULT, _REGISTER),
    Refusal("register_ring", "length, page count or pad", Errno.EINVAL, _REGISTER),
    Refusal("register_ring", "wildcard without mac-permissive", Errno.EPERM, _REGISTER),
    Refusal("register_ring", "XSM register_any_source", None, _REGISTER),
    Refusal("register_ring", "partner unknown", Errno.ESRCH, _REGISTER),
    Refusal("register_ring", "XSM register_single_source", None, _REGISTER),
    Refusal("register_ring", "memory for send record", Errno.ENOMEM, _REGISTER),
    Refusal("register_ring", "memory for ring record", Errno.ENOMEM, _REGISTER),
    Refusal("register_ring", "caller without Argo", Errno.ENODEV, _REGISTER),
    Refusal("register_ring", "partner without Argo", Errno.ECONNREFUSED, _REGISTER),
    Refusal("register_ring", "too many rings", Errno.ENOSPC, _REGISTER),
    Refusal("register_ring", "ring exists", Errno.EEXIST, _REGISTER),
    Refusal("register_ring", "ring resized", Errno.EEXIST, _REGISTER),
    Refusal("register_ring", "memory for page arrays", Errno.ENOMEM, _PAGES),
    Refusal("register_ring", "page frame array", Errno.EFAULT, _PAGES),
    Refusal("register_ring", "page unfit", None, _PAGES),
    Refusal("register_ring", "ring page mapping", Errno.ENOMEM, _REGISTER),
    Refusal("unregister_ring", "superfluous argument", Errno.EINVAL, _DISPATCH),
    Refusal("unregister_ring", "structure", Errno.EFAULT, _UNREGISTER),
    Refusal("unregister_ring", "pad", Errno.EINVAL, _UNREGISTER),
    Refusal("unregister_ring", "caller without Argo", Errno.ENODEV, _UNREGISTER),
    Refusal("unregister_ring", "no such ring", Errno.ENOENT, _UNREGISTER),
    Refusal("sendv", "addresses", Errno.EFAULT, _DISPATCH),
    Refusal("sendv", "iov count over 8", Errno.EINVAL, _DISPATCH),
    Refusal("sendv", "iov array", Errno.EFAULT, _DISPATCH),
    Refusal("sendv", "address pad", Errno.EINVAL, _SENDV),
    Refusal("sendv", "source is another domain", Errno.EPERM, _SENDV),
    Refusal("sendv", "destination unknown", Errno.ESRCH, _SENDV),
    Refusal("sendv", "XSM send", None, _SENDV),
    Refusal("sendv", "caller without Argo", Errno.ENODEV, _SENDV),
    Refusal("sendv", "destination without Argo", Errno.ECONNREFUSED, _SENDV),
    Refusal("sendv", "no matching ring", Errno.ECONNREFUSED, _SENDV),
    Refusal("sendv", "iov pad", Errno.EINVAL, _IOVS),
    Refusal("sendv", "iov too long", Errno.EINVAL, _IOVS),
    Refusal("sendv", "payload over any ring", Errno.EMSGSIZE, _IOVS),
    Refusal("sendv", "payload over this ring", Errno.EMSGSIZE, _INSERT),
    Refusal("sendv", "ring pages absent", Errno.EINVAL, _INSERT),
    Refusal("sendv", "ring page mapping", Errno.ENOMEM, _INSERT),
    Refusal("sendv", "ring full, too many wait", Errno.EBUSY, _REQUEUE),
    Refusal("sendv", "ring full, memory for waiter", Errno.ENOMEM, _REQUEUE),
    Refusal("sendv", "ring full", Errno.EAGAIN, _SENDV),
    Refusal("sendv", "payload", Errno.EFAULT, _INSERT),
    Refusal("notify", "superfluous argument", Errno.EINVAL, _DISPATCH),
    Refusal("notify", "caller without Argo", Errno.ENODEV, _NOTIFY),
    Refusal("notify", "header", Errno.EFAULT, _NOTIFY),
    Refusal("notify", "more than 256 entries", Errno.EACCES, _NOTIFY),
    Refusal("notify", "entry", Errno.EFAULT, _ENTRY),
    Refusal("notify", "XSM send", None, _ENTRY),
    Refusal("notify", "memory for waiter", Errno.ENOMEM, _ENTRY),
    Refusal("notify", "write-back", Errno.EFAULT, _ENTRY),
)

_BY_NAME: Final = {(row.op, row.rule): row for row in REFUSALS}


def refusal(op: str, rule: str) -> int:
    """The result (negative) of a row whose answer stands in this table."""
    errno = _BY_NAME[op, rule].errno
    if errno is None:
        raise LookupError(f"{op}: {rule}: another table holds the answer")
    return -errno
