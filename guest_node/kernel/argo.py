"""Argo hypercalls as the guest's kernel makes them: arguments in guest memory, registers by the door's convention.

A guest's programs hand over ordinary Python buffers; a hypercall takes guest addresses.  Each outstanding send owns one
slot of guest memory: the send_addr, the iov array, and behind them the payload.  Small payloads live in the slot's
page, larger ones in pages of their own that are kept for reuse.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from guest_node.kernel.frames import door_trap
from guest_node.kernel.pages import PageAllocator, pages_for
from guest_node.vcpu import Trap, Vcpu
from hmx import xen
from hmx.argo import abi
from hmx.argo.abi import Address, Op
from hmx.argo.calls import Buffer, Outgoing, RingMemory, SpaceAnswer, SpaceQuery
from hmx.argo.ring import npages_for
from hmx.doors import Convention
from hmx.errno import Errno
from hmx.ioreq import EXTENDED_PAGES
from hmx.memory import PAGE_SIZE, Window
from hmx.notify import REGISTER_RING_EX, NotifyOp
from hmx.trap import Completion, Outcome, int32

_PAYLOAD: Final = 256  # offset of the payload in a slot: behind send_addr and eight iovs
_SMALL: Final = PAGE_SIZE - _PAYLOAD
_SEND: Final = tuple(struct.Struct("<IHHIHH" + "QII" * n) for n in range(9))  # send_addr, then n 64-bit iovs
_SEND_ONE: Final = _SEND[1].pack_into
_MAX_NOTIFY: Final = 256
_GFN: Final = 8


class GuestMemoryView:
    """The guest's own RAM: private pages as plain bytes, registered pages through windows."""

    def __init__(self, buffer: memoryview, window: Callable[[int, int], Window]) -> None:
        """`window(gpa, size)` makes the window of a page range; `buffer` is the RAM."""
        self.buffer = buffer
        self.window = window
        self.pages = PageAllocator(len(buffer) // PAGE_SIZE)
        self.extended = PageAllocator(EXTENDED_PAGES)  # frames above all RAM, for pages of other domains
        # The RAM of a domain of which this one may have pages mapped; its shell sets this (foreign and granted pages).
        self.foreign: Callable[[int], memoryview | None] = lambda _domid: None


class _Slot:
    """Guest memory of one outstanding send: an argument page, and bigger pages while a payload needs them."""

    __slots__ = ("address", "big", "big_pages", "shape", "trap")

    def __init__(self, address: int) -> None:
        self.address = address
        self.shape: tuple[int, int] | None = None  # (iovs, message type) of `trap`, the last frame sent from here
        self.trap: Trap | None = None
        self.big = 0
        self.big_pages = 0


class Argo:
    """ArgoCalls over one vCPU and one door."""

    max_batch: int = 16

    def __init__(
        self, vcpu: Vcpu, memory: GuestMemoryView, door: Convention, domid: int = xen.DOMID_SELF
    ) -> None:
        self.vcpu = vcpu
        self.memory = memory
        self.domid = domid
        # (address, data) of the interrupt that the next ring is to have for itself; None: rings have none.
        self.ring_interrupt: Callable[[], Awaitable[tuple[int, int]]] | None = None
        self._ram = memory.buffer
        self.door = door
        self._slots: list[_Slot] = []
        self._virq_handlers: list[Callable[[], None]] = []
        self.hypercalls = 0

    # -- the five calls ----

    async def register_ring(
        self,
        ring: RingMemory,
        port: int,
        partner: int,
        flags: int = 0,
        *,
        interrupt: tuple[int, int] | None = None,
        vcpu: Vcpu | None = None,
    ) -> int:
        """Register `ring` as (port, partner), anew if it is; 0 or a negated errno.

        `interrupt`: (address, data) of its own interrupt, else what `ring_interrupt` gives it.  `vcpu` makes the call:
        with a vector for each vCPU, it is the one that is interrupted.
        """
        count = len(ring.gfns)
        slot, gfns = self._take_slot(), 0
        pages = pages_for(count * _GFN)
        try:
            gfns = self.memory.pages.allocate(pages)
            struct.pack_into(f"<{count}Q", self._ram, gfns * PAGE_SIZE, *ring.gfns)
            operation: int = Op.REGISTER_RING
            if interrupt is None and self.ring_interrupt is not None:
                interrupt = await self.ring_interrupt()
            if interrupt is None:
                abi.REGISTER_RING.pack_into(self._ram, slot.address, port, partner, 0, ring.ring_len)
            else:
                operation = NotifyOp.REGISTER_RING_EX
                REGISTER_RING_EX.pack_into(self._ram, slot.address, port, partner, 0, ring.ring_len, 0, *interrupt, 0)
            return await self.call(operation, slot.address, gfns * PAGE_SIZE, count, flags, vcpu)
        finally:
            if gfns:
                self.memory.pages.release(gfns, pages)
            self._slots.append(slot)

    async def unregister_ring(self, port: int, partner: int) -> int:
        """Unregister (port, partner); 0 or a negated errno."""
        slot = self._take_slot()
        try:
            abi.UNREGISTER_RING.pack_into(self._ram, slot.address, port, partner, 0)
            return await self.call(Op.UNREGISTER_RING, slot.address, 0, 0, 0)
        finally:
            self._slots.append(slot)

    async def sendv(self, dst: Address, src_port: int, buffers: Sequence[Buffer], message_type: int) -> int:
        """Send one message; the payload bytes taken, or a negated errno."""
        slot = self._take_slot()
        try:
            done = await self.vcpu.trap(self._send_trap(slot, Outgoing(dst, src_port, buffers, message_type)))
        finally:
            self._slots.append(slot)
        return self._result(done)

    async def sendv_linked(self, messages: Sequence[Outgoing]) -> list[int]:
        """Send messages as one LINK chain; those after the first failure report -ECANCELED."""
        slots = [self._take_slot() for _ in messages]
        try:
            traps = [self._send_trap(slot, message) for slot, message in zip(slots, messages, strict=True)]
            return [self._result(done) for done in await self.vcpu.trap_chain(traps)]
        finally:
            self._slots.extend(slots)

    async def notify(self, entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
        """One notify: wakes those who wait for room in our rings, then queries `entries` (at most 256)."""
        if not entries:
            return await self.call(Op.NOTIFY, 0, 0, 0, 0), []
        if len(entries) > _MAX_NOTIFY:
            raise ValueError(f"{len(entries)} entries in one notify; the most is {_MAX_NOTIFY}")
        size = abi.RING_DATA.size + len(entries) * abi.RING_DATA_ENT.size
        pages = pages_for(size)
        first = self.memory.pages.allocate(pages)
        base = first * PAGE_SIZE
        try:
            abi.RING_DATA.pack_into(self._ram, base, len(entries), 0)
            at = base + abi.RING_DATA.size
            for (address, space), offset in zip(entries, range(at, base + size, abi.RING_DATA_ENT.size), strict=True):
                abi.RING_DATA_ENT.pack_into(self._ram, offset, address.port, address.domid, 0, 0, 0, space, 0)
            ret = await self.call(Op.NOTIFY, base, 0, 0, 0)
            answers = [
                SpaceAnswer(flags, largest)
                for _, _, _, flags, _, _, largest in abi.RING_DATA_ENT.iter_unpack(self._ram[at : base + size])
            ]
            return ret, answers
        finally:
            self.memory.pages.release(first, pages)

    # -- pages and interrupts ----

    def allocate_ring(self, ring_len: int) -> RingMemory:
        """Zeroed, contiguous pages for a ring of `ring_len` bytes of data.  MemoryError when there are none."""
        count = npages_for(ring_len)
        first = self.memory.pages.allocate(count)
        window = self.memory.window(first * PAGE_SIZE, count * PAGE_SIZE)
        window.write(0, bytes(count * PAGE_SIZE))
        window.publish()
        return RingMemory(window, ring_len, tuple(range(first, first + count)))

    def release_ring(self, ring: RingMemory) -> None:
        """Give an unregistered ring's pages back."""
        self.memory.pages.release(ring.gfns[0], len(ring.gfns))

    def on_virq(self, handler: Callable[[], None]) -> None:
        """Run `handler` on every VIRQ_ARGO, in the order in which handlers were added."""
        self._virq_handlers.append(handler)

    def virq(self) -> None:
        """VIRQ_ARGO arrived: the kernel's event-channel code calls this."""
        for handler in self._virq_handlers:
            handler()

    # -- frames ----

    async def call(self, cmd: int, a1: int, a2: int, a3: int, a4: int, vcpu: Vcpu | None = None) -> int:
        """One argo_op, by `vcpu` instead of the first; the int32 result."""
        return self._result(await (vcpu or self.vcpu).trap(self.call_trap(cmd, a1, a2, a3, a4)))

    def call_trap(self, cmd: int, a1: int, a2: int, a3: int, a4: int) -> Trap:
        """The frame of one argo_op by this guest's door."""
        self.hypercalls += 1
        return door_trap(self.door, cmd, a1, a2, a3, a4)

    def _result(self, done: Completion) -> int:
        if done.outcome == Outcome.CANCELED:
            return -Errno.ECANCELED
        if done.outcome != Outcome.DONE:
            return -Errno.ENOSYS  # the door is not there: the instruction faulted or was ignored
        return int32(done.regs[self.door.result])

    def _send_trap(self, slot: _Slot, message: Outgoing) -> Trap:
        dst, src_port, buffers, message_type = message
        base = slot.address
        if len(buffers) == 1:
            total = len(buffers[0])
            at = base + _PAYLOAD if total <= _SMALL else self._big(slot, total)
            self._ram[at : at + total] = buffers[0]
            _SEND_ONE(self._ram, base, src_port, abi.DOMID_ANY, 0, dst.port, dst.domid, 0, at, total, 0)
            return self._sendv_trap(slot, 1, message_type)
        sizes = [len(buffer) for buffer in buffers]
        total = sum(sizes)
        at = slot.address + _PAYLOAD if total <= _SMALL else self._big(slot, total)
        ram = self._ram
        iovs: list[int] = []
        for buffer, size in zip(buffers, sizes, strict=True):
            ram[at : at + size] = buffer
            iovs += (at, size, 0)
            at += size
        _SEND[len(sizes)].pack_into(ram, base, src_port, abi.DOMID_ANY, 0, dst.port, dst.domid, 0, *iovs)
        return self._sendv_trap(slot, len(sizes), message_type)

    def _sendv_trap(self, slot: _Slot, count: int, message_type: int) -> Trap:
        """The frame of a send from `slot`: the same registers as long as iov count and type stay."""
        if slot.trap is not None and slot.shape == (count, message_type):
            self.hypercalls += 1
            return slot.trap
        slot.shape = (count, message_type)
        slot.trap = self.call_trap(Op.SENDV, slot.address, slot.address + abi.SEND_ADDR.size, count, message_type)
        return slot.trap

    def _take_slot(self) -> _Slot:
        if self._slots:
            return self._slots.pop()
        return _Slot(self.memory.pages.allocate(1) * PAGE_SIZE)

    def _big(self, slot: _Slot, size: int) -> int:
        pages = pages_for(size)
        if slot.big_pages < pages:
            if slot.big_pages:
                self.memory.pages.release(slot.big, slot.big_pages)
                slot.big_pages = 0
            slot.big = self.memory.pages.allocate(pages)
            slot.big_pages = pages
        return slot.big * PAGE_SIZE


def hypercall_trap(call: Convention, number: int, *arguments: int) -> Trap:
    """The frame of one Xen hypercall that is not Argo's."""
    return door_trap(call, *arguments, call=number)
