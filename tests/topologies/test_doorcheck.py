"""Machines, personalities, doors and notifications: what may stand together, and what stands there by default.

The expectations are written from contracts.md 6 and the issue's list of personalities, not from the tables.
"""

from __future__ import annotations

import pytest

from topologies.diagnose import TopologyError
from topologies.load import loads, resolved
from topologies.machines import CPUS, arches_of, personalities_on, personality_of
from topologies.schema import Hypervisor, literals_at
from topologies.yaml12 import dump

OURS = "msr cpuid pio mmio"
X86 = f"hypercall {OURS}"
WITHOUT_VIRQ = "line vector-per-cpu vector-per-ring vectors-by-priority"
ALL = f"virq {WITHOUT_VIRQ}"
# personality, architecture, doors that are possible, notifications that are possible, doors by default ("?": none).
POSSIBLE = (
    ("xen", "x86_64", X86, ALL, "hypercall"),
    ("xen-viridian", "x86_64", X86, ALL, "hypercall"),
    ("kvm", "x86_64", X86, WITHOUT_VIRQ, "hypercall"),
    ("hyperv", "x86_64", X86, WITHOUT_VIRQ, "hypercall"),
    ("vmware", "x86_64", OURS, WITHOUT_VIRQ, "?"),
    ("acrn", "x86_64", X86, WITHOUT_VIRQ, "hypercall"),
    ("uxen", "x86_64", X86, WITHOUT_VIRQ, "hypercall"),
    ("ax", "x86_64", OURS, WITHOUT_VIRQ, "?"),
    ("whpx", "x86_64", OURS, WITHOUT_VIRQ, "?"),
    ("jailhouse", "x86_64", X86, WITHOUT_VIRQ, "hypercall"),
    ("pv-only", "x86_64", "", "", ""),
    ("bare-metal", "x86_64", "", "", ""),
    ("xen", "aarch64", "hvc smc mmio", ALL, "hvc"),
    ("kvm", "aarch64", "hvc smc mmio", WITHOUT_VIRQ, "hvc"),
    ("smccc", "aarch64", "hvc smc mmio", WITHOUT_VIRQ, "hvc"),
    ("hyperv", "aarch64", "hvc smc mmio", WITHOUT_VIRQ, "hvc"),
    ("jailhouse", "aarch64", "hvc smc mmio", WITHOUT_VIRQ, "hvc"),
    ("firmware", "aarch64", "smc", WITHOUT_VIRQ, "?"),
    ("pv-only", "aarch64", "", "", ""),
    ("bare-metal", "aarch64", "", "", ""),
)
EVERY_DOOR = ("hypercall", "msr", "cpuid", "pio", "mmio", "hvc", "smc")
IDS = [f"{row[0]}-{row[1]}" for row in POSSIBLE]


def hypervisor(keys: str) -> Hypervisor:
    """The hypervisor with these keys, or TopologyError."""
    return loads(f"name: lab\nhypervisors:\n  hv0: {{{keys}}}\n").hypervisors["hv0"]


def refused(keys: str, guest: str = "") -> list[tuple[str, str]]:
    """Path and message of every error of a hypervisor, and of a guest on it, with these keys."""
    guests = f"guests:\n  g: {{on: hv0, program: 'm:f', {guest}}}\n" if guest else ""
    try:
        loads(f"name: lab\nhypervisors:\n  hv0: {{{keys}}}\n{guests}")
    except TopologyError as error:
        return [(one.path, one.message) for one in error.diagnostics]
    return []


def test_every_personality_exists_where_it_should() -> None:
    """The schema's names are those of the tables, and each is on its architectures only."""
    assert set(literals_at(("hypervisors", "h", "personality"))) == {row[0] for row in POSSIBLE}
    for arch in CPUS:
        assert set(personalities_on(arch)) == {row[0] for row in POSSIBLE if row[1] == arch}
    assert arches_of("xen") == ("x86_64", "aarch64")
    assert personality_of("vmware", "aarch64") is None
    assert refused("personality: vmware, arch: aarch64, doors: [mmio]") == [
        ("hypervisors.hv0.personality", "'vmware' does not exist on aarch64")
    ]
    assert refused("personality: firmware, doors: [smc]") == [
        ("hypervisors.hv0.personality", "'firmware' does not exist on x86_64")
    ]


