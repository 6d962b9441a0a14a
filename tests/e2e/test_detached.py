"""Labs that stay up: up -d, ps, logs, down; several labs; the same lab twice."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.e2e.rig import Rig, finish, guest, lab, wait_until

pytestmark = pytest.mark.timeout(60)

FOREVER = lab(guest("app", "forever"))


def test_up_ps_logs_down(rig: Rig) -> None:
    """The whole life of a detached lab."""
    up = rig.run("up", "-d", rig.topology(FOREVER))
    assert up.returncode == 0, up.stderr
    assert "lab is up" in up.stdout

    found = rig.json("ps")
    assert found["schema"] == "ps/1"
    (running,) = found["labs"]
    assert running["lab"] == "lab"
    assert running["phase"] == "running"
    states = {node["name"]: (node["kind"], node["state"]) for node in running["nodes"]}
    assert states == {
        "broker": ("broker", "ready"),
        "hv0": ("hypervisor", "ready"),
        "app": ("guest", "ready"),
    }
    assert all(os.path.exists(f"/proc/{node['pid']}") for node in running["nodes"])
    table = rig.run("ps").stdout.splitlines()
    assert table[0].split()[:5] == ["lab", "node", "kind", "state", "pid"]
    assert len(table) == 4

    log = rig.base / "lab" / "nodes" / "app" / "log"
    wait_until(lambda: log.read_text() == "waiting\n")
    assert rig.run("logs", "app").stdout == "waiting\n"
    follower = rig.start("logs", "-f", "app")
    down = rig.run("down")
    assert down.returncode == 0, down.stderr
    assert down.stdout == "lab is down\n"
    followed = finish(follower)
    assert followed.returncode == 0
    assert "waiting" in followed.stdout
    assert rig.leftovers() == []
    assert rig.json("ps") == {"schema": "ps/1", "labs": []}
    (ended,) = rig.json("ps", "--all")["labs"]
    assert ended["outcome"]["verdict"] == "ok"


def test_a_detached_lab_tells_of_its_dead(rig: Rig) -> None:
    """A node's death does not take a detached lab down; `ps` says what died and why."""
    file = rig.topology(lab(guest("app", "forever") + guest("peer", "forever")))
    assert rig.run("up", "-d", file).returncode == 0
    os.kill(rig.nodes()["app"]["pid"], signal.SIGKILL)
    wait_until(lambda: rig.nodes()["app"]["state"] == "died")
    assert rig.nodes()["app"]["signal"] == signal.SIGKILL
    assert rig.nodes()["peer"]["state"] == "ready"
    row = next(line for line in rig.run("ps").stdout.splitlines() if " app " in line)
    assert "died" in row
    assert "killed by SIGKILL" in row
    events = (rig.base / "lab" / "nodes" / "app" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events if "probe" not in line] == [
        "starting",
        "joined",
        "ready",
        "died",
        "exited",
    ]

    os.kill(rig.nodes()["hv0"]["pid"], signal.SIGSTOP)
    wait_until(lambda: rig.nodes()["hv0"]["silent"] is not None, 10)
    row = next(line for line in rig.run("ps").stdout.splitlines() if " hv0 " in line)
    assert "unresponsive" in row
    assert "not heard for" in row
    os.kill(rig.nodes()["hv0"]["pid"], signal.SIGCONT)
    wait_until(lambda: rig.nodes()["hv0"]["silent"] is None)
    assert rig.run("down", "lab").returncode == 0
    assert rig.leftovers() == []


def test_up_that_fails_leaves_nothing(rig: Rig) -> None:
    """A lab that does not come up goes down by itself, with a verdict."""
    done = rig.run("up", "-d", rig.topology(lab(guest("app", "missing"))))
    assert done.returncode == 1, done.stderr
    assert "missing" in done.stderr
    assert rig.leftovers() == []


def test_the_same_lab_twice(rig: Rig) -> None:
    """The second is refused with exit code 4, naming the holder's pid and since when; the first goes on."""
    file = rig.topology(FOREVER)
    assert rig.run("up", "-d", file).returncode == 0
    pid = json.loads((rig.base / "lab" / "lock").read_text())["pid"]
    path = str(rig.base / "lab")
    for arguments in (
        ["run", file],
        ["up", file],
        ["up", "-d", file],
        ["run", file, "--runtime", "inline"],
        ["run", file, "--name", "other", "--run-dir", path],
    ):
        again = rig.run(*arguments)
        assert again.returncode == 4
        assert f"agent pid {pid}, since {time.strftime('%Y-')}" in again.stderr
    assert rig.nodes()["app"]["state"] == "ready"
    assert rig.run("down", "--all").returncode == 0
    assert rig.leftovers() == []


def test_two_labs_at_once(rig: Rig) -> None:
    """Each has its own name, directory and sockets; `down` wants to know which."""
    file = rig.topology(FOREVER)
    assert rig.run("up", "-d", file).returncode == 0
    assert rig.run("up", "-d", file, "--name", "other").returncode == 0
    assert [lab["lab"] for lab in rig.json("ps")["labs"]] == ["lab", "other"]
    unsure = rig.run("down")
    assert unsure.returncode == 2
    assert "lab, other" in unsure.stderr
    assert rig.run("logs", "app").returncode == 2
    assert rig.run("logs", "app", "--name", "other").returncode == 0
    assert rig.run("down", "other").returncode == 0
    assert [lab["lab"] for lab in rig.json("ps")["labs"]] == ["lab"]
    first = dict(rig.processes()).keys()
    assert rig.run("up", "-d", file, "--name", "other").returncode == 0
    agents = {state["lab"]: state["agent"]["pid"] for state in rig.states()}
    os.kill(agents["other"], signal.SIGKILL)
    wait_until(lambda: dict(rig.processes()).keys() == first, 2.0)
    assert rig.run("gc").returncode == 0
    assert {node["state"] for node in rig.nodes().values()} == {"ready"}
    assert [state["agent"]["pid"] for state in rig.states()] == [agents["lab"]]
    assert rig.run("down", "--all").returncode == 0
    assert rig.leftovers() == []


def test_down_ends_somebody_else_s_run(rig: Rig) -> None:
    """An attached run that is taken down from elsewhere was interrupted, and says by whom."""
    command = rig.start("run", rig.topology(FOREVER))
    wait_until(lambda: rig.nodes().get("app", {}).get("state") == "ready")
    assert rig.run("down", "lab").returncode == 0
    done = finish(command)
    assert done.returncode == 130
    assert "taken down by another command" in done.stderr
    assert rig.leftovers() == []


def test_dry_run_starts_nothing(rig: Rig) -> None:
    """The plan, in the order of the start; as JSON it is the planner's own."""
    file = rig.topology(FOREVER)
    done = rig.run("up", "--dry-run", file)
    assert done.returncode == 0, done.stderr
    assert "3. guest app (mine:forever, domain 1 on hv0)" in done.stdout
    plan = json.loads(rig.run("up", "--dry-run", file, "--format", "json").stdout)
    assert plan["lab"] == "lab"
    assert not rig.base.exists() or rig.leftovers() == []


def test_a_lab_below_a_very_long_path(rig: Rig) -> None:
    """Run directories and names of 200 bytes: sockets lie elsewhere, so nothing is too long for them."""
    path = rig.runtime / ("r" * 200)
    file = rig.topology(lab(guest("app", "fine"), name="n" * 60))
    done = rig.run("run", file, "--run-dir", str(path))
    assert done.returncode == 0, done.stderr
    assert (path / "nodes" / "app" / "log").exists()
    assert rig.leftovers() == []
