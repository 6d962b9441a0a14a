"""Ctrl-C, once: the first one is answered, and whoever repeats it changes nothing.

The way out takes a bounded time, and what it leaves behind must not depend on when somebody lost patience.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # whoever is quick meets Python's own answer to Ctrl-C: nothing is imported that can wait
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
"""All of them count as Ctrl-C; the alarm is one that was put off."""

AGAIN_S = 0.01
PUT_OFF_AT_MOST = 300
"""So often, for a module that never ends."""

_SWALLOWING = ("<frozen importlib._bootstrap>", "/pydantic/")
"""Files whose functions do not pass on what is raised in those that they call.

Imports: importlib's own callbacks, and packages that try one module, then another.  Models: what a function of theirs
raises becomes an error of the model's.
"""

_put_off = 0


def interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once, and not where it may be swallowed: nobody would hear of it again."""
    global _put_off
    if _put_off < PUT_OFF_AT_MOST and _is_swallowed(frame):
        _put_off += 1
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    hear_no_more()
    raise KeyboardInterrupt


def _is_swallowed(frame: FrameType | None) -> bool:
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _SWALLOWING):
            return True
        frame = frame.f_back
    return False


def hear_no_more() -> None:
    """From now on none of them does anything; processes that are started on the way out are not made deaf by it."""
    for number in INTERRUPTING:
        signal.signal(number, _heard)


def _heard(_number: int, _frame: FrameType | None) -> None:
    """It was answered already."""
