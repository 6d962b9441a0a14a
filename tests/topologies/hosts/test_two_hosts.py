"""A lab on two hosts, the second of which is this machine as well: all but the way there is as for any other host.

Rules: an agent for each host, whose pipe's end takes its part down; a lost host is named within three seconds,
survivors go on, verdicts are honest, and nothing outlives `down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest

from tests.e2e.rig import Rig, finish, lines_of, wait_until
from topologies.agent.control import ask
from topologies.rundir import CONTROL_SOCKET

NAMED_WITHIN = 3.0


def two(guests: str, *, hypervisors: str = "", more: str = "", name: str = "two") -> str:
    """A topology: hv0 on this host, hv2 on the other; `guests` are indented by two."""
    hypervisors = hypervisors or (
        "  hv0: {argo: {mac-permissive: true}}\n  hv2: {argo: {mac-permissive: true}, host: far}\n"
    )
    hosts = "  near: {provider: local}\n  far: {provider: local}\n"
    return f"name: {name}\nhosts:\n{hosts}{more}hypervisors:\n{hypervisors}guests:\n{guests}"


def guest(name: str, on: str, function: str, restart: str = "never") -> str:
    return f"  {name}: {{on: {on}, memory: 16MiB, restart: {restart}, program: 'mine:{function}'}}\n"


WAITING = guest("a", "hv0", "forever") + guest("c", "hv2", "forever")


def host(rig: Rig, name: str = "far") -> dict[str, Any]:
    """How a host stands, as the leader says; an empty record where nobody answers."""
    states: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        ask(rig.base / "two" / "sockets" / CONTROL_SOCKET, "state", states.append, 5.0)
    found = [record for state in states for record in state.get("hosts", []) if record["name"] == name]
    return found[0] if found else {"state": None, "pid": None, "detail": ""}


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@pytest.fixture
def up(rig: Rig) -> Rig:
    """A lab of two hosts, up and left to its agents."""
    done = rig.run("up", "-d", rig.topology(two(WAITING)))
    assert done.returncode == 0, done.stderr
    return rig


def test_a_run_ends_well(rig: Rig) -> None:
    """Programs on both hosts end, checks of both are met, nothing is left."""
    guests = guest("a", "hv0", "fine") + guest("c", "hv2", "fine")
    checks = "checks:\n  - {guest: c, expect: {exit: 0}, within: 20s}\n"
    done = rig.run("run", rig.topology(two(guests) + checks))
    assert done.returncode == 0, done.stderr
    assert "c: answer 42" in done.stdout
    assert "check 'c exits 0': passed" in done.stdout
    rig.wait_for_nothing()


def test_a_failure_on_the_other_host_is_the_verdict(rig: Rig) -> None:
    """A program that raises there fails the run here, with its words."""
    done = rig.run("run", rig.topology(two(guest("a", "hv0", "fine") + guest("c", "hv2", "raises"))))
    assert done.returncode == 1
    assert "no such luck" in done.stderr
    rig.wait_for_nothing()


def test_what_it_wrote_is_read_here(up: Rig) -> None:
    """`ps`, `logs`, `inspect`, `events` and `exec` know nodes of other hosts."""
    rows = {line.split()[1]: line.split() for line in up.run("ps").stdout.splitlines()[1:]}
    assert rows["c"][2:5] == ["far", "guest", "ready"]
    assert rows["a"][2:5] == ["near", "guest", "ready"]
    assert rows["far"][2:5] == ["far", "host", "ready"]
    wait_until(lambda: "waiting" in up.run("logs", "c").stdout, 5)
    [record] = up.json("inspect", "c")["labs"]["two"]
    assert (record["host"], record["hypervisor"], record["domid"]) == ("far", "hv2", 1)
    assert record["counters"]["hypervisor"]["hypercalls"] > 0
    events = up.run("events").stdout
    assert " c ready" in events
    assert " agent.far ready" in events
    told = up.run("exec", "c", "--", "sh", "-c", 'echo "$ARGOSY_NODE $ARGOSY_LAB"; pwd; exit 7')
    assert told.returncode == 7
    assert told.stdout.splitlines()[0] == "c two@far"
    assert told.stdout.splitlines()[1].endswith("two@far/nodes/c")
    assert up.run("down").returncode == 0
    up.wait_for_nothing()
    assert "waiting" in up.run("logs", "c", "--name", "two").stdout


def test_the_launcher_goes_and_everything_with_it(rig: Rig) -> None:
    """Contracts 8: while the lab is attached the end of the launcher's pipe takes it down, on every host."""
    process = rig.start("up", rig.topology(two(WAITING)))
    wait_until(lambda: rig.node("c")["state"] == "ready")
    process.kill()
    process.communicate()
    rig.wait_for_nothing(5)


