"""What a guest's vCPUs need from the world around them: a bell in each direction and a way to wait.

Two worlds exist: processes (eventfd, socketpair, asyncio's selector) and the simulation (direct calls, virtual time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Platform(Protocol):
    """The bells of one vCPU."""

    def ring(self) -> None:
        """Wake the hypervisor."""

    def yield_cpu(self) -> None:
        """Let another process (the hypervisor, most likely) run; returns at once if none wants to."""

    def pause(self) -> None:
        """Block the whole guest for about 50 microseconds, bell or no bell."""

    def wait_briefly(self) -> None:
        """Block the whole guest until the hypervisor rings or at most 200 microseconds have passed."""

    def on_bell(self, handler: Callable[[], None]) -> None:
        """Call `handler` from the guest's loop whenever the hypervisor has rung."""
