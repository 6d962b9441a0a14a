"""`argosy inspect --probe`: what a guest's probe saw, tried and chose, or why there is nothing to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from topologies import labs
from topologies.commands.inspect import inspect
from topologies.commands.lifecycle import NotFound
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.labs import Lab

REPORT = {
    "arch": "x86_64",
    "hypervisors": [
        {"name": "hyperv", "at": "0x40000000", "abi": "hyperv", "domid": None},
        {"name": "xen", "at": "0x40000100", "abi": "xen", "domid": 7},
    ],
    "doors": [
        {"door": "hypercall", "speaks": "xen", "instruction": "VMMCALL", "selector": "0x0", "found": "present",
         "detail": "argo_op refuses an unknown operation", "closeness": 0, "exits": 1, "cycles": 20850},
        {"door": "pio", "speaks": "any", "instruction": "IN", "selector": "0x4152", "found": "ignored or all ones",
         "detail": "all ones", "closeness": 3, "exits": 1, "cycles": 21480},
    ],
    "chosen": "hypercall", "why": "hypercall: the only one", "notification": "line", "said": "there is no local APIC",
}  # fmt: skip


def node(name: str, probe: Any = None, kind: str = "guest", state: str = "ready") -> dict[str, Any]:
    """What a lab's state says of a node."""
    return {
        "name": name, "kind": kind, "state": state, "silent": None, "pid": 1, "hypervisor": "hv0", "domid": 1,
        "exit": None, "signal": None, "detail": "", "probe": None if probe is None else [json.dumps(probe)],
    }  # fmt: skip


NODES = [
    node("hv0", kind="hypervisor"), node("app", REPORT), node("late", state="joined"), node("gone", state="failed"),
]  # fmt: skip


@pytest.fixture
def one_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab of these nodes runs."""
    lab = Lab("lab", Path("/run/lab"), {"lab": "lab", "nodes": NODES, "epoch": 1}, Path("/nobody"))
    monkeypatch.setattr(labs, "running_labs", lambda: [lab])
    monkeypatch.setattr(labs, "ended_labs", lambda _found: [])


@pytest.mark.usefixtures("one_lab")
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Who announced itself, each door with instruction, selector, finding and cost, the choice and the reason."""
    assert inspect("app", Format.TABLE, probe=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "app in lab lab, x86_64"
    rows = [line.split() for line in lines]
    assert ["xen", "0x40000100", "xen", "7"] in rows
    assert ["hyperv", "0x40000000", "hyperv"] in rows
    tried = next(line for line in lines if line.startswith("hypercall"))
    words = " ".join(tried.split())
    assert words == "hypercall xen VMMCALL 0x0 present argo_op refuses an unknown operation 0 1 20850"
    assert "pio any IN 0x4152 ignored or all ones all ones 3 1 21480" in [" ".join(row) for row in rows]
    assert "door: hypercall (hypercall: the only one)" in lines
    assert "notification: line (there is no local APIC)" in lines


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"node": "/hypervisor", "compatible": ["xen,xen-4.22", "xen,xen"], "hypervisor": "xen"},
         "device tree: /hypervisor is compatible with xen,xen-4.22, xen,xen"),
        ({"node": "/hypervisor", "compatible": ["acme,one"], "hypervisor": None},
         "device tree: /hypervisor is compatible with acme,one, which names nobody known"),
        ({"error": "magic 0x0, not 0xd00dfeed"}, "device tree: unreadable: magic 0x0, not 0xd00dfeed"),
    ],
)  # fmt: skip
def test_the_device_tree(
    told: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the node /hypervisor said, or why the tree could not be read, above the choice of the door."""
    state = {"lab": "lab", "nodes": [node("app", {**REPORT, "device_tree": told})]}
    lab = Lab("lab", Path("/run/lab"), state, Path("/nobody"))
    monkeypatch.setattr(labs, "running_labs", lambda: [lab])
    monkeypatch.setattr(labs, "ended_labs", lambda _found: [])
    assert inspect("app", Format.TABLE, probe=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index(line) == next(at for at, each in enumerate(lines) if each.startswith("door: ")) - 1


@pytest.mark.usefixtures("one_lab")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The report itself, by lab and guest; without a name, of every guest that has probed."""
    for name in ("app", "lab", None):
        assert inspect(name, Format.JSON, probe=True) == 0
        assert json.loads(capsys.readouterr().out) == {"schema": "probe/1", "labs": {"lab": {"app": REPORT}}}


def test_no_hypervisor_and_no_door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On bare metal."""
    found = {**REPORT, "hypervisors": [], "chosen": None, "why": "no door to Argo was found", "notification": None}
    lab = Lab("lab", Path("/run/lab"), {"lab": "lab", "nodes": [node("app", found)], "epoch": 1}, None)
    monkeypatch.setattr(labs, "running_labs", lambda: [lab])
    monkeypatch.setattr(labs, "ended_labs", lambda _found: [])
    assert inspect("app", Format.TABLE, probe=True) == 0
    printed = capsys.readouterr().out
    assert "no hypervisor announces itself" in printed
    assert "door: none (no door to Argo was found)" in printed
    assert "notification" not in printed


WORDS = (
    ("late", "guest 'late' has not probed for its hypervisor yet: it is joined"),
    ("gone", "guest 'gone' has not probed for its hypervisor: it is failed"),
    ("hv0", "'hv0' is a hypervisor: only guests probe for their hypervisor"),
    ("ap", "there is neither a lab nor a node 'ap'. Did you mean 'app'? [known: app, gone, hv0, lab, late]"),
)


@pytest.mark.usefixtures("one_lab")
@pytest.mark.parametrize(("name", "words"), WORDS)
def test_nothing_to_show(name: str, words: str) -> None:
    """What is wrong, and exit code 3."""
    with pytest.raises(NotFound) as raised:
        inspect(name, Format.TABLE, probe=True)
    assert str(raised.value) == words
    assert raised.value.code == ExitCode.NOTHING_TO_DO


def test_a_lab_in_which_nobody_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation keeps no record of probes; an older version kept another one."""
    old = {**node("app"), "probe": ["hypercall", "0x40000000", 1]}
    lab = Lab("lab", Path("/run/lab"), {"lab": "lab", "nodes": [old, node("b")], "epoch": 1}, None)
    monkeypatch.setattr(labs, "running_labs", list)
    monkeypatch.setattr(labs, "ended_labs", lambda _found: [lab])
    with pytest.raises(NotFound, match="no guest has probed"):
        inspect("lab", Format.TABLE, probe=True)
    with pytest.raises(NotFound, match="guest 'app' has not probed"):
        inspect("app", Format.TABLE, probe=True)
