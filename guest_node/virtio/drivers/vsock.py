"""The driver of a socket device.

Source: VIRTIO 1.4, 5.10.  One task moves packets both ways.  What has to be said in answer - RST, credit - is queued
while the device takes no more, and only when much of it waits does the driver stop to receive (5.10.6.1): two sides
that each wait for the other to receive would wait for ever.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import Final

from guest_node.virtio.drivers.negotiate import NegotiationFailed, Wants, negotiate, queues_of
from guest_node.virtio.drivers.placing import device_errors
from guest_node.virtio.drivers.receiving import Receiver
from guest_node.virtio.frontend import Buffer, Queue, Transport
from guest_node.virtio.vsock_stack import BUFFER, PAYLOAD_MAX, VsockStack
from guest_node.virtio.vsock_streams import CONNECT_TIMEOUT, VsockListener, VsockSockets, VsockStream
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.layout import LayoutError
from hmx.virtio.vsock import (
    CONFIG_SIZE,
    EVENT,
    EVENT_SIZE,
    FEATURES,
    HEADER_SIZE,
    VsockConfig,
    VsockEvent,
    VsockFeature,
    VsockHeader,
    unpack_packet,
)

__all__ = ["VsockDevice", "VsockListener", "VsockStream"]

WANTS: Final = Wants(DeviceId.VSOCK, required=0, wanted=feature_set(VsockFeature.STREAM), rows=FEATURES)
QUEUE_SIZE: Final = 64
BUFFERS: Final = 32
EVENTS: Final = 4
OUT_MAX: Final = 64  # packets that wait for the device before a program has to
REPLIES_MAX: Final = 256  # ... before nothing more is received


class VsockDevice:
    """`start` it, then connect and listen.  Every method raises OSError."""

    def __init__(self, transport: Transport, *, buffer: int = BUFFER, wants: Wants = WANTS) -> None:
        self.features = 0
        self.malformed = 0
        """Packets of the device that are none."""
        self.stack = VsockStack(0, self._queue_packet, buffer)
        self.sockets = VsockSockets(self.stack, self._drained)
        self._transport = transport
        self._wants = wants
        self._out: deque[tuple[Buffer, ...]] = deque()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._transmit: Queue | None = None
        self._under_way = 0  # packets that the device has
        self._cid_changed = False

    @property
    def cid(self) -> int:
        """This guest's context id."""
        return self.stack.cid

    async def start(self) -> None:
        """Initialise the device; again after a reset, too: connections are gone then, listeners stay."""
        await self.close()
        with device_errors():
            self.features, queues = await negotiate(self._transport, self._wants, self._setup)
        receive, self._transmit, events = queues
        size, most = HEADER_SIZE + PAYLOAD_MAX, min(BUFFERS, receive.size)
        packets = Receiver[None](receive, size, most, self._packet, self._wake.set)
        news = Receiver[None](events, EVENT_SIZE, min(EVENTS, events.size), self._event, self._wake.set)
        await packets.fill()
        await news.fill()
        self._wake.set()
        self._task = asyncio.create_task(self._run(packets, news))

    async def close(self) -> None:
        """Stop; every connection is gone."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._out.clear()
        self._under_way = 0
        self.stack.fail(errno.ECONNRESET)
        self._out.clear()
        self._moved.set()

    async def connect(self, cid: int, port: int, timeout: float = CONNECT_TIMEOUT) -> VsockStream:
        """A stream to `port` of context `cid`.  ECONNREFUSED, ETIMEDOUT."""
        self._check()
        return await self.sockets.connect(cid, port, timeout)

    def listen(self, port: int) -> VsockListener:
        """Accept streams at `port`.  EADDRINUSE."""
        return self.sockets.listen(port)

    async def _run(self, packets: Receiver[None], news: Receiver[None]) -> None:
        """Move packets until the device breaks."""
        try:
            while not (packets.error or news.error):
                await self._wake.wait()
                self._wake.clear()
                if self._cid_changed:
                    self._cid_changed = False
                    self.stack.transport_reset(await self._read_cid())
                await self._flush()
                if len(self._out) < REPLIES_MAX:
                    await packets.fill()
                await news.fill()
        except OSError:
            pass  # the streams say so
        self.stack.fail(errno.EIO)
        self._out.clear()
        self._moved.set()

    async def _flush(self) -> None:
        """Give the device what waits for it, as far as there is room."""
        queue = self._transmit
        assert queue is not None
        placed = False
        with device_errors():
            while self._out:
                try:
                    answer = queue.submit(self._out[0], 0)
                except QueueFull:
                    if placed or self._under_way:
                        break  # what is under way wakes this task
                    await queue.room()
                    continue
                self._out.popleft()
                self._under_way += 1
                answer.add_done_callback(self._taken)
                placed = True
            if placed:
                await queue.kick()
        self._moved.set()

    def _queue_packet(self, header: VsockHeader, payload: bytes) -> None:
        self._out.append((header.pack(), payload) if payload else (header.pack(),))
        self._wake.set()

    async def _drained(self, _cid: int) -> None:
        while len(self._out) >= OUT_MAX:
            self._check()
            self._moved.clear()
            await self._moved.wait()

    def _check(self) -> None:
        if self._task is None or self._task.done():
            raise OSError(errno.ENOTCONN, "the device is not started, or broken")

    def _taken(self, answer: asyncio.Future[bytes]) -> None:
        self._under_way -= 1
        if not answer.cancelled():
            answer.exception()  # the receiver's buffers say it, too
        self._wake.set()

    def _packet(self, data: bytes) -> tuple[None, ...]:
        try:
            header, payload = unpack_packet(data)
        except LayoutError:
            self.malformed += 1
        else:
            self.stack.packet(header, bytes(payload))
        return ()

    def _event(self, data: bytes) -> tuple[None, ...]:
        if len(data) == EVENT_SIZE and EVENT.unpack(data)[0] == VsockEvent.TRANSPORT_RESET:
            self._cid_changed = True
        else:
            self.malformed += 1
        return ()

    async def _read_cid(self) -> int:
        with device_errors():
            data = await self._transport.read_config(0, CONFIG_SIZE)
        try:
            return VsockConfig.unpack(data).guest_cid
        except LayoutError as wrong:
            raise NegotiationFailed("setup", str(wrong)) from wrong

    async def _setup(self, _features: int) -> list[Queue]:
        self.stack.cid = await self._read_cid()
        return await queues_of(self._transport, 3, QUEUE_SIZE)
