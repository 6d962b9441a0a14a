"""A guest whose memory the hypervisor only mirrors, as if it ran on another host.

Two buffers stand for the two hosts.  What crosses is exactly what the contract lets cross: the bytes that a call reads
(by its footprint), with the call; stores made through a Window, when it is published; what the hypervisor wrote,
after it ran, data before the pointer that publishes it.  Everything else is dropped, and a range that was not shipped
faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

from guest_node.kernel.argo import GuestMemoryView
from hmx import xen
from hmx.argo.footprint import footprint
from hmx.memory import Buffer, MappedMemory, MappedRingPages, Window
from hmx.trap import FRAME_SIZE, Kind, unpack_frame
from hmx.vcpu_area import SQ_ENTRIES, SQ_OFFSET
from hv_node.hvm import Vcpu


class MirrorWindow(Window):
    """Stores reach the hypervisor's copy when they are published, in order; others never do."""

    __slots__ = ("_far", "_stores")

    def __init__(self, near: bytearray, far: bytearray, gpa: int, size: int) -> None:
        super().__init__(near, gpa, size)
        self._far = far
        self._stores: list[tuple[int, bytes]] = []

    def store32(self, offset: int, value: int) -> None:
        super().store32(offset, value)
        self._stores.append((self.gpa + offset, value.to_bytes(4, "little")))

    def write(self, offset: int, data: Buffer) -> None:
        super().write(offset, data)
        self._stores.append((self.gpa + offset, bytes(data)))

    def publish(self) -> None:
        super().publish()
        for at, data in self._stores:
            self._far[at : at + len(data)] = data
        self._stores.clear()


class RecordedPages(MappedRingPages):
    """Ring pages that remember what the hypervisor wrote: it travels back in this order."""

    __slots__ = ("_log",)

    def __init__(self, view: memoryview, words: memoryview, gfns: Sequence[int], log: list[tuple[int, bytes]]) -> None:
        super().__init__(view, words, gfns)
        self._log = log
        self.flat = None  # a direct store would not be seen
        assert len(self.extents) == 1, "the guest's kernel allocates rings contiguously"

    def store_tx(self, value: int) -> None:
        super().store_tx(value)
        self._log.append((self.extents[0][0] + 4, value.to_bytes(4, "little")))

    def copy_in(self, offset: int, data: Buffer) -> None:
        super().copy_in(offset, data)
        self._log.append((self.extents[0][0] + 64 + offset, bytes(data)))


class MirroredMemory(MappedMemory):
    """The hypervisor's copy: unreadable where nothing was shipped."""

    __slots__ = ("log", "open", "shipped")

    def __init__(self, far: bytearray) -> None:
        super().__init__(far)
        self.log: list[tuple[int, bytes]] = []
        self.open: list[tuple[int, int]] = []  # windows
        self.shipped: list[tuple[int, int]] = []  # reads of the frames at hand

    def _here(self, va: int, n: int) -> bool:
        return any(start <= va and va + n <= start + size for start, size in (*self.shipped, *self.open))

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:
        return super().read(ctx, va, n) if self._here(va, n) else None

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        return super().unpack(layout, ctx, va) if self._here(va, layout.size) else None

    def write(self, ctx: int, va: int, data: Buffer) -> bool:
        self.log.append((va, bytes(data)))
        return super().write(ctx, va, data)

    def ring(self, gfns: Sequence[int], pointers: int = 0) -> MappedRingPages | int:
        pages = super().ring(gfns)
        return pages if isinstance(pages, int) else RecordedPages(self._view, self._words, gfns, self.log)


class MirrorMemory:
    """An InlineMemory in two copies."""

    def __init__(self, size: int) -> None:
        self.near = bytearray(size)
        self.far = bytearray(size)
        self._reader = MappedMemory(self.near)
        self.hypervisor = MirroredMemory(self.far)
        self.guest = GuestMemoryView(memoryview(self.near), self._window)
        self.shipped_bytes = 0

    def _window(self, gpa: int, size: int) -> Window:
        self.hypervisor.open.append((gpa, size))
        return MirrorWindow(self.near, self.far, gpa, size)

    def before_run(self, vcpu: Vcpu) -> None:
        """Ship what the waiting frames read."""
        area = vcpu.area
        self.hypervisor.shipped.clear()
        for waiting in range(area.submitted()):
            at = SQ_OFFSET + (area.sq_head + waiting) % SQ_ENTRIES * FRAME_SIZE
            frame = unpack_frame(area.buffer, at)
            if frame.kind != Kind.VMCALL:
                continue
            number, cmd = frame.reg(0), frame.reg(5)
            if number == xen.Hypercall.ARGO_OP:
                args = (frame.reg(4), frame.reg(3), frame.reg(8), frame.reg(6))
                reads, _ = footprint(cmd, args, self._reader)
            else:
                reads = ((frame.reg(4), xen.ADD_TO_PHYSMAP.size),)
            for start, size in reads:
                self.far[start : start + size] = self.near[start : start + size]
                self.shipped_bytes += size
            self.hypervisor.shipped.extend(reads)

    def after_run(self) -> None:
        """Ship what the hypervisor wrote, in its order."""
        for at, data in self.hypervisor.log:
            self.near[at : at + len(data)] = data
        self.hypervisor.log.clear()
