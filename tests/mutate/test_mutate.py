"""The mutation tool, on a small table with a weak test and a strong one."""

from __future__ import annotations

import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.mutate import campaign
from tests.mutate.campaign import Survivor, Target
from tests.mutate.cells import Cell, Sources, TableError, mutants, mutated_tree

ROOT = Path(__file__).resolve().parents[2]

KINDS = """
from enum import IntEnum
from typing import NamedTuple

class Errno(IntEnum):
    EPERM = 1
    EINVAL = 22
    EFAULT = 14

class Row(NamedTuple):
    name: str
    low: int
    high: int
    error: Errno | None
    fatal: bool
    source: str

class Step(NamedTuple):
    event: str
    actions: tuple[str, ...] = ()
    error: Errno = Errno.EPERM
    hidden: list[int] = list("ab")

ANY = (0, 255)
LIMIT = 7
"""

TABLE = '''
"""A table."""
from craft.kinds import ANY, LIMIT, Errno, Row, Step

ROWS = (
    Row("read", *ANY, Errno.EPERM, True, "s. 1"),
    Row("write", 1, LIMIT, None, fatal=False, source="s. 2"),
    Row("read", 2, 9, Errno.EINVAL, False, "s. 3"),
)
NEXT: dict[tuple[str, int], str] = {("idle", 1): "busy", ("busy", -2): "idle"}
FLAGS = frozenset({Errno.EPERM | Errno.EINVAL})
LAYOUT = "<IH"
STEPS = (Step("go"), Step("stop", ("halt", "tell"), error=Errno.EFAULT), Step("end", ()))
SQUARES = [n * n for n in range(4)]
'''

STRONG = """
from craft.table import ROWS, NEXT
from craft.kinds import Errno

def test_rows():
    assert ROWS[0][:5] == ("read", 0, 255, Errno.EPERM, True)
    assert ROWS[1][:5] == ("write", 1, 7, None, False)
    assert ROWS[2][:5] == ("read", 2, 9, Errno.EINVAL, False)

def test_next():
    assert NEXT == {("idle", 1): "busy", ("busy", -2): "idle"}
"""

WEAK = """
from craft.table import ROWS

def test_names():
    assert [row.name for row in ROWS] == ["read", "write", "read"]
"""

SLOW = """
import time
from craft.table import ROWS

def test_a_wrong_limit_hangs():
    if ROWS[2].high != 9:
        time.sleep(3600)
"""

STRANGER = """
def test_nothing():
    assert True
"""

FAILING = """
from craft.table import ROWS

def test_wrong():
    assert len(ROWS) == 4
"""


@pytest.fixture
def craft(tmp_path: Path) -> Path:
    """A tree with a package `craft` and tests of it."""
    (tmp_path / "craft").mkdir()
    (tmp_path / "craft" / "__init__.py").write_text("")
    (tmp_path / "craft" / "kinds.py").write_text(KINDS)
    (tmp_path / "craft" / "table.py").write_text(TABLE)
    for name, text in {
        "strong": STRONG,
        "weak": WEAK,
        "slow": SLOW,
        "stranger": STRANGER,
        "failing": FAILING,
    }.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    return tmp_path


def changes(root: Path, attribute: str, module: str = "craft.table") -> dict[str, str]:
    found = mutants(Sources(root), module, attribute)
    return {cell.path: f"{cell.old} -> {cell.new}" for cell in found.cells}


