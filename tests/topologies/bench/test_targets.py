"""The tables say what was promised, and `bench-check` holds reports against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from topologies.bench.peers import PEERS
from topologies.bench.rows import ROW_OF, ROWS, TARGETS, Bound, Row, Target
from topologies.bench.targets import better, found_in, judge, words

PROMISED = {
    *(f"argo-windowed-{size}" for size in ("64B", "256B", "4KiB", "64KiB", "1MiB")),
    *(f"argo-sync-{size}" for size in ("64B", "256B", "4KiB", "64KiB", "1MiB")),
    "argo-inplace-1MiB", "sendv-sync-64B", "argo-rtt-64B", "stream-4KiB", "stream-64KiB", "hv-cpu-64B", "startup-50",
    "remote-rtt-64B", "remote-posted-64B", "remote-posted-64KiB", "nested-rtt-64B",
    "virtio-blk-4KiB-read", "virtio-blk-64KiB-read",
}  # fmt: skip
SIZES = {"64B": 64, "256B": 256, "4KiB": 4096, "64KiB": 65536, "1MiB": 1 << 20}


def test_every_promised_row_is_there_once() -> None:
    assert {row.name for row in ROWS} == PROMISED
    assert len(ROWS) == len(PROMISED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_what_its_name_says(row: Row) -> None:
    suffix = row.name.removesuffix("-read").rpartition("-")[2]
    assert row.size == SIZES.get(suffix, row.size)
    assert 1 <= row.window <= 64
    assert row.ring % 16 == 0
    assert row.ring >= 8 * row.size  # a ring of fewer messages collapses
    assert set(row.peers) <= {*PEERS, "memcpy", "qemu-nbd"}


@pytest.mark.parametrize("name", ["virtio-blk-4KiB-read", "virtio-blk-64KiB-read"])
def test_disks_are_read_with_sixteen_requests_under_way_beside_qemu_nbd(name: str) -> None:
    assert (ROW_OF[name].window, ROW_OF[name].peers) == (16, ("qemu-nbd",))
    assert ROW_OF[name].larger_is_better


def test_a_rate_in_bytes_counts_the_size() -> None:
    assert ROW_OF["virtio-blk-64KiB-read"].rate(32.0) == 2.0  # MiB/s
    assert ROW_OF["virtio-blk-4KiB-read"].rate(32.0) == 32.0  # req/s


@pytest.mark.parametrize(
    ("row", "of", "bound", "wanted", "aim"),
    [
        ("argo-windowed-64B", "zmq-proxy", "at least", 0.8, 1.5),
        ("argo-windowed-64B", "zmq-hv", "at least", 3, 5),
        ("argo-windowed-64KiB", "zmq-proxy", "at least", 5, None),
        ("argo-windowed-64KiB", "uds-seqpacket", "at least", 1, None),
        ("argo-windowed-1MiB", "memcpy", "at least", 0.15, None),
        ("argo-inplace-1MiB", "memcpy", "at least", 0.3, None),
        ("sendv-sync-64B", "zmq-dealer-router", "at most", 0.4, None),
        ("hv-cpu-64B", "value", "at most", 4, None),
        ("remote-rtt-64B", "zmq-proxy-curve", "at most", 3, None),
        ("remote-posted-64B", "zmq-proxy-curve", "at least", 0.5, None),
        ("remote-posted-64KiB", "zmq-proxy-curve", "at least", 0.5, None),
        ("virtio-blk-4KiB-read", "qemu-nbd", "at least", 0.4, None),
        ("startup-50", "value", "at most", 3, None),
        ("startup-50", "unique_mib", "at most", 12, None),
    ],
)
def test_a_promised_target_is_there(row: str, of: str, bound: str, wanted: float, aim: float | None) -> None:
    assert Target(row, of, Bound(bound), wanted, aim) in TARGETS
    assert of in (*ROW_OF[row].peers, "value", "unique_mib")


def test_there_is_no_other_target() -> None:
    assert len(TARGETS) == 14


RATE = Target("argo-windowed-64B", "zmq-proxy", Bound.AT_LEAST, 0.8)
TIME = Target("hv-cpu-64B", "value", Bound.AT_MOST, 4.0)


def reporter(*figures: Mapping[str, float]) -> tuple[Any, list[list[str]]]:
    """Reports with these figures, one after the other; and which rows each was asked for."""
    asked: list[list[str]] = []

    def report(rows: Sequence[Row]) -> Mapping[str, Any]:
        found = figures[len(asked)]
        asked.append([row.name for row in rows])
        return {
            "rows": [
                {"name": row.name, "value": found.get(row.name), "ratios": {"zmq-proxy": found.get(row.name)}}
                for row in rows
            ]
        }

    return report, asked


def test_a_target_is_met_at_its_bound() -> None:
    report, _ = reporter({"argo-windowed-64B": 0.8, "hv-cpu-64B": 4.0})
    assert all(verdict.met for verdict in judge(report, (RATE, TIME)))


def test_only_what_is_unmet_is_measured_again_and_the_best_counts() -> None:
    report, asked = reporter(
        {"argo-windowed-64B": 0.7, "hv-cpu-64B": 3.0}, {"argo-windowed-64B": 0.5}, {"argo-windowed-64B": 0.9}
    )
    verdicts = judge(report, (RATE, TIME))
    assert asked == [["argo-windowed-64B", "hv-cpu-64B"], ["argo-windowed-64B"], ["argo-windowed-64B"]]
    assert [verdict.found for verdict in verdicts] == [0.9, 3.0]
    assert all(verdict.met for verdict in verdicts)


def test_three_attempts_and_no_more() -> None:
    report, asked = reporter({"hv-cpu-64B": 6.0}, {"hv-cpu-64B": 4.1}, {"hv-cpu-64B": 5.0})
    (verdict,) = judge(report, (TIME,))
    assert len(asked) == 3
    assert (verdict.found, verdict.met) == (4.1, False)
    assert words(verdict).startswith("NOT MET")


def test_a_row_without_a_figure_meets_nothing() -> None:
    """A row that did not prove itself has no value, whatever the bound."""
    report, _ = reporter({}, {}, {})
    assert not any(verdict.met for verdict in judge(report, (RATE, TIME)))
    assert found_in({"rows": []}, RATE) is None


@pytest.mark.parametrize(("bound", "best"), [(Bound.AT_LEAST, 2.0), (Bound.AT_MOST, 1.0)])
def test_the_better_figure_lies_on_the_bounds_side(bound: Bound, best: float) -> None:
    assert better(bound, 1.0, 2.0) == better(bound, 2.0, 1.0) == best
    assert better(bound, None, 2.0) == better(bound, 2.0, None) == 2.0
