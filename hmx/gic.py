"""The Arm Generic Interrupt Controller as both sides of a trap see it: INTIDs, registers, list registers.

Sources: Arm IHI 0048B (GICv2), Arm IHI 0069 (GICv3); the names are theirs.  The words that a guest's virtual CPU
interface and its hypervisor share (`SHARED_LR`, `SHARED_LR_STATE`) are ours, experimental, not upstream: the layout of
ICH_LR<n>_EL2, with what a handshake between two processes needs in bits that the architecture leaves to software.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class IntidKind(IntEnum):
    """What an INTID is."""

    SGI = 0
    PPI = 1
    SPI = 2
    SPECIAL = 3
    EPPI = 4
    ESPI = 5
    LPI = 6


class IntidRange(NamedTuple):
    """INTIDs `first` to `last` are of `kind`; `banked`: one of each per CPU; `since`: the first GIC version."""

    kind: IntidKind
    first: int
    last: int
    banked: bool
    since: int
    source: str


INTID_RANGES: Final[tuple[IntidRange, ...]] = (
    IntidRange(IntidKind.SGI, 0, 15, True, 2, "IHI 0048B 2.2.1"),
    IntidRange(IntidKind.PPI, 16, 31, True, 2, "IHI 0048B 2.2.1"),
    IntidRange(IntidKind.SPI, 32, 1019, False, 2, "IHI 0048B 2.2.1"),
    IntidRange(IntidKind.SPECIAL, 1020, 1023, False, 2, "IHI 0048B 3.2.5"),
    IntidRange(IntidKind.EPPI, 1056, 1119, True, 3, "IHI 0069 2.2 (GICv3.1)"),
    IntidRange(IntidKind.ESPI, 4096, 5119, False, 3, "IHI 0069 2.2 (GICv3.1)"),
    IntidRange(IntidKind.LPI, 8192, (1 << 24) - 1, False, 3, "IHI 0069 2.2; 24 INTID bits at most"),
)

SPURIOUS: Final = 1023  # nothing to acknowledge
GROUP1_PENDING: Final = 1022  # GICv2: the interrupt is of the other group and AckCtl is clear (IHI 0048B 3.2.5)
IDLE_PRIORITY: Final = 0xFF
PRIORITY_MASK: Final = 0xF8  # five priority bits, the upper ones
LPI_BASE: Final = 8192
SGIS: Final = 16
BANKED: Final = 32  # SGIs and PPIs
V2_MAX_CPUS: Final = 8


def kind_of(intid: int, version: int = 3) -> IntidKind | None:
    """What `intid` is to a GIC of `version` (2 or 3), or None for a reserved number."""
    for row in INTID_RANGES:
        if row.first <= intid <= row.last:
            return row.kind if version >= row.since else None
    return None


# -- registers ----


class Register(NamedTuple):
    """One register, or `number` alike, `stride` bytes apart, `width` bits each.

    `per_intid` is how many bits an INTID has in it (0: the register is about something else); bit 0 of the first
    register belongs to INTID 0.  `access` is R, W or RW, `since` and `until` the GIC versions that have it.
    """

    name: str
    offset: int
    stride: int
    number: int
    width: int
    per_intid: int
    access: str
    since: int = 2
    until: int = 3

    @property
    def size(self) -> int:
        """Bytes that the registers of this row span."""
        return self.stride * self.number


# The distributor.  IHI 0048B 4.1.2, IHI 0069 12.8.
GICD: Final[tuple[Register, ...]] = (
    Register("GICD_CTLR", 0x0000, 4, 1, 32, 0, "RW"),
    Register("GICD_TYPER", 0x0004, 4, 1, 32, 0, "R"),
    Register("GICD_IIDR", 0x0008, 4, 1, 32, 0, "R"),
    Register("GICD_SETSPI_NSR", 0x0040, 4, 1, 32, 0, "W", 3),
    Register("GICD_CLRSPI_NSR", 0x0048, 4, 1, 32, 0, "W", 3),
    Register("GICD_IGROUPR", 0x0080, 4, 32, 32, 1, "RW"),
    Register("GICD_ISENABLER", 0x0100, 4, 32, 32, 1, "RW"),
    Register("GICD_ICENABLER", 0x0180, 4, 32, 32, 1, "RW"),
    Register("GICD_ISPENDR", 0x0200, 4, 32, 32, 1, "RW"),
    Register("GICD_ICPENDR", 0x0280, 4, 32, 32, 1, "RW"),
    Register("GICD_ISACTIVER", 0x0300, 4, 32, 32, 1, "RW"),
    Register("GICD_ICACTIVER", 0x0380, 4, 32, 32, 1, "RW"),
    Register("GICD_IPRIORITYR", 0x0400, 4, 255, 32, 8, "RW"),
    Register("GICD_ITARGETSR", 0x0800, 4, 255, 32, 8, "RW", 2, 2),
    Register("GICD_ICFGR", 0x0C00, 4, 64, 32, 2, "RW"),
    Register("GICD_SGIR", 0x0F00, 4, 1, 32, 0, "W", 2, 2),
    Register("GICD_CPENDSGIR", 0x0F10, 4, 4, 32, 8, "RW", 2, 2),
    Register("GICD_SPENDSGIR", 0x0F20, 4, 4, 32, 8, "RW", 2, 2),
    Register("ICPIDR2", 0x0FE8, 4, 1, 32, 0, "R", 2, 2),
    Register("GICD_IROUTER", 0x6000, 8, 1020, 64, 64, "RW", 3),
    Register("GICD_PIDR2", 0xFFE8, 4, 1, 32, 0, "R", 3),
)

# The CPU interface of GICv2 (and GICV, which has its layout).  IHI 0048B 4.1.3, 5.3.
GICC: Final[tuple[Register, ...]] = (
    Register("GICC_CTLR", 0x0000, 4, 1, 32, 0, "RW"),
    Register("GICC_PMR", 0x0004, 4, 1, 32, 0, "RW"),
    Register("GICC_BPR", 0x0008, 4, 1, 32, 0, "RW"),
    Register("GICC_IAR", 0x000C, 4, 1, 32, 0, "R"),
    Register("GICC_EOIR", 0x0010, 4, 1, 32, 0, "W"),
    Register("GICC_RPR", 0x0014, 4, 1, 32, 0, "R"),
    Register("GICC_HPPIR", 0x0018, 4, 1, 32, 0, "R"),
    Register("GICC_ABPR", 0x001C, 4, 1, 32, 0, "RW"),
    Register("GICC_AIAR", 0x0020, 4, 1, 32, 0, "R"),
    Register("GICC_AEOIR", 0x0024, 4, 1, 32, 0, "W"),
    Register("GICC_AHPPIR", 0x0028, 4, 1, 32, 0, "R"),
    Register("GICC_DIR", 0x1000, 4, 1, 32, 0, "W"),
)

# A redistributor: the frame RD_base, and SGI_base 64 KiB above it.  IHI 0069 12.10, 12.11.
GICR: Final[tuple[Register, ...]] = (
    Register("GICR_CTLR", 0x0_0000, 4, 1, 32, 0, "RW", 3),
    Register("GICR_IIDR", 0x0_0004, 4, 1, 32, 0, "R", 3),
    Register("GICR_TYPER", 0x0_0008, 8, 1, 64, 0, "R", 3),
    Register("GICR_WAKER", 0x0_0014, 4, 1, 32, 0, "RW", 3),
    Register("GICR_PROPBASER", 0x0_0070, 8, 1, 64, 0, "RW", 3),
    Register("GICR_PENDBASER", 0x0_0078, 8, 1, 64, 0, "RW", 3),
    Register("GICR_PIDR2", 0x0_FFE8, 4, 1, 32, 0, "R", 3),
    Register("GICR_IGROUPR0", 0x1_0080, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ISENABLER0", 0x1_0100, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ICENABLER0", 0x1_0180, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ISPENDR0", 0x1_0200, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ICPENDR0", 0x1_0280, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ISACTIVER0", 0x1_0300, 4, 1, 32, 1, "RW", 3),
    Register("GICR_ICACTIVER0", 0x1_0380, 4, 1, 32, 1, "RW", 3),
    Register("GICR_IPRIORITYR", 0x1_0400, 4, 8, 32, 8, "RW", 3),
    Register("GICR_ICFGR", 0x1_0C00, 4, 2, 32, 2, "RW", 3),
)

# The control frame of an ITS, and the doorbell 64 KiB above it.  IHI 0069 12.18.
GITS: Final[tuple[Register, ...]] = (
    Register("GITS_CTLR", 0x0_0000, 4, 1, 32, 0, "RW", 3),
    Register("GITS_IIDR", 0x0_0004, 4, 1, 32, 0, "R", 3),
    Register("GITS_TYPER", 0x0_0008, 8, 1, 64, 0, "R", 3),
    Register("GITS_CBASER", 0x0_0080, 8, 1, 64, 0, "RW", 3),
    Register("GITS_CWRITER", 0x0_0088, 8, 1, 64, 0, "RW", 3),
    Register("GITS_CREADR", 0x0_0090, 8, 1, 64, 0, "R", 3),
    Register("GITS_BASER", 0x0_0100, 8, 8, 64, 0, "RW", 3),
    Register("GITS_PIDR2", 0x0_FFE8, 4, 1, 32, 0, "R", 3),
    Register("GITS_TRANSLATER", 0x1_0040, 4, 1, 32, 0, "W", 3),
)


def find(table: tuple[Register, ...], offset: int, version: int) -> Register | None:
    """The row of `table` that `offset` lies in, for a GIC of `version`; None in a hole."""
    for row in table:
        if row.offset <= offset < row.offset + row.size and row.since <= version <= row.until:
            return row
    return None


# -- fields of words ----


class Field(NamedTuple):
    """Bits `high` to `low` of a word.  `when_hw` is the value of `hw` under which they mean this; None: always."""

    name: str
    high: int
    low: int
    when_hw: int | None = None

    def get(self, word: int) -> int:
        """The field's value in `word`."""
        return word >> self.low & (1 << self.high - self.low + 1) - 1

    def put(self, value: int) -> int:
        """`value` in the field's place.  ValueError if it does not fit."""
        if value < 0 or value >> self.high - self.low + 1:
            raise ValueError(f"{self.name} {value:#x} does not fit bits {self.high}:{self.low}")
        return value << self.low


