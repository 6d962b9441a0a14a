"""What drivers do to a queue that may be full, or whose device may be broken."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from guest_node.virtio.frontend import Buffer, DeviceBroken, Queue
from hmx.virtio.chain import QueueFull


@contextmanager
def device_errors() -> Iterator[None]:
    """A broken device is an input/output error to the programs above."""
    try:
        yield
    except DeviceBroken as broken:
        raise OSError(errno.EIO, str(broken) or "the device is broken") from broken


async def place(queue: Queue, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
    """Submit a chain, if need be after others have come back; what was submitted before is kicked then."""
    while True:
        try:
            return queue.submit(readable, writable)
        except QueueFull:
            await queue.kick()
            await queue.room()
