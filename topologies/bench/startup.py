"""The row `startup-N`: N guests from the plan reaching a warm agent to an answered message each.

A guest counts when it has attached, probed its hypervisor, registered a ring and had one message answered by an
echo guest that all share.  Memory is read from /proc while all of them live: what a guest has for itself
(Private_Clean + Private_Dirty), and in a column of its own what it has touched of its RAM, which is a memfd.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from topologies.agent.control import ask
from topologies.bench.figures import median
from topologies.bench.labs import PROGRAMS, LabFailed, Round, copy_programs
from topologies.bench.rows import GUESTS_OF, Row
from topologies.exitcodes import ExitCode
from topologies.plan import Places, plan
from topologies.processes import ProcessRuntime
from topologies.rundir import CONTROL_SOCKET

MEMORY: Final = "16MiB"
WITHIN: Final = 60
_WARM_WITHIN: Final = 10.0
_QUIET: Final = 0.3
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MIB: Final = 1 << 20


class Footprint(NamedTuple):
    """Memory of one process in MiB: its own, and what it touched of memfds."""

    unique: float
    memfd: float


def footprint(smaps: str) -> Footprint:
    """The footprint that /proc/PID/smaps shows."""
    unique = memfd = 0
    in_memfd = False
    for line in smaps.splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # the head of a mapping: addresses, permissions, ..., path
            in_memfd = "/memfd:" in line
        elif in_memfd:
            memfd += int(rest.split()[0]) if key == "Rss:" else 0
        elif key in ("Private_Clean:", "Private_Dirty:"):
            unique += int(rest.split()[0])
    return Footprint(unique / 1024, memfd / 1024)


def topology(row: Row, name: str, clients: int) -> dict[str, Any]:
    """The lab, as the data of a topology file."""
    programs = GUESTS_OF[row.kind]
    common = {"on": "hv0", "memory": MEMORY}
    arguments = {"ring": row.ring, "clients": clients}
    nodes = {"echo": {**common, "program": f"{PROGRAMS}:{programs.receiver}", "with": arguments}}
    for index in range(clients):
        nodes[f"g{index}"] = {**common, "program": f"{PROGRAMS}:{programs.sender}", "with": arguments}
    return {
        "name": name,
        "hypervisors": {"hv0": {"personality": "xen", "argo": {"mac-permissive": True}}},
        "guests": nodes,
        "checks": [{"name": f"{g} ends", "guest": g, "expect": {"exit": 0}, "within": f"{WITHIN}s"} for g in nodes],
    }


class _Watcher:
    """Sees the lab come up; once all are answered it weighs the guests and lets them go."""

    def __init__(self, places: Places, clients: int) -> None:
        self.weights: list[Footprint] = []
        self._places, self._clients = places, clients
        self._answered = Path(places.node_dir("echo"), "answered")

    def progress(self, _record: Mapping[str, Any]) -> None:
        """The agent speaks at least twice a second, which is when we look."""
        if self.weights or not self._answered.exists():
            return
        found: list[dict[str, Any]] = []
        ask(Path(self._places.socket_dir, CONTROL_SOCKET), "state", found.append, 10.0)
        for node in found[0]["nodes"]:
            if node["name"].startswith("g") and node["pid"]:
                with contextlib.suppress(OSError):
                    self.weights.append(footprint(Path(f"/proc/{node['pid']}/smaps").read_text()))
        Path(self._places.base_dir, "go").touch()


def measure(row: Row) -> Round:
    """One round: seconds until the last guest was answered.  Raises LabFailed."""
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as directory, ProcessRuntime(WITHIN * 10**9) as runtime:
        place = Path(directory)
        copy_programs(place)
        lab = place / "lab.yaml"
        lab.write_text(json.dumps(topology(row, place.name, row.sends)))
        places = runtime.places(place.name, directory, os.fspath(place / "run"))
        planned = plan(_load(lab), places, token=os.urandom(32))
        _wait_warm()
        watcher = _Watcher(places, row.sends)
        began = time.monotonic_ns()
        outcome = runtime.run(planned, watcher)
    if outcome.code is ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.code:
        raise LabFailed("; ".join(outcome.reasons))
    results = [node.result for node in outcome.nodes if node.name.startswith("g")]
    if not all(result.get("intact") for result in results) or len({result["pid"] for result in results}) != row.sends:
        raise LabFailed(f"{row.name}: not every guest was a process of its own with an answer")
    hypervisor = next(node for node in outcome.nodes if node.name == "hv0")
    columns = {
        "guests": row.sends,
        "unique_mib": max(weight.unique for weight in watcher.weights),
        "unique_mib_median": median([weight.unique for weight in watcher.weights]),
        "memfd_mib": median([weight.memfd for weight in watcher.weights]),
        "first_s": (min(result["answered_ns"] for result in results) - began) / 1e9,
        "frames": sum(counters["messages"] for counters in hypervisor.counters["arch"].values()),
        "doorbells": hypervisor.counters["host"]["doorbells"],
        "interrupts": sum(counters["interrupts_posted"] for counters in hypervisor.counters["arch"].values()),
        "eagain": 0,
        "ring": row.ring,
        "window": row.window,
    }
    return Round((max(result["answered_ns"] for result in results) - began) / 1e9, columns)


def _load(lab: Path) -> Any:
    from topologies.load import load

    return load(os.fspath(lab))


def _wait_warm() -> None:
    """Until the agent and its forkserver, which import what nodes need, have come to rest."""
    until = time.monotonic() + _WARM_WITHIN
    quiet_since, last = time.monotonic(), -1
    while time.monotonic() < until:
        spent = sum(_ticks(pid) for pid in _descendants(os.getpid()))
        if spent != last:
            quiet_since, last = time.monotonic(), spent
        elif time.monotonic() - quiet_since >= _QUIET:
            return
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