def run(root: Path, targets: str, *words: str) -> subprocess.CompletedProcess[str]:
    (root / "targets.py").write_text(f"from tests.mutate.campaign import Survivor, Target\nTARGETS = ({targets},)\n")
    return subprocess.run(
        [sys.executable, "-m", "tests.mutate", f"--root={root}", f"--targets={root / 'targets.py'}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )


def test_each_kind_of_cell(craft: Path) -> None:
    """One mutant a cell: numbers, strings, truth values, enum members, None, starred names."""
    assert changes(craft, "ROWS") == {
        "ROWS[0].name": "'read' -> 'write'",
        "ROWS[0].low": "0 -> 1",
        "ROWS[0].high": "255 -> 256",
        "ROWS[0].error": "Errno.EPERM -> Errno.EINVAL",
        "ROWS[0].fatal": "True -> False",
        "ROWS[0].source": "'s. 1' -> 's. 1x'",
        "ROWS[1].name": "'write' -> 'read'",
        "ROWS[1].low": "1 -> 2",
        "ROWS[1].high": "LIMIT -> LIMIT + 1",
        "ROWS[1].error": "None -> Errno.EINVAL",
        "ROWS[1].fatal": "False -> True",
        "ROWS[1].source": "'s. 2' -> 's. 2x'",
        "ROWS[2].name": "'read' -> 'write'",
        "ROWS[2].low": "2 -> 3",
        "ROWS[2].high": "9 -> 10",
        "ROWS[2].error": "Errno.EINVAL -> Errno.EPERM",
        "ROWS[2].fatal": "False -> True",
        "ROWS[2].source": "'s. 3' -> 's. 3x'",
    }


def test_keys_and_values_of_a_dict(craft: Path) -> None:
    """A state machine written as a dict: both sides are cells."""
    assert changes(craft, "NEXT") == {
        "NEXT{('idle', 1)}[0]": "'idle' -> 'idlex'",
        "NEXT{('idle', 1)}[1]": "1 -> 2",
        "NEXT[('idle', 1)]": "'busy' -> 'busyx'",
        "NEXT{('busy', -2)}[0]": "'busy' -> 'busyx'",
        "NEXT{('busy', -2)}[1]": "-2 -> -2 - 1",
        "NEXT[('busy', -2)]": "'idle' -> 'idlex'",
    }


def test_defaults_and_empty_sequences(craft: Path) -> None:
    """What a row leaves to its default is a cell too; an empty sequence becomes another of its column."""
    assert changes(craft, "STEPS") == {
        "STEPS[0].event": "'go' -> 'gox'",
        "STEPS[0].actions": "() -> ('halt', 'tell')",
        "STEPS[0].error": "Errno.EPERM -> Errno.EFAULT",
        "STEPS[1].event": "'stop' -> 'stopx'",
        "STEPS[1].actions[0]": "'halt' -> 'haltx'",
        "STEPS[1].actions[1]": "'tell' -> 'tellx'",
        "STEPS[1].error": "Errno.EFAULT -> Errno.EPERM",
        "STEPS[2].event": "'end' -> 'endx'",
        "STEPS[2].actions": "() -> ('halt', 'tell')",
        "STEPS[2].error": "Errno.EPERM -> Errno.EFAULT",
    }


def test_wrapped_enums_formats_and_classes(craft: Path) -> None:
    """A call around a literal is seen through; a struct format moves its fields; an enum class is a table."""
    assert changes(craft, "FLAGS") == {
        "FLAGS[0]<": "Errno.EPERM -> Errno.EINVAL",
        "FLAGS[0]>": "Errno.EINVAL -> Errno.EPERM",
    }
    assert changes(craft, "LAYOUT") == {"LAYOUT": "'<IH' -> '<xIH'"}
    assert changes(craft, "Errno", "craft.kinds") == {
        "Errno.EPERM": "1 -> 2",
        "Errno.EINVAL": "22 -> 23",
        "Errno.EFAULT": "14 -> 15",
    }


def test_all_constants_of_a_module(craft: Path) -> None:
    """The attribute "*" stands for all upper-case assignments."""
    assert changes(craft, "*", "craft.kinds") == {
        "ANY[0]": "0 -> 1",
        "ANY[1]": "255 -> 256",
        "LIMIT": "7 -> 8",
    }


def test_what_is_no_cell_is_said(craft: Path) -> None:
    """A comprehension is no literal; a table that is not there is an error."""
    assert mutants(Sources(craft), "craft.table", "*").opaque == ["SQUARES: [n * n for n in range(4)]"]
    for module, attribute in (("craft.table", "ROW"), ("craft.nothing", "ROWS"), ("craft.table", "SQUARES")):
        with pytest.raises(TableError):
            mutants(Sources(craft), module, attribute)


def test_a_mutant_changes_one_cell(craft: Path) -> None:
    """The mutated tree, executed, differs from the table in that cell alone; without a cell in nothing."""
    sys.path.insert(0, str(craft))

    def flat(attribute: str, index: int | None) -> list[object]:
        space: dict[str, object] = {}
        exec(compile(mutated_tree(craft, "craft.table", attribute, index), "table.py", "exec"), space)
        rows = space[attribute]
        assert isinstance(rows, tuple)
        return [cell for row in rows for cell in row]

    def differing(attribute: str, index: int) -> list[int]:
        pairs = zip(flat(attribute, None), flat(attribute, index), strict=True)
        return [at for at, (old, new) in enumerate(pairs) if old != new]

    try:
        assert [differing("ROWS", index) for index in range(18)] == [[index] for index in range(18)]
        # Four fields a row, the last never a cell; the actions of the second row hold two.
        assert [differing("STEPS", index) for index in range(10)] == [
            [0], [1], [2], [4], [5], [5], [6], [8], [9], [10]
        ]  # fmt: skip
    finally:
        sys.path.remove(str(craft))
        for name in [name for name in sys.modules if name.partition(".")[0] == "craft"]:
            del sys.modules[name]


def test_a_strong_test_kills_every_mutant(craft: Path) -> None:
    """Nothing survives; the column that cites sources is not mutated; nothing is written to the tree."""
    before = (craft / "craft" / "table.py").read_bytes()
    result = run(
        craft,
        'Target("craft.table", "ROWS", ("test_strong.py",), words=("source",)),'
        ' Target("craft.table", "NEXT", ("test_strong.py",))',
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "craft.table.ROWS: 15/15 killed" in result.stdout
    assert "21 mutants: 21 killed, 0 explained, 0 survived" in result.stdout
    assert (craft / "craft" / "table.py").read_bytes() == before
    assert not list((craft / "craft").rglob("table*.pyc"))


def test_a_weak_test_lets_mutants_live(craft: Path) -> None:
    """Each survivor is named with file, line, cell, old and new; it fails the run unless it is explained."""
    target = 'Target("craft.table", "ROWS", ("test_weak.py",), words=("source",), survivors=(%s))'
    result = run(craft, target % 'Survivor("ROWS[*].low", "drawn at random"),')
    assert result.returncode == 1, result.stdout + result.stderr
    assert "SURVIVED craft/table.py:6  ROWS[0].error: Errno.EPERM -> Errno.EINVAL" in result.stdout
    assert "explained craft/table.py:7  ROWS[1].low: 1 -> 2: drawn at random" in result.stdout
    assert "15 mutants: 3 killed, 3 explained, 9 survived" in result.stdout
    explained = "".join(f'Survivor("ROWS[*].{name}", "free"),' for name in ("low", "high", "error", "fatal"))
    result = run(craft, target % explained + ', Target("craft.table", "NEXT", ("test_strong.py",))')
    assert result.returncode == 0, result.stdout + result.stderr
    assert "21 mutants: 9 killed, 12 explained, 0 survived" in result.stdout


def test_a_stale_explanation_is_told(craft: Path) -> None:
    """An explanation of what no longer survives."""
    result = run(craft, 'Target("craft.table", "NEXT", ("test_strong.py",), survivors=(Survivor("NEXT[*]", "old"),))')
    assert result.returncode == 0, result.stdout + result.stderr
    assert "stale explanation craft.table.NEXT: no cell of NEXT[*] survived" in result.stdout


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ("test_failing.py", "do not pass unmutated (exit 1)"),
        ("test_stranger.py", "do not pass unmutated (exit 64)"),
        ("test_nowhere.py", "do not pass unmutated (exit 4)"),
    ],
)
def test_a_campaign_needs_passing_tests(craft: Path, tests: str, says: str) -> None:
    """Tests that fail, that never import the table, or that are not there prove nothing."""
    result = run(craft, f'Target("craft.table", "ROWS", ("{tests}",))')
    assert result.returncode == 1
    assert says in result.stdout


def test_a_hanging_mutant_is_ended(craft: Path) -> None:
    """A mutant over its deadline counts as killed, and is counted apart."""
    program = (
        "from tests.mutate import runner, campaign\n"
        "from tests.mutate.campaign import Target, examine, summary\n"
        "from pathlib import Path\n"
        "campaign.DEADLINE_FLOOR = 3.0\n"
        "runner.warm_up()\n"
        f"v = examine(Target('craft.table', 'ROWS', ('test_slow.py',)), runner.Runner(Path({str(craft)!r})))\n"
        "print(v.killed, v.timeouts, len(v.survived))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=55
    )
    assert result.stdout.split() == ["1", "1", "17"], result.stdout + result.stderr


def test_a_worker_without_a_turn_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM has a handler during a turn alone: before a wait, one in Python can come too late."""
    dispositions: list[object] = []
    monkeypatch.setattr(campaign, "examine", lambda *_: dispositions.append(signal.getsignal(signal.SIGTERM)))
    target = Target("craft.table", "NEXT", ())
    before = signal.getsignal(signal.SIGTERM)
    campaign._examine((0, target, Path()))
    assert callable(dispositions[0]), "whoever is ended in a turn ends its child"
    assert signal.getsignal(signal.SIGTERM) is before
    with get_context("fork").Pool(1, campaign._start_worker) as pool:
        assert pool.apply(signal.getsignal, (signal.SIGTERM,)) == signal.SIG_DFL


def test_a_survivors_pattern() -> None:
    """`[*]` stands for any row, brackets are not sets."""
    cell = Cell("ROWS[12].error", "ROWS[*].error", 1, 0, "1", "2")
    assert Survivor("ROWS[*].error", "").covers(cell)
    assert Survivor("ROWS[12].error", "").covers(cell)
    assert not Survivor("ROWS[1].error", "").covers(cell)
    assert not Survivor("ROWS[12].*x", "").covers(cell)
