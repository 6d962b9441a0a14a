"""A front end's transport over virtio-mmio registers: loads and stores that trap, queues in the guest's own memory.

Source: VIRTIO 1.4, 4.2; Linux drivers/virtio/virtio_mmio.c (the order of register accesses, the interrupt handler).  An
interrupt handler cannot wait, and each of these registers may be served by a device model in another domain: the
handler wakes a task, which reads and acknowledges the cause before it looks at the queues.

With ACCESS_PLATFORM and a grant table, the addresses that the device sees are grant-DMA addresses, and it reaches
nothing but what is granted to `backend`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from guest_node.vcpu import Trap
from guest_node.virtio.frontend import Buffer, DeviceBroken
from guest_node.virtio.grant_table import GrantTable
from guest_node.virtio.iommu_front import Arena
from guest_node.virtio.mmio_queue import MmioQueue, Placement
from hmx.errno import Errno
from hmx.ioreq import WindowRow
from hmx.trap import Arch, Kind, Outcome
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.mmio import CONFIG, MAGIC, OFFSETS, VERSION, Interrupt
from hmx.virtio.status import Status

if TYPE_CHECKING:
    from guest_node.kernel.boot import Kernel

RESET_TRIES: Final = 64
CONFIG_TRIES: Final = 16
_M32: Final = 0xFFFF_FFFF
_QUEUE_BASED: Final = feature_set(Feature.ACCESS_PLATFORM)


def _nothing() -> None:
    pass


class MmioTransport:
    """One device at `window`.  Make it with `open_mmio`; `close` it when it is not needed any more."""

    def __init__(
        self, kernel: Kernel, window: WindowRow, placement: Placement, has_platform: bool, vcpu: int
    ) -> None:
        self.device_id = 0
        self.on_config: Callable[[], None] = _nothing
        self.interrupts = 0
        self.notifies = 0  # available-buffer notifications
        self.features = 0
        self._vcpu = kernel.vcpus[vcpu]
        self._arm = window.arch is Arch.AARCH64
        self._base = window.base
        self._placement = placement
        self._has_platform = has_platform
        self._queues: dict[int, MmioQueue] = {}
        self._lock = asyncio.Lock()  # a selector and what it selects
        self._rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self, take: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Look who is there, and have its interrupt handled.  DeviceBroken: nobody, or no virtio-mmio of version 2."""
        magic, version = await self.load("MagicValue"), await self.load("Version")
        if magic != MAGIC or version != VERSION:
            raise DeviceBroken(
                Errno.ENODEV, f"no virtio-mmio device at {self._base:#x}: magic {magic:#x}, version {version}"
            )
        self.device_id = await self.load("DeviceID")
        if not self.device_id:
            raise DeviceBroken(Errno.ENODEV, f"the device at {self._base:#x} is a placeholder")
        await take(self._rung.set)
        self._task = asyncio.get_running_loop().create_task(self._interrupts())

    async def close(self) -> None:
        """Reset the device and give everything back.  A second time, nothing."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        try:
            await self.reset()
        except DeviceBroken:
            pass
        self._forget("the transport is closed")

    # -- registers ----

    async def _trap(self, kind: Kind, offset: int, size: int, value: int = 0) -> int:
        trap = Trap(kind, (value,), address=self._base + offset, size=size, privilege=1 if self._arm else 0)
        done = await self._vcpu.trap(trap)
        if kind is Kind.STORE:
            return 0
        return done.regs[0] & (1 << 8 * size) - 1 if done.outcome == Outcome.DONE and done.regs else (1 << 8 * size) - 1

    async def load(self, register: str) -> int:
        """A register of 32 bits; all ones where nobody answers."""
        return await self._trap(Kind.LOAD, OFFSETS[register], 4)

    async def store(self, register: str, value: int) -> None:
        """Write it."""
        await self._trap(Kind.STORE, OFFSETS[register], 4, value)

    async def _store64(self, register: str, value: int) -> None:
        await self.store(f"{register}Low", value & _M32)
        await self.store(f"{register}High", value >> 32)

    # -- Transport ----

    async def reset(self) -> None:
        """Write status 0, and read until it is."""
        await self.store("Status", 0)
        for _ in range(RESET_TRIES):
            if not await self.load("Status"):
                self._forget("the device was reset")
                return
        raise DeviceBroken(Errno.EIO, f"the device at {self._base:#x} does not finish its reset")

    async def status(self) -> int:
        """The status."""
        status = await self.load("Status")
        if status == _M32:
            raise DeviceBroken(Errno.ENODEV, f"the device at {self._base:#x} is gone")
        return status

    async def set_status(self, status: int) -> int:
        """Write and read back."""
        await self.store("Status", status)
        return await self.status()

    async def device_features(self) -> int:
        """Word 1 before word 0, as Linux reads them; ACCESS_PLATFORM only if this guest translates addresses."""
        async with self._lock:
            found = {}
            for word in (1, 0):
                await self.store("DeviceFeaturesSel", word)
                found[word] = await self.load("DeviceFeatures")
        features = found[1] << 32 | found[0]
        return features if self._has_platform else features & ~_QUEUE_BASED

    async def set_driver_features(self, features: int) -> None:
        """Two words."""
        async with self._lock:
            for word in (1, 0):
                await self.store("DriverFeaturesSel", word)
                await self.store("DriverFeatures", features >> 32 * word & _M32)
        self.features = features

    async def read_config(self, offset: int, size: int) -> bytes:
        """Until the generation was the same before and after."""
        for _ in range(CONFIG_TRIES):
            before = await self.load("ConfigGeneration")
            data = await self._config(offset, size)
            if await self.load("ConfigGeneration") == before:
                return data
        raise DeviceBroken(Errno.EIO, "the configuration changes all the time")

    async def _config(self, offset: int, size: int) -> bytes:
        data, end = b"", offset + size
        while offset < end:
            step = next(n for n in (4, 2, 1) if not offset % n and offset + n <= end)
            data += (await self._trap(Kind.LOAD, CONFIG + offset, step)).to_bytes(step, "little")
            offset += step
        return data

    async def write_config(self, offset: int, data: Buffer) -> bool:
        """A register access is never refused, only without effect."""
        at = 0
        while at < len(data):
            step = next(n for n in (4, 2, 1) if not (offset + at) % n and at + n <= len(data))
            value = int.from_bytes(data[at : at + step], "little")
            await self._trap(Kind.STORE, CONFIG + offset + at, step, value)
            at += step
        return True

    async def queue_max(self, index: int) -> int:
        """QueueSizeMax."""
        async with self._lock:
            await self.store("QueueSel", index)
            return await self.load("QueueSizeMax")

    async def setup_queue(self, index: int, size: int) -> MmioQueue:
        """In Linux' order: select, not ready yet, size, addresses, ready."""
        async with self._lock:
            await self.store("QueueSel", index)
            most = await self.load("QueueSizeMax")
            if not most or most == _M32 or await self.load("QueueReady"):
                raise DeviceBroken(Errno.ENOENT, f"queue {index} is not there, or in use")
            queue = MmioQueue(index, min(size, most), self.features, self._placement, self._notify)
            layout = queue.layout
            await self.store("QueueSize", layout.size)
            await self._store64("QueueDesc", layout.descriptors)
            await self._store64("QueueDriver", layout.driver)
            await self._store64("QueueDevice", layout.device)
            await self.store("QueueReady", 1)
            if not await self.load("QueueReady") or await self.load("Status") & Status.DEVICE_NEEDS_RESET:
                queue.end(DeviceBroken(Errno.EINVAL, "the queue was refused"))
                raise DeviceBroken(Errno.EINVAL, f"the device refuses queue {index}")
        self._queues[index] = queue
        return queue

    async def reset_queue(self, index: int) -> None:
        """QueueReset, until it reads 0."""
        async with self._lock:
            await self.store("QueueSel", index)
            await self.store("QueueReset", 1)
            for _ in range(RESET_TRIES):
                if not await self.load("QueueReset"):
                    break
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.end(DeviceBroken(Errno.ECANCELED, f"queue {index} was reset"))

    async def _notify(self, value: int) -> None:
        self.notifies += 1
        await self.store("QueueNotify", value)

    def _forget(self, why: str) -> None:
        for queue in self._queues.values():
            queue.end(DeviceBroken(Errno.ECANCELED, why))
        self._queues.clear()

    # -- interrupts ----

    async def _interrupts(self) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            status = await self.load("InterruptStatus")
            if status == _M32:
                self._broke("the device is gone")
                continue
            if not status:
                continue  # shared, or spurious
            self.interrupts += 1
            await self.store("InterruptACK", status)
            if status & Interrupt.USED:
                for queue in list(self._queues.values()):
                    queue.collect()
            if status & Interrupt.CONFIG:
                if await self.load("Status") & Status.DEVICE_NEEDS_RESET:
                    self._broke("the device needs a reset")
                self.on_config()

    def _broke(self, why: str) -> None:
        for queue in self._queues.values():
            queue.end(DeviceBroken(Errno.EIO, why))
        self._queues.clear()


async def open_mmio(
    kernel: Kernel,
    window: WindowRow,
    *,
    grants: GrantTable | None = None,
    backend: int = 0,
    vcpu: int = 0,
    indirect: int = 0,
    arena: Arena | None = None,
) -> MmioTransport:
    """The device at a window, driven from `vcpu`, on Arm its interrupt too.  DeviceBroken where there is none.

    `grants`: addresses are grants to domain `backend`; `arena`: they are those of an IOMMU.  `indirect`: descriptors of an indirect table per chain.
    """
    placement = Placement(kernel.memory, grants, backend, indirect, arena)
    has_platform = grants is not None or arena is not None
    transport = MmioTransport(kernel, window, placement, has_platform, vcpu)
    target = kernel.vcpus[vcpu if window.arch is Arch.AARCH64 else 0]  # an ISA line interrupts the first one
    await transport.begin(lambda handler: kernel.interrupts.controller.take_irq(target, window.irq, handler))
    return transport
