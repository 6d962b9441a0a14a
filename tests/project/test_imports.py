"""Imports run downwards only: topologies -> {hv_node, guest_node} -> broker -> hmx.

hv_node and guest_node never import each other: they meet in hmx and on the wire, as a real hypervisor and
a real guest do.  Cores are sans-I/O: no socket, clock, thread or process below a shell.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.project.source import PACKAGES, ROOT, Import, imports, modules, parse

MAY_IMPORT = {
    "hmx": {"hmx"},
    "broker": {"broker", "hmx"},
    "hv_node": {"hv_node", "broker", "hmx"},
    "guest_node": {"guest_node", "broker", "hmx"},
    "topologies": {"topologies", "hv_node", "guest_node", "broker", "hmx"},
}
"""Which of the project's packages each may import."""

NODE = {"zmq", "msgpack", "multiprocess"}
THIRD_PARTY: dict[str, set[str]] = {
    "hmx": set(),
    "broker": NODE,
    "hv_node": NODE,
    "guest_node": NODE,
    "topologies": NODE | {"pydantic", "pydantic_core", "yaml", "typer", "rich", "fdt", "matplotlib"},
}
"""Which distributions each may import beside the standard library."""

CLOCKS = frozenset({"time", "datetime"})
THREADS = frozenset({"threading", "_thread", "queue", "concurrent"})
PROCESSES = frozenset({"subprocess", "multiprocessing", "multiprocess", "signal", "os"})
SOCKETS = frozenset({"socket", "socketserver", "ssl", "select", "selectors", "zmq"})
SANS_IO = CLOCKS | THREADS | PROCESSES | SOCKETS | {"asyncio", "tempfile"}
CHANCE = frozenset({"random", "secrets", "uuid"})
GUEST_SHELLS = ("guest_node/node.py", "guest_node/attach.py", "guest_node/images.py", "guest_node/tap.py")
GUEST_CHANCE = ("guest_node/seeds.py",)
PICKLE_PATH = ("topologies/processes.py", "topologies/agent/*")
"""Launcher to agent to the child it has just started, over an inherited pipe."""

UNPICKLERS = frozenset({"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"})


class Ban(NamedTuple):
    """Modules under `where` (a shell pattern) outside `shells` import none of `names`."""

    where: str
    names: frozenset[str]
    shells: tuple[str, ...]
    why: str


BANS = (
    Ban("hmx/*", SANS_IO, ("hmx/shm.py",), "the contract package does no I/O"),
    Ban("hmx/shm.py", SANS_IO - {"_thread"}, (), "shm needs a lock pair for its fence, nothing else"),
    Ban("hmx/*", CHANCE, (), "the contract package knows no chance"),
    Ban(
        "hv_node/*",
        SANS_IO,
        (
            "hv_node/node.py", "hv_node/turns.py", "hv_node/roster.py", "hv_node/attach.py", "hv_node/lobby.py",
            "hv_node/conform.py", "hv_node/uplinks/ascent.py",
        ),
        "the hypervisor's core does no I/O",
    ),
    Ban("hv_node/argo/*", CHANCE, (), "Argo knows no chance"),
    Ban("broker/frames.py", SANS_IO | CHANCE, (), "frames are packed and parsed, nothing else"),
    Ban("broker/router.py", SANS_IO | CHANCE, (), "the router core does no I/O"),
    Ban("broker/link.py", SANS_IO | CHANCE, (), "what nodes see of the fabric does no I/O"),
    Ban("guest_node/*", CLOCKS | THREADS | PROCESSES | SOCKETS, GUEST_SHELLS, "programs have `guest` and asyncio"),
    Ban("guest_node/*", CHANCE, GUEST_CHANCE, "programs have `guest.random`"),
    *(Ban(f"{package}/*", UNPICKLERS, PICKLE_PATH, "nothing from a socket is unpickled") for package in PACKAGES),
)


def direction_errors(package: str, found: Import) -> str | None:
    """What is wrong with an import made by a module of `package`; None if nothing is."""
    if found.module == ".":
        return "relative import"
    if found.top in PACKAGES:
        return None if found.top in MAY_IMPORT[package] else f"{package} may not import {found.top}"
    if found.top == "tests":
        return "the packages know nothing of their tests"
    if found.top in sys.stdlib_module_names or found.top in THIRD_PARTY[package]:
        return None
    return f"{package} may not import the distribution {found.top}"


