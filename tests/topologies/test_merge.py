"""defaults < kinds < groups < node, as in containerlab (its topology definition file, "defaults", "kinds",
"groups").
"""

from __future__ import annotations

from typing import Any

import pytest

from topologies.load import loads
from topologies.marks import Node, find, plain
from topologies.merge import resolve
from topologies.schema import Guest, Topology
from topologies.yaml12 import load_text


def tree(text: str) -> Node:
    root = load_text(text, "lab.yaml")
    assert root is not None
    return resolve(root)


def guest(text: str, name: str = "app") -> dict[str, Any]:
    """The merged keys of a guest."""
    keys: dict[str, Any] = plain(tree(text))["guests"][name]
    return keys


def test_each_layer_is_stronger_than_the_one_before() -> None:
    """One key written in all four layers, then taken away from the strongest down."""
    layers = (
        "defaults: {vcpus: 1}\n",
        "kinds: {fast: {vcpus: 2}}\n",
        "groups: {edge: {vcpus: 3}}\n",
        "guests: {app: {kind: fast, group: edge, vcpus: 4}}\n",
    )
    without = "guests: {app: {kind: fast, group: edge}}\n"
    assert guest("".join(layers))["vcpus"] == 4
    assert guest("".join(layers[:3]) + without)["vcpus"] == 3
    assert guest("".join(layers[:2]) + without)["vcpus"] == 2
    assert guest("".join(layers[:1]) + without)["vcpus"] == 1
    assert "vcpus" not in guest(without)


def test_maps_merge_one_level_and_lists_replace() -> None:
    """`with` and `argo` gather their entries; what lies deeper, and lists, are replaced as a whole."""
    text = """
defaults: {with: {a: 1, b: {x: 1, y: 2}, l: [1, 2]}, argo: {enabled: true}}
groups: {g: {with: {b: {x: 3}, l: [4]}}}
hypervisors: {hv0: {argo: {mac-permissive: true}}}
guests: {app: {group: g, with: {c: 5}}}
"""
    assert guest(text)["with"] == {"a": 1, "b": {"x": 3}, "l": [4], "c": 5}
    assert plain(tree(text))["hypervisors"]["hv0"] == {"argo": {"enabled": True, "mac-permissive": True}}


def test_a_node_without_a_kind_has_that_of_its_section() -> None:
    """`kinds: {hypervisor: ..., guest: ...}` reach the nodes that name no kind, and no others."""
    text = """
kinds: {hypervisor: {xsm: silo}, guest: {vcpus: 2}, fast: {memory: 8MiB}}
hypervisors: {hv0: {}, hv1: {kind: fast}}
guests: {app: {}, two: {kind: fast}}
"""
    merged = plain(tree(text))
    assert merged["hypervisors"] == {"hv0": {"xsm": "silo"}, "hv1": {"kind": "fast"}}
    assert merged["guests"] == {"app": {"vcpus": 2}, "two": {"memory": "8MiB", "kind": "fast"}}


def test_keys_reach_only_the_nodes_that_can_have_them() -> None:
    """`memory` in defaults concerns guests, `xsm` hypervisors, `restart` both."""
    text = "defaults: {memory: 8MiB, xsm: silo, restart: never}\nhypervisors: {hv0: }\nguests: {app: }\n"
    merged = plain(tree(text))
    assert merged["hypervisors"] == {"hv0": {"xsm": "silo", "restart": "never"}}
    assert merged["guests"] == {"app": {"memory": "8MiB", "restart": "never"}}


