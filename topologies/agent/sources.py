"""What the agent's loop waits for: descriptors, and what is done when one of them moves."""

from __future__ import annotations

import contextlib
import selectors
from collections.abc import Callable


class Sources:
    """A selector whose keys are their handlers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, handler)

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
