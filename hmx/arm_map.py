"""Where an Arm guest finds its interrupt controller: one memory map for every machine here (experimental).

The addresses are those of QEMU's `virt` machine (hw/arm/virt.c), which guests and firmware know.
"""

from __future__ import annotations

from typing import Final

GICD_BASE: Final = 0x0800_0000
GICD_SIZE: Final = 0x1_0000
V2M_BASE: Final = 0x0802_0000
V2M_SIZE: Final = 0x1000
V2M_DOORBELL: Final = V2M_BASE + 0x40  # V2M_MSI_SETSPI_NS
V2M_FIRST_SPI: Final = 48
V2M_SPIS: Final = 64
GITS_BASE: Final = 0x0808_0000
GITS_SIZE: Final = 0x2_0000
GICR_BASE: Final = 0x080A_0000
GICR_STRIDE: Final = 0x2_0000  # RD_base and SGI_base of one vCPU
GIC_LAST: Final = 0x08FF_FFFF  # room for the redistributors of 123 vCPUs

LINE_INTID: Final = 39  # SPI 7: the one line for all rings
PER_CPU_INTID: Final = 24  # a PPI that nothing else uses here
EVTCHN_INTID: Final = 31  # Xen's event-channel PPI (Xen public/arch-arm.h, GUEST_EVTCHN_PPI)
