"""The rings a guest owns: memory, registration, ports, and the pass that hands their messages over.

Specification: OpenXT's Linux Argo driver (ring registration, automatic ports, rx pass) over Xen's
register_ring and unregister_ring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from guest_node.drivers.dialect import ARGO, Dialect
from guest_node.drivers.hypercall import error, whole
from hmx.argo.abi import DOMID_ANY
from hmx.argo.calls import ArgoCalls, RingMemory
from hmx.argo.consumer import Consumer, RingCorrupt
from hmx.argo.ring import used_by
from hmx.errno import Errno

AUTO_PORT_BASE: Final = 0x8000_0000
AUTO_PORT_TOP: Final = 0xF000_0000
AUTO_PORT_FOLD: Final = 0x1000_0000
AUTO_PORT_NONE: Final = 0xFFFF_FFFF


class RingSink(Protocol):
    """What stands behind a ring.  All three are called by the driver and must not wait."""

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message; the view is valid during the call.

        False leaves the message in the ring and ends the pass there, until the ring is resumed.
        """

    def lost(self, ring: DriverRing) -> None:
        """The ring held nonsense; all that was unread in it has been dropped."""

    def broken(self, cause: BaseException) -> None:
        """The driver ended: nothing will come any more, and whoever waits is to be told `cause`."""


class Randomness(Protocol):
    """The part of `random.Random` that the drivers use."""

    def getrandbits(self, k: int, /) -> int:
        """An integer of `k` random bits."""


class DriverRing:
    """A registered ring: its memory, its reader, and who gets its messages."""

    __slots__ = ("consumer", "held", "largest", "memory", "partner", "peer_only", "port", "sink")

    def __init__(
        self,
        memory: RingMemory,
        port: int,
        partner: int,
        sink: RingSink,
        peer_only: bool,
        consumer: Consumer,
        largest: int = 0,
    ) -> None:
        self.memory = memory
        self.consumer = consumer
        self.port = port
        self.partner = partner
        self.sink = sink
        self.peer_only = peer_only  # made by accept, beside the ring of its listener
        self.held = False  # its sink refused a message: not looked at until resumed
        self.largest = largest  # no message is longer, by agreement with those who send; 0: there is none


class RingCounters:
    """Plain numbers, for reports and tests."""

    __slots__ = ("corrupt", "messages")

    def __init__(self) -> None:
        self.messages = 0  # handed over, or dropped by a sink
        self.corrupt = 0  # times a ring held nonsense


