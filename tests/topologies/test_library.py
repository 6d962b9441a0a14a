"""The topologies that ship: sound, accepted by the JSON Schema, explained at the top."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from topologies import yaml12
from topologies.json_schema import json_schema
from topologies.load import load, loads, resolved
from topologies.marks import plain
from topologies.plan import Places, Plan, plan
from topologies.programs import builtin_of

LIBRARY = Path(yaml12.__file__).parent / "library"
SHIPPED = sorted(LIBRARY.glob("*.yaml"))


def test_the_library_is_there() -> None:
    """At least the quickstart that README and Makefile name."""
    assert "quickstart" in {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_topology_is_sound(path: Path) -> None:
    """topology.md: every shipped topology is sound, named like its file, and explained."""
    topology = load(str(path))
    assert topology.name == path.stem
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"argosy run topologies/library/{path.name}" in text
    assert topology.checks
    root = yaml12.load_file(str(path))
    assert root is not None
    jsonschema.Draft202012Validator(json_schema()).validate(plain(root))
    jsonschema.Draft202012Validator(json_schema()).validate(resolved(topology))
    again = loads(yaml12.dump(resolved(topology)))
    assert resolved(again) == resolved(topology), "it is read again by `argosy connect`"
    made = plan(topology, Places(str(LIBRARY), "/run/x", "/run/s"), seed=1)
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_topologies_use_what_ships(path: Path) -> None:
    """Only built-in programs, so that they run from a fresh clone."""
    assert all(builtin_of(guest.program) for guest in load(str(path)).guests.values())


def test_the_quickstart_is_what_the_readme_says() -> None:
    """issue 2: one hypervisor, two guests, a file of the build directory, 64 KiB rings, both end in 20 s."""
    topology = load(str(LIBRARY / "quickstart.yaml"))
    assert list(topology.hypervisors) == ["hv0"]
    assert set(topology.guests) == {"sender", "receiver"}
    sender, receiver = topology.guests["sender"], topology.guests["receiver"]
    assert (sender.program, receiver.program) == ("builtin:file-send", "builtin:file-receive")
    assert sender.with_["to"] == "receiver"
    tar = (LIBRARY / sender.with_["file"]).resolve()
    assert tar == LIBRARY.parents[1] / "build" / "quickstart.tar"
    assert sender.with_["ring"] == receiver.with_["ring"] == "64KiB"
    assert {(check.guest, check.expect.exit, check.within) for check in topology.checks} == {
        ("sender", 0, 20 * 10**9),
        ("receiver", 0, 20 * 10**9),
    }
