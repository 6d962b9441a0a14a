"""The first code of every node process: puts the process in order, then runs the node's ``main(config)``.

It runs in a child of the forkserver, so everything that nodes import is there already.  The exit code of
`main` becomes that of the process; what `main` raises is an internal error: the traceback goes to the node's
log, one line of it to the file ``crash`` in the node's directory, where the agent looks.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from topologies.agent.preload import Orphaned, die_with_parent

LOG = "log"
CRASH = "crash"
INTERNAL_ERROR = 70
"""Exit code of a node whose own code raised (EX_SOFTWARE of BSD sysexits.h)."""

HOOK_VARIABLE = "ARGOSY_TEST_ENTRY_HOOK"
"""``module:function`` that a test has run in every node before its main."""


def resolve(entry: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, function = entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def redirect_output(log: Path) -> None:
    """Append standard output and error to `log`, line by line; standard input is empty."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(empty, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    os.close(empty)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def run_node(forkserver: int, node_dir: str, entry: str, config: Any) -> None:
    """Target of a node's process; ends it.

    Args:
        forkserver: pid of the forkserver, this process's parent.
        node_dir: the node's directory.
        entry: ``module:function`` of the node's main.
        config: its argument.
    """
    try:
        die_with_parent(forkserver)
    except Orphaned:
        os._exit(INTERNAL_ERROR)  # as quietly as those whom the kernel kills with it
    code = INTERNAL_ERROR
    try:
        redirect_output(Path(node_dir, LOG))
        hook = os.environ.get(HOOK_VARIABLE)
        if hook:
            resolve(hook)()
        code = int(resolve(entry)(config))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        Path(node_dir, CRASH).write_text(f"{type(error).__name__}: {words}" if words else type(error).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code & 0xFF)
