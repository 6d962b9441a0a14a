"""VirtIO devices do not depend on how a guest calls its hypervisor, nor on how it is told that something arrived.

Every door of every personality, and every notification: the personalities' own tables say which there are.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from hmx.notify import MODES
from tests.e2e.rig import Rig, finish
from tests.e2e.test_doors import CPUS, personalities
from topologies.machines import notifications_at, personality_of
from topologies.yaml12 import dump

pytestmark = pytest.mark.timeout(240)

SIZE = 20_000
VARIANTS = ("inline", "mirror")


class Lab:
    """A topology with a source of entropy for each hypervisor, and guests that read from it."""

    def __init__(self, arch: str, cpu: str) -> None:
        defaults = {"arch": arch, "cpu": cpu, "memory": "6MiB", "argo": {"mac-permissive": True}}
        self.data: dict[str, Any] = {
            "name": "ways", "defaults": defaults, "hypervisors": {}, "guests": {}, "destinations": [], "checks": [],
        }  # fmt: skip

    def add(self, hypervisor: str, keys: dict[str, Any], ways: list[dict[str, Any]]) -> None:
        """A hypervisor and its guests: `ways` are the keys of the readers, who take the two variants in turn."""
        self.data["hypervisors"][hypervisor] = keys
        source = f"{hypervisor}-source"
        serve = {"sessions": len(ways), "ring": "64KiB"}
        self.data["guests"][source] = {"on": hypervisor, "program": "builtin:rng-server", "with": serve, **ways[-1]}
        for number, way in enumerate(ways):
            name = f"{hypervisor}-{'-'.join(way.values())}"
            device = {"type": "rng", "variant": VARIANTS[number % 2]}
            read = {"size": SIZE, "within": "60s"}
            self.data["guests"][name] = {
                "on": hypervisor, "program": "builtin:rng-read", "with": read, "devices": [device], **way,
            }  # fmt: skip
            self.data["destinations"].append({"from": name, "service": "rng", "to": source})
        self.data["checks"] += [
            {"guest": name, "expect": {"exit": 0}, "within": "120s"}
            for name, guest in self.data["guests"].items() if guest["on"] == hypervisor
        ]  # fmt: skip

    def run(self, rig: Rig, *options: str) -> None:
        """Run it: every guest is content, and everybody got its bytes."""
        done = finish(rig.start("run", rig.topology(dump(self.data)), *options, "--format", "json"), 150)
        outcome = json.loads(done.stdout)
        assert done.returncode == 0, (outcome["reasons"], done.stderr)
        readers = [node for node in outcome["nodes"] if "ones" in (node["result"] or {})]
        assert len(readers) == sum("devices" in guest for guest in self.data["guests"].values())
        assert {node["result"]["bytes"] for node in readers} == {SIZE}
        assert rig.leftovers() == []


@pytest.mark.parametrize(("arch", "cpu"), CPUS, ids=lambda value: value)
def test_every_door_of_every_personality(rig: Rig, arch: str, cpu: str) -> None:
    """As many readers as there are doors, by each of them; the back end uses the last one."""
    lab = Lab(arch, cpu)
    for name, doors in personalities(arch):
        if doors:
            lab.add(name, {"personality": name, "doors": list(doors)}, [{"door": door} for door in doors])
    lab.run(rig, "--runtime", "inline", "--seed", "5")


@pytest.mark.parametrize("runtime", ["processes", "inline"])
@pytest.mark.parametrize(("arch", "personality"), [("x86_64", "xen"), ("aarch64", "kvm")])
def test_every_notification(rig: Rig, arch: str, personality: str, runtime: str) -> None:
    """Event channel, line, vectors: a back end is told in each, front ends in the same and in another one."""
    row = personality_of(personality, arch)
    assert row is not None
    lab = Lab(arch, {"x86_64": "intel", "aarch64": "armv8"}[arch])
    offered = notifications_at(row)
    assert len(offered) >= len(MODES) - 1
    for before, mode in zip((offered[-1], *offered), offered, strict=False):
        keys = {"personality": personality, "notifications": list(offered)}
        lab.add(f"by-{mode}", keys, [{"notification": before}, {"notification": mode}])
    lab.run(rig, "--runtime", runtime)
