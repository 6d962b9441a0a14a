"""Hypervisors in hypervisors as processes: bytes, refusals, and what becomes of either when the other is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import PEERS, ROOT, Rig, finish, wait_until

pytestmark = pytest.mark.timeout(100)

LIBRARY = ROOT / "topologies" / "library"
PROGRAMS = Path(__file__).parent / "programs"
WITHIN = 10.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""

NESTED = """
name: levels
hypervisors:
  hv0: {{argo: {{mac-permissive: true, linger: 300ms}}}}
  hv1: {{parent: hv0, restart: {restart}, argo: {{mac-permissive: true, linger: 300ms}}}}
guests:
{guests}
"""


def lab(restart: str = "never", /, **guests: tuple[str, str, dict[str, Any]]) -> str:
    """A topology of two levels; each guest is (hypervisor, program, arguments); `restart` is the inner one's."""
    rows = [
        f"  {name}: {{on: {on}, memory: 16MiB, program: '{program}', with: {json.dumps(arguments)}}}"
        for name, (on, program, arguments) in guests.items()
    ]
    return NESTED.format(restart=restart, guests="\n".join(rows))


def outcome_of(rig: Rig, *arguments: str) -> dict[str, Any]:
    """Run a topology to its end, which must be good."""
    done = finish(rig.start("run", *arguments, "--format", "json"), 90)
    assert done.returncode == 0, (done.stdout, done.stderr)
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def results(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node["result"] for node in outcome["nodes"]}


@pytest.mark.parametrize("runtime", ["processes", "inline"])
def test_a_file_goes_up_and_another_one_down(rig: Rig, runtime: str) -> None:
    """The shipped topology: guests of both levels, unmodified drivers, both hashes match."""
    found = results(outcome_of(rig, str(LIBRARY / "nested.yaml"), "--runtime", runtime))
    assert len({found[name]["sha256"] for name in ("inner", "outer", "outer-sender", "inner-receiver")}) == 1
    rig.wait_for_nothing()


@pytest.mark.parametrize("runtime", ["processes", "inline"])
def test_four_levels(rig: Rig, runtime: str) -> None:
    """The shipped topology: L0 to L3, of two personalities; pings over all, a file over two."""
    found = results(outcome_of(rig, str(LIBRARY / "nested-deep.yaml"), "--runtime", runtime))
    assert found["middle"]["sha256"] == found["deep"]["sha256"]
    assert found["bottom"]["count"] == 200
    rig.wait_for_nothing()


@pytest.mark.parametrize("runtime", ["processes", "inline"])
def test_three_ways_to_serve_guests_of_a_guest(rig: Rig, runtime: str) -> None:
    """The shipped topology: own, forward and steal; each sends a file to L0 and gets one, all hashes match."""
    outcome = outcome_of(rig, str(LIBRARY / "nested-modes.yaml"), "--runtime", runtime)
    found = results(outcome)
    assert len(found) == 17 and len({row["sha256"] for row in found.values() if "sha256" in (row or {})}) == 1
    levels = {node["name"]: node["counters"]["level"] for node in outcome["nodes"] if node["kind"] == "hypervisor"}
    assert levels["owner"]["sends"] > 0
    for name in ("forwarder", "bypassed"):
        assert (levels[name]["sends"], levels[name]["executed"], levels[name]["outcome_unknown"]) == (0, 0, 0)
    rig.wait_for_nothing()


PLACES = {"beside": ("hv0", "hv0"), "inside": ("hv0", "hv1"), "outside": ("hv1", "hv0")}


def test_refusals_do_not_depend_on_where_the_receiver_is(rig: Rig) -> None:
    """ESRCH, ECONNREFUSED, EMSGSIZE, EAGAIN after as many messages, and the wake-up when there is room."""
    shutil.copy(PROGRAMS / "levels.py", rig.topologies / "levels.py")
    guests: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for where, (asker, holder) in PLACES.items():
        guests[f"asks-{where}"] = asker, "levels:asks", {"to": f"holds-{where}"}
        guests[f"holds-{where}"] = holder, "levels:holds", {}
    found = results(outcome_of(rig, rig.topology(lab(**guests))))
    for where in ("inside", "outside"):
        assert found[f"asks-{where}"] == found["asks-beside"]
        assert found[f"holds-{where}"] == found["holds-beside"]
    assert found["asks-beside"]["answers"] == {
        "no such domain": "ESRCH",
        "no such port": "ECONNREFUSED",
        "larger than the ring": "EMSGSIZE",
        "full": "EAGAIN",
        "room": "1000",
    }


# ---- life and death ----


