"""What goes to one peer of VirtIO-Argo, in order, however often the peer's ring is full.

Whoever has something to say marks it and calls `wake` (from where nobody may wait) or `flush` (to try at once).  The
messages are made when they can be sent, so what has been said meanwhile shares them: while a ring is full, changes of
queues pile up as state and not as messages.  Nothing here ever stops its owner from receiving.
Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.hypercall import Backoff, error, whole
from guest_node.virtio.argo_pack import message_limit
from hmx.argo.abi import Address
from hmx.argo.calls import Outgoing
from hmx.argo.ring import used_by
from hmx.argo.wakeups import Outcome
from hmx.errno import Errno
from hmx.virtio.argo import MESSAGE_TYPE_VIRTIO
from hmx.virtio.memory import Buffer

CONTROL_LIMIT: Final = 64  # control messages queued for one peer
_POLLED: Final = (Errno.EBUSY, Errno.ENOMEM)  # no wake-up will come
_ENDS: Final = {Outcome.GONE: Errno.ECONNREFUSED, Outcome.TOO_BIG: Errno.EMSGSIZE, Outcome.BUSY: Errno.EBUSY}


class Traffic:
    """Plain numbers, for reports and tests: Argo messages and bytes both ways, sendv calls, and refusals for room."""

    __slots__ = ("bytes_received", "bytes_sent", "received", "refused", "sendv", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.sendv = 0  # calls, those that were refused too
        self.refused = 0  # with EAGAIN


class Outbox:
    """Messages from our port `port` to `to`.

    `gather(limit)` gives what the queues have to say as Argo messages of at most `limit` bytes; `failed(cause)` is told
    once, when nothing can be sent any more.
    """

    def __init__(
        self,
        driver: ArgoDriver,
        port: int,
        to: Address,
        gather: Callable[[int], list[list[Buffer]]],
        failed: Callable[[BaseException], None],
        traffic: Traffic,
    ) -> None:
        self.to = to
        self.limit = 0
        self._driver = driver
        self._port = port
        self._gather = gather
        self._failed = failed
        self._traffic = traffic
        self._control: deque[bytes] = deque()
        self._ready: deque[Outgoing] = deque()  # made, and not yet sent
        self._armed = 0  # generation of wake-ups before the last call
        self._ring = 0  # bytes that the peer's ring takes: no chain is longer
        self._busy = False  # somebody sends, or waits for room
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    def sized(self, max_message: int) -> None:
        """The peer's ring takes messages of `max_message` bytes."""
        self._ring = max_message
        self.limit = message_limit(max_message)

    def post(self, message: bytes) -> bool:
        """Queue a control message, ahead of what queues have to say.  False: too many wait, it was dropped."""
        if len(self._control) >= CONTROL_LIMIT:
            return False
        if not self._closed:
            self._control.append(message)
        return True

    def wake(self) -> None:
        """Send what there is to send, soon."""
        if not self._busy and not self._closed:
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def flush(self) -> None:
        """Send what there is to send; returns when it is out, or when nothing can be sent any more (see `failed`)."""
        if self._closed:
            return
        if not self._busy:
            self._busy = True
            errno = 0
            try:
                errno = await whole(self._try())
            except Exception as cause:
                self._fail(cause)
            finally:
                if self._busy:
                    # The ring is full, or we are cancelled: a task of its own goes on, so that nothing is left behind.
                    self._task = asyncio.get_running_loop().create_task(self._work(errno))
        await self.idle()

    async def idle(self) -> None:
        """Wait until everything is out, or nothing can be sent any more."""
        if self._busy and not self._closed:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(done)
            await done

    @property
    def busy(self) -> bool:
        """Whether something is being sent, or waits for room."""
        return self._busy

    def close(self) -> None:
        """Send nothing any more.  What waits is dropped."""
        self._closed = True
        self._control.clear()
        self._ready.clear()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._end()

    def _end(self) -> None:
        self._busy = False
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.done():
                done.set_result(None)

    def _fail(self, cause: BaseException) -> None:
        if not self._closed:
            self.close()
            self._failed(cause)

    async def _work(self, errno: int = 0) -> None:
        """Send until there is nothing left, waiting for room as often as needed."""
        backoff = Backoff()
        try:
            while True:
                if errno == Errno.EAGAIN:
                    errno = await self._room()
                if errno in _POLLED:
                    await backoff.wait()
                elif errno:
                    return
                sent = self._traffic.sent
                errno = await whole(self._try())
                if not errno:
                    return
                if self._traffic.sent != sent:
                    backoff.reset()
        except Exception as cause:
            self._fail(cause)

    async def _room(self) -> int:
        """Wait for room for the first message; 0, or what the wait ended with."""
        message = self._ready[0]
        space = self._driver.want_space(message.dst, sum(map(len, message.buffers)), self._armed)
        try:
            outcome = await space
        finally:
            self._driver.forget(space)
        if outcome is Outcome.SUFFICIENT:
            return 0
        ended = _ENDS[outcome]
        if ended in _POLLED:
            return ended
        self._refuse(ended)
        return ended

    def _refuse(self, errno: int) -> None:
        self._fail(error(errno, f"message to port {self.to.port:#x} of domain {self.to.domid}"))

    async def _try(self) -> int:
        """Send until there is nothing left: 0; EAGAIN, EBUSY or ENOMEM if the rest has to wait; another errno when it
        was the end.
        """
        ready, traffic, calls = self._ready, self._traffic, self._driver.calls
        while not self._closed:
            if not ready and not self._make():
                self._end()
                return 0
            self._armed = self._driver.wakeups.generation
            if len(ready) == 1:
                traffic.sendv += 1
                results = [await calls.sendv(*ready[0])]
            else:
                results = await calls.sendv_linked(self._chain())
                traffic.sendv += sum(result != -Errno.ECANCELED for result in results)
            for result in results:
                if result < 0:
                    if result == -Errno.EAGAIN:
                        traffic.refused += 1
                    elif -result not in _POLLED:
                        self._refuse(-result)
                    return -result
                traffic.sent += 1
                traffic.bytes_sent += result
                if ready:  # unless it was closed meanwhile
                    ready.popleft()
        return Errno.EPIPE

    def _make(self) -> bool:
        """Make messages of what there is to say; whether there is anything."""
        ready, to, port = self._ready, self.to, self._port
        control = self._control
        while control:
            ready.append(Outgoing(to, port, (control.popleft(),), MESSAGE_TYPE_VIRTIO))
        if self.limit:
            for buffers in self._gather(self.limit):
                ready.append(Outgoing(to, port, buffers, MESSAGE_TYPE_VIRTIO))
        return bool(ready)

    def _chain(self) -> list[Outgoing]:
        """As many messages as fit a chain, and the peer's ring when it is empty: more would be copied in vain."""
        chain: list[Outgoing] = []
        size = 0
        for message in self._ready:
            size += used_by(sum(map(len, message.buffers)))
            if chain and (size > self._ring + 16 or len(chain) == self._driver.calls.max_batch):
                break
            chain.append(message)
        return chain
