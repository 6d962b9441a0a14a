"""References between the parts of a topology, also of those parts that this version refuses for now."""

from __future__ import annotations

import pytest

from topologies.crosscheck import crosscheck, references
from topologies.marks import Node
from topologies.merge import resolve
from topologies.yaml12 import load_text


def tree(text: str) -> Node:
    root = load_text(text, "lab.yaml")
    assert root is not None
    return resolve(root)


PARTS = """
hosts: {lab1: {}}
hypervisors: {hv0: {}, hv1: {}}
guests: {app: {on: hv0}}
kinds: {fast: {}}
groups: {edge: {}}
"""

# A reference, the entry it may name, and what the error says of any other.
REFERENCES = (
    ("hypervisors: {hv0: {parent: @}}", "hv0", "hypervisor", "hv0"),
    ("hypervisors: {hv0: {host: @}}\nhosts: {lab1: {}}", "lab1", "host", "lab1"),
    ("guests: {app: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("defaults: {on: @}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("kinds: {k: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("groups: {g: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("checks: [{guest: @}]\nguests: {app: {on: hv0}}\nhypervisors: {hv0: }", "app", "guest", "app"),
    ("destinations: [{from: @}]\nguests: {app: {on: hv0}}\nhypervisors: {hv0: }", "app", "guest", "app"),
    ("destinations: [{to: @}]\nguests: {app: {on: hv0}}\nhypervisors: {hv0: }", "app", "guest", "app"),
    ("links: [{between: [hv0, @]}]\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("defaults: {kind: @}\nkinds: {fast: }", "fast", "kind", "fast, hypervisor, guest"),
    ("groups: {g: {kind: @}}\nkinds: {fast: }", "fast", "kind", "fast, hypervisor, guest"),
    ("hypervisors: {hv0: {kind: @}}\nkinds: {fast: }", "hypervisor", "kind", "fast, hypervisor, guest"),
    (
        "guests: {app: {kind: @, on: hv0}}\nkinds: {fast: }\nhypervisors: {hv0: }",
        "guest",
        "kind",
        "fast, hypervisor, guest",
    ),
    ("defaults: {group: @}\ngroups: {edge: }", "edge", "group", "edge"),
    ("kinds: {k: {group: @}}\ngroups: {edge: }", "edge", "group", "edge"),
    ("hypervisors: {hv0: {group: @}}\ngroups: {edge: }", "edge", "group", "edge"),
    ("guests: {app: {group: @, on: hv0}}\ngroups: {edge: }\nhypervisors: {hv0: }", "edge", "group", "edge"),
)


@pytest.mark.parametrize(("text", "name", "noun", "valid"), REFERENCES)
def test_every_reference_is_looked_up(text: str, name: str, noun: str, valid: str) -> None:
    """topology.md: `on`, `parent`, `host`, destinations, links, checks, kinds and groups name things of the
    same file.
    """
    assert list(references(tree(text.replace("@", name)))) == []
    found = [diagnostic for _, diagnostic in references(tree(text.replace("@", "zz9")))]
    assert [one.message for one in found] == [f"'zz9' is no {noun} here"]
    assert ", ".join(found[0].valid) == valid


@pytest.mark.parametrize("name", ["broker", "agent"])
def test_names_of_the_fabric_are_taken(name: str) -> None:
    """The broker knows its peers by name: no node can have that of the broker or the agent."""
    for text in (
        f"hypervisors: {{{name}: }}",
        f"hypervisors: {{hv0: }}\nguests: {{{name}: {{on: hv0, program: 'm:f'}}}}",
    ):
        messages = [diagnostic.message for _, diagnostic in crosscheck(tree(text))]
        assert messages == [f"'{name}' is the name of the lab's {name}"]


@pytest.mark.parametrize("program", ["ping-pong", "file-send"])
def test_a_built_in_programs_peer_must_be_in_reach(program: str) -> None:
    """Argo reaches the domains of one's own hypervisor; links to others come later."""
    text = f"""
hypervisors: {{hv0: , hv1: }}
guests:
  a: {{on: hv0, program: "builtin:{program}", with: {{to: @}}}}
  b: {{on: hv0, program: "m:f", with: {{to: nobody}}}}
  c: {{on: hv1, program: "m:f"}}
"""
    for to, message in (
        ("b", None),
        ("c", "'c' is out of reach, on another hypervisor"),
        ("a", "'a' is this guest itself"),
        ("d", "'d' is no guest here"),
    ):
        found = [diagnostic for _, diagnostic in crosscheck(tree(text.replace("@", to)))]
        assert [one.message for one in found] == ([] if message is None else [message])
        assert all(one.valid == ("b",) for one in found)


@pytest.mark.parametrize(
    "program",
    ["builtin:echo", "builtin:ping-pong", "builtin:file-send", "builtin:file-receive", "m:f", "a.b_1.c:main"],
)
def test_programs_that_may_be_named(program: str) -> None:
    """issue 2, part 6: built in are echo, ping-pong, file-send, file-receive; a user's own is
    module:function.
    """
    text = f"hypervisors: {{hv0: }}\nguests: {{app: {{on: hv0, program: '{program}'}}}}"
    assert list(crosscheck(tree(text))) == []


def test_malformed_parts_are_left_to_the_schema() -> None:
    """Cross-checks run whatever else is wrong, and find nothing in what is no map."""
    for text in (
        "hypervisors: 5\nguests: {app: {on: hv0, program: 'm:f'}}",
        "guests: 5\nchecks: {a: 1}",
        "name: 5",
    ):
        assert list(crosscheck(tree(text))) == []
