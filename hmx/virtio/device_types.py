"""What a transport asks about a device type: the table of its features."""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.virtio import blk, console, iommu, net, rng, vsock
from hmx.virtio.features import FEATURES, FeatureRow
from hmx.virtio.ids import DeviceId


class TypeRow(NamedTuple):
    """One device type that we know: its features and the bytes of its configuration space."""

    device: DeviceId
    features: tuple[FeatureRow, ...]
    config_size: int


TYPES: Final[tuple[TypeRow, ...]] = (
    TypeRow(DeviceId.NET, net.FEATURES, net.CONFIG_SIZE),
    TypeRow(DeviceId.BLK, blk.FEATURES, blk.CONFIG_SIZE),
    TypeRow(DeviceId.CONSOLE, console.FEATURES, console.CONFIG_SIZE),
    TypeRow(DeviceId.RNG, rng.FEATURES, 0),
    TypeRow(DeviceId.VSOCK, vsock.FEATURES, vsock.CONFIG_SIZE),
    TypeRow(DeviceId.IOMMU, iommu.FEATURES, iommu.CONFIG_SIZE),
)
_FEATURES: Final = {int(row.device): row.features for row in TYPES}


def feature_rows(device_id: int) -> tuple[FeatureRow, ...]:
    """Every feature that we know of a device of this type: its own, and those of all."""
    return (*_FEATURES.get(device_id, ()), *FEATURES)
