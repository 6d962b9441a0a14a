"""From a file to a topology or to all of its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies.diagnose import Diagnostic, EmptyTopology, TopologyError, nearest, printable, show
from topologies.exitcodes import ExitCode
from topologies.load import load, loads, resolved
from topologies.marks import plain, render, select, walk
from topologies.schema import Topology
from topologies.yaml12 import dump, load_text

SOUND = """
name: lab
defaults: {restart: never}
kinds: {guest: {memory: 8MiB}}
groups: {edge: {vcpus: 2, with: {a: 1}}}
hypervisors:
  hv0: {argo: {mac-permissive: true, linger: 500ms}}
  hv1:
guests:
  app: {on: hv0, program: own:main, group: edge, with: {kind: x, group: y, on: "off", n: null}}
  two: {on: hv1, program: mine:main, memory: 4100KiB}
checks:
  - {name: ended, guest: app, expect: {exit: 0}, within: 20s}
"""


def test_the_resolved_topology_loads_as_the_same_topology() -> None:
    """What the run directory holds can be run again, and is merged already."""
    topology = loads(SOUND)
    data = resolved(topology)
    again = loads(dump(data))
    assert again.hypervisors == topology.hypervisors
    assert {name: guest.with_ for name, guest in again.guests.items()} == {
        "app": {"a": 1, "kind": "x", "group": "y", "on": "off", "n": None},
        "two": {},
    }
    assert resolved(again) == data
    assert not {"kinds", "groups", "defaults"} & data.keys()
    guests: Any = data["guests"]
    assert guests["two"]["memory"] == "4100KiB"
    assert "group" not in guests["app"]


def test_a_sound_file_loads(tmp_path: Path) -> None:
    """`load` takes a path as the user wrote it."""
    path = tmp_path / "lab.yaml"
    path.write_text(SOUND, encoding="utf-8")
    assert load(str(path)) == loads(SOUND)


def test_errors_come_in_the_order_of_the_text_and_know_their_exit_code() -> None:
    """All errors at once: those of the schema and those between the parts."""
    with pytest.raises(TopologyError) as caught:
        loads("name: 5\nguests:\n  app:\n   on: hv9\n   vcpus: 0\n   program: x\nhypervisors: {hv0: {xsm: y}}\n")
    found = [(one.line, one.path) for one in caught.value.diagnostics]
    assert found == [
        (1, "name"),
        (4, "guests.app.on"),
        (5, "guests.app.vcpus"),
        (6, "guests.app.program"),
        (7, "hypervisors.hv0.xsm"),
    ]
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_topology_without_nodes_is_nothing_to_do() -> None:
    """topology.md: exit code 3; but a wrong one stays wrong, and a hypervisor alone is something."""
    with pytest.raises(EmptyTopology) as caught:
        loads("name: lab\n")
    assert caught.value.exit_code is ExitCode.NOTHING_TO_DO
    with pytest.raises(TopologyError) as wrong:
        loads("name: lab\ncolour: blue\n")
    assert wrong.value.exit_code is ExitCode.USAGE
    assert loads("name: lab\nhypervisors: {hv0: }").hypervisors.keys() == {"hv0"}


def test_the_shape_of_an_error() -> None:
    """topology.md: `lab.yaml:14:7 guests.app.on: 'hv9' is no hypervisor here. ...`."""
    text = "name: lab\n\n\n\n\n\n\n\n"
    text += "\nhypervisors: {hv0: , hv1: , hv2: }\nguests:\n app:\n  \n  on: hv9\n  program: m:f\n"
    with pytest.raises(TopologyError) as caught:
        loads(text, "lab.yaml")
    assert str(caught.value) == (
        "lab.yaml:14:7 guests.app.on: 'hv9' is no hypervisor here. Did you mean 'hv0'? [valid: hv0, hv1, hv2]"
    )
    assert caught.value.diagnostics[0].as_dict() == {
        "file": "lab.yaml",
        "line": 14,
        "column": 7,
        "path": "guests.app.on",
        "message": "'hv9' is no hypervisor here",
        "suggestion": "hv0",
        "valid": ["hv0", "hv1", "hv2"],
        "hint": "",
    }


def test_long_lists_of_choices_are_cut_where_people_read_them() -> None:
    """At most twelve choices in a line; a program gets all of them."""
    one = Diagnostic("f", 1, 2, "a", "m", valid=tuple(f"c{index}" for index in range(14)), hint="h")
    assert one.text().startswith("f:1:2 a: m [valid: c0, c1, ")
    assert one.text().endswith("c11, ... 2 more]\n    hint: h")
    assert len(one.as_dict()["valid"]) == 14
    twelve = Diagnostic("f", 0, 0, "", "m", valid=tuple(f"c{index}" for index in range(12)))
    assert twelve.text().startswith("f: m [valid: c0")
    assert "more" not in twelve.text()


def test_the_nearest_name() -> None:
    """Letters in common decide, case does not; of two equally near the first; nothing near is nothing."""
    assert nearest("hv9", ("hv0", "hv1")) == "hv0"
    assert nearest("MEMROY", ("on", "memory")) == "memory"
    assert nearest("xyz", ("hv0", "hv1")) == ""
    assert nearest("hv9", tuple(f"hv{index}" for index in range(101))) == ""
    assert nearest("hv9", tuple(f"hv{index}" for index in range(100))) == "hv9"
    assert nearest("x" * 61, ("x" * 61,)) == ""


def test_values_are_shown_as_yaml_and_never_at_length() -> None:
    """What is shown fits a line and cannot speak to the terminal."""
    values: tuple[object, ...] = (True, None, 5, 1.5, "a", [1], {})
    assert [show(value) for value in values] == [
        "true", "nothing", "5", "1.5", "'a'", "a list", "a map",
    ]  # fmt: skip
    assert show("x" * 40) == f"'{'x' * 40}'"
    assert show("x" * 41) == f"'{'x' * 37}...'"
    assert len(show(10**39 + 1)) == 40
    assert show(10**40) == "1" + "0" * 36 + "..."
    assert printable("a\x1b[1mb\u00e9\ud800\n") == "a\\x1b[1mb\u00e9\\ud800\\n"


def test_locations_read_like_paths() -> None:
    """Keys with dots, indexes in brackets, odd keys in quotes."""
    assert render(("guests", "app", "with", "a b", 0, "x")) == 'guests.app.with."a b"[0].x'
    assert render(()) == ""


def test_selecting_by_pattern() -> None:
    """`*` is every key of a map and every item of a list."""
    root = load_text("a: {x: {k: 1}, y: {k: 2}, z: 3}\nb: [{k: 4}, {j: 5}]\n", "f")
    assert root is not None
    assert [(render(location), node.value) for location, node in select(root, "a.*.k")] == [
        ("a.x.k", 1),
        ("a.y.k", 2),
    ]
    assert [(render(location), node.value) for location, node in select(root, "b.*.k")] == [("b[0].k", 4)]
    assert [render(location) for location, _ in walk(root)][:3] == ["", "a", "a.x"]


KNOWN = """
name hypervisors guests checks defaults kinds groups hosts links policy destinations hv0 app on program
with vcpus
memory argo doors linger kind group expect exit within guest door restart devices x
"""
keys = st.sampled_from(KNOWN.split()) | st.text(max_size=4)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["hv0", "app", "64MiB", "5s", "builtin:echo", "m:f", "xen", "kvm", "lab", "", "1:30"])
    | st.text(max_size=8)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(keys, trees, max_size=8))
def test_random_topologies_never_give_a_traceback(data: dict[str, Any]) -> None:
    """Whatever stands where, the outcome is a topology or a list of errors that can be printed."""
    text = dump(data)
    try:
        assert isinstance(loads(text), Topology)
    except TopologyError as error:
        printed = str(error)
        assert printed
        printed.encode()


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """`data` with `value` in the place of what `path` leads to."""
    if not path:
        return value
    if isinstance(data, dict):
        return {key: replaced(inner, path[1:], value) if key == path[0] else inner for key, inner in data.items()}
    return [replaced(item, path[1:], value) if index == path[0] else item for index, item in enumerate(data)]


_root = load_text(SOUND, "f")
assert _root is not None
PLACES = [location for location, _ in walk(_root)]


@given(st.sampled_from(PLACES), trees)
def test_one_wrong_value_in_a_sound_topology_never_gives_a_traceback(place: tuple[Any, ...], value: Any) -> None:
    """As above, from the other side: everything is right but one thing."""
    assert _root is not None
    text = dump(replaced(plain(_root), place, value))
    try:
        loads(text)
    except TopologyError as error:
        str(error).encode()
