"""What is started again: the broker always, a hypervisor or guest where its topology says so.  And a guest that is
killed for good reason.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until
from tests.e2e.test_transfer import MIB, PROGRAMS, TOPOLOGY

pytestmark = pytest.mark.timeout(90)


def broker(rig: Rig) -> dict[str, Any]:
    return rig.node("broker")


def ready_events(rig: Rig, node: str) -> int:
    """How often a node of the transfer has declared itself ready."""
    events = (rig.base / "stalling" / "nodes" / node / "events.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "ready" for line in events)


def wait_for_life(rig: Rig, life: int) -> None:
    """Until the broker is ready in its life number `life`, from 0."""
    wait_until(lambda: (broker(rig)["restarts"], broker(rig)["state"]) == (life, "ready"))


def test_the_broker_dies_twice_in_a_transfer(rig: Rig) -> None:
    """contracts 8: restarted with a new epoch, nodes join again by themselves, local data keeps flowing."""
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, rig.topologies)
    text = TOPOLOGY.format(bytes=48 * MIB, ring=65536, stall=0.03, within=60, more="")
    command = rig.start("run", rig.topology(text), "--format", "json")
    wait_until(lambda: rig.node("receiver")["state"] == "ready")
    for life in (1, 2):
        time.sleep(0.2)
        before = rig.nodes()
        os.kill(before["broker"]["pid"], signal.SIGKILL)
        wait_for_life(rig, life)
        now = rig.nodes()
        assert now["broker"]["pid"] != before["broker"]["pid"]
        assert now["broker"]["last_error"] == "was killed by SIGKILL"
        assert {now[name]["pid"] == before[name]["pid"] for name in ("hv0", "sender", "receiver")} == {True}
        assert [state["epoch"] for state in rig.states()] == [life + 1]
        for name in ("hv0", "sender"):  # each declares itself again
            wait_until(lambda name=name, life=life: ready_events(rig, name) == life + 1, 10)  # type: ignore[misc]
        assert rig.node("sender")["state"] == "ready", "the transfer is over too early for this test"
    done = finish(command, 80)
    assert done.returncode == 0, done.stderr
    results = {node["name"]: node["result"] for node in json.loads(done.stdout)["nodes"]}
    assert results["sender"]["sha256"] == results["receiver"]["sha256"]
    rig.wait_for_nothing()


def test_a_broker_that_dies_too_often_takes_the_lab_down(rig: Rig) -> None:
    """The sixth death within 60 s: verdict 5 with the reason, nothing left."""
    command = rig.start("run", rig.topology(lab(guest("app", "forever"))))
    wait_until(lambda: rig.node("app")["state"] == "ready")
    for life in range(6):
        wait_for_life(rig, life)
        os.kill(broker(rig)["pid"], signal.SIGKILL)
    done = finish(command)
    assert done.returncode == 5, done.stderr
    assert "argosy: broker broker was killed by SIGKILL: it was started again 5 times within 60 s" in done.stderr
    rig.wait_for_nothing()


def test_a_guest_that_is_started_again_has_a_fresh_domain(rig: Rig) -> None:
    """Its peers see ECONNREFUSED, then ESRCH of the old id, then reach it under the new one by its name."""
    rig.program(PEERS)
    peer = guest("peer", "takes", restart="on-failure")
    guests = guest("app", "counts", to="peer", directory=str(rig.runtime)) + peer
    text = lab(guests).replace("mac-permissive: true", "mac-permissive: true, linger: 60ms")
    assert rig.run("up", "-d", rig.topology(text)).returncode == 0
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(rig.node("peer")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.seen("app")[-1:] == ["3 ok"], 10)
    lines = rig.seen("app")
    after = lines[lines.index("2 ok") + 1 :]
    # Whether the peers' table changes before or after ESRCH was seen is a matter of milliseconds; a linger longer
    # than the back-off would hide it altogether.
    assert after[0] == "2 Connection refused", lines
    assert after[-1] == "3 ok", lines
    assert set(after[1:-1]) <= {"2 No such process", "3 Connection refused"}, lines
    found = rig.node("peer")
    assert (found["state"], found["domid"], found["restarts"]) == ("ready", 3, 1)
    assert "domain 3 peers {'app': 1}" in rig.run("logs", "peer").stdout
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_a_hypervisor_that_is_started_again(rig: Rig) -> None:
    """Its guests come with it, in fresh domains, and find each other there; the other hypervisor's notice nothing."""
    rig.program(PEERS)
    directory = str(rig.runtime)
    guests = guest("app", "counts", to="peer", directory=directory) + guest("peer", "takes")
    others = guest("left", "counts", to="right", directory=directory) + guest("right", "takes")
    text = lab(guests + others.replace("on: hv0", "on: hv1"))
    one = "  hv0: {argo: {mac-permissive: true}}\n"
    text = text.replace(one, one.replace("{argo", "{restart: on-failure, argo") + one.replace("hv0", "hv1"))
    assert rig.run("up", "-d", rig.topology(text)).returncode == 0
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    before = rig.nodes()
    for life, (mine, domid) in enumerate(((3, 4), (5, 6)), 1):
        os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
        wait_until(lambda domid=domid: rig.seen("app")[-1:] == [f"{domid} ok"], 10)  # type: ignore[misc]
        wait_until(lambda: {node["state"] for node in rig.nodes().values()} == {"ready"}, 10)
        now = rig.nodes()
        lives = {name: (node["domid"], node["restarts"]) for name, node in now.items() if name != "broker"}
        assert lives == {
            "hv0": (None, life), "hv1": (None, 0), "app": (mine, life), "peer": (domid, life),
            "left": (1, 0), "right": (2, 0),
        }  # fmt: skip
        assert now["hv0"]["last_error"] == "was killed by SIGKILL"
        wait_until(lambda: "hypervisor hv0 is gone" in rig.node("app")["last_error"], 5)
    assert {name: rig.node(name)["pid"] for name in ("broker", "hv1", "left", "right")} == {
        name: before[name]["pid"] for name in ("broker", "hv1", "left", "right")
    }
    sent = rig.sent("left")
    wait_until(lambda: rig.sent("left") > sent + 3, 5)
    assert rig.seen("left")[-1] == "2 ok"
    row = next(line for line in rig.run("ps").stdout.splitlines() if " hv0 " in line)
    assert "before it was killed by SIGKILL" in row
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_a_run_whose_hypervisor_is_started_again(rig: Rig) -> None:
    """It is no fault: the checks are about the guests' last lives.  One that never lets go is killed, and comes too."""
    rig.program(PEERS)
    directory = str(rig.runtime)
    guests = guest("app", "second_life", directory=directory) + guest("peer", "second_life", directory=directory)
    checks = "  - {name: through, guest: app, expect: {exit: 0}, within: 20s}"
    text = lab(guests, checks=checks).replace("hv0: {argo", "hv0: {restart: on-failure, argo")
    command = rig.start("run", rig.topology(text), "--format", "json")
    wait_until(lambda: {rig.node(name)["state"] for name in ("app", "peer")} == {"ready"})
    os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
    done = finish(command)
    assert done.returncode == 0, done.stderr
    found = {node["name"]: node for node in json.loads(done.stdout)["nodes"]}
    assert (found["hv0"]["restarts"], found["hv0"]["state"]) == (1, "stopped")
    assert {(found[name]["restarts"], found[name]["state"]) for name in ("app", "peer")} == {(1, "exited")}
    assert (found["app"]["result"]["domid"], found["app"]["result"]["peers"]) == (3, {"peer": 4})
    inline = rig.run("run", "lab.yaml", "--runtime", "inline")
    assert inline.returncode == 2
    assert "restart: on-failure (hypervisor hv0) is not yet available in the inline runtime" in inline.stderr
    rig.wait_for_nothing()


