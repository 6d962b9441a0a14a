"""Every table of rows in the packages is mutated by `make mutate`, and every target is what it says."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.mutate.campaign import Target, plan
from tests.mutate.cells import Sources, mutants
from tests.mutate.targets import EXEMPT, TARGETS
from tests.project.source import PACKAGES, ROOT, modules, parse

FEWEST_ROWS = 3


def tables(module: str, tree: ast.Module) -> Iterator[str]:
    """The dotted names of the module-level tuples and dicts that consist of rows: calls, three or more."""
    for statement in tree.body:
        value = getattr(statement, "value", None)
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case _:
                continue
        rows = value.values if isinstance(value, ast.Dict) else getattr(value, "elts", [])
        if len(rows) >= FEWEST_ROWS and all(isinstance(row, ast.Call) for row in rows):
            yield f"{module}.{name}"


def test_every_table_is_a_target() -> None:
    """A table that is not mutated may hold a wrong cell that no test sees.  Add it to targets.py."""
    found = {
        name
        for package in PACKAGES
        for path in modules(package)
        for name in tables(".".join(path.with_suffix("").parts).removesuffix(".__init__"), parse(path))
    }
    listed = {target.name for target in TARGETS}
    assert sorted(found - listed - set(EXEMPT)) == []
    assert sorted(set(EXEMPT) - found) == [], "exempt, but not there"
    assert sorted(listed & set(EXEMPT)) == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_is_what_it_says(target: Target) -> None:
    """Its table has cells, its tests exist, its explanations and words speak of cells that are there."""
    cells, words, _ = plan(ROOT, target)
    assert cells
    assert [test for test in target.tests if not (ROOT / test.partition("::")[0]).exists()] == []
    assert [survivor for survivor in target.survivors if not any(map(survivor.covers, cells))] == []
    assert all(survivor.why for survivor in target.survivors)
    columns = {cell.column.rpartition(".")[2] for cell in mutants(Sources(ROOT), target.module, target.attribute).cells}
    assert set(target.words) <= columns
    assert bool(target.words) == bool(words)


def test_a_target_is_listed_once() -> None:
    """Twice would be run twice."""
    names = [target.name for target in TARGETS]
    assert len(names) == len(set(names))


def test_the_finder_sees_tables() -> None:
    """What the first test relies on."""
    source = "A = (R(1), R(2), R(3))\nB: T = {1: R(1), 2: R(2), 3: R(3)}\nC = (R(1), R(2))\nD = (1, 2, 3)\n"
    assert list(tables("m", ast.parse(source))) == ["m.A", "m.B"]
