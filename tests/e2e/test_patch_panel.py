"""Slots and policy in running labs: who is led where, live changes, and that what is taken away is gone at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hmx.xen import DOMID_SELF
from tests.e2e.rig import ROOT, Rig, finish, wait_until

pytestmark = pytest.mark.timeout(120)

LIBRARY = ROOT / "topologies" / "library"
PROGRAMS = Path(__file__).parent / "programs"
WITHIN = 15.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""

PANEL = """
name: panel
defaults: {{argo: {{mac-permissive: true}}}}
hypervisors: {{hv0: {{}}, hv1: {{}}}}
links: [{{between: [hv0, hv1]}}]
guests:
  asker: {{on: hv0, memory: 16MiB, implicit-only: {confined}, program: 'panel:asks', with: {asks}}}
  near: {{on: hv0, memory: 16MiB, serves: [echo], program: 'panel:hears', with: {directory}}}
  far: {{on: hv1, memory: 16MiB, program: 'panel:hears', with: {directory}}}
{more}
"""
RULE = "policy: {{module: firewall, labels: {{asker: a_t, near: n_t, far: f_t}}, allow: [{rules}]}}"
NEAR, FAR = "{from: a_t, to: n_t, ports: [echo]}", "{from: a_t, to: f_t, ports: [echo]}"
GONE, DENIED = "No such process", "Permission denied"


def panel(rig: Rig, to: str | None = None, *, more: str = "") -> str:
    """An asker on hv0; near beside it and far on hv1 count what arrives."""
    given = {"directory": str(rig.runtime)}
    asks = json.dumps(given if to is None else {**given, "to": to})
    return PANEL.format(confined=json.dumps(to is None), asks=asks, directory=json.dumps(given), more=more)


def up(rig: Rig, text: str) -> None:
    shutil.copy(PROGRAMS / "panel.py", rig.topologies / "panel.py")
    done = rig.run("up", "-d", rig.topology(text))
    assert done.returncode == 0, done.stderr
    for name in ("near", "far"):
        wait_until(lambda name=name: (rig.runtime / f"sent-{name}").exists(), WITHIN)  # type: ignore[misc]


def change(rig: Rig, *arguments: str) -> None:
    done = rig.run(*arguments)
    assert done.returncode == 0, done.stderr


def grows(rig: Rig, name: str) -> None:
    """Messages arrive there."""
    before = rig.sent(name)
    wait_until(lambda: rig.sent(name) > before + 3, WITHIN)


def rests(rig: Rig, *names: str) -> None:
    """From now on nothing arrives there, but for what lay in the ring already."""
    time.sleep(0.2)
    before = [rig.sent(name) for name in names]
    time.sleep(0.5)
    assert [rig.sent(name) for name in names] == before


def down(rig: Rig) -> None:
    assert rig.run("down", "panel").returncode == 0
    rig.wait_for_nothing()


@pytest.mark.parametrize("runtime", ["processes", "inline"])
@pytest.mark.parametrize("name", ["patch-panel", "firewall"])
def test_shipped(rig: Rig, name: str, runtime: str) -> None:
    """The topologies of the library: the same verdicts in both runtimes."""
    done = finish(rig.start("run", str(LIBRARY / f"{name}.yaml"), "--runtime", runtime, "--format", "json"), 90)
    assert done.returncode == 0, done.stderr
    assert [check["passed"] for check in json.loads(done.stdout)["checks"]] == [True] * 3
    rig.wait_for_nothing()


def test_connect_and_disconnect(rig: Rig) -> None:
    """A guest that knows nobody is led here, there, and nowhere; when a command has returned, it is so."""
    up(rig, panel(rig))
    wait_until(lambda: rig.seen("asker")[-1:] == [GONE], WITHIN)
    change(rig, "connect", "asker", "echo", "near")
    grows(rig, "near")
    change(rig, "connect", "asker", "echo", "far")
    grows(rig, "far")
    rests(rig, "near")
    (hv0,) = (node for node in rig.json("inspect", "hv0")["labs"]["panel"] if node["name"] == "hv0")
    assert [(row["slot"], row["to"], row["port"]) for row in hv0["slots"]] == [("hv0/asker#0x1", "hv1/far", 7)]
    change(rig, "disconnect", "asker", "echo")
    rests(rig, "near", "far")
    assert rig.seen("asker")[-1] == GONE
    done = rig.run("disconnect", "asker", "echo")
    assert (done.returncode, "asker holds no such slot" in done.stderr) == (1, True), done.stderr
    for arguments in (("asker", "nothing", "near"), ("asker", "echo", "nobody"), ("nobody", "echo", "near")):
        done = rig.run("connect", *arguments)
        assert done.returncode not in (0, 5), done.stderr
        assert "argosy: " in done.stderr
    down(rig)


def test_a_policy_is_changed(rig: Rig) -> None:
    """Every hypervisor judges by the new one; what it allows goes on."""
    up(rig, panel(rig, "far", more=RULE.format(rules=FAR)))
    grows(rig, "far")
    change(rig, "policy", rig.topology(panel(rig, "far", more=RULE.format(rules=NEAR)), "other.yaml"))
    rests(rig, "far")
    assert rig.seen("asker")[-1] == DENIED
    (hv0,) = rig.json("inspect", "hv0")["labs"]["panel"]
    assert hv0["policy"]["denied"] > 10
    assert hv0["policy"]["denials"][0][:2] == ["asker", "far"]
    events = (rig.base / "panel" / "nodes" / "hv0" / "events.jsonl").read_text()
    assert events.count('"policy-denied"') == 1
    change(rig, "policy", rig.topology(panel(rig, "far", more=RULE.format(rules=f"{NEAR}, {FAR}")), "other.yaml"))
    grows(rig, "far")
    down(rig)


def test_a_policy_comes_to_a_lab_that_had_none(rig: Rig) -> None:
    """From one moment to the next."""
    up(rig, panel(rig, "near"))
    grows(rig, "near")
    change(rig, "policy", rig.topology(panel(rig, "near", more=RULE.format(rules="")), "other.yaml"))
    rests(rig, "near")
    assert rig.seen("asker")[-1] == DENIED
    down(rig)


def test_labels_are_changed(rig: Rig) -> None:
    """With the policy, at every hypervisor and in the fabric: what both allow goes on, and another one is let in."""
    up(rig, panel(rig, "far", more=RULE.format(rules=FAR)))
    grows(rig, "far")
    labels, first = "asker: a_t, near: n_t, far: f_t", rig.seen("asker").index("ok")
    pairs = (("asker: x_t, far: y_t", "{from: x_t, to: y_t}"), (labels, FAR), ("asker: z_t", "{from: z_t, to: '*'}"))
    for given, rule in pairs:
        text = panel(rig, "far", more=RULE.format(rules=rule).replace(labels, given))
        change(rig, "policy", rig.topology(text, "other.yaml"))
        grows(rig, "far")
    assert rig.seen("asker")[first:] == ["ok"]
    os.kill(rig.node("broker")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("broker")["restarts"] == 1, WITHIN)
    grows(rig, "far")
    assert DENIED not in rig.seen("asker")
    text = panel(rig, "far", more=RULE.format(rules=FAR).replace(labels, "asker: f_t, far: a_t"))
    change(rig, "policy", rig.topology(text, "other.yaml"))
    rests(rig, "far")
    assert rig.seen("asker")[-1] == DENIED
    events = "".join(path.read_text() for path in (rig.base / "panel").rglob("*.jsonl"))
    assert '"policy-denied"' in events and "forged" not in events
    down(rig)


def test_a_link_is_impaired(rig: Rig) -> None:
    """Cut and mended; what is asked for meanwhile is refused or comes later."""
    up(rig, panel(rig, "far"))
    grows(rig, "far")
    change(rig, "impair", "hv0", "hv1", "--partition")
    rests(rig, "far")
    change(rig, "impair", "hv0", "hv1", "--delay", "5ms")
    grows(rig, "far")
    change(rig, "impair", "hv0", "hv1")
    grows(rig, "far")
    assert rig.run("impair", "hv0", "hv0").returncode != 0
    assert rig.run("impair", "hv0", "hv1", "--loss", "x").returncode != 0
    down(rig)


def test_a_hypervisor_that_is_started_again(rig: Rig) -> None:
    """It begins with what the topology says, and is told what was changed since before a guest of its runs."""
    text, again = panel(rig).replace("hv0: {}", "hv0: {restart: on-failure}"), "restart: on-failure, "
    up(rig, text.replace("asker: {", "asker: {" + again).replace("near: {", "near: {" + again))
    change(rig, "connect", "asker", "echo", "near")
    grows(rig, "near")
    os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("asker")["restarts"] == 1 and rig.node("asker")["state"] == "ready", WITHIN)
    grows(rig, "near")
    change(rig, "disconnect", "asker", "echo")
    rests(rig, "near")
    down(rig)


CONFINED = """
name: confined
defaults: {{argo: {{mac-permissive: true}}}}
hypervisors: {{hv0: {{}}, hv1: {{}}}}
links: [{{between: [hv0, hv1]}}]
guests:
  prisoner: {{on: hv0, memory: 16MiB, implicit-only: true, program: 'panel:tries', with: {tries}}}
  beside: {{on: hv0, memory: 16MiB, program: 'panel:hides', with: {directory}}}
  away: {{on: hv1, memory: 16MiB, program: 'panel:hides', with: {directory}}}
  also: {{on: hv0, memory: 16MiB, program: 'panel:hides', with: {directory}}}
