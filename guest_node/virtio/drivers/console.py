"""The driver of a console: port 0, bytes out and bytes in.

Source: VIRTIO 1.4, 5.3.  MULTIPORT is not accepted.
"""

from __future__ import annotations

import errno
from typing import Final

from guest_node.virtio.drivers.negotiate import Wants, negotiate, queues_of
from guest_node.virtio.drivers.placing import device_errors, place
from guest_node.virtio.drivers.receiving import Receiver
from guest_node.virtio.frontend import Buffer, Queue, Transport
from hmx.virtio.console import EMERG_WR_OFFSET, FEATURES, ConsoleConfig, ConsoleFeature
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId

WANTS: Final = Wants(
    DeviceId.CONSOLE,
    required=0,
    wanted=feature_set(ConsoleFeature.SIZE, ConsoleFeature.EMERG_WRITE),
    rows=FEATURES,
)
QUEUE_SIZE: Final = 32
BUFFERS: Final = 16
BUFFER_SIZE: Final = 1024
WRITE_MAX: Final = 4096  # bytes of one request


class ConsoleDevice:
    """`start` it, then read and write.  Every method raises OSError."""

    def __init__(self, transport: Transport, *, wants: Wants = WANTS) -> None:
        self.features = 0
        self._transport = transport
        self._wants = wants
        self._transmit: Queue | None = None
        self._receiver: Receiver[bytes] | None = None

    async def start(self) -> None:
        """Initialise the device; again after a reset, too."""
        self._transmit = self._receiver = None
        with device_errors():
            self.features, queues = await negotiate(self._transport, self._wants, self._setup)
        receive, self._transmit = queues
        self._receiver = Receiver(receive, BUFFER_SIZE, min(BUFFERS, receive.size), _some)
        await self._receiver.fill()

    async def write(self, data: Buffer) -> None:
        """Write bytes; returns when the device has taken them."""
        queue = self._transmit
        if queue is None:
            raise OSError(errno.ENOTCONN, "the device is not started")
        view = bytes(data)
        with device_errors():
            answers = [
                await place(queue, (view[at : at + WRITE_MAX],), 0) for at in range(0, len(view), WRITE_MAX)
            ]
            await queue.kick()
            for answer in answers:
                await answer

    async def read(self) -> bytes:
        """Some bytes, at least one.  Nothing is lost when this is cancelled."""
        if self._receiver is None:
            raise OSError(errno.ENOTCONN, "the device is not started")
        return await self._receiver.next()

    async def size(self) -> tuple[int, int] | None:
        """Columns and rows now; None where the device does not say."""
        if not has(self.features, ConsoleFeature.SIZE):
            return None
        with device_errors():
            config = ConsoleConfig.unpack(await self._transport.read_config(0, 4))
        return config.cols, config.rows

    async def emergency_write(self, character: int) -> None:
        """Print one byte without any queue."""
        if not has(self.features, ConsoleFeature.EMERG_WRITE):
            raise OSError(errno.EOPNOTSUPP, "the device has no emergency write")
        with device_errors():
            await self._transport.write_config(EMERG_WR_OFFSET, character.to_bytes(4, "little"))

    async def _setup(self, _features: int) -> list[Queue]:
        return await queues_of(self._transport, 2, QUEUE_SIZE)


def _some(data: bytes) -> tuple[bytes, ...]:
    return (data,) if data else ()
