"""Labs of several hypervisors, inside one another and side by side, in one process with a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.mirror import MirrorMemory
from tests.topologies.inline.test_runtime import Silent, node
from topologies.exitcodes import ExitCode
from topologies.inline.runtime import InlineRuntime
from topologies.load import load
from topologies.plan import Places, plan
from topologies.runtime import Outcome

NESTED = """
name: levels
hypervisors:
  hv1: {{parent: hv0, personality: {inner}, argo: {{mac-permissive: true}}}}
  hv0: {{personality: {outer}, argo: {{mac-permissive: true}}}}
guests:
  receiver: {{on: {to}, program: builtin:file-receive, memory: 4MiB, with: {{ring: 65536}}}}
  sender: {{on: {at}, program: builtin:file-send, memory: 4MiB, with: {{to: receiver, file: payload, ring: 4032}}}}
checks:
  - {{name: sent, guest: sender, expect: {{exit: 0}}, within: 60s}}
"""
BESIDE = """
name: beside
hypervisors:
  hv0: {argo: {mac-permissive: true}}
  hv1: {parent: hv0, argo: {mac-permissive: true}}
  hv2: {argo: {mac-permissive: true}}
guests:
  receiver: {on: hv2, program: builtin:file-receive, memory: 4MiB, with: {ring: 65536}}
  sender: {on: hv1, program: builtin:file-send, memory: 4MiB, with: {to: receiver, file: payload, ring: 4032}}
  echo: {on: hv0, program: builtin:echo, memory: 4MiB}
  pinger: {on: hv2, program: builtin:ping-pong, memory: 4MiB, with: {to: echo, count: 50}}
checks:
  - {name: sent, guest: sender, expect: {exit: 0}, within: 60s}
  - {name: pinged, guest: pinger, expect: {exit: 0}, within: 60s}
"""
MODES = """
name: modes
hypervisors:
  hv0: {{doors: [hypercall, msr, mmio], argo: {{mac-permissive: true}}}}
  own: {{parent: hv0, argo: {{mac-permissive: true}}}}
  forward: {{parent: hv0, personality: kvm, argo: {{mode: forward}}}}
  steal: {{parent: hv0, personality: {personality}, argo: {{mode: steal}}}}
  far: {{argo: {{mac-permissive: true}}}}
guests:
  receiver: {{on: {to}, program: builtin:file-receive, memory: 4MiB, with: {{ring: 65536}}}}
  sender: {{on: {at}, program: builtin:file-send, memory: 4MiB, with: {{to: receiver, file: payload, ring: 4032}}}}
  echo: {{on: {to}, program: builtin:echo, memory: 4MiB}}
  pinger: {{on: {at}, program: builtin:ping-pong, memory: 4MiB, with: {{to: echo, count: 50}}}}
checks:
  - {{name: sent, guest: sender, expect: {{exit: 0}}, within: 60s}}
  - {{name: pinged, guest: pinger, expect: {{exit: 0}}, within: 60s}}
"""
MODE_WAYS = [
    ("forward", "hv0"), ("hv0", "forward"), ("steal", "hv0"), ("hv0", "steal"), ("forward", "own"), ("own", "forward"),
    ("steal", "own"), ("own", "steal"), ("steal", "far"), ("far", "steal"), ("forward", "far"), ("far", "forward"),
    ("steal", "forward"), ("forward", "steal"), ("steal", "steal"), ("forward", "forward"),
]  # fmt: skip


def run(directory: Path, text: str, seed: int = 0, **options: Any) -> tuple[Outcome, list[str]]:
    (directory / "lab.yaml").write_text(text)
    (directory / "payload").write_bytes(bytes(n * n % 251 for n in range(100_000)))
    places = Places(str(directory), str(directory / "run"), str(directory / "run"))
    runtime = InlineRuntime(seed, **options)
    made = plan(load(str(directory / "lab.yaml")), places, token=b"t" * 32, seed=seed)
    return runtime.run(made, Silent()), runtime.log


def level(outcome: Outcome, name: str) -> dict[str, int]:
    return dict(node(outcome, name).counters["level"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", [("hv1", "hv0"), ("hv0", "hv1")])
def test_a_file_crosses_a_level(tmp_path: Path, seed: int, way: tuple[str, str]) -> None:
    """Up and down, whatever the order of turns: equal hashes, each message sent once and executed once elsewhere."""
    at, to = way
    outcome, _ = run(tmp_path, NESTED.format(inner="xen", outer="xen", at=at, to=to), seed)
    assert outcome.code == ExitCode.OK, outcome.reasons
    assert node(outcome, "sender").result["sha256"] == node(outcome, "receiver").result["sha256"]
    assert level(outcome, at)["sends"] >= node(outcome, "sender").result["messages"]
    assert level(outcome, at)["outcome_unknown"] == level(outcome, to)["outcome_unknown"] == 0
    assert level(outcome, at)["repeats"] == 0


@pytest.mark.parametrize(("outer", "inner"), [("kvm", "xen"), ("xen", "kvm"), ("hyperv", "acrn")])
def test_a_parent_of_another_personality(tmp_path: Path, outer: str, inner: str) -> None:
    """The nested hypervisor calls by its parent's door, its guests by its own."""
    outcome, _ = run(tmp_path, NESTED.format(inner=inner, outer=outer, at="hv1", to="hv0"))
    assert outcome.code == ExitCode.OK, outcome.reasons