checks:
  - {{guest: prisoner, expect: {{exit: 0}}, within: 90s}}
  - {{guest: beside, expect: {{exit: 0}}, within: 90s}}
  - {{guest: away, expect: {{exit: 0}}, within: 90s}}
  - {{guest: also, expect: {{exit: 0}}, within: 90s}}
"""


@pytest.mark.parametrize(("runtime", "domids", "ports"), [("processes", 0x10000, 100_000), ("inline", 0x1000, 4_000)])
def test_a_confined_guest_reaches_nothing(rig: Rig, runtime: str, domids: int, ports: int) -> None:
    """Every domain id and 10^5 random ports: one answer, nobody heard anything, and it does not know its own id."""
    shutil.copy(PROGRAMS / "panel.py", rig.topologies / "panel.py")
    given = {"directory": str(rig.runtime)}
    tries = json.dumps({"domids": domids, "ports": ports, **given})
    text = CONFINED.format(tries=tries, directory=json.dumps(given))
    done = finish(rig.start("run", rig.topology(text), "--runtime", runtime, "--format", "json"), 110)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {node["name"]: node["result"] for node in json.loads(done.stdout)["nodes"]}
    told = found["prisoner"]
    assert told["tried"] > domids + ports
    assert (told["other"], told["peers"], told["told"], told["own"]) == ({}, {}, [], DOMID_SELF)
    assert [found[name]["heard"] for name in ("beside", "also", "away")] == [0, 0, 0]
    rig.wait_for_nothing()
