"""Runs mutants: one warm process forks a child per mutant, on all cores, each with a deadline.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(slots=True)
class _Child:
    job: Job
    begin: float
    deadline: float
    pidfd: int
    directory: Path = field(repr=False)


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
    """Runs jobs, at most `workers` at once.  Not thread-safe; made after `warm_up`."""

    def __init__(self, root: Path, workers: int) -> None:
        self.root = root
        self.workers = workers
        self._children: dict[int, _Child] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="mutate-")
        self._made = 0

    def close(self) -> None:
        """End what still runs and remove what the children wrote."""
        for pid in list(self._children):
            self._end(pid)
        self._scratch.cleanup()

    def run(self, jobs: Sequence[Job], deadline: float, done: Callable[[Job, Outcome], None]) -> None:
        """Run every job; `done` is called as each ends.  A child is killed after `deadline` seconds."""
        waiting = list(reversed(jobs))
        while waiting or self._children:
            while waiting and len(self._children) < self.workers:
                self._start(waiting.pop(), deadline)
            for pid, code in self._wait():
                child = self._children.pop(pid)
                done(child.job, self._outcome(child, code))

    def _start(self, job: Job, deadline: float) -> None:
        self._made += 1
        directory = Path(self._scratch.name) / str(self._made)
        directory.mkdir()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
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
        now = time.monotonic()
        self._children[pid] = _Child(job, now, now + deadline, os.pidfd_open(pid), directory)

    def _wait(self) -> list[tuple[int, int | None]]:
        """Children that have ended, with their exit codes; those over their deadline are ended, with None."""
        nearest = min(child.deadline for child in self._children.values())
        descriptors = {child.pidfd: pid for pid, child in self._children.items()}
        ready, _, _ = select.select(list(descriptors), [], [], max(0.0, nearest - time.monotonic()))
        ended: list[tuple[int, int | None]] = []
        for descriptor in ready:
            pid = descriptors[descriptor]
            _, status = os.waitpid(pid, 0)
            ended.append((pid, os.waitstatus_to_exitcode(status)))
            self._sweep(pid)
        now = time.monotonic()
        for pid, child in self._children.items():
            if child.deadline <= now and child.pidfd not in ready:
                self._end(pid)
                ended.append((pid, None))
        return ended

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._sweep(pid)
        os.waitpid(pid, 0)

    @staticmethod
    def _sweep(pid: int) -> None:
        """End what the child's tests left running: all of its session's own process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _outcome(self, child: _Child, code: int | None) -> Outcome:
        os.close(child.pidfd)
        output = child.directory / "output"
        result = child.directory / "result"
        killer = json.loads(result.read_text())["killer"] if result.exists() else ""
        text = output.read_text(errors="replace") if output.exists() else ""
        for path in (output, result):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            child.directory.rmdir()
        return Outcome(code, killer, time.monotonic() - child.begin, text)
