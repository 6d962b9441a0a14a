"""Listening stream sockets: accept with a ring for each peer.

Specification: the listening half of OpenXT's Linux Argo driver; tables in `stream_table`, engine in
`stream_fsm`.

There all connections of a listener share one ring, so whoever does not read stops everybody.  Here accept
registers a ring (listener's port, partner = the peer's domain) before it sends the ACK.  Argo prefers such
a ring to the listener's own for everything that this domain sends, so the data of that peer, which it sends
only after the ACK, comes through a ring of its own: a slow reader stalls no other peer.  When the
hypervisor refuses the ring (128 per domain, memory), the connection shares the listener's.
"""

from __future__ import annotations

import asyncio
from collections import deque

from guest_node.drivers.closing import Closing
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.hypercall import error, whole
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_fsm import DEFAULT_BACKLOG, DEFAULT_BUDGET, Connection, Listener
from guest_node.drivers.stream_table import (
    DEFAULT_RING_LEN,
    HEADER,
    MESSAGE_TYPE_STREAM,
    Event,
    Flag,
    State,
)
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import Outgoing
from hmx.errno import Errno


class _PeerRing:
    """A ring made by accept, and how many connections it serves."""

    __slots__ = ("ring", "users")

    def __init__(self, ring: DriverRing) -> None:
        self.ring = ring
        self.users = 0


