"""virtio-mmio, version 2: the register map, widths, holes, the interrupt as a level (VIRTIO 1.4, 4.2)."""

from __future__ import annotations

import re

import pytest

from hmx.virtio.features import Feature, feature_set
from hmx.virtio.mmio import ADDRESS_HALVES, OFFSETS, REGISTERS, MmioRegisters
from hmx.virtio.status import Status
from tests.doubles.virtio_control import ALL, LIVE, Recorder

# VIRTIO 1.4, 4.2.2.
MAP = """
000 MagicValue R        004 Version R             008 DeviceID R        00c VendorID R
010 DeviceFeatures R    014 DeviceFeaturesSel W   020 DriverFeatures W  024 DriverFeaturesSel W
030 QueueSel W          034 QueueSizeMax R        038 QueueSize W       044 QueueReady RW
050 QueueNotify W       060 InterruptStatus R     064 InterruptACK W    070 Status RW
080 QueueDescLow W      084 QueueDescHigh W       090 QueueDriverLow W  094 QueueDriverHigh W
0a0 QueueDeviceLow W    0a4 QueueDeviceHigh W     0ac SHMSel W          0b0 SHMLenLow R
0b4 SHMLenHigh R        0b8 SHMBaseLow R          0bc SHMBaseHigh R     0c0 QueueReset RW
0fc ConfigGeneration R  100 Config RW
"""


class Rig:
    """Registers of a recorded device; `line` holds every level that was reported."""

    def __init__(self, features: int = ALL) -> None:
        self.device = Recorder(features=features)
        self.line: list[bool] = []
        self.registers = MmioRegisters(self.device.control, self.line.append)

    def load(self, name: str) -> int:
        return self.registers.load(OFFSETS[name], 4)

    def store(self, name: str, value: int) -> None:
        self.registers.store(OFFSETS[name], 4, value)

    def go_live(self, accepted: int = feature_set(Feature.VERSION_1)) -> None:
        """As Linux does it: features of word 1 first, addresses in the order desc, driver, device."""
        self.store("Status", 0)
        self.store("Status", 1)
        self.store("Status", 3)
        for word in (1, 0):
            self.store("DriverFeaturesSel", word)
            self.store("DriverFeatures", accepted >> 32 * word & 0xFFFFFFFF)
        self.store("Status", 11)
        assert self.load("Status") == 11
        self.store("QueueSel", 0)
        assert self.load("QueueReady") == 0
        self.store("QueueSize", 64)
        for name, value in (("Desc", 0x1_0000_1000), ("Driver", 0x2_0000_2000), ("Device", 0x3_0000_3000)):
            self.store(f"Queue{name}Low", value & 0xFFFFFFFF)
            self.store(f"Queue{name}High", value >> 32)
        self.store("QueueReady", 1)
        assert self.load("QueueReady") == 1
        self.store("Status", LIVE)
        assert self.load("Status") == LIVE


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_map() -> None:
    """Offsets, names, directions; control registers are 32 bits, the configuration 8 to 64 (4.2.2)."""
    assert [(row.offset, row.name, row.access) for row in REGISTERS] == [
        (int(offset, 16), name, access) for offset, name, access in re.findall(r"(\w+) (\w+) (\w+)", MAP)
    ]
    assert all(row.sizes == ((1, 2, 4, 8) if row.name == "Config" else (4,)) for row in REGISTERS)


def test_constants(rig: Rig) -> None:
    """What every driver looks at first."""
    assert rig.load("MagicValue") == int.from_bytes(b"virt", "little")
    assert rig.load("Version") == 2 and rig.load("DeviceID") == 2
    assert rig.load("VendorID") == int.from_bytes(b"ARGO", "little")
    assert rig.registers.size == 0x110


@pytest.mark.parametrize("size", [1, 2, 8, 3])
def test_control_registers_are_32_bits(rig: Rig, size: int) -> None:
    """Other widths read 0 and write nothing (4.2.2.2)."""
    for row in REGISTERS[:-1]:
        assert rig.registers.load(row.offset, size) == 0
    rig.registers.store(0x70, size, 1)
    assert rig.load("Status") == 0


