"""What a front-end driver needs of a VirtIO transport, and nothing of how it works.

A block driver does not know whether a queue lies in memory that the device reads, or travels in messages: it submits
buffers and awaits what the device wrote.  Source: VIRTIO 1.4, 3.1 (initialisation), 2.6 (virtqueues); the transports
are virtio-mmio (VIRTIO 1.4, 4.2) and VirtIO-Argo (experimental, docs/virtio-argo.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class DeviceBroken(OSError):
    """The device broke the rules, asked for a reset, or is gone.  Its requests are lost; a reset may revive it."""


class Queue(Protocol):
    """The driver's end of one virtqueue."""

    size: int

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        """Add one chain: `readable` bytes for the device, room for `writable` bytes of its answer.

        The future has the bytes that the device wrote (at most `writable`), or DeviceBroken.  Nothing reaches the
        device before `kick`.  Raises hmx.virtio.chain.QueueFull when there is no room; room comes with the next answer.
        """

    async def kick(self) -> None:
        """Make everything submitted available, and notify the device if it wants that."""

    async def room(self) -> None:
        """Return when a chain has come back since the last submit that raised QueueFull."""


class Transport(Protocol):
    """One device as its driver sees it.  Every method may raise DeviceBroken."""

    device_id: int
    on_config: Callable[[], None]  # run when the device says that its configuration changed, or that it needs a reset

    async def reset(self) -> None:
        """Write status 0 and wait until the device has it."""

    async def status(self) -> int:
        """The device status byte."""

    async def set_status(self, status: int) -> int:
        """Write the status; the resulting one (FEATURES_OK may be refused)."""

    async def device_features(self) -> int:
        """Everything that the device offers, as a bit set."""

    async def set_driver_features(self, features: int) -> None:
        """Accept a subset.  It also decides the format of the queues."""

    async def read_config(self, offset: int, size: int) -> bytes:
        """Consistent bytes of the device configuration space, whatever its generation does meanwhile."""

    async def write_config(self, offset: int, data: Buffer) -> bool:
        """Write configuration; False where the device refused it since it changed meanwhile."""

    async def queue_max(self, index: int) -> int:
        """The most descriptors of queue `index`; 0: there is no such queue."""

    async def setup_queue(self, index: int, size: int) -> Queue:
        """Make queue `index` of at most `size` descriptors ready."""

    async def reset_queue(self, index: int) -> None:
        """Stop one queue (feature RING_RESET); its requests are lost."""
