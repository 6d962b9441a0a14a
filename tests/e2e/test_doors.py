"""Every personality by every door, in processes: probe, choose, be interrupted, exchange; and the labs that ship.

What each hypervisor offers is taken from its table, so that a door that is added is tested too; what a guest must find
follows from it.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from hmx.doors import CALL_INSTRUCTIONS
from hmx.trap import Arch
from hv_node.doors.tables import NAMED, possible_doors
from tests.e2e.rig import ROOT, Rig, finish
from topologies import rundir

pytestmark = pytest.mark.timeout(120)

LIBRARY = ROOT / "topologies" / "library"
CPUS = (("x86_64", "intel"), ("x86_64", "amd"), ("aarch64", "armv8"))
FIRMWARE = {"amd": ("acpi", [0xD1, 0xC1]), "armv8": ("devicetree", [24])}
"""The labs whose guests have firmware, and the vectors or INTIDs that it suggests."""
DEADLINE = 60.0
COUNT = 24


def personalities(arch: str) -> list[tuple[str, tuple[str, ...]]]:
    """Names and doors of the personalities of an architecture."""
    return [(row.name, possible_doors(row)) for row in NAMED if row.arch is Arch[arch.upper()]]


def topology(arch: str, cpu: str) -> dict[str, Any]:
    """A hypervisor for each personality; a guest for each of its doors, and one more that all of them ask."""
    data: dict[str, Any] = {
        "name": f"doors-{cpu}",
        "defaults": {
            "arch": arch, "cpu": cpu, "memory": "2MiB", "argo": {"mac-permissive": True},
            "firmware": FIRMWARE.get(cpu, ("none",))[0],
        },
        "hypervisors": {}, "guests": {}, "checks": [],
    }  # fmt: skip
    for name, doors in personalities(arch):
        data["hypervisors"][name] = {"personality": name, "doors": list(doors)}
        if not doors:
            data["guests"][f"{name}-none"] = {"on": name, "program": "builtin:door-report", "with": {"to": 9}}
            data["checks"].append({"guest": f"{name}-none", "expect": {"exit": 1}})
            continue
        peer = {"on": name, "program": "builtin:door-peer", "with": {"sessions": len(doors)}}
        data["guests"][f"{name}-peer"] = peer
        data["checks"].append({"guest": f"{name}-peer", "expect": {"exit": 0}})
        for door in doors:
            asks = {"to": f"{name}-peer", "count": COUNT, "within": "30s"}
            guest = {"on": name, "door": door, "program": "builtin:door-report", "with": asks}
            data["guests"][f"{name}-{door}"] = guest
            data["checks"].append({"guest": f"{name}-{door}", "expect": {"exit": 0}})
    return data


def probes_of(rig: Rig, lab: str) -> dict[str, dict[str, Any]]:
    """What each guest of a lab told of its probe, from the lab's record."""
    state = rundir.read_state(rig.base / lab)
    assert state is not None
    return {node["name"]: json.loads(node["probe"][0]) for node in state["nodes"] if node["probe"]}


class Ran:
    """A lab that ran: its outcome's nodes by name, and its guests' probes."""

    def __init__(self, rig: Rig, file: str, lab: str) -> None:
        done = finish(rig.start("run", file, "--format", "json"), DEADLINE)
        self.code = done.returncode
        self.outcome = json.loads(done.stdout)
        self.nodes = {node["name"]: node for node in self.outcome["nodes"]}
        self.probes = probes_of(rig, lab)
        assert rig.leftovers() == []

    def check(self) -> None:
        """The verdict is good, every guest ended as it should, and nobody received anything wrong."""
        assert self.code == 0, self.outcome["reasons"]
        assert all(check["passed"] for check in self.outcome["checks"])
        guests = [node for node in self.nodes.values() if node["kind"] == "guest"]
        assert {node["name"] for node in guests} == set(self.probes)
        for node in guests:
            expected = 0 if self.probes[node["name"]]["chosen"] else 1
            assert (node["exit"], node["result"].get("wrong", 0)) == (expected, 0), node["name"]
            if expected:
                assert "no door to Argo was found" in node["detail"]


@pytest.fixture(scope="module")
def ran(world: Rig) -> Any:
    """The lab of a cpu, run when it is first asked for."""

    @cache
    def run(arch: str, cpu: str) -> Ran:
        data = topology(arch, cpu)
        return Ran(world, world.topology(json.dumps(data), f"{cpu}.yaml"), data["name"])

    return run


CASES = [(arch, cpu, name, door) for arch, cpu in CPUS for name, doors in personalities(arch) for door in doors]
DOORLESS = [(arch, cpu, name) for arch, cpu in CPUS for name, doors in personalities(arch) if not doors]


