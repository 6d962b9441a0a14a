"""Register frames of the interrupt controller, and the LPIs of its redistributors.

A guest's loads and stores in GICD and GICR become operations on the distributor's one state, by the register maps of
hmx.gic.  Holes read as zero and ignore writes, and so do, with affinity routing, the SGIs and PPIs in GICD.

LPIs are edge-triggered and have no active state; whether one is enabled and how urgent it is stands in a table in guest
memory, a byte each, which is read when the LPI is mapped and when the guest invalidates it.  Sources: Arm IHI 0048B
chapter 4, IHI 0069 chapters 5 and 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from hmx.gic import (
    BANKED,
    GICD,
    GICR,
    LPI_BASE,
    PRIORITY_MASK,
    SGIS,
    SPURIOUS,
    Field,
    IntidKind,
    Register,
    decode,
    encode,
    field,
    find,
)
from hv_node.interrupts.gicd import Distributor
from hv_node.interrupts.listregs import Interrupt

Memory = Callable[[int, int], bytes | None]  # (guest-physical address, length) -> bytes, or None where none are

ID_BITS: Final = 16  # INTIDs below 65536: 57344 LPIs
IIDR: Final = 0x0000_043B  # implementer Arm
CTLR_ARE: Final = 1 << 4
CTLR_DS: Final = 1 << 6
CTLR_RWP: Final = 1 << 31
ENABLE_LPIS: Final = 1
LPIS_A_STEP: Final = 16

# IHI 0048B 4.3.2 and IHI 0069, GICD_TYPER.
TYPER_V2: Final[tuple[Field, ...]] = (Field("it_lines", 4, 0), Field("cpu_number", 7, 5))
TYPER_V3: Final[tuple[Field, ...]] = (
    Field("it_lines", 4, 0),
    Field("mbis", 16, 16),
    Field("lpis", 17, 17),
    Field("id_bits", 23, 19),
)

# IHI 0069, GICR_TYPER.
GICR_TYPER: Final[tuple[Field, ...]] = (
    Field("plpis", 0, 0),
    Field("last", 4, 4),
    Field("processor", 23, 8),
    Field("aff0", 39, 32),
    Field("aff1", 47, 40),
    Field("aff2", 55, 48),
    Field("aff3", 63, 56),
)

# IHI 0069, GICR_PROPBASER.
PROPBASER: Final[tuple[Field, ...]] = (Field("id_bits", 4, 0), Field("address", 51, 12))

# A byte of the LPI configuration table.  IHI 0069 5.1.1.
LPI_CONFIG: Final[tuple[Field, ...]] = (Field("enable", 0, 0), Field("priority", 7, 2))


class Bits(NamedTuple):
    """What an INTID's bits in a register show, and what a write of them does.  `value` is never 0 in set and clear
    registers, where zeroes have no effect; `zeroes` says that they have one here.
    """

    zeroes: bool
    read: Callable[[Distributor, Interrupt], int]
    write: Callable[[Distributor, Interrupt, int], None]


def _set_pending(dist: Distributor, irq: Interrupt, _value: int) -> None:
    if dist.version > 2 or irq.intid >= SGIS:  # GICv2: an SGI's bits are read-only here (IHI 0048B 4.3.7)
        dist.set_pending(irq)


def _clear_pending(dist: Distributor, irq: Interrupt, _value: int) -> None:
    if dist.version > 2 or irq.intid >= SGIS:
        dist.clear_pending(irq)


def _targets(dist: Distributor, irq: Interrupt) -> int:
    if len(dist.lists) == 1:
        return 0  # a uniprocessor has no choice: the registers read as zero (IHI 0048B 4.3.12)
    return irq.mask if irq.intid >= BANKED else 1 << (irq.target or 0)


def _set_targets(dist: Distributor, irq: Interrupt, value: int) -> None:
    if irq.intid >= BANKED and len(dist.lists) > 1:
        dist.set_mask(irq, value)


PER_INTID: Final[dict[str, Bits]] = {
    "IGROUPR": Bits(True, lambda _, irq: irq.group, lambda dist, irq, value: dist.set_group(irq, value)),
    "ISENABLER": Bits(False, lambda _, irq: int(irq.enabled), lambda dist, irq, _: dist.set_enabled(irq, True)),
    "ICENABLER": Bits(False, lambda _, irq: int(irq.enabled), lambda dist, irq, _: dist.set_enabled(irq, False)),
    "ISPENDR": Bits(False, lambda dist, irq: int(dist.pending(irq)), _set_pending),
    "ICPENDR": Bits(False, lambda dist, irq: int(dist.pending(irq)), _clear_pending),
    "ISACTIVER": Bits(
        False, lambda dist, irq: int(dist.active(irq)), lambda dist, irq, _: dist.set_active(irq, True)
    ),
    "ICACTIVER": Bits(
        False, lambda dist, irq: int(dist.active(irq)), lambda dist, irq, _: dist.set_active(irq, False)
    ),
    "IPRIORITYR": Bits(True, lambda _, irq: irq.priority, lambda dist, irq, value: dist.set_priority(irq, value)),
    "ITARGETSR": Bits(True, _targets, _set_targets),
    "ICFGR": Bits(True, lambda _, irq: 2 * irq.edge, lambda dist, irq, value: dist.set_edge(irq, value > 1)),
    "CPENDSGIR": Bits(
        False, lambda dist, irq: dist.sources(irq), lambda dist, irq, value: dist.set_source(irq, value, False)
    ),
    "SPENDSGIR": Bits(
        False, lambda dist, irq: dist.sources(irq), lambda dist, irq, value: dist.set_source(irq, value, True)
    ),
    "IROUTER": Bits(True, lambda _, irq: irq.route, lambda dist, irq, value: dist.set_route(irq, value)),
}


class Bank:
    """The per-INTID registers as `vcpu` sees them, of the INTIDs from `first` to `last`."""

    def __init__(self, dist: Distributor, vcpu: int, first: int, last: int) -> None:
        self._dist = dist
        self._vcpu = vcpu
        self._first = first
        self._last = last

    def _irqs(self, row: Register, offset: int, size: int) -> list[tuple[int, Interrupt]]:
        """(bit position, interrupt) of each INTID in `size` bytes at `offset`."""
        first = (offset - row.offset) * 8 // row.per_intid
        found = []
        for place in range(max(size * 8 // row.per_intid, 1)):
            intid = first + place
            irq = self._dist.interrupt(intid, self._vcpu) if self._first <= intid <= self._last else None
            if irq is not None:
                found.append((place * row.per_intid, irq))
        return found

    def read(self, row: Register, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the frame, in the register of `row`."""
        bits = PER_INTID[row.name.split("_")[1].rstrip("0")]
        value = 0
        for place, irq in self._irqs(row, offset, size):
            value |= bits.read(self._dist, irq) << place
        return value >> offset % (row.per_intid // 8 or 1) * 8 & (1 << size * 8) - 1

    def write(self, row: Register, offset: int, value: int, size: int) -> None:
        """Write `size` bytes."""
        bits = PER_INTID[row.name.split("_")[1].rstrip("0")]
        for place, irq in self._irqs(row, offset, size):
            part = value >> place & (1 << min(row.per_intid, size * 8)) - 1
            if size * 8 < row.per_intid:  # half of a 64-bit register
                shift = offset % (row.per_intid // 8) * 8
                part = bits.read(self._dist, irq) & ~((1 << size * 8) - 1 << shift) | part << shift
            if part or bits.zeroes:
                bits.write(self._dist, irq, part)


class DistributorFrame:
    """The registers of GICD."""

    def __init__(self, dist: Distributor) -> None:
        self._dist = dist
        first = BANKED if dist.version > 2 else 0
        self._banks = [Bank(dist, vcpu, first, SPURIOUS) for vcpu in range(len(dist.lists))]

    def read(self, vcpu: int, offset: int, size: int = 4) -> int:
        """What `vcpu` loads from `offset`, `size` (1, 2, 4 or 8) bytes.  Zero in a hole."""
        dist = self._dist
        row = find(GICD, offset, dist.version)
        if row is None or "R" not in row.access:
            return 0
        if row.per_intid:
            return self._banks[vcpu].read(row, offset, size)
        lines = (BANKED + len(dist.spis) + 31) // 32 - 1
        match row.name:
            case "GICD_CTLR" if dist.version > 2:
                waits = any(lists.recalling() for other, lists in enumerate(dist.lists) if other != vcpu)
                return dist.ctlr | CTLR_ARE | CTLR_DS | (CTLR_RWP if waits else 0)
            case "GICD_CTLR":
                return dist.ctlr
            case "GICD_TYPER" if dist.version > 2:
                return encode(TYPER_V3, it_lines=lines, mbis=1, lpis=1, id_bits=ID_BITS - 1)
            case "GICD_TYPER":
                return encode(TYPER_V2, it_lines=lines, cpu_number=len(dist.lists) - 1)
            case "GICD_IIDR":
                return IIDR
            case "GICD_PIDR2" | "ICPIDR2":
                return dist.version << 4 | 0xB
        return 0

    def write(self, vcpu: int, offset: int, value: int, size: int = 4) -> None:
        """`vcpu` stores to `offset`.  Ignored in a hole."""
        dist = self._dist
        row = find(GICD, offset, dist.version)
        if row is None or "W" not in row.access:
            return
        if row.per_intid:
            self._banks[vcpu].write(row, offset, value, size)
            return
        match row.name:
            case "GICD_CTLR":
                dist.set_ctlr(value)
            case "GICD_SGIR":
                dist.sgi_v2(vcpu, value)
            case "GICD_SETSPI_NSR":
                self._message(value, True)
            case "GICD_CLRSPI_NSR":
                self._message(value, False)

    def _message(self, value: int, pending: bool) -> None:
        """A message-based SPI (IHI 0069, GICD_SETSPI_NSR): one that is not there is ignored."""
        irq = self._dist.interrupt(value & SPURIOUS)
        if irq is not None and irq.intid >= BANKED:
            (self._dist.set_pending if pending else self._dist.clear_pending)(irq)


class Lpis:
    """The LPIs of a guest: pending at one redistributor at a time.  `memory` reads guest memory."""

    def __init__(self, dist: Distributor, memory: Memory) -> None:
        self._dist = dist
        self._memory = memory
        self.enabled = [False] * len(dist.lists)
        self.propbaser = [0] * len(dist.lists)
        self.pendbaser = [0] * len(dist.lists)
        dist.admits_lpi = lambda irq: irq.target is not None and self.enabled[irq.target]

    def exists(self, intid: int) -> bool:
        """True for an INTID that an LPI may have here."""
        return LPI_BASE <= intid < 1 << ID_BITS

    def enable(self, vcpu: int, enabled: bool) -> None:
        """GICR_CTLR.EnableLPIs."""
        self.enabled[vcpu] = enabled
        self.refresh_all(vcpu)
        self._dist.consider_all(self._dist.lpis.values())

    def _configure(self, irq: Interrupt) -> None:
        table = decode(PROPBASER, self.propbaser[irq.target or 0])
        byte = None
        if irq.intid < 1 << table["id_bits"] + 1:
            byte = self._memory((table["address"] << 12) + irq.intid - LPI_BASE, 1)
        config = byte[0] if byte else 0  # beyond the table, or no memory there: disabled
        irq.enabled = bool(field(LPI_CONFIG, "enable").get(config))
        irq.priority = field(LPI_CONFIG, "priority").get(config) << 2 & PRIORITY_MASK

    def attach(self, intid: int, vcpu: int) -> Interrupt:
        """The LPI of that number, now of the redistributor of `vcpu`; its configuration is read if it is new."""
        irq = self._dist.lpis.get(intid)
        if irq is None:
            irq = self._dist.lpis[intid] = Interrupt(intid, IntidKind.LPI, 1, vcpu)
            self._configure(irq)
        elif irq.target != vcpu:
            irq.target = vcpu
            self._dist.consider(irq)
            self._dist.settle()
        return irq

    def pend(self, intid: int, vcpu: int) -> bool:
        """Make an LPI pending at `vcpu`.  False (counted) while that redistributor has LPIs disabled."""
        if not self.enabled[vcpu]:
            self._dist.drop("LPIs disabled")
            return False
        self._dist.set_pending(self.attach(intid, vcpu))
        return True

    def clear(self, intid: int) -> None:
        """Forget that an LPI is pending."""
        if irq := self._dist.lpis.get(intid):
            self._dist.clear_pending(irq)

    def refresh(self, intid: int) -> None:
        """Read an LPI's configuration again."""
        if irq := self._dist.lpis.get(intid):
            self._configure(irq)
            self._dist.consider_all((irq,))

    def refresh_all(self, vcpu: int) -> None:
        """Read the configuration of all LPIs of a redistributor again."""
        for _ in self.refreshing(vcpu):
            pass

    def refreshing(self, vcpu: int) -> Iterator[None]:
        """The same step by step: some LPIs are looked at in each."""
        for place, irq in enumerate(list(self._dist.lpis.values())):
            if irq.target == vcpu:
                self._configure(irq)
                self._dist.consider(irq)
            if place % LPIS_A_STEP == LPIS_A_STEP - 1:
                self._dist.settle()
                yield
        self._dist.settle()

    def moving_all(self, source: int, target: int) -> Iterator[None]:
        """What is pending at one redistributor becomes pending at another; step by step."""
        for place, irq in enumerate(list(self._dist.lpis.values())):
            if irq.target == source:
                self.attach(irq.intid, target)
            if place % LPIS_A_STEP == LPIS_A_STEP - 1:
                yield


class Redistributor:
    """The registers of one vCPU's GICR: RD_base, and SGI_base 64 KiB above.  `last`: no other frame follows."""

    def __init__(self, dist: Distributor, lpis: Lpis, vcpu: int) -> None:
        self._vcpu = vcpu
        self._lpis = lpis
        self._bank = Bank(dist, vcpu, 0, BANKED - 1)
        aff3, aff2, aff1, aff0 = next(affinity for affinity, owner in dist.affinities.items() if owner == vcpu)
        last = int(vcpu == len(dist.lists) - 1)
        self._typer = encode(
            GICR_TYPER, plpis=1, last=last, processor=vcpu, aff0=aff0, aff1=aff1, aff2=aff2, aff3=aff3
        )

    def read(self, offset: int, size: int = 4) -> int:
        """What a vCPU loads from `offset`.  Zero in a hole; GICR_WAKER always says awake."""
        row = find(GICR, offset, 3)
        if row is None or "R" not in row.access:
            return 0
        if row.per_intid:
            return self._bank.read(row, offset, size)
        value = {
            "GICR_CTLR": int(self._lpis.enabled[self._vcpu]),
            "GICR_IIDR": IIDR,
            "GICR_TYPER": self._typer,
            "GICR_PROPBASER": self._lpis.propbaser[self._vcpu],
            "GICR_PENDBASER": self._lpis.pendbaser[self._vcpu],
            "GICR_PIDR2": 3 << 4 | 0xB,
        }.get(row.name, 0)
        return value >> (offset - row.offset) * 8 & (1 << size * 8) - 1

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """A vCPU stores to `offset`.  PROPBASER and PENDBASER do not change while LPIs are enabled."""
        row = find(GICR, offset, 3)
        if row is None or "W" not in row.access:
            return
        if row.per_intid:
            self._bank.write(row, offset, value, size)
        elif row.name == "GICR_CTLR":
            self._lpis.enable(self._vcpu, bool(value & ENABLE_LPIS))
        elif row.name in ("GICR_PROPBASER", "GICR_PENDBASER") and not self._lpis.enabled[self._vcpu]:
            bases = self._lpis.propbaser if row.name == "GICR_PROPBASER" else self._lpis.pendbaser
            shift = (offset - row.offset) * 8
            bases[self._vcpu] = bases[self._vcpu] & ~((1 << size * 8) - 1 << shift) | value << shift
