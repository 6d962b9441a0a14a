"""Socket devices of one back end, connected with each other and with the host.

Source: VIRTIO 1.4, 5.10.  Packets go by their destination's CID: 2 is the back end itself, others are the guests
that it serves.  Packets for a guest that has no buffers wait here, outside the rings (5.10.6.1); a sender whose packets
would make too many wait is not read until the receiver has taken some.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import Final

from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from guest_node.virtio.vsock_stack import BUFFER, VsockStack
from guest_node.virtio.vsock_streams import VsockSockets
from hmx.virtio.features import feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.layout import LayoutError
from hmx.virtio.vsock import (
    EVENT,
    EVENT_SIZE,
    HEADER_SIZE,
    RX,
    TX,
    Cid,
    Op,
    SocketType,
    VsockConfig,
    VsockEvent,
    VsockFeature,
    VsockHeader,
    reset_for,
    unpack_packet,
)

QUEUE_SIZE: Final = 128
EVENT_QUEUE_SIZE: Final = 16
PENDING_MAX: Final = 1 << 20  # bytes that wait for one guest before its senders do
FLOWS_MAX: Final = 4096  # connections of one guest
RX_LEAST: Final = HEADER_SIZE + 1

Flow = tuple[int, int, int]
"""Own port, the peer's CID, the peer's port."""


class VsockHub:
    """What connects the socket devices of a back end.  `host`: the sockets of CID 2, for the back end's program."""

    def __init__(self, *, pending_max: int = PENDING_MAX, buffer: int = BUFFER) -> None:
        self.pending_max = pending_max
        self.models: dict[int, VsockModel] = {}
        self.stack = VsockStack(Cid.HOST, self._from_host, buffer)
        self.host = VsockSockets(self.stack, self._drained)
        self.room = asyncio.Event()
        """Set whenever some guest has taken packets."""

    def endpoint(self, cid: int) -> VsockModel:
        """A device for the guest `cid`.  EADDRINUSE while there is one; ValueError for a reserved CID."""
        if cid in self.models:
            raise OSError(errno.EADDRINUSE, f"context {cid} is taken")
        model = self.models[cid] = VsockModel(self, cid)
        return model

    def forward(self, header: VsockHeader, payload: bytes) -> VsockModel | None:
        """Pass a packet on; the model that has no room for it, if so, and nothing was done then."""
        if header.dst_cid == Cid.HOST:
            self.stack.packet(header, payload)
            return None
        target = self.models.get(header.dst_cid)
        if target is None or not target.live:
            self._refuse(header)
        elif header.op == Op.RST:
            # It ends a connection of the target or nothing: so many go through a full queue, and no more.
            if target.knows(header):
                target.take(header)
        elif target.full:
            return target
        elif not target.take(header, payload):
            self._refuse(header)
        return None

    def _refuse(self, header: VsockHeader) -> None:
        """RST in the name of whoever is not there."""
        answer = reset_for(header)
        if answer is None:
            return
        if answer.dst_cid == Cid.HOST:
            self.stack.packet(answer, b"")
        elif answer.dst_cid in self.models:
            self.models[answer.dst_cid].take(answer)

    def _from_host(self, header: VsockHeader, payload: bytes) -> None:
        target = self.models.get(header.dst_cid)
        if target is None or not target.live or not target.take(header, payload):
            self._refuse(header)

    async def _drained(self, cid: int) -> None:
        while (model := self.models.get(cid)) is not None and model.full:
            self.room.clear()
            await self.room.wait()


