"""Devices behind the virtio-iommu that a guest has at its last window: each reaches its own arena and no other page.

Source: VIRTIO 1.4, 5.13; docs/ioreq.md (experimental: where it is, and who is which endpoint).
"""

from __future__ import annotations

import asyncio
from typing import Final

from guest_node.kernel.boot import Kernel
from guest_node.virtio.iommu_front import Arena, IommuDriver
from guest_node.virtio.mmio_front import open_mmio
from hmx.errno import Errno
from hmx.ioreq import windows

LEAST: Final = 128  # pages of an arena at least: a network device has 64 buffers out to receive into
MOST: Final = 1024
SHARE: Final = 16  # in between one page in so many of the guest's


class Guarded:
    """The IOMMU of one guest, started when the first device is opened, and the arenas behind it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._driver: IommuDriver | None = None
        self._arenas: dict[int, Arena] = {}
        self._turn = asyncio.Lock()  # two tasks that open devices start it once

    async def arena(self, window: int) -> Arena:
        """The memory of the device at `window`, the same whenever that is opened.  Raises OSError."""
        async with self._turn:
            found = self._arenas.get(window)
            if found is None:
                driver = self._driver or await self._start()
                memory = self._kernel.memory
                pages = min(max(memory.pages.frames // SHARE, LEAST), MOST)
                try:
                    found = self._arenas[window] = await driver.arena(memory, window, pages)
                except MemoryError as none:
                    words = f"no arena for the device at window {window}, give this guest more memory: {none}"
                    raise OSError(Errno.ENOMEM, words) from None
            return found

    async def _start(self) -> IommuDriver:
        driver = IommuDriver(await open_mmio(self._kernel, windows(self._kernel.probe.arch)[-1]))
        await driver.start()
        self._driver = driver
        return driver
