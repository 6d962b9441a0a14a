"""Looking at every host of a lab before anything starts: all that is missing, on all of them, in one report.

A host's Python is given a script on its standard input, which prints what it finds as one line of JSON.  The script
says what it can even where Argosy, or a Python that Argosy runs on, is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from topologies.hosts.protocol import PROTOCOL, Reader
from topologies.hosts.provider import HostProvider, ProviderError, Way, drain, end, last_line

PYTHON: Final = (3, 11)
CONNECT_WITHIN: Final = 15.0
"""Seconds until the way to a host stands."""
LOOK_WITHIN: Final = 20.0
"""Seconds that a host may take to look at itself."""

SCRIPT: Final = r"""
import json, os, socket, sys
facts = {"python": list(sys.version_info[:3]), "argosy": None, "protocol": None, "why": "", "looks": [], "broker": ""}
facts["executable"] = sys.executable
facts["leader"] = WANTED["leader"] or os.environ.get("SSH_CONNECTION", "").split(" ")[0]
facts["absent"] = [path for path in WANTED["paths"] if not os.path.exists(path)]
sys.path[:] = [path for path in sys.path if path]
if sys.version_info >= tuple(WANTED["python"]):
    try:
        from topologies.commands.version import installed_version
        facts["argosy"] = installed_version()
        from topologies.hosts.protocol import PROTOCOL
        facts["protocol"] = PROTOCOL
        from topologies.commands.doctor import LOOKS
        for look in LOOKS:
            verdict, found, fix = look.look()
            facts["looks"].append([look.name, str(verdict), found, fix])
    except Exception as error:
        facts["why"] = "%s: %s" % (type(error).__name__, error)
if WANTED["port"]:
    try:
        probe = socket.create_connection((facts["leader"], WANTED["port"]), 5)
        probe.settimeout(5)
        heard = b""
        while len(heard) < len(WANTED["greeting"]):
            part = probe.recv(64)
            if not part:
                break
            heard += part
        if heard.decode("ascii", "replace") != WANTED["greeting"]:
            facts["broker"] = "somebody else answers there"
    except Exception as error:
        facts["broker"] = str(error) or type(error).__name__
print(json.dumps(facts))
"""


class Wanted(NamedTuple):
    """What a host is to have.

    Attributes:
        version: The leader's version of Argosy.
        paths: Files and directories that its guests need.
        leader: The leader's address as seen from there; "" to find out.
        port: Where the leader listens, 0 for nowhere.
        greeting: What the leader says there.
    """

    version: str
    paths: tuple[str, ...] = ()
    leader: str = ""
    port: int = 0
    greeting: str = ""

    def script(self) -> bytes:
        """What the host's Python is to run."""
        told = {**self._asdict(), "python": PYTHON}
        return f"import json\nWANTED = json.loads({json.dumps(json.dumps(told))})\n{SCRIPT}".encode()


class Finding(NamedTuple):
    """Something that is missing on a host, and what to do about it."""

    host: str
    what: str
    found: str
    fix: str = ""

    def words(self) -> str:
        """As one line."""
        return f"{self.host}: {self.what}: {self.found}" + (f" ({self.fix})" if self.fix else "")


def report(findings: Sequence[Finding]) -> str:
    """All findings, for the user."""
    hosts = len({finding.host for finding in findings})
    many = f"{len(findings)} things are missing" if len(findings) > 1 else "1 thing is missing"
    where = f"{hosts} hosts" if hosts > 1 else "1 host"
    return "\n".join([f"nothing was started: {many}, on {where}", *(f"  {each.words()}" for each in findings)])


