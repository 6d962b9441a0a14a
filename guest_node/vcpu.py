"""A virtual CPU as its guest runs it: traps go out, completions and posted interrupts come back.

One asyncio loop multiplexes the vCPUs of a guest.  A trap that the hypervisor answers at once costs no asyncio: the
vCPU looks for the completion, yields the CPU a few times, waits briefly for the bell, and only then suspends its
task.

Its interrupts are in guest_node/interrupts.py; the interruption points are here: after a trap completes, and when the
loop comes round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from guest_node.interrupts import Interruptible
from guest_node.platform import Platform
from hmx.trap import Completion, FrameFlag, completion
from hmx.vcpu_area import SQ_ENTRIES, GuestSide

LOOKS: Final = 10  # at the answer, a yield between two: longer than a call takes whose hypervisor is on another CPU
YIELDS: Final = 4  # times to yield before waiting for the bell; measured to remove nearly all wake-ups
LATE: Final = 4  # late answers in a row after which the bell is not waited for: what is asked goes to another host
LOOK_AGAIN: Final = 16  # but for one trap in so many
_LINK: Final = int(FrameFlag.LINK)


class Trap(NamedTuple):
    """An instruction to execute: a frame without its sequence number."""

    kind: int
    regs: tuple[int, ...]
    address: int = 0
    flags: int = 0
    size: int = 0
    privilege: int = 0
    imm: int = 0


class _Answer(asyncio.Future[tuple[int, ...]]):
    """What a frame will be answered.  A task that waits for it and is cancelled hears of that when the answer is there:
    what asyncio.shield would do costs a turn of the loop more.
    """

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002
        """No."""
        return False


class Vcpu(Interruptible):
    """One vCPU.  Tasks of the guest share it; each awaits its own completions."""

    def __init__(self, index: int, area: GuestSide, platform: Platform) -> None:
        super().__init__(index, area)
        self._platform = platform
        self._done: dict[int, tuple[int, ...]] = {}  # answers that nobody has asked for yet, as they lay in the ring
        self._waiters: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._room_waiters: list[asyncio.Future[None]] = []
        self._idle_scheduled = False
        self._idle_rounds = 0
        self._armed = False
        self._late = 0  # traps in a row whose answer took longer than anybody waits
        self._stopped: BaseException | None = None

    def start(self) -> None:
        """Begin to take bells.  Call inside the guest's running loop, once."""
        self._platform.on_bell(self._on_bell)
        self._schedule_idle()

    def stop(self, error: BaseException) -> None:
        """The hypervisor is gone: whoever waits for it gets `error`."""
        self._stopped = error
        waiting: list[asyncio.Future[Any]] = [*self._waiters.values(), *self._room_waiters]
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()
        self._room_waiters.clear()

    # -- traps ----

    async def trap(self, trap: Trap) -> Completion:
        """Execute one instruction.  Suspends only if the hypervisor does not answer at once."""
        while not self.area.room():
            await self._wait_for_room()
        seq = self._submit(trap)
        self._publish()
        done = self._spin_for(seq)
        return completion(done if done is not None else await self._park_for(seq))

    async def trap_chain(self, traps: Sequence[Trap]) -> list[Completion]:
        """Execute instructions as one LINK chain (at most 64): after a failure the rest come back CANCELED."""
        if len(traps) > SQ_ENTRIES:
            raise ValueError(f"a chain of {len(traps)} frames is longer than the submission ring ({SQ_ENTRIES})")
        while self.area.room() < len(traps):
            await self._wait_for_room()
        flag = 0
        seqs = []
        for trap in traps:
            seqs.append(self._submit(trap, flag))
            flag = _LINK
        self._publish()
        last = self._spin_for(seqs[-1]) if seqs else None
        if last is not None:
            # Frames of one vCPU complete in order, so the others are there too.
            return [completion(done) for done in (*(self._done.pop(seq) for seq in seqs[:-1]), last)]
        return [completion(await self._take(seq)) for seq in seqs]

    def trap_now(self, trap: Trap) -> Completion:
        """Execute one instruction that completes locally; blocks and never awaits.  For interrupt handlers."""
        seq = self._submit(trap)
        self._publish()
        while True:
            done = self._spin_for(seq)
            if done is not None:
                return completion(done)
            if self._stopped is not None:  # while it waited
                raise self._stopped

    # -- many frames at once, for the kernel ----

    def submitted(self, count: int) -> None:
        """Announce `count` frames that were laid into the area's submission ring."""
        if self._stopped is not None:
            raise self._stopped
        self.counters.traps += count
        self._publish()

    def answers(self) -> dict[int, tuple[int, ...]]:
        """What came back and nobody waits for, by sequence number, flat; whoever submitted a frame pops its answer."""
        self._collect()
        return self._done

    def expect(self, yields: int) -> bool:
        """Yield the CPU up to `yields` times until an answer has come; whether one has.  No interruption point."""
        for _ in range(yields):
            if self.area.completed():
                return True
            self._platform.yield_cpu()
        return False

    async def answer_to(self, seq: int) -> None:
        """Return when the answer to frame `seq` is among `answers()`."""
        done = self._spin_for(seq)
        self._done[seq] = done if done is not None else await self._park_for(seq)

    def _submit(self, trap: Trap, flag: int = 0) -> int:
        if self._stopped is not None:
            raise self._stopped
        self.counters.traps += 1
        kind, regs, address, flags, size, privilege, imm = trap
        return self.area.submit(kind, regs, flags | flag, privilege, size, imm, address)

    def _publish(self) -> None:
        self._disarm()
        if self.area.publish():
            self.ring()

    def ring(self) -> None:
        """Wake the hypervisor."""
        self.counters.doorbells += 1
        self._platform.ring()

    def _spin_for(self, seq: int) -> tuple[int, ...] | None:
        """Look for a completion, politely, for a short while.  None: it takes longer."""
        for _ in range(LOOKS):
            self._collect()
            done = self._done.pop(seq, None)
            if done is not None:
                self._late = 0
                self.poll_interrupts()
                return done
            self._platform.yield_cpu()
        if self._late >= LATE and self._late % LOOK_AGAIN:
            return None
        if self.area.sleep():
            self._platform.wait_briefly()
        self.area.awake()
        self._collect()
        done = self._done.pop(seq, None)
        if done is not None:
            self._late = 0
            self.poll_interrupts()
        return done

    async def _take(self, seq: int) -> tuple[int, ...]:
        done = self._done.pop(seq, None)
        return done if done is not None else await self._park_for(seq)

    async def _park_for(self, seq: int) -> tuple[int, ...]:
        """Suspend the task until the frame is answered.

        An instruction cannot be taken back, so a cancelled task still learns what became of it: the cancellation is
        delivered at its next await.
        """
        if self._stopped is not None:
            raise self._stopped
        self.counters.parks += 1
        waiter = _Answer(loop=asyncio.get_running_loop())
        self._waiters[seq] = waiter
        self._schedule_idle()
        self._late += 1
        if self._late > LATE:
            self._idle_rounds = YIELDS  # unless there is other work, the loop asks for the bell at once
        canceled = False
        while not waiter.done():
            try:
                await waiter
            except asyncio.CancelledError:
                canceled = True
        task = asyncio.current_task()
        if canceled and task is not None:
            task.uncancel()
            task.cancel()
        return waiter.result()

    async def _wait_for_room(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        waiter = asyncio.get_running_loop().create_future()
        self._room_waiters.append(waiter)
        self._schedule_idle()
        await waiter

    def _collect(self) -> None:
        count = self.area.completed()
        if not count:
            return
        waiters, done = self._waiters, self._done
        for raw in self.area.collect_raw(count):
            waiter = waiters.pop(raw[0], None) if waiters else None
            if waiter is None:
                done[raw[0]] = raw
            elif not waiter.done():
                waiter.set_result(raw)
        if self._room_waiters:
            waiting, self._room_waiters = self._room_waiters, []
            for room in waiting:
                if not room.done():
                    room.set_result(None)

    # -- sleeping ----

    def pause(self) -> None:
        """Let a little time pass (about 50 us) without asking to be rung: for code that expects something very soon and
        would rather find much at once.  No interruption point: what is posted waits, so that the hypervisor need not
        post it again.  Nothing else of this guest runs meanwhile.
        """
        self._platform.pause()
        self._collect()

    def _on_bell(self) -> None:
        self._disarm()
        self._collect()
        self.poll_interrupts()

    def _disarm(self) -> None:
        """While the guest is at work the hypervisor need not ring; the loop re-arms when it runs out of work."""
        if self._armed:
            self._armed = False
            self.area.awake()
        self._idle_rounds = 0
        self._schedule_idle()

    def _schedule_idle(self) -> None:
        if not self._idle_scheduled:
            self._idle_scheduled = True
            asyncio.get_running_loop().call_soon(self._idle)

    def _idle(self) -> None:
        """Once a loop turn while awake: take what came; after a few empty turns arm the flag and let the loop sleep."""
        self._idle_scheduled = False
        before = self.area.cq_head
        self._collect()
        if self.poll_interrupts() or self.area.cq_head != before:
            self._idle_rounds = 0
        elif self._idle_rounds < YIELDS:
            self._idle_rounds += 1
            self._platform.yield_cpu()
        elif self.area.sleep():
            self._armed = True
            return
        self._schedule_idle()
