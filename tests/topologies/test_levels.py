"""What hypervisors are told of the levels around them (architecture.md, "Levels")."""

from __future__ import annotations

from typing import Any

import pytest

from hv_node.config import DomainConfig, OuterConfig, RemoteConfig, RuleConfig, SlotConfig, WardConfig
from topologies import levels
from topologies.codec import CodecError
from topologies.hosts.split import split
from topologies.levels import PROXY_FIRST, PortError, ports_of
from topologies.plan import Places, Plan, plan
from topologies.schema import Topology

LAB: dict[str, Any] = {
    "name": "lab",
    "hypervisors": {"hv0": {}, "hv1": {"parent": "hv0"}, "hv2": {"parent": "hv1"}, "far": {"host": "b"}},
    "hosts": {"b": {}},
    "guests": {
        "a": {"on": "hv0", "program": "builtin:echo"},
        "b": {"on": "hv2", "program": "builtin:echo", "vcpus": 3, "memory": "8MiB"},
        "c": {"on": "far", "program": "builtin:echo", "implicit-only": True},
        "d": {"on": "far", "program": "builtin:echo"},
    },
    "destinations": [
        {"from": "b", "service": "storage", "instance": 2, "to": "c"},
        {"from": "b", "source-port": 99, "to": "up", "rate": 2.5, "types": [7]},
        {"from": "hv2", "service": "net", "to": "d", "port": 5, "delegable": True},
    ],
}


def lab(**changes: Any) -> Topology:
    return Topology.model_validate(LAB | changes)


def test_paths_go_from_the_outermost_hypervisor_inwards() -> None:
    """Every level knows its own, and its children by name."""
    topology = lab()
    assert levels.path_of(topology, "hv2") == ("hv0", "hv1", "hv2")
    assert levels.guest_path(topology, "b") == ("hv0", "hv1", "hv2", "b")
    assert levels.children_of(topology, "hv0") == ("hv1",)
    assert [levels.host_of(topology, name) for name in ("hv2", "far")] == ["", "b"]


AWAY = (
    # Host of hv0, of the guest that it runs, whether they differ; `here` is the first of provider local.
    ("", "", False),
    ("", "here", False),
    ("here", "", False),
    ("here", "here", False),
    ("here", "b", True),
    ("", "b", True),
    ("b", "here", True),
    ("b", "b", False),
    ("b", "", False),
)


@pytest.mark.parametrize(("home", "own", "away"), AWAY)
def test_a_guest_on_another_host_is_told_from_one_nearby(home: str, own: str, away: bool) -> None:
    """topology.md: a guest runs where its hypervisor does, unless it names a host; planner and split agree."""
    hosts = {"b": {"provider": "ssh", "address": "b.example"}, "here": {}, "other": {}}
    hypervisors = {"hv0": {"host": home}, "hv1": {"parent": "hv0"}}
    guests = {name: {"on": on, "host": own, "program": "builtin:echo"} for name, on in (("a", "hv0"), ("i", "hv1"))}
    topology = lab(hosts=hosts, hypervisors=hypervisors, guests=guests, destinations=[])
    made = plan(topology, Places("/topo", "/run", "/s"))
    domains = {domain.name: domain for config in made.hypervisors for domain in config.domains}
    assert {name: domain.remote for name, domain in domains.items()} == {"a": away, "i": away, "hv1": False}
    parts = {name: host for host, part in split(made).items() for name in part.names}
    assert (parts["a"] != parts["hv0"], parts["i"] != parts["hv1"]) == (away, away)
    found = made.broker.binding
    assert found is not None
    assert {name: dict(found.hosts).get(name, "here") for name in parts} == parts
    assert Plan.from_json(made.to_json()) == made


def test_a_remote_guest_has_one_proxy_id_wherever_it_is_remote() -> None:
    """Its number in the file, from PROXY_FIRST on; guests beside are no remotes."""
    topology = lab(policy={"module": "firewall", "labels": {"b": "b_t"}})
    assert levels.remotes(topology, "far") == (
        RemoteConfig("a", PROXY_FIRST, ("hv0", "a")),
        RemoteConfig("b", PROXY_FIRST + 1, ("hv0", "hv1", "hv2", "b"), "b_t"),
    )
    assert [remote.domid for remote in levels.remotes(topology, "hv2")] == [
        PROXY_FIRST,
        PROXY_FIRST + 2,
        PROXY_FIRST + 3,
    ]


def test_hypervisors_that_nothing_connects_know_nothing_of_each_other() -> None:
    """Two hypervisors in one file are two machines unless something leads from one to the other."""
    apart = lab(hypervisors={"hv0": {}, "hv2": {}, "far": {}}, destinations=[])
    assert levels.remotes(apart, "far") == ()
    joined = lab(hypervisors={"hv0": {}, "hv2": {}, "far": {}}, destinations=[], links=[{"between": ["hv0", "far"]}])
    assert [remote.name for remote in levels.remotes(joined, "far")] == ["a", "b"]


