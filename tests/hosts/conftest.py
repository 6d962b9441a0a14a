"""One network of three machines for each test; none where there can be none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PROGRAMS
from tests.hosts.labs import HOSTS
from tests.hosts.network import HostsRig, missing, network

MARKER = "hosts"
WHY_NOT = missing()
DEADLINE = 90
"""Seconds that a test here may take, unless it says otherwise."""


def pytest_configure(config: pytest.Config) -> None:
    """The marker of this directory."""
    config.addinivalue_line("markers", "hosts: takes network namespaces and sshd; run by `make test-hosts`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They run when asked for by `-m hosts`, and are skipped, with the reason, where there are no namespaces."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in ours:
        item.add_marker(pytest.mark.hosts)
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(DEADLINE))
        if WHY_NOT:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))
    if ours and MARKER not in str(config.getoption("markexpr")):
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture
def rig(short_tmp_path: Path) -> Iterator[HostsRig]:
    """The command on the leader's machine, and two hosts."""
    with network(short_tmp_path, "lab1", "lab2") as net:
        made = HostsRig(net)
        made.program(PROGRAMS)
        yield made


@pytest.fixture(scope="module")
def world() -> Iterator[HostsRig]:
    """The command on the leader's machine, and three hosts, for all labs of a module that leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="av-") as directory, network(Path(directory), *HOSTS) as net:
        yield HostsRig(net)
