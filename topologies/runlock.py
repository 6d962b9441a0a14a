"""The lock of a run directory: who holds it has the lab, and its file says who that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from topologies.basedir import RunDirError

LOCK = "lock"


class Holder(NamedTuple):
    """Who holds a lab's lock: pid of the agent (0 when it has not written yet) and since when (seconds,
    epoch).
    """

    pid: int
    since: float

    def words(self) -> str:
        """The holder as a person reads it."""
        if not self.pid:
            return "another agent that is just starting"
        return f"agent pid {self.pid}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


class LabBusy(RunDirError):
    """Another agent holds the lab's lock."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        super().__init__(f"{path} belongs to a running lab ({holder.words()})")


def read_holder(path: Path) -> Holder:
    """What the lock file of the run directory `path` says about its holder."""
    try:
        found = json.loads((path / LOCK).read_text())
        return Holder(int(found["pid"]), float(found["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, 0.0)


def take_lock(path: Path) -> int:
    """Take the flock of run directory `path`; the descriptor holds it until closed."""
    file = path / LOCK
    while True:
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunDirError(f"{file} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LabBusy(path, read_holder(path)) from None
        except OSError as error:
            os.close(fd)
            raise RunDirError(f"{file} cannot be locked: {error.strerror}") from error
        # A holder that leaves removes the file before it lets go: then this is the lock of a file that is
        # gone.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.lstat(file)):
                return fd
        os.close(fd)


def lock_is_held(path: Path) -> bool:
    """Whether somebody holds the lock of run directory `path`."""
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