@pytest.mark.parametrize(("arch", "cpu", "name", "door"), CASES, ids=lambda case: str(case))
def test_every_personality_by_every_door(ran: Any, arch: str, cpu: str, name: str, door: str) -> None:
    """The guest finds what is offered and nothing else, uses what it was told to, and every byte arrives."""
    lab: Ran = ran(arch, cpu)
    probe, node = lab.probes[f"{name}-{door}"], lab.nodes[f"{name}-{door}"]
    offered = dict(personalities(arch))[name]
    present = {tried["door"] for tried in probe["doors"] if tried["found"] == "present"}
    assert present == set(offered)
    assert (probe["chosen"], probe["arch"]) == (door, arch)
    assert "was asked for and is there" in probe["why"]
    assert (node["exit"], node["result"]["door"], node["result"]["wrong"]) == (0, door, 0)
    assert node["result"]["messages"] == 2 * COUNT
    assert probe.get("firmware", {}).get("vectors") == FIRMWARE.get(cpu, (None, None))[1]
    if door == "hypercall":
        call = next(row.kind.name for row in CALL_INSTRUCTIONS if row.cpu == cpu)
        assert node["result"]["instruction"] == call
    counted = lab.nodes[name]["counters"]["arch"][f"{name}-{door}"]
    assert counted["messages"] >= COUNT
    assert counted["exits"] >= counted["hypercalls"] >= counted["argo_ops"] > 0


@pytest.mark.parametrize(("arch", "cpu", "name"), DOORLESS, ids=lambda case: str(case))
def test_where_nothing_traps(ran: Any, arch: str, cpu: str, name: str) -> None:
    """No door is found, and no guest is hurt by looking: it says so and ends with 1."""
    lab: Ran = ran(arch, cpu)
    probe, node = lab.probes[f"{name}-none"], lab.nodes[f"{name}-none"]
    assert (probe["chosen"], probe["hypervisors"]) == (None, [])
    assert "present" not in {tried["found"] for tried in probe["doors"]}
    assert node["exit"] == 1 and "no door to Argo was found" in node["result"]["error"]


@pytest.mark.parametrize(("arch", "cpu"), CPUS)
def test_the_lab_as_a_whole(ran: Any, arch: str, cpu: str) -> None:
    """Verdict 0; of all interrupts raised each is accounted for; each hypervisor announced itself as it should."""
    lab: Ran = ran(arch, cpu)
    lab.check()
    for name, doors in personalities(arch):
        if not doors:
            continue
        for counted in lab.nodes[name]["counters"]["arch"].values():
            sums = [counted[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped")]
            assert sum(sums) == counted["interrupts_raised"] > 0
        seen = [found["name"] for found in lab.probes[f"{name}-peer"]["hypervisors"]]
        silent = arch == "aarch64" and name in ("jailhouse", "firmware")
        if arch == "aarch64":  # where one is seen by its UID, and once more in the device tree that this lab has
            seen = list(dict.fromkeys(seen))
        expected = {"xen-viridian": ["hyperv", "xen"], "ax": ["ax", "ax"]}.get(name, [] if silent else [name])
        assert seen == expected, name


@pytest.mark.parametrize("name", ["doors-x86", "doors-arm"])
def test_the_labs_of_doors_that_ship(world: Rig, name: str) -> None:
    """Each guest reports its probe and exchanges data by the door that it is named after."""
    lab = Ran(world, str(LIBRARY / f"{name}.yaml"), name)
    lab.check()
    for guest, probe in lab.probes.items():
        if guest.rpartition("-")[2] not in ("peer", "guest"):
            assert probe["chosen"] == guest.rpartition("-")[2]
    arch = "x86_64" if name == "doors-x86" else "aarch64"
    offered = {f"{who}-{door}" for who, doors in personalities(arch) for door in doors}
    assert set(lab.probes) >= offered


@pytest.mark.parametrize("name", ["doors-x86", "doors-arm", "interrupts"])
def test_the_labs_that_ship_in_simulation(world: Rig, name: str) -> None:
    """The same labs in one process, in virtual time: the same verdict for every guest."""
    file = str(LIBRARY / f"{name}.yaml")
    done = finish(world.start("run", "--runtime", "inline", "--seed", "5", file, "--format", "json"), DEADLINE)
    outcome = json.loads(done.stdout)
    assert done.returncode == 0, outcome["reasons"]
    guests = [node for node in outcome["nodes"] if node["kind"] == "guest"]
    assert {check["guest"] for check in outcome["checks"] if check["passed"]} == {node["name"] for node in guests}
    assert {node["result"].get("wrong", 0) for node in guests} == {0}


MODES = {
    "virq": "virq", "line": "line",
    "cpu": "vector-per-cpu", "ring": "vector-per-ring", "priority": "vectors-by-priority",
}  # fmt: skip


def test_the_lab_of_interrupts_that_ships(world: Rig) -> None:
    """The same exchange under every mode, with counts; a guest without a local APIC falls back, and says so."""
    lab = Ran(world, str(LIBRARY / "interrupts.yaml"), "interrupts")
    lab.check()
    seen = set()
    for guest, node in lab.nodes.items():
        if node["kind"] != "guest" or guest.startswith("plain"):
            continue
        home, mode = guest.removesuffix("-peer").split("-")
        assert node["result"]["notification"] == lab.probes[guest]["notification"] == MODES[mode]
        assert {"traps", "interrupts", "spurious"} <= set(node["result"])
        assert node["result"]["messages"] == 400
        counted = lab.nodes[home]["counters"]["arch"][guest]
        sums = [counted[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped")]
        assert sum(sums) == counted["interrupts_raised"] > 0
        assert 0 < node["counters"]["arch"]["interrupts_delivered"] <= counted["interrupts_posted"]
        seen.add((home, mode))
    assert seen == {(home, mode) for home in ("xen", "kvm", "arm") for mode in MODES if home == "xen" or mode != "virq"}
    assert lab.nodes["plain"]["result"]["notification"] == "line"
    assert "needs a local APIC, and this guest has none" in lab.nodes["plain"]["result"]["said"]
