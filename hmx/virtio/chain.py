"""What drivers and devices say to a virtqueue of either format: chains of buffers, and how they come back.

Source: VIRTIO 1.4, 2.6 (virtqueues), 2.7 (split), 2.8 (packed).  `DriverQueue` and `DeviceQueue` are the two ends;
hmx/virtio/queues.py makes them for a format and a set of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class QueueBroken(Exception):
    """The other side broke the rules of the queue; what it did, with the values.  The queue is of no use any more.

    A device answers with DEVICE_NEEDS_RESET, a driver stops using the device until it has reset it.
    """


class QueueFull(Exception):
    """There are not as many free descriptors as the chain needs; some come back with the next used buffers."""


class Segment(NamedTuple):
    """One piece of a buffer: address (as the queue's memory knows it) and length in bytes, at least 1."""

    address: int
    size: int


class Chain(NamedTuple):
    """One available buffer, as the device sees it.

    `head`: the id that comes back in the used ring (split: head index; packed: buffer id).  `slots`: descriptors that
    it takes in the ring itself.  Device-readable segments come before device-writable ones.
    """

    head: int
    slots: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]


class Used(NamedTuple):
    """One buffer that came back to the driver: the token it was added with, and the bytes that the device wrote."""

    token: object
    written: int


class QueueLayout(NamedTuple):
    """Where the three parts of a queue lie, and its size in descriptors (SET_VQUEUE, QueueDesc/Driver/Device)."""

    size: int
    descriptors: int
    driver: int
    device: int


class DriverQueue(Protocol):
    """The driver's end."""

    size: int

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: object) -> int:
        """Write a chain; its head.  Not visible to the device before `publish`.  Raises QueueFull, or ValueError for a
        chain without segments or with one of no bytes.
        """

    def publish(self) -> bool:
        """Make what was added available; whether the device wants an available-buffer notification."""

    def take(self) -> Used | None:
        """The next used buffer.  Raises QueueBroken for an id that is not outstanding, or a length beyond it."""

    def want_interrupts(self, wanted: bool) -> bool:
        """Ask for used-buffer notifications, or not.  True: something came meanwhile, take it first."""

    def notification_data(self) -> int:
        """The upper 16 bits of NOTIFICATION_DATA: where the next available buffer goes, with its wrap counter."""

    @property
    def free(self) -> int:
        """Free descriptors."""

    @property
    def outstanding(self) -> int:
        """Chains that the device has not returned."""


class DeviceQueue(Protocol):
    """The device's end."""

    size: int

    def pop(self) -> Chain | None:
        """The next available chain.  Raises QueueBroken for one that breaks the rules."""

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain, `written` bytes of its writable part being valid.  Not visible before `publish`."""

    def publish(self) -> bool:
        """Make what was pushed visible; whether the driver wants a used-buffer notification."""

    def want_notifications(self, wanted: bool) -> bool:
        """Ask for available-buffer notifications, or not.  True: something came meanwhile, pop it first."""
