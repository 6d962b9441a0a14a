"""Bytes through real processes: the hash matches however both sides stall, and whatever a neighbour writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from topologies.exitcodes import ExitCode

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20

TOPOLOGY = """
name: stalling
hypervisors: {{hv0: {{personality: xen, argo: {{mac-permissive: true}}}}}}
guests:
  receiver: {{on: hv0, memory: 16MiB, program: "stalling:receive",
             with: {{bytes: {bytes}, ring: {ring}, stall: {stall}}}}}
  sender: {{on: hv0, memory: 16MiB, program: "stalling:send",
           with: {{to: receiver, bytes: {bytes}, ring: {ring}, stall: {stall}}}}}
{more}
checks:
  - {{name: sent, guest: sender, expect: {{exit: 0}}, within: {within}s}}
  - {{name: received, guest: receiver, expect: {{exit: 0}}, within: {within}s}}
"""


def argosy(directory: Path, *arguments: str, timeout: float = 60) -> tuple[int, dict[str, Any], str]:
    """Run the command with its state below `directory`: exit code, the JSON it printed, its standard error."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_RUNTIME_DIR": str(directory)}
    done = subprocess.run(
        [sys.executable, "-m", "topologies.cli", *arguments],
        capture_output=True, timeout=timeout, env=environment, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def transfer(
    directory: Path, size: int, *options: str, stall: float = 0.02, ring: int = 65536, within: int = 60, more: str = ""
) -> dict[str, Any]:
    """Send `size` bytes; the outcome, which must be a success with equal hashes."""
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, directory)
    lab = directory / "lab.yaml"
    lab.write_text(TOPOLOGY.format(bytes=size, ring=ring, stall=stall, within=within, more=more))
    code, outcome, errors = argosy(directory, "run", str(lab), "--format", "json", *options, timeout=within + 30)
    assert code == ExitCode.OK, (outcome.get("reasons"), errors)
    results = {node["name"]: node["result"] for node in outcome["nodes"]}
    assert results["sender"]["sha256"] == results["receiver"]["sha256"]
    assert results["receiver"]["bytes"] == size
    return outcome


@pytest.mark.timeout(100)
def test_64_mib_through_a_64_kib_ring_pair(short_tmp_path: Path) -> None:
    """Random sizes, both sides stall at random, fixed seed: the hash matches within 60 s."""
    transfer(short_tmp_path, 64 * MIB, "--seed", "1")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_in_virtual_time(short_tmp_path: Path, seed: int) -> None:
    """The inline runtime gives the same verdict and the same hash as processes do: the data come from the seed."""
    inline = transfer(short_tmp_path, 2 * MIB, "--runtime", "inline", "--seed", str(seed))
    processes = transfer(short_tmp_path, 2 * MIB, "--seed", str(seed))
    hashes = [
        {node["name"]: node["result"]["sha256"] for node in outcome["nodes"] if node["kind"] == "guest"}
        for outcome in (inline, processes)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("ring", [48 * 16, 4032])
def test_small_rings_carry_it_too(short_tmp_path: Path, ring: int) -> None:
    """Frames shrink to what the peer's ring takes."""
    transfer(short_tmp_path, MIB // 2, "--seed", "5", ring=ring, stall=0.001)


@pytest.mark.timeout(100)
def test_a_neighbour_full_of_noise_harms_only_itself(short_tmp_path: Path) -> None:
    """A third guest writes random bytes over its RAM, its vCPU area and its rings all the while."""
    noise = '  noisy: {on: hv0, memory: 1MiB, program: "noisy:main"}'
    outcome = transfer(short_tmp_path, 16 * MIB, "--seed", "1", more=noise)
    noisy = next(node for node in outcome["nodes"] if node["name"] == "noisy")
    assert noisy["state"] in ("stopped", "exited", "failed", "died")
    log = Path(outcome["run_dir"]) / "nodes/noisy/log"
    assert "rounds of noise" in log.read_text()


@pytest.mark.long
def test_1_gib_through_a_64_kib_ring_pair(short_tmp_path: Path) -> None:
    """The same, sixteen times as long."""
    transfer(short_tmp_path, 1024 * MIB, "--seed", "1", within=900)
