"""What a host lacks is named with what to do about it, and all of it in one report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import ROOT
from topologies.commands.version import installed_version
from topologies.hosts.preflight import Finding, Wanted, judge, needed_paths, report
from topologies.hosts.protocol import PROTOCOL

WANTED = Wanted("1.0", port=5555)
FINE: dict[str, Any] = {
    "python": [3, 11, 2],
    "executable": "/usr/bin/python3",
    "argosy": "1.0",
    "protocol": PROTOCOL,
    "why": "",
    "looks": [["memfd", "ok", "sealed", ""], ["memory", "warning", "little", "buy some"]],
    "absent": [],
    "broker": "",
    "leader": "10.0.0.1",
}


def test_a_host_that_has_everything() -> None:
    """Warnings of `doctor` stop nobody."""
    assert judge("lab2", FINE, WANTED) == []


@pytest.mark.parametrize(
    ("differs", "what", "found"),
    [
        ({"python": [3, 9, 1], "argosy": None}, "python", "/usr/bin/python3 is Python 3.9.1"),
        ({"argosy": None, "why": "ModuleNotFoundError: no topologies"}, "argosy", "cannot be imported: ModuleNotFound"),
        ({"argosy": "0.9"}, "argosy", "version 0.9, here it is 1.0"),
        ({"protocol": PROTOCOL + 1}, "argosy", f"protocol {PROTOCOL + 1}"),
        ({"looks": [["memfd", "missing", "no memfd_create", "a newer kernel"]]}, "memfd", "no memfd_create"),
        ({"looks": [["base directory", "missing", "mode 0777", "chmod"]]}, "base directory", "mode 0777"),
        ({"absent": ["/x/mine.py"]}, "files", "/x/mine.py is not there"),
        ({"broker": "timed out"}, "ports", "the broker cannot be reached at 10.0.0.1 port 5555: timed out"),
    ],
)
def test_what_is_missing_is_found(differs: dict[str, Any], what: str, found: str) -> None:
    """One finding for each thing, with a way to mend it."""
    [finding] = judge("lab2", {**FINE, **differs}, WANTED)
    assert (finding.host, finding.what) == ("lab2", what)
    assert found in finding.found
    assert finding.fix


def test_all_of_it_is_found() -> None:
    """Looking does not end with the first."""
    facts = {**FINE, "argosy": "0.9", "absent": ["/x"], "broker": "no", "looks": [["memfd", "missing", "no", "fix"]]}
    assert [finding.what for finding in judge("lab2", facts, WANTED)] == ["argosy", "memfd", "files", "ports"]


def test_one_report() -> None:
    """Hosts and things are counted, and each has its line."""
    text = report([Finding("a", "python", "none", "get one"), Finding("b", "ports", "shut")])
    assert text.splitlines() == [
        "nothing was started: 2 things are missing, on 2 hosts",
        "  a: python: none (get one)",
        "  b: ports: shut",
    ]


def looked(wanted: Wanted, **environment: str) -> dict[str, Any]:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, "-"], input=wanted.script(), capture_output=True, check=True, timeout=30,
        env={"PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_script_tells_the_truth(short_tmp_path: Path) -> None:
    """It looks at the machine on which it runs."""
    wanted = Wanted(installed_version(), (str(short_tmp_path), "/not/there"))
    told = looked(wanted, XDG_RUNTIME_DIR=str(short_tmp_path))
    assert [(found.what, found.found) for found in judge("here", told, wanted)] == [
        ("files", "/not/there is not there")
    ]
    assert told["python"][:2] == list(sys.version_info[:2])
    shutil.rmtree(short_tmp_path / "argosy")
    short_tmp_path.joinpath("argosy").write_text("in the way")
    told = looked(Wanted(installed_version()), XDG_RUNTIME_DIR=str(short_tmp_path))
    assert "base directory" in [finding.what for finding in judge("here", told, Wanted(installed_version()))]


def test_the_script_runs_without_argosy(short_tmp_path: Path) -> None:
    """Where it cannot be imported, that is what is said."""
    (short_tmp_path / "topologies").mkdir()
    (short_tmp_path / "topologies" / "__init__.py").write_text("raise ImportError('broken')")
    told = looked(Wanted("1.0"), PYTHONPATH=str(short_tmp_path))
    [finding] = judge("here", told, Wanted("1.0"))
    assert "broken" in finding.found


def test_only_files_of_programs_are_needed(tmp_path: Path) -> None:
    """A module that this machine has no file of is installed, here and there."""
    (tmp_path / "mine.py").touch()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "other.py").touch()
    programs = ["builtin:echo", "mine:main", "pack.other:main", "installed:main"]
    assert needed_paths(programs, str(tmp_path), "/there") == ("/there/mine.py", "/there/pack/other.py")
