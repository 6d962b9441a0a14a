"""Property: whatever stands in the memory of a virtqueue, its device's end gives chains that VIRTIO allows or raises
QueueBroken, always comes to an end, and stays broken.

Input: features and size, the memory, then a sequence of operations between which the driver may scribble.
"""

from __future__ import annotations

from typing import Final

from tests.doubles.scribbled_queues import Scribbled
from tests.doubles.virtqueues import FEATURE_SETS
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
SIZES: Final = (1, 2, 4, 8)
OPERATIONS: Final = ("pop", "push", "publish", "pop", "want", "pop", "scribble", "scribble wide")


def one_input(data: bytes) -> None:
    """Run one queue."""
    choices = Choices(data)
    features, size = choices.one_of(FEATURE_SETS), choices.one_of(SIZES)
    target = Scribbled(features, size)
    target.scribble(0, choices.take(min(choices.u16(), len(target.content))))
    while choices:
        TALLY.count += 1
        step = choices.u8()
        operation, which = step & 7, step >> 3
        if operation < 6:
            if target.device in target.broken and not which & 3:
                target.reset_device()
            target.serve(operation, which)
        elif operation == 6:
            scribble(target, choices, which)
        else:
            target.scribble(choices.u16(), choices.take(1 + which))


def scribble(target: Scribbled, choices: Choices, which: int) -> None:
    """Two bytes into a field that is read."""
    layout, slot = target.area.layout, choices.u8() % (4 * target.size)
    table = target.area.indirect.address if target.area.indirect else layout.descriptors
    places = (
        layout.descriptors + 16 * (slot % target.size) + 2 * (which >> 2),
        table + 16 * slot + 2 * (which >> 2),
        layout.driver + 2 * (which >> 2) + 2 * (slot % target.size),
        layout.device + 2 * (which >> 2) + 8 * (slot % target.size),
    )
    target.scribble(places[which & 3], choices.take(2))
