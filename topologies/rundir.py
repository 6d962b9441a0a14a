"""Where a lab keeps its files: base directory, run directory, socket directory, lock and state.

The base is ``$XDG_RUNTIME_DIR/argosy``, else ``/run/user/UID/argosy``, else ``argosy-UID`` in the temporary
directory.  A lab's run directory is ``<base>/<name>/`` or wherever ``--run-dir`` says:

===========================  =====================================================================
``lock``                     flock held by the lab's agent for as long as it lives; names the holder
``state.json``               what runs, replaced as a whole at every change
``topology.resolved.yaml``   the topology as it was launched
``agent.log``                what agent and forkserver had to say
``nodes/<n>/log``            standard output and error of a node
``nodes/<n>/events.jsonl``   what happened to a node
``sockets``                  link to the socket directory, while the lab lives
===========================  =====================================================================

Sockets lie elsewhere because AF_UNIX and ``ipc://`` paths end at 107 bytes: in ``<base>/s/<8 hex digits>``,
or in ``argosy-UID/<8 hex digits>`` in the temporary directory where that would exceed 40 bytes.  A link
``run`` in the socket directory leads back to the run directory, so every living lab is found whatever
``--run-dir`` said.

Every directory made here has mode 0700 and is checked for owner, mode and type before it is used, so that
nobody else can plant one in a shared temporary directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SOCKETS_LIMIT = 40
"""Most bytes of a socket directory's path below the base."""

UNIX_PATH_LIMIT = 107
"""Bytes that a socket path may have: sun_path is 108 with its final NUL."""

SOCKET_NAME_LIMIT = 24
"""Longest socket name that the planner, the broker and the forkserver use."""

RESERVED_NAME = "s"
"""Holds the socket directories below the base, so no lab may have this name."""

LOCK, STATE, SOCKETS, NODES = "lock", "state.json", "sockets", "nodes"
RESOLVED, AGENT_LOG = "topology.resolved.yaml", "agent.log"
FAILURE_LOG = "failure.log"
"""In the base: the traceback of the last internal error."""

BACK_LINK, CONTROL_SOCKET = "run", "control"

_HEX_DIGITS = 8
_FRESH = ".new"
_OWN_ENTRIES = frozenset({LOCK, STATE, STATE + _FRESH, SOCKETS, NODES, RESOLVED, RESOLVED + _FRESH, AGENT_LOG})


class RunDirError(Exception):
    """A directory or file of a lab cannot be used; the message is for the user."""


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


# ---- directories
# ----------------------------------------------------------------------------------------------


def private_directory(path: Path) -> Path:
    """Make `path` with mode 0700, or accept it when it is a directory of ours that nobody else may enter.

    Raises:
        RunDirError: a symbolic link, no directory, another owner, a mode wider than 0700, or it cannot be
        made.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags)
    except OSError as error:
        raise RunDirError(_why_no_directory(path, error)) from error
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_uid != os.geteuid():
        raise RunDirError(f"{path} belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise RunDirError(f"{path} has mode {mode:04o}, others may look in: chmod 700 {path}")
    return path


def _why_no_directory(path: Path, error: OSError) -> str:
    if os.path.islink(path):
        return f"{path} is a symbolic link, which could lead into somebody else's directory"
    if isinstance(error, NotADirectoryError) and os.path.exists(path):
        return f"{path} exists and is no directory"
    return f"{path} cannot be made a private directory: {error.strerror}"


def _runtime_parents(environ: Mapping[str, str]) -> Iterator[Path]:
    """Directories that may hold the base, best first.  Another user's, left behind by su, is none."""
    candidates = [Path("/run/user") / str(os.geteuid())]
    if environ.get("XDG_RUNTIME_DIR"):
        candidates.insert(0, Path(environ["XDG_RUNTIME_DIR"]))
    for parent in candidates:
        with contextlib.suppress(OSError):
            if parent.is_absolute() and parent.stat().st_uid == os.geteuid() and os.access(parent, os.W_OK):
                yield parent


def base_path(environ: Mapping[str, str] | None = None) -> Path:
    """Where the base lies.  Nothing is made or checked."""
    for parent in _runtime_parents(os.environ if environ is None else environ):
        return parent / "argosy"
    return _temporary_base()


def _temporary_base() -> Path:
    return Path(tempfile.gettempdir()) / f"argosy-{os.geteuid()}"


def base_directory(environ: Mapping[str, str] | None = None) -> Path:
    """The base, made or checked."""
    return private_directory(base_path(environ))


