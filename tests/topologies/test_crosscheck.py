"""References between the parts of a topology, and what built-in programs take."""

from __future__ import annotations

import importlib
import re

import pytest

from guest_node import programs
from topologies.crosscheck import crosscheck, references
from topologies.marks import Node
from topologies.merge import resolve
from topologies.programs import BUILTINS
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
    ("guests: {app: {host: @, on: hv0}}\nhosts: {lab1: {}}\nhypervisors: {hv0: }", "lab1", "host", "lab1"),
    ("guests: {app: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("defaults: {on: @}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("kinds: {k: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("groups: {g: {on: @}}\nhypervisors: {hv0: }", "hv0", "hypervisor", "hv0"),
    ("checks: [{guest: @}]\nguests: {app: {on: hv0}}\nhypervisors: {hv0: }", "app", "guest", "app"),
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


@pytest.mark.parametrize(("text", "noun"), [(text, noun) for text, _, noun, _ in REFERENCES])
def test_who_may_be_named_by_a_guests_name(text: str, noun: str) -> None:
    """The guest of a check, and the end of a link: guests on other hosts have one to their hypervisors (fabric.md)."""
    guest = "zz9: {on: hv0}"
    text = text.replace("guests: {", f"guests: {{{guest}, ") if "guests: {" in text else f"{text}\nguests: {{{guest}}}"
    if "hypervisors:" not in text:
        text += "\nhypervisors: {hv0: }"
    where = text.partition(":")[0]  # what stands in `defaults` is said of whoever it falls to as well
    found = [said.message for location, said in references(tree(text.replace("@", "zz9"))) if location[0] == where]
    assert found == ([] if noun == "guest" or where == "links" else [f"'zz9' is no {noun} here"])


@pytest.mark.parametrize("name", ["broker", "agent"])
def test_names_of_the_fabric_are_taken(name: str) -> None:
    """The broker knows its peers by name: no node can have that of the broker or the agent."""
    for text in (
        f"hypervisors: {{{name}: }}",
        f"hypervisors: {{hv0: }}\nguests: {{{name}: {{on: hv0, program: 'm:f'}}}}",
    ):
        messages = [diagnostic.message for _, diagnostic in crosscheck(tree(text))]
        assert messages == [f"'{name}' is the name of the lab's {name}"]


PEERS = (
    ("echo", "from: @"),
    ("ping-pong", "to: @"),
    ("file-send", "file: x, to: @"),
    ("file-receive", "from: @"),
    ("door-report", "to: @"),
    ("door-peer", "from: @"),
    ("blk-server", "blank: 1MiB, from: @"),
    ("net-switch", "from: @"),
    ("console-server", "from: @"),
    ("rng-server", "from: @"),
    ("vsock-server", "from: @"),
)


@pytest.mark.parametrize(("program", "arguments"), PEERS)
def test_a_built_in_programs_peer_must_be_in_reach(program: str, arguments: str) -> None:
    """Argo reaches the domains of one's own hypervisor; links to others come later."""
    text = f"""
hypervisors: {{hv0: , hv1: }}
guests:
  a: {{on: hv0, program: "builtin:{program}", with: {{{arguments}}}}}
  b: {{on: hv0, program: "m:f", with: {{to: nobody, from: nobody}}}}
  c: {{on: hv1, program: "m:f"}}
"""
    assert list(crosscheck(tree(text.replace("@", "7")))) == []  # a domain id
    for to, message in (
        ("b", None),
        ("c", "'c' is out of reach, on another hypervisor"),
        ("a", "'a' is this guest itself"),
        ("d", "'d' is no guest here"),
    ):
        found = [diagnostic for _, diagnostic in crosscheck(tree(text.replace("@", to)))]
        assert [one.message for one in found] == ([] if message is None else [message])
        assert all(one.valid == ("b",) for one in found)


# The built-in programs, the arguments they need, and all they know.
PROGRAMS = (
    ("echo", "", "port service instance kind sessions ring from"),
    ("ping-pong", "to|service", "to port service instance kind count size ring within"),
    ("file-send", "to|service file", "to file port service instance ring within chunk"),
    ("file-receive", "", "port service instance output ring from"),
    ("door-report", "to", "to port count size burst ring within"),
    ("door-peer", "", "port sessions ring from"),
    ("v4v-store", "serves", "serves blocks ring over disks sessions"),
    ("v4v-disk", "", "count blocks ring within"),
    ("blk-copy", "", "device output chunk depth within"),
    ("blk-write", "", "device file offset count size depth within"),
    ("net-ping", "", "device count size within"),
    ("net-echo", "", "device sessions within"),
    ("console-talk", "", "device count size within"),
    ("rng-read", "", "device size output within"),
    ("vsock-ping", "", "device cid port count size within"),
    ("vsock-echo", "", "device port sessions within"),
    ("blk-server", "image|blank", "image blank copy read-only queues service instance sessions ring from"),
    ("net-switch", "", "tap service instance sessions ring from"),
    ("console-server", "", "service instance sessions ring from"),
    ("rng-server", "", "service instance sessions ring from"),
    ("vsock-server", "", "cids port service instance sessions ring from"),
)
FRONT_ENDS = {
    "blk-copy": "blk", "blk-write": "blk", "net-ping": "net", "net-echo": "net", "console-talk": "console",
    "rng-read": "rng", "vsock-ping": "vsock", "vsock-echo": "vsock",
}  # fmt: skip
BACK_ENDS = {
    "blk-server": "blk", "net-switch": "net", "console-server": "console", "rng-server": "rng", "vsock-server": "vsock",
}  # fmt: skip


@pytest.mark.parametrize(("program", "required", "known"), PROGRAMS)
def test_the_built_in_programs(program: str, required: str, known: str) -> None:
    """issue 2, part 6: echo, ping-pong, file-send, file-receive; unknown and missing arguments are named."""
    kind = FRONT_ENDS.get(program)
    service = "storage" if kind == "blk" else kind
    guest = f"on: hv0, program: 'builtin:{program}', with: {{@}}"
    text = f"hypervisors: {{hv0: }}\nguests: {{a: {{{guest}}}}}"
    if kind:
        devices = f"devices: [{{type: {kind}}}, {{type: {kind}, service: display}}]"
        text = text.replace("with:", f"{devices}, with:").replace("}}}", "}}, b: {on: hv0, program: 'm:f'}}")
        to_b = "{from: a, service: %s, to: b}"
        text += f"\ndestinations: [{to_b % service}, {to_b % 'display'}]"

    def found(arguments: str) -> list[tuple[str, tuple[str, ...]]]:
        return [(one.message, one.valid) for _, one in crosscheck(tree(text.replace("@", arguments)))]

    needed = [f"{argument.partition('|')[0]}: 1" for argument in required.split()]
    assert found(", ".join(f"{argument}: 1" for argument in known.split())) == []
    assert found(", ".join(needed)) == []
    unknown = (f"builtin:{program} has no argument 'zz'", tuple(known.split()))
    assert found(", ".join([*needed, "zz: 1"])) == [unknown]
    names = [argument.replace("|", "' or '") for argument in required.split()]
    missing = [(f"builtin:{program} needs the argument '{name}'", ()) for name in names]
    assert found("") == missing


def test_what_is_known_of_the_built_in_programs_is_true() -> None:
    """The programs are in guest_node: same names, and `with: {...}` in each docstring lists the arguments."""
    assert [builtin.name for builtin in programs.BUILTINS] == [program for program, _, _ in PROGRAMS]
    for builtin, (_, _, known) in zip(programs.BUILTINS, PROGRAMS, strict=True):
        module = importlib.import_module(builtin.target.partition(":")[0])
        line = re.search(r"^with: (\{.*?\})$", module.__doc__ or "", re.DOTALL | re.MULTILINE)
        assert line is not None, builtin.name
        assert re.findall(r"(?:^\{|[,{]\s+)([a-z-]+): ", line[1]) == known.split(), builtin.name


def test_only_what_is_an_argument_can_name_a_guest() -> None:
    """topology.md, "Programs": a peer is named by an argument that the program takes."""
    for builtin in BUILTINS:
        assert set(builtin.peers) <= set(builtin.arguments), builtin.name


def test_which_programs_use_and_serve_devices() -> None:
    """Issue 6, part 2: front ends in guests, back ends in driver domains, for each type of device."""
    assert {row.name: row.uses for row in BUILTINS if row.uses} == FRONT_ENDS
    assert {row.name: row.serves for row in BUILTINS if row.serves} == BACK_ENDS


@pytest.mark.parametrize("program", ["builtin:echo", "builtin:file-receive", "m:f", "a.b_1.c:main"])
def test_programs_that_may_be_named(program: str) -> None:
    """issue 2, part 6: a user's own program is module:function."""
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
