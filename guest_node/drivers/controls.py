"""Queued control frames: small messages that must go out in order, whenever the peer's ring has room.

Specification: the INLINE transmit entries of OpenXT's Linux Argo driver.  Unlike there, a queue has a limit
(a peer whose full ring provokes answers costs no memory without bound), and who queued a frame learns that
its ring is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from guest_node.drivers.hypercall import FIRST_DELAY, LAST_DELAY, whole
from hmx.argo.abi import Address
from hmx.argo.calls import ArgoCalls, Outgoing
from hmx.argo.wakeups import Outcome, Wakeups
from hmx.errno import Errno

CONTROL_LIMIT: Final = 256  # frames queued for one address; beyond it, answers to strangers are dropped

Failed = Callable[[int, bool], None]


class Control:
    """One queued frame, and whom to tell when it cannot be sent."""

    __slots__ = ("failed", "message")

    def __init__(self, message: Outgoing, failed: Failed | None) -> None:
        self.message = message
        self.failed = failed

    @property
    def key(self) -> tuple[int, bytes]:
        """Equal keys to one address are the same frame."""
        return self.message.src_port, bytes(self.message.buffers[0])


class ControlQueue:
    """The frames for one address.  It is itself a waiter of `Wakeups` while the ring there is full."""

    __slots__ = ("address", "delay", "drained", "frames", "keys", "sending", "waited", "waiting")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.frames: deque[Control] = deque()
        self.keys: set[tuple[int, bytes]] = set()
        self.sending = False  # a task is in the hypercall for it
        self.waiting = False  # for room, or for a timer
        self.waited = False  # a frame was refused for lack of room
        self.delay = FIRST_DELAY
        self.drained: list[asyncio.Future[None]] = []


class Controls:
    """All queues of one guest.  `changed()` is called when `flush_all` has something to do."""

    def __init__(self, calls: ArgoCalls, wakeups: Wakeups, changed: Callable[[], None]) -> None:
        self._calls = calls
        self._wakeups = wakeups
        self._changed = changed
        self._queues: dict[Address, ControlQueue] = {}
        self.dropped = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return sum(len(queue.frames) for queue in self._queues.values())

    def post(self, message: Outgoing, failed: Failed | None = None) -> None:
        """Queue a frame for `message.dst`, behind those that are queued for that address.

        A frame equal to one in the queue is dropped.  With `failed` it is never dropped for lack of space
        in the queue, and when the hypervisor refuses it `failed(errno, waited)` is called; `waited`: not at
        its first try.
        """
        queue = self._queues.get(message.dst)
        if queue is None:
            queue = self._queues[message.dst] = ControlQueue(message.dst)
        control = Control(message, failed)
        if control.key in queue.keys or (failed is None and len(queue.frames) >= CONTROL_LIMIT):
            self.dropped += 1
            return
        queue.keys.add(control.key)
        queue.frames.append(control)
        self._changed()

    def pending(self, address: Address) -> asyncio.Future[None] | None:
        """None, or a future that is done when no frame is queued for `address` any more."""
        queue = self._queues.get(address)
        if queue is None:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.drained.append(future)
        return future

    def all_pending(self) -> list[asyncio.Future[None]]:
        """One future for each address for which frames are queued."""
        return [future for address in self._queues if (future := self.pending(address)) is not None]

    async def flush_all(self) -> None:
        """Try every queue that does not wait."""
        for queue in list(self._queues.values()):
            if not queue.waiting and not queue.sending:
                await whole(self._send(queue))

    async def flush(self, address: Address) -> None:
        """Try to send what is queued for `address` at once; returns without waiting for room."""
        queue = self._queues.get(address)
        if queue is not None and not queue.waiting and not queue.sending:
            await whole(self._send(queue))

    async def _send(self, queue: ControlQueue) -> None:
        queue.sending = True
        try:
            while queue.frames:
                armed_since = self._wakeups.generation
                batch = [queue.frames[i].message for i in range(min(len(queue.frames), self._calls.max_batch))]
                refused = self._sent(queue, await self._calls.sendv_linked(batch))
                if refused == Errno.EAGAIN:
                    queue.waiting = queue.waited = True
                    size = len(queue.frames[0].message.buffers[0])
                    self._wakeups.want(queue.address, size, queue, armed_since=armed_since)
                    self._changed()
                    return
                if refused in (Errno.EBUSY, Errno.ENOMEM):
                    self._poll(queue)
                    return
                if refused:
                    self._fail(queue, refused)
            self._finish(queue)
        finally:
            queue.sending = False

    def _sent(self, queue: ControlQueue, results: list[int]) -> int:
        """Drop what was sent; the errno of the first frame that was not, or 0."""
        for result in results:
            if result < 0:
                return -result
            self._pop(queue)
            queue.delay = FIRST_DELAY
        return 0

    def _pop(self, queue: ControlQueue) -> Control:
        control = queue.frames.popleft()
        queue.keys.discard(control.key)
        return control

    def _fail(self, queue: ControlQueue, errno: int) -> None:
        """The ring refused the first frame for good, so it would the others."""
        while queue.frames:
            control = self._pop(queue)
            if control.failed is not None:
                control.failed(errno, queue.waited)

    def _finish(self, queue: ControlQueue) -> None:
        if queue.frames:
            return  # a failure made someone post again
        if self._queues.get(queue.address) is queue:
            del self._queues[queue.address]
        for future in queue.drained:
            if not future.done():
                future.set_result(None)

    def _poll(self, queue: ControlQueue) -> None:
        """No wake-up will come: try again after a while."""
        queue.waiting = queue.waited = True
        asyncio.get_running_loop().call_later(queue.delay, self._again, queue)
        queue.delay = min(queue.delay * 2, LAST_DELAY)

    def _again(self, queue: ControlQueue) -> None:
        queue.waiting = False
        self._changed()

    def outcome(self, queue: ControlQueue, outcome: Outcome) -> None:
        """How the queue's wait for room ended."""
        if outcome is Outcome.BUSY:
            self._poll(queue)
            return
        queue.waiting = False
        if outcome is not Outcome.SUFFICIENT:
            self._fail(queue, Errno.ECONNREFUSED if outcome is Outcome.GONE else Errno.EMSGSIZE)
            self._finish(queue)
        self._changed()
