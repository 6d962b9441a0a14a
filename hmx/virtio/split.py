"""The split virtqueue: its layout, and what is the same at both ends.

Source: VIRTIO 1.4, 2.7.  Either end owns one ring (the driver the available ring, the device the used ring) with flags,
a free-running index and the event index by which it says when it wants to hear of the other's ring.
"""

from __future__ import annotations

from typing import Final

from hmx.virtio.chain import QueueLayout
from hmx.virtio.ends import End
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.rings import U16, Field, Format, Part, need_event, offset_of, struct_of

SPLIT: Final = Format(
    "split", 1, 32768, True,
    (
        Part("descriptor table", 16, 0, 16),
        Part("available ring", 2, 6, 2),
        Part("used ring", 4, 6, 8),
    ),
)  # fmt: skip

DESCRIPTOR_FIELDS: Final = (
    Field("addr", 0, 8),
    Field("len", 8, 4),
    Field("flags", 12, 2),
    Field("next", 14, 2),
)
RING_FIELDS: Final = (  # of the available and of the used ring; the elements follow, and then the event index
    Field("flags", 0, 2),
    Field("idx", 2, 2),
)
USED_FIELDS: Final = (
    Field("id", 0, 4),
    Field("len", 4, 4),
)

# Descriptor flags (VIRTIO 2.7.5); those of the packed format have the same values.
NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4

NO_INTERRUPT: Final = 1
"""Flag of the available ring: no used-buffer notifications, please."""
NO_NOTIFY: Final = 1
"""Flag of the used ring: no available-buffer notifications, please."""

DESCRIPTOR: Final = struct_of(DESCRIPTOR_FIELDS)
USED: Final = struct_of(USED_FIELDS)
_FLAGS: Final = offset_of(RING_FIELDS, "flags")
_IDX: Final = offset_of(RING_FIELDS, "idx")
RING: Final = struct_of(RING_FIELDS).size
"""Where the elements of either ring begin."""
EVENT_SIZE: Final = SPLIT.parts[1].fixed - RING
"""Bytes of the event index behind the elements."""


class SplitEnd(End):
    """One end of a split queue: its own ring, and how far it has seen the other's.

    `made`, `shown`: entries of its own ring; `next`: the first entry of the other ring that was not taken yet; `seen`:
    the other's index when it was last loaded.  All modulo 2^16.
    """

    __slots__ = (
        "_mask", "_other_event", "_other_flags", "_other_idx", "_other_ring", "_own_event", "_own_flags", "_own_idx",
        "_own_ring", "_seen", "_suppress",
    )  # fmt: skip

    def __init__(self, layout: QueueLayout, features: int, memory: QueueMemory, driver: bool) -> None:
        super().__init__(layout, features, memory)
        size = layout.size
        self._mask = size - 1
        rings = [
            (ring, ring + _FLAGS, ring + _IDX, ring + part.fixed + part.each * size - EVENT_SIZE)
            for ring, part in zip((layout.driver, layout.device), SPLIT.parts[1:], strict=True)
        ]
        own, other = rings if driver else rings[::-1]
        self._own_ring, self._own_flags, self._own_idx, self._own_event = own[0] + RING, *own[1:]
        self._other_ring, self._other_flags, self._other_idx, self._other_event = other[0] + RING, *other[1:]
        self._suppress = NO_INTERRUPT if driver else NO_NOTIFY
        self._seen = 0

    def _stop(self, why: str) -> None:
        super()._stop(why)
        self._seen = self._next  # nothing is taken any more without looking, which says why

    def _look(self, most: int) -> bool:
        """Load the other's index; whether there are new entries.  QueueBroken when there are more than `most`."""
        self._check()
        seen = self._memory.load16(self._other_idx)
        ahead = seen - self._next & U16
        if ahead > most:
            self._fail(f"the other side's index went from {self._next} to {seen}, though at most {most} can be new")
        self._seen = seen
        if ahead:
            self._memory.fence()  # entries are read after the index that announces them
        return ahead > 0

    def _arm(self) -> bool:
        """Say in the event index that the next entry is wanted; whether it came meanwhile."""
        memory, at = self._memory, self._next
        if self._armed != at:
            memory.store16(self._own_event, at)
            self._armed = at
        memory.fence()
        return memory.load16(self._other_idx) != at

    def _idle(self, most: int) -> bool:
        """There is nothing.  An end that wants notifications may sleep now, so its event index must be up to date;
        whether something came meanwhile.
        """
        if not self._wanted or not self._event_idx or self._armed == self._next or not self._arm():
            return False
        return self._look(most)

    def _want(self, wanted: bool) -> bool:
        """Ask for notifications or not; whether something came meanwhile."""
        self._check()
        memory = self._memory
        changed = wanted is not self._told
        try:
            self._wanted = self._told = wanted
            if not wanted:
                if changed and self._event_idx:
                    self._armed = -1
                    memory.store16(self._own_event, self._next - 1 & U16)  # an entry that came long ago
                elif changed:
                    memory.store16(self._own_flags, self._suppress)
                return False
            if self._event_idx:
                return self._arm()
            if changed:
                memory.store16(self._own_flags, 0)
            memory.fence()  # between saying so and looking, or a notification is missed
            return memory.load16(self._other_idx) != self._next
        except BadAddress as error:
            self._fail(str(error))

    def _show(self) -> bool:
        """Let the other end see what was made; whether it wants a notification for that."""
        new, old = self._made, self._shown
        if new == old:
            return False
        memory = self._memory
        try:
            memory.fence()  # entries are written before the index that announces them
            memory.store16(self._own_idx, new)
            self._shown = new
            memory.fence()  # the index is out before the other's wishes are read
            if self._event_idx:
                return need_event(memory.load16(self._other_event), new, old)
            return not memory.load16(self._other_flags) & 1
        except BadAddress as error:
            self._fail(str(error))