def test_holes(rig: Rig) -> None:
    """Between registers and in them, legacy ones included, nothing is read and nothing written."""
    known = {row.offset for row in REGISTERS}
    for offset in range(0x100):
        if offset not in known:
            rig.registers.store(offset, 4, 0xFFFFFFFF)
            assert rig.registers.load(offset, 4) == 0, hex(offset)
    assert {0x28, 0x3C, 0x40}.isdisjoint(known), "GuestPageSize, QueueAlign, QueuePFN"
    assert rig.device.control.status == 0 and rig.device.taken() == []


def test_directions(rig: Rig) -> None:
    """What is only written reads 0; what is only read cannot be changed."""
    rig.go_live()
    for row in REGISTERS[:-1]:
        if row.access == "W":
            assert rig.registers.load(row.offset, 4) == 0, row.name
        elif row.access == "R":
            before = rig.registers.load(row.offset, 4)
            rig.registers.store(row.offset, 4, 0x5A5A5A5A)
            assert rig.registers.load(row.offset, 4) == before, row.name


def test_as_linux_does_it(rig: Rig) -> None:
    """The whole way to DRIVER_OK; addresses have 64 bits (4.2.3)."""
    rig.go_live()
    assert rig.device.control.queues[0].layout() == (64, 0x1_0000_1000, 0x2_0000_2000, 0x3_0000_3000)
    assert rig.device.taken() == [
        ("reset",), ("queue", 0, True), ("start", 1 << 32), ("run", True),
    ]  # fmt: skip


def test_address_halves() -> None:
    """Which register holds which half."""
    expected = {"Desc": "descriptors", "Driver": "driver", "Device": "device"}
    assert {(row.register, row.field, row.shift) for row in ADDRESS_HALVES} == {
        (f"Queue{name}{half}", field, shift)
        for name, field in expected.items()
        for half, shift in (("Low", 0), ("High", 32))
    }


def test_feature_windows(rig: Rig) -> None:
    """Words beyond what there is read 0 (4.2.2)."""
    for word in (0, 1, 2, 3, 0xFFFFFFFF):
        rig.store("DeviceFeaturesSel", word)
        assert rig.load("DeviceFeatures") == (ALL >> 32 * word & 0xFFFFFFFF if word < 4 else 0)


def test_refused_features(rig: Rig) -> None:
    """The driver reads FEATURES_OK back as clear (3.1.1)."""
    rig.store("Status", 3)
    rig.store("DriverFeatures", 1)
    rig.store("DriverFeaturesSel", 1)
    rig.store("DriverFeatures", 1)
    rig.store("Status", 11)
    assert rig.load("Status") == 3


def test_queues(rig: Rig) -> None:
    """A queue that is not there has the size 0; one that cannot be is not ready when read back (4.2.3.2)."""
    rig.store("QueueSel", 1)
    assert rig.load("QueueSizeMax") == 64
    rig.store("QueueSel", 2)
    assert rig.load("QueueSizeMax") == rig.load("QueueReady") == 0
    rig.store("QueueDescLow", 1)
    rig.store("QueueReady", 1)
    rig.go_live()
    rig.store("QueueSel", 1)
    rig.store("QueueReady", 1)
    assert rig.load("QueueReady") == 0
    rig.store("QueueSel", 0)
    rig.store("QueueReady", 0)
    assert rig.load("QueueReady") == 0
    assert rig.device.taken()[-1] == ("queue", 0, False)


def test_queue_reset(rig: Rig) -> None:
    """With RING_RESET; reads 0, and QueueReady 0, when it is done (4.2.2)."""
    rig.go_live(feature_set(Feature.VERSION_1, Feature.RING_RESET))
    rig.store("QueueReset", 0)
    assert rig.load("QueueReady") == 1
    rig.store("QueueReset", 1)
    assert rig.load("QueueReset") == rig.load("QueueReady") == 0
    assert rig.device.taken()[-1] == ("queue reset", 0)


@pytest.mark.parametrize(
    ("accepted", "value", "kick"),
    [
        (0, 0, ("kick", 0, 0)),
        (0, 0x10000, None),
        (feature_set(Feature.NOTIFICATION_DATA), 0x8005_0000, ("kick", 0, 0x8005)),
        (feature_set(Feature.NOTIFICATION_DATA), 0x8005_0001, None),
    ],
)
def test_notify(rig: Rig, accepted: int, value: int, kick: tuple[object, ...] | None) -> None:
    """The queue's number, or with NOTIFICATION_DATA the number below and the position above (4.2.3.3)."""
    rig.go_live(accepted | feature_set(Feature.VERSION_1))
    rig.device.taken()
    rig.store("QueueNotify", value)
    assert rig.device.taken() == ([kick] if kick else [])


