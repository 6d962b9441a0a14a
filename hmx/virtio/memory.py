"""Memory that a virtqueue lies in, whichever it is: a guest's RAM, or one side's private copy of the rings.

Addresses are those of the queue's owner: guest-physical, or offsets in a private copy.  An address that is not there
raises `BadAddress`; a device turns that into DEVICE_NEEDS_RESET, a driver into a broken device, neither crashes.
16-bit index words have one writer each (VIRTIO 2.7, 2.8): loads and stores of them are single accesses.
"""

from __future__ import annotations

from typing import Protocol

from hmx.shm import fence, load16, store16, words16

Buffer = bytes | bytearray | memoryview


class BadAddress(Exception):
    """`size` bytes at `address` are not in this memory."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"{size} bytes at {address:#x} are outside the memory of this queue")
        self.address = address
        self.size = size


class QueueMemory(Protocol):
    """What a virtqueue needs of memory.  Every method raises BadAddress."""

    def load16(self, address: int) -> int:
        """A little-endian u16 at an even address, in one access."""

    def store16(self, address: int, value: int) -> None:
        """Store a u16 at an even address, in one access."""

    def read(self, address: int, size: int) -> memoryview | bytes:
        """`size` bytes; a view may be valid only until the next access."""

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes."""

    def fence(self) -> None:
        """Order what was stored before against what is stored or loaded after, as the other side sees it."""


class FlatMemory:
    """Memory in one writable buffer whose first byte has the address `base` (even)."""

    __slots__ = ("_base", "_bytes", "_size", "_words")

    def __init__(self, buffer: bytearray | memoryview, base: int = 0) -> None:
        view = memoryview(buffer).cast("B")
        self._bytes = view
        self._words = words16(view[: len(view) & ~1])
        self._base = base
        self._size = len(view)

    def load16(self, address: int) -> int:
        """A u16 at an even address."""
        at = address - self._base
        if at & 1 or not 0 <= at <= self._size - 2:
            raise BadAddress(address, 2)
        return load16(self._words, at >> 1)

    def store16(self, address: int, value: int) -> None:
        """Store a u16 at an even address."""
        at = address - self._base
        if at & 1 or not 0 <= at <= self._size - 2:
            raise BadAddress(address, 2)
        store16(self._words, at >> 1, value)

    def read(self, address: int, size: int) -> memoryview:
        """A read-only view of `size` bytes."""
        at = address - self._base
        if size < 0 or not 0 <= at <= self._size - size:
            raise BadAddress(address, size)
        return self._bytes[at : at + size].toreadonly()

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes."""
        at, size = address - self._base, len(data)
        if not 0 <= at <= self._size - size:
            raise BadAddress(address, size)
        self._bytes[at : at + size] = data

    def fence(self) -> None:
        """A full barrier."""
        fence()