def ban_errors(path: str, found: Import) -> list[str]:
    """The bans that an import made by the module at `path` breaks.  Types alone may be named anywhere."""
    if found.typing_only:
        return []
    return [
        f"{found.top}: {ban.why}"
        for ban in BANS
        if fnmatchcase(path, ban.where)
        and found.top in ban.names
        and not any(fnmatchcase(path, shell) for shell in ban.shells)
    ]


def every_import(package: str) -> list[tuple[str, Import]]:
    return [(path.as_posix(), found) for path in modules(package) for found in imports(parse(path))]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package: str) -> None:
    """topologies -> {hv_node, guest_node} -> broker -> hmx, and no other distribution than those listed."""
    assert modules(package), f"{package} is empty"
    wrong = [
        f"{path}:{found.line}: {found.module}: {error}"
        for path, found in every_import(package)
        if (error := direction_errors(package, found))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_cores_do_no_io(package: str) -> None:
    """Rule 1 of the architecture: shells own the I/O and are few; they are named in BANS."""
    wrong = [
        f"{path}:{found.line}: {error}" for path, found in every_import(package) for error in ban_errors(path, found)
    ]
    assert wrong == []


def test_no_ban_is_idle() -> None:
    """A pattern that matches no module guards nothing, and a shell that is gone need not be named."""
    paths = [path.as_posix() for package in PACKAGES for path in modules(package)]
    patterns = [pattern for ban in BANS for pattern in (ban.where, *ban.shells)]
    assert [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in paths)] == []


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("hmx", "import broker.frames", True),
        ("hmx", "import msgpack", True),
        ("hmx", "def f():\n    import zmq", True),
        ("hmx", "import struct", False),
        ("broker", "from hv_node import node", True),
        ("broker", "from hmx import errno", False),
        ("hv_node", "import guest_node.config", True),
        ("hv_node", "if TYPE_CHECKING:\n    import guest_node.config", True),
        ("guest_node", "from hv_node.config import DomainConfig", True),
        ("guest_node", "import pydantic", True),
        ("guest_node", "from . import config", True),
        ("topologies", "import yaml, guest_node.node", False),
        ("topologies", "import requests", True),
    ],
)
def test_the_check_sees_a_wrong_direction(package: str, source: str, wrong: bool) -> None:
    """What the checks above rely on, on sources of one line."""
    assert any(direction_errors(package, found) for found in imports(ast.parse(source))) == wrong


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("hmx/ring.py", "import time", True),
        ("hmx/ring.py", "from _thread import allocate_lock", True),
        ("hmx/shm.py", "from _thread import allocate_lock", False),
        ("hmx/shm.py", "import threading", True),
        ("hmx/argo/abi.py", "import os", True),
        ("hv_node/doors/table.py", "import socket", True),
        ("hv_node/node.py", "import socket", False),
        ("guest_node/programs/echo.py", "import random", True),
        ("guest_node/programs/echo.py", "if typing.TYPE_CHECKING:\n    import random", False),
        ("guest_node/programs/echo.py", "import asyncio", False),
        ("guest_node/node.py", "import time", False),
        ("guest_node/node.py", "import pickle", True),
        ("topologies/plan.py", "from dill import loads", True),
        ("topologies/agent/child.py", "import dill", False),
    ],
)
def test_the_check_sees_a_ban_broken(path: str, source: str, wrong: bool) -> None:
    """The same for the bans."""
    assert any(ban_errors(path, found) for found in imports(ast.parse(source))) == wrong


HEAVY = {"pydantic", "yaml", "typer", "rich", "click", "topologies"}


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("broker.node", HEAVY | {"hv_node", "guest_node", "asyncio"}),
        ("hv_node.node", HEAVY | {"guest_node", "asyncio"}),
        ("guest_node.node", HEAVY | {"hv_node"}),
    ],
)
def test_a_node_process_stays_light(module: str, strangers: set[str]) -> None:
    """A fresh interpreter that imports a node's module has loaded nothing of the top floor, by any way."""
    program = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert run.returncode == 0, run.stderr
    assert {name.partition(".")[0] for name in run.stdout.split()} & strangers == set()


def test_the_packages_are_those_of_the_tree() -> None:
    """A package that is added without a row here would be unchecked."""
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found == set(PACKAGES)
    assert Path(ROOT / "tests").is_dir()
