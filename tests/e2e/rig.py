"""The command in a world of its own: a private base, and a look at what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from topologies.agent.control import ask
from topologies.rundir import CONTROL_SOCKET

ROOT = Path(__file__).resolve().parents[2]
PEERS = (Path(__file__).parent / "programs" / "peers.py").read_text()
DEADLINE = 30.0
GONE_WITHIN = 2.0
"""contracts: after two seconds nothing is left that should not be there."""


class Rig:
    """Runs `argosy` with its base below `directory`; topologies are written to ``directory/topo``."""

    def __init__(self, directory: Path) -> None:
        self.runtime = directory
        self.topologies = directory / "topo"
        self.topologies.mkdir()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ARGOSY_")},
            "XDG_RUNTIME_DIR": str(directory),
            # Sockets of a base that is too long lie there: labs of others are neither seen nor taken down.
            "TMPDIR": str(directory),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def base(self) -> Path:
        return self.runtime / "argosy"

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """The command, running."""
        return subprocess.Popen(
            [sys.executable, "-m", "topologies.cli", *arguments],
            cwd=self.topologies,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The command, to its end.  A traceback that reaches the user fails the test."""
        return finish(self.start(*arguments, **more))

    def json(self, *arguments: str) -> Any:
        """What the command prints with --format json."""
        done = self.run(*arguments, "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def topology(self, text: str, name: str = "lab.yaml") -> str:
        """Write a topology; the path to give to the command."""
        (self.topologies / name).write_text(text)
        return name

    def program(self, text: str, name: str = "mine.py") -> None:
        """Write a module next to the topology."""
        (self.topologies / name).write_text(text)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """State of every node of every running lab, as its agent says: what `ps` prints, without a command."""
        return {node["name"]: node for answer in self.states() for node in answer.get("nodes", [])}

    def states(self) -> list[dict[str, Any]]:
        """What the agent of every running lab says."""
        found: list[dict[str, Any]] = []
        for sockets in self.sockets():
            with contextlib.suppress(OSError):
                ask(sockets / CONTROL_SOCKET, "state", found.append, 5.0)
        return found

    def node(self, name: str) -> dict[str, Any]:
        """State of one node; empty values where nobody answers."""
        return self.nodes().get(name, {"state": None, "pid": None, "restarts": None, "silent": None})

    def seen(self, name: str) -> list[str]:
        """What guest `name`, which runs `counts`, has seen of its peer."""
        try:
            return (self.runtime / f"seen-{name}").read_text().splitlines()
        except OSError:
            return []

    def sent(self, name: str) -> int:
        """How many datagrams of guest `name`, which runs `counts`, have arrived."""
        try:
            return int((self.runtime / f"sent-{name}").read_text() or 0)
        except OSError:
            return 0

    # ---- what is left ----

    def processes(self) -> list[tuple[int, str]]:
        """Every process of this world: its environment names the base (children inherit it)."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            needle = os.fsencode(self.runtime)
            if state != "Z" and (needle in environment or needle in words):
                found.append((int(entry.name), words.replace(b"\0", b" ").decode(errors="replace")))
        return found

    def sockets(self) -> list[Path]:
        """Socket directories that are still there."""
        parents = (self.base / "s", self.runtime / f"argosy-{os.geteuid()}")
        return sorted(path for parent in parents if parent.is_dir() for path in parent.iterdir())

    def leftovers(self) -> list[str]:
        """What should not be there when no lab runs."""
        left = [f"process {pid}: {words}" for pid, words in self.processes()]
        left += [f"sockets: {path}" for path in self.sockets()]
        left += [f"lock: {path}" for path in self.base.glob("*/lock")]
        left += [f"link: {path}" for path in self.base.glob("*/sockets")]
        return left

    def wait_for_nothing(self, seconds: float = GONE_WITHIN) -> None:
        """Nothing is left, now or within `seconds`."""
        end = time.monotonic() + seconds
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(0.02)
        assert not left

    def close(self) -> None:
        """Kill whatever a failed test left."""
        for pid, _ in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def finish(process: subprocess.Popen[str], seconds: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """Wait for a command's end."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the command does not end\n{out}\n{err}") from None
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Poll `condition` until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Lines of a command's standard error, as they come."""
    assert process.stderr is not None
    while line := process.stderr.readline():
        yield line


def lab(guests: str, *, name: str = "lab", checks: str = "") -> str:
    """A topology with one hypervisor and `guests` (YAML, indented by two)."""
    text = f"name: {name}\nhypervisors:\n  hv0: {{argo: {{mac-permissive: true}}}}\nguests:\n{guests}"
    return f"{text}\nchecks:\n{checks}\n" if checks else f"{text}\n"


def guest(name: str, function: str, *, restart: str = "never", **arguments: Any) -> str:
    """One guest of a topology, running a function of the module `mine`."""
    given = json.dumps(arguments)
    return f"  {name}: {{on: hv0, memory: 16MiB, restart: {restart}, program: 'mine:{function}', with: {given}}}\n"
