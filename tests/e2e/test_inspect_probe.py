"""`argosy inspect --probe`, of guests of a lab that runs and of one that is over."""

from __future__ import annotations

import json

import pytest

from tests.e2e.rig import PEERS, Rig

pytestmark = pytest.mark.timeout(60)

LAB = """
name: lab
defaults: {memory: 4MiB, program: "mine:waits"}
hypervisors:
  hv0: {personality: xen-viridian, cpu: amd, doors: [hypercall, pio], notifications: [virq, line]}
  hv1: {personality: kvm, arch: aarch64, doors: [hvc, mmio]}
guests:
  best: {on: hv0}
  told: {on: hv0, door: pio, notification: line, apic: false}
  arm: {on: hv1, door: mmio}
"""


def test_inspect_probe(rig: Rig) -> None:
    """Every hypervisor that announced itself, every door with its instruction, finding and cost, the choice and why."""
    rig.program(PEERS)
    assert rig.run("up", "-d", rig.topology(LAB)).returncode == 0
    for when in ("while it runs", "once it is over"):
        found = rig.json("inspect", "--probe", "lab")
        assert found["schema"] == "probe/1"
        probes = found["labs"]["lab"]
        assert list(probes) == ["best", "told", "arm"]
        assert [seen["name"] for seen in probes["best"]["hypervisors"]] == ["hyperv", "xen"]
        assert [seen["domid"] for seen in probes["told"]["hypervisors"]] == [None, 2]
        doors = {tried["door"]: tried for tried in probes["best"]["doors"] if tried["found"] == "present"}
        assert set(doors) == {"hypercall", "pio"}
        assert (doors["hypercall"]["instruction"], doors["pio"]["selector"]) == ("VMMCALL", "0x4152")
        assert doors["hypercall"]["closeness"] < doors["pio"]["closeness"]
        assert {tried["found"] for tried in probes["best"]["doors"]} > {"present", "fault"}
        chosen = {name: (probe["chosen"], probe["notification"]) for name, probe in probes.items()}
        assert chosen == {"best": ("hypercall", "virq"), "told": ("pio", "line"), "arm": ("mmio", "vector-per-cpu")}
        if when == "while it runs":
            assert rig.run("down", "lab").returncode == 0
    assert list(rig.json("inspect", "--probe", "arm")["labs"]["lab"]) == ["arm"]
    table = rig.run("inspect", "--probe", "told").stdout
    assert table.startswith("told in lab lab, x86_64\n")
    assert "door: pio (pio was asked for and is there)\nnotification: line\n" in table
    for name, words in (
        ("hv0", "'hv0' is a hypervisor: only guests probe for their hypervisor"),
        ("tolt", "there is neither a lab nor a node 'tolt'. Did you mean 'told'?"),
    ):
        refused = rig.run("inspect", "--probe", name)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert words in refused.stderr
    assert rig.leftovers() == []


SHORT = """
name: short
hypervisors: {hv0: {personality: xen}, hv1: {personality: kvm, arch: aarch64, doors: [hvc, mmio]}}
guests:
  one: {on: hv0, program: "mine:looks", memory: 4MiB}
  arm: {on: hv1, program: "mine:looks", memory: 4MiB}
"""


def test_both_runtimes_record_the_same_probes(rig: Rig) -> None:
    """`run --format json` and `inspect --probe` say the same of a lab without processes."""
    rig.program("async def looks(guest):\n    guest.log('seen')\n")
    told, kept = {}, {}
    for runtime in ("processes", "inline"):
        done = rig.run("run", rig.topology(SHORT), "--runtime", runtime, "--seed", "7", "--format", "json")
        outcome = json.loads(done.stdout)
        told[runtime] = {event[0]: json.loads(event[2]) for event in outcome["events"] if event[1] == "probe"}
        kept[runtime] = rig.json("inspect", "--probe", "short")["labs"]["short"]
    assert set(told["inline"]) == {"one", "arm"}
    assert told["inline"] == told["processes"] == kept["inline"] == kept["processes"]
