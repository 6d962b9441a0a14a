"""SIGSTOP, then SIGCONT, for any node: everything goes on, senders saw EAGAIN only, `ps` said unresponsive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until
from tests.e2e.test_transfer import MIB, PROGRAMS, TOPOLOGY

VICTIMS = ("broker", "hv0", "sender", "receiver")
SHORT, LONG = 4.0, 30.0


def stop(rig: Rig, victim: str, seconds: float) -> None:
    """Stop a node for so long; `ps` says so with an age that grows, and nothing dies of it."""
    before = rig.nodes()
    os.kill(before[victim]["pid"], signal.SIGSTOP)
    began = time.monotonic()
    try:
        wait_until(lambda: (rig.node(victim)["silent"] or 0) > 2.0, 10)
        row = next(line for line in rig.run("ps").stdout.splitlines() if f" {victim} " in line)
        assert "unresponsive" in row and "not heard for" in row
        first = rig.node(victim)["silent"]
        time.sleep(max(0.5, began + seconds - time.monotonic()))
        assert rig.node(victim)["silent"] > first + 0.3
        assert {name: node["pid"] for name, node in rig.nodes().items()} == {
            name: node["pid"] for name, node in before.items()
        }
    finally:
        os.kill(before[victim]["pid"], signal.SIGCONT)
    wait_until(lambda: rig.node(victim)["silent"] is None, 10)


def stopped_in_a_transfer(rig: Rig, victim: str, seconds: float) -> None:
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, rig.topologies)
    # Enough bytes that the transfer is under way whoever is stopped, the broker included, which is not on its path.
    size = int(24 * MIB * (1 + seconds * (victim == "broker")))
    text = TOPOLOGY.format(bytes=size, ring=65536, stall=0.04, within=int(seconds) * 4 + 60, more="")
    command = rig.start("run", rig.topology(text), "--format", "json")
    wait_until(lambda: rig.node("receiver")["state"] == "ready" and rig.node("sender")["state"] == "ready")
    time.sleep(0.3)
    stop(rig, victim, seconds)
    done = finish(command, seconds * 4 + 90)
    assert done.returncode == 0, done.stderr
    results = {node["name"]: node["result"] for node in json.loads(done.stdout)["nodes"]}
    assert results["sender"]["sha256"] == results["receiver"]["sha256"]
    rig.wait_for_nothing()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_node_that_is_stopped_for_a_while(rig: Rig, victim: str) -> None:
    """Four seconds in the middle of a transfer: the hashes are equal."""
    stopped_in_a_transfer(rig, victim, SHORT)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_node_that_is_stopped_for_half_a_minute(rig: Rig, victim: str) -> None:
    """The same for thirty."""
    stopped_in_a_transfer(rig, victim, LONG)


@pytest.mark.timeout(60)
def test_a_sender_to_a_stopped_guest_sees_eagain_only(rig: Rig) -> None:
    """The ring fills; no other error comes, and afterwards every message that was accepted is there or follows."""
    rig.program(PEERS)
    guests = guest("app", "counts", to="peer", directory=str(rig.runtime)) + guest("peer", "takes", ring=256)
    assert rig.run("up", "-d", rig.topology(lab(guests))).returncode == 0
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    stop(rig, "peer", SHORT)
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    lines = rig.seen("app")[rig.seen("app").index("2 ok") :]
    assert set(lines) == {"2 ok", "2 Resource temporarily unavailable"}, lines
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


@pytest.mark.timeout(60)
def test_a_stopped_agent_kills_nobody(rig: Rig) -> None:
    """Its nodes go on without it; `ps` shows what it recorded last; it goes on where it was."""
    rig.program(PEERS)
    guests = guest("app", "counts", to="peer", directory=str(rig.runtime)) + guest("peer", "takes")
    assert rig.run("up", "-d", rig.topology(lab(guests))).returncode == 0
    wait_until(lambda: rig.sent("app") > 2)
    agent = rig.states()[0]["agent"]["pid"]
    os.kill(agent, signal.SIGSTOP)
    try:
        before = rig.sent("app")
        table = rig.run("ps").stdout
        assert " app " in table
        wait_until(lambda: rig.sent("app") > before + 20, 10)
    finally:
        os.kill(agent, signal.SIGCONT)
    assert {node["state"] for node in rig.nodes().values()} == {"ready"}
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()