def run_path(name: str, run_dir: str | os.PathLike[str] | None = None) -> Path:
    """Absolute path of the run directory of lab `name`, or `run_dir` if given.  Nothing is made.

    Raises:
        RunDirError: `name` is the one that the base keeps for its sockets.
    """
    if run_dir is not None:
        return Path(os.path.abspath(run_dir))
    if name == RESERVED_NAME:
        raise RunDirError(f"a lab cannot be named {name!r}: the sockets of all labs lie there. Use --name")
    return base_path() / name


def _sockets_parents() -> Iterator[Path]:
    """Directories that hold socket directories: the regular one, then the one for a base that is too long."""
    yield base_path() / RESERVED_NAME
    yield _temporary_base()


def _sockets_parent() -> Path:
    regular = base_directory() / RESERVED_NAME
    if len(os.fsencode(regular)) + 1 + _HEX_DIGITS <= SOCKETS_LIMIT:
        return private_directory(regular)
    short = private_directory(_temporary_base())
    length = len(os.fsencode(short)) + 1 + _HEX_DIGITS + 1 + SOCKET_NAME_LIMIT
    if length > UNIX_PATH_LIMIT:
        raise RunDirError(
            f"the temporary directory {short.parent} is too long for sockets: a path below it would have "
            f"{length} bytes, the kernel takes {UNIX_PATH_LIMIT}. Set TMPDIR to a shorter one"
        )
    return short


def new_socket_directory() -> Path:
    """A fresh private directory for the sockets of one lab."""
    parent = _sockets_parent()
    for _ in range(64):
        path = parent / os.urandom(_HEX_DIGITS // 2).hex()
        try:
            path.mkdir(0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunDirError(f"{path} cannot be made: {error.strerror}") from error
        return private_directory(path)
    raise RunDirError(f"no free name for a socket directory in {parent}")


def socket_directories() -> list[Path]:
    """Every socket directory of this user, living or left behind."""
    found = []
    for parent in _sockets_parents():
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
                if is_socket_directory(Path(entry.path)):
                    found.append(Path(entry.path))
    return found


def is_socket_directory(path: Path) -> bool:
    """Whether `path` is what a socket directory is by name, place, owner and content.

    Only such a directory is ever removed.  The content matters because a lab may be called ``0a1b2c3d``, and where the
    base is the temporary directory's, its run directory lies among socket directories.
    """
    name = path.name
    if len(name) != _HEX_DIGITS or not set(name) <= set("0123456789abcdef"):
        return False
    if path.parent not in set(_sockets_parents()):
        return False
    try:
        found = os.lstat(path)
        modes = [os.lstat(path / entry).st_mode for entry in os.listdir(path)]
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return False
    return all(stat.S_ISSOCK(mode) or stat.S_ISLNK(mode) for mode in modes)


def remove_socket_directory(path: Path) -> None:
    """Remove a socket directory and all in it.  A path that is none of ours is left alone."""
    if is_socket_directory(path):
        shutil.rmtree(path, ignore_errors=True)


def run_directory_of(sockets: Path) -> Path | None:
    """The run directory that a socket directory belongs to; None while its agent has not said."""
    try:
        return Path(os.readlink(sockets / BACK_LINK))
    except OSError:
        return None


# ---- the lock
# -------------------------------------------------------------------------------------------------


def read_holder(path: Path) -> Holder:
    """What the lock file of the run directory `path` says about its holder."""
    try:
        found = json.loads((path / LOCK).read_text())
        return Holder(int(found["pid"]), float(found["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, 0.0)


def _lock(path: Path) -> int:
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


# ---- one run directory
# ----------------------------------------------------------------------------------------


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
        if path.parent == base_path():
            base_directory()
        private_directory(path)
        foreign = sorted(set(_entries(path)) - _OWN_ENTRIES)
        if foreign and not (path / STATE).exists():
            words = f"{path} holds files that are no lab's ({foreign[0]}): give an empty directory"
            raise RunDirError(words)
        fd = _lock(path)
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
            lock.unlink()
            removed.append(lock)
    except OSError:
        pass
    finally:
        if fd >= 0:
            os.close(fd)
    return removed


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


def keep_failure(text: str) -> Path | None:
    """Keep a traceback where a user can find it; None when there is no place for it."""
    try:
        path = base_directory() / FAILURE_LOG
        path.write_text(text)
    except (OSError, RunDirError):
        return None
    return path


def recorded_labs() -> list[Path]:
    """Run directories below the base that hold a state file, running or ended."""
    base = base_path()
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    return [base / name for name in names if name != RESERVED_NAME and (base / name / STATE).is_file()]
