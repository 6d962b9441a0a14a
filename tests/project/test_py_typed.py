"""The wheel: five packages, each marked as typed, the shipped topologies, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.project.source import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from this tree."""
    target = tmp_path_factory.mktemp("wheel")
    program = f"import hatchling.build; print(hatchling.build.build_wheel({str(target)!r}))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
    )
    assert run.returncode == 0, run.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed(package: str, wheel: list[str]) -> None:
    """PEP 561: a type checker looks for py.typed in the installed package."""
    assert (ROOT / package / "py.typed").is_file()
    assert f"{package}/py.typed" in wheel


def test_the_wheel_holds_all_of_the_packages(wheel: list[str]) -> None:
    """Every module and shipped topology of the tree, and no test."""
    kinds = ("*.py", "*.yaml", "*.csv")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for kind in kinds
        for path in (ROOT / package).rglob(kind)
    }
    assert "topologies/library/quickstart.yaml" in wanted
    assert wanted <= set(wheel)
    strangers = {name.partition("/")[0] for name in wheel} - set(PACKAGES)
    assert {name for name in strangers if not name.endswith(".dist-info")} == set()


def test_the_command_is_installed() -> None:
    """`argosy` is topologies.cli:main; the three distributions of the nodes come first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"argosy": "topologies.cli:main"}
    assert project["requires-python"] == ">=3.11"
    names = [line.partition(">=")[0] for line in project["dependencies"]]
    assert names[:3] == ["pyzmq", "msgpack", "multiprocess"]
    assert all(">=" in line for line in project["dependencies"])
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "Apache License" in Path(ROOT / "LICENSE").read_text()
