"""What the agent's loop waits for: descriptors, and what is done when one of them moves."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Callable
from typing import Final

_CAUGHT: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ASKS: Final = frozenset({signal.SIGTERM, signal.SIGINT})  # an agent has no terminal that could hang up


class Sources:
    """A selector whose keys are their handlers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, handler)

    def watch_signals(self, asked_to_leave: Callable[[str], None]) -> None:
        """Call `asked_to_leave(name of the signal)` in a turn after SIGTERM or SIGINT; SIGHUP is survived."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in _CAUGHT:
            signal.signal(number, lambda _number, _frame: None)

        def on_signal() -> None:
            for number in os.read(read, 64):
                if number in _ASKS:
                    asked_to_leave(signal.Signals(number).name)

        self.watch(read, on_signal)

    def watch_for_room(self, fd: int, handler: Callable[[], None]) -> None:
        """From now on call `handler` whenever `fd`, which is watched, is writable."""
        self._selector.modify(fd, selectors.EVENT_WRITE, handler)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; one that is not watched, or closed, is no error."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def serve(self, timeout: float) -> None:
        """Wait at most so many seconds, and call the handlers of what moved."""
        for key, _events in self._selector.select(timeout):
            key.data()
