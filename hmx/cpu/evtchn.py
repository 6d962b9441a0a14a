"""The event-channel page of a guest: posted ports are merged into pending bits, selectors and upcalls.

On real hardware both Xen and the guest change these bitmaps with locked instructions.  Here one party writes them, the
guest's own process: the hypervisor posts a port, and this model does with it what Xen would have done to the page
(Xen common/event_2l.c; layout: Xen public/xen.h, shared_info of a 64-bit x86 guest, 2-level ABI).

A port posted with UNMASK_FLAG asks for what EVTCHNOP_unmask does: clear the mask bit and, if the port is pending, raise
it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hmx.memory import Window
from hmx.xen import (
    EVTCHN_2L_PORTS,
    EVTCHN_MASK_OFFSET,
    EVTCHN_PENDING_OFFSET,
    PENDING_SEL_OFFSET,
    UPCALL_PENDING_OFFSET,
    VCPU_INFO_SIZE,
)

UNMASK_FLAG: Final = 1 << 23


class EventChannelPage:
    """The 2-level bitmaps in a guest's shared_info page, written by the guest's process only.

    Bitmaps are walked as 32-bit words: port p is bit p % 32 of word p / 32, which on a little-endian machine is the
    same bit as in the 64-bit words of the ABI.  A selector bit stands for 64 ports.
    """

    __slots__ = ("_window",)

    def __init__(self, window: Window) -> None:
        """Use the page behind `window` (4096 bytes, zeroed)."""
        self._window = window

    def _test(self, base: int, bit: int) -> bool:
        return bool(self._window.load32(base + (bit >> 5) * 4) >> (bit & 31) & 1)

    def _assign(self, base: int, bit: int, value: bool) -> None:
        offset = base + (bit >> 5) * 4
        word = self._window.load32(offset)
        mask = 1 << (bit & 31)
        self._window.store32(offset, word | mask if value else word & ~mask)

    def pending(self, port: int) -> bool:
        """True while `port` waits for its handler."""
        return self._test(EVTCHN_PENDING_OFFSET, port)

    def masked(self, port: int) -> bool:
        """True while `port` may become pending but raises no upcall."""
        return self._test(EVTCHN_MASK_OFFSET, port)

    def mask(self, port: int) -> None:
        """Set the mask bit, as a guest does for itself."""
        self._assign(EVTCHN_MASK_OFFSET, port, True)
        self._window.publish()

    def merge(self, entry_id: int, vcpu: int) -> bool:
        """Do what Xen does to the page for one posted id (a port, perhaps with UNMASK_FLAG) that targets `vcpu`.

        False when an event coalesces with one that is pending there already.
        """
        port = entry_id & ~UNMASK_FLAG
        if not 0 < port < EVTCHN_2L_PORTS:
            return True  # port 0 is reserved; ids beyond the 2-level ABI name no bit
        if entry_id & UNMASK_FLAG:
            self.unmask(port, vcpu)
            return True
        if self.pending(port):
            return False  # one bit a port: a second event before the handler ran coalesces
        self._assign(EVTCHN_PENDING_OFFSET, port, True)
        if not self.masked(port):
            self._raise(port, vcpu)
        self._window.publish()
        return True

    def unmask(self, port: int, vcpu: int) -> None:
        """Clear the mask bit of a masked port; if it became pending meanwhile it is raised again."""
        if not self.masked(port):
            return
        self._assign(EVTCHN_MASK_OFFSET, port, False)
        if self.pending(port):
            self._raise(port, vcpu)
        self._window.publish()

    def _raise(self, port: int, vcpu: int) -> None:
        """Set the selector bit and, if it was clear, the upcall flag: each level speaks only when it changes."""
        info = vcpu * VCPU_INFO_SIZE
        if not self._test(info + PENDING_SEL_OFFSET, port >> 6):
            self._assign(info + PENDING_SEL_OFFSET, port >> 6, True)
            self._assign(info + UPCALL_PENDING_OFFSET, 0, True)

    def upcall_pending(self, vcpu: int) -> bool:
        """True when `vcpu` must run its event-channel upcall."""
        return self._test(vcpu * VCPU_INFO_SIZE + UPCALL_PENDING_OFFSET, 0)

    def upcall(self, vcpu: int) -> Iterator[int]:
        """Run one upcall of `vcpu`: yield each port that is pending and unmasked, cleared, lowest first.

        This is the guest's own loop: take the upcall flag down, take the selector, clear each bit before its handler
        runs, so that an event arriving meanwhile is seen by the next upcall.
        """
        window = self._window
        info = vcpu * VCPU_INFO_SIZE
        self._assign(info + UPCALL_PENDING_OFFSET, 0, False)
        for half in range(2):
            offset = info + PENDING_SEL_OFFSET + half * 4
            selector = window.load32(offset)
            window.store32(offset, 0)
            while selector:
                low = selector & -selector
                selector ^= low
                group = half * 32 + low.bit_length() - 1
                yield from self._clear_group(group)
        window.publish()

    def _clear_group(self, group: int) -> Iterator[int]:
        window = self._window
        for word in (group * 2, group * 2 + 1):
            offset = EVTCHN_PENDING_OFFSET + word * 4
            ready = window.load32(offset) & ~window.load32(EVTCHN_MASK_OFFSET + word * 4)
            while ready:
                low = ready & -ready
                ready ^= low
                window.store32(offset, window.load32(offset) & ~low)
                yield word * 32 + low.bit_length() - 1
