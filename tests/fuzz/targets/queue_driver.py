"""Property: whatever a device writes into the memory of a virtqueue, its driver's end takes back only what it added,
once, with no more bytes than there was room for, or raises QueueBroken, always comes to an end, and stays broken.

Input: features, size and where the indexes begin, then operations of the driver, between which the device works or
scribbles.
"""

from __future__ import annotations

from typing import Final

from tests.doubles.scribbled_queues import Scribbled
from tests.doubles.virtqueues import FEATURE_SETS
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally
from tests.fuzz.targets.queue_device import SIZES, scribble

TALLY = Tally()
OPERATIONS: Final = ("add", "take", "publish", "take", "want", "serve", "scribble", "scribble wide")


def one_input(data: bytes) -> None:
    """Run one queue."""
    choices = Choices(data)
    features, size = choices.one_of(FEATURE_SETS), choices.one_of(SIZES)
    target = Scribbled(features, size, choices.one_of((0, 0xFFFD)))
    while choices:
        TALLY.count += 1
        step = choices.u8()
        operation, which = step & 7, step >> 3
        match operation:
            case 5:
                if target.device in target.broken:
                    target.reset_device()
                target.serve(which & 7, which >> 3)
            case 6:
                scribble(target, choices, which)
            case 7:
                target.scribble(choices.u16(), choices.take(1 + which))
            case _:
                if target.driver in target.broken and not which & 3:
                    target.reset()
                target.drive(operation, which & 7, which >> 3)