@pytest.mark.parametrize("seed", range(3))
def test_over_the_fabric_from_inside(tmp_path: Path, seed: int) -> None:
    """hv1 in hv0 to hv2 beside it, through the broker's router; and pings between the two L0s."""
    outcome, _ = run(tmp_path, BESIDE, seed)
    assert outcome.code == ExitCode.OK, outcome.reasons
    assert node(outcome, "sender").result["sha256"] == node(outcome, "receiver").result["sha256"]
    assert level(outcome, "hv0")["forwarded"] > 0


@pytest.mark.parametrize("way", MODE_WAYS, ids="-".join)
def test_guests_whose_argo_the_parent_serves(tmp_path: Path, way: tuple[str, str]) -> None:
    """Any mode to any place: a stream and datagrams arrive, and no operation was done twice or lost (issue 5.1)."""
    at, to = way
    outcome, _ = run(tmp_path, MODES.format(at=at, to=to, personality="hyperv"), 3)
    assert outcome.code == ExitCode.OK, outcome.reasons
    assert node(outcome, "sender").result["sha256"] == node(outcome, "receiver").result["sha256"]
    for name in {at, to} - {"hv0"}:
        assert level(outcome, name)["repeats"] == level(outcome, name)["outcome_unknown"] == 0
        if name in ("forward", "steal"):
            assert level(outcome, name)["sends"] == level(outcome, name)["executed"] == 0, "it implements nothing"


@pytest.mark.parametrize("to", ["hv0", "own", "forward", "far"])
def test_a_stolen_guest_s_implicit_destination(tmp_path: Path, to: str) -> None:
    """The slots of such a guest are at the hypervisor that serves it (argo.md 24.5)."""
    text = MODES.format(at="steal", to=to, personality="xen")
    text = text.replace("to: receiver,", "service: file,")
    text += "destinations: [{from: sender, service: file, to: receiver}]"
    outcome, _ = run(tmp_path, text, 2)
    assert outcome.code == ExitCode.OK, outcome.reasons
    assert node(outcome, "sender").result["sha256"] == node(outcome, "receiver").result["sha256"]


@pytest.mark.parametrize("personality", ["xen", "acrn", "uxen"])
def test_an_l1_of_any_personality_is_bypassed(tmp_path: Path, personality: str) -> None:
    """Its guests are interrupted as it does it, by an event channel, a line or a vector."""
    outcome, _ = run(tmp_path, MODES.format(at="steal", to="steal", personality=personality), 5)
    assert outcome.code == ExitCode.OK, outcome.reasons


def test_the_same_seed_gives_the_same_history(tmp_path: Path) -> None:
    """Levels, links and their timers included."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    logs = [run(tmp_path / name, BESIDE, 7)[1] for name in ("a", "b")]
    assert logs[0] == logs[1]
    assert run(tmp_path / "a", BESIDE, 8)[1] != logs[0]


def test_a_guest_inside_whose_memory_travels(tmp_path: Path) -> None:
    """Pages of guests are shown and written back around what a level does, not only around their own frames."""
    outcome, _ = run(
        tmp_path, NESTED.format(inner="xen", outer="xen", at="hv0", to="hv1"), memory=MirrorMemory
    )
    assert outcome.code == ExitCode.OK, outcome.reasons


def test_turns_of_a_nested_hypervisor_are_in_the_log(tmp_path: Path) -> None:
    """Its frames are executed by its parent like any domain's."""
    _, log = run(tmp_path, NESTED.format(inner="xen", outer="xen", at="hv1", to="hv0"))
    turns = [json.loads(line) for line in log]
    assert any(entry[1:4] == ["hv0", "turn", "hv1"] for entry in turns)
