"""A virtual CPU as its guest runs it: traps go out, completions and posted interrupts come back.

One asyncio loop multiplexes the vCPUs of a guest.  A trap that the hypervisor answers at once costs no asyncio: the
vCPU looks for the completion, yields the CPU a few times, waits briefly for the bell, and only then suspends its
task.

Interrupt handlers are plain functions.  They run at interruption points and nowhere else: after a trap completes, when
the loop comes round, and where guest code asks for it (:meth:`Vcpu.poll_interrupts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from guest_node.platform import Platform
from hmx.cpu.apic_regs import LAST_VECTOR, SVR_ENABLE, DeliveryMode, Ipi
from hmx.cpu.evtchn import EventChannelPage
from hmx.cpu.gic import VirtualCpuInterface
from hmx.cpu.lapic import LocalApic
from hmx.gic import SPURIOUS
from hmx.trap import Completion, FrameFlag, completion
from hmx.vcpu_area import SQ_ENTRIES, GuestSide, Post

YIELDS: Final = 4  # times to yield before waiting for the bell; measured to remove nearly all wake-ups
SPURIOUS_VECTOR: Final = 0xFF
OPEN_PMR: Final = 0xFF  # the priority mask that lets every priority pass
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


@dataclass(slots=True)
class VcpuCounters:
    """What this vCPU did: architecture first, then what the host paid for it."""

    traps: int = 0
    interrupts_delivered: int = 0
    interrupts_spurious: int = 0
    doorbells: int = 0
    parks: int = 0


class Vcpu:
    """One vCPU.  Tasks of the guest share it; each awaits its own completions."""

    def __init__(self, index: int, area: GuestSide, platform: Platform) -> None:
        self.index = index
        self.area = area
        self.counters = VcpuCounters()
        self._platform = platform
        self._page: EventChannelPage | None = None
        self.apic: LocalApic | None = None
        self.gic: VirtualCpuInterface | None = None
        self.interrupts_enabled = True
        self._port_handlers: dict[int, Callable[[], None]] = {}
        self._vector_handlers: dict[int, Callable[[], None]] = {}
        self._intid_handlers: dict[int, Callable[[], None]] = {}
        self._line_handlers: dict[int, Callable[[], None]] = {}
        self._lines: dict[int, None] = {}  # interrupt lines that were asserted and not yet served
        self._done: dict[int, tuple[int, ...]] = {}  # answers that nobody has asked for yet, as they lay in the ring
        self._waiters: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._room_waiters: list[asyncio.Future[None]] = []
        self._nmi_handler: Callable[[], None] | None = None
        self._nmi = False  # one came and is not yet served; a second one is the same
        self._in_nmi = False
        self.send_ipi: Callable[[Ipi], None] | None = None  # to the other vCPUs' local APICs
        self._in_handler = False
        self._idle_scheduled = False
        self._idle_rounds = 0
        self._armed = False
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
        for _ in range(YIELDS + 1):
            self._collect()
            done = self._done.pop(seq, None)
            if done is not None:
                self.poll_interrupts()
                return done
            self._platform.yield_cpu()
        if self.area.sleep():
            self._platform.wait_briefly()
        self.area.awake()
        self._collect()
        done = self._done.pop(seq, None)
        if done is not None:
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
        waiter: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
        self._waiters[seq] = waiter
        self._schedule_idle()
        canceled = False
        while not waiter.done():
            try:
                await asyncio.shield(waiter)
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

    # -- interrupts ----

    def attach_page(self, page: EventChannelPage) -> None:
        """Let posted ports be merged into `page`."""
        self._page = page

    def on_port(self, port: int, handler: Callable[[], None]) -> None:
        """Run `handler` for event-channel `port` of this vCPU."""
        self._port_handlers[port] = handler

    def attach_apic(self, apic: LocalApic) -> None:
        """Let posted vectors be accepted by `apic`, which is enabled for it."""
        apic.svr = SPURIOUS_VECTOR | SVR_ENABLE
        self.apic = apic

    def on_vector(self, vector: int, handler: Callable[[], None]) -> None:
        """Run `handler` for an interrupt `vector` of this vCPU's local APIC; EOI is written after it if it did not."""
        self._vector_handlers[vector] = handler

    def attach_gic(self, gic: VirtualCpuInterface) -> None:
        """Let listed interrupts be taken through `gic`, which is opened for every priority."""
        gic.enabled = [True, True]
        gic.pmr = OPEN_PMR
        self.gic = gic

    def on_intid(self, intid: int, handler: Callable[[], None]) -> None:
        """Run `handler` for an interrupt of this vCPU's GIC CPU interface; it is ended after it."""
        self._intid_handlers[intid] = handler

    def on_line(self, line: int, handler: Callable[[], None]) -> None:
        """Run `handler` for an external interrupt line (an ISA IRQ) of this vCPU."""
        self._line_handlers[line] = handler

    def on_nmi(self, handler: Callable[[], None]) -> None:
        """Run `handler` for a non-maskable interrupt; nothing interrupts it, and a further one waits for its end."""
        self._nmi_handler = handler

    def write_apic(self, msr: int, value: int) -> None:
        """WRMSR of an x2APIC register, which APICv carries out without an exit (EOI, TPR, ICR, SELF IPI): an
        interruption point.  Raises ApicFault.
        """
        sent = None if self.apic is None else self.apic.write(msr, value)
        if isinstance(sent, Ipi) and self.send_ipi is not None:
            self.send_ipi(sent)
        self.poll_interrupts()
        self._deliver()

    def receive_ipi(self, ipi: Ipi) -> None:
        """Another vCPU's, or this one's own: delivered at this vCPU's next interruption point.  Fixed and NMI: what
        would stop or start a processor is counted as spurious.
        """
        if ipi.mode is DeliveryMode.FIXED and self.apic is not None:
            self.apic.accept(ipi.vector)
        elif ipi.mode is DeliveryMode.NMI:
            self._nmi = True
        else:
            self.counters.interrupts_spurious += 1
        asyncio.get_running_loop().call_soon(self._deliver)

    def set_priority(self, value: int) -> None:
        """Write the TPR (x86) or the PMR (Arm): an interruption point, at which what it held back is delivered."""
        if self.apic is not None:
            self.apic.tpr = value
        elif self.gic is not None:
            self.gic.pmr = value
        self.poll_interrupts()
        self._deliver()

    def enable_interrupts(self, enabled: bool) -> None:
        """STI and CLI: enabling is an interruption point."""
        self.interrupts_enabled = enabled
        if enabled:
            self.poll_interrupts()
            self._deliver()

    def poll_interrupts(self) -> bool:
        """An interruption point: take what was posted and run the handlers.  True when anything was there."""
        if not self._take_posts():
            return False
        self._deliver()
        return True

    def _take_posts(self) -> bool:
        """Hand what was posted to the local APIC, the page and the lines.  True when anything was there."""
        area = self.area
        if not area.posted():
            return False
        while area.posted():
            entry = area.take_post()
            ident = entry & 0xFF_FFFF
            match entry >> 24:
                case Post.PORT if self._page is not None:
                    self._page.merge(ident, self.index)
                case Post.VECTOR if self.apic is not None and ident <= LAST_VECTOR:
                    self.apic.accept(ident)
                case Post.NMI:
                    self._nmi = True
                case Post.EXTINT:
                    self._lines[ident] = None
                case Post.LR if self.gic is not None:
                    pass  # the CPU interface looks at its list registers itself
                case _:
                    self.counters.interrupts_spurious += 1
        if area.more_posts():
            self.ring()
        return True

    def _deliver(self) -> None:
        """Run the handlers of what is pending: an NMI always, the rest unless interrupts are off."""
        if self._nmi:
            self._deliver_nmi()
        if not self.interrupts_enabled or self._in_nmi:
            return
        if self.apic is not None:
            self._deliver_vectors(self.apic)
        if self.gic is not None:
            self._deliver_intids(self.gic)
        if self._in_handler:
            return
        self._in_handler = True
        try:
            while self._lines and self.interrupts_enabled:
                line = next(iter(self._lines))
                del self._lines[line]
                self._handle(self._line_handlers.get(line))
            while self._page is not None and self._page.upcall_pending(self.index):
                for port in self._page.upcall(self.index):
                    self._handle(self._port_handlers.get(port))
                if not self._may_interrupt():
                    break
        finally:
            self._in_handler = False

    def _may_interrupt(self) -> bool:
        return self.interrupts_enabled

    def _deliver_nmi(self) -> None:
        while self._nmi and not self._in_nmi:
            self._nmi, self._in_nmi = False, True
            try:
                self._handle(self._nmi_handler)
            finally:
                self._in_nmi = False

    def _deliver_vectors(self, apic: LocalApic) -> None:
        """What the local APIC lets through, the highest first.  A handler that reaches an interruption point of its own
        is interrupted there by a higher class only.  EOI is an interruption point: what was posted meanwhile comes in
        its order.
        """
        while self.interrupts_enabled and (vector := apic.acknowledge()) is not None:
            try:
                self._handle(self._vector_handlers.get(vector))
            finally:
                if apic.isr >> vector & 1:  # else the handler wrote EOI: a second one would end another vector
                    apic.eoi()
            self._take_posts()

    def _deliver_intids(self, gic: VirtualCpuInterface) -> None:
        """What the CPU interface signals, the most urgent first; a handler is interrupted by a higher priority only."""
        gic.sync()
        while self.interrupts_enabled and (intid := gic.iar()) != SPURIOUS:
            try:
                self._handle(self._intid_handlers.get(intid))
            finally:
                gic.eoir(intid)
        if gic.take_maintenance():
            self.ring()

    def _handle(self, handler: Callable[[], None] | None) -> None:
        if handler is None:
            self.counters.interrupts_spurious += 1
            return
        self.counters.interrupts_delivered += 1
        handler()

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
