"""Which host runs what: the outermost hypervisor's host, and everything here where there are no hosts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from topologies.agent.spec import Mode
from topologies.hosts.names import agent_name, part_name
from topologies.hosts.provider import HostSpec
from topologies.hosts.split import HostPlaces, home_of, host_spec, host_timeout_ns, leader_of, placed, split
from topologies.load import load
from topologies.plan import Places, Plan, plan
from topologies.processes import lab_spec

TEXT = """
name: many
hypervisors: {hv0: {}, hv1: {}, hv2: {}}
guests:
  a: {on: hv0, program: builtin:echo}
  b: {on: hv1, program: builtin:echo}
  c: {on: hv2, program: "mine:forever"}
"""
HOSTS: dict[str, Any] = {
    "far": {"provider": "ssh", "address": "far.example", "python": "/opt/python", "ssh-config": "conf", "port": 2222},
    "near": {"provider": "local", "address": "10.0.0.1"},
    "idle": {"provider": "ssh", "address": "idle.example"},
}


@pytest.fixture
def one(tmp_path: Any) -> Plan:
    """The plan of a lab without hosts."""
    (tmp_path / "lab.yaml").write_text(TEXT)
    return plan(load(str(tmp_path / "lab.yaml")), Places("/topo", "/run/many", "/run/s/0"), token=b"t")


def spread(found: Plan, homes: dict[str, str], hosts: dict[str, Any] | None = None, **more: Any) -> Plan:
    """The same with hosts, and hypervisors on them."""
    hypervisors = {name: {**keys, "host": homes.get(name, "")} for name, keys in found.topology["hypervisors"].items()}
    topology = {**found.topology, "hosts": HOSTS if hosts is None else hosts, "hypervisors": hypervisors, **more}
    return dataclasses.replace(found, topology=topology)


def test_without_hosts_all_is_here(one: Plan) -> None:
    """One part, the leader's, and no trace of hosts in what the agent is told."""
    parts = split(one)
    assert list(parts) == [""]
    assert parts[""].leads
    assert parts[""].names == ("hv0", "hv1", "hv2", "a", "b", "c")
    spec = lab_spec(one, Mode.RUN)
    assert spec.hosts == ()
    assert {node.host for node in spec.nodes} == {""}


def test_each_host_has_its_hypervisors_and_their_guests(one: Plan) -> None:
    """The leader's is the first of provider local, and comes first; what names no host is its; idle hosts are none."""
    parts = split(spread(one, {"hv0": "far", "hv1": "near"}))
    assert list(parts) == ["near", "far"]
    assert parts["near"].leads
    assert parts["near"].names == ("hv1", "hv2", "b", "c")
    assert parts["far"].names == ("hv0", "a")
    assert parts["far"].host == HostSpec("far", "ssh", "far.example", 2222, "/opt/python", "conf")


def test_what_the_agent_is_told(one: Plan) -> None:
    """Nodes carry the name of a host other than the leader's; ssh's configuration lies beside the topology."""
    more: dict[str, Any] = {"host-timeout": "4s"}
    spec = lab_spec(spread(one, {"hv0": "far", "hv1": "near"}, None, **more), Mode.UP)
    assert {node.name: node.host for node in spec.nodes} == {
        "broker": "", "hv0": "far", "hv1": "", "hv2": "", "a": "far", "b": "", "c": "",
    }  # fmt: skip
    assert [(host.name, host.ssh_config) for host in spec.hosts] == [("far", "/topo/conf")]
    assert (spec.leader, spec.address, spec.host_timeout_ns) == ("near", "10.0.0.1", 4_000_000_000)


def test_a_leader_without_a_name(one: Plan) -> None:
    """Where every host is reached over ssh, the leader is on none of them."""
    assert leader_of({"far": host_spec("far", HOSTS["far"])}) == ""
    parts = split(spread(one, {"hv0": "far"}, {"far": HOSTS["far"]}))
    assert list(parts) == ["", "far"]
    assert parts[""].names == ("hv1", "hv2", "b", "c")


@pytest.mark.parametrize(
    ("node", "home"),
    [("l0", "far"), ("l1", "far"), ("l2", "far"), ("deep", "far"), ("alone", "near"), ("away", "idle")],
)
def test_nested_hypervisors_are_where_the_outermost_is(node: str, home: str) -> None:
    """However deep; only a guest may name a host of its own."""
    topology = {
        "hypervisors": {"l0": {"host": "far"}, "l1": {"parent": "l0"}, "l2": {"parent": "l1"}, "other": {}},
        "guests": {"deep": {"on": "l2"}, "alone": {"on": "other"}, "away": {"on": "l2", "host": "idle"}},
    }
    assert home_of(topology, node, "near") == home


def test_a_host_timeout(one: Plan) -> None:
    """Ten seconds unless the topology says otherwise, as text or nanoseconds."""
    bare = dataclasses.replace(one, topology={})
    assert host_timeout_ns(bare) == 10_000_000_000
    assert host_timeout_ns(dataclasses.replace(one, topology={"host-timeout": "250ms"})) == 250_000_000


def test_directories_of_another_host(one: Plan) -> None:
    """Everything that names a path of the leader's is moved; the rest is as planned."""
    places = HostPlaces("/there/many@far", "/there/s/1")
    hypervisor = placed(one.hypervisors[2], places, "tcp://10.0.0.1:5555")
    assert hypervisor == dataclasses.replace(
        one.hypervisors[2],
        node_dir="/there/many@far/nodes/hv2",
        attach_path="/there/s/1/attach-2",
        broker_endpoint="tcp://10.0.0.1:5555",
    )
    guest = placed(one.guests[2], places, "", "/files")
    assert (guest.node_dir, guest.output_dir) == ("/there/many@far/nodes/c", "/there/many@far/nodes/c")
    assert (guest.base_dir, guest.broker_endpoint) == ("/files", one.guests[2].broker_endpoint)
    assert "/run/many" not in repr(guest)
    assert "/run/many" not in repr(dataclasses.replace(hypervisor, broker_endpoint=""))


def test_names_of_parts_are_nobodys() -> None:
    """A part cannot be taken for a lab."""
    assert agent_name("lab2") == "agent.lab2"
    assert part_name("lab", "lab2") == "lab@lab2"
