"""Raw requests to a block device: chains of any cut, and what came back of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from guest_node.virtio.drivers.negotiate import Wants, negotiate
from hmx.virtio.blk import FEATURES, BlkFeature, pack_header
from hmx.virtio.features import feature_set
from hmx.virtio.ids import DeviceId
from tests.virtio_qemu.transport import MmioQueue, MmioTransport, run

LIKED = feature_set(BlkFeature.RO, BlkFeature.FLUSH, BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES, BlkFeature.MQ)


class Answer(NamedTuple):
    """What a device did with a request.  `status`: the last writable byte; `data`: all before it.

    `written`: what it says it has written, the status included.
    """

    status: int
    data: bytes
    written: int


class Disk:
    """A live block device with its first `queues` queues."""

    def __init__(
        self, transport: MmioTransport, avoid: int = 0, size: int = 16, queues: int = 1, liked: int = LIKED
    ) -> None:
        self.transport = transport
        wants = Wants(DeviceId.BLK, 0, liked, FEATURES, avoid)

        async def setup(features: int) -> list[MmioQueue]:
            return [await transport.setup_queue(index, size) for index in range(queues)]

        self.features, _ = run(transport, negotiate(transport, wants, setup))
        self.queues = [transport.queues[index] for index in range(queues)]

    def start(self, readable: Sequence[bytes], writable: Sequence[int], queue: int = 0) -> asyncio.Future[Answer]:
        """Add a chain of just these descriptors."""
        return self.queues[queue].submit_raw(readable, writable, _answer)

    async def ask(self, readable: Sequence[bytes], writable: Sequence[int], queue: int = 0) -> Answer:
        """One chain, and what came of it."""
        answer = self.start(readable, writable, queue)
        await self.queues[queue].kick()
        return await answer

    def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Answer:
        """One request in the usual cut."""
        return run(self.transport, self.ask(usual(kind, sector, data), [room, 1] if room else [1]))


def usual(kind: int, sector: int = 0, data: bytes = b"") -> list[bytes]:
    """Header and data, each a descriptor."""
    header = pack_header(kind, sector)
    return [header, data] if data else [header]


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The stream in pieces of these sizes."""
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


def _answer(writable: bytes, written: int) -> Answer:
    return Answer(writable[-1] if writable else -1, writable[:-1], written)
