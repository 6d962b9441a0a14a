"""The Makefile's targets: they exist, and say what is wrong when they cannot do their work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project.source import ROOT

TARGETS = (
    *("setup", "quickstart", "test", "test-long", "fuzz"),
    *("bench", "bench-check", "mutate", "docs", "lint", "clean"),
)


def make(directory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-C", str(directory), "--no-print-directory", *words],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory that holds the Makefile and a file, and no repository."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return tmp_path


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_exists(target: str) -> None:
    """The names that the README and CONTRIBUTING speak of."""
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*:(?!=)", text, re.MULTILINE)


def test_a_missing_python_is_named(tree: Path) -> None:
    """A missing one is named, with the command that installs it."""
    run = make(tree, "setup", "PYTHON=python3-that-is-not-here")
    assert run.returncode != 0
    assert "python3-that-is-not-here is missing" in run.stderr
    assert "apt-get install -y python3 python3-venv" in run.stderr


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("version_info", "Python 3.11 or later is needed"),
        ("ensurepip", "apt-get install -y python3-venv"),
    ],
)
def test_an_unfit_python_is_named(tree: Path, fails: str, says: str) -> None:
    """An old python3, and one without its venv module (Debian packages that apart)."""
    python = tree / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *{fails}*) exit 1;; *) echo 3.9.2;; esac\n')
    python.chmod(0o755)
    run = make(tree, "setup", f"PYTHON={python}")
    assert run.returncode != 0
    assert says in run.stderr


def test_a_small_tree_is_refused(tree: Path) -> None:
    """The demonstration sends at least 2 MiB: a tree that has less is not the whole project."""
    run = make(tree, "quickstart-tar", GIT_CEILING_DIRECTORIES=str(tree.parent))
    assert run.returncode != 0
    assert re.search(r"quickstart.tar: \d+ bytes", run.stdout)
    assert "fewer than the 2097152" in run.stderr


def test_the_tar_outside_a_repository(tree: Path) -> None:
    """Without a repository the tree itself is packed, the same bytes each time, without what was built."""
    (tree / "data").write_bytes(bytes(3 << 20))
    (tree / ".venv").mkdir()
    (tree / ".venv" / "big").write_bytes(bytes(9 << 20))
    run = make(tree, "quickstart-tar", GIT_CEILING_DIRECTORIES=str(tree.parent))
    assert run.returncode == 0, run.stderr
    first = (tree / "build" / "quickstart.tar").read_bytes()
    assert 3 << 20 < len(first) < 4 << 20
    make(tree, "quickstart-tar", GIT_CEILING_DIRECTORIES=str(tree.parent))
    assert (tree / "build" / "quickstart.tar").read_bytes() == first


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_tar_of_a_repository(tree: Path) -> None:
    """In a repository the tracked files are packed, and a tracked file that is gone is no error."""
    (tree / "data").write_bytes(bytes(3 << 20))
    (tree / "gone").write_text("x")
    (tree / "a name with spaces").write_text("x")
    (tree / "untracked").write_bytes(bytes(9 << 20))
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "add", "Makefile", "data", "gone", "a name with spaces"], cwd=tree, check=True)
    (tree / "gone").unlink()
    run = make(tree, "quickstart-tar")
    assert run.returncode == 0, run.stderr
    listing = subprocess.run(
        ["tar", "-tf", "build/quickstart.tar"], cwd=tree, capture_output=True, text=True, check=True
    )
    assert sorted(listing.stdout.splitlines()) == ["Makefile", "a name with spaces", "data"]
