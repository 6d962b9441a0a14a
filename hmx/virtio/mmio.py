"""virtio-mmio, version 2: the register map, and a device's control state seen through it.

Source: VIRTIO 1.4, 4.2.2.  Control registers are 32 bits wide and aligned; other accesses to them read 0 and write
nothing.  The configuration space takes 8, 16 and 32 bits, and 64 as two of 32.  Registers of the legacy version are
holes.  The interrupt is a level: the line is high while a bit of InterruptStatus is set, and is reported at every
cause and every acknowledgement, not only when it changes, so that an edge-like channel is triggered again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Final, NamedTuple

from hmx.virtio.control import DeviceControl
from hmx.virtio.features import Feature, has

MAGIC: Final = 0x74726976  # "virt"
VERSION: Final = 2
CONFIG: Final = 0x100
WINDOW: Final = 0x200
"""Bytes that a device takes by convention."""
_MASK: Final = 0xFFFFFFFF
_NO_REGION: Final = _MASK  # SHMLen and SHMBase of a region that is not there


class Interrupt(IntFlag):
    """Bits of InterruptStatus."""

    USED = 1
    CONFIG = 2


class Register(NamedTuple):
    """One register: `access` is R, W or RW; `sizes` the bytes that one access may have.

    `name` is that of 1.4; what writes of a write-only register leave behind cannot be read.
    """

    offset: int
    name: str
    access: str
    sizes: tuple[int, ...] = (4,)
    note: str = ""


REGISTERS: Final[tuple[Register, ...]] = (
    Register(0x000, "MagicValue", "R"),
    Register(0x004, "Version", "R"),
    Register(0x008, "DeviceID", "R", note="0: nothing is here"),
    Register(0x00C, "VendorID", "R"),
    Register(0x010, "DeviceFeatures", "R", note="word DeviceFeaturesSel"),
    Register(0x014, "DeviceFeaturesSel", "W"),
    Register(0x020, "DriverFeatures", "W", note="word DriverFeaturesSel"),
    Register(0x024, "DriverFeaturesSel", "W"),
    Register(0x030, "QueueSel", "W"),
    Register(0x034, "QueueSizeMax", "R", note="0: no such queue"),
    Register(0x038, "QueueSize", "W"),
    Register(0x044, "QueueReady", "RW"),
    Register(0x050, "QueueNotify", "W", note="queue, with NOTIFICATION_DATA in its lower 16 bits"),
    Register(0x060, "InterruptStatus", "R"),
    Register(0x064, "InterruptACK", "W"),
    Register(0x070, "Status", "RW", note="0 resets"),
    Register(0x080, "QueueDescLow", "W"),
    Register(0x084, "QueueDescHigh", "W"),
    Register(0x090, "QueueDriverLow", "W"),
    Register(0x094, "QueueDriverHigh", "W"),
    Register(0x0A0, "QueueDeviceLow", "W"),
    Register(0x0A4, "QueueDeviceHigh", "W"),
    Register(0x0AC, "SHMSel", "W", note="there are no regions"),
    Register(0x0B0, "SHMLenLow", "R"),
    Register(0x0B4, "SHMLenHigh", "R"),
    Register(0x0B8, "SHMBaseLow", "R"),
    Register(0x0BC, "SHMBaseHigh", "R"),
    Register(0x0C0, "QueueReset", "RW", note="with RING_RESET; done when the write returns"),
    Register(0x0FC, "ConfigGeneration", "R"),
    Register(CONFIG, "Config", "RW", (1, 2, 4, 8), "the whole configuration space"),
)
_AT: Final = {row.offset: row for row in REGISTERS}
OFFSETS: Final = {row.name: row.offset for row in REGISTERS}


class AddressHalf(NamedTuple):
    """The half of an address that a register sets: which field of the queue's state, from which bit on."""

    register: str
    field: str
    shift: int


ADDRESS_HALVES: Final[tuple[AddressHalf, ...]] = (
    AddressHalf("QueueDescLow", "descriptors", 0),
    AddressHalf("QueueDescHigh", "descriptors", 32),
    AddressHalf("QueueDriverLow", "driver", 0),
    AddressHalf("QueueDriverHigh", "driver", 32),
    AddressHalf("QueueDeviceLow", "device", 0),
    AddressHalf("QueueDeviceHigh", "device", 32),
)
_HALVES: Final = {row.register: row for row in ADDRESS_HALVES}


