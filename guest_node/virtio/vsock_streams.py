"""Stream sockets of a vsock stack as programs use them: connect, listen, send, receive."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from guest_node.virtio.vsock_stack import BACKLOG, Connection, State, VsockStack

CONNECT_TIMEOUT: Final = 2.0  # seconds, as Linux has it
CLOSE_TIMEOUT: Final = 8.0


class VsockStream:
    """One connection.  Every method raises OSError with the errno that ended it."""

    def __init__(self, connection: Connection, drained: Callable[[int], Awaitable[None]]) -> None:
        self.peer = connection.key[1:]
        """CID and port."""
        self._connection = connection
        self._changed = asyncio.Event()
        self._drained = drained
        connection.changed = self._changed.set

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when the peer's credit has covered it."""
        view = memoryview(bytes(data))
        while len(view):
            await self._drained(self.peer[0])
            self._changed.clear()
            count = self._connection.write(view)
            view = view[count:]
            if len(view) and not count:
                await self._changed.wait()

    async def receive(self, size: int = 65536) -> bytes:
        """At most `size` bytes, at least one; b"" at the end.  ECONNRESET where the peer broke it off."""
        connection = self._connection
        while not (data := connection.read(size)):
            if connection.state is State.CLOSING:
                return b""
            if connection.ended:
                if connection.error:
                    raise OSError(connection.error, "the stream broke off")
                return b""
            self._changed.clear()
            await self._changed.wait()
        return data

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """End it and wait until the peer has confirmed that; after `timeout` seconds without."""
        self._connection.close()
        try:
            await self._until(lambda: self._connection.state is State.CLOSED, timeout)
        except TimeoutError:
            self._connection.abort(0)

    async def opened(self, timeout: float) -> None:
        """Wait for the answer to a request.  ETIMEDOUT, ECONNREFUSED."""
        connection = self._connection
        try:
            await self._until(lambda: connection.state is not State.CONNECTING, timeout)
        except TimeoutError as late:
            connection.abort(errno.ETIMEDOUT)
            raise OSError(errno.ETIMEDOUT, "no answer") from late
        except asyncio.CancelledError:
            connection.close()
            raise
        if connection.state is State.CLOSED and connection.error:
            raise OSError(connection.error, f"port {self.peer[1]} of context {self.peer[0]}")

    async def _until(self, done: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not done():
                self._changed.clear()
                await self._changed.wait()


class VsockListener:
    """Connections that come to one port, at most BACKLOG of them unaccepted."""

    def __init__(self, sockets: VsockSockets, port: int) -> None:
        self.port = port
        self._sockets = sockets
        self._waiting: deque[VsockStream] = deque()
        self._came = asyncio.Event()
        sockets.stack.listen(port, self._take)

    async def accept(self) -> VsockStream:
        """The next connection."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """Refuse further connections."""
        self._sockets.stack.unlisten(self.port)

    def _take(self, connection: Connection) -> bool:
        if len(self._waiting) >= BACKLOG:
            return False
        self._waiting.append(self._sockets.stream(connection))
        self._came.set()
        return True


class VsockSockets:
    """Sockets of a stack.  `drained(cid)` returns when packets for that context have gone far enough for more."""

    def __init__(self, stack: VsockStack, drained: Callable[[int], Awaitable[None]]) -> None:
        self.stack = stack
        self._drained = drained

    async def connect(self, cid: int, port: int, timeout: float = CONNECT_TIMEOUT) -> VsockStream:
        """A stream to `port` of context `cid`.  ECONNREFUSED, ETIMEDOUT."""
        stream = self.stream(self.stack.connect(cid, port))
        await stream.opened(timeout)
        return stream

    def listen(self, port: int) -> VsockListener:
        """Accept streams at `port`.  EADDRINUSE."""
        return VsockListener(self, port)

    def stream(self, connection: Connection) -> VsockStream:
        """A stream for a connection."""
        return VsockStream(connection, self._drained)
