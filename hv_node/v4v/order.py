"""Every refusal of the v4v hypercall, in the order in which uXen looks for it (uXen common/v4v.c).

Rows of one operation stand in order of precedence.  "any" comes before every operation, "other" is every number that
names none or that is not built in, "privileged" is asked of those that only the host may call.  A row without an errno
refers to "channel": who may speak to whom.  The code takes its errnos from here when it is imported.

Handles outside a domain's address range, which only a PV guest could pass, are not modelled.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.errno import Errno


class Refusal(NamedTuple):
    """One check: the operation, what it finds wrong, what it answers, and where uXen makes it."""

    op: str
    rule: str
    errno: Errno | None
    source: str


_DISPATCH: Final = "do_v4v_op"
_CHANNEL: Final = "validate_channel"
_REMOTE: Final = "rcu_lock_remote_target_domain_by_id"
_ADD: Final = "ring_add"
_PAGES: Final = "find_ring_mfns"
_REMOVE: Final = "ring_remove"
_CREATE: Final = "ring_create"
_SEND: Final = "send"
_INSERT: Final = "ringbuf_insert"
_IOVS: Final = "iov_count"
_NOTIFY: Final = "notify"
_ENTRY: Final = "fill_ring_data"

REFUSALS: Final = (
    Refusal("any", "host outside the system path", Errno.EPERM, _DISPATCH),
    Refusal("other", "unknown operation", Errno.ENOSYS, _DISPATCH),
    Refusal("privileged", "caller not the host", Errno.EPERM, _CREATE),
    Refusal("channel", "guest names another than the device model", Errno.EPERM, _CHANNEL),
    Refusal("channel", "reserved id", Errno.ENOENT, _CHANNEL),
    Refusal("channel", "domain to control unknown", Errno.ESRCH, _REMOTE),
    Refusal("channel", "domain not controlled", Errno.EPERM, _REMOTE),
    Refusal("register_ring", "ring address unaligned", Errno.EINVAL, _ADD),
    Refusal("register_ring", "caller without v4v", Errno.EINVAL, _ADD),
    Refusal("register_ring", "ring header", Errno.EFAULT, _ADD),
    Refusal("register_ring", "ring magic", Errno.EINVAL, _ADD),
    Refusal("register_ring", "length under 48 or unaligned", Errno.EINVAL, _ADD),
    Refusal("register_ring", "length over 16 MiB", Errno.EINVAL, _ADD),
    Refusal("register_ring", "partner token", Errno.EFAULT, _ADD),
    Refusal("register_ring", "partner token unknown", Errno.ENOENT, "resolve_token"),
    Refusal("register_ring", "channel", None, _CHANNEL),
    Refusal("register_ring", "write-back of id", Errno.EFAULT, _ADD),
    Refusal("register_ring", "write-back of tx", Errno.EFAULT, _ADD),
    Refusal("register_ring", "memory for ring record", Errno.ENOMEM, _ADD),
    Refusal("register_ring", "ring exists", Errno.EEXIST, _ADD),
    Refusal("register_ring", "page list", Errno.EFAULT, _PAGES),
    Refusal("register_ring", "page list magic", Errno.EINVAL, _PAGES),
    Refusal("register_ring", "fewer pages than the length", Errno.EINVAL, _PAGES),
    Refusal("register_ring", "more than 4096 pages", Errno.EINVAL, _PAGES),
    Refusal("register_ring", "memory for page arrays", Errno.ENOMEM, _PAGES),
    Refusal("register_ring", "page number", Errno.EFAULT, _PAGES),
    Refusal("register_ring", "page unfit", Errno.EINVAL, "find_ring_mfn"),
    Refusal("unregister_ring", "caller without v4v", Errno.EINVAL, _REMOVE),
    Refusal("unregister_ring", "ring header", Errno.EFAULT, _REMOVE),
    Refusal("unregister_ring", "ring magic", Errno.EINVAL, _REMOVE),
    Refusal("unregister_ring", "channel", None, _CHANNEL),
    Refusal("unregister_ring", "no such ring", Errno.ENOENT, _REMOVE),
    Refusal("send", "source address", Errno.EFAULT, _DISPATCH),
    Refusal("send", "destination address", Errno.EFAULT, _DISPATCH),
    Refusal("send", "caller without v4v", Errno.EINVAL, _SEND),
    Refusal("send", "channel", None, _CHANNEL),
    Refusal("send", "destination unknown or without v4v", Errno.ECONNREFUSED, _SEND),
    Refusal("send", "no matching ring", Errno.ECONNREFUSED, _SEND),
    Refusal("send", "placeholder", Errno.EAGAIN, _INSERT),
    Refusal("send", "iov", Errno.EFAULT, _IOVS),
    Refusal("send", "iov over 16 MiB", Errno.EINVAL, _IOVS),
    Refusal("send", "payload over 16 MiB", Errno.EINVAL, _IOVS),
    Refusal("send", "payload over this ring", Errno.EMSGSIZE, _INSERT),
    Refusal("send", "ring pages absent", Errno.EFAULT, "ring_map_page"),
    Refusal("send", "ring full, memory for waiter", Errno.ENOMEM, _SEND),
    Refusal("send", "ring full", Errno.EAGAIN, _INSERT),
    Refusal("send", "payload", Errno.EFAULT, _INSERT),
    Refusal("notify", "caller without v4v", Errno.ENODEV, _NOTIFY),
    Refusal("notify", "magic unreadable", Errno.EFAULT, _NOTIFY),
    Refusal("notify", "magic", Errno.EINVAL, _NOTIFY),
    Refusal("notify", "header", Errno.EFAULT, _NOTIFY),
    Refusal("notify", "entry", Errno.EFAULT, _ENTRY),
    Refusal("notify", "channel", None, _CHANNEL),
    Refusal("notify", "write-back", Errno.EFAULT, _ENTRY),
    Refusal("create_ring", "ring id", Errno.EFAULT, _CREATE),
    Refusal("create_ring", "channel", None, _CHANNEL),
    Refusal("create_ring", "owner unknown or without v4v", Errno.ENOENT, _CREATE),
    Refusal("create_ring", "memory for ring record", Errno.ENOMEM, _CREATE),
)

_BY_NAME: Final = {(row.op, row.rule): row for row in REFUSALS}


def refusal(op: str, rule: str) -> int:
    """The result (negative) of a row whose answer stands in this table."""
    errno = _BY_NAME[op, rule].errno
    if errno is None:
        raise LookupError(f"{op}: {rule}: the rows of another operation hold the answer")
    return -errno