@pytest.mark.parametrize(
    ("text", "vcpus"),
    [
        ("kinds: {k: {group: g}}\ngroups: {g: {vcpus: 7}}\nguests: {app: {kind: k}}", 7),
        ("groups: {g: {kind: k}}\nkinds: {k: {vcpus: 7}}\nguests: {app: {group: g}}", 7),
        ("defaults: {kind: k}\nkinds: {k: {vcpus: 7}}\nguests: {app: }", 7),
        ("defaults: {group: g}\ngroups: {g: {vcpus: 7}}\nguests: {app: }", 7),
        ("defaults: {group: g}\ngroups: {g: {kind: k}}\nkinds: {k: {vcpus: 7}}\nguests: {app: }", 7),
        (
            "defaults: {group: g}\ngroups: {g: {vcpus: 1}, h: {vcpus: 7}}\n"
            "kinds: {k: {group: h}}\nguests: {app: {kind: k}}",
            7,
        ),
        (
            "defaults: {kind: k}\nkinds: {k: {vcpus: 1}, m: {vcpus: 7}}\n"
            "groups: {g: {kind: m}}\nguests: {app: {group: g}}",
            7,
        ),
    ],
)
def test_kind_and_group_may_come_from_each_other_or_from_defaults(text: str, vcpus: int) -> None:
    """containerlab: the node's own, else that of its group (kind) or of its kind (group), else that of
    defaults.
    """
    assert guest(text)["vcpus"] == vcpus


def test_marks_survive_merging() -> None:
    """contracts 9: what a node inherits still stands where it was written."""
    root = tree("defaults:\n  memory: 8MiB\n  with: {a: 1}\nguests:\n  app:\n    with: {b: 2}\n")
    memory = find(root, ("guests", "app", "memory"))
    inherited, own = find(root, ("guests", "app", "with", "a")), find(root, ("guests", "app", "with", "b"))
    assert memory is not None
    assert inherited is not None
    assert own is not None
    assert [node.mark[1:] for node in (memory, inherited, own)] == [(2, 11), (3, 13), (6, 15)]


@pytest.mark.parametrize("section", ["hypervisors", "guests", "checks", "defaults", "kinds", "groups"])
def test_a_section_without_a_value_is_empty(section: str) -> None:
    """All entries commented out: the section is as if it were not there."""
    assert plain(tree(f"name: lab\n{section}:\n")) == {"name": "lab"}


@pytest.mark.parametrize("section", ["hypervisors", "guests", "kinds", "groups"])
def test_an_entry_without_a_value_is_an_empty_map(section: str) -> None:
    """containerlab: a node may be null, then it inherits everything."""
    assert plain(tree(f"{section}:\n  one:\n")) == {section: {"one": {}}}


def test_other_keys_without_a_value_stay_errors() -> None:
    """Only sections and their entries may be empty."""
    assert plain(tree("name:\nguests: {app: {with: }}\n")) == {
        "name": None,
        "guests": {"app": {"with": None}},
    }


@pytest.mark.parametrize(
    "text",
    [
        "defaults: 5\nguests: {app: {}}",
        "kinds: []\nguests: {app: {kind: x}}",
        "kinds: {x: 5}\nguests: {app: {kind: x}}",
        "groups: {g: }\nguests: {app: {group: [g]}}",
        "guests: [1]\nhypervisors: x",
        "guests: {app: 5}",
        "defaults: {kind: 5, group: {}}\nguests: {app: }",
    ],
)
def test_what_is_malformed_is_passed_on(text: str) -> None:
    """Merging judges nothing: the schema reports it later, all at once."""
    root = load_text(text, "lab.yaml")
    assert root is not None
    merged = plain(resolve(root))
    assert merged.keys() == plain(root).keys()


def test_a_topology_with_all_layers_is_typed_as_if_written_out() -> None:
    """The model sees the merged keys only."""
    topology = loads("""
name: lab
defaults: {on: hv0}
kinds: {guest: {program: "builtin:echo"}}
groups: {big: {memory: 128MiB}}
hypervisors: {hv0: }
guests: {app: {group: big}, two: {vcpus: 2}}
""")
    assert isinstance(topology, Topology)
    app, two = topology.guests.values()
    assert isinstance(app, Guest)
    assert (app.on, app.program, app.memory, app.vcpus) == ("hv0", "builtin:echo", 128 << 20, 1)
    assert (two.on, two.program, two.memory, two.vcpus) == ("hv0", "builtin:echo", 64 << 20, 2)
