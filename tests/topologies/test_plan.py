"""The planner: what each process is told, decided before anything runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest

from broker.config import BrokerConfig
from guest_node.config import DeviceConfig, FrontConfig, GuestConfig
from hv_node.argo.options import ArgoOptions, parse_options
from hv_node.config import DomainConfig, HypervisorConfig
from topologies.codec import CodecError, decode, encode
from topologies.load import loads
from topologies.plan import CheckPlan, Places, Plan, argo_cmdline, node_seed, plan
from topologies.schema import Topology
from topologies.yaml12 import dump

TEXT = """
name: lab
hypervisors:
  hv0: {xsm: silo, argo: {mac-permissive: true, linger: 500ms}}
  hv1: {argo: {enabled: false}}
guests:
  c: {on: hv0, program: "own:send", with: {to: a, n: [1, null, {k: 2.5}]}, vcpus: 2}
  a: {on: hv0, program: builtin:file-receive, memory: 8MiB}
  b: {on: hv1, program: mine:main, door: hypercall, notification: virq, apic: false}
checks:
  - {name: done, guest: c, expect: {exit: 0}, within: 20s}
  - {guest: a, expect: {exit: 3}}
"""
PLACES = Places(base_dir="/labs", run_dir="/run/lab", socket_dir="/run/s/0a1b2c3d")
TOKEN = bytes(range(16))


def planned(**changes: Any) -> Plan:
    return plan(loads(TEXT), PLACES, **{"token": TOKEN, "epoch": 3, "seed": 7, **changes})


def test_domain_ids_follow_the_order_of_the_file_on_each_hypervisor() -> None:
    """Guests of one hypervisor get 1, 2, 3 ...; peers are the other guests of the same hypervisor."""
    made = planned()
    assert [(guest.name, guest.hypervisor, guest.domid, guest.peers) for guest in made.guests] == [
        ("c", "hv0", 1, {"a": 2}),
        ("a", "hv0", 2, {"c": 1}),
        ("b", "hv1", 1, {}),
    ]
    assert [hypervisor.domains for hypervisor in made.hypervisors] == [
        (DomainConfig("c", 1, 64 << 20, 2), DomainConfig("a", 2, 8 << 20, 1)),
        (DomainConfig("b", 1, 64 << 20, 1),),
    ]


def test_every_process_is_told_what_it_needs() -> None:
    """One configuration each for broker, hypervisors and guests."""
    made = planned()
    endpoint, directory = "ipc:///run/s/0a1b2c3d/broker", "/run/lab/nodes/broker"
    assert made.broker == BrokerConfig("lab", endpoint, TOKEN, 3, directory, seed=node_seed(7, "broker"))
    assert made.hypervisors[0] == HypervisorConfig(
        lab="lab",
        name="hv0",
        node_dir="/run/lab/nodes/hv0",
        broker_endpoint="ipc:///run/s/0a1b2c3d/broker",
        token=TOKEN,
        epoch=3,
        personality="xen",
        arch="x86_64",
        cpu="intel",
        doors=("hypercall",),
        notifications=("virq",),
        argo_cmdline="1,mac-permissive=1",
        xsm="silo",
        attach_path="/run/s/0a1b2c3d/attach-0",
        linger_ns=500_000_000,
        seed=node_seed(7, "hv0"),
        domains=(DomainConfig("c", 1, 64 << 20, 2), DomainConfig("a", 2, 8 << 20, 1)),
        path=("hv0",),
    )
    assert made.hypervisors[1].attach_path == "/run/s/0a1b2c3d/attach-1"
    assert made.guests[0] == GuestConfig(
        lab="lab",
        name="c",
        node_dir="/run/lab/nodes/c",
        broker_endpoint="ipc:///run/s/0a1b2c3d/broker",
        token=TOKEN,
        epoch=3,
        hypervisor="hv0",
        domid=1,
        memory=64 << 20,
        vcpus=2,
        arch="x86_64",
        door="auto",
        notification="auto",
        program="own:send",
        arguments={"to": "a", "n": [1, None, {"k": 2.5}]},
        peers={"a": 2},
        seed=node_seed(7, "c"),
        base_dir="/labs",
        output_dir="/run/lab/nodes/c",
    )
    assert (made.guests[2].door, made.guests[2].notification, made.guests[2].apic) == ("hypercall", "virq", False)


def test_a_machine_of_another_kind() -> None:
    """Personality, architecture, cpu, doors and notifications reach the hypervisor as they are resolved."""
    text = "name: x\nhypervisors: {hv0: {personality: kvm, arch: aarch64, doors: [smc]}}\n"
    made = plan(loads(text + "guests: {g: {on: hv0, program: 'm:f'}}\n"), PLACES)
    (config,) = made.hypervisors
    assert (config.personality, config.arch, config.cpu, config.doors, config.notifications) == (
        "kvm", "aarch64", "armv8", ("smc",), ("line", "vector-per-cpu"),
    )  # fmt: skip
    assert (made.guests[0].arch, made.guests[0].apic) == ("aarch64", True)


def test_devices_of_a_guest() -> None:
    """Each device with the port of its service (hmx/services.py); what the file leaves out follows from the type."""
    text = """
