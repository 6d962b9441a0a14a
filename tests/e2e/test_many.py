"""Two hundred guests on one hypervisor: they come up, each is answered, and nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until
from topologies.agent.children import MOST_DESCRIPTORS
from topologies.bench.labs import copy_programs
from topologies.bench.rows import ROW_OF
from topologies.bench.startup import topology

GUESTS = 200
UP_WITHIN = 60.0
"""Seconds on two busy cores; `startup-50` of the benchmark holds the figure that counts."""
DOWN_WITHIN = 20.0
USUAL_LIMIT = 1024
"""What most machines allow a process, for the sake of select(); less than two hundred guests need."""


@contextlib.contextmanager
def descriptors(soft: int) -> Iterator[None]:
    """Whatever is started inside may have so many descriptors, unless it asks for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nodes_have_as_many_descriptors_as_the_machine_allows(rig: Rig) -> None:
    """A hypervisor holds six for each guest: the usual soft limit of the launcher's shell is not theirs."""
    rig.program(PEERS)
    with descriptors(USUAL_LIMIT):
        assert rig.run("up", "-d", rig.topology(lab(guest("app", "waits")))).returncode == 0
    lines = Path(f"/proc/{rig.node('hv0')['pid']}/limits").read_text().splitlines()
    soft = int(next(line for line in lines if line.startswith("Max open files")).split()[3])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert soft == (MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS))
    assert rig.run("down").returncode == 0


@pytest.mark.long
@pytest.mark.timeout(150)
def test_two_hundred_guests(rig: Rig) -> None:
    """16 MiB, 1 vCPU and a ring of 128 KiB each; one message of each is answered by the echo guest that all share."""
    copy_programs(rig.topologies)
    data = topology(ROW_OF["startup-50"], "many", GUESTS)
    file = rig.topology(json.dumps({**data, "checks": []}))
    began = time.monotonic()
    with descriptors(USUAL_LIMIT):
        command = rig.start("up", "-d", file, "--timeout", f"{UP_WITHIN:g}s")
    up = finish(command, UP_WITHIN + 10)
    assert up.returncode == 0, up.stderr
    answered = rig.base / "many" / "nodes" / "echo" / "answered"
    wait_until(answered.exists, began + UP_WITHIN - time.monotonic())
    assert answered.read_text() == str(GUESTS)
    assert [node["name"] for node in rig.nodes().values() if node["state"] != "ready"] == []
    assert len({node["pid"] for node in rig.nodes().values()}) == GUESTS + 3  # echo, hypervisor, broker

    began = time.monotonic()
    down = finish(rig.start("down", "many"), DOWN_WITHIN)
    assert down.returncode == 0, down.stderr
    rig.wait_for_nothing()
    assert time.monotonic() - began < DOWN_WITHIN
