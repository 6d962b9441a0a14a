"""An entropy device.

Source: VIRTIO 1.4, 5.4: one queue of device-writable buffers, at least one random byte in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from hmx.virtio.ids import DeviceId

QUEUE_SIZE: Final = 64
ANSWER_MAX: Final = 1 << 16  # bytes of one answer; a driver asks again for more


class RngModel(BaseModel):
    """`randbytes(n)` gives n bytes, as `random.Random.randbytes` does; `answer_max` bytes fill the largest answer."""

    device_id: int = DeviceId.RNG
    queue_sizes: tuple[int, ...] = (QUEUE_SIZE,)

    def __init__(self, randbytes: Callable[[int], bytes], answer_max: int = ANSWER_MAX) -> None:
        super().__init__()
        self.answered = 0  # bytes
        self.refused = 0  # chains that a driver must not make: without room, or with something to read
        self._randbytes = randbytes
        self._answer_max = max(1, answer_max)

    def request(self, request: Request) -> None:
        """Fill one buffer, or the start of it."""
        if not request.writable or len(request.readable):
            self.refused += 1
        count = min(request.writable, self._answer_max)
        self.answered += count
        request.complete(self._randbytes(count))
