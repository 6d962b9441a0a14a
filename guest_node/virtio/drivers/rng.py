"""The driver of an entropy device.

Source: VIRTIO 1.4, 5.4.
"""

from __future__ import annotations

import errno
from typing import Final

from guest_node.virtio.drivers.negotiate import Wants, negotiate, queues_of
from guest_node.virtio.drivers.placing import device_errors, place
from guest_node.virtio.frontend import Queue, Transport
from hmx.virtio.ids import DeviceId

WANTS: Final = Wants(DeviceId.RNG, required=0, wanted=0, rows=())
QUEUE_SIZE: Final = 16
READ_MAX: Final = 1 << 12  # bytes asked for at once


class RngDevice:
    """`start` it, then `read`."""

    def __init__(self, transport: Transport, wants: Wants = WANTS) -> None:
        self.features = 0
        self._transport = transport
        self._wants = wants
        self._queue: Queue | None = None

    async def start(self) -> None:
        """Initialise the device; again after a reset, too.  Raises OSError."""
        self._queue = None
        self.features, (self._queue,) = await negotiate(self._transport, self._wants, self._setup)

    async def read(self, size: int) -> bytes:
        """`size` random bytes, in as many requests as the device wants.  Raises OSError."""
        queue = self._queue
        if queue is None:
            raise OSError(errno.ENOTCONN, "the device is not started")
        parts: list[bytes] = []
        while size > 0:
            with device_errors():
                answer = await place(queue, (), min(size, READ_MAX))
                await queue.kick()
                part = await answer
            if not part or len(part) > size:
                raise OSError(errno.EIO, f"the device gave {len(part)} bytes where 1 to {size} were asked for")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    async def _setup(self, _features: int) -> list[Queue]:
        return await queues_of(self._transport, 1, QUEUE_SIZE)