class VsockModel(BaseModel):
    """The device of one guest."""

    device_id: int = DeviceId.VSOCK

    def __init__(self, hub: VsockHub, cid: int) -> None:
        super().__init__()
        VsockConfig(cid).pack()
        self.cid = cid
        self.features = feature_set(VsockFeature.STREAM)
        self.queue_sizes = (QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE)
        self.live = False
        self.malformed = 0
        """Packets that are none, or in another's name, and buffers too small for one."""
        self._hub = hub
        self._buffers: deque[Request] = deque()
        self._events: deque[Request] = deque()
        self._reset_due = False
        self._pending: deque[tuple[VsockHeader, bytes]] = deque()
        self._pending_size = 0
        self._held: deque[Request] = deque()  # of this guest's, since a receiver is full
        self._senders: dict[int, VsockModel] = {}  # by CID: whose packets wait for room here
        self._flows: set[Flow] = set()

    def config(self) -> bytes:
        """All 8 bytes."""
        return VsockConfig(self.cid).pack()

    @property
    def full(self) -> bool:
        """Whether as much waits for this guest as may."""
        return self._pending_size >= self._hub.pending_max

    def start(self, features: int) -> None:
        """The driver is live; streams are all there is, whether it took STREAM or not (5.10.3.1)."""
        del features
        self.live = True

    def request(self, request: Request) -> None:
        """A buffer, or a packet to send."""
        if request.queue == TX:
            if self._held or not self._send(request):
                self._held.append(request)
            else:
                request.complete()
        elif request.queue == RX and request.writable >= RX_LEAST:
            self._buffers.append(request)
            self._pass_on()
        elif request.queue > TX and request.writable >= EVENT_SIZE:
            self._events.append(request)
            self._tell_reset()
        else:
            self.malformed += 1
            request.complete()

    def reset(self) -> None:
        """The driver is gone: its peers get RST."""
        self.live = False
        self._buffers.clear()
        self._events.clear()
        self._held.clear()
        self._pending.clear()
        self._pending_size = 0
        self._reset_due = False
        self._break_flows()
        self._release()

    def close(self) -> None:
        """The device is gone for good."""
        self.reset()
        if self._hub.models.get(self.cid) is self:
            del self._hub.models[self.cid]

    def transport_reset(self, cid: int | None = None) -> None:
        """As after a migration: every connection dies, and the guest reads its CID again.  EADDRINUSE."""
        if cid is not None and cid != self.cid:
            VsockConfig(cid).pack()
            if cid in self._hub.models:
                raise OSError(errno.EADDRINUSE, f"context {cid} is taken")
        self._break_flows()
        self._pending.clear()
        self._pending_size = 0
        if cid is not None and cid != self.cid:
            del self._hub.models[self.cid]
            self._hub.models[cid] = self
            self.cid = cid
        self._release()
        if self.live:
            self._reset_due = True
            self._tell_reset()

    def take(self, header: VsockHeader, payload: bytes = b"") -> bool:
        """A packet for the guest, which waits while there are no buffers.  False: one connection more than may be."""
        if not self._note(header.op, (header.dst_port, header.src_cid, header.src_port)):
            return False
        self._pending.append((header, payload))
        self._pending_size += HEADER_SIZE + len(payload)
        self._pass_on()
        return True

    def knows(self, header: VsockHeader) -> bool:
        """Whether a packet for the guest belongs to a connection."""
        return (header.dst_port, header.src_cid, header.src_port) in self._flows

    def resume(self) -> None:
        """A receiver that was full has room."""
        while self._held and self._send(self._held[0]):
            self._held.popleft().complete()

    def _send(self, request: Request) -> bool:
        """Whether the guest's packet has gone, somewhere or nowhere."""
        if self.full:
            return self._wait_for(self)  # its answers could make more wait than may
        try:
            header, payload = unpack_packet(request.readable)
        except LayoutError:
            self.malformed += 1
            return True
        if header.src_cid != self.cid:
            self.malformed += 1
            return True
        flow = (header.src_port, header.dst_cid, header.dst_port)
        if header.dst_cid == self.cid or not self._note(header.op, flow):
            answer = reset_for(header)
            if answer is not None:
                self.take(answer)
            return True
        target = self._hub.forward(header, bytes(payload))
        return target is None or self._wait_for(target)

    def _note(self, op: int, flow: Flow) -> bool:
        """Keep in mind who is connected."""
        if op == Op.RST:
            self._flows.discard(flow)
        elif op == Op.REQUEST and flow not in self._flows:
            if len(self._flows) >= FLOWS_MAX:
                return False
            self._flows.add(flow)
        return True

    def _wait_for(self, target: VsockModel) -> bool:
        target._senders[self.cid] = self
        return False

    def _pass_on(self) -> None:
        while self._pending and self._buffers:
            header, payload = self._pending.popleft()
            buffer = self._buffers.popleft()
            room = buffer.writable - HEADER_SIZE
            part, rest = payload[:room], payload[room:]
            if rest:
                # A stream has no boundaries: what the buffer does not hold goes as another packet (5.10.6.4).
                self._pending.appendleft((header._replace(len=len(rest)), rest))
                header = header._replace(len=len(part))
                self._pending_size -= len(part)
            else:
                self._pending_size -= HEADER_SIZE + len(part)
            buffer.complete(header.pack() + part)
        self._release()

    def _release(self) -> None:
        self._hub.room.set()
        if self._senders and self._pending_size <= self._hub.pending_max // 2:
            senders, self._senders = self._senders, {}
            for sender in senders.values():
                sender.resume()

    def _break_flows(self) -> None:
        flows, self._flows = self._flows, set()
        for port, cid, peer_port in flows:
            rst = VsockHeader(self.cid, cid, port, peer_port, 0, SocketType.STREAM, Op.RST)
            self._hub.forward(rst, b"")

    def _tell_reset(self) -> None:
        if self._reset_due and self._events:
            self._reset_due = False
            self._events.popleft().complete(EVENT.pack(VsockEvent.TRANSPORT_RESET))
