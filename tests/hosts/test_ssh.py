"""A lab over real ssh: namespaces with a cable each, an sshd in each, the fabric over tcp with CURVE.

Rules: what is missing is named before anything starts, keys stay secret, a lab belongs to its launcher or its agents,
a lost host is named, partitions heal or end, and nothing outlives `down` on any host.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.rig import finish, wait_until
from tests.hosts.network import LEADER, HostsRig, topology

NAMED_WITHIN = 3.0
"""Seconds until a host that is lost is named."""

INDEPENDENT = """hypervisors:
  hv1: {argo: {mac-permissive: true}, host: lab1}
  hv2: {argo: {mac-permissive: true}, host: lab2}
guests:
  a: {on: hv1, memory: 16MiB, program: "builtin:ping-pong", with: {to: b, count: 50}}
  b: {on: hv1, memory: 16MiB, program: "builtin:echo"}
  c: {on: hv2, memory: 16MiB, program: "builtin:ping-pong", with: {to: d, count: 50}}
  d: {on: hv2, memory: 16MiB, program: "builtin:echo"}
checks:
  - {guest: a, expect: {exit: 0}, within: 20s}
  - {guest: c, expect: {exit: 0}, within: 20s}
"""
WAITING = """hypervisors:
  hv0: {}
  hv1: {host: lab1}
  hv2: {host: lab2}
guests:
  z: {on: hv0, memory: 16MiB, program: "mine:forever"}
  a: {on: hv1, memory: 16MiB, program: "mine:forever"}
  c: {on: hv2, memory: 16MiB, program: "mine:forever"}
"""
HOSTS = ("lab1", "lab2")


def up(rig: HostsRig, more: str = "") -> None:
    """A lab on three machines, left to its agents."""
    done = rig.run("up", "-d", rig.topology(topology(WAITING, *HOSTS, more=more)))
    assert done.returncode == 0, done.stderr


def attached(rig: HostsRig, verb: str = "run") -> subprocess.Popen[str]:
    """The same with its launcher in the foreground."""
    process = rig.start(verb, rig.topology(topology(WAITING, *HOSTS)))
    wait_until(lambda: {rig.node(name)["state"] for name in "zac"} == {"ready"})
    return process


def down(rig: HostsRig) -> None:
    """Take it down; nothing is left anywhere."""
    done = rig.run("down")
    assert done.returncode == 0, done.stderr
    rig.network.wait_for_nothing()


def control_connection(rig: HostsRig, host: str) -> int:
    """The process of the leader's control connection to a host."""
    found = rig.leader.processes().items()
    [pid] = [pid for pid, words in found if "ControlMaster=yes" in words and f"-- {host}" in words]
    return pid