@pytest.mark.parametrize(("name", "arch", "doors", "notifications", "default"), POSSIBLE, ids=IDS)
def test_doors_and_notifications(name: str, arch: str, doors: str, notifications: str, default: str) -> None:
    """Each possible value is accepted alone, each other is refused where it stands; defaults are what is said above."""
    keys = f"personality: {name}, arch: {arch}"
    some = doors.split()[0] if doors else ""
    for door in EVERY_DOOR:
        found = refused(f"{keys}, doors: [{door}]")
        if door in doors.split():
            assert found == []
        else:
            assert [path for path, _ in found] == ["hypervisors.hv0.doors[0]"], door
    for way in ALL.split():
        found = refused(f"{keys}, doors: [{some}], notifications: [{way}]")
        if way in notifications.split():
            assert found == []
        else:
            assert [path for path, _ in found] == ["hypervisors.hv0.notifications[0]"], way
    for key in ("doors", "notifications"):
        found = refused(f"{keys}, doors: [{some}], {key}: []" if key != "doors" else f"{keys}, doors: []")
        assert [path for path, _ in found] == ([f"hypervisors.hv0.{key}"] if doors else [])
    if default == "?":
        assert refused(keys) == [
            ("hypervisors.hv0.doors", f"{name} has no call of its own by which Argo could be reached")
        ]
        return
    made = hypervisor(keys)
    assert made.doors == default.split()
    assert made.cpu == ("armv8" if arch == "aarch64" else "intel")
    expected = ["virq"] if "virq" in notifications.split() else ["line", "vector-per-cpu"]
    assert made.notifications == (expected if doors else [])


def test_what_follows_from_the_machine_is_resolved() -> None:
    """A resolved topology says what its hypervisors offer, and gives the same topology again."""
    made = loads("name: lab\ndefaults: {arch: aarch64}\nhypervisors:\n  hv0: {personality: kvm}\n  hv1: {}\n")
    again = loads(dump(resolved(made)))
    assert again.hypervisors == made.hypervisors
    assert (made.hypervisors["hv0"].doors, made.hypervisors["hv1"].cpu) == (["hvc"], "armv8")


@pytest.mark.parametrize(("arch", "cpu"), [("x86_64", "armv8"), ("aarch64", "intel"), ("aarch64", "amd")])
def test_a_cpu_of_the_other_architecture(arch: str, cpu: str) -> None:
    """contracts 6: the machine below is a table of its own, of one architecture."""
    assert refused(f"arch: {arch}, cpu: {cpu}") == [("hypervisors.hv0.cpu", f"'{cpu}' is no {arch} machine")]


GUESTS: tuple[tuple[str, str, list[str]], ...] = (
    ("doors: [msr]", "door: msr", []),
    ("doors: [msr]", "door: auto", []),
    ("doors: [msr]", "door: hypercall", ["guests.g.door"]),
    ("personality: pv-only", "door: auto", []),
    ("personality: pv-only", "door: msr", ["guests.g.door"]),
    ("personality: vmware", "door: msr", ["hypervisors.hv0.doors"]),  # one mistake, one error
    ("doors: msr", "door: msr", ["hypervisors.hv0.doors"]),
    ("arch: aarch64", "door: hvc, notification: virq", []),
    ("arch: aarch64", "door: msr", ["guests.g.door"]),
    ("arch: aarch64", "apic: false", ["guests.g.apic"]),
    ("personality: kvm", "notification: line, apic: false", []),
    ("personality: kvm", "notification: vector-per-cpu, apic: false", []),  # it falls back to the line, and says so
    ("personality: kvm", "notification: virq", ["guests.g.notification"]),
    ("notifications: [virq, line]", "notification: line", []),
    ("notifications: [virq, line]", "notification: vector-per-cpu", ["guests.g.notification"]),
)


@pytest.mark.parametrize(("keys", "guest", "paths"), GUESTS)
def test_what_a_guest_asks_of_its_hypervisor(keys: str, guest: str, paths: list[str]) -> None:
    """A guest's door and notification are among those that its hypervisor offers."""
    assert [path for path, _ in refused(keys, guest)] == paths


def test_where_and_how_it_is_said() -> None:
    """file:line:column, the value, the choices, a hint (topology.md)."""
    with pytest.raises(TopologyError) as raised:
        loads("name: lab\nhypervisors:\n  hv0: {}\nguests:\n  g: {on: hv0, program: 'm:f', door: pio}\n")
    assert str(raised.value) == (
        "<text>:5:38 guests.g.door: 'pio' is not offered by hypervisor 'hv0' [valid: auto, hypercall]\n"
        "    hint: add it to the doors of hv0"
    )
