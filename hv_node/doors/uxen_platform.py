"""uXen's platform PCI device as the hypervisor serves it to one guest: configuration space and three BARs.

A pure model: the ports of PCI configuration mechanism #1 and the BARs' bytes go in, values come out.  The BARs stay
where the machine has put them: a BAR can be sized and written, and reads back as its own address.  No event is ever
raised, memory is not ballooned and no file time is told in this version: those registers read 0.

Sources: uXen platform interface; PCI Local Bus 3.0, 3.2.2.3.2 and 6.2.5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from hmx.uxen_enum import STATE_MAGIC, STATE_PAGE, ControlRegister, Device, DeviceType, encode_table
from hmx.uxen_platform import (
    BARS,
    CLASS_REVISION,
    CONFIG_ADDRESS,
    CONFIG_DATA,
    CONFIG_ENABLE,
    CONFIG_SIZE,
    FIRST_ADDRESS,
    IDENTITY,
    LAST_ADDRESS,
    MEMORY_DECODE,
    SLOT,
    Register,
)

_M32: Final = 0xFFFF_FFFF
_CONTROL, _STATE, _TABLE = BARS
_BAR_OF: Final = {int(row.register): row for row in BARS}


def storage_table(units: Iterable[int]) -> bytes:
    """The device table of a guest with these v4v storage units, in their order."""
    return encode_table([Device(DeviceType.STOR, unit) for unit in units])


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


class PlatformDevice:
    """The device of one guest.  `running()`: whether the guest has v4v, as its state page shows."""

    __slots__ = ("_address", "_command", "_enabled", "_running", "_sizing", "_table")

    def __init__(self, table: bytes, running: Callable[[], bool]) -> None:
        self._table = table
        self._running = running
        self._address = 0  # what was written to CONFIG_ADDRESS
        self._command = MEMORY_DECODE
        self._enabled = 0  # the control register events_enabled
        self._sizing: set[int] = set()  # BARs to which all ones were written

    # -- configuration space ----

    def read_port(self, port: int, size: int) -> int:
        """IN of `size` bytes (1, 2, 4) at a port of the configuration mechanism."""
        if port < CONFIG_DATA:
            return self._address if (port, size) == (CONFIG_ADDRESS, 4) else _ones(size)
        offset = self._offset(port)
        if offset is None or port + size > CONFIG_DATA + 4:
            return _ones(size)
        return self._register(offset & ~3) >> 8 * (offset & 3) & _ones(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes.  BARs take whole dwords; of the command register only memory decode is kept."""
        if port < CONFIG_DATA:
            if (port, size) == (CONFIG_ADDRESS, 4):
                self._address = value & _M32
            return
        offset = self._offset(port)
        if offset is None or port + size > CONFIG_DATA + 4:
            return
        if offset == Register.COMMAND:
            self._command = value & MEMORY_DECODE
        elif offset in _BAR_OF and size == 4:
            self._sizing.discard(offset)
            if value & _M32 == _M32:
                self._sizing.add(offset)

    def _offset(self, port: int) -> int | None:
        """The byte of our configuration space behind a data port; None where another device, or none, is meant."""
        address = self._address
        if not address & CONFIG_ENABLE or address >> 8 & 0xFF_FFFF != (CONFIG_ENABLE >> 8 | SLOT << 3):
            return None
        return (address & 0xFC) + port - CONFIG_DATA & CONFIG_SIZE - 1

    def _register(self, offset: int) -> int:
        match offset:
            case Register.IDENTITY:
                return IDENTITY
            case Register.COMMAND:
                return self._command
            case Register.CLASS_REVISION:
                return CLASS_REVISION
        bar = _BAR_OF.get(offset)
        if bar is None:
            return 0
        return -bar.size & _M32 if offset in self._sizing else bar.address

    # -- BARs ----

    def load(self, address: int, size: int) -> int:
        """A load of `size` bytes (1, 2, 4, 8) from a BAR; all ones outside, and while memory decode is off."""
        if not self._answers(address, size):
            return _ones(size)
        return int.from_bytes(self._bytes(address, size), "little")

    def store(self, address: int, size: int, value: int) -> None:
        """A store: events_enabled keeps a dword, everything else is as it was."""
        if self._answers(address, size) and (address, size) == (
            _CONTROL.address + ControlRegister.EVENTS_ENABLED, 4,
        ):  # fmt: skip
            self._enabled = value & _M32

    def _answers(self, address: int, size: int) -> bool:
        return bool(self._command & MEMORY_DECODE) and address >= FIRST_ADDRESS and address + size - 1 <= LAST_ADDRESS

    def _bytes(self, address: int, size: int) -> bytes:
        """Bytes of the BARs side by side."""
        if address >= _TABLE.address:
            at = address - _TABLE.address
            return self._table[at : at + size]
        if address >= _STATE.address:
            page, at = STATE_PAGE.pack(STATE_MAGIC, self._running()), address - _STATE.address
        else:
            page, at = self._enabled.to_bytes(4, "little"), address - _CONTROL.address
        # What an access that runs into the next BAR finds there is of no use to anybody: zeros.
        return page[at : at + size].ljust(size, b"\0")
