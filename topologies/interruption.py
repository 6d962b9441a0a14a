"""Ctrl-C, once: the first one is answered, and whoever repeats it changes nothing.

The way out takes a bounded time, and what it leaves behind must not depend on when somebody lost patience.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # whoever is quick meets Python's own answer to Ctrl-C: nothing is imported that can wait
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""All three count as Ctrl-C."""


def hear_no_more() -> None:
    """From now on none of them does anything; processes that are started on the way out are not made deaf by it."""
    for number in INTERRUPTING:
        signal.signal(number, _heard)


def _heard(_number: int, _frame: FrameType | None) -> None:
    """It was answered already."""
