"""What every end of a virtqueue has, of either format, and what every driver's end has.

Source: VIRTIO 1.4, 2.6.  The formats go on from here in split.py and packed.py.
"""

from __future__ import annotations

from typing import Any, NoReturn

from hmx.virtio.chain import QueueBroken, QueueLayout
from hmx.virtio.features import Feature
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.rings import Format, IndirectArea, check_layout, clear


class End:
    """One end of a queue.

    `made`: where it writes next; `shown`: up to where the other end may see; `next`: what it takes next.
    """

    __slots__ = (
        "_armed", "_broken", "_descriptors", "_event_idx", "_in_order", "_made", "_memory", "_next", "_shown", "_told",
        "_wanted", "size",
    )  # fmt: skip

    def __init__(self, layout: QueueLayout, features: int, memory: QueueMemory) -> None:
        self.size = layout.size
        self._memory = memory
        self._descriptors = layout.descriptors
        self._event_idx = bool(features >> Feature.RING_EVENT_IDX & 1)
        self._in_order = bool(features >> Feature.IN_ORDER & 1)
        self._made = self._shown = self._next = 0
        self._wanted = True
        self._told: bool | None = None  # what the own flags or event say; None: nothing of this end's yet
        self._armed = -1  # what the own event names; -1: nothing, or it was not written yet
        self._broken: str | None = None

    def _stop(self, why: str) -> None:
        """The queue is of no use from now on."""
        self._broken = why

    def _fail(self, why: str) -> NoReturn:
        """The queue is broken from now on."""
        self._stop(why)
        raise QueueBroken(why)

    def _check(self) -> None:
        """Raise QueueBroken again when the queue is broken."""
        if self._broken is not None:
            raise QueueBroken(self._broken)


class DriverEnd(End):
    """What drivers do alike.  It has no slots: those of a format come from the format's end."""

    __slots__ = ()

    _out: dict[int, tuple[object, int, Any]]  # token, writable bytes, and what the format keeps

    @property
    def outstanding(self) -> int:
        """Chains that the device has not returned, and those that were not published."""
        return len(self._out)

    def abandon(self) -> list[object]:
        """Tokens of all chains that were not taken, in the order in which they were added; the queue is of no use then.

        For a queue that is broken or was reset, so that whoever waits for them is told.
        """
        tokens = [out[0] for out in self._out.values()]
        self._stop(self._broken or "the queue was given up")
        self._out.clear()
        return tokens


def new_queue(
    kind: Format, layout: QueueLayout, features: int, memory: QueueMemory, indirect: IndirectArea | None
) -> IndirectArea:
    """Zero a queue, as a driver does first; the indirect tables that it may use, of 0 entries if none.

    ValueError for a layout that VIRTIO forbids or memory that is not there.
    """
    check_layout(kind, layout)
    try:
        clear(kind, layout, memory)
    except BadAddress as error:
        raise ValueError(str(error)) from error
    if indirect is None or not features >> Feature.RING_INDIRECT_DESC & 1:
        return IndirectArea(0, 0)
    return indirect
