"""Work for an event loop's next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def once(loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> Callable[[], None]:
    """A function that has `action` run in the loop's next turn, once however often it is called before."""
    scheduled = False

    def run() -> None:
        nonlocal scheduled
        scheduled = False
        action()

    def schedule() -> None:
        nonlocal scheduled
        if not scheduled:
            scheduled = True
            loop.call_soon(run)

    return schedule