class Rings:
    """All rings of one guest.  `changed()` is called when the pump ought to look at them."""

    def __init__(
        self, calls: ArgoCalls, randomness: Randomness, changed: Callable[[], None], dialect: Dialect = ARGO
    ) -> None:
        self._calls = calls
        self._dialect = dialect
        self._last_port = 0
        self._randomness = randomness
        self._changed = changed
        self._rings: dict[tuple[int, int], DriverRing | None] = {}  # by (port, partner); None: being registered
        self.counters = RingCounters()
        self.freed = False  # room was made in a ring since the owner last looked here: a notify is due

    def __iter__(self) -> Iterator[DriverRing]:
        return iter([ring for ring in self._rings.values() if ring is not None])

    def auto_port(self) -> int:
        """A free port: random with bit 31 set and not above 0xF0000000, or the one after the highest in use.

        v4v: the next one after the last given out that is not in use, from 1 on.  Raises OSError ENOSPC when that is
        0xFFFFFFFF.
        """
        if self._dialect.ports_in_sequence:
            return self._next_port()
        port = self._randomness.getrandbits(32) | AUTO_PORT_BASE
        if port > AUTO_PORT_TOP:
            port -= AUTO_PORT_FOLD
        used = {port for port, _ in self._rings}
        if port in used:
            port = max(AUTO_PORT_BASE, *used) + 1
            if port >= AUTO_PORT_NONE:
                raise error(Errno.ENOSPC, "no free port")
        return port

    def _next_port(self) -> int:
        taken = {port for port, _ in self._rings}
        port = self._last_port + 1
        while port in taken:
            port += 1
        if port >= AUTO_PORT_NONE:
            raise error(Errno.ENOSPC, "no free port")
        self._last_port = port
        return port

    def _check_free(self, port: int, partner: int) -> None:
        for (taken_port, taken_partner), ring in self._rings.items():
            if taken_port != port:
                continue
            # The second: connections that outlive their listener keep its port.
            if taken_partner == partner or (partner == DOMID_ANY and ring is not None and ring.peer_only):
                raise error(Errno.EADDRINUSE, f"port {port:#x}")

    async def bind(
        self, port: int, partner: int, ring_len: int, sink: RingSink, *, peer_only: bool = False, largest: int = 0
    ) -> DriverRing:
        """Register a ring of `ring_len` data bytes as (port, partner); its messages go to `sink`.

        `largest`: those who send here have agreed on messages of at most so many bytes.  It saves the notify after a
        pass in which none of them can have been refused; who sends more notices room at its next look only.
        Raises OSError: EADDRINUSE when this guest has such a ring, ENOMEM, or what the hypervisor answers.
        """
        self._check_free(port, partner)
        try:
            memory = self._calls.allocate_ring(ring_len)
        except MemoryError:
            raise error(Errno.ENOMEM, f"no memory for a ring of {ring_len} bytes") from None
        key = (port, partner)
        self._rings[key] = None
        try:
            return await whole(self._register(memory, port, partner, sink, peer_only, largest))
        except asyncio.CancelledError:
            ring = self._rings.get(key)
            if ring is not None:
                await self.unbind(ring)
            raise
        finally:
            if key in self._rings and self._rings[key] is None:
                del self._rings[key]

    async def _register(
        self, memory: RingMemory, port: int, partner: int, sink: RingSink, peer_only: bool, largest: int
    ) -> DriverRing:
        result = await self._calls.register_ring(memory, port, partner)
        if result < 0:
            self._calls.release_ring(memory)
            raise error(-result, f"cannot register a ring of {memory.ring_len} bytes at port {port:#x}")
        consumer = self._dialect.consumer(memory.window, memory.ring_len)
        ring = DriverRing(memory, port, partner, sink, peer_only, consumer, largest)
        self._rings[port, partner] = ring
        self._changed()
        return ring

    async def unbind(self, ring: DriverRing) -> None:
        """Unregister `ring`.  What still lies in it goes to its sink; what the sink refuses is dropped."""
        if self._rings.get((ring.port, ring.partner)) is ring:
            await whole(self._unregister(ring))

    async def _unregister(self, ring: DriverRing) -> None:
        # An error means that the hypervisor has no such ring (its partner died): the pages are ours anyway.
        await self._calls.unregister_ring(ring.port, ring.partner)
        if self._rings.get((ring.port, ring.partner)) is not ring:
            return
        ring.held = False
        while not ring.held and self._drain(ring):
            pass
        del self._rings[ring.port, ring.partner]
        self._calls.release_ring(ring.memory)

    def receive_pass(self) -> bool:
        """Hand over what lies in the rings now.  Whether another pass may find more."""
        moved = False
        for ring in list(self._rings.values()):
            if ring is not None and not ring.held and self._drain(ring):
                moved = True
        return moved

    def _drain(self, ring: DriverRing) -> bool:
        """Hand over what lies in `ring` now, not what arrives meanwhile.  Whether it is worth another pass."""
        consumer, sink = ring.consumer, ring.sink
        rest = there = consumer.available()
        taken = 0
        try:
            while rest > 0:
                message = consumer.view()
                if message is None:
                    break
                port, domid, message_type, payload, second = message
                if second:
                    payload = memoryview(b"".join((payload, second)))
                if not sink.receive(port, domid, message_type, payload):
                    ring.held = True
                    break
                rest -= used_by(len(payload))
                consumer.consume()
                taken += 1
        except RingCorrupt:
            # Never progress, whatever was taken before: while tx_ptr is nonsense too, old bytes that look like a
            # message may precede the same nonsense again, pass after pass.
            consumer.recover()
            self.counters.corrupt += 1
            self.freed = True
            sink.lost(ring)
            return False
        if taken:
            self.counters.messages += taken
            # Only we make room.  So whoever was refused since the end of the pass before saw no more unread than what
            # is unread now and what this pass took, together.
            most = consumer.available() + there - rest
            if not ring.largest or most + used_by(ring.largest) >= ring.memory.ring_len:
                self.freed = True
        return taken > 0
