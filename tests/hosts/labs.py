"""Labs of the library, put onto the machines of a network: the file that ships, with its hosts replaced."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from tests.e2e.rig import ROOT, Rig, finish
from topologies.marks import plain
from topologies.yaml12 import load_file

LIBRARY = ROOT / "topologies" / "library"
DEADLINE = 80.0
HOSTS = ("lab1", "lab2", "lab3")


def library(name: str) -> dict[str, Any]:
    """A topology that ships, its files by absolute paths."""
    root = load_file(str(LIBRARY / f"{name}.yaml"))
    assert root is not None
    data: dict[str, Any] = plain(root)
    for row in (*data.get("kinds", {}).values(), *data["guests"].values()):
        if file := row.get("with", {}).get("file"):
            row["with"]["file"] = str((LIBRARY / file).resolve())
    return data


def alone(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same without hosts."""
    hypervisors = {name: {**keys} for name, keys in data["hypervisors"].items()}
    guests = {name: {**keys} for name, keys in data["guests"].items()}
    for keys in (*hypervisors.values(), *guests.values()):
        keys.pop("host", None)
    rest = {key: value for key, value in data.items() if key != "hosts"}
    return {**rest, "hypervisors": hypervisors, "guests": guests}


def over_ssh(data: Mapping[str, Any], homes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The same on machines of the network, driven from the leader's.

    `homes` says which outermost hypervisor runs where; without it they stay on the hosts of the file, and take turns
    where it has none.
    """
    hosts: dict[str, Any] = {"here": {"provider": "local"}}
    hosts |= {host: {"provider": "ssh", "address": host, "python": sys.executable} for host in HOSTS}
    turns = cycle(HOSTS)
    hypervisors = {name: {**keys} for name, keys in data["hypervisors"].items()}
    for name, keys in hypervisors.items():
        if not keys.get("parent"):
            keys["host"] = keys.get("host") or next(turns) if homes is None else homes[name]
    return {**data, "hosts": hosts, "hypervisors": hypervisors}


class Ran:
    """A lab that ran to a good end: its outcome, and its nodes by name."""

    def __init__(self, rig: Rig, data: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
        file = rig.topology(json.dumps(data), f"{data['name']}.yaml")
        done = finish(rig.start("run", *arguments, file, "--format", "json"), DEADLINE)
        assert done.stdout, done.stderr
        self.outcome = json.loads(done.stdout)
        assert done.returncode == 0, self.outcome["reasons"]
        self.nodes = {node["name"]: node for node in self.outcome["nodes"]}

    @property
    def verdicts(self) -> dict[str, bool]:
        """What each check said."""
        return {check["name"]: check["passed"] for check in self.outcome["checks"]}

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """What each guest told."""
        return {name: node["result"] for name, node in self.nodes.items() if node["kind"] == "guest"}
