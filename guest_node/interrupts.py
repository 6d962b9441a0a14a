"""The interrupts of a virtual CPU: what was posted is given to the silicon's models, and what they let through is run.

Interrupt handlers are plain functions.  They run at interruption points and nowhere else: after a trap completes, when
the loop comes round, and where guest code asks for it (:meth:`Interruptible.poll_interrupts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hmx.cpu.apic_regs import LAST_VECTOR, SVR_ENABLE, DeliveryMode, Ipi
from hmx.cpu.evtchn import EventChannelPage
from hmx.cpu.gic import VirtualCpuInterface
from hmx.cpu.lapic import LocalApic
from hmx.gic import SPURIOUS
from hmx.vcpu_area import GuestSide, Post

SPURIOUS_VECTOR: Final = 0xFF
OPEN_PMR: Final = 0xFF  # the priority mask that lets every priority pass


@dataclass(slots=True)
class VcpuCounters:
    """What this vCPU did: architecture first, then what the host paid for it."""

    traps: int = 0
    interrupts_delivered: int = 0
    interrupts_spurious: int = 0
    interrupts_coalesced: int = 0  # taken from the ring while the same was pending here already
    doorbells: int = 0
    parks: int = 0


class Interruptible:
    """The interrupt half of a vCPU: its event-channel page, local APIC or GIC interface, lines, and their handlers."""

    def __init__(self, index: int, area: GuestSide) -> None:
        self.index = index
        self.area = area
        self.counters = VcpuCounters()
        self._page: EventChannelPage | None = None
        self.apic: LocalApic | None = None
        self.gic: VirtualCpuInterface | None = None
        self.interrupts_enabled = True
        self._port_handlers: dict[int, Callable[[], None]] = {}
        self._vector_handlers: dict[int, Callable[[], None]] = {}
        self._intid_handlers: dict[int, Callable[[], None]] = {}
        self._line_handlers: dict[int, Callable[[], None]] = {}
        self._lines: dict[int, None] = {}  # interrupt lines that were asserted and not yet served
        self._nmi_handler: Callable[[], None] | None = None
        self._nmi = False  # one came and is not yet served; a second one is the same
        self._in_nmi = False
        self.send_ipi: Callable[[Ipi], None] | None = None  # to the other vCPUs' local APICs
        self._in_handler = False

    def ring(self) -> None:
        """Wake the hypervisor."""
        raise NotImplementedError

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
                    self.counters.interrupts_coalesced += not self._page.merge(ident, self.index)
                case Post.VECTOR if self.apic is not None and ident <= LAST_VECTOR:
                    self.counters.interrupts_coalesced += self.apic.irr >> ident & 1
                    self.apic.accept(ident)
                case Post.NMI:
                    self.counters.interrupts_coalesced += self._nmi
                    self._nmi = True
                case Post.EXTINT:
                    self.counters.interrupts_coalesced += ident in self._lines
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
