"""The provider `local`: this machine.

The first such host of a topology is the leader's own and needs no provider.  Every further one gets an agent of its own
here, so that a lab for several machines can be tried on one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from topologies.hosts.provider import HostProvider, Way, start


class LocalProvider(HostProvider):
    """Starts processes on this machine."""

    same_machine = True
    _closed = False

    def connect(self) -> None:
        """There is nothing to open."""
        self._started: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def poll(self) -> Way:
        """It is always open, until it is closed."""
        return Way.CLOSED if self._closed else Way.OPEN

    def wait(self, timeout: float) -> bool:  # noqa: ARG002 - nothing but `kill` closes it
        """Whether it was closed."""
        return self._closed

    def launch(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start Python here."""
        process = start(self.command(arguments))
        self._started.append(process)
        return process

    def signal(self, pid: int, number: int) -> None:
        """Directly."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self) -> None:
        """Close the pipes of everything that was started."""
        self._closed = True
        for process in self._started:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def command(self, arguments: Sequence[str], *, terminal: bool = False) -> list[str]:  # noqa: ARG002 - it has one
        """Python with `arguments`."""
        return [self.host.python or sys.executable, *arguments]
