"""A network device at a port of a switch.

Source: VIRTIO 1.4, 5.1.  One pair of queues, no offloads: a packet that asks for one was made against the rules and is
dropped.  Frames that come while the driver has no buffers are dropped, as a network card's are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from guest_node.virtio.models.switch import ADDRESS_SIZE, Frame, Switch
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId
from hmx.virtio.net import HEADER_SIZE, Gso, NetConfig, NetFeature, NetHeader, NetStatus

QUEUE_SIZE: Final = 256
RX, TX = 0, 1


@dataclass(slots=True)
class NetCounters:
    """What a device did not pass on."""

    malformed: int = 0  # chains without what they need: a header to send, room for one to receive
    offloads: int = 0  # packets that want what was not negotiated
    no_buffer: int = 0  # frames for a driver that had no room
    too_small: int = 0  # ... whose next buffer was too small
    link_down: int = 0  # frames either way


class NetModel(BaseModel):
    """One network device with the address `mac`, at its own port of `switch` from the start to `close`.

    `mergeable`: offer MRG_RXBUF.  `mtu`: 0 where nothing is said.  ValueError for a MAC that no station may have.
    """

    device_id: int = DeviceId.NET

    def __init__(
        self,
        switch: Switch,
        mac: bytes,
        *,
        name: str = "",
        mergeable: bool = True,
        mtu: int = 0,
        size: int = QUEUE_SIZE,
    ) -> None:
        super().__init__()
        if len(mac) != ADDRESS_SIZE or mac[0] & 1 or not any(mac):
            raise ValueError(f"{mac.hex(':')!r} is no address of a station")
        self.mac = mac
        self.features = feature_set(NetFeature.MAC, NetFeature.STATUS)
        if mergeable:
            self.features |= feature_set(NetFeature.MRG_RXBUF)
        if mtu:
            self.features |= feature_set(NetFeature.MTU)
        self.queue_sizes = (size, size)
        self.counters = NetCounters()
        self.port = switch.attach(name or mac.hex(":"), self._deliver)
        self._mtu = mtu
        self._up = True
        self._live = False
        self._merge = False
        self._buffers: deque[Request] = deque()

    def config(self) -> bytes:
        """All 28 bytes."""
        status = NetStatus.LINK_UP if self._up else 0
        return NetConfig(self.mac, status=status, max_virtqueue_pairs=1, mtu=self._mtu).pack()

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out; the driver is told."""
        if up != self._up:
            self._up = up
            if not up:
                self.port.flush()
            if self._live:
                self.on_config()

    def start(self, features: int) -> None:
        """The driver is live with these features."""
        self._live = True
        self._merge = has(features, NetFeature.MRG_RXBUF)

    def request(self, request: Request) -> None:
        """A buffer to receive into, or a packet to send."""
        if request.queue == TX:
            self._send(request.readable)
            request.complete()
        elif request.queue == RX and request.writable > HEADER_SIZE:
            self._buffers.append(request)
        else:
            self.counters.malformed += 1
            request.complete()

    def reset(self) -> None:
        """The driver is gone, and the addresses behind it."""
        self._live = False
        self._buffers.clear()
        self.port.flush()

    def close(self) -> None:
        """Leave the switch."""
        self.port.close()

    def _send(self, packet: bytes | memoryview) -> None:
        if len(packet) < HEADER_SIZE:
            self.counters.malformed += 1
            return
        header = NetHeader.unpack(packet)
        if header.flags or header.gso_type != Gso.NONE:
            self.counters.offloads += 1
        elif not self._up:
            self.counters.link_down += 1
        else:
            self.port.send(memoryview(packet)[HEADER_SIZE:])

    def _deliver(self, frame: Frame) -> bool:
        """A frame for the driver, from the switch."""
        if not self._live or not self._up:
            self.counters.link_down += 1
            return False
        wanted, count, room = HEADER_SIZE + len(frame), 0, 0
        for buffer in self._buffers:
            count += 1
            room += buffer.writable
            if room >= wanted or not self._merge:
                break
        if room < wanted:
            if count and not self._merge:
                self.counters.too_small += 1
            else:
                self.counters.no_buffer += 1
            return False
        # 5.1.6.4.1: num_buffers is 1 without MRG_RXBUF, and never more than the frame needs.
        packet = NetHeader(num_buffers=count).pack() + bytes(frame)
        for _ in range(count):
            buffer = self._buffers.popleft()
            buffer.complete(packet[: buffer.writable])
            packet = packet[buffer.writable :]
        return True