def test_a_run_over_two_hosts(rig: HostsRig) -> None:
    """Independent hypervisors on two hosts, driven from a third machine: the run ends as it would on one."""
    done = rig.run("run", rig.topology(topology(INDEPENDENT, *HOSTS)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 2
    rig.network.wait_for_nothing()


def test_verbs_know_nodes_of_other_hosts(rig: HostsRig) -> None:
    """`ps`, `logs`, `inspect`, `events`, `exec`, through the leader; on the host its part is seen as well."""
    up(rig)
    rows = {line.split()[1]: line.split() for line in rig.run("ps").stdout.splitlines()[1:]}
    assert rows["c"][2:5] == ["lab2", "guest", "ready"]
    assert rows["lab2"][2:5] == ["lab2", "host", "ready"]
    wait_until(lambda: "waiting" in rig.run("logs", "c").stdout, 5)
    [record] = rig.json("inspect", "c")["labs"]["lab"]
    assert record["host"] == "lab2"
    assert record["counters"]["hypervisor"]["exits"] > 0
    assert " c ready" in rig.run("events").stdout
    told = rig.run("exec", "c", "--", "sh", "-c", 'ip -4 -o addr show eth0; echo "$ARGOSY_NODE"; exit 7')
    assert told.returncode == 7
    assert rig.network["lab2"].address in told.stdout
    assert told.stdout.endswith("c\n")
    down(rig)


def test_keys_are_kept_secret(rig: HostsRig) -> None:
    """0600 in a 0700 directory, on no command line, in no environment, on no other host, and gone with the lab."""
    up(rig)
    directory = rig.base / "lab" / "keys"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files = sorted(directory.iterdir())
    assert [file.name for file in files] == ["broker", "host-lab1", "host-lab2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    secrets = [file.read_bytes().split()[1] for file in files]
    shown = b""
    for machine in rig.network.machines.values():
        for pid in machine.pids():
            shown += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert shown
    assert not [secret for secret in secrets if secret in shown]
    for machine in rig.network.hosts():
        kept = b"".join(path.read_bytes() for path in machine.base.rglob("*") if path.is_file())
        assert not [secret for secret in secrets if secret in kept]
    down(rig)
    assert not directory.exists()


def test_everything_missing_is_named_at_once(rig: HostsRig) -> None:
    """An unreachable host, a Python that is not there, a file that is not there: one report, exit code 4, no start."""
    text = topology(WAITING, *HOSTS).replace("address: lab1", "address: nowhere.invalid")
    text = text.replace("address: lab2, python: ", "address: lab2, directory: /not/there, python: ")
    done = rig.run("run", rig.topology(text))
    assert done.returncode == 4
    assert "nothing was started: 2 things are missing, on 2 hosts" in done.stderr
    assert "lab1: ssh: cannot be reached" in done.stderr
    assert "lab2: files: /not/there/mine.py is not there" in done.stderr
    text = topology(WAITING, *HOSTS).replace("address: lab2, python: ", "address: lab2, python: /no")
    done = rig.run("run", rig.topology(text))
    assert done.returncode == 4
    assert "lab2: python: " in done.stderr
    assert not list(rig.base.glob("lab/nodes/*"))
    rig.network.wait_for_nothing()


def test_another_version_is_refused(rig: HostsRig) -> None:
    """What a host would run must be what the leader runs."""
    other = rig.network["lab2"].base / "other"
    (other / "topologies" / "commands").mkdir(parents=True)
    for name in ("", "commands/"):
        (other / "topologies" / name / "__init__.py").touch()
    (other / "topologies" / "commands" / "version.py").write_text("def installed_version(): return '0.0.1'\n")
    python = other / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={other} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    usual = f"address: lab2, python: {sys.executable}"
    text = topology(WAITING, *HOSTS).replace(usual, f"address: lab2, python: {python}")
    done = rig.run("run", rig.topology(text))
    assert done.returncode == 4
    assert "lab2: argosy: " in done.stderr


def test_a_port_that_is_not_reached_is_named(rig: HostsRig) -> None:
    """Ssh works, the way back does not: found before anything starts."""
    text = topology(WAITING, *HOSTS).replace("here: {provider: local}", "here: {provider: local, address: 10.77.0.250}")
    done = rig.run("run", rig.topology(text))
    assert done.returncode == 4
    assert "ports: the broker cannot be reached at 10.77.0.250" in done.stderr


def test_the_launcher_is_killed(rig: HostsRig) -> None:
    """While it is attached, the lab goes down on every host with its launcher."""
    process = attached(rig, "up")
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 130
    rig.network.wait_for_nothing()


def leader_agent(rig: HostsRig) -> int:
    [pid] = {state["agent"]["pid"] for state in rig.states() if "hosts" in state}
    return int(pid)


def test_the_leader_is_killed_while_attached(rig: HostsRig) -> None:
    """Its connections end, and with them what runs on the hosts."""
    process = attached(rig, "up")
    os.kill(leader_agent(rig), signal.SIGKILL)
    finish(process)
    wait_until(lambda: not any(machine.nodes() for machine in rig.network.hosts()), 5)


def test_the_leader_is_killed_after_it_was_left_alone(rig: HostsRig) -> None:
    """Contracts 8: agents that hear nobody for the host timeout take their part down, and say so."""
    up(rig, more="host-timeout: 4s\n")
    os.kill(leader_agent(rig), signal.SIGKILL)
    time.sleep(1.5)
    assert all(machine.nodes() for machine in rig.network.hosts())
    wait_until(lambda: not any(machine.nodes() for machine in rig.network.hosts()), 8)
    log = (rig.network["lab1"].base / "argosy" / "lab@lab1" / "agent.log").read_text()
    assert "nothing was heard of the leader for 4 s" in log


@pytest.mark.parametrize("what", ["agent", "connection", "machine"])
def test_a_host_is_lost_in_a_run(rig: HostsRig, what: str) -> None:
    """Its agent, its connection or all of it is killed: exit code 4, and its name in the reason."""
    process = attached(rig)
    kill(rig, what)
    done = finish(process)
    assert done.returncode == 4, done.stderr
    assert "hypervisor hv2 was lost with host lab2" in done.stderr
    assert "hypervisor hv1" not in done.stderr.partition("argosy:")[2]
    wait_until(lambda: not rig.network["lab2"].nodes(), 3)
    assert not rig.network["lab1"].leftovers()
    assert not rig.leader.leftovers()


def kill(rig: HostsRig, what: str) -> None:
    """Kill lab2, or the way to it."""
    machine = rig.network["lab2"]
    if what == "agent":
        os.kill(int(str(rig.hosts()["lab2"]["pid"])), signal.SIGKILL)
    elif what == "connection":
        os.kill(control_connection(rig, "lab2"), signal.SIGKILL)
    else:
        machine.kill()


@pytest.mark.parametrize("what", ["agent", "machine"])
def test_survivors_go_on(rig: HostsRig, what: str) -> None:
    """In a lab that stays up only what ran on the lost host is gone; it is named within three seconds."""
    up(rig, more="host-timeout: 4s\n")
    kill(rig, what)
    wait_until(lambda: rig.host_states()["lab2"] in ("lost", "silent"), NAMED_WITHIN)
    wait_until(lambda: rig.host_states()["lab2"] == "lost", 8)
    assert rig.host_states()["lab1"] == "ready"
    assert {name: rig.node(name)["state"] for name in ("z", "a", "c", "hv2")} == {
        "z": "ready", "a": "ready", "c": "died", "hv2": "died",
    }  # fmt: skip
    assert "lost" in rig.run("ps").stdout
    assert rig.run("down").returncode == 0
    if what == "agent":
        rig.network.wait_for_nothing()  # what the agent could not remove itself, the leader has removed
    assert not [line for line in rig.network.leftovers() if not line.startswith("lab2")]


def test_a_connection_that_breaks_is_made_again(rig: HostsRig) -> None:
    """Once the lab is its agents' own, a host is not lost with its ssh connection: the leader comes back."""
    up(rig)
    pids = {name: rig.node(name)["pid"] for name in ("a", "c", "hv2")}
    os.kill(control_connection(rig, "lab2"), signal.SIGKILL)
    wait_until(lambda: "away" in rig.run("events").stdout, 5)
    wait_until(lambda: rig.host_states()["lab2"] == "ready", 10)
    assert {name: rig.node(name)["pid"] for name in ("a", "c", "hv2")} == pids
    os.kill(int(str(pids["c"])), signal.SIGKILL)
    wait_until(lambda: rig.node("c")["state"] == "died", 5)
    down(rig)


def test_a_partition_that_heals(rig: HostsRig) -> None:
    """Named within three seconds; healed before the host timeout nothing has changed."""
    up(rig)
    pids = {name: rig.node(name)["pid"] for name in ("a", "c", "hv2")}
    rig.network["lab2"].cut()
    began = time.monotonic()
    wait_until(lambda: rig.host_states()["lab2"] == "silent", NAMED_WITHIN)
    assert time.monotonic() - began < NAMED_WITHIN
    time.sleep(2)
    rig.network["lab2"].heal()
    wait_until(lambda: rig.host_states()["lab2"] == "ready", 10)
    assert {name: rig.node(name)["pid"] for name in ("a", "c", "hv2")} == pids
    assert rig.node("c")["state"] == "ready"
    down(rig)


def test_a_partition_that_lasts(rig: HostsRig) -> None:
    """Beyond the host timeout both sides draw the same conclusion: the part is gone, and the leader says so."""
    up(rig, more="host-timeout: 4s\n")
    rig.network["lab2"].cut()
    wait_until(lambda: rig.host_states()["lab2"] == "lost", 10)
    assert rig.node("c")["state"] == "died"
    assert rig.node("a")["state"] == "ready"
    wait_until(lambda: not rig.network["lab2"].nodes(), 4)
    rig.network["lab2"].heal()
    down(rig)


def test_down_during_a_partition(rig: HostsRig) -> None:
    """A host that cannot be told is named, and ends its part by itself."""
    up(rig, more="host-timeout: 4s\n")
    rig.network["lab2"].cut()
    wait_until(lambda: rig.host_states()["lab2"] == "silent", NAMED_WITHIN)
    assert rig.run("down").returncode == 0
    wait_until(lambda: not rig.network["lab2"].nodes(), 6)
    assert not [line for line in rig.network.leftovers() if line.startswith((LEADER, "lab1"))]
