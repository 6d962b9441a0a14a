"""The driver of a network device: frames out, frames in.

Source: VIRTIO 1.4, 5.1.  No offloads are accepted, so a frame that the device did not finish - a checksum to be
completed, a segment to be cut - is one that it must not send, and is dropped.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Final

from guest_node.virtio.drivers.negotiate import NegotiationFailed, Wants, negotiate, queues_of
from guest_node.virtio.drivers.placing import device_errors, place
from guest_node.virtio.drivers.receiving import Receiver
from guest_node.virtio.frontend import Buffer, Queue, Transport
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId
from hmx.virtio.net import (
    CONFIG_FIELDS,
    FEATURES,
    HEADER_SIZE,
    Gso,
    HeaderFlag,
    NetFeature,
    NetHeader,
    NetStatus,
    rx_least,
)

WANTS: Final = Wants(
    DeviceId.NET,
    required=feature_set(NetFeature.MAC),
    wanted=feature_set(NetFeature.MTU, NetFeature.MRG_RXBUF, NetFeature.STATUS),
    rows=FEATURES,
)
QUEUE_SIZE: Final = 128
BUFFERS: Final = 64
MTU: Final = 1500
FRAME_MIN: Final = 14
OVERHEAD: Final = 18  # of a frame beyond the MTU: addresses, type, VLAN tag
_HEADER: Final = NetHeader().pack()  # 5.1.6.2: num_buffers is 0 from a driver
_FIELDS: Final = {field.name: field for field in CONFIG_FIELDS}


class NetDevice:
    """`start` it, then send and receive.  Every method raises OSError."""

    def __init__(
        self, transport: Transport, *, buffers: int = BUFFERS, queue_size: int = QUEUE_SIZE, wants: Wants = WANTS
    ) -> None:
        self.features = 0
        self.mac = bytes(6)
        self.mtu = MTU
        self.malformed = 0
        """Buffers that came back with what no device may send."""
        self._transport = transport
        self._wants = wants
        self._buffers = buffers
        self._queue_size = queue_size
        self._transmit: Queue | None = None
        self._receiver: Receiver[bytes] | None = None
        self._parts: list[bytes] = []  # of a packet in several buffers
        self._missing = 0

    async def start(self) -> None:
        """Initialise the device; again after a reset, too."""
        self._transmit = self._receiver = None
        self._parts, self._missing = [], 0
        with device_errors():
            self.features, queues = await negotiate(self._transport, self._wants, self._setup)
        receive, self._transmit = queues
        size = max(rx_least(0), HEADER_SIZE + self.mtu + OVERHEAD)
        self._receiver = Receiver(receive, size, min(self._buffers, receive.size), self._take)
        await self._receiver.fill()

    async def send(self, frame: Buffer) -> None:
        """Send a frame from its destination address on; returns when it is on its way.  EMSGSIZE for its size."""
        queue = self._transmit
        if queue is None:
            raise OSError(errno.ENOTCONN, "the device is not started")
        if not FRAME_MIN <= len(frame) <= self.mtu + OVERHEAD:
            raise OSError(errno.EMSGSIZE, f"a frame of {len(frame)} bytes")
        with device_errors():
            answer = await place(queue, (_HEADER, bytes(frame)), 0)
            answer.add_done_callback(_seen)
            await queue.kick()

    async def receive(self) -> bytes:
        """The next frame.  Nothing is lost when this is cancelled."""
        if self._receiver is None:
            raise OSError(errno.ENOTCONN, "the device is not started")
        return await self._receiver.next()

    async def link_up(self) -> bool:
        """Whether there is a link now; always, where the device does not say."""
        if not has(self.features, NetFeature.STATUS):
            return True
        with device_errors():
            return bool(int.from_bytes(await self._field("status"), "little") & NetStatus.LINK_UP)

    def _take(self, data: bytes) -> tuple[bytes, ...]:
        """One buffer came back: the frame that is complete with it, if one is."""
        if self._missing:
            self._parts.append(data)
            self._missing -= 1
            if self._missing:
                return ()
            parts, self._parts = self._parts, []
            return self._checked(b"".join(parts))
        if len(data) < HEADER_SIZE:
            self.malformed += 1
            return ()
        header = NetHeader.unpack(data)
        several = header.num_buffers > 1 and has(self.features, NetFeature.MRG_RXBUF)
        wrong = (header.num_buffers != 1 and not several) or header.num_buffers > self._buffers
        if wrong or header.flags & HeaderFlag.NEEDS_CSUM or header.gso_type != Gso.NONE:
            self.malformed += 1
            return ()
        if several:
            self._parts, self._missing = [data[HEADER_SIZE:]], header.num_buffers - 1
            return ()
        return self._checked(data[HEADER_SIZE:])

    def _checked(self, frame: bytes) -> tuple[bytes, ...]:
        if FRAME_MIN <= len(frame) <= self.mtu + OVERHEAD:
            return (frame,)
        self.malformed += 1
        return ()

    async def _field(self, name: str) -> bytes:
        field = _FIELDS[name]
        data = await self._transport.read_config(field.offset, field.size)
        if len(data) != field.size:
            raise NegotiationFailed("setup", f"{len(data)} bytes of configuration where {name} has {field.size}")
        return data

    async def _setup(self, features: int) -> list[Queue]:
        self.mac = await self._field("mac")
        self.mtu = MTU
        if has(features, NetFeature.MTU):
            self.mtu = min(int.from_bytes(await self._field("mtu"), "little"), MTU)
        return await queues_of(self._transport, 2, self._queue_size)


def _seen(answer: asyncio.Future[bytes]) -> None:
    """A frame was taken, or its device broke, which the next call will say."""
    if not answer.cancelled():
        answer.exception()
