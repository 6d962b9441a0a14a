"""What a guest of uXen finds: storage units by a port bitmap, devices in the table of a platform PCI device.

Each unit is a v4v port of the device model (uXen uxenstor).  The platform device is looked for by its ids on PCI bus 0
with configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2), its BARs are read from its header, and its table is
believed only where the state page has its magic (uXen platform interface).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guest_node.vcpu import Trap, Vcpu
from hmx.trap import Kind, Outcome
from hmx.uxen_enum import (
    BITMAP_PORT,
    EMPTY,
    SLOT_SIZE,
    SLOTS,
    STATE_MAGIC,
    STATE_PAGE,
    STORAGE_PORT,
    Device,
    answered,
    decode_slot,
    units_for,
)
from hmx.uxen_platform import CONFIG_ADDRESS, CONFIG_DATA, IDENTITY, Register, config_address
from hmx.uxen_platform import SLOTS as PCI_SLOTS
from hmx.vcpu_area import SQ_ENTRIES

_WORD: Final = 2
_DWORD: Final = 4
_QWORD: Final = 8
_M32: Final = 0xFFFF_FFFF
_ADDRESS_BITS: Final = 0xFFFF_FFF0  # of a 32-bit memory BAR (PCI Local Bus 3.0, 6.2.5.1)


async def storage_ports(vcpu: Vcpu) -> tuple[int, ...]:
    """The v4v ports of the storage units that are there, as uXen's Linux driver looks for them: one 16-bit IN.

    () where the port answers all ones: no uXen.
    """
    done = await vcpu.trap(Trap(Kind.IN, (0,), address=BITMAP_PORT, size=_WORD))
    if done.outcome != Outcome.DONE:
        return ()
    data = (done.regs[0] & 0xFFFF).to_bytes(_WORD, "little")
    return tuple(STORAGE_PORT + unit for unit in units_for("linux", data)) if answered(data) else ()


async def platform_devices(vcpu: Vcpu) -> tuple[tuple[int, Device], ...] | None:
    """The occupied slots of uXen's device table as (slot, device); None where there is no platform device.

    Raises EnumerationError for a slot whose properties run out of it.
    """
    slot = await _find(vcpu)
    if slot is None:
        return None
    state, table = [bar & _ADDRESS_BITS for bar in await _config(vcpu, slot, (Register.BAR1, Register.BAR2))]
    magic, _running = STATE_PAGE.unpack(await _load(vcpu, state, STATE_PAGE.size))
    if magic != STATE_MAGIC:
        return None
    first = await _loads(vcpu, [table + number * SLOT_SIZE for number in range(SLOTS)], 1)
    found = []
    for number, kind in enumerate(first):
        if kind != EMPTY:
            device = decode_slot(await _load(vcpu, table + number * SLOT_SIZE, SLOT_SIZE))
            if device is not None:
                found.append((number, device))
    return tuple(found)


async def _find(vcpu: Vcpu) -> int | None:
    """The slot of PCI bus 0 in which the platform device is."""
    for slot in range(PCI_SLOTS):
        if await _config(vcpu, slot, (Register.IDENTITY,)) == [IDENTITY]:
            return slot
    return None


async def _config(vcpu: Vcpu, slot: int, registers: Sequence[int]) -> list[int]:
    """Dwords of a device's configuration space; all ones where nobody answers."""
    traps = []
    for register in registers:
        traps.append(Trap(Kind.OUT, (config_address(slot, register),), address=CONFIG_ADDRESS, size=_DWORD))
        traps.append(Trap(Kind.IN, (0,), address=CONFIG_DATA, size=_DWORD))
    done = await vcpu.trap_chain(traps)
    return [answer.regs[0] & _M32 if answer.outcome == Outcome.DONE else _M32 for answer in done[1::2]]


async def _load(vcpu: Vcpu, address: int, size: int) -> bytes:
    """Bytes of device memory, a multiple of 8."""
    words = await _loads(vcpu, range(address, address + size, _QWORD), _QWORD)
    return b"".join(word.to_bytes(_QWORD, "little") for word in words)


async def _loads(vcpu: Vcpu, addresses: Sequence[int], size: int) -> list[int]:
    """Loads of `size` bytes, a few exits at a time; all ones where one faults or is ignored."""
    ones = (1 << 8 * size) - 1
    found: list[int] = []
    for start in range(0, len(addresses), SQ_ENTRIES):
        traps = [Trap(Kind.LOAD, (0,), address=each, size=size) for each in addresses[start : start + SQ_ENTRIES]]
        for done in await vcpu.trap_chain(traps):
            found.append(done.regs[0] & ones if done.outcome == Outcome.DONE else ones)
    return found
