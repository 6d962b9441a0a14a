"""tests/golden/virtio_blk.csv, a row as a chain in a ring, against our device and QEMU's.

The table was written from the specification; QEMU shows where it may be read otherwise.
"""

from __future__ import annotations

import re
from typing import Final

import pytest

from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.store import MemoryStore
from hmx.virtio.blk import FEATURES, BlkFeature, BlkType
from hmx.virtio.features import feature_set
from hmx.virtio.status import Status
from tests.golden import number, rows
from tests.virtio_qemu.boards import OurBoard
from tests.virtio_qemu.conftest import IDENTITY, SECTORS, Bench, Benches, contents
from tests.virtio_qemu.disk import Answer, Disk, cut
from tests.virtio_qemu.transport import run

NOT_HERE: Final = ("fails", "cached")  # states of a store, which its own tests make
SPARSE: Final = 1 << 20  # sectors: no such image is made here
THEIRS: Final = {
    "scsi_command_legacy": "1",  # it looks at SCSI commands, and finds them malformed
    "scsi_command_out_legacy": "1",
    "flush_out_legacy": "0",  # it leaves out two bits of the type, so that 5 is FLUSH,
    "unknown_type_9": "0",  # 9 is GET_ID,
    "barrier_legacy": "0",  # and this is OUT
    "discard_not_negotiated": "0",  # it does what it can, negotiated or not
    "write_zeroes_not_negotiated": "0",
    "discard_not_multiple_of_16": "broken",
    "discard_no_segment": "broken",
}
"""Where QEMU 7.2 does not do what the table says: the status that it gives, or "broken"."""


def possible(side: str, row: dict[str, str]) -> bool:
    """Whether this side has such a disk."""
    if number(row["capacity"]) >= SPARSE or any(word in row["state"] for word in NOT_HERE):
        return False
    if side == "ours":  # a read-only disk of ours offers nothing that writes
        return "RO" not in row["features"].split() or "DISCARD" not in row["features"].split()
    if any(word in row["case"] for word in ("segments", "too_many", "second_segment")) or "may_unmap=0" in row["state"]:
        return False  # QEMU's limits are others
    return "id=" not in row["state"] or f"id={IDENTITY}" in row["state"].split()  # ... and its disks have one name


PAIRS: Final = [
    pytest.param(side, row, id=f"{side}-{row['case']}")
    for side in ("ours", "theirs")
    for row in rows("virtio_blk.csv")
    if possible(side, row)
]


def stream(row: dict[str, str]) -> bytes:
    """The device-readable bytes."""
    data = row["data"]
    if "*" in data:
        byte, times = data.split("*")
        return bytes.fromhex(row["header"]) + bytes.fromhex(byte) * int(times)
    return bytes.fromhex(row["header"] + data)


def sizes(cell: str) -> list[int]:
    return [int(size) for size in cell.split("+") if size]


def ours(row: dict[str, str]) -> Bench:
    state = dict(item.partition("=")[::2] for item in row["state"].split())
    store = MemoryStore(512 * SECTORS, contents())
    options = BlkOptions(
        identity=state.get("id", IDENTITY).encode()[:20],
        read_only="read-only" in state,
        segment_sectors=int(state.get("max_discard_sectors", 32)),
        segments=int(state.get("max_discard_seg", 2)),
    )
    return Bench("ours", OurBoard(BlkModel(store, options)), lambda: store.pread(0, store.size))


@pytest.mark.parametrize(("side", "row"), PAIRS)
def test_row(bench: Benches, side: str, row: dict[str, str]) -> None:
    """Status, used.len, and what became of data and image."""
    found = ours(row) if side == "ours" else bench("read-only" if "read-only" in row["state"] else "disk")
    liked = feature_set(*(BlkFeature[name] for name in row["features"].split()))
    disk = Disk(found.transport(entries=0), feature_set(*(bit.bit for bit in FEATURES)) & ~liked, 64, liked=liked)
    assert not liked & ~disk.features, "the device does not offer what the row takes"
    if "writeback=0" in row["state"]:
        disk.transport.board.store(0x120, 1, 0)
    answer = _ask(disk, row)
    known = side == "theirs" and row["case"] in THEIRS
    allowed = [THEIRS[row["case"]]] if known else row["status"].split("|")
    if disk.transport.read("Status") & Status.DEVICE_NEEDS_RESET:
        assert "broken" in allowed
        return
    assert answer is not None
    if not row["writable"]:
        assert "none" in allowed
        return
    assert str(answer.status) in allowed, answer
    if side == "ours" or answer.status == 0:
        assert answer.written in [number(written) for written in row["written"].split("|")]
    if not known:
        _check(found, disk, row, answer)


def _ask(disk: Disk, row: dict[str, str]) -> Answer | None:
    """None: no answer came."""

    async def work() -> Answer | None:
        answer = disk.start(cut(stream(row), sizes(row["readable"])), sizes(row["writable"]))
        await disk.queues[0].kick()
        for _ in range(200):
            disk.transport.service()
            if answer.done() or not disk.transport.board.wait(0.005):
                break
        return answer.result() if answer.done() and not answer.exception() else None

    return run(disk.transport, work())


def _check(found: Bench, disk: Disk, row: dict[str, str], answer: Answer) -> None:
    image = bytearray(contents())
    for effect in row["effect"].split("; "):
        name, _, value = effect.partition("=")
        if name == "data":
            slice_ = re.fullmatch(r"image\[(\d+):(\d+)\]", value)
            if slice_:
                assert answer.data == contents()[int(slice_[1]) : int(slice_[2])]
            elif found.side == "ours":
                assert answer.data.hex() == value
        elif part := re.fullmatch(r"image\[(\d+):(\d+)\]", name):
            start, end = int(part[1]), int(part[2])
            image[start:end] = bytes(end - start) if value == "00" else stream(row)[16 : 16 + end - start]
    if "discard" in row["case"] and answer.status == 0:
        return
    if "FLUSH" in row["features"]:
        assert disk.request(BlkType.FLUSH).status == 0
    if answer.status or "image" in row["effect"]:
        assert found.image() == bytes(image)