def test_a_nested_hypervisor_is_a_domain_of_its_parent() -> None:
    """A vCPU for each of those inside, room for its rings; what guests lend whom the parent serves is not in it."""
    topology = lab()
    assert levels.nested_domain(topology, "hv1", 2) == DomainConfig("hv1", 2, 4 << 20, 3, nested=True)
    forwarding = {**LAB["hypervisors"], "hv2": {"parent": "hv1", "argo": {"mode": "forward"}}}
    forwarder = levels.nested_domain(lab(hypervisors=forwarding), "hv2", 1)
    assert (forwarder.memory, forwarder.mode, forwarder.wards) == (4 << 20, "forward", (WardConfig("b", 1),))


MODES: dict[str, Any] = {
    "name": "lab",
    "hypervisors": {
        "hv0": {"doors": ["hypercall", "msr"]},
        "f": {"parent": "hv0", "argo": {"mode": "forward"}},
        "s": {"parent": "hv0", "argo": {"mode": "steal"}},
        "o": {"parent": "hv0"},
    },
    "guests": {
        name: {"on": on, "program": "builtin:echo"}
        for name, on in (("a", "hv0"), ("f1", "f"), ("s1", "s"), ("f2", "f"), ("o1", "o"), ("s2", "s"))
    },
}


def test_guests_whose_argo_the_parent_serves_are_the_parent_s() -> None:
    """Stolen: domains of the parent, with the ids that they have elsewhere.  Forwarded: their hypervisor's domain."""
    topology = Topology.model_validate(MODES | {"policy": {"module": "firewall", "labels": {"s1": "s_t", "f1": "f_t"}}})
    first = PROXY_FIRST
    assert [levels.guest_path(topology, name) for name in ("s1", "f1", "f2", "o1")] == [
        ("hv0", "s1"), ("hv0", "f"), ("hv0", "f"), ("hv0", "o", "o1"),
    ]  # fmt: skip
    assert [levels.nested_domid(topology, name) for name in "fso"] == [2, 3, 4]
    assert levels.nested_domain(topology, "f", 2).wards == (WardConfig("f1", 2), WardConfig("f2", 2))
    stolen = (WardConfig("s1", first + 2, "s_t"), WardConfig("s2", first + 5))
    assert levels.nested_domain(topology, "s", 3).wards == stolen
    assert levels.remotes(topology, "hv0") == (RemoteConfig("o1", first + 4, ("hv0", "o", "o1")),)
    assert [(remote.name, remote.domid, remote.path, remote.label) for remote in levels.remotes(topology, "o")] == [
        ("a", first, ("hv0", "a"), ""), ("f", first + 1, ("hv0", "f"), ""), ("s1", first + 2, ("hv0", "s1"), "s_t"),
        ("s2", first + 5, ("hv0", "s2"), ""),
    ]  # fmt: skip
    assert levels.remotes(topology, "f") == levels.remotes(topology, "s") == ()
    at_hv0 = {"a": 1, "f1": 2, "f2": 2, "s1": first + 2, "s2": first + 5, "o1": first + 4}
    for name in ("a", "f1", "f2", "s1", "s2"):
        known = levels.peers_of(topology, name, {"a": 1})
        assert known == {peer: domid for peer, domid in at_hv0.items() if peer != name}
    assert levels.peers_of(topology, "o1", {"o1": 1}) == {
        "a": first, "f1": first + 1, "f2": first + 1, "s1": first + 2, "s2": first + 5,
    }  # fmt: skip
    assert levels.others(topology, "f") == (("hv0",),)
    assert levels.others(topology, "hv0") == (("hv0", "o"),)


def test_what_a_hypervisor_that_does_not_serve_is_told() -> None:
    """Doors of its own only if it forwards; nothing of slots, policy and other hypervisors' guests."""
    topology = Topology.model_validate(MODES | {"destinations": [{"from": "s1", "service": "net", "to": "f2"}]})
    made = {each.name: each for each in plan(topology, Places("/b", "/r", "/s")).hypervisors}
    assert [made[name].doors for name in "fs"] == [("hypercall",), ()]
    assert [levels.doors_of(topology, name) for name in "fs"] == [("hypercall",), ("msr",)]
    assert made["s"].slots == made["f"].slots == ()
    assert [(row.holder, row.to) for row in made["hv0"].slots] == [("s1", ("hv0", "f"))]
    assert made["s"].outer == (OuterConfig("xen", ("hypercall", "msr"), ("hypercall", "msr")),)


