"""What firmware describes: one guest's machine, as far as its tables or its tree tell.

Addresses are guest physical.  An interrupt is a global system interrupt on x86 and an INTID on Arm.  Processors are
named by local APIC id on x86, by MPIDR affinity on Arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from hmx.firmware import ArgoDevice, Interrupt
from hmx.trap import Arch
from hmx.uxen_enum import Polarity

UXEN_LINE: Final = 7
"""The ISA line that all of uXen's v4v rings share."""

LOCAL_APIC: Final = 0xFEE0_0000
VIRTIO_MMIO_SIZE: Final = 0x200


class Range(NamedTuple):
    """A range of guest physical memory."""

    base: int
    size: int


GRANT_TABLE: Final = Range(0x3800_0000, 0x100_0000)


class IoApic(NamedTuple):
    """One I/O APIC and the first global system interrupt that it serves."""

    id: int
    address: int
    gsi_base: int


class Override(NamedTuple):
    """An ISA line that is not what ISA lines are: its interrupt, and how it is triggered."""

    irq: int
    interrupt: Interrupt


@dataclass(frozen=True, slots=True)
class MsiFrame:
    """A v2m frame: the SPIs from `first` on, `count` of them, may be raised by a write to it."""

    base: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Gic:
    """A GIC: version 2 with a CPU interface, or version 3 with redistributors."""

    version: int
    distributor: int
    cpu_interface: int = 0
    redistributors: tuple[Range, ...] = ()
    its: int = 0
    v2m: MsiFrame | None = None
    maintenance: int = 25


@dataclass(frozen=True, slots=True)
class GedEvent:
    """An interrupt that the Generic Event Device turns into a notification of a device, by its name in _SB."""

    interrupt: Interrupt
    device: str


@dataclass(frozen=True, slots=True)
class Uxen:
    """uXen's devices: the line of v4v, and the enumerator of storage units whose children read with `polarity`."""

    line: int = UXEN_LINE
    enumerator: bool = True
    polarity: Polarity = Polarity.LEGACY_ACPI


@dataclass(frozen=True, slots=True)
class Xen:
    """Xen's node in a tree: version, the grant-table region, regions to map foreign pages in, event-channel PPI."""

    version: str = "4.22"
    grant_table: Range = GRANT_TABLE
    regions: tuple[Range, ...] = ()
    event_channel: int = 31


@dataclass(frozen=True, slots=True)
class VirtioMmio:
    """One virtio-mmio device; its line is level by construction."""

    base: int
    interrupt: Interrupt
    size: int = VIRTIO_MMIO_SIZE


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that firmware says of one guest's machine.

    `personality` chooses how the hypervisor is named (see the tables of the builders).  `psci` is the conduit "hvc"
    or "smc", "" for none.  `pm_base`, the I/O port of the fixed power-management registers, and `sci` count only
    where `hardware_reduced` is false.
    """

    arch: Arch
    processors: tuple[int, ...]
    memory: tuple[Range, ...]
    personality: str = ""
    hardware_reduced: bool = True
    psci: str = ""
    sci: int = 9
    pm_base: int = 0x600
    io_apics: tuple[IoApic, ...] = (IoApic(0, 0xFEC0_0000, 0),)
    overrides: tuple[Override, ...] = (Override(UXEN_LINE, Interrupt(UXEN_LINE)),)
    gic: Gic | None = None
    argo: ArgoDevice | None = None
    uxen: Uxen | None = None
    xen: Xen | None = None
    generation_id: int | None = None
    ged: tuple[GedEvent, ...] = ()
    virtio: tuple[VirtioMmio, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a machine that no firmware can describe."""
        if not self.processors or len(set(self.processors)) != len(self.processors):
            raise ValueError("a machine has processors, each with an id of its own")
        if self.psci not in ("", "hvc", "smc"):
            raise ValueError(f"PSCI is called by hvc or smc, not by {self.psci!r}")
        if self.arch is Arch.AARCH64:
            if self.gic is None or not self.hardware_reduced:
                raise ValueError("a machine with Arm processors has a GIC, and its ACPI is hardware-reduced")
            if self.uxen is not None:
                raise ValueError("uXen's devices are those of a PC")
        elif self.gic is not None or self.psci:
            raise ValueError("GIC and PSCI are Arm's")
        if self.gic is not None and not (self.gic.cpu_interface if self.gic.version == 2 else self.gic.redistributors):
            raise ValueError("a GICv2 has a CPU interface, a GICv3 has redistributors")