def up(rig: Rig, restart: str = "never") -> None:
    """A lab in which a guest of each level sends to one of the other, and writes down what it is told."""
    rig.program(PEERS, "peers.py")
    text = lab(
        restart,
        outer=("hv0", "peers:takes", {}),
        inner=("hv1", "peers:takes", {}),
        down=("hv0", "peers:counts", {"to": "inner", "directory": str(rig.runtime)}),
        up=("hv1", "peers:counts", {"to": "outer", "directory": str(rig.runtime)}),
    )
    done = rig.run("up", "-d", rig.topology(text))
    assert done.returncode == 0, done.stderr
    for name in ("down", "up"):
        wait_until(lambda name=name: rig.sent(name) > 5, WITHIN)  # type: ignore[misc]


def words(rig: Rig, name: str) -> list[str]:
    """What guest `name` was told, each change once."""
    return [line.partition(" ")[2] for line in rig.seen(name)]


def down(rig: Rig) -> None:
    assert rig.run("down", "levels").returncode == 0
    rig.wait_for_nothing()


def test_guests_are_killed(rig: Rig) -> None:
    """A death climbs, and another one descends: the sender at the other level sees ECONNREFUSED, then ESRCH."""
    up(rig)
    os.kill(rig.node("inner")["pid"], signal.SIGKILL)
    wait_until(lambda: words(rig, "down")[-2:] == ["Connection refused", "No such process"], WITHIN)
    before = rig.sent("up")
    wait_until(lambda: rig.sent("up") > before + 5, WITHIN)
    os.kill(rig.node("outer")["pid"], signal.SIGKILL)
    wait_until(lambda: words(rig, "up")[-2:] == ["Connection refused", "No such process"], WITHIN)
    down(rig)


def test_the_hypervisor_inside_is_killed(rig: Rig) -> None:
    """A domain's death at its parent, and its guests' for everybody; the parent and its own guests live on."""
    up(rig)
    hv0 = rig.node("hv0")["pid"]
    os.kill(rig.node("hv1")["pid"], signal.SIGKILL)
    wait_until(lambda: words(rig, "down")[-2:] == ["Connection refused", "No such process"], WITHIN)
    wait_until(lambda: {rig.node(name)["state"] for name in ("inner", "up")} <= {"failed", "died"}, WITHIN)
    assert (rig.node("hv0")["pid"], rig.node("hv0")["state"]) == (hv0, "ready")
    assert rig.node("outer")["state"] == "ready"
    down(rig)


def test_the_hypervisor_inside_comes_again(rig: Rig) -> None:
    """Levels meet without the broker; one that died has a fresh domain, its guests reach out and are reached."""
    up(rig, "on-failure")
    broker = rig.node("broker")["pid"]
    os.kill(broker, signal.SIGSTOP)
    before = rig.sent("up"), rig.sent("down")
    wait_until(lambda: rig.sent("up") > before[0] + 5 and rig.sent("down") > before[1] + 5, WITHIN)
    os.kill(broker, signal.SIGCONT)
    os.kill(rig.node("hv1")["pid"], signal.SIGKILL)
    wait_until(lambda: (rig.node("hv1")["restarts"], rig.node("hv1")["state"]) == (1, "ready"), 2 * WITHIN)
    wait_until(lambda: rig.node("up")["state"] == "ready", 2 * WITHIN)
    again = rig.sent("up"), rig.sent("down")
    wait_until(lambda: rig.sent("up") != again[0] and rig.sent("down") > again[1] + 5, WITHIN)
    assert words(rig, "up")[-1] == words(rig, "down")[-1] == "ok"
    down(rig)


def test_the_hypervisor_outside_is_killed(rig: Rig) -> None:
    """What is inside cannot live on: it ends, and says why."""
    up(rig)
    os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("hv1")["state"] in ("failed", "died"), WITHIN)
    wait_until(lambda: {rig.node(name)["state"] for name in ("inner", "up")} <= {"failed", "died"}, WITHIN)
    log = (rig.base / "levels" / "nodes" / "hv1" / "log").read_text()
    assert "hypervisor hv0 is gone" in log
    down(rig)


MODES = """
name: levels
hypervisors:
  hv0: {{doors: [hypercall, msr], argo: {{mac-permissive: true, linger: 300ms}}}}
  hv1: {{parent: hv0, personality: kvm, restart: {restart}, argo: {{mode: {mode}, linger: 300ms}}}}
guests:
  outer: {{on: hv0, memory: 16MiB, program: 'peers:takes'}}
  inner: {{on: hv1, memory: 16MiB, program: 'peers:takes'}}
  down: {{on: hv0, memory: 16MiB, program: 'peers:counts', with: {{to: inner, directory: {place}}}}}
  up: {{on: hv1, memory: 16MiB, program: 'peers:counts', with: {{to: outer, directory: {place}}}}}
"""


