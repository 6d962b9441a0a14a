"""Socket directories: short, since AF_UNIX and ``ipc://`` paths end at 107 bytes, and so apart from run directories.

They lie in ``<base>/s/<8 hex digits>``, or in ``argosy-UID/<8 hex digits>`` in the temporary directory where that would
exceed 40 bytes.  A link ``run`` in the socket directory leads back to the run directory, so every living lab is found
whatever ``--run-dir`` said.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from topologies import basedir
from topologies.basedir import RESERVED_NAME, RunDirError

SOCKETS_LIMIT = 40
"""Most bytes of a socket directory's path below the base."""

UNIX_PATH_LIMIT = 107
"""Bytes that a socket path may have: sun_path is 108 with its final NUL."""

SOCKET_NAME_LIMIT = 24
"""Longest socket name that the planner, the broker and the forkserver use."""

BACK_LINK = "run"

_HEX_DIGITS = 8


def _sockets_parents() -> Iterator[Path]:
    """Directories that hold socket directories: the regular one, then the one for a base that is too long."""
    yield basedir.base_path() / RESERVED_NAME
    yield basedir.temporary_base()


def _sockets_parent() -> Path:
    regular = basedir.base_directory() / RESERVED_NAME
    if len(os.fsencode(regular)) + 1 + _HEX_DIGITS <= SOCKETS_LIMIT:
        return basedir.private_directory(regular)
    short = basedir.private_directory(basedir.temporary_base())
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
        return basedir.private_directory(path)
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
