"""A VirtIO disk as blk-copy and blk-write use it: pieces of it, and how it is revived when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, NamedTuple

from guest_node.guest import Guest
from guest_node.programs.front import device_of, started
from guest_node.virtio.drivers.blk import BlkDevice

SECTOR: Final = 512
CHUNK: Final = 65536
TRIES: Final = 3
"""How often the same piece may fail although the disk could be reset in between."""
AGAIN: Final = 0.1


class Piece(NamedTuple):
    """A range of the disk in bytes."""

    offset: int
    size: int


def pieces(start: int, end: int, size: int) -> Iterator[Piece]:
    """The range from `start` to `end` in pieces of `size` bytes; the last may be smaller."""
    for offset in range(start, end, size):
        yield Piece(offset, min(size, end - offset))


class Disk:
    """The guest's blk device of argument `device`.  Offsets and sizes are whole sectors."""

    def __init__(self, guest: Guest, within: float) -> None:
        self.guest = guest
        self.size = 0
        self.identity = ""
        self.resets = 0
        self._within = within
        self._device: BlkDevice | None = None
        self._failed: tuple[int, int] = (-1, 0)  # where it failed last, and how often there

    async def open(self) -> None:
        """Find the disk and start it.  Raises OSError."""
        queues = device_of(self.guest, "blk").queues
        device = await started(self.guest, "blk", lambda transport: BlkDevice(transport, queues=queues))
        self._device, self.size = device, device.capacity * SECTOR
        self.identity = (await device.identity()).rstrip(b"\0").decode("utf-8", "replace")

    @property
    def device(self) -> BlkDevice:
        """The driver."""
        assert self._device is not None, "open() comes first"
        return self._device

    async def read(self, piece: Piece) -> bytes:
        """The bytes of a piece.  Raises OSError."""
        return await self.device.read(piece.offset // SECTOR, piece.size // SECTOR)

    async def write(self, piece: Piece, data: bytes) -> None:
        """Write a piece; it lasts when a flush that began later has returned.  Raises OSError."""
        await self.device.write(piece.offset // SECTOR, data)

    async def flush(self) -> None:
        """Return when what was written lasts.  Raises OSError."""
        await self.device.flush()

    async def revive(self, failure: OSError, at: int) -> None:
        """The disk failed at offset `at`: reset it, and look for it again for a while.  Raises `failure` in vain."""
        where, times = self._failed
        self._failed = at, times + 1 if where == at else 1
        if self._failed[1] > TRIES:
            raise failure
        self.guest.log(f"the disk failed at {at}: {failure}")
        deadline = self.guest.time() + self._within
        while True:
            try:
                await self.device.start()
            except OSError:
                if self.guest.time() > deadline:
                    raise failure from None
            else:
                self.resets += 1
                return
            await asyncio.sleep(AGAIN)
