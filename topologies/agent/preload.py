"""Imported by the forkserver before anything else: ties its life to the agent's.

The forkserver notices the death of its creator by the end of a pipe, but every child it forks holds that
pipe open as well, so the children would keep it, and themselves, alive.  Therefore the kernel is asked to
kill it together with the agent (PR_SET_PDEATHSIG); each child asks the same with respect to the forkserver
(:mod:`topologies.agent.entry`).
"""

from __future__ import annotations

import ctypes
import os
import signal

AGENT_PID_VARIABLE = "ARGOSY_AGENT_PID"
"""Environment variable by which the agent tells its forkserver who it is."""

PR_SET_PDEATHSIG = 1
"""Linux uapi linux/prctl.h."""


class Orphaned(RuntimeError):
    """The parent had gone before its death could be noticed."""


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, process `parent`, is gone.

    Raises:
        OSError: prctl failed.
        Orphaned: `parent` was gone already, so no signal would ever come.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:
        raise Orphaned(f"parent {parent} is gone")


def _tie_forkserver() -> None:
    agent = os.environ.get(AGENT_PID_VARIABLE)
    if agent is None or int(agent) == os.getpid():
        return  # imported by the agent itself, or by a test
    try:
        die_with_parent(int(agent))
    except Orphaned:
        os._exit(1)


_tie_forkserver()