name: x
hypervisors: {hv0: }
guests:
  app:
    on: hv0
    program: m:f
    devices: [{type: blk, instance: 3, variant: mirror, queues: 4}, {type: rng, service: virtio-msg}]
  disk: {on: hv0, program: "m:f"}
destinations:
  - {from: app, service: storage, instance: 3, to: disk}
  - {from: app, service: virtio-msg, to: disk}
"""
    app, disk = plan(loads(text), PLACES).guests
    assert app.devices == (
        DeviceConfig("blk", "storage", 3, 0xD0003, "virtio-argo", "mirror", 4),
        DeviceConfig("rng", "virtio-msg", 0, 0xA1000, "virtio-argo", "inline", 1),
    )
    assert disk.devices == ()
    made = plan(loads(text), PLACES)
    assert Plan.from_json(made.to_json()) == made


def test_devices_over_virtio_mmio() -> None:
    """Windows in the order of a guest's devices; the back end is told whose they are, the hypervisor who may what."""
    text = """
name: x
hypervisors: {hv0: , hv1: }
guests:
  model: {on: hv0, program: "m:f"}
  other: {on: hv0, program: "m:f"}
  app:
    on: hv0
    program: m:f
    devices:
      - {type: rng, transport: virtio-mmio, access: grant-copy}
      - {type: console}
      - {type: blk, instance: 1, transport: virtio-mmio, access: dma}
      - {type: net, transport: virtio-mmio}
destinations:
  - {from: app, service: rng, to: model}
  - {from: app, service: console, to: model}
  - {from: app, service: storage, instance: 1, to: other, port: 0xD0000}
  - {from: app, service: net, to: model}
"""
    made = plan(loads(text), PLACES)
    model, other, app = made.guests
    rows = [(row.type, row.window, row.access, row.backend) for row in app.devices]
    assert rows == [
        ("rng", 0, "grant-copy", 1), ("console", -1, "foreign", 0), ("blk", 1, "dma", 2), ("net", 2, "foreign", 1),
    ]  # fmt: skip
    assert model.fronts == (
        FrontConfig("app", 3, "rng", 0xA3000, 0, "grant-copy"), FrontConfig("app", 3, "net", 0xC0000, 2, "foreign"),
    )  # fmt: skip
    assert other.fronts == (FrontConfig("app", 3, "blk", 0xD0000, 1, "dma"),)
    assert app.fronts == ()
    assert [row.device_models for row in made.hypervisors] == [(("model", "app"), ("other", "app")), ()]
    assert [row.iommus for row in made.hypervisors] == [(), ()]
    assert Plan.from_json(made.to_json()) == made


def test_a_device_behind_an_iommu() -> None:
    """docs/ioreq.md: its guest has a virtio-iommu, and no other has; a device over Argo needs none."""
    text = """
name: iommu
hypervisors: {hv0: , hv1: }
guests:
  model: {on: hv0, program: "m:f"}
  app: {on: hv0, program: "m:f", devices: [{type: rng, transport: virtio-mmio, access: dma-iommu}]}
  argo: {on: hv0, program: "m:f", devices: [{type: rng, access: dma-iommu}]}
  far: {on: hv1, program: "m:f"}
destinations:
  - {from: app, service: rng, to: model}
  - {from: argo, service: rng, to: model}
"""
    made = plan(loads(text), PLACES)
    assert [row.iommus for row in made.hypervisors] == [("app",), ()]


def test_checks_and_order() -> None:
    """Broker, then hypervisors, then guests; a check without a name says what it wants."""
    made = planned()
    assert made.order == (("broker",), ("hv0", "hv1"), ("c", "a", "b"))
    assert made.checks == (CheckPlan("done", "c", 0, 20 * 10**9), CheckPlan("a exits 3", "a", 3, 60 * 10**9))
    alone = plan(loads("name: x\nhypervisors: {hv0: }\n"), PLACES)
    assert alone.order == (("broker",), ("hv0",))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("permissive", [True, False])
