"""Where labs keep their files: the base directory, and what is below it by name.

The base is ``$XDG_RUNTIME_DIR/argosy``, else ``/run/user/UID/argosy``, else ``argosy-UID`` in the temporary
directory.  A lab's run directory is ``<base>/<name>/`` or wherever ``--run-dir`` says.

Every directory made here has mode 0700 and is checked for owner, mode and type before it is used, so that
nobody else can plant one in a shared temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

RESERVED_NAME = "s"
"""Holds the socket directories below the base, so no lab may have this name."""

FAILURE_LOG = "failure.log"
"""In the base: the traceback of the last internal error."""


class RunDirError(Exception):
    """A directory or file of a lab cannot be used; the message is for the user."""


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
    return temporary_base()


def temporary_base() -> Path:
    """The base of those who have no runtime directory."""
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


def keep_failure(text: str) -> Path | None:
    """Keep a traceback where a user can find it; None when there is no place for it."""
    try:
        path = base_directory() / FAILURE_LOG
        path.write_text(text)
    except (OSError, RunDirError):
        return None
    return path