class MmioRegisters:
    """A view of `control`, whose notifications it takes over: `interrupt(level)` is called with the line's level.

    Register accesses never raise; what they mean to the device goes out through the control's effects.
    """

    def __init__(self, control: DeviceControl, interrupt: Callable[[bool], object]) -> None:
        self.interrupt_status = 0
        self._control = control
        self._interrupt = interrupt
        self._device_sel = self._driver_sel = self._queue_sel = 0
        control.notify_driver = self._notify
        control.after_reset = self._reset

    @property
    def size(self) -> int:
        """Bytes of the registers and the configuration space."""
        return CONFIG + self._control.config_size

    def load(self, offset: int, size: int) -> int:
        """The driver reads `size` bytes (1, 2, 4 or 8) at `offset`: a little-endian number.  Holes read 0."""
        row = _AT.get(min(offset, CONFIG))
        if row is None or "R" not in row.access or size not in row.sizes:
            return 0
        if row.offset == CONFIG:
            return self._load_config(offset - CONFIG, size)
        return self._load(row.name) & _MASK

    def store(self, offset: int, size: int, value: int) -> None:
        """The driver writes; what is not there, or not so wide, swallows it."""
        row = _AT.get(min(offset, CONFIG))
        if row is None or "W" not in row.access or size not in row.sizes:
            return
        value &= (1 << 8 * size) - 1
        if row.offset == CONFIG:
            for at in range(0, size, 4):  # 64 bits are two accesses
                part = value.to_bytes(size, "little")[at : at + 4]
                self._control.write_config(offset - CONFIG + at, part)
        else:
            self._store(row.name, value)

    def _load_config(self, offset: int, size: int) -> int:
        parts = (self._control.read_config(offset + at, min(4, size)) for at in range(0, size, 4))
        return int.from_bytes(b"".join(part.ljust(min(4, size), b"\0") for part in parts), "little")

    def _load(self, name: str) -> int:
        control = self._control
        queue = control.queue(self._queue_sel)
        match name:
            case "MagicValue":
                return MAGIC
            case "Version":
                return VERSION
            case "DeviceID":
                return control.device_id
            case "VendorID":
                return control.vendor_id
            case "DeviceFeatures":
                return control.device_features(self._device_sel)
            case "QueueSizeMax":
                return queue.max_size if queue else 0
            case "QueueReady":
                return int(queue.ready) if queue else 0
            case "InterruptStatus":
                return self.interrupt_status
            case "Status":
                return control.status
            case "ConfigGeneration":
                return control.config_generation()
            case "SHMLenLow" | "SHMLenHigh" | "SHMBaseLow" | "SHMBaseHigh":
                return _NO_REGION
            case _:  # QueueReset: 1 while it lasts, which nobody can see
                return 0

    def _store(self, name: str, value: int) -> None:
        control = self._control
        match name:
            case "DeviceFeaturesSel":
                self._device_sel = value
            case "DriverFeaturesSel":
                self._driver_sel = value
            case "DriverFeatures":
                control.set_driver_features(self._driver_sel, value)
            case "QueueSel":
                self._queue_sel = value
            case "QueueSize":
                control.configure_queue(self._queue_sel, size=value)
            case "QueueReady":
                if value & 1:
                    control.enable_queue(self._queue_sel)
                else:
                    control.disable_queue(self._queue_sel)
            case "QueueNotify":
                data = has(control.negotiated, Feature.NOTIFICATION_DATA)
                control.kick(value & 0xFFFF if data else value, value >> 16)
            case "InterruptACK":
                self.interrupt_status &= ~value
                self._interrupt(bool(self.interrupt_status))
            case "Status":
                control.write_status(value)
            case "QueueReset":
                if value & 1:
                    control.reset_queue(self._queue_sel)
            case _:
                half = _HALVES.get(name)
                if half is not None:
                    self._store_half(half, value)

    def _store_half(self, half: AddressHalf, value: int) -> None:
        queue = self._control.queue(self._queue_sel)
        old: int = getattr(queue, half.field) if queue else 0
        address = old & ~(_MASK << half.shift) | value << half.shift
        self._control.configure_queue(self._queue_sel, **{half.field: address})

    def _notify(self, queue: int | None) -> None:
        self.interrupt_status |= Interrupt.CONFIG if queue is None else Interrupt.USED
        self._interrupt(True)

    def _reset(self) -> None:
        self.interrupt_status = self._device_sel = self._driver_sel = self._queue_sel = 0
        self._interrupt(False)
