"""The run directory of a lab: its lock, its state, its logs.

===========================  =====================================================================
``lock``                     flock held by the lab's agent for as long as it lives; names the holder
``state.json``               what runs, replaced as a whole at every change
``topology.resolved.yaml``   the topology as it was launched
``agent.log``                what agent and forkserver had to say
``nodes/<n>/log``            standard output and error of a node
``nodes/<n>/events.jsonl``   what happened to a node
``sockets``                  link to the socket directory, while the lab lives
``keys/``                    the lab's keys, while it lives, if it has hosts beside this one
===========================  =====================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topologies import basedir
from topologies.basedir import RESERVED_NAME, RunDirError, private_directory
from topologies.runlock import LOCK, Holder, take_lock
from topologies.sockdir import BACK_LINK, remove_socket_directory

STATE, SOCKETS, NODES, KEYS = "state.json", "sockets", "nodes", "keys"
RESOLVED, AGENT_LOG = "topology.resolved.yaml", "agent.log"
CONTROL_SOCKET = "control"
"""In the socket directory: where the agent listens."""

_FRESH = ".new"
_OWN_ENTRIES = frozenset(
    {LOCK, STATE, STATE + _FRESH, SOCKETS, NODES, KEYS, RESOLVED, RESOLVED + _FRESH, AGENT_LOG}
)


@dataclass(slots=True)
class RunDirectory:
    """A run directory whose lock this process holds."""

    path: Path
    sockets: Path | None
    holder: Holder
    _lock_fd: int

    @classmethod
    def take(cls, path: Path, sockets: Path | None) -> RunDirectory:
        """Lock the run directory `path`, made if need be; clear what an earlier run left, link the sockets.

        A lab without processes has no `sockets`.

        Raises:
            LabBusy: another agent holds it.
            RunDirError: it cannot be used, or holds files that are not a lab's.
        """
        if path.parent == basedir.base_path():
            basedir.base_directory()
        private_directory(path)
        foreign = sorted(set(_entries(path)) - _OWN_ENTRIES)
        if foreign and not (path / STATE).exists():
            words = f"{path} holds files that are no lab's ({foreign[0]}): give an empty directory"
            raise RunDirError(words)
        fd = take_lock(path)
        holder = Holder(os.getpid(), time.time())
        taken = cls(path, sockets, holder, fd)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder._asdict()).encode(), 0)
            taken._clear()
            if sockets is not None:
                os.symlink(sockets, path / SOCKETS)
                os.symlink(path, sockets / BACK_LINK)
            (path / NODES).mkdir(0o700)
        except OSError as error:
            taken.release()
            raise RunDirError(f"{path} cannot be used: {error.strerror}") from error
        return taken

    def _clear(self) -> None:
        """Remove what an earlier run recorded, and the sockets of an agent that was killed."""
        link = self.path / SOCKETS
        if link.is_symlink():
            remove_socket_directory(Path(os.readlink(link)))
            link.unlink()
        shutil.rmtree(self.path / NODES, ignore_errors=True)
        shutil.rmtree(self.path / KEYS, ignore_errors=True)
        for name in (STATE, RESOLVED, AGENT_LOG):
            (self.path / name).unlink(missing_ok=True)

    def node_directory(self, node: str) -> Path:
        """``nodes/<node>``, made."""
        path = self.path / NODES / node
        path.mkdir(0o700, exist_ok=True)
        return path

    def write_resolved(self, text: str) -> None:
        """Keep the topology as it was launched."""
        _write_atomically(self.path / RESOLVED, text)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace state.json as a whole: a reader sees the old one or the new one."""
        _write_atomically(self.path / STATE, json.dumps(state, indent=1) + "\n")

    def release(self) -> None:
        """Remove what only a living lab has (sockets, link, lock); logs, state and results stay."""
        if self._lock_fd < 0:
            return
        shutil.rmtree(self.path / KEYS, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / SOCKETS).unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1


def release_abandoned(path: Path) -> list[Path]:
    """Remove the lock and the link of run directory `path` when nobody holds the lock; what was removed.

    Logs, state and results stay.  A lock that is held, or is not ours, is left alone, and the link with it.
    """
    lock, link = path / LOCK, path / SOCKETS
    removed = []
    try:
        if os.lstat(path).st_uid != os.geteuid():
            return []
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = -1
    except OSError:
        return []
    try:
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A link without a lock is that of a lab that just ended, unless it leads nowhere.
        if link.is_symlink() and (fd >= 0 or not link.exists()):
            link.unlink()
            removed.append(link)
        if fd >= 0:
            shutil.rmtree(path / KEYS, ignore_errors=True)
            lock.unlink()
            removed.append(lock)
    except OSError:
        pass
    finally:
        if fd >= 0:
            os.close(fd)
    return removed


def _entries(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from error


def _write_atomically(path: Path, text: str) -> None:
    # One writer only, the agent: a fixed name for the new copy is enough and leaves at most one behind.
    fresh = path.with_name(path.name + _FRESH)
    fresh.write_text(text)
    os.replace(fresh, path)


def read_state(path: Path) -> dict[str, Any] | None:
    """state.json of run directory `path`; None when there is none that can be read."""
    try:
        found = json.loads((path / STATE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def recorded_labs() -> list[Path]:
    """Run directories below the base that hold a state file, running or ended."""
    base = basedir.base_path()
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    return [base / name for name in names if name != RESERVED_NAME and (base / name / STATE).is_file()]
