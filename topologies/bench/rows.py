"""What is measured, against whom, and what the figures must reach: tables.

A rate is better when it is larger, a time when it is smaller; a ratio is always ours divided by the peer's.
Against the limit `memcpy` rates are compared in bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

KIB: Final = 1024
MIB: Final = 1024 * KIB


class Kind(StrEnum):
    """How a row is measured."""

    WINDOWED = "windowed"
    """Messages with a window of them in flight; the receiver's rate."""
    INPLACE = "inplace"
    """The same, and the receiver checks each message in its ring instead of copying it out."""
    SYNC = "sync"
    """One message at a time: time from send to dequeue."""
    HYPERCALL = "hypercall"
    """The sendv hypercall alone: time until its result is there."""
    RTT = "rtt"
    """A message and its echo."""
    STREAM = "stream"
    """Chunks over a stream connection, frames as the driver cuts them."""
    CPU = "cpu"
    """CPU time of the hypervisor process per message, windowed."""
    REMOTE_RTT = "remote round trip"
    """A message and its echo between hypervisors of two hosts, each an exact sendv."""
    REMOTE_POSTED = "remote posted"
    """Messages over a posted link between two hosts; the receiver's rate."""
    NESTED_RTT = "nested round trip"
    """A message and its echo between guests of a nested hypervisor and of the one around it."""
    DISK_READS = "disk reads"
    """Random reads of a block device over VirtIO-Argo (experimental), with a window of them under way; their rate."""
    DISK_BYTES = "disk bytes"
    """The same, in MiB of data a second."""
    STARTUP = "startup"
    """Guests from the plan to an answered message each."""


class Where(StrEnum):
    """Where the two guests of a lab live."""

    ONE = "one hypervisor"
    HOSTS = "two hosts"
    """Each with a hypervisor of its own, which reaches the broker over tcp with CURVE."""
    LEVELS = "two levels"
    """The sender on a hypervisor that is a guest of the receiver's."""


class Guests(NamedTuple):
    """The programs of a kind, what a round of it tells, and the module that the programs are of."""

    kind: Kind
    sender: str
    receiver: str
    answers: bool  # the receiver answers each message with one of its own
    unit: str
    where: Where = Where.ONE
    module: str = "guests"


GUESTS: Final = (
    Guests(Kind.WINDOWED, "send_windowed", "receive_windowed", False, "msg/s"),
    Guests(Kind.INPLACE, "send_windowed", "receive_windowed", False, "msg/s"),
    Guests(Kind.SYNC, "send_and_ask", "receive_and_tell", True, "us"),
    Guests(Kind.HYPERCALL, "send_sync", "receive_windowed", False, "us"),
    Guests(Kind.RTT, "send_and_echo", "receive_and_echo", True, "us"),
    Guests(Kind.STREAM, "send_stream", "receive_stream", False, "msg/s"),
    Guests(Kind.CPU, "send_windowed", "receive_windowed", False, "us/msg"),
    Guests(Kind.REMOTE_RTT, "send_and_echo", "receive_and_echo", True, "us", Where.HOSTS),
    Guests(Kind.REMOTE_POSTED, "send_windowed", "receive_windowed", False, "msg/s", Where.HOSTS),
    Guests(Kind.NESTED_RTT, "send_and_echo", "receive_and_echo", True, "us", Where.LEVELS),
    Guests(Kind.DISK_READS, "read_disk", "serve_disk", True, "req/s", module="disk"),
    Guests(Kind.DISK_BYTES, "read_disk", "serve_disk", True, "MiB/s", module="disk"),
    Guests(Kind.STARTUP, "startup_client", "startup_echo", True, "s"),
)
GUESTS_OF: Final = {row.kind: row for row in GUESTS}
DISKS: Final = (Kind.DISK_READS, Kind.DISK_BYTES)
RATES: Final = ("msg/s", "req/s", "MiB/s")

STREAMING: Final = ("zmq-proxy", "zmq-forwarder", "zmq-pair", "uds-seqpacket", "mp-queue", "iceoryx2")
HYPERVISED: Final = ("zmq-proxy", "zmq-forwarder", "zmq-pair", "zmq-hv", "uds-seqpacket", "mp-queue", "iceoryx2")
ONE_WAY: Final = ("zmq-proxy", "zmq-pair", "uds-seqpacket", "mp-queue")
ROUND_TRIP: Final = ("zmq-dealer-router", "zmq-proxy", "zmq-pair", "uds-seqpacket", "eventfd-pingpong")
FAR: Final = ("zmq-proxy-curve",)
STORAGE: Final = ("qemu-nbd",)


class Row(NamedTuple):
    """One row: `size` of a message or of a read, `sends`: timed ones in a round, `ring` (data bytes of each ring),
    `window` (sends in flight), and the peers measured beside it.
    """

    name: str
    kind: Kind
    size: int
    sends: int
    ring: int
    window: int
    peers: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Unit of the row's value."""
        return GUESTS_OF[self.kind].unit

    @property
    def where(self) -> Where:
        """Where its guests live."""
        return GUESTS_OF[self.kind].where

    @property
    def larger_is_better(self) -> bool:
        """Whether the value is a rate."""
        return self.unit in RATES

    def rate(self, each_second: float) -> float:
        """So many messages or requests a second in the row's unit."""
        return each_second * self.size / MIB if self.unit == "MiB/s" else each_second

    @property
    def data_path(self) -> bool:
        """Whether `--against` holds this row to what it was."""
        return self.kind is not Kind.STARTUP


_BIG: Final = 0xFF_FFC0  # the largest ring there is

