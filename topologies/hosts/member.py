"""A host as the leader sees it: its agent, the pipe to it, and how it stands."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from topologies.codec import encode
from topologies.exitcodes import ExitCode
from topologies.hosts.fabric import Key
from topologies.hosts.names import part_name
from topologies.hosts.protocol import PROTOCOL, SILENT_AFTER, Pipe
from topologies.hosts.provider import HostProvider, ProviderError, Way, drain, end, last_line
from topologies.hosts.split import HostPlaces

MODULE: Final = "topologies.hosts.remote"
SECOND: Final = 1_000_000_000
NOBODY_WITHIN: Final = 0.2
"""Seconds that a command whose output has ended may take to end."""
CLEAN_WITHIN: Final = 3.0
"""Seconds that a host may take to remove what a killed agent left."""
AGAIN_EVERY: Final = SECOND
"""How often (ns) a way that broke is tried again."""


class HostState(StrEnum):
    """How a host stands."""

    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    """Nothing was heard of it for two seconds."""
    AWAY = "away"
    """Its pipe broke after the lab was left to its agents; it is heard on the fabric."""
    LEAVING = "leaving"
    LEFT = "left"
    """Nothing of the lab is left there."""
    LOST = "lost"


GONE: Final = frozenset({HostState.LEFT, HostState.LOST})


@dataclass(slots=True)
class RemoteChild:
    """A node's process on another host, in place of a :class:`topologies.agent.children.Child`."""

    name: str
    life: int
    pid: int
    host: Host

    def signal(self, number: int) -> None:
        """Have its agent send a signal."""
        self.host.say({"op": "signal", "name": self.name, "life": self.life, "number": int(number)})

    def gone(self, within: float) -> bool:  # noqa: ARG002 - its agent reports endings in their order
        """Whether it has ended, as far as is known here."""
        return False


class Host:
    """One host.  `on_record(host, record)` is called with what its agent says."""

    def __init__(self, provider: HostProvider, timeout: int, on_record: Callable[[Host, dict[str, Any]], None]) -> None:
        self.spec = provider.host
        self.name = provider.host.name
        self.provider = provider
        self.state = HostState.STARTING
        self.words = ""
        self.pid: int | None = None
        self.places: HostPlaces | None = None
        self.heard = 0
        self.since = 0
        self.on_fabric = False
        self.fabric_is_news = False
        """It came back on the fabric after its pipe fell silent: a connection may need longer than a partition lasts.
        But for that the pipe is believed, since the fabric's silence is told later.
        """
        self.leader = ""
        """The leader's address as seen from there."""
        self.ordered: dict[str, dict[str, Any]] = {}
        """Starts that were not answered, by node."""
        self.living: dict[str, RemoteChild] = {}
        self.lives: dict[str, int] = {}
        """The last life that was ordered of each node, and of those whose end was reported."""
        self.ended: dict[str, int] = {}
        self.pipe: Pipe | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._timeout = timeout
        self._on_record = on_record
        self._again_at = 0
        self._cleaner: subprocess.Popen[bytes] | None = None

    # ---- the agent ----------------------------------------------------------------------------------------

    def start(self, begin: Mapping[str, Any], key: Key, now: int) -> None:
        """Start the agent.  What it is told, its key above all, goes over its standard input.  Raises ProviderError."""
        self._launch(["-P", "-m", MODULE])
        self.heard = self.since = now
        self.say({"op": "begin", "protocol": PROTOCOL, **begin, "host": self.name, "key": key.pack()})

    def _launch(self, arguments: list[str]) -> None:
        self._process = process = self.provider.launch(arguments)
        assert process.stdin is not None
        assert process.stdout is not None
        self.pipe = Pipe(process.stdout.fileno(), process.stdin.fileno())

    def say(self, order: Mapping[str, Any]) -> None:
        """Tell the agent, if there is a pipe; what must arrive is kept by the caller."""
        if self.pipe is not None:
            self.pipe.writer.write(order)

    def receive(self, now: int) -> None:
        """Take what the agent has said."""
        pipe = self.pipe
        if pipe is None:
            return
        records = pipe.reader.receive()
        if records:
            self.heard, self.fabric_is_news = now, False
        for record in records:
            self._on_record(self, record)

    def why(self) -> str:
        """What is known of why the pipe ended."""
        said = "" if self._process is None else last_line(drain(self._process))
        noise = "" if self.pipe is None or self.state is not HostState.STARTING else self.pipe.reader.noise
        return said or self.provider.words() or noise

    def nobody_there(self) -> bool:
        """Whether the agent that was to be reached again is not there any more."""
        if self._process is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(NOBODY_WITHIN) == ExitCode.NOTHING_TO_DO
        return False

    def drop_pipe(self) -> None:
        """Let go of a pipe that ended."""
        self.pipe = None
        if self._process is not None:
            end(self._process)
            self._process = None

    # ---- again --------------------------------------------------------------------------------------------

    def come_back(self, lab: str, now: int) -> bool:
        """Try, now and then, to reach the agent again.  Whether there is a new pipe."""
        if now < self._again_at or self.pipe is not None:
            return False
        way = self.provider.poll()
        if way is Way.OPEN:
            self._again_at = now + AGAIN_EVERY
            try:
                self._launch(["-P", "-m", MODULE, "--attach", part_name(lab, self.name)])
            except ProviderError:
                return False
            return True
        if way is Way.CLOSED:
            self._again_at = now + AGAIN_EVERY
            try:
                self.provider.connect()
            except ProviderError as error:
                self.words = str(error)
        return False

    # ---- how it stands ------------------------------------------------------------------------------------

    def silent(self, now: int) -> int:
        """For how long (ns) it has not been heard, on neither way; 0 while it is heard."""
        age = now - self.heard
        trusted = self.on_fabric and (self.pipe is None or self.fabric_is_news)
        return age if age >= SILENT_AFTER and not trusted else 0

    def overdue(self, now: int) -> bool:
        """Whether it has been silent for so long that its agent has taken its part down."""
        return now - self.heard >= self._timeout + SECOND and not self.on_fabric

    def clean(self) -> None:
        """Have what a killed agent left there removed, as `argosy gc` does, if the way still stands."""
        self.drop_pipe()
        if self.provider.poll() is Way.OPEN:
            with contextlib.suppress(ProviderError):
                self._cleaner = self.provider.launch(["-P", "-m", MODULE, "--clean"])

    def close(self) -> None:
        """Let go of everything; only a host that is being cleaned has a moment."""
        self.drop_pipe()
        if self._cleaner is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._cleaner.wait(CLEAN_WITHIN)
            end(self._cleaner)
            self._cleaner = None
        self.provider.kill()
        self.provider.cleanup()

    def record(self, now: int) -> dict[str, Any]:
        """What there is to say of it, as JSON values."""
        return {
            "name": self.name,
            "provider": self.spec.provider,
            "address": self.spec.address or None,
            "state": str(self.state),
            "pid": self.pid,
            "silent": round(self.silent(now) / SECOND, 1) or None,
            "run_dir": None if self.places is None else self.places.run_dir,
            "detail": self.words,
            "spec": encode(self.spec),
        }
