"""How a hypervisor tells its guests something: virtual interrupts and their ways, from an event to a posted entry.

A guest is told by an entry in its vCPU's post ring and, where it sleeps, by its bell.  While a run of calls is executed
the same announcement is made twice at most: for its first message, and once more at the end of the run if others
followed, because a guest may have consumed the first before the last message lay in its ring.  What is counted is what
would have been counted for each message by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmx.notify import LINE_IRQ
from hmx.vcpu_area import Post, post_entry
from hmx.xen import EVTCHN_MASK_OFFSET
from hv_node.argo.model import Ring
from hv_node.domain import DomainTable
from hv_node.hvm import Hvm, Vcpu

if TYPE_CHECKING:
    from hv_node.levels.level import Level

Route = tuple[Vcpu, int, int]  # of a VIRQ: vCPU, entry to post, event-channel port


class Signals:
    """The part of a hypervisor that interrupts its guests.  `bells` names those to be rung."""

    levels: Level | None

    def __init__(self, domains: DomainTable) -> None:
        self.domains = domains
        self.bells: dict[Vcpu, None] = {}
        self._hvms: dict[int, Hvm] = {}
        self._merging = False  # a run of calls is being executed
        self._announced: Route | None = None  # in this run
        self._owed: tuple[Hvm, Route] | None = None  # to be announced once more

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        """Raise a per-domain VIRQ, or what the domain chose instead for Argo: dropped while nothing is bound, coalesced
        while its post is unconsumed.
        """
        hvm = self._hvms.get(domid)
        if hvm is None:
            if self.levels is not None:
                domain = self.domains.lookup(domid)
                if domain is not None:
                    self.levels.wake(domain)
            return  # dying: the binding is gone
        counters = hvm.counters
        counters.interrupts_raised += 1
        if hvm.notification.active:
            chosen = hvm.notification.target((ring.port, ring.partner) if isinstance(ring, Ring) else None)
            if chosen is not None:
                self._interrupt(hvm, *chosen)
                return
        route = hvm.routes.get(virq) or hvm.route(virq)
        if route is None:
            if self.levels is not None and self.levels.wake(hvm.domain):
                counters.interrupts_posted += 1  # to the guests for whom it speaks
            else:
                counters.interrupts_dropped += 1
            return
        if route is self._announced:
            counters.interrupts_coalesced += 1
            if self._owed is None:
                self._owed = hvm, route
            return
        if self._merging:
            self._announce_owed()
            self._announced = route
        if not self._announce(hvm, route):
            counters.interrupts_coalesced += 1

    def begin_run(self) -> None:
        """A run of calls begins, or of messages from elsewhere."""
        self._merging = True

    def end_run(self) -> None:
        """A run of calls is over: nobody may wait for what it announced."""
        self._merging, self._announced = False, None
        if self._owed is not None:
            self._announce_owed()

    def _announce_owed(self) -> None:
        owed = self._owed
        if owed is not None:
            self._owed = None
            if self._announce(*owed):
                owed[0].counters.interrupts_coalesced -= 1  # the first had been consumed

    def _announce(self, hvm: Hvm, route: Route) -> bool:
        """Post a VIRQ's entry, and ring for it if the guest sleeps.  False: it falls together with one unconsumed."""
        vcpu, entry, port = route
        if not vcpu.area.post(entry):
            return False
        hvm.counters.interrupts_posted += 1
        # The mask is read after the fence in guest_sleeps: a guest that unmasks and sleeps sees the post, or is rung.
        if vcpu.area.guest_sleeps() and not _masked(hvm, port):
            self.bells[vcpu] = None
        return True

    def _raise_port(self, hvm: Hvm, vcpu: int, port: int) -> None:
        """The other end of an interdomain channel sent."""
        hvm.counters.interrupts_raised += 1
        if not self._announce(hvm, (hvm.vcpus[vcpu], post_entry(Post.PORT, port), port)):
            hvm.counters.interrupts_coalesced += 1

    def _interrupt(self, hvm: Hvm, index: int, entry: int) -> None:
        """Post an interrupt that needs no event channel: to a local APIC, or through the distributor."""
        if hvm.gic is not None:
            distributor = hvm.gic.distributor
            irq = distributor.interrupt(entry, index)
            if irq is None:
                hvm.counters.interrupts_dropped += 1
            elif not distributor.set_pending(irq):
                hvm.counters.interrupts_coalesced += 1  # else it counts as posted once a register takes it
            return
        vcpu = hvm.vcpus[index]
        if not vcpu.area.post(entry):
            hvm.counters.interrupts_coalesced += 1
            return
        hvm.counters.interrupts_posted += 1
        if vcpu.area.guest_sleeps():
            self.bells[vcpu] = None

    def _v4v_signal(self, domid: int) -> None:
        """v4v's only signal: ISA line 7, for all rings (uXen); the device model's domain has it too."""
        hvm = self._hvms.get(domid)
        if hvm is not None:
            hvm.counters.interrupts_raised += 1
            self._interrupt(hvm, 0, post_entry(Post.EXTINT, LINE_IRQ))

    def post(self, domid: int, vcpu: int, entry: int) -> None:
        """Post an interrupt entry to a vCPU."""
        hvm = self._hvms.get(domid)
        if hvm is None:
            return
        target = hvm.vcpus[vcpu]
        if target.area.post(entry) and target.area.guest_sleeps():
            self.bells[target] = None


def _masked(hvm: Hvm, port: int) -> bool:
    if hvm.shared_info is None:
        return False
    bits = hvm.domain.memory.read(0, hvm.shared_info + EVTCHN_MASK_OFFSET + (port >> 3), 1)
    return bits is not None and bool(bits[0] >> (port & 7) & 1)
