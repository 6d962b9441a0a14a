"""What a level answers to a request that it did not execute.  Experimental, not upstream.

A notice is a RESULT whose `op` is 0, which no request has; `ret` is one of the numbers below.  It speaks of one copy
of a request, the one whose cookie it repeats, and says that this copy was never executed and never will be.  The
fabric's own router says the same in RESULTs from ("broker",).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.errno import Errno

NOTICE_OP: Final = 0  # `op` of a RESULT that is none


class Notice(NamedTuple):
    """One reason, and what the origin of the request does about it.

    Attributes:
        rule: What was found.
        errno: `ret`, negated.
        final: No other copy can fare better: the operation ends.
        down: The way is interrupted; the link timeout counts from here.
        running: The far side has the operation; there is no hurry to ask again.
    """

    rule: str
    errno: Errno
    final: bool
    down: bool
    running: bool = False


NOTICES: Final = (
    Notice("way down", Errno.ENOTCONN, final=False, down=True),
    Notice("no such hypervisor", Errno.ECONNREFUSED, final=True, down=False),
    Notice("no room on the way", Errno.EAGAIN, final=False, down=False),
    Notice("another copy is being executed", Errno.EINPROGRESS, final=False, down=False, running=True),
    Notice("fenced", Errno.ECANCELED, final=True, down=False),
)
BY_RET: Final = {-int(row.errno): row for row in NOTICES}
_BY_RULE: Final = {row.rule: row for row in NOTICES}

# What the router refuses without saying which copy: none of them was forwarded by it.
ROUTER: Final = ("broker",)
ROUTER_NOTICES: Final = {
    -int(Errno.ECONNREFUSED): _BY_RULE["way down"],  # not joined, or gone: the peer's state tells which
    -int(Errno.EAGAIN): _BY_RULE["no room on the way"],
}


def notice(rule: str) -> int:
    """The `ret` of a row."""
    return -int(_BY_RULE[rule].errno)