def judge(host: str, facts: Mapping[str, Any], wanted: Wanted) -> list[Finding]:
    """What is missing on a host that has told its `facts`."""
    found = []
    python = ".".join(str(part) for part in facts["python"])
    if tuple(facts["python"][:2]) < PYTHON:
        fix = "set `python` of the host to an interpreter of Python 3.11 or later"
        found.append(Finding(host, "python", f"{facts['executable']} is Python {python}", fix))
    elif facts["argosy"] is None or facts["protocol"] is None:
        why = facts["why"] or "unknown"
        fix = f"install argosy {wanted.version} for {facts['executable']}, or set `python` of the host"
        found.append(Finding(host, "argosy", f"cannot be imported: {why}", fix))
    elif facts["argosy"] != wanted.version:
        fix = f"install argosy {wanted.version} there"
        found.append(Finding(host, "argosy", f"version {facts['argosy']}, here it is {wanted.version}", fix))
    elif facts["protocol"] != PROTOCOL:
        words = f"its agent speaks protocol {facts['protocol']}, this one {PROTOCOL}"
        found.append(Finding(host, "argosy", words, "install the same tree there"))
    elif facts["why"]:
        found.append(Finding(host, "argosy", facts["why"]))
    found += [Finding(host, name, words, fix) for name, verdict, words, fix in facts["looks"] if verdict == "missing"]
    for path in facts["absent"]:
        fix = "copy the topology's directory there, or set `directory` of the host"
        found.append(Finding(host, "files", f"{path} is not there", fix))
    if facts["broker"]:
        where = f"{facts['leader'] or 'an unknown address'} port {wanted.port}"
        fix = "let the hosts connect to that port, or set `address` of the leader's host"
        found.append(Finding(host, "ports", f"the broker cannot be reached at {where}: {facts['broker']}", fix))
    return found


class Look:
    """One host being looked at."""

    def __init__(self, provider: HostProvider, wanted: Wanted, now: float) -> None:
        self.host = provider.host.name
        self.facts: dict[str, Any] | None = None
        self.findings: list[Finding] = []
        self.done = False
        self._provider = provider
        self._wanted = wanted
        self._until = now + CONNECT_WITHIN
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: Reader | None = None
        try:
            provider.connect()
        except ProviderError as error:
            self._finish(Finding(self.host, provider.host.provider, str(error)))

    def fds(self) -> list[int]:
        """What to wait for."""
        return [] if self.done or self._reader is None else [self._reader.fd]

    def step(self, now: float) -> None:
        """Go on as far as that is possible without waiting."""
        if self.done:
            return
        if self._process is None:
            self._reach(now)
        if self._process is not None and not self.done:
            self._listen(now)

    def _reach(self, now: float) -> None:
        way = self._provider.poll()
        if way is Way.OPEN:
            try:
                self._process = process = self._provider.launch(["-"])
            except ProviderError as error:
                self._finish(Finding(self.host, self._provider.host.provider, str(error)))
                return
            assert process.stdin is not None
            assert process.stdout is not None
            self._reader = Reader(process.stdout.fileno())
            with contextlib.suppress(OSError):
                # Smaller than a pipe's buffer, so nobody waits.
                process.stdin.write(self._wanted.script())
                process.stdin.close()
            self._until = now + LOOK_WITHIN
        elif way is Way.CLOSED or now >= self._until:
            words = self._provider.words() or f"no connection within {CONNECT_WITHIN:g} s"
            address = self._provider.host.address
            fix = f"this must succeed without a question: ssh {address} true" if address else ""
            self._finish(Finding(self.host, self._provider.host.provider, f"cannot be reached: {words}", fix))

    def _listen(self, now: float) -> None:
        assert self._process is not None
        assert self._reader is not None
        for record in self._reader.receive():
            if "python" in record:
                self.facts = record
                self._finish(*judge(self.host, record, self._wanted))
                return
        if self._reader.ended or now >= self._until:
            said = last_line(drain(self._process)) or self._reader.noise
            words = said or ("it said nothing" if self._reader.ended else f"it says nothing for {LOOK_WITHIN:g} s")
            fix = "set `python` of the host to a Python 3.11 or later with argosy installed"
            self._finish(Finding(self.host, "python", words, fix))

    def _finish(self, *findings: Finding) -> None:
        self.findings += findings
        self.close()
        self.done = True

    def close(self) -> None:
        """Let go of the process that looks."""
        if self._process is not None:
            end(self._process)
            self._process = None


def needed_paths(programs: Iterable[str], here: str, there: str) -> tuple[str, ...]:
    """The files that the `programs` of a host's guests are: below `here` on this machine, below `there` on the host.

    A module may as well be installed, so only what this machine has as a file is asked for.
    """
    modules = {program.partition(":")[0] for program in programs if not program.startswith("builtin:")}
    files = sorted("/".join(module.split(".")) + ".py" for module in modules)
    return tuple(os.path.join(there, file) for file in files if os.path.exists(os.path.join(here, file)))
