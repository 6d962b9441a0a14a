"""The receiving half of a stream socket: from the engine's queue of bytes to whoever reads.

Specification: the stream half of OpenXT's Linux Argo driver; engine in `stream_fsm`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.hypercall import error
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream_fsm import Connection
from guest_node.drivers.stream_table import Event, State
from hmx.argo.abi import Address


class Receiving(ABC):
    """What a connected stream socket does to be read.  One task at a time may; a cancelled receive has lost nothing."""

    def __init__(self, driver: ArgoDriver, core: Connection) -> None:
        self.bytes_received = 0
        self._driver = driver
        self._core = core
        self._rings: Iterable[DriverRing] = ()
        self._reader: asyncio.Future[None] | None = None

    @property
    def peer(self) -> Address:
        """The other end: (port, domid)."""
        return self._core.peer

    @property
    def frames_received(self) -> int:
        """Data frames that have come in, read or not."""
        return self._core.frames

    @abstractmethod
    def _check(self, event: Event, errno: int = 0) -> None:
        """Raise what a call meets in the present state, or `errno` if the state has nothing against it."""

    @abstractmethod
    def _gone(self) -> None:
        """No ring stands at the peer's address."""

    async def receive(self, limit: int = 65536) -> bytes:
        """At least one and at most `limit` bytes; b"" at the end of the stream.

        Raises ConnectionResetError when the peer vanished without closing.
        """
        if limit < 1:
            raise ValueError(f"cannot receive {limit} bytes")
        core = self._core
        while True:
            data = core.take(limit)
            if data:
                self.bytes_received += len(data)
                if core.held:
                    self._unhold()
                return data
            if not await self._readable():
                return b""

    async def receive_into(self, target: bytearray | memoryview) -> int:
        """Fill `target` with what there is, waiting for at least one byte; 0 at the end of the stream."""
        view = memoryview(target).cast("B")
        core = self._core
        while True:
            count = core.take_into(view)
            if count or not view:
                self.bytes_received += count
                if core.held:
                    self._unhold()
                return count
            if not await self._readable():
                return 0

    async def receive_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes.  Raises asyncio.IncompleteReadError, with what there was, if the stream
        ends first.
        """
        target = bytearray(count)
        view = memoryview(target)
        done = 0
        while done < count:
            try:
                step = await self.receive_into(view[done:])
            except asyncio.CancelledError:
                if done:
                    self._core.put_back(bytes(view[:done]))
                    self.bytes_received -= done
                raise
            if not step:
                raise asyncio.IncompleteReadError(bytes(view[:done]), count)
            done += step
        return bytes(target)

    async def _readable(self) -> bool:
        """Wait until something changes; False at the end of the stream."""
        self._check(Event.RECEIVE)
        core = self._core
        if core.state is State.DISCONNECTED:
            if core.error:
                raise error(core.error, f"stream from port {self.peer.port:#x} of domain {self.peer.domid}")
            return False
        self._driver.watch(self, core.peer, self._gone)
        try:
            await self._wait_change()
        finally:
            self._driver.unwatch(self)
        return True

    async def _wait_change(self) -> None:
        if self._reader is not None:
            raise RuntimeError("another task is receiving from this socket")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _unhold(self) -> None:
        """A frame waits in the ring for room in the budget: let it in when half of the budget is free."""
        core = self._core
        if core.unread <= core.budget // 2:
            core.held = False
            for ring in self._rings:
                self._driver.resume(ring)
