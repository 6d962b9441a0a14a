"""One topology over three machines: x86, Arm, and a hypervisor in a hypervisor; files go round, bytes match.

Rules: issue "levels and hosts", 5; what the file gives on one machine it gives on three.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.labs import Ran, alone, library, over_ssh
from tests.hosts.network import HostsRig

WAYS = (("west-sender", "east-receiver"), ("east-sender", "inner-receiver"), ("inner-sender", "west-receiver"))


def files_went_round(ran: Ran) -> None:
    """x86 to Arm, Arm to the inner guest, the inner guest to x86: one file, one hash, nothing twice."""
    assert all(ran.verdicts.values())
    assert len(ran.verdicts) == 6
    hashes = {ran.results[name]["sha256"] for way in WAYS for name in way}
    assert len(hashes) == 1
    for sender, receiver in WAYS:
        assert ran.results[sender]["bytes"] == ran.results[receiver]["bytes"] > 1 << 20
        assert ran.results[receiver]["verdict"] == "equal"


def test_a_file_between_all_three(world: HostsRig) -> None:
    """Each L0 on a host of its own, over ssh; L1 and L2 with theirs."""
    ran = Ran(world, over_ssh(library("three-hosts")))
    files_went_round(ran)
    homes = {name: node.get("host") for name, node in ran.nodes.items()}
    for host, names in {
        "lab1": ("west", "west-sender", "west-receiver"),
        "lab2": ("east", "east-sender", "east-receiver"),
        "lab3": ("north", "inner", "inner-sender", "inner-receiver"),
    }.items():
        assert {homes[name] for name in names} == {host}
    world.network.wait_for_nothing()


@pytest.mark.parametrize("where", ["as it ships", "without hosts"])
def test_the_same_on_one_machine(world: HostsRig, where: str) -> None:
    """Hosts of provider `local`, and none at all: the same verdicts."""
    data = library("three-hosts")
    ran = Ran(world, data if where == "as it ships" else alone(data))
    files_went_round(ran)
    world.network.wait_for_nothing()


@pytest.mark.parametrize("name", ["two-hosts", "nested", "patch-panel", "firewall", "uxen", "remote-guest"])
def test_labs_of_the_library(world: HostsRig, name: str) -> None:
    """The same verdicts on one machine and spread over three; what is told of files and sessions is the same."""
    data = library(name)
    told = [told_by(Ran(world, each)) for each in (alone(data), over_ssh(data))]
    assert told[0] == told[1]
    world.network.wait_for_nothing()


def told_by(ran: Ran) -> dict[str, Any]:
    """Verdicts, exit codes, and what does not depend on time."""
    kept = ("sha256", "size", "count", "wrong", "units", "table", "sessions", "verdict")
    found = {
        name: (ran.nodes[name]["exit"], {key: told[key] for key in kept if key in told})
        for name, told in ran.results.items()
    }
    return {"checks": ran.verdicts, **found}
