"""VirtIO device ids, and the two facts about a device type that a transport has to know.

Source: VIRTIO 1.4, section 5 (device types).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class DeviceId(IntEnum):
    """What a device is.  0 is a placeholder: a driver passes it by in silence (VIRTIO 1.4, 4.2.3.1.1)."""

    NONE = 0
    NET = 1
    BLK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    SCSI = 8
    P9 = 9
    GPU = 16
    RTC = 17
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    SCMI = 32
    I2C = 34
    CAN = 36
    GPIO = 41
    SPI = 45
    TEE = 46
    CPU_BALLOON = 47
    MEDIA = 48
    USB = 49


VENDOR_ID: Final = 0x4F475241  # "ARGO": ours, experimental, not upstream


class EarlyConfig(NamedTuple):
    """Configuration bytes of a device type that a driver may write before the features are negotiated."""

    device: DeviceId
    offset: int
    size: int
    source: str


EARLY_CONFIG: Final[tuple[EarlyConfig, ...]] = (EarlyConfig(DeviceId.CONSOLE, 8, 4, "VIRTIO 1.4, 5.3.4: emerg_wr"),)


def early_config(device_id: int) -> range:
    """The offsets that may be written before FEATURES_OK; mostly none."""
    for row in EARLY_CONFIG:
        if row.device == device_id:
            return range(row.offset, row.offset + row.size)
    return range(0)


def name_of(device_id: int) -> str:
    """A device type's name in lower case, or its number."""
    try:
        return DeviceId(device_id).name.lower()
    except ValueError:
        return str(device_id)