def test_the_leader_is_killed_while_the_lab_is_attached(rig: Rig) -> None:
    """Its pipes end with it, and the other host's part with the pipe."""
    process = rig.start("up", rig.topology(two(WAITING)))
    wait_until(lambda: rig.node("c")["state"] == "ready")
    [leader] = {state["agent"]["pid"] for state in rig.states() if "hosts" in state}
    os.kill(leader, signal.SIGKILL)
    assert finish(process).returncode == 5
    wait_until(lambda: not [words for _, words in rig.processes() if "argosy" in words or "topologies" in words], 5)


def test_the_other_agent_is_killed(up: Rig) -> None:
    """Its nodes end with it, the leader names it within three seconds, survivors go on, `down` still works."""
    nodes, agent = up.nodes(), host(up)["pid"]
    os.kill(agent, signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: host(up)["state"] == "lost", NAMED_WITHIN)
    assert time.monotonic() - began < NAMED_WITHIN
    wait_until(lambda: not alive(nodes["c"]["pid"]) and not alive(nodes["hv2"]["pid"]), 2)
    assert {up.node(name)["state"] for name in ("hv2", "c")} == {"died"}
    assert up.node("a")["state"] == "ready"
    rows = {line.split()[1]: line for line in up.run("ps").stdout.splitlines()[1:]}
    assert rows["c"].split()[4] == rows["far"].split()[4] == "lost"
    assert "with host far: its agent is gone" in rows["c"]
    assert "was lost with host far" in up.run("inspect", "c").stdout
    assert up.run("down").returncode == 0
    up.wait_for_nothing()


def test_a_run_whose_host_is_lost_fails(rig: Rig) -> None:
    """Exit code 4, and the host's name in the reason."""
    process = rig.start("run", rig.topology(two(WAITING)))
    wait_until(lambda: rig.node("c")["state"] == "ready")
    os.kill(host(rig)["pid"], signal.SIGKILL)
    done = finish(process)
    assert done.returncode == 4, done.stderr
    assert "hypervisor hv2 was lost with host far" in done.stderr
    assert "argosy: guest c" not in done.stderr  # that follows from it
    rig.wait_for_nothing(3)


def test_an_agent_that_leaves_says_why(rig: Rig) -> None:
    """Its nodes are terminated because it goes: the one reason is its own, and not a signal that they were sent."""
    process = rig.start("run", rig.topology(two(WAITING)))
    wait_until(lambda: {rig.node(name)["state"] for name in "ac"} == {"ready"})
    os.kill(host(rig)["pid"], signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 4
    assert [line for line in done.stderr.splitlines() if line.startswith("argosy: ")] == [
        "argosy: hypervisor hv2 was lost with host far: its agent was sent SIGTERM"
    ]
    rig.wait_for_nothing()


def test_a_frozen_agent_is_named_and_kills_nothing(up: Rig) -> None:
    """Silence is told within three seconds; when it is over, everything is as before."""
    pids = {name: node["pid"] for name, node in up.nodes().items()}
    agent = host(up)["pid"]
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: host(up)["state"] == "silent", NAMED_WITHIN)
    assert "host        silent" in up.run("ps").stdout
    os.kill(agent, signal.SIGCONT)
    wait_until(lambda: host(up)["state"] == "ready", 5)
    assert {name: node["pid"] for name, node in up.nodes().items()} == pids
    assert up.run("down").returncode == 0
    up.wait_for_nothing()


def test_an_agent_that_stays_frozen_is_lost(rig: Rig) -> None:
    """`host-timeout` after it was heard last its nodes count as gone, and are: this machine's are ended at once."""
    up = rig.run("up", "-d", rig.topology(two(WAITING, more="host-timeout: 3s\n")))
    assert up.returncode == 0, up.stderr
    agent = host(rig)["pid"]
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: host(rig)["state"] == "lost", 8)
    assert rig.node("c")["state"] == "died"
    assert rig.node("a")["state"] == "ready"
    wait_until(lambda: not alive(agent), 2)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing(3)