class LrState(IntEnum):
    """State of a list register: bit 0 pending, bit 1 active (IHI 0048B 5.3.5, IHI 0069 ICH_LR<n>_EL2)."""

    INVALID = 0
    PENDING = 1
    ACTIVE = 2
    PENDING_ACTIVE = 3


# IHI 0048B 5.3.5, GICH_LRn.
GICH_LR: Final[tuple[Field, ...]] = (
    Field("vintid", 9, 0),
    Field("cpuid", 12, 10, 0),
    Field("eoi", 19, 19, 0),
    Field("pintid", 19, 10, 1),
    Field("priority", 27, 23),
    Field("state", 29, 28),
    Field("group", 30, 30),
    Field("hw", 31, 31),
)

# IHI 0069, ICH_LR<n>_EL2.
ICH_LR: Final[tuple[Field, ...]] = (
    Field("vintid", 31, 0),
    Field("eoi", 41, 41, 0),
    Field("pintid", 44, 32, 1),
    Field("priority", 55, 48),
    Field("group", 60, 60),
    Field("hw", 61, 61),
    Field("state", 63, 62),
)

# IHI 0069, ICH_VMCR_EL2; bits 9:0 are GICV_CTLR's.
ICH_VMCR: Final[tuple[Field, ...]] = (
    Field("VENG0", 0, 0),
    Field("VENG1", 1, 1),
    Field("VAckCtl", 2, 2),
    Field("VFIQEn", 3, 3),
    Field("VCBPR", 4, 4),
    Field("VEOIM", 9, 9),
    Field("VBPR1", 20, 18),
    Field("VBPR0", 23, 21),
    Field("VPMR", 31, 24),
)