@pytest.mark.parametrize("mode", ["forward", "steal"])
def test_guests_whose_argo_the_parent_serves_are_killed(rig: Rig, mode: str) -> None:
    """A guest's rings are gone, its id too if it had one, its neighbour lives; then its hypervisor, all with it."""
    rig.program(PEERS, "peers.py")
    done = rig.run("up", "-d", rig.topology(MODES.format(mode=mode, place=rig.runtime, restart="never")))
    assert done.returncode == 0, done.stderr
    for name in ("down", "up"):
        wait_until(lambda name=name: rig.sent(name) > 5, WITHIN)  # type: ignore[misc]
    os.kill(rig.node("inner")["pid"], signal.SIGKILL)
    gone = ["Connection refused"] if mode == "forward" else ["Connection refused", "No such process"]
    wait_until(lambda: words(rig, "down")[-len(gone) :] == gone, WITHIN)
    before = rig.sent("up")
    wait_until(lambda: rig.sent("up") > before + 5, WITHIN)
    hv0 = rig.node("hv0")["pid"]
    os.kill(rig.node("hv1")["pid"], signal.SIGKILL)
    wait_until(lambda: words(rig, "down")[-1] == "No such process", WITHIN)
    wait_until(lambda: rig.node("up")["state"] in ("failed", "died"), WITHIN)
    assert (rig.node("hv0")["pid"], rig.node("hv0")["state"]) == (hv0, "ready")
    assert {rig.node(name)["state"] for name in ("outer", "down")} == {"ready"}
    down(rig)


@pytest.mark.parametrize("mode", ["forward", "steal"])
def test_the_hypervisor_of_guests_that_the_parent_serves_is_killed(rig: Rig, mode: str) -> None:
    """While they are at it: for their peers they are dead, then gone."""
    rig.program(PEERS, "peers.py")
    done = rig.run("up", "-d", rig.topology(MODES.format(mode=mode, place=rig.runtime, restart="never")))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: rig.sent("down") > 5, WITHIN)
    os.kill(rig.node("hv1")["pid"], signal.SIGKILL)
    wait_until(lambda: words(rig, "down")[-2:] == ["Connection refused", "No such process"], WITHIN)
    wait_until(lambda: {rig.node(name)["state"] for name in ("inner", "up")} <= {"failed", "died"}, WITHIN)
    assert rig.node("outer")["state"] == "ready"
    down(rig)


@pytest.mark.parametrize("mode", ["forward", "steal"])
def test_the_hypervisor_of_guests_that_the_parent_serves_comes_again(rig: Rig, mode: str) -> None:
    """It lends the memory of its guests' second lives, and they reach out, and are reached, again."""
    rig.program(PEERS, "peers.py")
    done = rig.run("up", "-d", rig.topology(MODES.format(mode=mode, place=rig.runtime, restart="on-failure")))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: rig.sent("up") > 5, WITHIN)
    os.kill(rig.node("hv1")["pid"], signal.SIGKILL)
    wait_until(lambda: (rig.node("hv1")["restarts"], rig.node("hv1")["state"]) == (1, "ready"), 2 * WITHIN)
    wait_until(lambda: rig.node("up")["state"] == "ready", 2 * WITHIN)
    again = rig.sent("up"), rig.sent("down")
    wait_until(lambda: rig.sent("up") != again[0] and rig.sent("down") > again[1] + 5, WITHIN)
    assert words(rig, "up")[-1] == words(rig, "down")[-1] == "ok"
    down(rig)


@pytest.mark.parametrize("stopped", ["hv1", pytest.param("hv0", marks=pytest.mark.long)])
def test_a_hypervisor_that_is_stopped_only_delays(rig: Rig, stopped: str) -> None:
    """Three seconds without a turn: nobody is refused, nothing is lost or doubled, and the bytes match."""
    shutil.copy(PROGRAMS / "stalling.py", rig.topologies / "stalling.py")
    size = 4 << 20
    given = {"bytes": size, "ring": 65536, "stall": 0.02}
    text = lab(
        receiver=("hv0", "stalling:receive", given), sender=("hv1", "stalling:send", {**given, "to": "receiver"})
    )
    command = rig.start("run", rig.topology(text), "--format", "json")
    wait_until(lambda: rig.node(stopped)["state"] == "ready", 30)
    pid = rig.node(stopped)["pid"]
    wait_until(lambda: rig.node("sender")["state"] == "ready", 30)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    assert rig.node("sender")["state"] == "ready", "the transfer was over too early for this test"
    os.kill(pid, signal.SIGCONT)
    done = finish(command, 80)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    found = results(outcome)
    assert found["sender"]["sha256"] == found["receiver"]["sha256"]
    assert found["receiver"]["bytes"] == size
    counted = {node["name"]: node["counters"].get("level") for node in outcome["nodes"] if node["kind"] == "hypervisor"}
    assert [level["outcome_unknown"] for level in counted.values()] == [0, 0]
    rig.wait_for_nothing()
