"""The Argo driver core of a guest: the one place that takes interrupts, consumes rings and notifies.

Specification: the interrupt path of OpenXT's Linux Argo driver (argo-linux/argo-module.c) over Xen's Argo
ops.

One task, the pump, does all work that no socket asked for.  VIRQ_ARGO carries no data: it may mean a
message in any ring or room in any peer's ring.  So each turn of the pump

1. passes over the rings: what lies there when the pass comes by goes to the ring's sink, then rx is
   published;
2. sends queued control frames to rings that have room;
3. notifies: wakes the senders that wait for what step 1 freed, and asks about each ring somebody waits for.

Publishing rx precedes the notify, and a turn that moved anything is followed by another, so no wake-up is
lost. A turn that moved nothing ends in sleep: the pump never spins, not even on a ring full of nonsense.

Where the Linux driver does otherwise: more waiters than one notify takes (256) are asked about in several
calls; a waiter for a ring that is gone is told so (nobody signals that, hence a slow tick while anybody
waits); -EBUSY, after which no wake-up comes, is polled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from guest_node.drivers.controls import ControlQueue, Controls
from guest_node.drivers.dialect import ARGO, Dialect
from guest_node.drivers.hypercall import error, whole
from guest_node.drivers.rings import DriverRing, Randomness, Rings
from hmx.argo.abi import MAX_NOTIFY_ENTRIES, Address, NotifyFlag
from hmx.argo.calls import ArgoCalls, SpaceAnswer, SpaceQuery
from hmx.argo.wakeups import Outcome, Wakeups
from hmx.errno import Errno

TICK: Final = 0.5  # seconds between looks at what no signal announces, while somebody waits


class Closable(Protocol):
    """A socket, as the driver knows it."""

    async def close(self) -> None:
        """End it in order."""


class DriverCounters:
    """Plain numbers, for reports and tests."""

    __slots__ = ("notifies", "turns", "virqs")

    def __init__(self) -> None:
        self.virqs = 0
        self.turns = 0
        self.notifies = 0


class ArgoDriver:
    """The driver core over a kernel's `ArgoCalls`.

    `await start()` inside the guest's running loop before the first socket is made, `await close()` at the
    end. `randomness` picks ports and connection ids.  `dialect`: another transport with the same calls.
    """

    def __init__(self, calls: ArgoCalls, randomness: Randomness, dialect: Dialect = ARGO) -> None:
        self.calls = calls
        self.dialect = dialect
        self.randomness = randomness
        self.counters = DriverCounters()
        self.wakeups = Wakeups()
        self.rings = Rings(calls, randomness, self.kick, dialect)
        self.controls = Controls(calls, self.wakeups, self.kick)
        self.open_sockets: dict[Closable, None] = {}  # in order of creation
        self._watched: dict[object, tuple[Address, Callable[[], None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._spaces: dict[asyncio.Future[Outcome], None] = {}  # waits for room, in order of arrival
        self._kicked = False
        self._look = False  # the tick wants the watched addresses looked at
        self._sleeping: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pump: asyncio.Task[None] | None = None
        self._cause: BaseException | None = None

    # -- life ----

    async def start(self) -> None:
        """Take VIRQ_ARGO and start the pump.  Its first turn is unasked: earlier signals are not replayed."""
        self.calls.on_virq(self._virq)
        self._pump = asyncio.get_running_loop().create_task(self._run(), name="argo-pump")

    async def close(self, linger: float = 2.0) -> None:
        """Close every socket, send what is queued (for at most `linger` seconds), unregister every ring.

        Raises what ended the pump, if it had ended by itself: then there is nobody to wait for.
        """
        try:
            if self.failure is None:
                for socket in list(self.open_sockets):
                    await socket.close()
                await self._linger(linger)
        finally:
            await self._end_tasks()
        failure = self.failure
        if failure is not None:
            raise failure
        closed = error(Errno.EBADF, "the driver was closed")
        for ring in self.rings:
            ring.sink.broken(closed)
            await self.rings.unbind(ring)

    async def _linger(self, seconds: float) -> None:
        """Until everything queued is out, while there is a pump to send it."""
        waits: set[asyncio.Future[None]] = {*self.controls.all_pending(), *self._background}
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        pump = self._pump
        while waits and pump is not None and not pump.done() and (left := end - loop.time()) > 0:
            await asyncio.wait({*waits, pump}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            waits = {wait for wait in waits if not wait.done()}

    async def _end_tasks(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [task for task in (self._pump, *self._background) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def end(self, cause: BaseException) -> None:
        """There is no hypervisor any more: the pump ends with `cause`, and whoever waits for anything is told it."""
        self._cause = cause
        self.kick()

    @property
    def failure(self) -> BaseException | None:
        """What ended the pump, if it ended by itself: the hypervisor is gone, or there is a defect."""
        pump = self._pump
        return pump.exception() if pump is not None and pump.done() and not pump.cancelled() else None

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end beside everything else; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _virq(self) -> None:
        """VIRQ_ARGO, called at an interruption point of the kernel."""
        self.counters.virqs += 1
        self.wakeups.woken()
        self.kick()

    def kick(self) -> None:
        """Have the pump take a turn soon."""
        self._kicked = True
        sleeping = self._sleeping
        if sleeping is not None and not sleeping.done():
            sleeping.set_result(None)

    async def _run(self) -> None:
        try:
            while True:
                await self._turn()
        except Exception as exc:
            for ring in self.rings:
                ring.sink.broken(exc)
            for space in self._spaces:
                if not space.done():
                    space.set_exception(exc)
            raise

    async def _turn(self) -> None:
        if self._cause is not None:
            raise self._cause
        self.counters.turns += 1
        self._kicked = False
        moved = self.rings.receive_pass()
        await self.controls.flush_all()
        if self._look:
            self._look = False
            await whole(self._look_at_watched())
        while (queries := self.wakeups.batch()) or self.rings.freed:
            self.rings.freed = False
            await whole(self._notify(queries))
        if moved:
            await asyncio.sleep(0)  # readers run, and what came meanwhile is seen by the next turn
        elif not self._kicked:
            loop = asyncio.get_running_loop()
            self._set_timer(loop)
            self._sleeping = loop.create_future()
            await self._sleeping
            self._sleeping = None

    async def _notify(self, queries: list[SpaceQuery]) -> None:
        self.counters.notifies += 1
        result, answers = await self.calls.notify(queries)
        ended = self.wakeups.absorb(result, answers)
        # An answer "sufficient" disarms its ring.  A send that was refused meanwhile, and armed it, may be booked
        # already or not yet: it has to ask, and not to trust a wake-up that is lost.
        if any(not query.space_required for query in queries):
            self.wakeups.woken()
        elif queries:
            self.wakeups.generation += 1
        for waiter, outcome in ended:
            if isinstance(waiter, ControlQueue):
                self.controls.outcome(waiter, outcome)
            elif isinstance(waiter, asyncio.Future) and not waiter.done():
                waiter.set_result(outcome)

    # -- rings ----

    def look(self) -> None:
        """Pass over the rings now, in the caller's task."""
        if self.rings.receive_pass():
            self.kick()

    def resume(self, ring: DriverRing) -> None:
        """The sink of `ring` takes messages again: look at it soon."""
        ring.held = False
        self.kick()

    def consumed(self, ring: DriverRing) -> None:
        """A socket took messages from `ring` itself: look at it again, and notify."""
        ring.held = False
        self.rings.freed = True
        self.kick()

    # -- room in foreign rings ----

    def want_space(self, address: Address, size: int, armed_since: int | None = None) -> asyncio.Future[Outcome]:
        """A future for room for `size` payload bytes at `address`.  Give it to `forget` in any case.

        `armed_since`: `wakeups.generation` as it was before a sendv that answered -EAGAIN.  Raises what ended the
        pump, if it had ended: nobody would ever answer.
        """
        failure = self.failure
        if failure is not None:
            raise failure
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._spaces[future] = None
        self.wakeups.want(address, size, future, armed_since=armed_since)
        if armed_since != self.wakeups.generation:
            self.kick()
        self._set_timer(loop)
        return future

    def forget(self, future: asyncio.Future[Outcome]) -> None:
        """The wait is over, with or without an outcome."""
        self._spaces.pop(future, None)
        if not future.done() or future.cancelled():
            self.wakeups.forget(future)
            self.kick()  # the next in line has its question

    async def probe(self, address: Address) -> SpaceAnswer:
        """Whether a ring stands at `address` (flag EXISTS), and how large a message it ever takes.

        Raises OSError with what the hypervisor answers.
        """
        result, answers = await whole(self._ask([SpaceQuery(address, 0)]))
        if result < 0:
            raise error(-result, f"cannot ask about port {address.port:#x} of domain {address.domid}")
        return answers[0]

    async def _ask(self, queries: list[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
        """Notify with queries for 0 bytes.  They disarm what was armed, so all waits are asked about anew."""
        self.counters.notifies += 1
        answer = await self.calls.notify(queries)
        self.wakeups.woken()
        self.kick()
        return answer

    # -- what no signal announces ----

    def watch(self, owner: object, address: Address, gone: Callable[[], None]) -> None:
        """Until `unwatch(owner)`: the pump calls `gone()` whenever it finds no ring at `address`."""
        self._watched[owner] = (address, gone)
        if self._timer is None:
            self._set_timer(asyncio.get_running_loop())

    def unwatch(self, owner: object) -> None:
        """End the watch of `owner`, if any."""
        self._watched.pop(owner, None)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and (self._watched or len(self.wakeups)):
            self._timer = loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Nobody signals the end of a ring, and a signal may have been lost: look at everything once."""
        self._timer = None
        self._look = bool(self._watched)
        self.wakeups.woken()
        self.kick()

    async def _look_at_watched(self) -> None:
        watched = list(self._watched.items())
        for start in range(0, len(watched), MAX_NOTIFY_ENTRIES):
            part = watched[start : start + MAX_NOTIFY_ENTRIES]
            result, answers = await self._ask([SpaceQuery(address, 0) for _, (address, _) in part])
            if result < 0:
                continue  # one entry was refused, and nothing is known of the others
            for (owner, entry), answer in zip(part, answers, strict=True):
                if not answer.flags & NotifyFlag.EXISTS and self._watched.get(owner) is entry:
                    entry[1]()
