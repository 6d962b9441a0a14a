"""SPECIFICATION.md: every promise names what holds it, and what it names exists.

A row is `| promise | held by |`.  What holds it is one or more of, in backquotes: a test file, a test in it
(`tests/hmx/test_ring.py::test_wrap`, `...::TestRing::test_wrap`), or a row of the benchmark (`bench:NAME`).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.project.source import ROOT, parse
from topologies.bench.rows import ROW_OF

SPECIFICATION = ROOT / "SPECIFICATION.md"


class Promise(NamedTuple):
    """One row: its line in the file, the promise, and the names of what holds it."""

    line: int
    text: str
    holders: tuple[str, ...]


def promises(text: str) -> list[Promise]:
    """The rows of every table of promises in `text`.  Raises ValueError for a row that is not a pair."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|") or re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if cells == ["promise", "held by"]:
            continue
        if len(cells) != 2:
            raise ValueError(f"line {number}: a promise and what holds it, not {len(cells)} columns")
        found.append(Promise(number, cells[0], tuple(re.findall(r"`([^`]+)`", cells[1]))))
    return found


def named_tests(tree: ast.Module) -> set[str]:
    """The tests of a module as pytest names them, without parameters."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            inner = {f"{node.name}::{name}" for name in named_tests(ast.Module(node.body, []))}
            names |= inner | ({node.name} if inner else set())
        elif isinstance(node, ast.Assign):  # hypothesis: TestRing = RingMachine.TestCase
            names |= {ast.unparse(target) for target in node.targets if ast.unparse(target).startswith("Test")}
    return names


def missing(holder: str) -> str | None:
    """What is wrong with the name of a holder; None if it exists."""
    if holder.startswith("bench:"):
        return None if holder.removeprefix("bench:") in ROW_OF else "no such row of the benchmark"
    file, _, test = holder.partition("::")
    path = Path(file)
    if path.parts[:1] != ("tests",) or not re.fullmatch(r"test_\w+\.py", path.name):
        return "neither a test file nor a benchmark row"
    if not (ROOT / path).is_file():
        return "no such file"
    names = named_tests(parse(path))
    if test and test not in names:
        return "no such test"
    return None if names else "a file without a test"


def test_every_promise_is_held() -> None:
    """No promise without a test, and no name of a test that is not there."""
    rows = promises(SPECIFICATION.read_text())
    assert len(rows) > 10
    assert [f"line {row.line}: {row.text}" for row in rows if not row.holders] == []
    wrong = [
        f"line {row.line}: {holder}: {error}" for row in rows for holder in row.holders if (error := missing(holder))
    ]
    assert wrong == []


def test_a_promise_is_made_once() -> None:
    """Two rows with the same words would be one promise."""
    texts = [row.text for row in promises(SPECIFICATION.read_text())]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("holder", "error"),
    [
        ("tests/project/test_specification.py", None),
        ("tests/project/test_specification.py::test_every_promise_is_held", None),
        ("tests/project/test_specification.py::test_gone", "no such test"),
        ("tests/project/test_gone.py", "no such file"),
        ("tests/project/source.py", "neither a test file nor a benchmark row"),
        ("hmx/test_ring.py", "neither a test file nor a benchmark row"),
        ("bench:argo-backwards", "no such row of the benchmark"),
    ],
)
def test_the_check_sees_a_name_that_is_not_there(holder: str, error: str | None) -> None:
    """What the first test relies on."""
    assert missing(holder) == error


def test_the_check_reads_rows() -> None:
    """The same for the rows."""
    table = "| promise | held by |\n|---|---|\n| a `b` c | `tests/x.py::y`, `bench:z` |\n| d | nobody |\n"
    assert promises(table) == [Promise(3, "a `b` c", ("tests/x.py::y", "bench:z")), Promise(4, "d", ())]
    with pytest.raises(ValueError, match="line 1"):
        promises("| a | b | c |")
    classes = "class TestA:\n    def test_b(self): pass\n    def helper(self): pass\nTestC = M.TestCase\n"
    assert named_tests(ast.parse(classes)) == {"TestA", "TestA::test_b", "TestC"}
