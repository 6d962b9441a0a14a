"""The report: its schema, its medians, what happens to rows and peers that fail; `--only` and `--against`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from topologies.bench import against
from topologies.bench.against import NoRevision, compare, worktree
from topologies.bench.labs import OWN_TREE, LabFailed, Round
from topologies.bench.peers import PeerFailed
from topologies.bench.proof import LyingRow
from topologies.bench.rows import ROW_OF, ROWS, Row
from topologies.bench.run import Bench
from topologies.bench.startup import footprint
from topologies.bench.transports import Unavailable
from topologies.commands.bench import NoSuchRow, chosen, table

NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["schema", "machine", "rounds", "rows"],
    "properties": {
        "schema": {"const": "bench/1"},
        "rows": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "name", "value", "unit", "ratios", "frames", "doorbells", "interrupts", "eagain", "ring", "window",
                ],
                "properties": {
                    "name": {"enum": [row.name for row in ROWS]},
                    "value": {"type": "number"},
                    "unit": {"enum": ["msg/s", "us", "us/msg", "s", "req/s", "MiB/s"]},
                    "ratios": NUMBERS,
                    "peers": NUMBERS,
                },
            },
        },
    },
}  # fmt: skip
COLUMNS = {"frames": 63, "doorbells": 1, "interrupts": 2, "eagain": 0, "ring": 4096, "window": 64}
ROW = ROW_OF["argo-windowed-64B"]
TIMED = ROW_OF["sendv-sync-64B"]


def fixed(*values: float) -> Any:
    """A measure that gives these values, one a call."""
    left = list(values)
    return lambda *_: Round(left.pop(0), {**COLUMNS, "cpu_us": {"hypervisor": 1.0}})


def test_the_report_has_the_published_schema() -> None:
    peer = iter((50.0, 100.0, 300.0) * 20)
    bench = Bench([ROW], 3, measure=fixed(100.0, 200.0, 300.0), measure_peer=lambda *_: next(peer))
    report = json.loads(json.dumps(bench.run(), allow_nan=False))
    jsonschema.validate(report, SCHEMA)
    (row,) = report["rows"]
    assert (row["value"], row["unit"], row["rounds"]) == (200.0, "msg/s", [100.0, 200.0, 300.0])
    assert set(row["ratios"]) == set(ROW.peers)
    assert table(report)


def test_figures_are_interleaved() -> None:
    """Each round: the row, then each of its peers, then the next row."""
    order: list[str] = []

    def measure(row: Row, _tree: Path, _scale: float) -> Round:
        order.append(row.name)
        return Round(1.0, COLUMNS)

    def measure_peer(name: str, _row: Row, _scale: float) -> float:
        order.append(name)
        return 1.0

    Bench([ROW, TIMED], 2, measure=measure, measure_peer=measure_peer).run()
    assert order == [ROW.name, *ROW.peers, TIMED.name, *TIMED.peers] * 2


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    peer = iter([1.0, 100.0, 10.0])
    row = ROW._replace(peers=("zmq-pair",))
    bench = Bench([row], 3, measure=fixed(1.0, 10.0, 100.0), measure_peer=lambda *_: next(peer))
    assert bench.run()["rows"][0]["ratios"] == {"zmq-pair": 1.0}


def test_a_row_that_lies_has_no_figure() -> None:
    def measure(row: Row, *_: Any) -> Round:
        raise LyingRow(row.name, ("63 messages, but 62 dequeued",))

    report = Bench([ROW], 2, measure=measure, measure_peer=lambda *_: 1.0).run()
    (row,) = report["rows"]
    assert row["value"] is None
    assert "62 dequeued" in row["failures"][0]
    assert any("62 dequeued" in line for line in table(report))


def test_a_lie_is_not_measured_again_and_a_failed_lab_is() -> None:
    calls = []

    def measure(row: Row, *_: Any) -> Round:
        calls.append(row)
        if len(calls) == 1:
            raise LabFailed("no room")
        return Round(1.0, COLUMNS)

    report = Bench([ROW._replace(peers=())], 1, measure=measure).run()
    assert len(calls) == 2
    assert report["rows"][0]["value"] == 1.0


@pytest.mark.parametrize("error", [Unavailable("not installed"), PeerFailed("wrong messages")])
def test_a_peer_that_fails_is_named_and_has_no_ratio(error: Exception) -> None:
    def measure_peer(name: str, *_: Any) -> float:
        if name == "zmq-hv":
            raise error
        return 1.0

    report = Bench([ROW], 2, measure=fixed(1.0, 1.0), measure_peer=measure_peer).run()
    (row,) = report["rows"]
    assert "zmq-hv" not in row["ratios"]
    assert row["absent"] == {"zmq-hv": str(error)}


# ---- --only ----


def test_only_takes_names_and_commas() -> None:
    assert [row.name for row in chosen(["argo-rtt-64B,argo-windowed-64B", "stream-4KiB"])] == [
        "argo-windowed-64B", "argo-rtt-64B", "stream-4KiB",
    ]  # fmt: skip
    assert chosen([]) == list(ROWS)


def test_an_unknown_row_is_named_with_what_was_meant() -> None:
    with pytest.raises(NoSuchRow, match="Did you mean 'argo-windowed-64B'"):
        chosen(["argo-windowd-64B"])


# ---- --against ----


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    path = tmp_path / "repository"
    path.mkdir()
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", "-C", str(path), *words], check=True)
    return path


def worktrees(repository: Path) -> int:
    words = ["git", "-C", str(repository), "worktree", "list", "--porcelain"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.count("worktree ")


def test_a_worktree_is_gone_afterwards(repository: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), worktree("HEAD", repository) as tree:
        assert tree.is_dir()
        assert worktrees(repository) == 2
        raise RuntimeError("in the middle")
    assert not tree.parent.exists()
    assert worktrees(repository) == 1


@pytest.mark.parametrize("revision", ["no-such-revision", "--help", ""])
def test_a_revision_that_is_not_there_is_a_usage_error(repository: Path, revision: str) -> None:
    with pytest.raises(NoRevision, match="--against"), worktree(revision, repository):
        pass


@pytest.mark.parametrize(
    ("row", "ours", "theirs", "speed", "not_fallen"),
    [
        (ROW, 90.0, 100.0, 0.9, True),
        (ROW, 89.0, 100.0, 0.89, False),
        (TIMED, 10.0, 9.0, 0.9, True),
        (TIMED, 10.0, 8.0, 0.8, False),
    ],
)
def test_not_fallen_is_a_median_speed_of_nine_tenths(
    repository: Path, row: Row, ours: float, theirs: float, speed: float, not_fallen: bool
) -> None:
    def measure(_row: Row, tree: Path, _scale: float) -> Round:
        return Round(ours if tree == OWN_TREE else theirs, COLUMNS)

    report = compare([row, ROW_OF["startup-50"]], "HEAD", 3, measure=measure, repository=repository)
    (found,) = report["rows"]  # startup-50 is no data path
    assert found["speed"] == pytest.approx(speed)
    assert found["not_fallen"] is not_fallen
    assert report["fallen"] == ([] if not_fallen else [row.name])
    assert table(report)


def test_trees_take_turns_in_going_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def measure(_row: Row, tree: Path, _scale: float) -> Round:
        order.append(tree == OWN_TREE)
        return Round(1.0, COLUMNS)

    monkeypatch.setattr(against, "machine", dict)
    compare([ROW], "HEAD", 3, measure=measure, repository=repository)
    assert order == [True, False, False, True, True, False]


def test_a_row_that_one_tree_cannot_measure_has_fallen(repository: Path) -> None:
    def measure(_row: Row, tree: Path, _scale: float) -> Round:
        if tree != OWN_TREE:
            raise LabFailed("no such option")
        return Round(1.0, COLUMNS)

    report = compare([ROW], "HEAD", 2, measure=measure, repository=repository)
    assert report["fallen"] == [ROW.name]
    assert "HEAD: no such option" in report["rows"][0]["failures"]


def test_a_row_that_the_other_tree_does_not_have_is_named_and_measured_nowhere(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree that knows no devices has no figure for a disk; its other rows are compared."""
    new = ROW_OF["virtio-blk-4KiB-read"]
    monkeypatch.setattr(against, "_known", lambda row, _tree: row is not new)
    measured: list[Row] = []
    said: list[str] = []

    def measure(row: Row, _tree: Path, _scale: float) -> Round:
        measured.append(row)
        return Round(1.0, COLUMNS)

    report = compare([ROW, new], "HEAD", 1, progress=said.append, measure=measure, repository=repository)
    assert set(measured) == {ROW}
    assert report["unknown"] == [new.name]
    assert [row["name"] for row in report["rows"]] == [ROW.name]
    assert report["fallen"] == []
    assert any(new.name in words for words in said)