def test_the_command_line_means_what_the_topology_says(enabled: bool, permissive: bool) -> None:
    """The hypervisor parses the option as Xen does (docs/misc/xen-command-line, `argo`)."""
    keys = f"{{enabled: {str(enabled).lower()}, mac-permissive: {str(permissive).lower()}}}"
    topology = loads(f"name: x\nhypervisors: {{hv0: {{argo: {keys}}}}}\n")
    text = argo_cmdline(topology.hypervisors["hv0"])
    assert parse_options(text) == (ArgoOptions(enabled, permissive), 0)


def test_seeds() -> None:
    """The same seed gives the same plan; every node has its own, which other nodes do not change."""
    assert planned() == planned()
    seeds = [hypervisor.seed for hypervisor in planned().hypervisors]
    seeds += [guest.seed for guest in planned().guests]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert planned(seed=8).guests[0].seed != seeds[2]
    fewer = plan(loads("name: x\nhypervisors: {hv0: }\nguests: {c: {on: hv0, program: 'm:f'}}\n"), PLACES, seed=7)
    assert fewer.guests[0].seed == seeds[2]
    assert node_seed(0, "a") == 173670324156655


def test_another_name_for_the_lab() -> None:
    """`--name` replaces the topology's own name everywhere."""
    made = planned(name="other")
    assert {made.lab, made.broker.lab, made.topology["name"]} == {"other"}
    assert {hypervisor.lab for hypervisor in made.hypervisors} == {"other"}
    assert {guest.lab for guest in made.guests} == {"other"}


def test_a_plan_survives_json() -> None:
    """The run state is JSON: nothing is lost, bytes and tuples included."""
    made = planned()
    text = made.to_json()
    assert Plan.from_json(text) == made
    assert json.loads(text)["broker"]["token"] == TOKEN.hex()
    assert Plan.from_json(Plan.from_json(text).to_json()) == made


def test_a_plan_holds_the_resolved_topology() -> None:
    """What runs can be looked at, and run again, without the file it came from."""
    made = planned()
    again: Topology = loads(dump(made.topology))
    assert plan(again, PLACES, token=TOKEN, epoch=3, seed=7) == made


def test_the_planner_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pure: no file is opened, no directory asked for."""
    topology = loads(TEXT)

    def refuse(*args: object, **_kwargs: object) -> None:
        raise AssertionError(f"the planner touched {args}")

    for name in ("stat", "listdir", "getcwd", "mkdir", "open"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("builtins.open", refuse)
    made = plan(topology, PLACES)
    monkeypatch.undo()
    assert made.lab == "lab"


def test_socket_names_are_short() -> None:
    """AF_UNIX paths end at 107 bytes, socket directories at 40 or more: names of sockets have 24."""
    for path in (PLACES.attach_path(9999), PLACES.broker_endpoint()):
        assert len(path.rpartition("/")[2]) <= 24


DAMAGED = (
    (lambda data: data.pop("lab"), "Plan.lab is missing"),
    (lambda data: data.update(colour=1), "Plan has no field 'colour'"),
    (lambda data: data.update(seed="7"), "Plan.seed: expected int, not str"),
    (lambda data: data.update(seed=True), "Plan.seed: expected int, not bool"),
    (lambda data: data["broker"].update(token="zz"), "Plan.broker.token: expected hexadecimal digits"),
    (lambda data: data["broker"].update(token=5), "Plan.broker.token: expected str, not int"),
    (lambda data: data.update(checks={}), "Plan.checks: expected list, not dict"),
    (
        lambda data: data["guests"][1]["peers"].update(c="1"),
        r"Plan.guests\[1\].peers.c: expected int, not str",
    ),
    (lambda data: data["hypervisors"].append(5), r"Plan.hypervisors\[2\]: expected dict, not int"),
    (lambda data: data["order"].append([5]), r"Plan.order\[3\]\[0\]: expected str, not int"),
)


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_a_damaged_plan_is_recognised(damage: Any, message: str) -> None:
    """A state file that was edited or cut names its first wrong place."""
    data = planned().to_dict()
    damage(data)
    with pytest.raises(CodecError, match=f"^{message}$"):
        Plan.from_dict(data)


def test_fields_with_defaults_may_be_missing() -> None:
    """A plan written before a field existed can still be read."""
    data = encode(DomainConfig("a", 1, 4096, 1, is_control=True))
    assert decode(DomainConfig, data).is_control
    del data["is_control"]
    assert not decode(DomainConfig, data).is_control
    with pytest.raises(CodecError, match="expected dict, not list"):
        decode(DomainConfig, [])


def test_configurations_are_frozen() -> None:
    """Nodes cannot change what they were told; a new epoch is a new configuration."""
    made = planned()
    with pytest.raises(AttributeError):
        made.broker.epoch = 4  # type: ignore[misc]
    assert replace(made.broker, epoch=4).epoch == 4
