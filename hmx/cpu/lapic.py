"""The local APIC of one vCPU in x2APIC mode, run by the guest's own process as APICv silicon runs it.

What the hypervisor posts is accepted into the IRR; delivery, TPR and EOI happen here, without an exit.  Nothing is sent
from here: an interprocessor interrupt or the EOI of a level-triggered vector is returned to the owner.  Sources: Intel
SDM vol. 3A chapter 10 (its numbering before the chapter became 11), vol. 3C 29.1-29.2 for APICv.

Not modelled: the timer counts nothing (its registers hold what is written), no LVT entry but the error entry has a
source, and there is no xAPIC (MMIO) mode.
"""

from __future__ import annotations

from typing import Final

from hmx.cpu.apic_regs import (
    BY_MSR,
    FIRST_LEGAL_VECTOR,
    ICR_MODES,
    LAST_VECTOR,
    LVT_MASKED,
    LVT_MSRS,
    MSR,
    REGISTERS,
    SVR_ENABLE,
    SVR_SUPPRESS_EOI_BROADCAST,
    X2APIC,
    ApicAddress,
    ApicError,
    ApicFault,
    DeliveryMode,
    EoiBroadcast,
    Ipi,
    Shorthand,
    icr_fields,
    logical_x2apic_id,
    x2apic_address,
)

_ICR_MODE: Final = {row.mode: row for row in ICR_MODES}
_RESET: Final = {row.first: row.reset for row in REGISTERS if row.reset is not None}
_ESR: Final = MSR["ESR"]
_SVR: Final = MSR["SVR"]
_LVT_ERROR: Final = MSR["LVT_ERROR"]