def test_a_guest_and_its_hypervisor_that_are_seen_gone_together(rig: Rig) -> None:
    """Whichever of them is seen first: the guest had nothing to live on, so it is no fault, and comes again."""
    rig.program(PEERS)
    app = guest("app", "second_life", directory=str(rig.runtime))
    command = rig.start("run", rig.topology(lab(app).replace("hv0: {argo", "hv0: {restart: on-failure, argo")))
    wait_until(lambda: rig.node("app")["state"] == "ready")
    agent, pids = rig.states()[0]["agent"]["pid"], {name: node["pid"] for name, node in rig.nodes().items()}
    os.kill(agent, signal.SIGSTOP)
    for name in ("app", "hv0"):
        os.kill(pids[name], signal.SIGKILL)
        wait_until(lambda pid=pids[name]: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
    os.kill(agent, signal.SIGCONT)
    done = finish(command)
    assert done.returncode == 0, done.stderr
    rig.wait_for_nothing()


def test_peers_see_esrch_of_a_dead_guest(rig: Rig) -> None:
    """Nobody takes its place: ECONNREFUSED while it is dying, ESRCH from then on."""
    rig.program(PEERS)
    guests = guest("app", "counts", to="peer", directory=str(rig.runtime)) + guest("peer", "takes")
    text = lab(guests).replace("mac-permissive: true", "mac-permissive: true, linger: 300ms")
    assert rig.run("up", "-d", rig.topology(text)).returncode == 0
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(rig.node("peer")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.seen("app")[-2:] == ["2 Connection refused", "2 No such process"], 5)
    assert rig.run("down").returncode == 0


def test_a_guest_that_fails_until_it_does_not(rig: Rig) -> None:
    """restart: on-failure; the check is about the life that ended well."""
    rig.program(PEERS)
    directory = rig.runtime / "shared"
    directory.mkdir()
    app = guest("app", "fails_twice", restart="on-failure", directory=str(directory))
    done = rig.run("run", rig.topology(lab(app)), "--format", "json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    found = next(node for node in outcome["nodes"] if node["name"] == "app")
    assert (found["restarts"], found["result"]["lives"], found["domid"]) == (2, 3, 3)
    assert "not yet" in found["last_error"]
    inline = rig.run("run", "lab.yaml", "--runtime", "inline")
    assert inline.returncode == 2
    assert "not yet available in the inline runtime" in inline.stderr
    assert rig.leftovers() == []


def test_a_guest_that_closes_its_attach_socket_is_killed(rig: Rig) -> None:
    """contracts 8: the hypervisor says that the connection ended, the agent kills the process that lives on."""
    rig.program(PEERS)
    done = rig.run("run", rig.topology(lab(guest("app", "closes"))))
    assert done.returncode == 5, done.stderr
    assert "guest app was killed by SIGKILL: it closed its attach connection and lived on" in done.stderr
    rig.wait_for_nothing()


def test_a_program_that_never_awaits(rig: Rig) -> None:
    """It is ready, then shown as unresponsive with its age, and never killed for it."""
    rig.program(PEERS)
    assert rig.run("up", "-d", rig.topology(lab(guest("app", "never_awaits")))).returncode == 0
    pid = rig.node("app")["pid"]
    wait_until(lambda: (rig.node("app")["silent"] or 0) > 2.5, 10)
    assert (rig.node("app")["state"], rig.node("app")["pid"]) == ("ready", pid)
    assert "unresponsive" in rig.run("ps").stdout
    events = (rig.base / "lab" / "nodes" / "app" / "events.jsonl").read_text()
    assert [json.loads(line)["event"] for line in events.splitlines()][-1] == "unresponsive"
    assert Path(f"/proc/{pid}").exists()
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()
