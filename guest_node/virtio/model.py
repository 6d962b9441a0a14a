"""What a back-end device is to a VirtIO transport: a plain object that gets requests and completes them.

No transport, memory or ring is visible to a model, so the same model serves VirtIO-Argo and virtio-mmio, and a test
serves it without either.  Source: VIRTIO 1.4, section 5 (device types).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Request(Protocol):
    """One available buffer chain."""

    queue: int
    readable: bytes | memoryview
    """The device-readable bytes, gathered; valid until `complete`."""
    writable: int
    """How many bytes may be written."""

    def complete(self, written: bytes | memoryview = b"") -> None:
        """Return the chain with these bytes (at most `writable`; more is a ValueError).  Once, in any order; after a
        reset it does nothing.
        """


class Model(Protocol):
    """One device."""

    device_id: int
    features: int
    """Offered device-specific feature bits; the transport adds those of transports and queues."""
    queue_sizes: tuple[int, ...]
    """The most descriptors of each queue."""
    on_config: Callable[[], None]
    """Set by the transport: the configuration changed."""

    def config(self) -> bytes:
        """The device configuration space as it is now."""

    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver wrote configuration; False: it may not."""

    def start(self, features: int) -> None:
        """DRIVER_OK, with what was negotiated."""

    def request(self, request: Request) -> None:
        """A chain became available.  Complete it now or later."""

    def reset(self) -> None:
        """The driver reset the device, or is gone: every request is forgotten, what must last is kept."""
