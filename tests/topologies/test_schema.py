"""The model of a topology (topology.md): keys, types, defaults, and the JSON Schema made
from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from topologies import yaml12
from topologies.devices import TYPES
from topologies.diagnose import TopologyError
from topologies.json_schema import json_schema
from topologies.load import loads
from topologies.marks import plain
from topologies.schema import Guest, Hypervisor, NodeKeys, Topology, field_at, keys_of, literals_at

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "golden" / "topology-errors"
SOUND = "name: lab\nhypervisors: {hv0: {}}\nguests:\n  app: {on: hv0, program: 'builtin:echo'}\n"


TOP = "name hosts hypervisors guests destinations policy links checks link-timeout host-timeout"
BOTH = "restart kind group host"
OF_HYPERVISORS = f"personality arch cpu parent argo doors notifications nested-msr firmware xsm {BOTH}"
OF_GUESTS = f"on vcpus memory door notification apic implicit-only program with control storage devices serves {BOTH}"


def test_the_keys_are_those_of_the_design() -> None:
    """topology.md, "A topology": every key exists from the start."""
    assert set(keys_of(Topology)) == {*TOP.split(), "defaults", "kinds", "groups"}
    assert set(keys_of(Hypervisor)) == set(OF_HYPERVISORS.split())
    assert set(keys_of(Guest)) == set(OF_GUESTS.split())
    assert set(keys_of(NodeKeys)) == set(keys_of(Hypervisor)) | set(keys_of(Guest))


KEYS_BELOW = (
    (("hosts", "h"), "provider address port ssh-config python directory"),
    (("hypervisors", "h", "argo"), "enabled mac-permissive mode linger"),
    (("guests", "g", "devices", 0), "type service instance transport variant access queues"),
    (("destinations", 0), "from service instance source-port to port types rate delegable"),
    (("policy",), "module labels allow viptables permissions"),
    (("policy", "allow", 0), "from to ports"),
    (("links", 0), "between posted impair"),
    (("links", 0, "impair"), "delay jitter loss rate duplicate reorder partition"),
    (("checks", 0), "name guest expect within"),
    (("checks", 0, "expect"), "exit"),
)


@pytest.mark.parametrize(("location", "keys"), KEYS_BELOW)
def test_the_keys_further_down(location: tuple[str | int, ...], keys: str) -> None:
    """topology.md, the same."""
    for key in keys.split():
        field = field_at((*location, key))
        assert field is not None
        assert field.description
    assert field_at((*location, "other")) is None


VALUES = (
    (
        "personality",
        "xen xen-viridian kvm hyperv vmware acrn uxen ax whpx jailhouse smccc firmware pv-only bare-metal",
    ),
    ("arch", "x86_64 aarch64"),
    ("cpu", "intel amd armv8"),
    ("xsm", "dummy silo"),
    ("restart", "never on-failure"),
)


@pytest.mark.parametrize(("key", "values"), VALUES)
def test_the_values_of_a_hypervisors_keys(key: str, values: str) -> None:
    """topology.md and contracts 6: names that exist."""
    assert literals_at(("hypervisors", "hv0", key)) == tuple(values.split())


def test_doors_and_notifications_are_those_of_the_design() -> None:
    """topology.md, "Doors" and "Notifications"; a guest may leave the choice to the probe."""
    doors = ("hypercall", "msr", "cpuid", "pio", "mmio", "hvc", "smc")
    ways = ("virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")
    assert literals_at(("hypervisors", "h", "doors", 0)) == doors
    assert literals_at(("guests", "g", "door")) == ("auto", *doors)
    assert literals_at(("hypervisors", "h", "notifications", 0)) == ways
    assert literals_at(("guests", "g", "notification")) == ("auto", *ways)
    assert literals_at(("hypervisors", "h", "argo", "mode")) == ("own", "forward", "steal")


def test_devices() -> None:
    """topology.md and VIRTIO 1.4, section 5: types, transports, variants; what follows from the type."""
    device = ("guests", "g", "devices", 0)
    assert literals_at((*device, "type")) == ("blk", "net", "console", "rng", "vsock")
    assert literals_at((*device, "transport")) == ("virtio-argo", "virtio-mmio")
    assert literals_at((*device, "variant")) == ("inline", "mirror")
    assert literals_at((*device, "access")) == (
        "foreign", "foreign-kept", "grant-map", "grant-copy", "dma", "dma-rings", "dma-iommu",
    )
    asked = ("blk", "net", "console", "rng", "vsock")
    lines = "".join(f"  - {{from: app, service: {name}, to: b}}\n" for name in ("storage", *asked[1:]))
    devices = ", ".join(f"{{type: {name}}}" for name in asked)
    text = f"{SOUND}  b: {{on: hv0, program: 'm:f'}}\ndestinations:\n{lines}"
    topology = loads(text.replace("'builtin:echo'", f"'m:f', devices: [{devices}]"))
    assert [(row.type, row.service, row.instance, row.transport, row.variant, row.queues)
            for row in topology.guests["app"].devices] == [
        ("blk", "storage", 0, "virtio-argo", "inline", 1),
        *((name, name, 0, "virtio-argo", "inline", 1) for name in asked[1:]),
    ]  # fmt: skip
    assert [(row.name, row.queues) for row in TYPES] == [(name, 16 if name == "blk" else 1) for name in asked]


def test_defaults() -> None:
    """A hypervisor and a guest of which the file says only what it must."""
    topology = loads(SOUND)
    hypervisor, guest = topology.hypervisors["hv0"], topology.guests["app"]
    assert (hypervisor.personality, hypervisor.arch, hypervisor.cpu, hypervisor.xsm) == (
        "xen",
        "x86_64",
        "intel",
        "dummy",
    )
    assert (hypervisor.doors, hypervisor.notifications, hypervisor.restart) == (
        ["hypercall"],
        ["virq"],
        "never",
    )
    argo = hypervisor.argo
    assert (argo.enabled, argo.mac_permissive, argo.mode, argo.linger) == (True, False, "own", 0)
    assert (guest.vcpus, guest.memory, guest.door, guest.notification) == (1, 64 << 20, "auto", "auto")
    assert (guest.with_, guest.restart, guest.implicit_only) == ({}, "never", False)
    assert topology.checks == []
    assert guest.apic


def test_every_offered_value_is_accepted() -> None:
    """Nothing that `[valid: ...]` names is refused."""
    text = """
