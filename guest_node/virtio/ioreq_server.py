"""The device model's side of I/O requests: one server for one target domain, and the devices that it answers for.

Source: Xen public/hvm/ioreq.h, public/hvm/dm_op.h; QEMU hw/i386/xen/xen-hvm.c for the order of things.  Handlers of
event channels only wake the task that serves: what it does makes hypercalls, at whose interruption points handlers run.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from guest_node.virtio.xen_calls import XenCalls
from hmx import ioreq
from hmx.ioreq import Dmop, IoreqState, RangeType, WindowRow
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch

if TYPE_CHECKING:
    from guest_node.kernel.boot import Kernel

_ONES: Final = (1 << 64) - 1


class Device(Protocol):
    """What answers at a range of addresses; offsets are from its start."""

    def load(self, offset: int, size: int) -> int:
        """The target reads."""

    def store(self, offset: int, size: int, value: int) -> None:
        """The target writes."""

    def pump(self) -> None:
        """Do what the accesses asked for: their vCPU has been let go on."""

    def close(self) -> None:
        """Nobody will access it any more."""


@dataclass(slots=True)
class _Range:
    first: int
    last: int
    device: Device


class IoreqServer:
    """A server of this guest for domain `target`.  `start` it, `add` devices, have `serve` run."""

    def __init__(self, kernel: Kernel, target: int, vcpu: int = 0) -> None:
        self.xen = XenCalls(kernel, vcpu)
        self.target = target
        self.round_trips = 0
        self._kernel = kernel
        self._arch = kernel.probe.arch
        self._id: int | None = None
        self._frame = kernel.memory.pages.allocate(1)
        self._page = kernel.memory.window(self._frame * PAGE_SIZE, PAGE_SIZE)
        self._ports: list[int] = []
        self._ranges: list[_Range] = []
        self._rung = asyncio.Event()
        self._due: dict[Device, None] = {}

    async def start(self) -> None:
        """Create the server, place its page, enable it, bind a port for each vCPU.  Raises XenRefused, NoInterrupts."""
        await self._kernel.interrupts.place_page()
        xen, target = self.xen, self.target
        self._id = xen.dm_op(target, Dmop.CREATE_IOREQ_SERVER, ioreq.BufIoreq.OFF, 0, 0, 0)[3]
        xen.acquire(target, self._id, ioreq.FRAME_IOREQ, self._frame)
        xen.dm_op(target, Dmop.SET_IOREQ_SERVER_STATE, self._id, 1, 0)
        (vcpus,) = xen.dm_op(target, Dmop.NR_VCPUS, 0)
        for index in range(vcpus):
            port = xen.bind_interdomain(target, self._page.load32(index * ioreq.SIZE + ioreq.PORT_OFFSET))
            self._ports.append(port)
            self._kernel.vcpus[0].on_port(port, self._rung.set)

    def add(self, first: int, last: int, device: Device) -> None:
        """Answer for guest physical addresses first..last.  Raises XenRefused."""
        assert self._id is not None, "the server is not started"
        self.xen.dm_op(self.target, Dmop.MAP_IO_RANGE, self._id, 0, RangeType.MEMORY, first, last)
        self._ranges.append(_Range(first, last, device))

    def line(self, window: WindowRow) -> _Line:
        """What drives the interrupt of a window in the target."""
        return _Line(self.xen, self.target, self._arch, window.irq)

    def soon(self, device: Device) -> None:
        """Have a device pumped when the requests that are here have been answered."""
        self._due[device] = None
        self._rung.set()

    async def serve(self) -> None:
        """Answer requests, for ever."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            self.turn()

    def turn(self) -> None:
        """Answer what is there, then let devices work."""
        for index, port in enumerate(self._ports):
            self._look(index, port)
        while self._due:
            device = next(iter(self._due))
            del self._due[device]
            device.pump()

    def _look(self, index: int, port: int) -> None:
        at, page = index * ioreq.SIZE, self._page
        word = page.load32(at + ioreq.STATE_OFFSET)
        if (word & ioreq.STATE_MASK) >> ioreq.STATE_SHIFT != IoreqState.READY:
            return
        request = ioreq.unpack(ioreq.SLOT.unpack(page.read(at, ioreq.SIZE)))
        page.store32(at + ioreq.STATE_OFFSET, ioreq.with_state(word, IoreqState.INPROCESS))
        data = self._access(request)
        if request.is_read:
            page.write(at + ioreq.DATA_OFFSET, ioreq.DATA.pack(data))
        page.publish()
        page.store32(at + ioreq.STATE_OFFSET, ioreq.with_state(word, IoreqState.RESP_READY))
        page.publish()
        self.round_trips += 1
        self.xen.send(port)

    def _access(self, request: ioreq.Ioreq) -> int:
        found = next((each for each in self._ranges if each.first <= request.address <= each.last), None)
        if found is None:
            return _ONES
        offset = request.address - found.first
        if request.is_read:
            return found.device.load(offset, request.size)
        found.device.store(offset, request.size, request.data)
        return 0

    def close(self) -> None:
        """Destroy the server: whoever waits for it goes on, and its devices are reset."""
        for each in self._ranges:
            each.device.close()
        self._ranges.clear()
        if self._id is not None:
            self.xen.dm_op(self.target, Dmop.DESTROY_IOREQ_SERVER, self._id, 0)
            self._id = None
        for port in self._ports:
            self.xen.close_port(port)
        self._ports.clear()
        self._kernel.memory.pages.release(self._frame, 1)
        self.xen.close()


class _Line:
    """Drives one interrupt line of a target: an ISA IRQ on x86, an SPI on Arm."""

    def __init__(self, xen: XenCalls, target: int, arch: Arch, irq: int) -> None:
        self._xen = xen
        self._target = target
        self._irq = irq
        self._arm = arch is Arch.AARCH64
        self.changes = 0

    def __call__(self, level: bool) -> None:
        self.changes += 1
        if self._arm:
            self._xen.dm_op(self._target, Dmop.SET_IRQ_LEVEL, self._irq, int(level), 0, 0)
        else:
            self._xen.dm_op(self._target, Dmop.SET_ISA_IRQ_LEVEL, self._irq, int(level))
