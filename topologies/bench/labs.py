"""One round of one row in a lab of processes, launched as any user would: `argosy run LAB --format json`.

The tree under measurement is whatever the interpreter finds first on its path, so two trees are measured
alike; the measuring programs lie beside the topology as a user's own module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from topologies.bench.figures import quantile
from topologies.bench.proof import Evidence, check
from topologies.bench.rows import GUESTS_OF, MIB, WARM_SHARE, Kind, Row, Where
from topologies.exitcodes import ExitCode

PREFIX: Final = "argosy_bench_"  # in front of the measuring modules' names where a lab finds them
PROGRAMS: Final = f"{PREFIX}guests"
FABRIC: Final = "fabric_lab"  # what runs a lab whose hypervisors are on hosts of their own
MODULES: Final = ("guests", "inbox", "ledger", FABRIC)
WITHIN: Final = 60.0  # seconds for one round
OWN_TREE: Final = Path(__file__).resolve().parents[2]


class Homes(NamedTuple):
    """The hypervisors of sender and receiver; and which of them, if any, is nested, and in which."""

    sender: str
    receiver: str
    child: str = ""
    parent: str = ""


HOMES: Final = {
    Where.ONE: Homes("hv0", "hv0"),
    Where.HOSTS: Homes("hv0", "hv1"),
    Where.LEVELS: Homes("hv1", "hv0", "hv1", "hv0"),
}


class LabFailed(Exception):
    """A lab did not do its work; the message is for the user."""

    code = ExitCode.INFRASTRUCTURE


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a row: the figure, and the columns that go with it (counters, quantiles, CPU times)."""

    value: float
    columns: dict[str, Any]


def copy_programs(place: Path) -> None:
    """Put the measuring programs beside a topology, under names that no tree has for its own."""
    for name in MODULES:
        text = Path(__file__).with_name(f"{name}.py").read_text()
        (place / f"{PREFIX}{name}.py").write_text(text.replace("topologies.bench.", PREFIX))


def messages(row: Row, scale: float) -> tuple[int, int]:
    """How many messages a round has in all, and how many of them before the clock starts."""
    count = max(20, int(row.sends * scale))
    warm = max(1, count // WARM_SHARE)
    return count + warm, warm


def topology(row: Row, name: str, count: int, warm: int) -> dict[str, Any]:
    """The lab of a row, as the data of a topology file."""
    programs = GUESTS_OF[row.kind]
    arguments = {
        "size": row.size, "count": count, "warm": warm, "ring": row.ring, "window": row.window,
        "inplace": row.kind is Kind.INPLACE, "posted": row.kind is Kind.REMOTE_POSTED,
    }  # fmt: skip
    homes = HOMES[row.where]
    link = {"between": list(homes[:2]), "posted": row.kind is Kind.REMOTE_POSTED}
    memory = f"{max(16, (2 * row.ring + 2 * (row.window + 4) * row.size) // MIB + 8)}MiB"
    return {
        "name": name,
        "hypervisors": {
            hypervisor: {"personality": "xen", **({"parent": homes.parent} if hypervisor == homes.child else {})}
            for hypervisor in sorted(set(homes[:2]))
        },
        **({"links": [link]} if row.where is Where.HOSTS else {}),  # a tree that knows no links runs the other rows
        "guests": {
            who: {"on": getattr(homes, who), "memory": memory, "program": f"{PROGRAMS}:{program}", "with": arguments}
            for who, program in (("receiver", programs.receiver), ("sender", programs.sender))
        },
        "checks": [
            {"name": f"{who} ends", "guest": who, "expect": {"exit": 0}, "within": f"{WITHIN:g}s"}
            for who in ("receiver", "sender")
        ],
    }


def measure(row: Row, tree: Path = OWN_TREE, scale: float = 1.0) -> Round:
    """One round of `row` in `tree`; `scale` shortens it.  Raises LabFailed, LyingRow."""
    count, warm = messages(row, scale)
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as directory:
        place = Path(directory)
        copy_programs(place)
        lab = place / "lab.yaml"
        # JSON is YAML.
        lab.write_text(json.dumps(topology(row, place.name, count, warm)))
        outcome = _run(lab, tree, row.where)
    evidence = evidence_of(row, outcome, count)
    check(row, evidence)
    return figure(row, evidence)


def _run(lab: Path, tree: Path, where: Where) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ARGOSY_")}
    environment["PYTHONPATH"] = os.fspath(tree)
    run_dir = lab.parent / "run"
    if where is Where.HOSTS:
        words = [os.fspath(lab.with_name(f"{PREFIX}{FABRIC}.py")), os.fspath(lab), os.fspath(run_dir)]
    else:
        words = ["-m", "topologies.cli", "run", os.fspath(lab), "--format", "json", "--run-dir", os.fspath(run_dir)]
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=lab.parent, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        outcome: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LabFailed(f"argosy run ended with {done.returncode}: {done.stderr.strip()}") from None
    if done.returncode == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        logs = [path.read_text(errors="replace").strip() for path in sorted(run_dir.glob("nodes/*/log"))]
        raise LabFailed("; ".join([*outcome.get("reasons", ()), *(log for log in logs if log)]))
    return outcome


def evidence_of(row: Row, outcome: dict[str, Any], count: int) -> Evidence:
    """What the outcome of a run says about a round of `count` messages."""
    nodes = {node["name"]: node for node in outcome["nodes"]}
    homes = HOMES[row.where]
    counters = {who: nodes[getattr(homes, who)]["counters"] for who in ("sender", "receiver")}
    hosts = [nodes[name]["counters"].get("host", {}) for name in sorted(set(homes[:2]))]
    if row.where is Where.LEVELS:  # its uplink is the parent's Argo: each frame is a message with one record
        frames = nodes[homes.parent]["counters"].get("arch", {}).get(homes.child, {}).get("messages", 0)
        hop = {"frames": frames, "records": nodes[homes.parent]["counters"].get("level", {}).get("downlink_up", 0)}
    else:
        hop = counters["sender"].get("fabric", {})
    return Evidence(
        messages=count,
        sender=nodes["sender"]["result"],
        receiver=nodes["receiver"]["result"],
        executed={who: counters[who].get("arch", {}).get(who, {}) for who in counters},
        host={"doorbells": sum(host.get("doorbells", 0) for host in hosts)},
        far={who: counters[who].get("level", {}) for who in counters},
        hop=hop,
    )


def figure(row: Row, evidence: Evidence) -> Round:
    """The value of a proven round."""
    columns: dict[str, Any] = evidence.columns(row)
    sender, receiver = evidence.sender, evidence.receiver
    if "samples_ns" in sender:
        samples = [sample / 1000 for sample in sender["samples_ns"]]
        columns["p50"], columns["p99"] = quantile(samples, 0.5), quantile(samples, 0.99)
        return Round(columns["p50"], columns)
    timed = receiver["timed"]
    # CPU microseconds per message of the three processes: which of them is the slowest stage.
    columns["cpu_us"] = {
        "sender": sender["cpu_ns"] / sender["timed"] / 1000,
        "hypervisor": receiver["hypervisor_cpu_ns"] / timed / 1000,
        "receiver": receiver["cpu_ns"] / timed / 1000,
    }
    if row.kind is Kind.CPU:
        return Round(columns["cpu_us"]["hypervisor"], columns)
    return Round(timed / (receiver["wall_ns"] / 1e9), columns)
