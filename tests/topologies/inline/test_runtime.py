"""The inline runtime: same verdicts as in processes, one history per seed, mirrored memory, hanging guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.mirror import MirrorMemory
from topologies.agent.journal import ended_state
from topologies.exitcodes import ExitCode
from topologies.inline.runtime import InlineRuntime
from topologies.load import load
from topologies.plan import Places, Plan, plan
from topologies.runtime import NodeOutcome, NodeState, Outcome

REPOSITORY = Path(__file__).parents[3]


class Silent:
    def progress(self, record: Mapping[str, Any]) -> None:
        pass


TRANSFER = """
name: transfer
hypervisors: {hv0: {personality: xen, argo: {mac-permissive: true}}}
guests:
  receiver: {on: hv0, program: builtin:file-receive, memory: 4MiB, with: {ring: 65536}}
  sender: {on: hv0, program: builtin:file-send, memory: 4MiB, with: {to: receiver, file: payload, ring: 4032}}
checks:
  - {name: sent, guest: sender, expect: {exit: 0}, within: 20s}
"""


def prepare(directory: Path, text: str = TRANSFER, payload: int = 300_000) -> Plan:
    (directory / "lab.yaml").write_text(text)
    (directory / "payload").write_bytes(bytes(n * n % 251 for n in range(payload)))
    run = str(directory / "run")
    return plan(load(str(directory / "lab.yaml")), Places(str(directory), run, run), token=b"t" * 32)


def node(outcome: Outcome, name: str) -> NodeOutcome:
    return next(found for found in outcome.nodes if found.name == name)


def run(directory: Path, seed: int = 0, text: str = TRANSFER, **options: Any) -> tuple[Outcome, list[str]]:
    runtime = InlineRuntime(seed, **options)
    return runtime.run(prepare(directory, text), Silent()), runtime.log


@pytest.mark.parametrize("seed", range(5))
def test_a_file_arrives(tmp_path: Path, seed: int) -> None:
    """Verdict 0, equal hashes, the file in the receiver's directory."""
    outcome, _ = run(tmp_path, seed)
    assert outcome.code == ExitCode.OK and outcome.reasons == () and outcome.runtime == "inline"
    assert node(outcome, "sender").result["sha256"] == node(outcome, "receiver").result["sha256"]
    assert (tmp_path / "run/nodes/receiver/payload").read_bytes() == (tmp_path / "payload").read_bytes()


def test_the_same_seed_gives_the_same_history(tmp_path: Path) -> None:
    """Two runs in two interpreters whose hash seeds differ: the event logs are equal byte for byte."""
    script = (
        "import sys; from pathlib import Path; from tests.topologies.inline.test_runtime import run\n"
        "outcome, log = run(Path(sys.argv[1]), 11); sys.stdout.write('\\n'.join(log))"
    )
    logs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment,
            capture_output=True,
            timeout=50,
            check=True,
        )
        logs.append(done.stdout)
    assert logs[0] == logs[1] and logs[0].count(b"\n") > 30


def test_another_seed_gives_another_history(tmp_path: Path) -> None:
    """The seed is what decides: histories differ, verdicts do not."""
    histories = set()
    for seed in range(4):
        outcome, log = run(tmp_path, seed)
        assert outcome.code == ExitCode.OK
        histories.add("\n".join(log))
    assert len(histories) > 1


@pytest.mark.parametrize("seed", range(3))
def test_it_passes_on_mirrored_memory(tmp_path: Path, seed: int) -> None:
    """Every store that is not made through a Window is dropped, and what a call did not announce faults."""
    outcome, log = run(tmp_path, seed, memory=MirrorMemory)
    assert outcome.code == ExitCode.OK
    assert outcome.nodes[-1].result["sha256"] == outcome.nodes[-2].result["sha256"]
    assert log == run(tmp_path, seed)[1], "a mirror changes nothing that anybody can observe"


HANGING = """
name: hanging
hypervisors: {hv0: {}}
guests: {stuck: {on: hv0, program: "stuck:main"}}
"""


def test_a_guest_that_never_ends_is_named(tmp_path: Path) -> None:
    """An hour of virtual time passes at once; then the verdict is a timeout that says what was waited for."""
    (tmp_path / "stuck.py").write_text("import asyncio\nasync def main(guest):\n    await asyncio.Event().wait()\n")
    outcome, _ = run(tmp_path, text=HANGING)
    assert outcome.code == ExitCode.TIMEOUT
    assert "guest stuck to end" in outcome.reasons[0]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise ValueError('no such luck')", ExitCode.CHECK_FAILED, "ValueError: no such luck"),
        ("return 7", ExitCode.CHECK_FAILED, "exit code 7"),
        ("raise SystemExit(3)", ExitCode.CHECK_FAILED, "exit code 3"),
        ("return None", ExitCode.OK, ""),
        ("guest.result(a='x' * 49130)", ExitCode.OK, ""),
        ("guest.result(a='x' * 600000)", ExitCode.CHECK_FAILED, "bytes of JSON, and may be 49152: write a file"),
        ("grown = []; guest.result(a=grown); grown.append('x' * 60000)", ExitCode.CHECK_FAILED, "may be 49152"),
        ("raise ValueError('no' * 100000)", ExitCode.CHECK_FAILED, "no... (all of it is in the log)"),
    ],
)
def test_how_programs_end(tmp_path: Path, body: str, code: ExitCode, words: str) -> None:
    """What a program raises or returns is the guest's exit code and the verdict's reason."""
    name = f"ending_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"async def main(guest):\n    {body}\n")
    outcome, _ = run(tmp_path, text=HANGING.replace("stuck:main", f"{name}:main"))
    assert outcome.code == code
    assert words in " ".join(outcome.reasons)
    assert node(outcome, "stuck").state is (NodeState.EXITED if code is ExitCode.OK else NodeState.FAILED)


def test_probes_are_recorded(tmp_path: Path) -> None:
    """What each guest found its hypervisor to be, and why it chose: in the events, and in the state that is left."""
    runtime = InlineRuntime(3)
    outcome = runtime.run(prepare(tmp_path), Silent())
    assert set(runtime.probes) == {"receiver", "sender"}
    told = {origin: tuple(fields) for origin, code, *fields in outcome.events if code == "probe"}
    assert told == runtime.probes
    found = json.loads(runtime.probes["sender"][0])
    assert (found["chosen"], found["notification"], found["said"]) == ("hypercall", "virq", "")
    assert [seen["name"] for seen in found["hypervisors"]] == ["xen"]
    state = ended_state(outcome, "lab.yaml", runtime.probes, {"sender": "x86_64"})
    kept = {node["name"]: (node["probe"], node["arch"]) for node in state["nodes"]}
    assert kept["sender"] == (runtime.probes["sender"], "x86_64") and kept["hv0"] == (None, None)
