"""`argosy doctor`: what this machine can run, and what to do where it cannot."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from topologies import basedir, sockdir
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.report import print_table

SCHEMA: Final = "doctor/1"
PYTHON: Final = (3, 11)
GUESTS: Final = 200
"""The size of lab for which limits are looked at."""
FILES_PER_GUEST: Final = 8
"""Descriptors that a hypervisor holds for one guest of one vCPU: RAM, vCPU areas, two bells, attach, and room."""
FREE_BYTES: Final = 256 << 20


class Verdict(StrEnum):
    """How a look ended."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


class Finding(NamedTuple):
    """What was found, and what to do about it."""

    verdict: Verdict
    found: str
    fix: str = ""


class Look(NamedTuple):
    """One thing to look at: its name, what needs it, and how to look."""

    name: str
    needed_for: str
    look: Callable[[], Finding]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        return Finding(Verdict.MISSING, found, "install Python 3.11 or later: apt-get install -y python3")
    return Finding(Verdict.OK, found)


def _memfd() -> Finding:
    try:
        fd = os.memfd_create("argosy-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mmap.mmap(fd, mmap.PAGESIZE).close()
        finally:
            os.close(fd)
    except (OSError, AttributeError) as error:
        return Finding(Verdict.MISSING, str(error), "Linux 3.17 or later, and a sandbox that allows memfd_create")
    return Finding(Verdict.OK, "sealed and mapped")


def _eventfd() -> Finding:
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except (OSError, AttributeError) as error:
        return Finding(Verdict.MISSING, str(error), "a kernel and a sandbox that allow eventfd")
    return Finding(Verdict.OK, "works")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return Finding(Verdict.MISSING, str(error), "Linux 5.3 or later, and a sandbox that allows pidfd_open")
    return Finding(Verdict.OK, "works")


def _base() -> Finding:
    try:
        return Finding(Verdict.OK, str(basedir.base_directory()))
    except basedir.RunDirError as error:
        return Finding(Verdict.MISSING, str(error), "set XDG_RUNTIME_DIR to a directory of yours with mode 0700")


def _socket_paths() -> Finding:
    try:
        path = sockdir.new_socket_directory()
    except basedir.RunDirError as error:
        return Finding(Verdict.MISSING, str(error), "set TMPDIR to a short directory, for instance /tmp")
    sockdir.remove_socket_directory(path)
    longest = len(os.fsencode(path)) + 1 + sockdir.SOCKET_NAME_LIMIT
    return Finding(Verdict.OK, f"{longest} of {sockdir.UNIX_PATH_LIMIT} bytes")


def _memory() -> Finding:
    """Guests' memory is in memfds: memory and swap bound them, not the size of /dev/shm."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError) as error:
        return Finding(Verdict.WARNING, str(error), "mount /proc")
    needed = GUESTS * (28 << 20)
    found = f"{free >> 20} MiB available"
    if free < needed:
        return Finding(Verdict.WARNING, found, f"{GUESTS} guests of 16 MiB want {needed >> 20} MiB: run fewer")
    return Finding(Verdict.OK, found)


def _files() -> Finding:
    """The hard limit counts: an agent raises its own."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = GUESTS * FILES_PER_GUEST
    found = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < needed:
        fix = f"{GUESTS} guests on one hypervisor want {needed}: ulimit -Hn {needed}, as root"
        return Finding(Verdict.WARNING, found, fix)
    return Finding(Verdict.OK, found)


def _disk() -> Finding:
    path = basedir.base_path()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    found = f"{free >> 20} MiB free at {path}"
    if free < FREE_BYTES:
        return Finding(Verdict.WARNING, found, "logs and results go there: make room, or use --run-dir")
    return Finding(Verdict.OK, found)


def _temporary() -> Finding:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    except OSError as error:
        return Finding(Verdict.MISSING, str(error), "set TMPDIR to a directory with room")
    return Finding(Verdict.OK, tempfile.gettempdir())


LOOKS: Final = (
    Look("python", "everything", _python),
    Look("memfd", "guest memory that no guest can shrink", _memfd),
    Look("eventfd", "doorbells", _eventfd),
    Look("pidfd", "watching and ending processes", _pidfd),
    Look("base directory", "run directories", _base),
    Look("socket paths", "attach, broker and control sockets", _socket_paths),
    Look("temporary directory", "launching", _temporary),
    Look("memory", f"{GUESTS} guests", _memory),
    Look("open files", f"{GUESTS} guests", _files),
    Look("disk space", "logs and results", _disk),
)


def doctor(form: Format) -> int:
    """`argosy doctor`: 4 when something is missing without which no lab runs."""
    found = [(look, look.look()) for look in LOOKS]
    if form is Format.JSON:
        looks = [{"name": look.name, "needed_for": look.needed_for, **finding._asdict()} for look, finding in found]
        print(json.dumps({"schema": SCHEMA, "looks": looks}, indent=1))
    else:
        rows = [[look.name, finding.verdict, finding.found, look.needed_for, finding.fix] for look, finding in found]
        print_table(["what", "verdict", "found", "needed for", "fix"], rows, [False] * 5, sys.stdout)
    missing = any(finding.verdict is Verdict.MISSING for _, finding in found)
    return int(ExitCode.INFRASTRUCTURE if missing else ExitCode.OK)