def test_the_hypervisors_around_one() -> None:
    """Who decides what becomes of an instruction of a guest inside, the outermost first."""
    hypervisors = {
        "hv0": {"doors": ["hypercall", "msr"], "nested-msr": "never"},
        "hv1": {"parent": "hv0", "personality": "kvm", "doors": ["hypercall"], "argo": {"mode": "steal"}},
        "hv2": {"parent": "hv1"},
        "far": {},
    }
    topology = lab(hypervisors=hypervisors)
    first = OuterConfig("xen", ("hypercall", "msr"), ("hypercall", "msr"), "never")
    assert levels.outer(topology, "hv0") == ()
    assert levels.outer(topology, "hv1") == (first,)
    assert levels.outer(topology, "hv2") == (first, OuterConfig("kvm", ("hypercall",)))


def test_slots_are_numbered_by_holder_in_the_order_of_the_file() -> None:
    """The patch panel (argo.md 24.5): a service, or a source port, leads to an endpoint or up."""
    topology = lab()
    assert levels.slots(topology, "hv2") == (
        SlotConfig("b", 0, None, 0xD0002, ("far", "c")),
        SlotConfig("b", 1, 99, None, (), types=(7,), rate=2.5),
    )
    assert levels.slots(topology, "hv1") == (
        SlotConfig("hv2", 0, None, 0xC0000, ("far", "d"), to_port=5, delegable=True),
    )


def test_a_guest_that_uses_slots_only_is_told_no_domain_ids() -> None:
    """It reaches others without knowing any id, its own included."""
    topology = lab()
    assert levels.peers_of(topology, "c", {"c": 1, "d": 2}) == {}
    assert levels.peers_of(topology, "d", {"c": 1, "d": 2}) == {"c": 1, "a": PROXY_FIRST, "b": PROXY_FIRST + 1}


def test_the_policy_in_the_words_of_hypervisors() -> None:
    """Ports are ranges, and an operation that a label is not granted is refused."""
    topology = lab(
        policy={
            "module": "firewall",
            "labels": {"a": "a_t"},
            "allow": [{"from": "a_t", "to": "*", "ports": ["net", 9, "16-31", "storage:3"]},
                      {"from": "*", "to": "*", "action": "deny"}],
            "permissions": {"a_t": ["enable", "send"]},
        }
    )  # fmt: skip
    made = levels.policy(topology.policy)
    assert made is not None
    ports = ((0xC0000, 0xC00FF), (9, 9), (16, 31), (0xD0003, 0xD0003))
    assert made.rules == (RuleConfig("a_t", "*", ports, True), RuleConfig("*", "*", (), False))
    assert made.permissions == (("a_t", "register_single_source"), ("a_t", "register_any_source"))


@pytest.mark.parametrize("text", ["", "-", "7-", "x", "31-16", "storage:128", "4294967296", "0x"])
def test_what_names_no_ports(text: str) -> None:
    """Neither a service nor numbers, or a range that is empty or too far."""
    with pytest.raises(PortError):
        ports_of(text)


def test_posted_links_are_told_to_both_ends() -> None:
    """topology.md: `links: [{between: [hv0, far], posted: true}]`."""
    topology = lab(links=[{"between": ["hv0", "far"], "posted": True}, {"between": ["hv0", "hv1"]}])
    assert [levels.posted(topology, name) for name in ("hv0", "far", "hv1")] == [("far",), ("hv0",), ()]


def test_a_plan_with_levels_survives_json() -> None:
    """What may be absent, ranges and rates: the agent reads them as the planner wrote them."""
    policy = {"module": "firewall", "allow": [{"from": "*", "to": "*", "ports": ["net"]}]}
    made = plan(lab(policy=policy), Places("/labs", "/run/lab", "/run/s/0"))
    text = made.to_json()
    assert Plan.from_json(text) == made
    with pytest.raises(CodecError, match=r"ports\[0\]: expected 2 items, not 3"):
        Plan.from_json(text.replace(f"[[{0xC0000}, {0xC00FF}]]", "[[1, 2, 3]]", 1))


@pytest.mark.parametrize(
    ("text", "rate"),
    [("", 0), ("8bit", 1), ("1bit", 1), ("64Kbit", 8000), ("10Mbit", 1_250_000), ("2.5Gbit", 312_500_000)],
)
def test_rates_are_decimal_bits_a_second(text: str, rate: int) -> None:
    """As every link's data sheet has them; the broker counts bytes."""
    assert levels.rate_of(text) == rate


def test_an_impairment_in_the_units_of_the_broker() -> None:
    """Nanoseconds, shares of one, bytes a second."""
    keys = {"delay": "2ms", "jitter": "500us", "loss": "0.5%", "duplicate": "100%", "partition": True}
    topology = lab(links=[{"between": ["hv0", "far"], "impair": keys}])
    assert levels.impairment(topology.links[0]) == (2_000_000, 500_000, 0.005, 0, 1.0, 0.0, True)
