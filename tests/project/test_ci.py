"""What closes a run: the line of skips, and the comparison of skips with those that are allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import skip_line
from tests.project.source import ROOT

CHECK = ROOT / ".ci" / "check_skips.py"


def check(tmp_path: Path, allowed: str, report: str | None) -> subprocess.CompletedProcess[str]:
    (tmp_path / "allowed").write_text(allowed)
    if report is not None:
        (tmp_path / "report").write_text(report)
    return subprocess.run(
        [sys.executable, str(CHECK), "allowed", "report"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("allowed", "report", "code", "says"),
    [
        ("", "", 0, "skipped tests: 0"),
        ("", "tests/a.py::b\tno kvm\n", 1, "NOT ALLOWED tests/a.py::b: no kvm"),
        ("tests/a.py::b | needs kvm\n", "tests/a.py::b\tno kvm\n", 0, "tests/a.py::b: no kvm"),
        ("tests/a.py::b[[]1] | needs kvm\n", "tests/a.py::b[1]\tx\n", 0, "skipped tests: 1"),
        ("tests/a.py::b[1] | needs kvm\n", "tests/a.py::b[1]\tx\n", 0, "skipped tests: 1"),
        ("# tests/*\n", "tests/a.py::b\tno kvm\n", 1, "NOT ALLOWED"),
        ("tests/a.py::* | needs kvm\n", "tests/a.py::b\tx\ntests/c.py::d\ty\n", 1, "NOT ALLOWED tests/c"),
        ("tests/a.py::*\n", "", 1, "pattern | reason"),
        ("", None, 1, "its suite did not run"),
    ],
)
def test_an_unlisted_skip_fails(tmp_path: Path, allowed: str, report: str | None, code: int, says: str) -> None:
    """contracts: .ci/run ends with the list of skipped tests; one that is not listed fails."""
    run = check(tmp_path, allowed, report)
    assert run.returncode == code
    assert says in run.stdout + run.stderr


def test_every_allowed_skip_says_why() -> None:
    """The shipped list parses."""
    run = subprocess.run(
        [sys.executable, str(CHECK), str(ROOT / ".ci" / "allowed-skips")], capture_output=True, check=False
    )
    assert run.returncode == 0


def test_the_skip_line() -> None:
    """`make test` prints skips by reason as its last line."""
    assert skip_line([]) == "skips: none"
    skips = [("a", "no kvm"), ("b", "no ipv6"), ("c", "no kvm")]
    assert skip_line(skips) == "skips: 3 (1x no ipv6, 2x no kvm)"


def test_a_run_ends_with_its_skips(tmp_path: Path) -> None:
    """The hook itself, in a run of its own: the very last line, and the report."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pytest.skip('no kvm')\ndef test_b(): pass\n"
        "@pytest.mark.xfail\ndef test_c(): assert False\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--skip-report=skips", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert run.stdout.splitlines()[-1] == "skips: 1 (1x no kvm)", run.stdout + run.stderr
    assert (tmp_path / "skips").read_text() == "test_it.py::test_a\tno kvm\n"


def test_the_run_covers_what_it_promises() -> None:
    """.ci/run calls the README's commands and every long suite, and nothing that is not there yet."""
    script = (ROOT / ".ci" / "run").read_text()
    steps = [step.partition("#")[0].strip() for step in re.findall(r"^step (.*)$", script, re.MULTILINE)]
    for target in ("quickstart", "test", "mutate", "fuzz FUZZ_SECONDS=1", "test-long"):
        assert f"make {target}" in steps
    assert steps.count("make quickstart") == 2
    assert not any("bench" in step for step in steps)
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0
