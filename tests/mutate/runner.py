"""Runs mutants: a warm process forks a child per mutant, one at a time, each with a deadline.

The warm process has imported what every test needs (pytest, hypothesis, third-party libraries) and nothing of
the project, so that a child imports the mutant as if nothing had been there before.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from _pytest.config import default_plugins
from hypothesis import Phase, settings

from tests.mutate.cells import Cell
from tests.mutate.hook import install

WARM = (
    "asyncio",
    "hypothesis.stateful",
    "hypothesis.strategies",
    "msgpack",
    "multiprocess",
    "pydantic",
    "pytest_timeout",
    "rich.console",
    "rich.table",
    "typer.testing",
    "yaml",
    "zmq",
)
"""Imported once, before the first fork.  zmq makes no context at import, so forking after it is safe."""

DEADLINE_FACTOR = 5.0
DEADLINE_FLOOR = 20.0

NOT_LOADED = 64
"""A child's exit code when no test imported the module that holds the table."""

PASSED, FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Job:
    """One child: what it imports changed (cell None: nothing), the tests it runs, and those to try first."""

    module: str
    attribute: str
    cell: Cell | None
    tests: tuple[str, ...]
    likely: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: exit code (None: over its deadline), first test that failed, seconds, output."""

    code: int | None
    killer: str
    seconds: float
    output: str

    @property
    def survived(self) -> bool:
        """Whether every test passed."""
        return self.code == PASSED


class FirstFailure:
    """A pytest plugin that notes the first test that failed."""

    def __init__(self) -> None:
        self.nodeid = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.nodeid:
            self.nodeid = report.nodeid


def warm_up() -> None:
    """Import what children share, and make the profile that does not shrink: a mutant need only fail."""
    plugins = [f"_pytest.{name}" for name in default_plugins]
    for name in (*WARM, *plugins):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    settings.register_profile(
        "mutate",
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
    )
    gc.freeze()  # a child's collections leave alone, and unshared pages uncopied, what was made here


def _child(job: Job, root: Path, directory: Path) -> int:
    """What a child does; its exit code."""
    os.setsid()
    log = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(root)
    sys.path.insert(0, str(root))
    first = FirstFailure()
    index = None if job.cell is None else job.cell.index
    finder = install(root, job.module, job.attribute, index)
    # Of likely killers only a failure counts: their names may come from the table, and be gone with it.
    code = _pytest(root, job.likely, first) if job.likely else PASSED
    if code != FAILED:
        code = _pytest(root, job.tests, first)
    (directory / "result").write_text(json.dumps({"killer": first.nodeid, "loaded": finder.loaded}))
    return NOT_LOADED if code == PASSED and not finder.loaded else code


def _pytest(root: Path, tests: tuple[str, ...], plugin: object) -> int:
    code = pytest.main(
        [
            *tests,
            "-x",
            "-q",
            "--no-header",
            "--tb=line",
            "--assert=plain",  # rewriting the tests of every child anew would take a quarter of its time
            "-pno:cacheprovider",
            "-pno:xdist",
            # The warm process has imported plugins that pytest would have rewritten; nothing is lost by it.
            "-Wignore::pytest.PytestAssertRewriteWarning",
            "--hypothesis-profile=mutate",
            f"--rootdir={root}",
        ],
        plugins=[plugin],
    )
    return int(code)


class Runner:
    """Runs one job at a time.  Not thread-safe; made after `warm_up`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, job: Job, deadline: float) -> Outcome:
        """Run one job in a child of this process, which is killed after `deadline` seconds."""
        with tempfile.TemporaryDirectory(prefix="mutate-") as name:
            directory = Path(name)
            sys.stdout.flush()
            sys.stderr.flush()
            begin = time.monotonic()
            pid = os.fork()
            if pid == 0:
                self._be_the_child(job, directory)
            code = _wait(pid, deadline)
            output, result = directory / "output", directory / "result"
            killer = json.loads(result.read_text())["killer"] if result.exists() else ""
            text = output.read_text(errors="replace") if output.exists() else ""
            return Outcome(code, killer, time.monotonic() - begin, text)

    def _be_the_child(self, job: Job, directory: Path) -> NoReturn:
        code = 70
        try:
            code = _child(job, self.root, directory)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _wait(pid: int, deadline: float) -> int | None:
    """The child's exit code, or None if it was over its deadline.  Nothing of it is left, whatever happens."""
    descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], deadline)
    except BaseException:  # the campaign is being ended
        _end(pid)
        raise
    finally:
        os.close(descriptor)
    if not ended:
        _end(pid)
        return None
    _, status = os.waitpid(pid, 0)
    _sweep(pid)
    return os.waitstatus_to_exitcode(status)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _sweep(pid)
    os.waitpid(pid, 0)


def _sweep(pid: int) -> None:
    """End what the child's tests left running: all of its session's own process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
