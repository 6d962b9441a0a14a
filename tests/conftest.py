"""What every test stands on: hypothesis profiles, deadlines of long tests, socket paths, the skip report.

The last line that a run prints is `skips: none`, or the number of skipped tests by reason.
`--skip-report=FILE` also writes one `node id<TAB>reason` line a skip, which `.ci/check_skips.py` compares
with what may be skipped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

LONG_TIMEOUT = 1500
"""Seconds that a test marked `long` may take unless it says otherwise."""

SOCKET_DIRECTORY_LIMIT = 60
"""A socket path ends at 107 bytes: what a test adds to its directory has the rest."""

# The same examples on every run: a failure seen once is seen again.
# --hypothesis-profile=random looks further.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", settings.get_profile("ci"), derandomize=False)
settings.register_profile("long", settings.get_profile("ci"), max_examples=2000)
settings.load_profile("ci")

_skips: list[tuple[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--skip-report=FILE`."""
    parser.addoption("--skip-report", metavar="FILE", help="write `node id<TAB>reason` lines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test has a long deadline, if it names none itself."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT))


def _skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        longrepr = report.longrepr
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        _skips.append((report.nodeid, " ".join(reason.removeprefix("Skipped: ").split())))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test that was skipped."""
    _skipped(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a module that was skipped as a whole."""
    _skipped(report)


def skip_line(skips: list[tuple[str, str]]) -> str:
    """The closing line for `skips`, pairs of node id and reason."""
    if not skips:
        return "skips: none"
    reasons = Counter(reason for _, reason in skips)
    return f"skips: {len(skips)} ({', '.join(f'{n}x {reason}' for reason, n in sorted(reasons.items()))})"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """After everything that others print: the skips by reason."""
    yield
    config = session.config
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist: its controller reports
        return
    if target := config.getoption("--skip-report"):
        path = Path(str(target))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{nodeid}\t{reason}\n" for nodeid, reason in sorted(_skips)))
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and not config.option.collectonly:
        reporter.write_line(skip_line(_skips))


@pytest.fixture
def short_tmp_path() -> Iterator[Path]:
    """A private directory (0700) whose path is short enough for AF_UNIX and ipc:// addresses (107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="av-"))
    if len(os.fsencode(path)) > SOCKET_DIRECTORY_LIMIT:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="av-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
