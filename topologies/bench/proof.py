"""What makes a figure count: the row's own evidence, checked before anything is computed from it.

N messages are N sendv frames that the hypervisor process executed, by its counters, and N that the receiver
dequeued, with a running checksum over (sequence, payload).  The hypervisor's pid, as the kernel told both
guests, differs from theirs.  Where the guests have hypervisors of their own, these are two processes, and the far one
executed as many sendv of a guest elsewhere, with as many bytes, as the near one let its guest believe.

N reads of a disk are N answers with the data that the disk holds at that place, and N requests that the back end
served, all of them well; the hypervisor process copied at least as many bytes.  A message there carries several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from topologies.bench import disk
from topologies.bench.ledger import Ledger
from topologies.bench.rows import DISKS, GUESTS_OF, Kind, Row, Where

STREAM_HEADER = 8  # bytes before each frame's data: OpenXT's argo_stream_header
REQUEST_SIZE = 16  # bytes of a block request for the device to read (VIRTIO 5.2.6)
STREAM_CONTROL = 8  # SYN, RST and their like: no more frames than this carry no data


class LyingRow(Exception):
    """The evidence does not support the figure; `reasons` say where it breaks."""

    def __init__(self, row: str, reasons: tuple[str, ...]) -> None:
        super().__init__(f"{row} proves nothing: {'; '.join(reasons)}")
        self.row = row
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Evidence:
    """One round's records.

    `messages` in all, warm-up included; `sender` and `receiver` are what the guests reported, `executed` what
    the hypervisor counted for each of its domains (`arch.*`), `host` what its process counted.  Where each has its own,
    `far` is what the level of either one's hypervisor counted, and `hop` the frames that the sender's sent on its
    uplink, and the records in them.
    """

    messages: int
    sender: Mapping[str, Any]
    receiver: Mapping[str, Any]
    executed: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]
    far: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    hop: Mapping[str, int] = field(default_factory=dict)

    def columns(self, row: Row) -> dict[str, float]:
        """What the row carries beside its value."""
        sender, receiver = self.executed.get("sender", {}), self.executed.get("receiver", {})
        hops: dict[str, float] = {}
        if row.where is not Where.ONE:
            frames = int(self.hop.get("frames", 0))
            records = int(self.hop.get("records", 0))
            hops = {"uplink_frames": frames, "records_per_frame": records / max(1, frames)}
        return {
            "frames": int(sender.get("messages", 0)),
            "doorbells": int(self.host.get("doorbells", 0)),
            "interrupts": int(receiver.get("interrupts_posted", 0)),
            "eagain": int(self.sender.get("eagain", 0)),
            "ring": row.ring,
            "window": row.window,
            **hops,
        }


def objections(row: Row, evidence: Evidence) -> tuple[str, ...]:
    """Why the evidence is not enough; empty when it is."""
    if row.kind in DISKS:
        return (*_processes(row, evidence), *_disk_reads(row, evidence))
    return (
        *_processes(row, evidence),
        *_receipt(row, evidence),
        *_execution(row, evidence),
        *_far_execution(row, evidence),
    )


def check(row: Row, evidence: Evidence) -> None:
    """Raise LyingRow unless the evidence is enough."""
    reasons = objections(row, evidence)
    if reasons:
        raise LyingRow(row.name, reasons)


def _processes(row: Row, evidence: Evidence) -> list[str]:
    pids = [evidence.sender.get("pid", 0), evidence.receiver.get("pid", 0)]
    hypervisors = {evidence.sender.get("hypervisor_pid", 0), evidence.receiver.get("hypervisor_pid", 0)}
    if 0 in pids or 0 in hypervisors:
        return ["a process has no pid"]
    wanted = 1 if row.where is Where.ONE else 2
    if len(hypervisors) != wanted:
        different = "different hypervisor processes" if wanted == 1 else "one hypervisor process"
        return [f"the guests name {different}, {sorted(hypervisors)}"]
    found = {*pids, *hypervisors}
    if len(found) == 2 + wanted:
        return []
    return [f"sender, receiver and hypervisor are {len(found)} processes, not {2 + wanted}"]


def _receipt(row: Row, evidence: Evidence) -> list[str]:
    found = []
    dequeued = evidence.receiver.get("dequeued")
    if dequeued != evidence.messages:
        found.append(f"{evidence.messages} messages, but {dequeued} dequeued")
    wanted = Ledger(row.size).expect(evidence.messages)
    if evidence.receiver.get("checksum") != wanted:
        found.append(f"the receiver's checksum is {evidence.receiver.get('checksum')}, not {wanted}")
    return found


def _execution(row: Row, evidence: Evidence) -> list[str]:
    sender = evidence.executed.get("sender", {})
    executed, copied = sender.get("messages", 0), sender.get("bytes_copied", 0)
    payload = evidence.messages * row.size
    if row.kind is Kind.STREAM:
        data = evidence.sender.get("frames", 0)
        if data <= executed <= data + STREAM_CONTROL and copied == payload + executed * STREAM_HEADER:
            return []
        return [f"{data} data frames sent, {executed} executed; {copied} bytes copied for {payload}"]
    found = []
    if executed != evidence.messages:
        found.append(f"{evidence.messages} messages, but {executed} sendv frames executed")
    if copied != payload:
        found.append(f"{payload} bytes, but {copied} copied")
    answers = evidence.executed.get("receiver", {}).get("messages", 0)
    wanted = evidence.messages if GUESTS_OF[row.kind].answers else 0
    if answers != wanted:
        found.append(f"{answers} answers executed, not {wanted}")
    return found


def _disk_reads(row: Row, evidence: Evidence) -> list[str]:
    found = []
    count = evidence.messages
    completed, served = evidence.sender.get("completed"), evidence.receiver.get("requests")
    if completed != count:
        found.append(f"{count} reads, but {completed} completed")
    wanted = disk.checksum(row.size, count)
    if evidence.sender.get("checksum") != wanted:
        found.append(f"the checksum over what was read is {evidence.sender.get('checksum')}, not {wanted}")
    if served != {"OK": count}:
        found.append(f"{count} reads, but the back end served {served}")
    for who, size in (("receiver", row.size), ("sender", REQUEST_SIZE)):
        counted = evidence.executed.get(who, {})
        copied = counted.get("bytes_copied", 0)
        if not counted.get("messages") or copied < count * size:
            found.append(f"{copied} bytes of the {who} copied, less than {count * size}")
    return found


def _far_execution(row: Row, evidence: Evidence) -> list[str]:
    """What the hypervisor of each receiver executed for a guest elsewhere."""
    if row.where is Where.ONE:
        return []
    answers = evidence.messages if GUESTS_OF[row.kind].answers else 0
    found = []
    for who, wanted in (("receiver", evidence.messages), ("sender", answers)):
        counted = evidence.far.get(who, {})
        delivered, size = counted.get("delivered", 0), counted.get("delivered_bytes", 0)
        if delivered != wanted or size != wanted * row.size:
            found.append(f"the {who}'s hypervisor executed {delivered} sendv with {size} bytes from afar, not {wanted}")
    if not evidence.hop.get("frames") or not evidence.hop.get("records"):
        found.append("no frames are known to have left the sender's hypervisor")
    return found
