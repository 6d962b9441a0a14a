"""The VirtIO devices that a guest can have, as a topology names them (VIRTIO 1.4, section 5).

A device is one instance of a well-known service (hmx/services.py): the guest's front end sends to that service, and
the toolstack's patch panel leads to the guest whose program is the back end.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from topologies.scalars import Keys, Name

DeviceName = Literal["blk", "net", "console", "rng", "vsock"]
TransportName = Literal["virtio-argo", "virtio-mmio"]
Variant = Literal["inline", "mirror"]
Access = Literal["foreign", "foreign-kept", "grant-map", "grant-copy", "dma", "dma-rings", "dma-iommu"]
DEFAULT_ACCESS: Final = "foreign"
PAST_IOMMU: Final = ("grant-map", "grant-copy", "dma-iommu")
"""What reaches a guest that has a virtio-iommu: its grants are its own doing; nobody maps it, or names its pages."""


class DeviceType(NamedTuple):
    """A type of device: the service behind it unless the topology names another, and how many queues of requests its
    front end can use.
    """

    name: str
    service: str
    queues: int


TYPES: Final = (
    DeviceType("blk", "storage", 16),
    DeviceType("net", "net", 1),
    DeviceType("console", "console", 1),
    DeviceType("rng", "rng", 1),
    DeviceType("vsock", "vsock", 1),
)

MAX_INSTANCE: Final = 255
MAX_QUEUES: Final = max(row.queues for row in TYPES)


def device_type(name: object) -> DeviceType | None:
    """The row of a type, None where there is none."""
    return next((row for row in TYPES if row.name == name), None)


class Device(Keys):
    """A VirtIO device that a guest sees."""

    type: DeviceName = Field(description="What it is.")
    service: Name = Field(
        default="",
        description="The well-known service behind it; by default that of its type, storage for blk.",
    )
    instance: int = Field(default=0, ge=0, le=MAX_INSTANCE, description="Which one of the service.")
    transport: TransportName = Field(default="virtio-argo", description="How it is reached.")
    variant: Variant = Field(
        default="inline",
        description="How virtio-argo moves data: inline puts descriptors and data into one message, mirror into two.",
    )
    access: Access = Field(
        default=DEFAULT_ACCESS,
        description="How the back end of virtio-mmio reaches this guest's memory.",
    )
    queues: int = Field(default=1, ge=1, le=MAX_QUEUES, description="Queues of requests that the front end uses (blk).")

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, keys: Any) -> Any:
        """What is not written follows from the type."""
        row = device_type(keys.get("type")) if isinstance(keys, dict) else None
        return keys if row is None else {"service": row.service, **keys}
