"""A row counts only if it proves itself: each way to lie is refused, by name."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from topologies.bench.ledger import Ledger
from topologies.bench.proof import Evidence, LyingRow, check, objections
from topologies.bench.rows import GUESTS_OF, ROW_OF, Kind, Row

COUNT = 21
ROWS = [row for row in ROW_OF.values() if row.kind is not Kind.STARTUP]


def honest(row: Row) -> Evidence:
    frames = COUNT * 2 if row.kind is Kind.STREAM else COUNT
    executed = frames + 2 if row.kind is Kind.STREAM else frames
    header = 8 * executed if row.kind is Kind.STREAM else 0
    return Evidence(
        messages=COUNT,
        sender={"pid": 11, "hypervisor_pid": 13, "frames": frames, "eagain": 0},
        receiver={
            "pid": 12, "hypervisor_pid": 13, "dequeued": COUNT, "checksum": Ledger(row.size).expect(COUNT),
        },
        executed={
            "sender": {"messages": executed, "bytes_copied": COUNT * row.size + header},
            "receiver": {"messages": COUNT if GUESTS_OF[row.kind].answers else 0, "interrupts_posted": 5},
        },
        host={"doorbells": 3},
    )  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_honest_row_passes(row: Row) -> None:
    check(row, honest(row))


LIES: list[tuple[str, str, str, Any]] = [
    ("receiver", "dequeued", "dequeued", COUNT - 1),
    ("receiver", "checksum", "checksum", 1),
    ("receiver", "pid", "2 processes", 11),
    ("receiver", "pid", "2 processes", 13),
    ("sender", "pid", "2 processes", 13),
    ("sender", "pid", "no pid", 0),
    ("sender", "hypervisor_pid", "different hypervisor processes", 14),
    ("receiver", "hypervisor_pid", "no pid", 0),
]


@pytest.mark.parametrize(("side", "key", "words", "value"), LIES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_lie_of_a_guest_is_refused(row: Row, side: str, key: str, words: str, value: Any) -> None:
    """N dequeued with the right checksum; three processes, by the kernel's word."""
    evidence = honest(row)
    told: Any = {side: {**getattr(evidence, side), key: value}}
    with pytest.raises(LyingRow, match=words) as raised:
        check(row, replace(evidence, **told))
    assert raised.value.row == row.name


@pytest.mark.parametrize(
    ("who", "key", "by"),
    [
        ("sender", "messages", -1),
        ("sender", "messages", 99),
        ("sender", "bytes_copied", -1),
        ("sender", "bytes_copied", 8),
    ],
)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_the_hypervisor_did_not_execute_is_refused(row: Row, who: str, key: str, by: int) -> None:
    """N messages are N sendv frames by the hypervisor's counters, and their bytes."""
    evidence = honest(row)
    executed: Any = deepcopy(dict(evidence.executed))
    executed[who][key] += by
    assert objections(row, replace(evidence, executed=executed))


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind is not Kind.STREAM], ids=lambda row: row.name)
def test_answers_are_counted_too(row: Row) -> None:
    """A receiver that sends when it should not, or does not when it should, is no measurement of this row."""
    evidence = honest(row)
    executed: Any = deepcopy(dict(evidence.executed))
    executed["receiver"]["messages"] += 1
    assert objections(row, replace(evidence, executed=executed))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_proves_nothing(row: Row) -> None:
    assert objections(row, Evidence(COUNT, {}, {}, {}, {}))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_carries_its_columns(row: Row) -> None:
    """contracts: frames, doorbells, interrupts, eagain, ring, window."""
    columns = honest(row).columns(row)
    assert set(columns) == {"frames", "doorbells", "interrupts", "eagain", "ring", "window"}
    assert columns["frames"] >= COUNT
    assert (columns["doorbells"], columns["interrupts"]) == (3, 5)
