"""The local APIC's registers, commands and destinations as tables, and the small functions that read them.

Sources: Intel SDM vol. 3A chapter 10 (its numbering before the chapter became 11); Intel 64 Architecture x2APIC
Specification for what WRMSR ignores.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

FIRST_LEGAL_VECTOR: Final = 16
LAST_VECTOR: Final = 255
MSR_FIRST: Final = 0x800
MSR_LAST: Final = 0x83F
LVT_MASKED: Final = 1 << 16
SVR_ENABLE: Final = 1 << 8
SVR_SUPPRESS_EOI_BROADCAST: Final = 1 << 12


class ApicFault(Exception):
    """An access that raises #GP(0): a reserved register or bit, or the wrong direction."""


class DeliveryMode(IntEnum):
    """What a message asks its targets to do (SDM vol. 3A 10.5.1, 10.6.1, 10.11.2).  3 is reserved everywhere; STARTUP
    exists in the ICR only, EXTINT in an MSI and in the LVT only.
    """

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """The ICR's destination shorthand (SDM vol. 3A 10.6.1)."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class ApicError(IntEnum):
    """A bit number of the error status register (SDM vol. 3A 10.5.3).  0-3 belong to the serial APIC bus; 7 to MMIO: an
    MSR that does not exist is a fault instead.
    """

    REDIRECTABLE_IPI = 4
    SEND_ILLEGAL_VECTOR = 5
    RECEIVE_ILLEGAL_VECTOR = 6


class Register(NamedTuple):
    """The MSRs `first`..`last`, inclusive.  `access` is "r", "w", "rw" or "" for a reserved index.

    `writable` bits are stored or acted upon, `ignored` bits may be set without effect, any other set bit is #GP.
    `reset` is the value after reset and INIT, None where the value is computed.
    """

    first: int
    last: int
    name: str
    access: str
    writable: int
    ignored: int
    reset: int | None
    source: str


REGISTERS: Final = (
    Register(0x800, 0x801, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2"),
    Register(0x802, 0x802, "ID", "r", 0, 0, None, "SDM 3A table 10-6, 10.12.5.1"),
    # Version 15H, seven LVT entries, EOI-broadcast suppression.
    Register(0x803, 0x803, "VERSION", "r", 0, 0, 0x0106_0015, "SDM 3A table 10-6, 10.4.8"),
    Register(0x804, 0x807, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2"),
    Register(0x808, 0x808, "TPR", "rw", 0xFF, 0, None, "SDM 3A table 10-6, 10.8.3.1"),
    Register(0x809, 0x809, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2 (arbitration priority: not in x2APIC mode)"),
    Register(0x80A, 0x80A, "PPR", "r", 0, 0, None, "SDM 3A table 10-6, 10.8.3.1"),
    Register(0x80B, 0x80B, "EOI", "w", 0, 0, None, "SDM 3A table 10-6: a value that is not zero is #GP"),
    Register(0x80C, 0x80C, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2 (remote read: not in x2APIC mode)"),
    Register(0x80D, 0x80D, "LDR", "r", 0, 0, None, "SDM 3A table 10-6, 10.12.10.2"),
    Register(0x80E, 0x80E, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2 (DFR: not in x2APIC mode)"),
    Register(0x80F, 0x80F, "SVR", "rw", 0x13FF, 0, 0xFF, "SDM 3A table 10-6, 10.9"),
    Register(0x810, 0x817, "ISR", "r", 0, 0, None, "SDM 3A table 10-6, 10.8.4"),
    Register(0x818, 0x81F, "TMR", "r", 0, 0, None, "SDM 3A table 10-6, 10.8.4"),
    Register(0x820, 0x827, "IRR", "r", 0, 0, None, "SDM 3A table 10-6, 10.8.4"),
    Register(0x828, 0x828, "ESR", "rw", 0, 0, 0, "SDM 3A table 10-6, 10.5.3: a value that is not zero is #GP"),
    Register(0x829, 0x82E, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2"),
    Register(0x82F, 0x82F, "LVT_CMCI", "rw", 0x1_07FF, 0x1000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x830, 0x830, "ICR", "rw", 0xFFFF_FFFF_000C_CFFF, 0x1000, 0, "SDM 3A table 10-6, 10.12.9; x2APIC 2.4.3"),
    Register(0x831, 0x831, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2 (the ICR's upper half is in 830H)"),
    Register(0x832, 0x832, "LVT_TIMER", "rw", 0x7_00FF, 0x1000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x833, 0x833, "LVT_THERMAL", "rw", 0x1_07FF, 0x1000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x834, 0x834, "LVT_PERFORMANCE", "rw", 0x1_07FF, 0x1000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x835, 0x835, "LVT_LINT0", "rw", 0x1_A7FF, 0x5000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x836, 0x836, "LVT_LINT1", "rw", 0x1_A7FF, 0x5000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x837, 0x837, "LVT_ERROR", "rw", 0x1_00FF, 0x1000, LVT_MASKED, "SDM 3A table 10-6, figure 10-8"),
    Register(0x838, 0x838, "TIMER_INITIAL", "rw", 0xFFFF_FFFF, 0, 0, "SDM 3A table 10-6, 10.5.4"),
    Register(0x839, 0x839, "TIMER_CURRENT", "r", 0, 0, 0, "SDM 3A table 10-6, 10.5.4"),
    Register(0x83A, 0x83D, "reserved", "", 0, 0, None, "SDM 3A 10.12.1.2"),
    Register(0x83E, 0x83E, "TIMER_DIVIDE", "rw", 0xB, 0, 0, "SDM 3A table 10-6, figure 10-10"),
    Register(0x83F, 0x83F, "SELF_IPI", "w", 0xFF, 0, None, "SDM 3A table 10-6, 10.12.11"),
)

BY_MSR: Final = {msr: row for row in REGISTERS for msr in range(row.first, row.last + 1)}
MSR: Final = {row.name: row.first for row in REGISTERS if row.access}
LVT_MSRS: Final = tuple(row.first for row in REGISTERS if row.name.startswith("LVT_"))


class IcrField(NamedTuple):
    """Bits high..low of the 64-bit ICR."""

    name: str
    high: int
    low: int
    source: str


ICR_FIELDS: Final = (
    IcrField("vector", 7, 0, "SDM 3A figure 10-28"),
    IcrField("delivery_mode", 10, 8, "SDM 3A figure 10-28"),
    IcrField("logical", 11, 11, "SDM 3A figure 10-28"),
    IcrField("assert", 14, 14, "SDM 3A figure 10-28"),
    IcrField("level", 15, 15, "SDM 3A figure 10-28"),
    IcrField("shorthand", 19, 18, "SDM 3A figure 10-28"),
    IcrField("destination", 63, 32, "SDM 3A figure 10-28"),
)


class IcrMode(NamedTuple):
    """What the APIC does with an ICR write in this mode: with which shorthands it sends, whether vectors below 16 are
    an error instead, whether a level de-assert sends nothing, and the error bit of a mode that is never sent.
    """

    mode: int
    shorthands: tuple[Shorthand, ...]
    checks_vector: bool
    drops_deassert: bool
    error: ApicError | None
    source: str


_ANYWHERE: Final = (Shorthand.NONE, Shorthand.SELF, Shorthand.ALL, Shorthand.OTHERS)
_NOT_SELF: Final = (Shorthand.NONE, Shorthand.OTHERS)

ICR_MODES: Final = (
    IcrMode(DeliveryMode.FIXED, _ANYWHERE, True, False, None, "SDM 3A table 10-3, 10.5.3"),
    # x2APIC mode cannot send it, and says so in the ESR.
    IcrMode(DeliveryMode.LOWEST_PRIORITY, (), False, False, ApicError.REDIRECTABLE_IPI, "SDM 3A 10.5.3, 10.12.8"),
    IcrMode(DeliveryMode.SMI, _NOT_SELF, False, False, None, "SDM 3A table 10-3"),
    IcrMode(3, (), False, False, None, "SDM 3A 10.6.1: reserved"),
    IcrMode(DeliveryMode.NMI, _NOT_SELF, False, False, None, "SDM 3A table 10-3"),
    IcrMode(DeliveryMode.INIT, _NOT_SELF, False, True, None, "SDM 3A table 10-3, 10.6.1"),
    IcrMode(DeliveryMode.STARTUP, _NOT_SELF, False, False, None, "SDM 3A table 10-3"),
    IcrMode(7, (), False, False, None, "SDM 3A 10.6.1: reserved"),
)


class Ipi(NamedTuple):
    """An interprocessor interrupt to be sent.  Always edge: a level bit in the ICR is overridden (table 10-3)."""

    mode: DeliveryMode
    vector: int
    shorthand: Shorthand
    logical: bool
    destination: int


class EoiBroadcast(NamedTuple):
    """The EOI of a level-triggered vector, for the I/O APICs and whoever else holds a line on it."""

    vector: int


def icr_fields(value: int) -> dict[str, int]:
    """The fields of an ICR value by name."""
    return {field.name: value >> field.low & (1 << field.high - field.low + 1) - 1 for field in ICR_FIELDS}


class DestinationFormat(NamedTuple):
    """How an APIC compares a destination with itself.

    Physically: `broadcast` or its id.  Logically: `logical_broadcast` if there is one, else the same cluster (bits of
    `cluster`) and a member in common (bits of `member`); bits of the destination outside both are not looked at.
    """

    name: str
    broadcast: int
    logical_broadcast: int | None
    cluster: int
    member: int
    source: str


DESTINATION_FORMATS: Final = (
    DestinationFormat("xapic flat", 0xFF, None, 0, 0xFF, "SDM 3A 10.6.2.1, 10.6.2.2"),
    DestinationFormat("xapic cluster", 0xFF, 0xFF, 0xF0, 0x0F, "SDM 3A 10.6.2.1, 10.6.2.2"),
    DestinationFormat("x2apic", 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_0000, 0xFFFF, "SDM 3A 10.12.9, 10.12.10"),
)
FLAT, CLUSTER, X2APIC = DESTINATION_FORMATS


class ApicAddress(NamedTuple):
    """An APIC as senders see it.  `ppr` matters to lowest-priority arbitration only; a sender that cannot know it
    leaves zeros, and arbitration is round robin.
    """

    apic_id: int
    logical_id: int
    format: DestinationFormat
    enabled: bool = True
    ppr: int = 0


def logical_x2apic_id(apic_id: int) -> int:
    """The LDR that x2APIC hardware derives from the id (SDM vol. 3A 10.12.10.2)."""
    return (apic_id >> 4 & 0xFFFF) << 16 | 1 << (apic_id & 15)


def x2apic_address(apic_id: int) -> ApicAddress:
    """The address of an enabled APIC in x2APIC mode."""
    return ApicAddress(apic_id, logical_x2apic_id(apic_id), X2APIC)


def addressed(apic: ApicAddress, destination: int, logical: bool) -> bool:
    """Whether a message to `destination` means `apic` (SDM vol. 3A 10.6.2, 10.12.9)."""
    _, broadcast, logical_broadcast, cluster, member, _ = apic.format
    if not logical:
        return destination in (apic.apic_id, broadcast)
    if destination == logical_broadcast:
        return True
    return not (apic.logical_id ^ destination) & cluster and bool(apic.logical_id & destination & member)


def ipi_targets(ipi: Ipi, sender: int, apics: Sequence[ApicAddress]) -> tuple[int, ...]:
    """Indexes into `apics` that `ipi`, sent by APIC `sender`, goes to.  A software-disabled APIC is among them: whether
    it accepts depends on the mode.
    """
    match ipi.shorthand:
        case Shorthand.SELF:
            return (sender,)
        case Shorthand.ALL:
            return tuple(range(len(apics)))
        case Shorthand.OTHERS:
            return tuple(index for index in range(len(apics)) if index != sender)
        case Shorthand.NONE:
            found = (index for index, apic in enumerate(apics) if addressed(apic, ipi.destination, ipi.logical))
            return tuple(found)