name: lab
hypervisors:
  hv0:
    {personality: xen, arch: x86_64, cpu: intel, xsm: silo, doors: [hypercall], notifications: [virq],
     argo: {mode: own, enabled: true, mac-permissive: true, linger: 500ms}, restart: never}
guests:
  a: {on: hv0, program: builtin:echo, door: auto, notification: auto, restart: never}
  b: {on: hv0, program: lib.prog:main, door: hypercall, notification: virq, vcpus: 32, memory: 64GiB}
  c:
    {on: hv0, program: mine:main, vcpus: 0x1, memory: 1048576,
     with: {deep: [1, {x: null}], on: off, t: 1:30}}
checks:
  - {name: ended, guest: a, expect: {exit: 0}, within: 20s}
  - {guest: b, expect: {exit: 255}}
"""
    topology = loads(text)
    assert topology.hypervisors["hv0"].argo.linger == 500_000_000
    assert topology.guests["c"].memory == 1 << 20
    assert topology.guests["c"].with_ == {"deep": [1, {"x": None}], "on": "off", "t": "1:30"}
    assert topology.checks[0].within == 20_000_000_000
    assert accepted(text)


def accepted(text: str) -> bool:
    """True where the JSON Schema accepts the YAML text."""
    root = yaml12.load_text(text, "lab.yaml")
    validator = jsonschema.Draft202012Validator(json_schema())
    return validator.is_valid(None if root is None else plain(root))


def test_the_json_schema_is_one() -> None:
    """JSON Schema 2020-12, with a description on every key for editors to show."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in (schema, *schema["$defs"].values()):
        for name, key in part["properties"].items():
            assert key["description"], name


def test_the_json_schema_never_refuses_what_validate_accepts() -> None:
    """An editor must not underline a sound file: empty sections, empty nodes and inherited keys included."""
    assert accepted(SOUND)
    assert accepted("name: lab\nhypervisors:\nguests:\nchecks:\ndefaults:\nkinds:\ngroups:\n")
    assert accepted("name: lab\nkinds: {a: }\ngroups: {b: }\nhypervisors: {hv0: }\nguests: {g: }\n")
    assert accepted("name: lab\ndefaults: {on: hv0, program: 'm:f', memory: 1MiB}\nguests: {g: {vcpus: 2}}\n")


# Cases of the corpus whose only errors are references, rules between keys, or numbers deep in arguments.
BEYOND_A_SCHEMA = """
argument-unknown check-twice check-unknown-guest device-programs-wrong device-unserved device-windows
empty-sections empty-topology kind-and-group-unknown kind-in-defaults levels-in-defaults name-of-sockets
name-reserved name-twice-across-sections nesting-wrong no-hypervisors node-empty on-in-defaults on-missing
on-names-a-guest on-unknown-hypervisor peer-out-of-reach peer-unknown policy-wrong program-in-kinds
program-missing program-unknown-builtin with-unfit-numbers with-unfit-numbers-inherited wrong-everywhere
"""


def test_the_json_schema_refuses_what_a_schema_can_see() -> None:
    """Schema and reality agree: of the wrong topologies it accepts only those whose error is one of
    references.
    """
    seen = set()
    for case in CORPUS.glob("*.yaml"):
        try:
            if accepted(case.read_text(encoding="utf-8")):
                seen.add(case.stem)
        except TopologyError:
            continue  # no YAML at all
    assert seen == set(BEYOND_A_SCHEMA.split())


def test_the_json_schema_shows_defaults_as_they_are_written() -> None:
    """Sizes and durations are text in a topology."""
    definitions: dict[str, Any] = json_schema()["$defs"]
    assert definitions["Guest"]["properties"]["memory"]["default"] == "64MiB"
    assert definitions["Check"]["properties"]["within"]["default"] == "1m"
    assert definitions["ArgoKeys"]["properties"]["linger"]["default"] == "0s"
    assert definitions["Guest"]["properties"]["vcpus"]["default"] == 1
    assert definitions["ArgoKeys"]["properties"]["enabled"]["default"] is True
    assert "default" not in definitions["Guest"]["properties"]["on"]
