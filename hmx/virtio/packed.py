"""The packed virtqueue: its layout, and what is the same at both ends.

Source: VIRTIO 1.4, 2.8.  Both ends write into one ring of descriptors.  A position is a slot and a wrap counter; here
it is one number modulo twice the size: below the size the counter is 1, from there on 0.
"""

from __future__ import annotations

from typing import Final

from hmx.virtio.chain import QueueLayout
from hmx.virtio.ends import End
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.rings import Field, Format, Part, need_event, offset_of, struct_of

PACKED: Final = Format(
    "packed", 1, 32768, False,
    (
        Part("descriptor ring", 16, 0, 16),
        Part("driver event suppression", 4, 4, 0),
        Part("device event suppression", 4, 4, 0),
    ),
)  # fmt: skip

DESCRIPTOR_FIELDS: Final = (
    Field("addr", 0, 8),
    Field("len", 8, 4),
    Field("id", 12, 2),
    Field("flags", 14, 2),
)
EVENT_FIELDS: Final = (
    Field("off_wrap", 0, 2),
    Field("flags", 2, 2),
)

# Descriptor flags (VIRTIO 2.8.1 to 2.8.7).
NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
AVAIL: Final = 1 << 7
USED: Final = 1 << 15

# Event suppression flags (VIRTIO 2.8.10); DESC only with RING_EVENT_IDX.
ENABLE: Final = 0
DISABLE: Final = 1
DESC: Final = 2
EVENT_MASK: Final = 3

WRAP_SHIFT: Final = 15
"""Where the wrap counter stands beside 15 bits of a slot: in off_wrap, in notifications, in a saved position."""
SLOT_MASK: Final = (1 << WRAP_SHIFT) - 1

DESCRIPTOR: Final = struct_of(DESCRIPTOR_FIELDS)
USED_TAIL: Final = struct_of([field._replace(offset=field.offset - 8) for field in DESCRIPTOR_FIELDS[1:]])
"""What a device writes of a used descriptor: length, id and flags, from TAIL on."""
TAIL: Final = offset_of(DESCRIPTOR_FIELDS, "len")
FLAGS: Final = offset_of(DESCRIPTOR_FIELDS, "flags")
_OFF_WRAP: Final = offset_of(EVENT_FIELDS, "off_wrap")
_EVENT_FLAGS: Final = offset_of(EVENT_FIELDS, "flags")


def off_wrap(position: int, size: int) -> int:
    """A position as it stands in memory and in notifications: slot and wrap counter."""
    return position | 1 << WRAP_SHIFT if position < size else position - size


def position_of(value: int, size: int) -> int:
    """The inverse of `off_wrap`.  ValueError for a slot that the queue does not have."""
    slot = value & SLOT_MASK
    if slot >= size:
        raise ValueError(f"slot {slot} of a queue of {size}")
    return slot if value >> WRAP_SHIFT & 1 else slot + size


class PackedEnd(End):
    """One end of a packed queue.

    `made`, `shown`: positions of its own descriptors; `next`: where it looks for the other's next one.
    """

    __slots__ = ("_first", "_first_flags", "_laps", "_other_event", "_own_event")

    def __init__(self, layout: QueueLayout, features: int, memory: QueueMemory, driver: bool) -> None:
        super().__init__(layout, features, memory)
        self._laps = 2 * layout.size
        self._own_event, self._other_event = (
            (layout.driver, layout.device) if driver else (layout.device, layout.driver)
        )
        self._first = -1  # address of the flags that make everything since `shown` visible; -1: there is nothing
        self._first_flags = 0

    def _here(self) -> bool:
        """Whether the other end has written the next descriptor."""
        raise NotImplementedError

    def _arm(self) -> bool:
        """Say in the event structure that the next descriptor is wanted; whether it came meanwhile."""
        memory, at = self._memory, self._next
        if self._armed != at:
            memory.store16(self._own_event + _OFF_WRAP, off_wrap(at, self.size))
            if self._armed < 0:
                # Who reads one of the two too early has shown its descriptors before: they are seen below.
                memory.store16(self._own_event + _EVENT_FLAGS, DESC)
            self._armed = at
        memory.fence()
        return self._here()

    def _idle(self) -> bool:
        """There is nothing.  An end that wants notifications may sleep now, so its event structure must be up to date;
        whether something came meanwhile.
        """
        return self._wanted and self._event_idx and self._armed != self._next and self._arm()

    def _want(self, wanted: bool) -> bool:
        """Ask for notifications or not; whether something came meanwhile."""
        self._check()
        memory = self._memory
        changed = wanted is not self._told
        try:
            self._wanted = self._told = wanted
            if not wanted:
                if changed:
                    self._armed = -1
                    memory.store16(self._own_event + _EVENT_FLAGS, DISABLE)
                return False
            if self._event_idx:
                return self._arm()
            if changed:
                memory.store16(self._own_event + _EVENT_FLAGS, ENABLE)
            memory.fence()  # between saying so and looking, or a notification is missed
            return self._here()
        except BadAddress as error:
            self._fail(str(error))

    def _show(self) -> bool:
        """Let the other end see what was made; whether it wants a notification for that."""
        if self._first < 0:
            return False
        memory, size = self._memory, self.size
        try:
            memory.fence()  # all descriptors are written before the flags that open the first of them
            memory.store16(self._first, self._first_flags)
            self._first = -1
            old, new = self._shown, self._made
            self._shown = new
            memory.fence()  # the flags are out before the other's wishes are read
            flags = memory.load16(self._other_event + _EVENT_FLAGS) & EVENT_MASK
            if flags == DISABLE:
                return False
            if flags != DESC or not self._event_idx:
                return True
            event = memory.load16(self._other_event + _OFF_WRAP)
        except BadAddress as error:
            self._fail(str(error))
        slot = event & SLOT_MASK
        if slot >= size:
            return True  # it names no slot of this queue: one notification too many does no harm
        return need_event(slot if event >> WRAP_SHIFT else slot + size, new, old, self._laps)
