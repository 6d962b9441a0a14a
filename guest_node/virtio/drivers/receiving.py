"""Buffers that a driver keeps at a device, for what the device sends by itself.

Source: VIRTIO 1.4, 5.1.6.3 (network), 5.3.6 (console), 5.10.6.4 (socket).  Buffers go back to the device when a
reader has taken what came, so a reader that is slow is a device that waits or drops, and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from guest_node.virtio.drivers.placing import device_errors, place
from guest_node.virtio.frontend import Queue
from hmx.virtio.chain import QueueFull

Item = TypeVar("Item")


class Receiver(Generic[Item]):
    """At most `most` buffers of `size` bytes in `queue`; `take` makes items of what each of them brings.

    `wake` is called when something came, or the device broke; `error` says which.
    """

    def __init__(
        self,
        queue: Queue,
        size: int,
        most: int,
        take: Callable[[bytes], Iterable[Item]],
        wake: Callable[[], None] | None = None,
    ) -> None:
        self.error: BaseException | None = None
        self._wake = wake
        self._queue = queue
        self._size = size
        self._most = most
        self._take = take
        self._posted = 0
        self._arrived: deque[Item] = deque()
        self._something = asyncio.Event()

    async def fill(self) -> None:
        """Give the device the buffers that it may have.  Raises OSError."""
        with device_errors():
            placed = False
            while self._posted < self._most - len(self._arrived):
                try:
                    answer = self._queue.submit((), self._size)
                except QueueFull:
                    if self._posted or self._arrived:
                        break
                    answer = await place(self._queue, (), self._size)
                self._posted += 1
                answer.add_done_callback(self._came)
                placed = True
            if placed:
                await self._queue.kick()

    async def next(self) -> Item:
        """The next item.  Nothing is lost when this is cancelled.  Raises OSError."""
        while True:
            if not self.error and self._posted <= self._most // 2:
                await self.fill()
            if self._arrived:
                return self._arrived.popleft()
            if self.error is not None:
                raise OSError(errno.EIO, str(self.error) or "the device is broken") from self.error
            self._something.clear()
            await self._something.wait()

    def waiting(self) -> int:
        """Items that nobody has taken."""
        return len(self._arrived)

    def _came(self, answer: asyncio.Future[bytes]) -> None:
        self._posted -= 1
        self._something.set()
        if answer.cancelled():
            self.error = self.error or asyncio.CancelledError("the request was cancelled")
        elif (error := answer.exception()) is not None:
            self.error = self.error or error
        else:
            # More than there was room for is a lie, and as good as nothing.
            data = answer.result()
            self._arrived.extend(self._take(data if len(data) <= self._size else b""))
        if self._wake is not None:
            self._wake()
