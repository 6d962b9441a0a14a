"""How a host is reached: the interface, and finding what implements it.

A provider is an entry point of the group ``argosy.host_providers``: a class that takes a :class:`HostSpec` and a
private directory.  One instance serves one host of one lab.  `local` and `ssh` are built in.

The leader calls `connect` once, `poll` until the way stands, `launch` for everything that is to run there, and in the
end `kill` and `cleanup`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from topologies.exitcodes import ExitCode

GROUP: Final = "argosy.host_providers"
BUILT_IN: Final = {
    "local": "topologies.hosts.local:LocalProvider",
    "ssh": "topologies.hosts.ssh:SshProvider",
}
"""Providers that are there even where no entry points are recorded, as in a source tree."""

LAST_WORDS: Final = 400
"""Most characters of an error message that are passed on."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A machine of the topology.

    Attributes:
        name: Its name there.
        provider: How it is reached.
        address: Host name or address, perhaps with a user, for providers that need one.
        port: Where its ssh server listens; 0 leaves that to the user's configuration.
        python: The interpreter there with argosy installed; "" for the provider's own choice.
        ssh_config: A configuration file for ssh instead of the user's, "" for none.
        directory: Where the topology's files lie there; "" for the same path as here.
    """

    name: str
    provider: str = "local"
    address: str = ""
    port: int = 0
    python: str = ""
    ssh_config: str = ""
    directory: str = ""


class ProviderError(Exception):
    """The host cannot be reached, or nothing can be started there; the message is for the user."""


class HostsFailed(Exception):
    """The lab cannot be brought up on its hosts: the exit code, and what to tell the user."""

    def __init__(self, code: ExitCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class Way(StrEnum):
    """How far the way to a host has come."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class HostProvider(ABC):
    """The way to one host.  Nothing here waits, but for `wait`."""

    same_machine = False
    """Whether what runs there reaches sockets of this machine's file system."""

    def __init__(self, host: HostSpec, directory: Path) -> None:
        self.host = host
        self.directory = directory
        """Private to the lab, and short: a provider may keep sockets there."""

    def connect(self) -> None:
        """Begin to open the way; where there is one already, or was, open another.  Raises ProviderError."""
        return

    @abstractmethod
    def poll(self) -> Way:
        """How the way stands now."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the way's end.  Whether it has ended."""

    @abstractmethod
    def launch(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start the host's Python with `arguments`, which anybody there may read; three pipes lead to it.

        Needs an open way.  Raises ProviderError.
        """

    @abstractmethod
    def signal(self, pid: int, number: int) -> None:
        """Send signal `number` to a process of the host's, at best."""

    @abstractmethod
    def kill(self) -> None:
        """Close the way at once: whatever `launch` started loses its pipes."""

    def cleanup(self) -> None:
        """Remove what the provider keeps on this machine.  The way is closed; may be called twice."""
        return

    @abstractmethod
    def command(self, arguments: Sequence[str], *, terminal: bool = False) -> list[str]:
        """The command that does what `launch` does, for another process of the same user on this machine."""

    def words(self) -> str:
        """Why the way is closed, as far as it is known."""
        return ""


def providers() -> Mapping[str, str]:
    """Every provider that is installed: its name, and ``module:class``."""
    from importlib import metadata  # takes longer than all else here, and is for labs with hosts only

    found = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    return {**found, **BUILT_IN}


def provider_of(host: HostSpec, directory: Path) -> HostProvider:
    """The provider of `host`.  Raises ProviderError when there is none of that name, or it cannot be loaded."""
    known = providers()
    where = known.get(host.provider)
    if where is None:
        raise ProviderError(f"no provider is called {host.provider!r} [installed: {', '.join(sorted(known))}]")
    module, _, name = where.partition(":")
    try:
        made: type[HostProvider] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ProviderError(f"provider {host.provider!r} cannot be loaded: {error}") from error
    return made(host, directory)


# ---- processes of this machine that must not outlive the leader -------------------------------------------

PR_SET_PDEATHSIG: Final = 1
"""Linux uapi linux/prctl.h."""


def start(words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command with three pipes, in a session of its own, killed when this process is gone.

    Raises ProviderError.
    """
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:  # between fork and exec: it calls nothing but prctl
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    try:
        return subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment) if environment is not None else None,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
    except OSError as error:
        raise ProviderError(f"{words[0]} cannot be started: {error.strerror}") from error


def last_line(data: bytes) -> str:
    """The last line of what a command said."""
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:LAST_WORDS] if lines else ""


def drain(process: subprocess.Popen[bytes]) -> bytes:
    """What a command has said on its standard error, without waiting for more."""
    if process.stderr is None or process.stderr.closed:
        return b""
    os.set_blocking(process.stderr.fileno(), False)
    try:
        return process.stderr.read() or b""
    except OSError:
        return b""


def end(process: subprocess.Popen[bytes], within: float = 2.0) -> None:
    """Kill a command, reap it, and close its pipes."""
    if process.poll() is None:
        process.kill()
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except OSError:  # what it did not read any more
                continue