class StreamListener(Closing):
    """A listening stream socket; made by `listen`.  Any number of tasks may accept."""

    def __init__(self, driver: ArgoDriver, core: Listener, partner: int, ring_len: int) -> None:
        """Made by `listen`."""
        self.shared_fallbacks = 0  # connections that had to share this listener's ring
        self._driver = driver
        self._core = core
        self._partner = partner
        self._ring_len = ring_len
        self._ring: DriverRing | None = None
        self._users = 0  # connections that arrive through the listener's own ring
        self._peer_rings: dict[int, _PeerRing] = {}
        self._sockets: dict[Connection, StreamConnection] = {}
        self._ready: deque[StreamConnection] = deque()
        self._acceptors: set[asyncio.Future[None]] = set()
        self._lock = asyncio.Lock()  # for the table of peers' rings
        self._broken: BaseException | None = None

    @property
    def port(self) -> int:
        """The port listened at."""
        return self._core.port

    # -- RingSink and StreamSink ----

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message at this port, from whichever ring."""
        return self._core.receive(source_port, source_domid, message_type, payload)

    def lost(self, ring: DriverRing) -> None:
        """`ring` held nonsense: the connections that it serves end here."""
        for core, socket in list(self._sockets.items()):
            if ring.partner in (DOMID_ANY, core.peer.domid):
                socket.fail(Errno.EIO)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self._broken = cause
        for socket in self._sockets.values():
            socket.broken(cause)
        self._wake()

    def control(self, to: Address, source_port: int, flags: Flag, conid: int) -> None:
        """Queue an answer to a frame that belongs to no connection."""
        frame = HEADER.pack(flags, conid)
        self._driver.controls.post(Outgoing(to, source_port, (frame,), MESSAGE_TYPE_STREAM))

    def changed(self, machine: Connection | Listener) -> None:  # noqa: ARG002
        """A SYN came, or the listener was closed."""
        self._wake()

    def _wake(self) -> None:
        for acceptor in self._acceptors:
            if not acceptor.done():
                acceptor.set_result(None)

    # -- accept ----

    async def accept(self) -> StreamConnection:
        """Wait for a peer and accept it.

        A cancelled accept loses no peer: the next one returns it.  Raises OSError EINVAL once the listener
        is closed.
        """
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._broken is not None:
                raise self._broken
            errno, core = self._core.accept()
            if errno:
                raise error(errno, "accept on a closed listener")
            if core is not None:
                await whole(self._open(core))
            else:
                await self._wait()

    async def _wait(self) -> None:
        acceptor: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acceptors.add(acceptor)
        try:
            await acceptor
        finally:
            self._acceptors.discard(acceptor)

    async def _open(self, core: Connection) -> None:
        """A ring for the peer, then the ACK; the socket waits in `_ready`, unless its peer has gone
        meanwhile.
        """
        socket = self._sockets[core] = StreamConnection(self._driver, core)

        def forget() -> None:
            self._core.forget(core)
            self._sockets.pop(core, None)

        async def release() -> None:
            await self._leave(core.peer.domid, own)

        socket.attach((), forget, None)
        own = await self._ring_for(core.peer.domid)
        if core.state is State.CLOSED:  # closed meanwhile, by the end of the driver
            await release()
            return
        socket.attach([ring for ring in (own.ring if own else None, self._ring) if ring is not None], forget, release)
        acknowledged = core.state is State.OPENING and self._core.state is State.LISTENING
        if acknowledged:
            core.step(Event.READY)
            await self._driver.controls.flush(core.peer)
        if acknowledged and not core.error:  # a peer that has closed already counts: it was connected
            self._ready.append(socket)
            self._wake()
        else:
            await socket.close()

    async def _ring_for(self, domid: int) -> _PeerRing | None:
        """The ring of this peer, registered if need be; None: the listener's own serves."""
        if self._partner != DOMID_ANY:
            self._users += 1  # that ring is this peer's alone already
            return None
        async with self._lock:
            entry = self._peer_rings.get(domid)
            if entry is None:
                try:
                    ring = await self._driver.rings.bind(self.port, domid, self._ring_len, self, peer_only=True)
                except OSError:
                    self.shared_fallbacks += 1
                    self._users += 1
                    return None
                entry = self._peer_rings[domid] = _PeerRing(ring)
            entry.users += 1
            return entry

    async def _leave(self, domid: int, entry: _PeerRing | None) -> None:
        """A connection closed; the ring that nobody uses any more is unregistered."""
        async with self._lock:
            if entry is None:
                self._users -= 1
            else:
                entry.users -= 1
                if not entry.users:
                    # What lies in it unread, a SYN of the same peer perhaps, goes to the engine now.
                    del self._peer_rings[domid]
                    await self._driver.rings.unbind(entry.ring)
            await self._unlisten()

    async def _unlisten(self) -> None:
        """After `close`, the listener's own ring goes when no connection needs it."""
        if self._core.state is State.CLOSED and not self._users and self._ring is not None:
            ring, self._ring = self._ring, None
            await self._driver.rings.unbind(ring)

    # -- opening and closing ----

    async def open(self) -> None:
        """Register the listener's ring; for `listen`."""
        self._ring = await self._driver.rings.bind(self.port, self._partner, self._ring_len, self)
        self._driver.open_sockets[self] = None

    async def close(self) -> None:
        """Stop listening: peers not yet accepted are refused; accepted connections stay.  Idempotent."""
        if self._core.state is State.LISTENING:
            await whole(self._close())

    async def _close(self) -> None:
        self._driver.open_sockets.pop(self, None)
        self._core.close()
        while self._ready:
            await self._ready.popleft().close()
        if self._broken is None:
            await self._driver.controls.flush_all()
            async with self._lock:
                await self._unlisten()


async def listen(
    driver: ArgoDriver,
    port: int,
    *,
    partner: int = DOMID_ANY,
    ring_len: int = DEFAULT_RING_LEN,
    backlog: int = DEFAULT_BACKLOG,
    budget: int = DEFAULT_BUDGET,
) -> StreamListener:
    """Listen at `port` (0: an automatic one) for `partner`, by default for everybody.

    Each peer's ring has `ring_len` data bytes; each connection holds up to `budget` bytes of unread frames
    beyond that; `backlog` connections wait for accept, more are refused.  Raises OSError: EADDRINUSE, EPERM
    (listening to everybody needs the hypervisor's mac-permissive), or what else the hypervisor answers.
    """
    core = Listener(port or driver.rings.auto_port(), backlog=backlog, budget=budget)
    listener = core.sink = StreamListener(driver, core, partner, ring_len)
    await listener.open()
    return listener
