"""What the agent writes down: state.json for who asks what runs, and a line per event in each node's
directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topologies.agent.core import LabCore
from topologies.agent.entry import LOG
from topologies.agent.phases import MILLISECOND, SECOND, Phase
from topologies.agent.spec import Mode
from topologies.rundir import RunDirectory
from topologies.runtime import NodeKind, NodeOutcome, Outcome

if TYPE_CHECKING:
    from topologies.hosts.team import Team

STATE_SCHEMA = "state/1"
STATE_EVERY = 100 * MILLISECOND
"""state.json is replaced at most so often."""
EVENTS = "events.jsonl"
EVENT_BYTES_KEPT = 64 << 20
"""A node's event file does not grow beyond this."""


def start_time(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot; 0 if it is gone.

    With the pid it names one process for ever, which the pid alone does not.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])  # field 22; the name before it may hold anything


def _seconds(now: int, since: int | None) -> float | None:
    """How long ago, in seconds."""
    return None if since is None else round((now - since) / SECOND, 3)


def node_state(node: NodeOutcome) -> dict[str, Any]:
    """What a state says of a node, whichever runtime it lived in."""
    return {
        "name": node.name,
        "kind": str(node.kind),
        "state": str(node.state),
        "hypervisor": node.hypervisor,
        "domid": node.domid,
        "pid": None,
        "started": None,
        "since": None,
        "silent": None,
        "exit": node.exit,
        "signal": node.signal,
        "detail": node.detail,
        "arch": None,
        "probe": None,
        "restarts": node.restarts,
        "last_error": node.last_error,
    }


def ended_state(
    outcome: Outcome, topology: str, probes: Mapping[str, tuple[Any, ...]], archs: Mapping[str, str]
) -> dict[str, Any]:
    """The state of a lab that had no agent, once it is over: `probes` by guest, as they reported; `archs` by node."""
    return {
        "schema": STATE_SCHEMA,
        "lab": outcome.lab,
        "mode": str(Mode.RUN),
        "topology": topology,
        "run_dir": outcome.run_dir,
        "sockets": None,
        "agent": None,
        "phase": str(Phase.DOWN),
        "epoch": None,
        "waits": [],
        "nodes": [
            {**node_state(node), "probe": probes.get(node.name), "arch": archs.get(node.name)} for node in outcome.nodes
        ],
        "outcome": outcome.as_json(),
    }


class Journal:
    """Keeps the run directory's records up to date."""

    def __init__(self, core: LabCore, run: RunDirectory, team: Team | None = None) -> None:
        self._core = core
        self._team = team
        self._run = run
        self._since = time.time()
        self._self_started = start_time(os.getpid())
        self._written: dict[str, int] = {}
        self._dirty = True
        self._next_state = 0
        self.probes: dict[str, tuple[Any, ...]] = {}
        """What each guest found its hypervisor to be: door, base of its CPUID leaves, domain id."""

    def state(self, now: int, outcome: Outcome | None = None) -> dict[str, Any]:
        """What there is to say about the lab now, as JSON values."""
        spec = self._core.spec
        wall = time.time()
        state: dict[str, Any] = {
            "schema": STATE_SCHEMA,
            "lab": spec.name,
            "mode": str(spec.mode),
            "topology": spec.topology,
            "run_dir": str(self._run.path),
            "sockets": str(self._run.sockets) if outcome is None else None,
            "agent": {"pid": os.getpid(), "started": self._self_started, "since": self._since},
            "phase": str(self._core.phase),
            "epoch": self._core.epoch,
            "waits": self._core.waits(now),
            "nodes": [],
        }
        if self._team is not None:
            state["host"] = spec.leader or None
            state["hosts"] = self._team.records(now)
        for node in self._core.nodes():
            age = _seconds(now, node.since_ns or None)
            home = {} if self._team is None else {"host": self._team.home(node.spec.name) or None, "lost": node.lost}
            far = bool(node.spec.host)  # its process is of another machine
            state["nodes"].append(
                {
                    **node_state(node.outcome()),
                    "pid": node.pid,
                    "started": start_time(node.pid) if node.pid and node.lives and not far else None,
                    "since": None if age is None else round(wall - age, 3),
                    "silent": _seconds(now, node.silent_since_ns),
                    "arch": getattr(node.spec.config, "arch", None),
                    "probe": self.probes.get(node.spec.name),
                    **home,
                }
            )
        if outcome is not None:
            state["outcome"] = outcome.as_json()
        return state

    def inspection(self, now: int) -> dict[str, Any]:
        """The state, with every node's counters."""
        state = self.state(now)
        by_guest: dict[str, Any] = {}
        for node in self._core.nodes():
            if node.spec.kind is NodeKind.HYPERVISOR and node.counters is not None:
                by_guest.update(node.counters.get("arch", {}))
        for node, record in zip(self._core.nodes(), state["nodes"], strict=True):
            counters = dict(node.counters or {})
            if node.spec.kind is NodeKind.HYPERVISOR:
                counters.pop("arch", None)  # told of its guests, one by one
            elif node.spec.name in by_guest:
                counters["hypervisor"] = by_guest[node.spec.name]
            record["counters"] = counters
        return state

    def write_state(self, now: int, outcome: Outcome | None = None) -> None:
        """Replace state.json."""
        self._run.write_state(self.state(now, outcome))

    def touch(self) -> None:
        """Something changed that state.json should tell."""
        self._dirty = True

    def due(self) -> int | None:
        """When state.json is to be written; None while it is up to date."""
        return self._next_state if self._dirty else None

    def write_due_state(self, now: int) -> None:
        """Replace state.json if that is due."""
        if self._dirty and now >= self._next_state:
            self._dirty = False
            self._next_state = now + STATE_EVERY
            self.write_state(now)

    def far_log(self, node: str, at: int, data: bytes) -> None:
        """Keep what `node`, on another host, wrote to its log, from byte `at` on."""
        with contextlib.suppress(OSError):
            fd = os.open(self._run.node_directory(node) / LOG, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, data, at)
            finally:
                os.close(fd)

    def event(self, node: str, code: str, fields: Mapping[str, Any] | tuple[Any, ...]) -> None:
        """Add a line to the node's events."""
        line = json.dumps({"time": round(time.time(), 6), "event": code, "fields": fields}, default=repr) + "\n"
        written = self._written.get(node, 0) + len(line)
        if written > EVENT_BYTES_KEPT:
            return
        self._written[node] = written
        with open(self._run.node_directory(node) / EVENTS, "a", encoding="utf-8") as file:
            file.write(line)
