"""Stream sockets: a reliable byte stream over Argo, for asyncio programs.

Specification: the stream half of OpenXT's Linux Argo driver; tables in `stream_table`, engine in
`stream_fsm`.  The wire is that driver's; what a socket does better than there:

* `connect` that nobody answers within 5 s raises ETIMEDOUT (Linux: ECONNREFUSED for this too).
* Large sends go out as LINKed batches.  When the peer's ring is full, the frames that were not taken are
  sent again from exactly there: nothing is reordered or sent twice.
* Frames are cut to the peer's ring: at most 32748 bytes, a quarter of a smaller ring.  (Linux always cuts
  at 32748 and reports EMSGSIZE on small rings.)
* A writer whose peer's ring vanished is told ECONNREFUSED; a reader learns within a second, after all
  queued bytes.
* `close` never waits for the peer: an RST that finds its ring full is queued, and this socket's own ring
  stays until the RST is out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from guest_node.drivers.closing import Closing
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.framing import batch_limit, frame_limit
from guest_node.drivers.hypercall import Backoff, error, whole
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream_fsm import Connection, Listener
from guest_node.drivers.stream_receive import Receiving
from guest_node.drivers.stream_table import (
    FRAME_LIMIT,
    HEADER,
    HEADER_SIZE,
    MESSAGE_TYPE_STREAM,
    Event,
    Flag,
    State,
)
from hmx.argo.abi import Address, NotifyFlag
from hmx.argo.calls import Buffer, Outgoing
from hmx.argo.wakeups import Outcome
from hmx.errno import Errno

PROBE_ABOVE: Final = 2048  # bytes in one send from which on the peer's ring size is asked for
_OPEN: Final = (State.CONNECTED, State.ACCEPTED)


class StreamConnection(Receiving, Closing):
    """A connected stream socket.

    Several tasks may send (each `send` stays in one piece); one task at a time may receive.  A cancelled
    `send` has sent a whole number of frames, counted in `bytes_sent`; a cancelled receive has lost nothing.
    """

    def __init__(self, driver: ArgoDriver, core: Connection) -> None:
        """Made by `connect` and `StreamListener.accept`."""
        super().__init__(driver, core)
        self.bytes_sent = 0
        self.frames_sent = 0
        core.sink = self
        driver.open_sockets[self] = None
        self._forget: Callable[[], None] = lambda: None
        self._release: Callable[[], Awaitable[None]] | None = None
        self._header = HEADER.pack(0, core.conid)
        self._limit = FRAME_LIMIT
        self._largest_batch = 1
        self._probed = False
        self._lock = asyncio.Lock()
        self._writer: asyncio.Future[Any] | None = None
        self._closing = False
        self._refused = 0
        self._broken: BaseException | None = None

    @property
    def port(self) -> int:
        """Our port; of an accepted socket that is its listener's."""
        return self._core.port

    # -- StreamSink: what the engine wants done ----

    def control(self, to: Address, source_port: int, flags: Flag, conid: int) -> None:
        """Queue a control frame."""
        own = to == self._core.peer and conid == self._core.conid
        message = Outgoing(to, source_port, (HEADER.pack(flags, conid),), MESSAGE_TYPE_STREAM)
        self._driver.controls.post(message, self._control_failed if own else None)

    def changed(self, machine: Connection | Listener) -> None:  # noqa: ARG002
        """Wake whoever waits; a writer only if the connection ended."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)
        writer = self._writer
        if writer is not None and not writer.done() and (self._closing or self._core.state not in _OPEN):
            writer.set_result(Outcome.GONE)

    def _control_failed(self, errno: int, waited: bool) -> None:
        core = self._core
        if core.state is State.CONNECTING and not waited:
            self._refused = Errno.ECONNRESET if errno == Errno.EIO else errno
            core.step(Event.REFUSED)
        elif core.state is State.CONNECTING or core.state in _OPEN:
            core.step(Event.VANISHED)

    def fail(self, errno: int) -> None:
        """Bytes of this connection are lost: end it, so that nobody takes the rest for the whole."""
        if self._core.state in _OPEN or self._core.state is State.CONNECTING:
            self._core.step(Event.VANISHED, errno)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self._broken = cause
        for future in (self._reader, self._writer):
            if future is not None and not future.done():
                future.set_exception(cause)

    def _gone(self) -> None:
        """No ring stands at the peer's address.  What it sent before still counts, an RST above all."""
        self._driver.look()
        core = self._core
        if core.state in _OPEN and not core.held and not any(r.consumer.available() for r in self._rings):
            core.step(Event.VANISHED)

    # -- sending ----

    async def send(self, data: Buffer) -> None:
        """Send all of `data`, waiting for room as often as needed.

        Raises BrokenPipeError after the peer closed, ConnectionRefusedError when its ring vanished,
        ConnectionResetError when it is not known what arrived, OSError with what else the hypervisor answers.
        """
        view = memoryview(data).cast("B")
        async with self._lock:
            backoff = Backoff()
            sent, total = 0, len(view)
            if not total:
                self._check(Event.SEND)
            while sent < total:
                taken, errno = await self._send_some(view, sent)
                sent += taken
                if taken:
                    backoff.reset()
                if errno in (Errno.EBUSY, Errno.ENOMEM):
                    await backoff.wait()

    async def _send_some(self, view: memoryview, at: int) -> tuple[int, int]:
        """Send frames from `view[at:]`, waiting at most once; bytes taken, and EBUSY or ENOMEM if one must
        poll.
        """
        driver, peer = self._driver, self._core.peer
        self._check(Event.SEND)
        pending = driver.controls.pending(peer)
        if pending is not None:  # the ACK, above all, goes first
            await self._wait_to_write(pending)
            return 0, 0
        if not self._probed and len(view) > PROBE_ABOVE:
            await self._learn_limit()
        armed_since = driver.wakeups.generation
        taken, errno = await whole(self._send_batch(view, at))
        if errno == Errno.EAGAIN:
            size = HEADER_SIZE + min(self._limit, len(view) - at - taken)
            space = driver.want_space(peer, size, armed_since)
            try:
                outcome = await self._wait_to_write(space)
            finally:
                driver.forget(space)
            errno = {
                Outcome.GONE: Errno.ECONNREFUSED,
                Outcome.BUSY: Errno.EBUSY,
                Outcome.TOO_BIG: Errno.EMSGSIZE,
            }.get(outcome, 0)
        if errno == Errno.EMSGSIZE:
            await self._shrink()
        elif errno not in (0, Errno.EBUSY, Errno.ENOMEM):
            self._send_failed(errno)
        return taken, errno

    def _send_failed(self, errno: int) -> None:
        """The hypervisor refused a frame for good, or the wait for room was ended.

        -EIO means that nobody knows whether the frame arrived (experimental: a peer behind a link that broke).  Sent
        again it could arrive twice, left away it could be missing: the connection is reset, and says nothing any more.
        """
        core = self._core
        if errno == Errno.EIO and not self._closing:
            self._driver.look()  # what the peer sent before counts
            self.fail(Errno.ECONNRESET)
            if core.error:
                raise error(Errno.ECONNRESET, f"stream to port {self.peer.port:#x} of domain {self.peer.domid}")
        if not self._closing:
            self._gone()
            if core.error:  # the peer vanished, it did not close
                raise error(errno, f"stream to port {self.peer.port:#x} of domain {self.peer.domid}")
        self._check(Event.SEND, errno)

    async def _send_batch(self, view: memoryview, at: int) -> tuple[int, int]:
        """One LINK chain of frames; bytes taken and the errno that stopped it, or 0."""
        core, header, limit, end = self._core, self._header, self._limit, len(view)
        peer, port, calls = core.peer, core.port, self._driver.calls
        if end - at <= limit:
            results = [await calls.sendv(peer, port, (header, view[at:]), MESSAGE_TYPE_STREAM)]
        else:
            stop = min(end, at + limit * min(self._largest_batch, calls.max_batch))
            results = await calls.sendv_linked(
                [
                    Outgoing(peer, port, (header, view[start : min(start + limit, end)]), MESSAGE_TYPE_STREAM)
                    for start in range(at, stop, limit)
                ]
            )
        taken = 0
        errno = 0
        for result in results:
            if result < 0:
                errno = -result
                break
            taken += result - HEADER_SIZE
            self.frames_sent += 1
        self.bytes_sent += taken
        return taken, errno

    async def _wait_to_write(self, future: asyncio.Future[Any]) -> Outcome:
        self._writer = future
        try:
            outcome = await future
        finally:
            self._writer = None
        return outcome if isinstance(outcome, Outcome) else Outcome.SUFFICIENT

    async def _learn_limit(self) -> None:
        """Cut frames to the peer's ring, and batches to what it can hold."""
        try:
            answer = await self._driver.probe(self._core.peer)
        except OSError as problem:
            if problem.errno == Errno.EIO:
                self._send_failed(Errno.EIO)
            raise
        self._probed = True
        if answer.flags & NotifyFlag.EXISTS:  # else the send will say what is wrong
            self._limit = frame_limit(answer.max_message_size)
            self._largest_batch = batch_limit(answer.max_message_size)

    async def _shrink(self) -> None:
        """A frame was too large for the peer's ring, which may be another than the one asked about."""
        before = self._limit
        await self._learn_limit()
        if self._limit >= before:
            raise error(Errno.EMSGSIZE, f"frames of {before} bytes to {self._core.peer}")

    def _check(self, event: Event, errno: int = 0) -> None:
        """Raise what a call meets in the present state, or `errno` if the state has nothing against it."""
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise error(Errno.EBADF, "this socket is closed")
        row = self._core.step(event)
        if errno or row.error:
            raise error(row.error or errno, f"stream to port {self.peer.port:#x} of domain {self.peer.domid}")

    # -- opening and closing ----

    def attach(
        self,
        rings: Iterable[DriverRing],
        forget: Callable[[], None],
        release: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Say where this socket's frames arrive, and what is to be done (at once, then in time) when it
        closes.
        """
        self._rings = rings
        self._forget = forget
        self._release = release

    async def close(self) -> None:
        """End the connection: an RST follows what was sent.  Frames not received are dropped.  Idempotent."""
        if not self._closing:
            self._closing = True
            self.changed(self._core)
            await whole(self._close())

    async def _close(self) -> None:
        self._driver.open_sockets.pop(self, None)
        async with self._lock:  # a batch on its way ends first
            self._core.step(Event.CLOSE)
        self._forget()
        for ring in self._rings:  # what was held here is nobody's now
            self._driver.resume(ring)
        if self._broken is not None:
            return
        await self._driver.controls.flush(self.peer)
        pending = self._driver.controls.pending(self.peer)
        if pending is None:
            await self._finish()
        else:
            self._driver.background(self._finish_after(pending))

    async def _finish(self) -> None:
        if self._release is not None:
            await self._release()

    async def _finish_after(self, pending: asyncio.Future[None]) -> None:
        await pending
        await self._finish()

    async def open(self, timeout: float) -> None:
        """Send the SYN and wait for the ACK; for `connect`."""
        core = self._core
        core.step(Event.CONNECT)
        timer = asyncio.get_running_loop().call_later(timeout, self._expired)
        try:
            await self._driver.controls.flush(core.peer)
            while core.state is State.CONNECTING:
                if self._broken is not None:
                    raise self._broken
                await self._wait_change()
        finally:
            timer.cancel()
        errno = self._refused or core.error
        if core.state is State.BOUND or errno:
            if core.state is State.DISCONNECTED:
                core.step(Event.FAILED)
            raise error(errno, f"connect to port {self.peer.port:#x} of domain {self.peer.domid}")

    def _expired(self) -> None:
        if self._core.state is State.CONNECTING:
            self._core.step(Event.TIMEOUT)