class LocalApic:
    """One local APIC.  It starts as after reset: software-disabled (SVR 0xFF), every LVT entry masked.

    IRR, ISR and TMR are ints of 256 bits, bit v for vector v.  Raises ValueError for an id that cannot be assigned.
    """

    __slots__ = ("_enabled", "_errors", "_floor", "_id", "_irr", "_isr", "_ppr", "_regs", "_tmr", "_tpr")

    def __init__(self, apic_id: int) -> None:
        if not 0 <= apic_id < X2APIC.broadcast:
            raise ValueError(f"not an x2APIC id: {apic_id:#x}")
        self._id = apic_id
        self.reset()

    def reset(self) -> None:
        """Take the state after reset; after INIT it is the same, the id is kept (SDM vol. 3A 10.4.7.1, 10.4.7.3)."""
        self._irr = self._isr = self._tmr = self._tpr = 0
        self._errors = 0  # detected since the last write to the ESR
        self._regs = dict(_RESET)
        self._enabled = False
        self._refresh()

    def accept(self, vector: int, level: bool = False) -> bool:
        """Take an interrupt message: True if its IRR bit was clear (SDM vol. 3A 10.8.4).

        False: coalesced with one not yet delivered, lost because the APIC is software-disabled, or an illegal vector
        (0-15), which the ESR records.  Raises ValueError beyond 255.
        """
        if not FIRST_LEGAL_VECTOR <= vector <= LAST_VECTOR:
            return self._illegal(vector)
        if not self._enabled:
            return False
        bit = 1 << vector
        if level:
            self._tmr |= bit
        elif self._tmr & bit:
            self._tmr ^= bit
        if self._irr & bit:
            return False
        self._irr |= bit
        return True

    def pending(self) -> int | None:
        """The vector that interrupts the processor now, or None: the highest in IRR, if its class is above PPR's
        (SDM vol. 3A 10.8.3.1).  While the APIC is software-disabled what is in IRR is held.
        """
        vector = self._irr.bit_length() - 1
        return vector if vector >= self._floor else None

    def acknowledge(self) -> int | None:
        """Deliver: move the pending vector from IRR to ISR and return it; None with none pending.

        APICv delivers what it has recognised, without an interrupt-acknowledge cycle (SDM vol. 3C 29.2.2), so a TPR
        raised in between costs nothing and the spurious vector (vol. 3A 10.9) never comes.
        """
        vector = self._irr.bit_length() - 1
        if vector < self._floor:
            return None
        bit = 1 << vector
        self._irr ^= bit
        self._isr |= bit
        self._refresh()
        return vector

    def eoi(self) -> int | None:
        """End the highest vector in service; return it if it was level-triggered and its EOI is to be broadcast
        (SDM vol. 3A 10.8.5).  Without one in service nothing happens.
        """
        vector = self._isr.bit_length() - 1
        if vector < 0:
            return None
        self._isr ^= 1 << vector
        self._refresh()
        level = self._tmr >> vector & 1
        return vector if level and not self._regs[_SVR] & SVR_SUPPRESS_EOI_BROADCAST else None

    def self_ipi(self, vector: int) -> bool:
        """Send a fixed edge interrupt to this processor; True if newly pending (SDM vol. 3A 10.12.11).  An illegal
        vector is an error of sending and one of receiving (10.5.3).
        """
        if vector < FIRST_LEGAL_VECTOR:
            self._error(ApicError.SEND_ILLEGAL_VECTOR)
        return self.accept(vector)

    @property
    def apic_id(self) -> int:
        """The x2APIC id, 32 bits."""
        return self._id

    @property
    def ldr(self) -> int:
        """The logical x2APIC id: cluster in bits 31:16, one bit of 15:0."""
        return logical_x2apic_id(self._id)

    @property
    def address(self) -> ApicAddress:
        """This APIC as senders see it now."""
        return x2apic_address(self._id)._replace(enabled=self._enabled, ppr=self._ppr)

    @property
    def irr(self) -> int:
        """Vectors accepted and not yet delivered."""
        return self._irr

    @property
    def isr(self) -> int:
        """Vectors in service."""
        return self._isr

    @property
    def tmr(self) -> int:
        """Vectors last accepted as level-triggered."""
        return self._tmr

    @property
    def ppr(self) -> int:
        """The processor priority, 8 bits."""
        return self._ppr

    @property
    def enabled(self) -> bool:
        """SVR bit 8: software enable."""
        return self._enabled

    @property
    def esr(self) -> int:
        """The error status register: what had been detected up to the last write to it."""
        return self._regs[_ESR]

    @property
    def tpr(self) -> int:
        """The task priority, 8 bits.  Setting it to more raises ApicFault."""
        return self._tpr

    @tpr.setter
    def tpr(self, value: int) -> None:
        self.write(MSR["TPR"], value)

    @property
    def cr8(self) -> int:
        """TPR bits 7:4.  Setting it clears TPR bits 3:0; more than four bits raise ApicFault (SDM vol. 3A 10.8.6)."""
        return self._tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        if not 0 <= value <= 0xF:
            raise ApicFault(f"CR8 = {value:#x}")
        self.tpr = value << 4

    @property
    def svr(self) -> int:
        """The spurious-interrupt vector register: vector 7:0, enable 8, suppress EOI broadcast 12."""
        return self._regs[_SVR]

    @svr.setter
    def svr(self, value: int) -> None:
        self.write(_SVR, value)

    def read(self, index: int) -> int:
        """RDMSR of x2APIC MSR `index` (0x800-0x83F).  Raises ApicFault for what is reserved or write-only."""
        row = BY_MSR.get(index)
        if row is None or "r" not in row.access:
            raise ApicFault(f"RDMSR {index:#x}")
        match row.name:
            case "ID":
                return self._id
            case "TPR":
                return self._tpr
            case "PPR":
                return self._ppr
            case "LDR":
                return self.ldr
            case "ISR" | "TMR" | "IRR":
                bits = {"ISR": self._isr, "TMR": self._tmr, "IRR": self._irr}[row.name]
                return bits >> 32 * (index - row.first) & 0xFFFF_FFFF
        return self._regs[index]

    def write(self, index: int, value: int) -> Ipi | EoiBroadcast | None:
        """WRMSR of x2APIC MSR `index`; returns what the owner must send, if anything.

        Raises ApicFault for a register that is reserved or read-only and for reserved bits; nothing has changed then.
        A fixed interrupt to self by shorthand or SELF IPI is accepted here; an Ipi with another destination may name
        this APIC too.
        """
        row = BY_MSR.get(index)
        if row is None or "w" not in row.access or value < 0 or value & ~(row.writable | row.ignored):
            raise ApicFault(f"WRMSR {index:#x}, {value:#x}")
        value &= row.writable
        match row.name:
            case "TPR":
                self._tpr = value
                self._refresh()
            case "EOI":
                vector = self.eoi()
                return None if vector is None else EoiBroadcast(vector)
            case "SELF_IPI":
                self.self_ipi(value)
            case "ICR":
                self._regs[index] = value
                return self._command(value)
            case "ESR":
                self._regs[_ESR], self._errors = self._errors, 0
            case "SVR":
                self._set_svr(value)
            case _:
                self._regs[index] = value | (LVT_MASKED if index in LVT_MSRS and not self._enabled else 0)
        return None

    def _refresh(self) -> None:
        """Recompute PPR (SDM vol. 3A 10.8.3.1; on a tie TPR, as vol. 3C 29.1.3) and the lowest vector above it."""
        serving = self._isr.bit_length() - 1
        self._ppr = self._tpr if self._tpr >> 4 >= serving >> 4 else serving & 0xF0
        self._floor = (self._ppr & 0xF0) + FIRST_LEGAL_VECTOR if self._enabled else LAST_VECTOR + 1

    def _set_svr(self, value: int) -> None:
        self._regs[_SVR] = value
        self._enabled = bool(value & SVR_ENABLE)
        if not self._enabled:  # IRR and ISR are held, every LVT entry is masked (SDM vol. 3A 10.4.7.2)
            for index in LVT_MSRS:
                self._regs[index] |= LVT_MASKED
        self._refresh()

    def _illegal(self, vector: int) -> bool:
        if not 0 <= vector <= LAST_VECTOR:
            raise ValueError(f"not a vector: {vector}")
        if self._enabled:
            self._error(ApicError.RECEIVE_ILLEGAL_VECTOR)
        return False

    def _error(self, error: ApicError) -> None:
        """Record an error; one not yet recorded since the ESR was written interrupts by the LVT error entry."""
        if self._errors >> error & 1:
            return
        self._errors |= 1 << error
        entry = self._regs[_LVT_ERROR]
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF)

    def _command(self, value: int) -> Ipi | None:
        """Carry out an ICR write (SDM vol. 3A 10.6.1, 10.12.9)."""
        fields = icr_fields(value)
        row = _ICR_MODE[fields["delivery_mode"]]
        vector, shorthand = fields["vector"], Shorthand(fields["shorthand"])
        if row.error is not None:
            self._error(row.error)
            return None
        if shorthand not in row.shorthands or (row.drops_deassert and fields["level"] and not fields["assert"]):
            return None
        if shorthand is Shorthand.SELF:
            self.self_ipi(vector)
            return None
        if row.checks_vector and vector < FIRST_LEGAL_VECTOR:
            self._error(ApicError.SEND_ILLEGAL_VECTOR)
            return None
        return Ipi(DeliveryMode(row.mode), vector, shorthand, bool(fields["logical"]), fields["destination"])