def test_a_table_without_the_row_does_not_have_it(tmp_path: Path) -> None:
    table_of_rows = tmp_path / "topologies" / "bench" / "rows.py"
    table_of_rows.parent.mkdir(parents=True)
    table_of_rows.write_text(f'Row("{ROW.name}", ...)\n')
    assert against._known(ROW, tmp_path)
    assert not against._known(ROW_OF["virtio-blk-4KiB-read"], tmp_path)
    assert against._known(ROW_OF["virtio-blk-4KiB-read"], OWN_TREE)


# ---- memory ----

SMAPS = """\
55d0c0a00000-55d0c0a01000 r--p 00000000 fe:00 1 /usr/bin/python3.11
Rss:                 400 kB
Private_Clean:       100 kB
Private_Dirty:       200 kB
7f0000000000-7f0001000000 rw-s 00000000 00:01 5 /memfd:argosy-g0-ram (deleted)
Rss:                1024 kB
Private_Clean:         0 kB
Private_Dirty:       512 kB
7f0002000000-7f0002100000 rw-p 00000000 00:00 0
Rss:                 724 kB
Private_Clean:         0 kB
Private_Dirty:       724 kB
"""


def test_memfd_pages_have_a_column_of_their_own() -> None:
    """Guest RAM is not what a guest process costs; its own pages are Private_Clean + Private_Dirty."""
    assert footprint(SMAPS) == (1.0, 1.0)