def test_a_guest_there_is_started_again(rig: Rig) -> None:
    """`restart: on-failure` works on any host: a fresh domain, a new process, counted."""
    guests = guest("a", "hv0", "forever") + guest("c", "hv2", "forever", "on-failure")
    assert rig.run("up", "-d", rig.topology(two(guests))).returncode == 0
    os.kill(rig.node("c")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("c")["restarts"] == 1 and rig.node("c")["state"] == "ready", 10)
    assert rig.node("c")["domid"] == 2
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_a_hypervisor_there_is_started_again(rig: Rig) -> None:
    """With the guests on it, at the same attach socket of its host."""
    hypervisors = "  hv0: {}\n  hv2: {host: far, restart: on-failure}\n"
    assert rig.run("up", "-d", rig.topology(two(WAITING, hypervisors=hypervisors))).returncode == 0
    os.kill(rig.node("hv2")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("hv2")["restarts"] == 1 and rig.node("c")["state"] == "ready", 15)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_the_broker_comes_again_and_the_host_with_it(up: Rig) -> None:
    """The other agent joins the next broker; no host is taken for lost meanwhile."""
    os.kill(up.node("broker")["pid"], signal.SIGKILL)
    wait_until(lambda: up.node("broker")["restarts"] == 1 and up.node("broker")["state"] == "ready", 10)
    time.sleep(2.5)
    assert host(up)["state"] == "ready"
    assert up.node("c")["state"] == "ready"
    assert up.run("down").returncode == 0
    up.wait_for_nothing()


def test_its_part_is_taken_down_by_a_command_there(up: Rig) -> None:
    """`argosy down LAB@HOST` on the host itself: the leader takes that for the loss it is, in words."""
    assert up.run("down", "two@far").returncode == 0
    wait_until(lambda: host(up)["state"] == "lost", NAMED_WITHIN)
    assert "taken down by a command" in host(up)["detail"]
    assert up.node("a")["state"] == "ready"
    assert up.run("down").returncode == 0
    up.wait_for_nothing()


def test_what_is_missing_is_named_before_anything_starts(rig: Rig) -> None:
    """All findings of all hosts in one report, and exit code 4."""
    away = "away: {provider: local, python: /bin/false}"
    text = two(guest("c", "hv2", "fine")).replace(
        "far: {provider: local}", f"far: {{provider: local, python: /nowhere/python}}\n  {away}"
    )
    text = text.replace("guests:\n", "  hv3: {host: away}\nguests:\n")
    done = rig.run("run", rig.topology(text))
    assert done.returncode == 4
    assert "nothing was started: 2 things are missing, on 2 hosts" in done.stderr
    assert "far: local: /nowhere/python cannot be started" in done.stderr
    assert "away: python: it said nothing" in done.stderr
    assert not list(rig.base.glob("two/nodes/*"))
    rig.wait_for_nothing()


def test_an_interruption_while_hosts_are_looked_at(rig: Rig) -> None:
    """Ctrl-C is obeyed then too."""
    sleeps = rig.topologies / "sleeps"
    sleeps.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeps.chmod(0o755)
    usual = "far: {provider: local}"
    text = two(guest("c", "hv2", "fine")).replace(usual, f"far: {{provider: local, python: {sleeps}}}")
    process = rig.start("run", rig.topology(text))
    for line in lines_of(process):
        if "looking at hosts" in line:
            break
    process.send_signal(signal.SIGINT)
    assert finish(process).returncode == 130
    rig.wait_for_nothing()


def test_without_hosts_nothing_is_different(rig: Rig) -> None:
    """No further process, no column, no record."""
    text = "name: one\nhypervisors:\n  hv0: {}\nguests:\n" + guest("a", "hv0", "forever")
    assert rig.run("up", "-d", rig.topology(text)).returncode == 0
    [state] = rig.states()
    assert "hosts" not in state
    assert "host" not in state["nodes"][0]
    assert "topologies.hosts" not in " ".join(words for _, words in rig.processes())
    assert rig.run("ps").stdout.splitlines()[0].split()[:3] == ["lab", "node", "kind"]
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()
