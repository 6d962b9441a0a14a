"""A block device over a store.

Source: VIRTIO 1.4, 5.2.  What requests look like and which of them are refused by their shape alone is in
hmx/virtio/blk.py; here is what they do.  Writes are stable when they are answered, unless the driver took FLUSH and
left the write-back cache on (5.2.6.2).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from guest_node.virtio.models.store import Store
from hmx.virtio.blk import (
    ID_SIZE,
    SECTOR,
    WRITEBACK_OFFSET,
    BlkConfig,
    BlkFeature,
    BlkStatus,
    BlkType,
    refusal,
    segment_refusal,
    unpack_header,
    unpack_segments,
)
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId
from hmx.virtio.layout import LayoutError

QUEUE_SIZE: Final = 128
WRITABLE_MAX: Final = 16 << 20  # bytes of one answer: what no honest request exceeds
HEADER_SIZE: Final = 16
_STATUS: Final = {status: bytes((status,)) for status in BlkStatus}
_OK: Final = _STATUS[BlkStatus.OK]


class Refused(Exception):
    """A request that ends with this status."""

    def __init__(self, status: BlkStatus) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True, slots=True)
class BlkOptions:
    """What a disk is to be.  ValueError for what no disk can be.

    `identity`: at most 20 bytes.  `block_size` in bytes.  `size_max`, `seg_max`: 0 where nothing is said to the driver.
    `flush`: offer FLUSH and a switch for the cache; without, every write is stable when it is answered.
    `segment_sectors`: the most sectors of one segment of DISCARD and WRITE_ZEROES; `segments`: of one such request.
    """

    identity: bytes = b""
    read_only: bool = False
    queues: int = 1
    queue_size: int = QUEUE_SIZE
    block_size: int = SECTOR
    size_max: int = 0
    seg_max: int = 0
    flush: bool = True
    discard: bool = True
    write_zeroes: bool = True
    segment_sectors: int = 1 << 15
    segments: int = 16

    def __post_init__(self) -> None:
        if len(self.identity) > ID_SIZE:
            raise ValueError(f"an identity has at most {ID_SIZE} bytes, not {len(self.identity)}")
        if self.queues < 1 or self.block_size < SECTOR or self.block_size & (self.block_size - 1):
            raise ValueError("a disk has at least one queue, and a power of two from 512 on as its block size")

    def features(self) -> int:
        """What is offered."""
        rows = (
            (BlkFeature.SIZE_MAX, self.size_max > 0),
            (BlkFeature.SEG_MAX, self.seg_max > 0),
            (BlkFeature.RO, self.read_only),
            (BlkFeature.BLK_SIZE, True),
            (BlkFeature.FLUSH, self.flush),
            (BlkFeature.CONFIG_WCE, self.flush),
            (BlkFeature.MQ, self.queues > 1),
            (BlkFeature.DISCARD, self.discard and not self.read_only),
            (BlkFeature.WRITE_ZEROES, self.write_zeroes and not self.read_only),
        )
        return feature_set(*(bit for bit, offered in rows if offered))


class BlkModel(BaseModel):
    """One block device.  `store`: usually a WriteBackCache, which the models of several front ends may share."""

    device_id: int = DeviceId.BLK

    def __init__(self, store: Store, options: BlkOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or BlkOptions()
        self.features = options.features()
        self.queue_sizes = (options.queue_size,) * options.queues
        self.capacity = store.size // SECTOR
        """In sectors of 512 bytes."""
        self.counts: Counter[str] = Counter()
        """Requests by how they ended: names of BlkStatus, and "no room for a status"; flushes that failed in "reset"
        and "cache mode".
        """
        self._store = store
        self._negotiated = 0
        self._writeback = True
        self._through = True  # each change is flushed before its answer

    def config(self) -> bytes:
        """All 96 bytes."""
        options = self.options
        ranges = options.segment_sectors, options.segments
        return BlkConfig(
            capacity=self.capacity,
            size_max=options.size_max,
            seg_max=options.seg_max,
            blk_size=options.block_size,
            writeback=int(self._writeback),
            num_queues=options.queues,
            max_discard_sectors=ranges[0] * options.discard,
            max_discard_seg=ranges[1] * options.discard,
            discard_sector_alignment=options.block_size // SECTOR * options.discard,
            max_write_zeroes_sectors=ranges[0] * options.write_zeroes,
            max_write_zeroes_seg=ranges[1] * options.write_zeroes,
            write_zeroes_may_unmap=int(options.write_zeroes),
        ).pack()

    def write_config(self, offset: int, data: bytes) -> bool:
        """Only the cache mode may be written, and only with CONFIG_WCE (5.2.5.1)."""
        switchable = has(self._negotiated, BlkFeature.CONFIG_WCE)
        if not switchable or offset != WRITEBACK_OFFSET or len(data) != 1 or data[0] > 1:
            return False
        if not data[0]:
            try:
                self._store.flush()
            except OSError:
                self.counts["cache mode"] += 1
                return False
        self._set_mode(bool(data[0]))
        return True

    def start(self, features: int) -> None:
        """The driver is live with these features."""
        self._negotiated = features | (feature_set(BlkFeature.RO) if self.options.read_only else 0)
        self._set_mode(has(features, BlkFeature.FLUSH))

    def reset(self) -> None:
        """The driver is gone: what it wrote goes to the store.  An error there stays one for the next FLUSH."""
        self._negotiated = 0
        self._set_mode(True)
        try:
            self._store.flush()
        except OSError:
            self.counts["reset"] += 1

    def request(self, request: Request) -> None:
        """Carry out one request, and complete it before returning."""
        room = request.writable - 1
        if not 0 <= room < WRITABLE_MAX:
            # Without a place for the status, or with so many bytes before it that writing them would be an attack.
            self.counts["no room for a status"] += 1
            request.complete()
            return
        try:
            answer = self._execute(request.readable, room)
            status = BlkStatus.OK
        except Refused as refused:
            answer, status = b"", refused.status
        except (OSError, LayoutError):
            answer, status = b"", BlkStatus.IOERR
        self.counts[status.name] += 1
        # The status is the last writable byte: what lies before it has to be written, too.
        request.complete((answer if len(answer) == room else answer.ljust(room, b"\0")) + _STATUS[status])

    def _execute(self, readable: bytes | memoryview, room: int) -> bytes:
        """What the driver gets, at most `room` bytes.  Raises Refused, LayoutError, OSError."""
        header = unpack_header(readable)
        size = len(readable) - HEADER_SIZE
        wrong = refusal(header, size, room, self._negotiated)
        if wrong is not None:
            raise Refused(wrong)
        match header.type:
            case BlkType.IN:
                answer = self._store.pread(self._place(header.sector, room), room)
                if len(answer) != room:
                    raise Refused(BlkStatus.IOERR)  # the store is shorter than it was
                return answer
            case BlkType.OUT:
                self._store.pwrite(self._place(header.sector, size), memoryview(readable)[HEADER_SIZE:])
            case BlkType.FLUSH:
                self._store.flush()
                return b""
            case BlkType.GET_ID:
                return self.options.identity.ljust(ID_SIZE, b"\0")
            case BlkType.DISCARD | BlkType.WRITE_ZEROES:
                self._ranges(header.type, memoryview(readable)[HEADER_SIZE:])
            case _:
                raise Refused(BlkStatus.UNSUPP)
        if self._through:
            self._store.flush()
        return b""

    def _place(self, sector: int, size: int) -> int:
        """The offset of `size` bytes from `sector` on, which the disk has."""
        if sector + size // SECTOR > self.capacity:
            raise Refused(BlkStatus.IOERR)
        return sector * SECTOR

    def _ranges(self, kind: int, data: memoryview) -> None:
        """Discard or zero the segments of a request; nothing happens before all of them are known to be good."""
        segments = unpack_segments(data)
        for segment in segments:
            wrong = segment_refusal(kind, segment)
            if wrong is not None:
                raise Refused(wrong)
        most = self.options.segment_sectors
        if len(segments) > self.options.segments or any(segment.num_sectors > most for segment in segments):
            raise Refused(BlkStatus.IOERR)
        sizes = [segment.num_sectors * SECTOR for segment in segments]
        places = [self._place(segment.sector, size) for segment, size in zip(segments, sizes, strict=True)]
        change = self._store.punch if kind == BlkType.DISCARD else self._store.zero
        for offset, size in zip(places, sizes, strict=True):
            if size:
                change(offset, size)

    def _set_mode(self, writeback: bool) -> None:
        self._writeback = writeback
        self._through = not (writeback and has(self._negotiated, BlkFeature.FLUSH))
