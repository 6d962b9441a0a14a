"""The turns of a hypervisor's process: when it runs whose frames, rings whom, looks at what, and waits for how long.

One thread, one epoll set.  Sources are the guests' bells (eventfds, edge-triggered and never read), the attach socket
and its connections, and the broker link.  Each has a bounded turn.  While any vCPU is awake the loop polls its
submission ring between turns and yields the CPU; a vCPU that stays empty is put to sleep one by one, and when none is
awake the process waits in epoll.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from broker.client import ZmqLink
from broker.frames import Lane
from hv_node.hvm import TURN, Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.lobby import Lobby
from hv_node.promptness import SOON_NS, Promptness
from hv_node.roster import Roster

if TYPE_CHECKING:
    from hv_node.uplinks.ascent import Ascent
    from hv_node.uplinks.fabric import FabricUplink
    from hv_node.uplinks.joint import Joint

HEARTBEAT_S: Final = 0.5
YIELDS: Final = 4  # empty turns before a vCPU is put to sleep
AFTER_ONE: Final = 8  # the same after a single frame: a guest that calls one by one is at its next call by then
POLL_EVERY: Final = 8  # busy turns between two looks at the descriptors, fewer when they are long
LOOK_NS: Final = 5_000_000  # how exactly levels keep time: theirs are times of half a second and more
SLICE_NS: Final = 500_000  # what a vCPU's turn should not exceed: whose frames are costly has fewer of them in it


@dataclass(slots=True)
class HostCounters:
    """What the host paid: `host.*`."""

    turns: int = 0
    frames: int = 0
    wakeups: int = 0
    doorbells: int = 0


class Turns:
    """The loop of one hypervisor's process.  What it serves, the process shell makes (hv_node/node.py): `roster` and
    `lobby` before it runs, and what is above, if there is something.
    """

    roster: Roster
    lobby: Lobby

    def __init__(self, core: Hypervisor, link: ZmqLink) -> None:
        self.core = core
        self.link = link
        self.host = HostCounters()
        self.joint: Joint | None = None
        self.ascent: Ascent | None = None
        self._fabric: FabricUplink | None = None
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._active: dict[Vcpu, None] = {}
        self._parked: dict[Vcpu, None] = {}  # whose frames wait behind one that is pending
        self._deaf_ns = 0  # spent on frames since the descriptors were looked at: who rings meanwhile is not heard
        self._promptness = Promptness()
        self._stirred = False  # something happened since
        self._looked_ns = 0  # when the level last looked what is due
        self._held_ns: int | None = None  # until when answers wait for what goes the same way
        self._stopping = False
        self._link_busy = self._link_heard = False
        self._mirrored = False  # something was said to a guest on another host, and has not left
        self._crashed: list[str] = []
        core.on_crash = lambda domain: self._crashed.append(domain.name)

    def watch(self, fd: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` while `fd` has one of `events`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """No more."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    # -- the loop ----

    def run(self) -> None:
        """Serve until told to stop."""
        next_beat = 0.0
        empty = busy = 0
        patience = YIELDS
        if self.ascent is not None:
            self.ascent.start()
        while not self._stopping:
            if done := self._turn():
                empty, patience = 0, AFTER_ONE if done == 1 else YIELDS
                busy += 1
                idle = self._fabric is not None and self._idle()
                if busy % POLL_EVERY and self._deaf_ns < SLICE_NS and not idle:
                    continue
                timeout = self._wait_for(next_beat) if idle else 0.0
            elif self._active and empty < patience and (self._fabric is None or self._held_ns is not None):
                empty += 1  # else who yields does not hear the link
                os.sched_yield()
                continue
            elif self._active and not self._sleep():
                empty = 0
                timeout = 0.0
            else:
                timeout = self._wait_for(next_beat)
            if self._held_ns is not None and timeout:
                timeout = self._linger()
            self._poll(timeout)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                self._tick(now)
            self.roster.free_due(now)

    def _idle(self) -> bool:
        """Whether no vCPU can run a frame before something is heard."""
        return not self._active and all(vcpu.blocked is not None for vcpu in self._parked)

    def _wait_for(self, next_beat: float) -> float:
        """Seconds until something is due; none if the parent or the broker has something for us."""
        if self._link_busy:
            return 0.0
        if self._stirred and self._fabric is not None:  # what is due next is looked up when it is quiet for a moment
            left = self._looked_ns + LOOK_NS - time.monotonic_ns()
            if left > 0:
                return left / 1e9
        if self.ascent is not None and not self.ascent.sleep():
            return 0.0
        due = min(next_beat, self.roster.next_free())
        at = None if self.ascent is None else self.ascent.next_deadline()
        if at is not None:
            due = min(due, at / 1e9)
        at = None if self.joint is None else self.joint.next_deadline()
        if at is not None:
            due = min(due, max(at, self._looked_ns + LOOK_NS) / 1e9)
        return max(0.0, due - time.monotonic())

    def _turn(self) -> int:
        """One bounded turn for every vCPU that is awake and for the way up, then the bells that came of it."""
        run, clock, joint = self.core.run, time.monotonic_ns, self.joint
        done = 0
        busy = self.ascent is not None and self.ascent.turn(clock())
        if self._parked:
            self._unpark()
        for vcpu in tuple(self._active):
            begin, taken = clock(), run(vcpu, vcpu.budget)
            if vcpu.blocked is not None:  # no frame of it can run before an answer comes
                self._parked[vcpu] = None
                del self._active[vcpu]
            if not taken:
                continue
            done += taken
            if joint is not None:
                self._promptness.acted(vcpu.hvm.domain.domid, begin)
                joint.ran(vcpu)
            took = clock() - begin
            self._deaf_ns += took
            if took > SLICE_NS:
                vcpu.budget = max(1, taken * SLICE_NS // took)
            elif vcpu.budget < TURN:
                vcpu.budget = min(TURN, vcpu.budget * 2)
        if self.core.bells:
            self._ring()
        if done:
            self._stirred = True
            self.host.turns += 1
            self.host.frames += done
            self._ship()
            if self._fabric is not None:
                self._held_ns = None
                self._link_busy |= self.link.flush()  # what they sent elsewhere leaves before anything is waited for
        return done + busy

    def _reached(self, domid: int) -> None:
        """A message from elsewhere lies in a guest's ring: ring it.  What we answer waits if it answers at once."""
        now = time.monotonic_ns()
        hvm = self.core.hvm(domid)
        if hvm is not None and self._promptness.reached(domid, now):
            for vcpu in hvm.vcpus:
                if vcpu.blocked is None:
                    self._held_ns = now + SOON_NS
                    self.wake(vcpu)
        if self.core.bells:
            self._ring()

    def _linger(self) -> float:
        """Wait for who was rung; poll and epoll would round up to a millisecond."""
        left = 0 if self._held_ns is None else self._held_ns - time.monotonic_ns()
        if left > 0:
            select.select((self._epoll,), (), (), left / 1e9)
        return 0.0

    def _flush(self) -> None:
        """What is ready leaves, unless it waits for an answer that will be there at once."""
        if self._held_ns is not None:
            if time.monotonic_ns() < self._held_ns:
                return
            self._held_ns = None
        self._link_busy |= self.link.flush()

    def _ship(self) -> None:
        """What became of the frames of guests on other hosts leaves, although no bell announces it."""
        for remote in self.roster.remotes():
            remote.flush()
        if self._mirrored:
            self._mirrored = False
            self._link_busy |= self.link.flush()

    def mirror(self, guest: str, message: bytes) -> None:
        """Hand a message to the lane to a guest on another host; one that finds no room there is repeated in time."""
        self._mirrored = self.link.send(Lane.CONTROL, ["tell", guest, ["mirror"]], message) or self._mirrored

    def _ring(self) -> None:
        for vcpu in self.core.bells:
            self.host.doorbells += 1
            # An error means that it is rung already, or that the guest closed its end, which is its own loss.
            with contextlib.suppress(OSError):
                self.roster.bells[vcpu].send(b"\0", socket.MSG_DONTWAIT)
        self.core.bells.clear()

    def _sleep(self) -> bool:
        """Put every idle vCPU to sleep; False when one had work after all."""
        for vcpu in tuple(self._active):
            if vcpu.blocked is not None:
                self._parked[vcpu] = None
                del self._active[vcpu]
            elif vcpu.area.sleep():
                del self._active[vcpu]
        return not self._active

    def _unpark(self) -> None:
        """What was pending has been answered: on with what waits behind it."""
        for vcpu in [vcpu for vcpu in self._parked if vcpu.blocked is None]:
            del self._parked[vcpu]
            self._active[vcpu] = None

    def wake(self, vcpu: Vcpu) -> None:
        """A guest rang."""
        if vcpu.hvm.domain.name in self.roster.attached:
            vcpu.area.awake()
            self._active[vcpu] = None

    def _poll(self, timeout: float) -> None:
        self._deaf_ns = 0
        events = self._epoll.poll(timeout)
        if self.ascent is not None:
            self.ascent.awake()
        if events and timeout:
            self.host.wakeups += 1
        for fd, _ in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        # ZMQ_FD is edge-triggered: whatever was done with the link looked at it afterwards, and said if it was busy.
        if self._link_heard or self._link_busy or (timeout and not events):
            self._link_heard = False
            if self._fabric is None:
                self._link_busy = self.link.pump()
            else:
                self._link_busy = self.link.receive()
                if self.core.bells:
                    self._ring()
        if self.joint is not None:
            now = time.monotonic_ns()
            self._stirred = self._stirred or bool(events)
            if now - self._looked_ns >= LOOK_NS:
                self._looked_ns, self._stirred = now, False
                self.joint.turn()
            if self._fabric is not None:
                if self._fabric.room():
                    self.joint.room()
                self._flush()
        if self._crashed:
            self._link_busy |= self.link.flush()  # the lab hears why before a guest says goodbye for it
        while self._crashed:
            self.roster.gone(self._crashed.pop())
        self._ship()  # an answer from elsewhere, or to what has arrived

    def _pump(self) -> None:
        """The link's descriptor moved; the look that follows the poll does the work."""
        self._link_heard = True

    def _tick(self, now: float) -> None:
        for remote in self.roster.remotes():
            remote.tick(time.monotonic_ns())
        self.link.heartbeat()
        self._link_heard = True  # a hello may be due
        self._link_busy |= self.link.flush()
        self.lobby.tick(now)

    def stop(self, *_: Any) -> None:
        """Leave the loop at its next turn."""
        self._stopping = True

    def stop_on(self, number: int) -> None:
        """Have signal `number` stop this node, even while it waits: epoll would go on waiting by itself."""
        wake, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(number, self.stop)
        self.watch(wake, select.EPOLLIN | select.EPOLLET, self.stop)
