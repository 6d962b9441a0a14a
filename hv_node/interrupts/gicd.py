"""The distributor of one guest: state of every interrupt, the vCPU each goes to, and the registers that show it.

One state has two views: GICv2 (`version` 2: targets by CPU mask, SGIR, banked registers of SGIs and PPIs in GICD) and
GICv3 with affinity routing and one security state (`version` 3: IROUTER; SGIs and PPIs in the redistributors,
hv_node/interrupts/gicr.py).  Sources: Arm IHI 0048B chapter 4, IHI 0069 chapter 12.

What the architecture leaves open, settled here: five priority bits; out of reset SGIs are enabled, SPIs and PPIs are
level-sensitive, disabled and of priority 0, everything is of group 0 (GICv2) or 1 (GICv3, as KVM has it), SPIs go to
vCPU 0; of several possible targets the lowest-numbered vCPU gets the interrupt.  Extended PPIs and SPIs are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hmx.gic import BANKED, PRIORITY_MASK, V2_MAX_CPUS, Field, IntidKind, field, kind_of
from hv_node.interrupts.listregs import DEFAULT_LRS, Interrupt, ListRegisters

Affinity = tuple[int, int, int, int]  # Aff3, Aff2, Aff1, Aff0

# IHI 0048B 4.3.15.
SGIR: Final[tuple[Field, ...]] = (Field("intid", 3, 0), Field("targets", 23, 16), Field("filter", 25, 24))

# IHI 0069, ICC_SGI1R_EL1.  `range` selects affinity 0 values 16 * range and up.
SGI1R: Final[tuple[Field, ...]] = (
    Field("targets", 15, 0),
    Field("aff1", 23, 16),
    Field("intid", 27, 24),
    Field("aff2", 39, 32),
    Field("irm", 40, 40),
    Field("range", 47, 44),
    Field("aff3", 55, 48),
)

# IHI 0069, GICD_IROUTER<n>.
IROUTER: Final[tuple[Field, ...]] = (
    Field("aff0", 7, 0),
    Field("aff1", 15, 8),
    Field("aff2", 23, 16),
    Field("irm", 31, 31),
    Field("aff3", 39, 32),
)
IROUTER_MASK: Final = sum(row.put((1 << row.high - row.low + 1) - 1) for row in IROUTER)

CTLR_GROUPS: Final = 0b11
SPIS: Final = 96  # shared interrupts of a machine here: INTIDs 32 to 127


class Distributor:
    """Interrupts of a guest with one vCPU for each of `words` (views of u64 that hold its lr[] and lr_state[]).

    `spis` (a multiple of 32, up to 988 in effect) SPIs follow INTID 31.  `post(vcpu, n)` is called when a vCPU must
    look at its list register n.  Affinities default to 16 vCPUs a cluster.
    """

    __slots__ = (
        "_dirty", "admits_lpi", "affinities", "banked", "ctlr", "dropped", "lists", "lpis", "merged", "spis", "version",
    )  # fmt: skip

    def __init__(
        self,
        words: Sequence[memoryview],
        post: Callable[[int, int, bool], None],
        version: int = 3,
        spis: int = SPIS,
        lrs: int = DEFAULT_LRS,
        affinities: Sequence[Affinity] | None = None,
    ) -> None:
        if version == 2 and len(words) > V2_MAX_CPUS:
            raise ValueError(f"a GICv2 serves {V2_MAX_CPUS} CPUs, not {len(words)}")
        self.version = version
        self.ctlr = 0
        self.merged: Callable[[], None] = lambda: None  # told of a coalescing that shows when a register comes back
        self.dropped: dict[str, int] = {}
        self.lpis: dict[int, Interrupt] = {}  # those that have ever been pending (hv_node/interrupts/gicr.py)
        self.admits_lpi: Callable[[Interrupt], bool] = lambda _irq: False
        self._dirty: dict[int, None] = {}
        self.affinities = {
            affinity: vcpu
            for vcpu, affinity in enumerate(affinities or [(0, 0, n >> 4, n & 15) for n in range(len(words))])
        }
        self.lists = [
            ListRegisters(vcpu, view, post, self._requeue, self.admits, lrs, merged=lambda: self.merged())
            for vcpu, view in enumerate(words)
        ]
        group = 0 if version == 2 else 1
        self.banked = [
            [Interrupt(intid, kind_of(intid) or IntidKind.SGI, group, vcpu) for intid in range(BANKED)]
            for vcpu in range(len(words))
        ]
        last = min(BANKED + spis, 1020)
        self.spis = [Interrupt(intid, IntidKind.SPI, group, 0) for intid in range(BANKED, last)]

    # -- interrupts ----

    def interrupt(self, intid: int, vcpu: int = 0) -> Interrupt | None:
        """The interrupt of that number (of that vCPU, for SGIs and PPIs), or None where there is none."""
        if 0 <= intid < BANKED:
            return self.banked[vcpu][intid]
        return self.spis[intid - BANKED] if BANKED <= intid < BANKED + len(self.spis) else None

    def admits(self, irq: Interrupt) -> bool:
        """True when the distributor lets interrupts of this one's group pass."""
        if irq.kind == IntidKind.LPI and not self.admits_lpi(irq):
            return False
        return bool(self.ctlr >> irq.group & 1)

    def drop(self, reason: str) -> None:
        """Count an interrupt that goes nowhere."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _requeue(self, irq: Interrupt) -> None:
        if irq.target is not None:
            self.lists[irq.target].consider(irq)
            self._dirty[irq.target] = None

    def consider(self, irq: Interrupt) -> None:
        """Something about `irq` has changed.  Follow with :meth:`settle`."""
        if irq.at is None:
            self._requeue(irq)
            return
        self._dirty[irq.at.bank.vcpu] = None
        irq.at.bank.consider(irq)

    def settle(self) -> None:
        """Bring the list registers of every vCPU concerned up to date."""
        while self._dirty:
            vcpu = next(iter(self._dirty))
            del self._dirty[vcpu]
            self.lists[vcpu].update()

    def fold(self, vcpu: int) -> None:
        """Take over what the guest did with its list registers.  Call before each trap of `vcpu` that reaches the
        interrupt controller, and when it rings.
        """
        self._dirty[vcpu] = None
        self.settle()

    def _change(self, irq: Interrupt) -> None:
        self.consider(irq)
        self.settle()

    def _look(self, irq: Interrupt) -> None:
        """Fold back what the guest did with `irq` before a read; its register may be free for another now."""
        self._refresh(irq)
        self.settle()

    def _refresh(self, irq: Interrupt) -> None:
        if irq.at is not None:
            irq.at.bank.refresh(irq)

    # -- what raises interrupts ----

    def raise_line(self, intid: int, level: bool, vcpu: int = 0) -> bool:
        """Drive the wire of a PPI or SPI.  An edge-triggered one becomes pending when it goes up.  False: no such."""
        irq = self.interrupt(intid, vcpu)
        if irq is None or irq.kind == IntidKind.SGI:
            self.drop("no such line")
            return False
        self._refresh(irq)
        if level and not irq.line and irq.edge:
            irq.latch = True
        irq.line = level
        self._change(irq)
        return True

    def pulse(self, intid: int, vcpu: int = 0) -> bool:
        """Make an interrupt pending as a message or an edge does, whatever its wire.  False: no such."""
        irq = self.interrupt(intid, vcpu)
        if irq is None:
            self.drop("no such interrupt")
            return False
        self.set_pending(irq)
        return True

    def sgi_v2(self, source: int, value: int) -> None:
        """A write of GICD_SGIR by vCPU `source`: filter 0 the target list, 1 all others, 2 itself (3 reserved)."""
        mask = field(SGIR, "targets").get(value)
        for vcpu in range(len(self.banked)):
            match field(SGIR, "filter").get(value):
                case 0:
                    hit = bool(mask >> vcpu & 1)
                case 1:
                    hit = vcpu != source
                case 2:
                    hit = vcpu == source
                case _:
                    hit = False
            if hit:
                irq = self.banked[vcpu][field(SGIR, "intid").get(value)]
                self._refresh(irq)
                irq.sources |= 1 << source
                self._change(irq)

    def sgi_v3(self, source: int, value: int) -> None:
        """A write of ICC_SGI1R_EL1 by vCPU `source`: IRM 1 all others, 0 the vCPUs of one cluster that are named."""
        aff3, aff2, aff1, base, mask, intid = (
            field(SGI1R, name).get(value) for name in ("aff3", "aff2", "aff1", "range", "targets", "intid")
        )
        if field(SGI1R, "irm").get(value):
            targets = [vcpu for vcpu in range(len(self.banked)) if vcpu != source]
        else:
            named = [(aff3, aff2, aff1, 16 * base + bit) for bit in range(16) if mask >> bit & 1]
            targets = [self.affinities[affinity] for affinity in named if affinity in self.affinities]
        for vcpu in targets:
            self.set_pending(self.banked[vcpu][intid])

    # -- state of one interrupt, as registers change it ----

    def pending(self, irq: Interrupt) -> bool:
        """The pending bit that a guest reads."""
        self._look(irq)
        if irq.waiting():
            return True
        entry = irq.at
        return entry is not None and not entry.dropped and irq.edge and entry.bank.look(entry).pending

    def active(self, irq: Interrupt) -> bool:
        """The active bit that a guest reads."""
        self._look(irq)
        entry = irq.at
        return irq.active or (entry is not None and not entry.ended and entry.bank.look(entry).active)

    def set_pending(self, irq: Interrupt) -> bool:
        """Latch a pending state.  False when it coalesced with one that the guest had not yet acknowledged."""
        self._refresh(irq)
        waited, listed = irq.latch, irq.listed
        irq.latch = True
        self._change(irq)
        return not waited and (irq.latch or irq.listed != listed)

    def clear_pending(self, irq: Interrupt) -> None:
        """Clear the latch; a level-sensitive interrupt whose wire is up stays pending."""
        self._refresh(irq)
        irq.latch = False
        if irq.at is not None and irq.edge and irq.at.bank.look(irq.at).pending:
            irq.at.dropped = True
        self._change(irq)

    def set_source(self, irq: Interrupt, sources: int, pending: bool) -> None:
        """Make a GICv2 SGI pending from `sources` (a CPU mask), or no longer so."""
        self._refresh(irq)
        if pending:
            irq.sources |= sources
        else:
            irq.sources &= ~sources
            if irq.at is not None and irq.at.source is not None and sources >> irq.at.source & 1:
                irq.at.dropped = True
        self._change(irq)

    def sources(self, irq: Interrupt) -> int:
        """CPU mask of those that a GICv2 SGI is pending from."""
        self._look(irq)
        entry = irq.at
        if entry is None or entry.source is None or entry.dropped or not entry.bank.look(entry).pending:
            return irq.sources
        return irq.sources | 1 << entry.source

    def set_active(self, irq: Interrupt, active: bool) -> None:
        """Write the active bit.  Clearing it deactivates, even what a guest has in service."""
        self._refresh(irq)
        if not active:
            irq.active = False
            if irq.at is not None and irq.at.bank.look(irq.at).active:
                irq.at.ended = True
        elif not self.active(irq):
            irq.active = True
        self._change(irq)

    def deactivate(self, vcpu: int, value: int) -> None:
        """Deactivate what a guest wrote to EOIR or DIR and no list register held: trapped by `vcpu`."""
        self.fold(vcpu)
        irq = self.interrupt(value & 0x3FF if self.version == 2 else value, vcpu)
        if irq is not None:
            irq.active = False
            self._change(irq)

    def set_enabled(self, irq: Interrupt, enabled: bool) -> None:
        """Forward the interrupt to its target, or keep it pending here."""
        irq.enabled = enabled
        self._change(irq)

    def set_group(self, irq: Interrupt, group: int) -> None:
        """Group 0 or 1."""
        irq.group = group
        self._change(irq)

    def set_priority(self, irq: Interrupt, priority: int) -> None:
        """Lower numbers are more urgent; five bits are kept."""
        irq.priority = priority & PRIORITY_MASK
        self._change(irq)

    def set_edge(self, irq: Interrupt, edge: bool) -> None:
        """Edge-triggered or level-sensitive.  That of an SGI is fixed."""
        if irq.kind != IntidKind.SGI:
            self._refresh(irq)
            irq.edge = edge
            self._change(irq)

    def set_mask(self, irq: Interrupt, mask: int) -> None:
        """GICD_ITARGETSR of an SPI: the CPUs that may take it; 0 is nobody."""
        irq.mask = mask & (1 << len(self.lists)) - 1
        irq.target = (irq.mask & -irq.mask).bit_length() - 1 if irq.mask else None
        self._change(irq)

    def set_route(self, irq: Interrupt, route: int) -> None:
        """GICD_IROUTER of an SPI: one affinity (a vCPU that is not there: nobody), or with IRM any vCPU."""
        irq.route = route & IROUTER_MASK
        values = {row.name: row.get(route) for row in IROUTER}
        affinity = values["aff3"], values["aff2"], values["aff1"], values["aff0"]
        irq.target = 0 if values["irm"] else self.affinities.get(affinity)
        self._change(irq)

    def set_ctlr(self, value: int) -> None:
        """GICD_CTLR: which groups are forwarded."""
        self.ctlr = value & CTLR_GROUPS
        self.consider_all((*self.spis, *(irq for bank in self.banked for irq in bank), *self.lpis.values()))

    def consider_all(self, irqs: Iterable[Interrupt]) -> None:
        """A rule that admits or holds back these interrupts has changed."""
        for irq in irqs:
            self.consider(irq)
        self.settle()
