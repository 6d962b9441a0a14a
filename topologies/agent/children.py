"""The agent's children: one forkserver with the nodes' imports done, and below it one process per node.

A child is watched by two descriptors: its sentinel, a pipe by which the forkserver reports the exit code
after it has reaped the child, and a pidfd, by which it is signalled without hitting a later process with the
same pid, and which says that it is gone even when the forkserver is not there to report.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiprocess
from multiprocess import forkserver as mp_forkserver
from multiprocess import process as mp_process
from multiprocess import resource_tracker as mp_tracker

from topologies.agent import preload
from topologies.agent.entry import CRASH, LOG, run_node

PRELOADED = (
    "topologies.agent.preload",  # first: from here on the forkserver dies with the agent
    "topologies.agent.entry",
    "broker.node",
    "hv_node.node",
    "guest_node.node",
)

KILLED = -int(signal.SIGKILL)
UNREPORTED = 255
"""What multiprocess says when the forkserver went without reporting; a real exit code as well."""

LAST_WORDS = 400
"""Most characters of a log's last line that are repeated elsewhere."""

GONE = -1
"""In place of a pidfd: there is nothing to signal."""

_REPORT_WITHIN = 0.2
"""Seconds that the forkserver has to report a child whose pidfd says that it is gone, or to go itself."""


MOST_DESCRIPTORS = 1 << 16
"""No lab needs more; an unlimited number would make some programs go through all of them."""


def allow_descriptors() -> None:
    """Let this process and its children have as many descriptors as the machine allows.

    A hypervisor holds six for each guest, and the usual soft limit of 1024 is there for programs that call select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class SpawnError(Exception):
    """A process could not be started; the message is for the user."""


@dataclass(slots=True)
class Child:
    """A node's process."""

    name: str
    pid: int
    pidfd: int
    directory: Path
    _process: Any

    @property
    def sentinel(self) -> int:
        """Readable once the forkserver has reported the child's end."""
        return int(self._process.sentinel)

    def status(self) -> int | None:
        """Exit code, or the negated signal number; None while it runs.

        A child whose forkserver died cannot be asked for: it was killed together with it.
        """
        code = self._process.exitcode
        if code is None:
            return None
        return KILLED if code == UNREPORTED and _forkserver_goes() else int(code)

    def wait(self) -> int:
        """The status of a child whose pidfd is readable."""
        end = time.monotonic() + _REPORT_WITHIN
        while time.monotonic() < end:
            code = self.status()
            if code is not None:
                return code
            time.sleep(0.001)
        return KILLED

    def gone(self, within: float) -> bool:
        """Whether the process has ended, or does within so many seconds."""
        if self.pidfd == GONE:
            return True
        poller = select.poll()  # no select(): a lab of many nodes has larger descriptors than it takes
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(within * 1000))

    def signal(self, number: int) -> None:
        """Send a signal; one that is gone already is left alone."""
        if self.pidfd != GONE:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def crash(self) -> str:
        """What the node's own code raised, as one line; empty when nothing."""
        try:
            return (self.directory / CRASH).read_text(errors="replace").strip()
        except OSError:
            return ""

    def last_words(self) -> str:
        """The last line of the node's log."""
        try:
            lines = (self.directory / LOG).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:LAST_WORDS] if lines else ""

    def close(self) -> None:
        """Let go of the descriptors."""
        if self.pidfd != GONE:
            os.close(self.pidfd)
        with contextlib.suppress(ValueError):
            self._process.close()


class Children:
    """Starts nodes from one forkserver."""

    def __init__(self, temporary: Path, preloaded: Sequence[str] = PRELOADED) -> None:
        """Launch the forkserver; it goes on importing while this returns.

        Args:
            temporary: a private directory for the forkserver's own socket.
            preloaded: modules to import there.
        """
        os.environ[preload.AGENT_PID_VARIABLE] = str(os.getpid())
        # Else multiprocess makes a directory of its own, which stays behind when the agent is killed.
        mp_process.current_process()._config["tempdir"] = str(temporary)
        self._context = multiprocess.get_context("forkserver")
        self._context.set_forkserver_preload(list(preloaded))
        mp_forkserver.ensure_running()
        self.forkserver_pid: int = mp_forkserver._forkserver._forkserver_pid
        self.forkserver_pidfd = os.pidfd_open(self.forkserver_pid)

    def forkserver_lives(self) -> bool:
        """Whether the forkserver runs and is not about to be gone."""
        return not _forkserver_goes()

    def spawn(self, name: str, directory: Path, entry: str, config: Any) -> Child:
        """Start a node.

        Raises:
            SpawnError: the forkserver is gone, or there is no room for another process.
        """
        process = self._context.Process(
            target=run_node, args=(self.forkserver_pid, str(directory), entry, config), name=name
        )
        try:
            if not _forkserver_lives():  # else multiprocess would quietly launch another
                raise SpawnError("the forkserver is gone")
            process.start()
        except (OSError, EOFError) as error:
            raise SpawnError(f"the forkserver did not start it ({error})") from error
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            if not isinstance(error, ProcessLookupError):
                raise SpawnError(f"pidfd_open: {error.strerror}") from error
            pidfd = GONE  # ended and reaped between its start and here
        return Child(name, process.pid, pidfd, directory, process)

    def close(self) -> None:
        """End the forkserver, and everything that it left, and wait until they are gone.  May be called
        twice.
        """
        if self.forkserver_pidfd == GONE:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.forkserver_pidfd, signal.SIGKILL)
        os.close(self.forkserver_pidfd)
        self.forkserver_pidfd = GONE
        with contextlib.suppress(OSError, ChildProcessError):
            mp_forkserver._forkserver._stop()
        with contextlib.suppress(OSError, ChildProcessError):
            mp_tracker._resource_tracker._stop()


def _forkserver_goes() -> bool:
    """Whether the forkserver is gone, or will be in a moment: a dying process closes its pipes first."""
    end = time.monotonic() + _REPORT_WITHIN
    while time.monotonic() < end:
        if not _forkserver_lives():
            return True
        time.sleep(0.001)
    return False


def _forkserver_lives() -> bool:
    """Whether the forkserver still runs, without reaping it."""
    pid = mp_forkserver._forkserver._forkserver_pid
    if pid is None:
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
