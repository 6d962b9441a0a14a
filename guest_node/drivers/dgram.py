"""Datagram sockets over Argo, for asyncio programs.

Specification: the datagram half of OpenXT's Linux Argo driver: message type 0x6447724D (v4v has another,
guest_node/drivers/dialect.py), the payload is the user's bytes and nothing else.  Its rules are kept, the odd
ones too: a datagram's length is limited by the sender's own ring, and a connected socket drops what others
sent.  Messages stay in the ring until somebody receives, so a full ring holds senders up and loses nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from guest_node.drivers.closing import Closing
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dialect import ARGO_DGRAM
from guest_node.drivers.hypercall import Backoff, error, whole
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream_table import DEFAULT_RING_LEN
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import Buffer
from hmx.argo.consumer import RingCorrupt
from hmx.argo.ring import used_by
from hmx.argo.wakeups import Outcome
from hmx.errno import Errno

MESSAGE_TYPE_DGRAM: Final = ARGO_DGRAM
_OUTCOMES: Final = {
    Outcome.SUFFICIENT: 0,
    Outcome.GONE: Errno.ECONNREFUSED,
    Outcome.TOO_BIG: Errno.EMSGSIZE,
    Outcome.BUSY: Errno.EBUSY,
}


class Datagram(NamedTuple):
    """One datagram.  `size` is its full length, more than that of `payload` if the limit cut it."""

    payload: bytes
    source: Address
    size: int

    @property
    def truncated(self) -> bool:
        """Whether bytes were cut off; they are lost."""
        return self.size > len(self.payload)


class DatagramSocket(Closing):
    """A datagram socket; made by `datagram`.  Any number of tasks may send, one at a time may receive."""

    def __init__(self, driver: ArgoDriver, port: int, partner: int) -> None:
        """Made by `datagram`."""
        self.port = port
        self.partner = partner
        self._driver = driver
        self._ring: DriverRing | None = None
        self._peer: Address | None = None
        self._source: Address | None = None  # the peer as its messages name it
        self._type = driver.dialect.datagram
        self._reader: asyncio.Future[None] | None = None
        self._broken: BaseException | None = None

    @property
    def peer(self) -> Address | None:
        """The address connected to, None if unconnected."""
        return self._peer

    # -- for the sink ----

    def message_waits(self) -> None:
        """Something lies in the ring: whoever receives looks."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    # -- calls ----

    def connect(self, address: Address | None) -> None:
        """Send to `address`, and receive from nobody else; None undoes it.

        An implicit destination (domain DOMID_ANY, experimental) names nobody, so answers may come from anybody.
        """
        self._peer = address
        if address is None or address.domid == DOMID_ANY:
            self._source = None
        else:
            self._source = Address(address.port, self._driver.dialect.source(address.domid))

    async def send_to(self, data: Buffer, address: Address | None = None, *, wait: bool = True) -> int:
        """Send one datagram; its length.

        `address` must be given unless the socket is connected, and must not if it is.  Without `wait` a
        full ring raises BlockingIOError.  Raises OSError: ENOTCONN, EISCONN, EMSGSIZE (for our own ring, or
        the peer's), ECONNREFUSED, or what else the hypervisor answers.
        """
        ring = self._open_ring()
        to = self._destination(address)
        size = len(memoryview(data).cast("B"))
        if size > ring.memory.ring_len - 16:
            raise error(Errno.EMSGSIZE, f"datagram of {size} bytes")
        driver, backoff = self._driver, Backoff()
        while True:
            armed_since = driver.wakeups.generation
            result = await whole(driver.calls.sendv(to, self.port, (data,), self._type))
            if result >= 0:
                return result
            errno = -result
            if errno == Errno.EAGAIN and wait:
                errno = await self._wait_for_space(to, size, armed_since)
            if errno in (Errno.EBUSY, Errno.ENOMEM) and wait:
                await backoff.wait()
            elif errno:
                raise error(errno, f"datagram to port {to.port:#x} of domain {to.domid}")
            if self._broken is not None:
                raise self._broken

    async def _wait_for_space(self, to: Address, size: int, armed_since: int) -> int:
        space = self._driver.want_space(to, size, armed_since)
        try:
            return _OUTCOMES[await space]
        finally:
            self._driver.forget(space)

    def _destination(self, address: Address | None) -> Address:
        if self._peer is None:
            if address is None:
                raise error(Errno.ENOTCONN, "datagram without an address")
            return address
        if address is not None:
            raise error(Errno.EISCONN, "datagram with an address on a connected socket")
        return self._peer

    async def receive(self, limit: int = 1 << 24) -> Datagram:
        """The next datagram, cut to `limit` bytes."""
        ring = self._open_ring()
        if self._reader is not None:
            raise RuntimeError("another task is receiving from this socket")
        while True:
            datagram = self._take(ring, limit)
            if datagram is not None:
                return datagram
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
            self._open_ring()

    def receive_now(self, limit: int = 1 << 24) -> Datagram | None:
        """The next datagram if one is there."""
        return self._take(self._open_ring(), limit)

    def _take(self, ring: DriverRing, limit: int) -> Datagram | None:
        """The first message in the ring that is for this socket; others are dropped."""
        consumer = ring.consumer
        consumed = False
        found: Datagram | None = None
        rest = consumer.available()  # what comes meanwhile waits for the next look, so that a flood ends here
        try:
            while found is None and rest > 0:
                message = consumer.view()
                if message is None:
                    break
                rest -= used_by(len(message.first) + len(message.second))
                source = Address(message.source_port, message.source_domid)
                if message.message_type == self._type and self._source in (None, source):
                    first, second = message.first[:limit], message.second
                    payload = bytes(first)
                    if second and limit > len(payload):
                        payload += second[: limit - len(payload)]
                    found = Datagram(payload, source, len(message.first) + len(second))
                consumer.consume()
                consumed = True
        except RingCorrupt:
            consumer.recover()  # as the Linux driver does: everything unread is lost
            self._driver.rings.counters.corrupt += 1
            consumed = True
        if consumed:
            self._driver.consumed(ring)
        return found

    def _open_ring(self) -> DriverRing:
        if self._broken is not None:
            raise self._broken
        if self._ring is None:
            raise error(Errno.EBADF, "this socket is closed")
        return self._ring

    # -- opening and closing ----

    async def open(self, ring_len: int) -> None:
        """Register the ring; for `datagram`."""
        self._ring = await self._driver.rings.bind(self.port, self.partner, ring_len, _Sink(self))
        self._driver.open_sockets[self] = None

    async def close(self) -> None:
        """Unregister the ring; what was not received is lost.  Idempotent."""
        self._driver.open_sockets.pop(self, None)
        ring, self._ring = self._ring, None
        if ring is not None and self._broken is None:
            self.message_waits()
            await self._driver.rings.unbind(ring)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self._broken = cause
        self.message_waits()


class _Sink:
    """What stands behind a datagram ring: the messages stay there, the reader is told."""

    def __init__(self, socket: DatagramSocket) -> None:
        self._socket = socket

    def receive(self, *message: object) -> bool:  # noqa: ARG002  (whichever it is, the reader takes it)
        self._socket.message_waits()
        return False

    def lost(self, ring: DriverRing) -> None:
        pass  # datagrams may be lost

    def broken(self, cause: BaseException) -> None:
        self._socket.broken(cause)


async def datagram(
    driver: ArgoDriver, port: int = 0, *, partner: int = DOMID_ANY, ring_len: int = DEFAULT_RING_LEN
) -> DatagramSocket:
    """A datagram socket at `port` (0: an automatic one) that receives from `partner`, by default from
    everybody.

    Raises OSError: EADDRINUSE, EPERM (receiving from everybody needs the hypervisor's mac-permissive), or
    what else the hypervisor answers.
    """
    socket = DatagramSocket(driver, port or driver.rings.auto_port(), partner)
    await socket.open(ring_len)
    return socket
