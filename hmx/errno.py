"""Error numbers of the hypervisor interface.

Xen fixes its own list in public/errno.h, independent of the guest's operating system; for the values used
here it equals Linux's generic list. A hypercall reports an error as the negated number, and a guest reads
the result as int32.
"""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """Xen's error numbers (public/errno.h), positive; a call returns `-Errno.X`."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EIO = 5
    E2BIG = 7
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENOTTY = 25
    ENOSPC = 28
    EPIPE = 32
    ENOSYS = 38
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    ECONNRESET = 104
    EISCONN = 106
    ENOTCONN = 107
    ETIMEDOUT = 110
    ECONNREFUSED = 111
    EINPROGRESS = 115
    ECANCELED = 125


def describe(result: int) -> str:
    """A result of a call for people: `0`, `64`, `-EAGAIN`, or the bare number of an unknown error."""
    if result >= 0:
        return str(result)
    try:
        return f"-{Errno(-result).name}"
    except ValueError:
        return str(result)
