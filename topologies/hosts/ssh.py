"""The provider `ssh`: the system's OpenSSH, with one control connection for each host (ssh_config ControlMaster).

Everything that runs on the host is a session of that connection, however many there are: servers limit connections
(MaxStartups), and a lab's ending ends them all at once.  It never asks for anything (BatchMode): who may log in, and
which server to believe, is the user's ssh configuration's to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from topologies.hosts.provider import HostProvider, HostSpec, ProviderError, Way, drain, end, last_line, start

CONFIG_VARIABLE: Final = "ARGOSY_SSH_CONFIG"
"""Environment variable that names a configuration file for hosts whose topology gives none."""
PYTHON: Final = "python3"
CONNECT_WITHIN: Final = 10
"""Seconds."""
ALIVE_EVERY, ALIVE_MISSES = 5, 60
"""Seconds, and how many: this keeps the way open where something forgets connections.  Who is silent for too long is
the leader's to judge.
"""

FAILED: Final = 255
"""Exit code of ssh itself, whatever the command's would have been."""


class SshProvider(HostProvider):
    """Reaches a host over ssh."""

    def __init__(self, host: HostSpec, directory: Path) -> None:
        super().__init__(host, directory)
        self._master: subprocess.Popen[bytes] | None = None
        self._said = ""
        # Not the name: it may be long, and socket paths may not.
        self._socket = directory / f"ssh-{hashlib.sha256(host.name.encode()).hexdigest()[:4]}"

    def connect(self) -> None:
        """Start the control connection."""
        if not self.host.address:
            raise ProviderError("it has no `address`")
        if shutil.which("ssh") is None:
            raise ProviderError("there is no ssh on this machine: apt-get install -y openssh-client")
        self.kill()
        self.cleanup()
        self._said = ""
        options = {
            "ControlMaster": "yes",
            "ControlPersist": "no",
            "ConnectTimeout": str(CONNECT_WITHIN),
            "ServerAliveInterval": str(ALIVE_EVERY),
            "ServerAliveCountMax": str(ALIVE_MISSES),
            "ExitOnForwardFailure": "yes",
        }
        words = ["ssh", *self._common()]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        self._master = start([*words, "-N", "--", self.host.address])

    def _common(self) -> list[str]:
        words = ["-S", os.fspath(self._socket), "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"]
        config = self.host.ssh_config or os.environ.get(CONFIG_VARIABLE, "")
        if config:
            words += ["-F", config]
        if self.host.port:
            words += ["-p", str(self.host.port)]
        return words

    def poll(self) -> Way:
        """The connection stands when its socket is there."""
        if self._master is None:
            return Way.CLOSED
        if self._master.poll() is not None:
            self._said = self._said or last_line(drain(self._master))
            return Way.CLOSED
        return Way.OPEN if self._socket.exists() else Way.OPENING

    def wait(self, timeout: float) -> bool:
        """For the end of the control connection."""
        if self._master is None:
            return True
        try:
            self._master.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def launch(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """A session of the control connection."""
        if self.poll() is not Way.OPEN:
            raise ProviderError(self.words() or "there is no connection")
        return start(self.command(arguments))

    def command(self, arguments: Sequence[str], *, terminal: bool = False) -> list[str]:
        """The host's shell gets one line, so every word is quoted.  Without the control connection this fails."""
        line = shlex.join([self.host.python or PYTHON, *arguments])
        # ProxyCommand: were the connection gone, ssh would quietly make another.
        only = ["-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        return ["ssh", *self._common(), *only, "-t" if terminal else "-T", "--", self.host.address, line]

    def signal(self, pid: int, number: int) -> None:
        """By a session of its own."""
        with contextlib.suppress(ProviderError):
            process = self.launch(["-c", f"import os; os.kill({int(pid)}, {int(number)})"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(CONNECT_WITHIN)
            end(process)

    def kill(self) -> None:
        """End the control connection, and with it every session."""
        if self._master is not None:
            self._said = self._said or last_line(drain(self._master))
            end(self._master)

    def cleanup(self) -> None:
        """Remove the control socket."""
        with contextlib.suppress(OSError):
            self._socket.unlink()

    def words(self) -> str:
        """What ssh said last."""
        return self._said
