"""Event suppression over VirtIO-Argo: what the other side does not want to hear yet may wait, and share a message.

A message is the notification, so one that nobody wants yet need not be sent.  The wishes are those of VIRTIO 2.7.10 and
2.8.10, read with one difference: they travel with messages, so an event index may be old.  Only one that lies ahead of
what was made counts; one that was passed wants every notification.  What waits is sent when the wish is reached or
taken back, with anything else of that queue, and in any case after a while: a hint holds nothing up for good.
Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from guest_node.virtio.argo_image import RingImage
from hmx.virtio.chain import QueueLayout
from hmx.virtio.features import Feature, has
from hmx.virtio.packed import DESC, DISABLE, EVENT_MASK, SLOT_MASK, WRAP_SHIFT, off_wrap
from hmx.virtio.rings import U16
from hmx.virtio.split import EVENT_SIZE, NO_INTERRUPT, SPLIT

LONGEST: Final = 0.05  # seconds
_FLAGS: Final = 2  # of a packed queue's event suppression structure, behind off_wrap


class Hold:
    """For one side of a queue.  Positions are what notification data has: the index, or slot and wrap counter.

    `release()` is called when what waited is to be sent after all.
    """

    def __init__(
        self, image: RingImage, layout: QueueLayout, features: int, driver: bool, release: Callable[[], None]
    ) -> None:
        own, other = (layout.driver, layout.device) if driver else (layout.device, layout.driver)
        self._image = image
        self._size = layout.size
        self._packed = has(features, Feature.RING_PACKED)
        self._event_idx = has(features, Feature.RING_EVENT_IDX)
        if self._packed:
            self._own_event, self._event, self._flags = own, other, other + _FLAGS
        else:
            parts = SPLIT.parts[1:] if driver else SPLIT.parts[:0:-1]
            own_end, other_end = (
                start + part.fixed + part.each * layout.size for start, part in zip((own, other), parts, strict=True)
            )
            self._own_event, self._event, self._flags = own_end - EVENT_SIZE, other_end - EVENT_SIZE, other
        self._release = release
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._asked = -1

    def holds(self, made: int) -> bool:
        """Whether what was made up to `made` may wait."""
        if self._due or not self._later(made):
            self.end()
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LONGEST, self._expired)
        return True

    def reconsider(self, made: int) -> None:
        """The other side's wishes may have changed."""
        if self._timer is not None and not self._later(made):
            self.end()
            self._release()

    def ask(self, seen: int, more: int) -> None:
        """With EVENT_IDX: be told when `more` (less than the size) have come beyond `seen`; 0: of the next one."""
        if not self._event_idx:
            return
        if self._packed:
            position = self._place(seen) + more
            event = off_wrap(position % (2 * self._size), self._size)
        else:
            event = seen + more & U16
        if more or self._asked >= 0:  # otherwise the queue has said so itself
            self._asked = event if more else -1
            self._image.store16(self._own_event, event)

    def _later(self, made: int) -> bool:
        """Whether the other side has said that it wants to hear of something that was not made yet, or of nothing."""
        load = self._image.load16
        if not self._packed:
            if self._event_idx:
                return (load(self._event) - made & U16) < self._size
            return bool(load(self._flags) & NO_INTERRUPT)  # in the device's area the same bit is NO_NOTIFY
        flags = load(self._flags) & EVENT_MASK
        if flags != DESC or not self._event_idx:
            return flags == DISABLE
        event = load(self._event)
        if event & SLOT_MASK >= self._size:
            return False
        return (self._place(event) - self._place(made)) % (2 * self._size) < self._size

    def _place(self, value: int) -> int:
        """Slot and wrap counter as one number: below the size in laps with the counter 1."""
        slot = value & SLOT_MASK
        return slot if value >> WRAP_SHIFT & 1 else slot + self._size

    def _expired(self) -> None:
        self._timer = None
        self._due = True
        self._release()

    def end(self) -> None:
        """Nothing waits any more."""
        self._due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