ROWS: Final = (
    Row("argo-windowed-64B", Kind.WINDOWED, 64, 60_000, 4 * MIB, 64, HYPERVISED),
    Row("argo-windowed-256B", Kind.WINDOWED, 256, 50_000, 4 * MIB, 64, HYPERVISED),
    Row("argo-windowed-4KiB", Kind.WINDOWED, 4 * KIB, 30_000, 4 * MIB, 64, HYPERVISED),
    Row("argo-windowed-64KiB", Kind.WINDOWED, 64 * KIB, 6_000, 8 * MIB, 16, (*HYPERVISED, "memcpy")),
    Row("argo-windowed-1MiB", Kind.WINDOWED, MIB, 500, _BIG, 4, (*STREAMING, "memcpy")),
    Row("argo-inplace-1MiB", Kind.INPLACE, MIB, 500, _BIG, 4, (*STREAMING, "memcpy")),
    Row("argo-sync-64B", Kind.SYNC, 64, 3_000, MIB, 1, ONE_WAY),
    Row("argo-sync-256B", Kind.SYNC, 256, 3_000, MIB, 1, ONE_WAY),
    Row("argo-sync-4KiB", Kind.SYNC, 4 * KIB, 3_000, MIB, 1, ONE_WAY),
    Row("argo-sync-64KiB", Kind.SYNC, 64 * KIB, 1_500, MIB, 1, ONE_WAY),
    Row("argo-sync-1MiB", Kind.SYNC, MIB, 300, 8 * MIB, 1, ONE_WAY),
    Row("sendv-sync-64B", Kind.HYPERCALL, 64, 8_000, 4 * MIB, 1, ("zmq-dealer-router", "eventfd-pingpong")),
    Row("argo-rtt-64B", Kind.RTT, 64, 3_000, MIB, 1, ROUND_TRIP),
    Row("stream-4KiB", Kind.STREAM, 4 * KIB, 6_000, MIB, 1, ("zmq-proxy", "zmq-pair", "uds-seqpacket")),
    Row("stream-64KiB", Kind.STREAM, 64 * KIB, 2_000, MIB, 1, ("zmq-proxy", "zmq-pair", "uds-seqpacket")),
    Row("hv-cpu-64B", Kind.CPU, 64, 60_000, 4 * MIB, 64, ()),
    Row("remote-rtt-64B", Kind.REMOTE_RTT, 64, 1_500, MIB, 1, FAR),
    Row("remote-posted-64B", Kind.REMOTE_POSTED, 64, 20_000, 4 * MIB, 64, FAR),
    Row("remote-posted-64KiB", Kind.REMOTE_POSTED, 64 * KIB, 2_000, 8 * MIB, 16, FAR),
    Row("nested-rtt-64B", Kind.NESTED_RTT, 64, 1_500, MIB, 1, ()),
    Row("virtio-blk-4KiB-read", Kind.DISK_READS, 4 * KIB, 30_000, MIB, 16, STORAGE),
    Row("virtio-blk-64KiB-read", Kind.DISK_BYTES, 64 * KIB, 4_000, 4 * MIB, 16, STORAGE),
    Row("startup-50", Kind.STARTUP, 64, 50, 128 * KIB, 1, ()),
)
ROW_OF: Final = {row.name: row for row in ROWS}


class Bound(StrEnum):
    """Which side of a target is the right one."""

    AT_LEAST = "at least"
    AT_MOST = "at most"

    def met(self, found: float, wanted: float) -> bool:
        """Whether `found` is on the right side of `wanted`."""
        return found >= wanted if self is Bound.AT_LEAST else found <= wanted


class Target(NamedTuple):
    """What a row must reach, and what is aimed at.  `of` is a peer (the ratio counts) or a column of the row."""

    row: str
    of: str
    bound: Bound
    wanted: float
    aim: float | None = None


TARGETS: Final = (
    Target("argo-windowed-64B", "zmq-proxy", Bound.AT_LEAST, 0.8, 1.5),
    Target("argo-windowed-64B", "zmq-hv", Bound.AT_LEAST, 3.0, 5.0),
    Target("argo-windowed-64KiB", "zmq-proxy", Bound.AT_LEAST, 5.0),
    Target("argo-windowed-64KiB", "uds-seqpacket", Bound.AT_LEAST, 1.0),
    Target("argo-windowed-1MiB", "memcpy", Bound.AT_LEAST, 0.15),
    Target("argo-inplace-1MiB", "memcpy", Bound.AT_LEAST, 0.30),
    Target("sendv-sync-64B", "zmq-dealer-router", Bound.AT_MOST, 0.4),
    Target("hv-cpu-64B", "value", Bound.AT_MOST, 4.0),
    Target("remote-rtt-64B", "zmq-proxy-curve", Bound.AT_MOST, 3.0),
    Target("remote-posted-64B", "zmq-proxy-curve", Bound.AT_LEAST, 0.5),
    Target("remote-posted-64KiB", "zmq-proxy-curve", Bound.AT_LEAST, 0.5),
    Target("virtio-blk-4KiB-read", "qemu-nbd", Bound.AT_LEAST, 0.4),
    Target("startup-50", "value", Bound.AT_MOST, 3.0),
    Target("startup-50", "unique_mib", Bound.AT_MOST, 12.0),
)

NOT_FALLEN: Final = 0.9
"""Against another tree: the least median ratio (ours over theirs, as speeds) of a data-path row."""

WARM_SHARE: Final = 20
"""One message in so many is sent before the clock starts, in addition to `sends`."""
