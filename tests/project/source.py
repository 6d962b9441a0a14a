"""The source tree as these tests read it: packages, modules, imports; by AST, never by running."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("hmx", "broker", "hv_node", "guest_node", "topologies")
"""The five packages, lowest first."""


class Import(NamedTuple):
    """One imported name: the module as written, its line, and whether only a type checker sees it."""

    module: str
    line: int
    typing_only: bool

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


@cache
def modules(package: str) -> tuple[Path, ...]:
    """Every Python file of a package, relative to the root."""
    return tuple(sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")))


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file named relative to the root."""
    return ast.parse((ROOT / path).read_text(), filename=str(path))


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def imports(tree: ast.AST, typing_only: bool = False) -> Iterator[Import]:
    """Every import in `tree`, wherever it stands.  A relative one is given as "."."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield Import(".", node.lineno, typing_only)
            else:
                # `from a import b` may import the module a.b: both names count.
                yield Import(node.module or "", node.lineno, typing_only)
                for alias in node.names:
                    yield Import(f"{node.module}.{alias.name}", node.lineno, typing_only)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for statement in node.body:
                yield from imports(ast.Module([statement], []), typing_only=True)
            for statement in node.orelse:
                yield from imports(ast.Module([statement], []), typing_only)
        else:
            yield from imports(node, typing_only)


def tracked_files() -> list[Path]:
    """The files that belong to the project, relative to the root.

    What the repository tracks or would track; outside a repository, everything but what .gitignore names.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        found = [Path(name) for name in listing.decode().split("\0") if name]
        return sorted({path for path in found if (ROOT / path).is_file()})
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no repository
        pass
    ignored = {".venv", "build", "dist", ".git", "__pycache__", ".hypothesis"}
    every = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(
        path
        for path in every
        if not ignored & set(path.parts) and not any(part.endswith("_cache") for part in path.parts)
    )


def text_files() -> Iterator[tuple[Path, str]]:
    """The project's text files with their text; compressed traces and other binary data are left out."""
    for path in tracked_files():
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
