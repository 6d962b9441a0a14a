"""uXen's platform PCI device as both sides see it: where it is found, and where its three BARs lie.

BAR 0 has control registers, BAR 1 the state page, BAR 2 the table of devices; what stands in them is in
:mod:`hmx.uxen_enum`.  It is found by its vendor and device id in PCI configuration space, by the ports of
configuration mechanism #1.

Sources: uXen platform interface (ids, BARs); PCI Local Bus 3.0, 3.2.2.3.2 (ports) and 6.1 (header).  The slot, the
class code and the addresses are ours: on a PC the firmware gives addresses out.  Experimental, not upstream.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from hmx.uxen_enum import PLATFORM_DEVICE, PLATFORM_VENDOR, TABLE_SIZE

CONFIG_ADDRESS: Final = 0xCF8  # PCI Local Bus 3.0, 3.2.2.3.2
CONFIG_DATA: Final = 0xCFC
CONFIG_LAST: Final = 0xCFF
CONFIG_ENABLE: Final = 1 << 31
CONFIG_SIZE: Final = 256
SLOTS: Final = 32  # devices of a bus

SLOT: Final = 2
IDENTITY: Final = PLATFORM_DEVICE << 16 | PLATFORM_VENDOR
"""The first dword of the configuration header."""
CLASS_REVISION: Final = 0xFF80_0001
"""Class "other", as Xen's platform device has it, and revision 1."""
MEMORY_DECODE: Final = 1 << 1
"""Bit of the command register: the BARs answer."""


class Register(IntEnum):
    """Byte offsets in the configuration header (PCI Local Bus 3.0, 6.1)."""

    IDENTITY = 0x00
    COMMAND = 0x04
    CLASS_REVISION = 0x08
    BAR0 = 0x10
    BAR1 = 0x14
    BAR2 = 0x18


class Bar(NamedTuple):
    """One BAR: the register that names it, its address, its size in bytes, and what is there."""

    register: Register
    address: int
    size: int
    what: str


BARS: Final = (
    Bar(Register.BAR0, 0xFEDF_A000, 0x1000, "control registers"),
    Bar(Register.BAR1, 0xFEDF_B000, 0x1000, "state page"),
    Bar(Register.BAR2, 0xFEDF_C000, TABLE_SIZE, "device table"),
)
FIRST_ADDRESS: Final = BARS[0].address
LAST_ADDRESS: Final = BARS[-1].address + BARS[-1].size - 1


def config_address(slot: int, register: int) -> int:
    """What goes to CONFIG_ADDRESS for a dword of function 0 of bus 0's `slot`."""
    return CONFIG_ENABLE | slot << 11 | register & 0xFC