# A word of lr[] in a vCPU area, written by the hypervisor alone (experimental, not upstream).  INTIDs have 24 bits at
# most, and with HW clear bits 40:32 are software's: that is where the handshake lives.
SHARED_LR: Final[tuple[Field, ...]] = (
    Field("vintid", 23, 0),
    Field("generation", 31, 24),
    Field("phase", 32, 32),
    Field("more", 33, 33),
    Field("eoi", 41, 41),
    Field("priority", 55, 48),
    Field("group", 60, 60),
    Field("state", 63, 62),
)

# A word of lr_state[], written by the guest's process alone (experimental, not upstream).
SHARED_LR_STATE: Final[tuple[Field, ...]] = (
    Field("generation", 31, 24),
    Field("taken", 32, 32),
    Field("active", 63, 63),
)

LR_OFFSET: Final = 0x800  # bytes into the vCPU area: lr[16], u64
LR_STATE_OFFSET: Final = 0x880  # bytes into the vCPU area: lr_state[16], u64
MAX_LRS: Final = 16


def field(table: tuple[Field, ...], name: str) -> Field:
    """The field of that name.  KeyError if there is none."""
    for row in table:
        if row.name == name:
            return row
    raise KeyError(name)


def encode(table: tuple[Field, ...], **values: int) -> int:
    """A word of `table`'s layout; fields not named are zero.

    Raises KeyError for a name that the table lacks, ValueError for a value that does not fit or a field that means
    something else under this value of `hw`.
    """
    word = 0
    hw = values.get("hw", 0)
    for name, value in values.items():
        row = field(table, name)
        if row.when_hw is not None and row.when_hw != hw:
            raise ValueError(f"{name} has no meaning with HW={hw}")
        word |= row.put(value)
    return word


def decode(table: tuple[Field, ...], word: int) -> dict[str, int]:
    """The fields of `word` by name: those that have a meaning under its own `hw` bit."""
    hw = next((row.get(word) for row in table if row.name == "hw"), 0)
    return {row.name: row.get(word) for row in table if row.when_hw is None or row.when_hw == hw}
