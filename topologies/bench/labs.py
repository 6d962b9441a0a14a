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
from typing import Any, Final

from topologies.bench.figures import quantile
from topologies.bench.proof import Evidence, check
from topologies.bench.rows import GUESTS_OF, MIB, WARM_SHARE, Kind, Row
from topologies.exitcodes import ExitCode

PREFIX: Final = "argosy_bench_"  # in front of the measuring modules' names where a lab finds them
PROGRAMS: Final = f"{PREFIX}guests"
MODULES: Final = ("guests", "inbox", "ledger")
WITHIN: Final = 60.0  # seconds for one round
OWN_TREE: Final = Path(__file__).resolve().parents[2]


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
        "inplace": row.kind is Kind.INPLACE,
    }  # fmt: skip
    memory = f"{max(16, (2 * row.ring + 2 * (row.window + 4) * row.size) // MIB + 8)}MiB"
    return {
        "name": name,
        "hypervisors": {"hv0": {"personality": "xen"}},
        "guests": {
            who: {"on": "hv0", "memory": memory, "program": f"{PROGRAMS}:{program}", "with": arguments}
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
        outcome = _run(lab, tree)
    evidence = evidence_of(outcome, count)
    check(row, evidence)
    return figure(row, evidence)


def _run(lab: Path, tree: Path) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ARGOSY_")}
    environment["PYTHONPATH"] = os.fspath(tree)
    words = [sys.executable, "-P", "-m", "topologies.cli", "run", os.fspath(lab), "--format", "json"]
    run_dir = lab.parent / "run"
    done = subprocess.run(
        [*words, "--run-dir", os.fspath(run_dir)], cwd=lab.parent, env=environment, stdin=subprocess.DEVNULL,
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


def evidence_of(outcome: dict[str, Any], count: int) -> Evidence:
    """What the outcome of a run says about a round of `count` messages."""
    nodes = {node["name"]: node for node in outcome["nodes"]}
    counters = nodes["hv0"]["counters"]
    return Evidence(
        messages=count,
        sender=nodes["sender"]["result"],
        receiver=nodes["receiver"]["result"],
        executed=counters.get("arch", {}),
        host=counters.get("host", {}),
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
