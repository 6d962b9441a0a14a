"""Reaching a peer that may not be up yet.

Argo tells nobody when a ring appears (a send to a missing one answers ECONNREFUSED), so whoever starts
first has to ask again.  Only that one error is asked again, and the number of attempts is reported.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable, Callable
from typing import TypeVar

from guest_node.guest import Guest

T = TypeVar("T")
FIRST_DELAY = 0.01
LAST_DELAY = 0.2
IMAGE = ".img"


def give_up(guest: Guest, what: str, exc: Exception) -> int:
    """Say why the program ends here, in its log and its report; its exit code, 1."""
    hint = ""
    if isinstance(exc, PermissionError):
        hint = " (to receive from everybody the hypervisor needs `argo: {mac-permissive: true}`; or give `from`)"
    if isinstance(exc, FileNotFoundError) and str(exc.filename).endswith(IMAGE):
        path = posixpath.normpath(str(exc.filename))
        hint = f" (to make one: mke2fs -q -t ext4 -d DIRECTORY {path} 16M, of Debian's e2fsprogs)"
    words = f"{what}: {exc}{hint}"
    guest.log(words)
    guest.result(error=words)
    return 1


async def reach(guest: Guest, attempt: Callable[[], Awaitable[T]], within: float) -> T:
    """What `attempt()` returns; ECONNREFUSED is tried again for `within` seconds, then raised."""
    deadline = guest.time() + within
    delay = FIRST_DELAY
    attempts = 0
    while True:
        attempts += 1
        try:
            result = await attempt()
        except ConnectionRefusedError:
            if guest.time() + delay > deadline:
                guest.log(f"no answer within {within:g} s ({attempts} attempts)")
                raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)
        else:
            guest.result(attempts=attempts)
            return result
