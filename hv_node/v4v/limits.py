"""How much one v4v call may ask for, so that no guest holds its hypervisor up.  Experimental, not upstream.

uXen takes any number of notify entries and of iovs: the guest's own CPU is busy with them.  Here one process serves
all guests of a hypervisor, one call at a time, so counts are bounded.  A call above a bound is refused before its
first entry is looked at, with the errno that Xen's Argo has for the same mistake, whose own bounds are lower (256
entries, 8 iovs: Xen public/argo.h).  The wake-up pass, which precedes notify's questions, is done all the same.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.errno import Errno


class Limit(NamedTuple):
    """The most that a call of `op` may have of something, and what it answers above."""

    op: str
    what: str
    most: int
    errno: Errno
    source: str


LIMITS: Final = (
    Limit("notify", "entries", 1024, Errno.EACCES, "experimental; Xen common/argo.c notify: -EACCES over 256"),
    Limit("sendv", "iovs", 1024, Errno.EINVAL, "experimental; Xen common/argo.c sendv: -EINVAL over 8"),
)

_BY_OP: Final = {row.op: row for row in LIMITS}


def limit(op: str) -> tuple[int, int]:
    """The bound of an operation, and the (negative) result above it."""
    row = _BY_OP[op]
    return row.most, -row.errno
