"""Whether a silent back end of VirtIO-Argo lives.  Experimental, docs/virtio-argo.md.

Nobody signals that a ring, or whoever owned it, is gone.  While something is under way and nothing is heard, the back
end is asked; whoever has nothing under way asks nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from guest_node.virtio.frontend import DeviceBroken


class Pulse:
    """`ask()` after `after` seconds in which `heard()` (a count) stayed the same, while `concerned()`."""

    def __init__(
        self,
        after: float,
        concerned: Callable[[], bool],
        heard: Callable[[], int],
        ask: Callable[[], Awaitable[object]],
    ) -> None:
        self._after = after
        self._concerned = concerned
        self._heard = heard
        self._ask = ask
        self._before = 0
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Something is under way."""
        if self._timer is None:
            self._before = self._heard()
            self._timer = asyncio.get_running_loop().call_later(self._after, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._concerned():
            if self._heard() == self._before:
                self.ask()
            self.start()

    def ask(self) -> None:
        """Ask now, unless a question is on its way."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._question())

    async def _question(self) -> None:
        try:
            await self._ask()
        except DeviceBroken:
            pass  # everybody who waits was told
        finally:
            self._asking = None

    def stop(self) -> None:
        """Ask no more."""
        for pending in (self._timer, self._asking):
            if pending is not None:
                pending.cancel()
        self._timer = None
