"""Finding a program: `builtin:NAME` and `module:function`, and what is said when there is none.

Source: docstring of guest_node.programs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_node.programs import BUILTINS, Builtin, LoadError, load


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A directory with modules of a user; what they leave in the interpreter is taken back."""
    (tmp_path / "lab_user.py").write_text(
        "VALUE = 1\n"
        "async def main(guest): return 7\n"
        "async def nothing(): ...\n"
        "def plain(guest): ...\n"
        "class Box:\n"
        "    @staticmethod\n"
        "    async def main(guest): ...\n"
    )
    (tmp_path / "lab_broken.py").write_text("import no_such_dependency_of_theirs\n")
    (tmp_path / "lab_fails.py").write_text("1 / 0\n")
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize("builtin", BUILTINS, ids=lambda builtin: builtin.name)
def test_every_builtin_is_there(builtin: Builtin) -> None:
    """Each row of the table names a coroutine function."""
    program: Any = load(f"builtin:{builtin.name}")
    assert f"{program.__module__}:{program.__name__}" == builtin.target
    assert builtin.summary


def test_the_builtins_are_those_of_the_topology() -> None:
    """What comes with Argosy."""
    names = "echo ping-pong file-send file-receive door-report door-peer v4v-store v4v-disk"
    front_ends = "blk-copy blk-write net-ping net-echo console-talk rng-read vsock-ping vsock-echo"
    back_ends = "blk-server net-switch console-server rng-server vsock-server"
    assert [builtin.name for builtin in BUILTINS] == f"{names} {front_ends} {back_ends}".split()


def test_a_users_own(here: Path) -> None:
    """A module beside the topology is found, and a function inside a class too."""
    main: Any = load("lab_user:main", here)
    deep: Any = load("lab_user:Box.main", here)
    assert (main.__qualname__, deep.__qualname__) == ("main", "Box.main")
    load("lab_user:main", here)
    assert sys.path.count(str(here)) == 1


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("builtin:file-sned", ["no built-in program 'file-sned'", "Did you mean builtin:file-send?", "echo"]),
        ("builtin:", ["no built-in program ''"]),
        ("echo", ["'echo' names no program", "builtin:NAME or module:function"]),
        ("lab_user:", ["names no program"]),
        (":main", ["names no program"]),
        ("lab_nobody:main", ["no module 'lab_nobody'", "on Python's path"]),
        ("lab_nobody.deep:main", ["no module 'lab_nobody'"]),
        ("lab_user.deep:main", ["no module 'lab_user.deep'"]),
        ("lab_user:mian", ["lab_user has no 'mian'", "Did you mean 'main'?"]),
        ("lab_user:zzzzz", ["lab_user has no 'zzzzz'", "main, nothing"]),
        ("lab_user:plain", ["plain is no coroutine function", "async def plain(guest)"]),
        ("lab_user:VALUE", ["VALUE is no coroutine function"]),
        ("lab_user:nothing", ["exactly one argument"]),
    ],
)
def test_errors_say_what_is_wrong(here: Path, program: str, words: list[str]) -> None:
    """Each mistake in the name has its message."""
    with pytest.raises(LoadError) as caught:
        load(program, here)
    for word in words:
        assert word in str(caught.value)


def test_errors_inside_a_users_module_are_theirs(here: Path) -> None:
    """A module that is found and fails shows its own error, not "no such module"."""
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency_of_theirs"):
        load("lab_broken:main", here)
    with pytest.raises(ZeroDivisionError):
        load("lab_fails:main", here)