def test_the_interrupt_is_a_level(rig: Rig) -> None:
    """Raised at each cause, reported again at an ACK that leaves bits; a driver ACKs before it looks (4.2.3.4)."""
    rig.go_live()
    rig.line.clear()
    control = rig.device.control
    control.used(0)
    control.used(1)
    control.config_changed()
    assert rig.load("InterruptStatus") == 3 and rig.line == [True] * 3
    rig.store("InterruptACK", 1)
    assert rig.load("InterruptStatus") == 2 and rig.line[3:] == [True]
    control.used(0)
    rig.store("InterruptACK", 0xFFFFFFFF)
    assert rig.load("InterruptStatus") == 0 and rig.line[4:] == [True, False]
    rig.store("InterruptACK", 3)
    assert rig.line[6:] == [False]


def test_needs_reset_interrupts(rig: Rig) -> None:
    """With the configuration bit (2.1.2)."""
    rig.go_live()
    rig.device.control.needs_reset("x")
    assert rig.load("InterruptStatus") == 2 and rig.load("Status") == LIVE | Status.DEVICE_NEEDS_RESET


def test_reset(rig: Rig) -> None:
    """Interrupt status, selectors and queues are as in the beginning (4.2.2.1)."""
    rig.go_live()
    rig.device.control.used(0)
    for name in ("QueueSel", "DeviceFeaturesSel", "DriverFeaturesSel"):
        rig.store(name, 1)
    rig.store("Status", 0)
    assert rig.load("InterruptStatus") == rig.load("QueueReady") == rig.load("Status") == 0
    assert rig.line[-1] is False
    assert rig.load("QueueSizeMax") == 128 and rig.load("DeviceFeatures") == ALL & 0xFFFFFFFF
    rig.store("DriverFeatures", 4)
    assert rig.device.control.accepted == 4


def test_shared_memory(rig: Rig) -> None:
    """There are no regions: all ones (4.2.2)."""
    rig.store("SHMSel", 0)
    assert {rig.load(f"SHM{name}") for name in ("LenLow", "LenHigh", "BaseLow", "BaseHigh")} == {0xFFFFFFFF}


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (0x100, 1, 0), (0x103, 1, 3), (0x102, 2, 0x0302), (0x104, 4, 0x07060504), (0x101, 4, 0x04030201),
        (0x108, 8, 0x0F0E0D0C0B0A0908), (0x10F, 1, 15), (0x10F, 2, 15), (0x10C, 8, 0x0F0E0D0C), (0x110, 4, 0),
        (0x1FF, 1, 0), (0xFFFFFFFF, 4, 0),
    ],
)  # fmt: skip
def test_configuration_reads(rig: Rig, offset: int, size: int, value: int) -> None:
    """8, 16 and 32 bits, 64 as two; what is outside reads 0 (4.2.2.2)."""
    assert rig.registers.load(offset, size) == value


def test_configuration_writes(rig: Rig) -> None:
    """After FEATURES_OK, of the bytes that fit; 64 bits are two writes, of which one may be refused."""
    rig.registers.store(0x100, 1, 0xAA)
    rig.go_live()
    rig.registers.store(0x101, 2, 0xBBCC)
    rig.registers.store(0x100, 8, 0x1122334455667788)
    rig.registers.store(0x103, 2, 0xFFFF)
    rig.registers.store(0x100, 3, 0)
    assert rig.device.device.writes == [(1, b"\xcc\xbb"), (0, b"\x88\x77\x66\x55")]


def test_wide_configuration_writes(rig: Rig) -> None:
    """64 bits arrive as two of 32 (2.5.1)."""
    rig.device.device.writable = 16
    rig.go_live()
    rig.registers.store(0x104, 8, 0x1122334455667788)
    assert rig.device.device.writes == [(4, b"\x88\x77\x66\x55"), (8, b"\x44\x33\x22\x11")]


def test_the_generation(rig: Rig) -> None:
    """Read before and after: it tells whether what was read belongs together (2.5.1)."""
    before = rig.load("ConfigGeneration")
    rig.registers.load(0x100, 4)
    assert rig.load("ConfigGeneration") == before
    rig.device.device.space[0] = 9
    assert rig.load("ConfigGeneration") != before
