"""A row counts only if it proves itself: each way to lie is refused, by name."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from topologies.bench import disk
from topologies.bench.ledger import Ledger
from topologies.bench.proof import Evidence, LyingRow, check, objections
from topologies.bench.rows import DISKS, GUESTS_OF, ROW_OF, Kind, Row, Where

COUNT = 21
DISK_ROWS = [row for row in ROW_OF.values() if row.kind in DISKS]
ROWS = [row for row in ROW_OF.values() if row.kind is not Kind.STARTUP and row not in DISK_ROWS]
NEAR = [row for row in ROWS if row.where is Where.ONE]
FAR = [row for row in ROWS if row.where is not Where.ONE]


def honest(row: Row) -> Evidence:
    frames = COUNT * 2 if row.kind is Kind.STREAM else COUNT
    executed = frames + 2 if row.kind is Kind.STREAM else frames
    header = 8 * executed if row.kind is Kind.STREAM else 0
    answers = COUNT if GUESTS_OF[row.kind].answers else 0
    far = {
        "receiver": {"delivered": COUNT, "delivered_bytes": COUNT * row.size},
        "sender": {"delivered": answers, "delivered_bytes": answers * row.size},
    }
    return Evidence(
        messages=COUNT,
        sender={"pid": 11, "hypervisor_pid": 13, "frames": frames, "eagain": 0},
        receiver={
            "pid": 12, "hypervisor_pid": 13 if row in NEAR else 14, "dequeued": COUNT,
            "checksum": Ledger(row.size).expect(COUNT),
        },
        executed={
            "sender": {"messages": executed, "bytes_copied": COUNT * row.size + header},
            "receiver": {"messages": COUNT if GUESTS_OF[row.kind].answers else 0, "interrupts_posted": 5},
        },
        host={"doorbells": 3},
        far=far if row in FAR else {},
        hop={"frames": 10, "records": 25} if row in FAR else {},
    )  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_honest_row_passes(row: Row) -> None:
    check(row, honest(row))


LIES: list[tuple[str, str, str, Any]] = [
    ("receiver", "dequeued", "dequeued", COUNT - 1),
    ("receiver", "checksum", "checksum", 1),
    ("receiver", "pid", "[23] processes", 11),
    ("receiver", "pid", "[23] processes", 13),
    ("sender", "pid", "[23] processes", 13),
    ("sender", "pid", "no pid", 0),
    ("sender", "hypervisor_pid", "different hypervisor processes|one hypervisor process", 14),
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


@pytest.mark.parametrize("who", ["receiver", "sender"])
@pytest.mark.parametrize(("key", "by"), [("delivered", -1), ("delivered", 1), ("delivered_bytes", -1)])
@pytest.mark.parametrize("row", FAR, ids=lambda row: row.name)
def test_the_far_hypervisor_executed_every_message(row: Row, key: str, by: int, who: str) -> None:
    """N messages are N sendv that the hypervisor of the one who dequeued them executed for a guest elsewhere."""
    evidence = honest(row)
    far: Any = deepcopy(dict(evidence.far))
    far[who][key] += by
    assert any(who in words for words in objections(row, replace(evidence, far=far)))


@pytest.mark.parametrize("hop", [{}, {"frames": 0, "records": 3}, {"frames": 3, "records": 0}])
@pytest.mark.parametrize("row", FAR, ids=lambda row: row.name)
def test_a_row_without_frames_on_its_way_is_none(row: Row, hop: Any) -> None:
    assert objections(row, replace(honest(row), hop=hop))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_proves_nothing(row: Row) -> None:
    assert objections(row, Evidence(COUNT, {}, {}, {}, {}))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_carries_its_columns(row: Row) -> None:
    """contracts: frames, doorbells, interrupts, eagain, ring, window."""
    columns = honest(row).columns(row)
    hops = {"uplink_frames", "records_per_frame"} if row in FAR else set()
    assert set(columns) == {"frames", "doorbells", "interrupts", "eagain", "ring", "window"} | hops
    assert columns.get("records_per_frame", 2.5) == 2.5
    assert columns["frames"] >= COUNT
    assert (columns["doorbells"], columns["interrupts"]) == (3, 5)


# ---- disks ----


def honest_disk(row: Row) -> Evidence:
    """Requests share messages: there are fewer of these."""
    return Evidence(
        messages=COUNT,
        sender={"pid": 11, "hypervisor_pid": 13, "completed": COUNT, "checksum": disk.checksum(row.size, COUNT)},
        receiver={"pid": 12, "hypervisor_pid": 13, "requests": {"OK": COUNT}},
        executed={
            "sender": {"messages": 3, "bytes_copied": COUNT * 16 + 300},
            "receiver": {"messages": 3, "bytes_copied": COUNT * (row.size + 1) + 300, "interrupts_posted": 3},
        },
        host={"doorbells": 3},
    )


@pytest.mark.parametrize("row", DISK_ROWS, ids=lambda row: row.name)
def test_an_honest_disk_passes(row: Row) -> None:
    check(row, honest_disk(row))
    assert objections(row, Evidence(COUNT, {}, {}, {}, {}))


@pytest.mark.parametrize(
    ("side", "key", "words", "value"),
    [
        ("sender", "completed", "completed", COUNT - 1),
        ("sender", "checksum", "checksum", 1),
        ("sender", "pid", "2 processes", 12),
        ("receiver", "pid", "2 processes", 13),
        ("receiver", "hypervisor_pid", "different hypervisor", 14),
        ("receiver", "requests", "served", {"OK": COUNT - 1}),
        ("receiver", "requests", "served", {"OK": COUNT + 1}),
        ("receiver", "requests", "served", {"OK": COUNT, "IOERR": 1}),
    ],
)
@pytest.mark.parametrize("row", DISK_ROWS, ids=lambda row: row.name)
def test_a_lie_about_a_disk_is_refused(row: Row, side: str, key: str, words: str, value: Any) -> None:
    """N requests are N right answers and N requests that the back end served well; three processes."""
    evidence = honest_disk(row)
    told: Any = {side: {**getattr(evidence, side), key: value}}
    with pytest.raises(LyingRow, match=words):
        check(row, replace(evidence, **told))


@pytest.mark.parametrize(
    ("who", "key", "value"),
    [("receiver", "bytes_copied", -1), ("sender", "bytes_copied", -1), ("receiver", "messages", 0),
     ("sender", "messages", 0)],
)  # fmt: skip
@pytest.mark.parametrize("row", DISK_ROWS, ids=lambda row: row.name)
def test_a_disk_whose_bytes_the_hypervisor_did_not_copy_is_refused(row: Row, who: str, key: str, value: int) -> None:
    least = COUNT * {"receiver": row.size, "sender": 16}[who]
    evidence = honest_disk(row)
    executed: Any = deepcopy(dict(evidence.executed))
    executed[who][key] = least + value if value else 0
    assert any(who in words for words in objections(row, replace(evidence, executed=executed)))
