"""The driver of a block device.

Source: VIRTIO 1.4, 5.2.  Sectors are 512 bytes, whatever the block size.  A request that is larger than the device
takes goes as several.  Nothing that the device says is believed without a look: an answer of another length than was
asked for is an input/output error.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Generator, Sequence
from typing import Any, Final

from guest_node.virtio.drivers.negotiate import NegotiationFailed, Wants, negotiate, queues_of
from guest_node.virtio.drivers.placing import device_errors, place
from guest_node.virtio.frontend import Buffer, DeviceBroken, Queue, Transport
from hmx.virtio.blk import (
    CONFIG_FIELDS,
    FEATURES,
    ID_SIZE,
    REQUEST_HEADER,
    SECTOR,
    SEGMENT,
    WRITEBACK_OFFSET,
    BlkFeature,
    BlkStatus,
    BlkType,
    SegmentFlag,
)
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId

QUEUES: Final = 8  # what is used of a device that has more
QUEUE_SIZE: Final = 128
REQUEST_MAX: Final = 1 << 17  # data bytes of one request

WANTS: Final = Wants(
    DeviceId.BLK,
    required=0,
    wanted=feature_set(
        BlkFeature.SIZE_MAX,
        BlkFeature.SEG_MAX,
        BlkFeature.RO,
        BlkFeature.BLK_SIZE,
        BlkFeature.FLUSH,
        BlkFeature.CONFIG_WCE,
        BlkFeature.MQ,
        BlkFeature.DISCARD,
        BlkFeature.WRITE_ZEROES,
    ),
    rows=FEATURES,
)
_FIELDS: Final = {field.name: field for field in CONFIG_FIELDS}
_ERRNO: Final[dict[int, int]] = {BlkStatus.IOERR: errno.EIO, BlkStatus.UNSUPP: errno.EOPNOTSUPP}
_WRITABLE_ID: Final = ID_SIZE + 1
_OK: Final = int(BlkStatus.OK)


class Pending:
    """A request under way.  Awaiting it gives what was read (b"" for what reads nothing), or raises OSError."""

    __slots__ = ("_answers",)

    def __init__(self, answers: list[tuple[asyncio.Future[bytes], int]]) -> None:
        self._answers = answers  # each with the length that its answer must have

    def __await__(self) -> Generator[Any, None, bytes]:
        parts: list[bytes] = []
        error: OSError | None = None
        # All of them, also after an error: until then the device may still read what is to be written.
        for future, size in self._answers:
            try:
                parts.append(_checked((yield from future), size))
            except OSError as failed:
                error = error or failed
        if isinstance(error, DeviceBroken):
            raise OSError(errno.EIO, str(error) or "the device is broken") from error
        if error is not None:
            raise error
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _checked(answer: bytes, size: int) -> bytes:
    """An answer without its status.  Raises OSError."""
    if len(answer) != size:
        raise OSError(errno.EIO, f"the device wrote {len(answer)} bytes of an answer of {size}")
    status = answer[-1]
    if status != _OK:
        raise OSError(_ERRNO.get(status, errno.EIO), f"the device answered with status {status}")
    return answer[:-1]


class BlkDevice:
    """`start` it, then read and write.

    Each operation is there in two forms: `read` waits for its answer; `submit_read` only places the request, which
    `kick` sends off with all others, and its Pending is awaited later.  Every method raises OSError: EIO for an answer
    that is an error or none, EOPNOTSUPP for what the device does not do, EROFS, EINVAL for sectors that it has not.
    """

    def __init__(
        self,
        transport: Transport,
        queues: int = QUEUES,
        *,
        queue_size: int = QUEUE_SIZE,
        request_max: int = REQUEST_MAX,
        wants: Wants = WANTS,
    ) -> None:
        self.features = 0
        self.capacity = 0
        """In sectors of 512 bytes."""
        self.block_size = SECTOR
        self._transport = transport
        self._wants = wants
        self._most_queues = queues
        self._queue_size = queue_size
        self._request_max = max(request_max, SECTOR) // SECTOR * SECTOR
        self._sectors = self._request_max // SECTOR  # of one request
        self._ranges: dict[BlkType, tuple[int, int]] = {}  # the most sectors of a segment, and segments
        self._queues: tuple[Queue, ...] = ()
        self._turn = 0
        self._placed: set[int] = set()  # queues that wait for a kick

    async def start(self) -> None:
        """Initialise the device; again after a reset, too."""
        self._queues = ()
        self._placed.clear()
        with device_errors():
            self.features, self._queues = await negotiate(self._transport, self._wants, self._setup)

    async def refresh(self) -> int:
        """Read the capacity again, after the device said that its configuration changed; it is returned."""
        with device_errors():
            self.capacity = await self._field("capacity")
        return self.capacity

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written."""
        return has(self.features, BlkFeature.RO)

    @property
    def queues(self) -> int:
        """How many are in use."""
        return len(self._queues)

    async def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on."""
        return await self._now(await self.submit_read(sector, count))

    async def write(self, sector: int, data: Buffer) -> None:
        """Write whole sectors."""
        await self._now(await self.submit_write(sector, data))

    async def flush(self) -> None:
        """Return when everything whose write was answered before is on stable storage."""
        await self._now(await self.submit_flush())

    async def discard(self, sector: int, count: int) -> None:
        """Say that nobody needs these sectors; what they hold is undefined then."""
        await self._now(await self._submit_ranges(BlkType.DISCARD, sector, count, 0))

    async def write_zeroes(self, sector: int, count: int, unmap: bool = False) -> None:
        """Zero sectors; `unmap`: their storage may be given back."""
        flags = SegmentFlag.UNMAP if unmap else 0
        await self._now(await self._submit_ranges(BlkType.WRITE_ZEROES, sector, count, flags))

    async def identity(self) -> bytes:
        """The device's name, at most 20 bytes."""
        request = await self._place((self._header(BlkType.GET_ID, 0),), _WRITABLE_ID)
        return (await self._now(Pending([request]))).split(b"\0")[0]

    async def set_writeback(self, on: bool) -> None:
        """Switch the device's write-back cache; off, every write is stable when it returns."""
        if not has(self.features, BlkFeature.CONFIG_WCE):
            raise OSError(errno.EOPNOTSUPP, "the device has no switch for its cache")
        with device_errors():
            if not await self._transport.write_config(WRITEBACK_OFFSET, bytes((on,))):
                raise OSError(errno.EIO, "the device refused another cache mode")

    async def submit_read(self, sector: int, count: int) -> Pending:
        """Place a read of `count` sectors."""
        self._check(sector, count)
        step = self._sectors
        if count <= step:
            return Pending([await self._place((self._header(BlkType.IN, sector),), count * SECTOR + 1)])
        requests = []
        for at in range(0, count, step):
            header = self._header(BlkType.IN, sector + at)
            requests.append(await self._place((header,), min(step, count - at) * SECTOR + 1))
        return Pending(requests)

    async def submit_write(self, sector: int, data: Buffer) -> Pending:
        """Place a write.  `data` stays as it is until the answer is there."""
        if len(data) % SECTOR:
            raise OSError(errno.EINVAL, f"{len(data)} bytes are not whole sectors")
        self._check(sector, len(data) // SECTOR)
        self._check_writable()
        step = self._sectors * SECTOR
        if len(data) <= step:
            return Pending([await self._place((self._header(BlkType.OUT, sector), data), 1)])
        view = memoryview(data)
        requests = []
        for at in range(0, len(data), step):
            header = self._header(BlkType.OUT, sector + at // SECTOR)
            requests.append(await self._place((header, view[at : at + step]), 1))
        return Pending(requests)

    async def submit_flush(self) -> Pending:
        """Place a flush; without the feature there is nothing to flush."""
        if not has(self.features, BlkFeature.FLUSH):
            return Pending([])
        return Pending([await self._place((self._header(BlkType.FLUSH, 0),), 1)])

    async def kick(self) -> None:
        """Send off what was placed."""
        with device_errors():
            while self._placed:
                await self._queues[self._placed.pop()].kick()

    async def _now(self, pending: Pending) -> bytes:
        await self.kick()
        return await pending

    async def _submit_ranges(self, kind: BlkType, sector: int, count: int, flags: int) -> Pending:
        self._check(sector, count)
        self._check_writable()
        if kind not in self._ranges:
            raise OSError(errno.EOPNOTSUPP, f"the device does not do {kind.name}")
        sectors, at_once = self._ranges[kind]
        end = sector + count
        segments = [SEGMENT.pack(at, min(sectors, end - at), flags) for at in range(sector, end, sectors)]
        requests = []
        for at in range(0, len(segments), at_once):
            header = self._header(kind, 0)
            requests.append(await self._place((header, b"".join(segments[at : at + at_once])), 1))
        return Pending(requests)

    async def _place(self, readable: Sequence[Buffer], writable: int) -> tuple[asyncio.Future[bytes], int]:
        if not self._queues:
            raise OSError(errno.ENOTCONN, "the device is not started")
        index = self._turn
        self._turn = (index + 1) % len(self._queues)
        queue = self._queues[index]
        try:
            future = queue.submit(readable, writable)
        except (DeviceBroken, QueueFull):
            with device_errors():
                future = await place(queue, readable, writable)
        self._placed.add(index)
        return future, writable

    @staticmethod
    def _header(kind: BlkType, sector: int) -> bytes:
        return REQUEST_HEADER.pack(kind, 0, sector)

    def _check(self, sector: int, count: int) -> None:
        if sector < 0 or count < 1 or sector + count > self.capacity:
            raise OSError(errno.EINVAL, f"{count} sectors from {sector} on, of {self.capacity}")

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "a read-only device")

    async def _field(self, name: str) -> int:
        field = _FIELDS[name]
        data = await self._transport.read_config(field.offset, field.size)
        if len(data) != field.size:
            raise NegotiationFailed("setup", f"{len(data)} bytes of configuration where {name} has {field.size}")
        return int.from_bytes(data, "little")

    async def _setup(self, features: int) -> list[Queue]:
        self.capacity = await self._field("capacity")
        if has(features, BlkFeature.BLK_SIZE):
            self.block_size = await self._field("blk_size")
        most = self._request_max
        if has(features, BlkFeature.SIZE_MAX):
            # The data of one request go as one segment, so that the transport need not cut anything.
            most = min(most, await self._field("size_max"))
            if most < SECTOR:
                raise NegotiationFailed("setup", f"segments of {most} bytes hold no sector")
        self._sectors = most // SECTOR
        self._ranges = {}
        for kind, bit, name in _RANGES:
            if has(features, bit):
                limits = await self._field(f"max_{name}_sectors"), await self._field(f"max_{name}_seg")
                if min(limits) < 1:
                    raise NegotiationFailed("setup", f"{kind.name} of {limits[1]} segments of {limits[0]} sectors")
                self._ranges[kind] = limits[0], min(limits[1], most // SEGMENT.size)
        count = await self._field("num_queues") if has(features, BlkFeature.MQ) else 1
        if count < 1:
            raise NegotiationFailed("setup", "a device without queues")
        self._turn = 0
        return await queues_of(self._transport, min(count, self._most_queues), self._queue_size)


_RANGES: Final = (
    (BlkType.DISCARD, BlkFeature.DISCARD, "discard"),
    (BlkType.WRITE_ZEROES, BlkFeature.WRITE_ZEROES, "write_zeroes"),
)
