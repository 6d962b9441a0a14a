"""What a driver has said of one virtqueue, and whether a queue may lie there.

Source: VIRTIO 1.4, 2.6 (size, parts and their alignment), 4.2.2.2.  The formats are tables of split.py and packed.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hmx.virtio.chain import QueueLayout
from hmx.virtio.queues import format_of
from hmx.virtio.rings import check_layout, part_size

MAX_QUEUE_SIZE: Final = 32768
MAX_QUEUES: Final = 65536
_END: Final = 1 << 64  # of all addresses


@dataclass(slots=True)
class QueueState:
    """One queue: `max_size` is the device's, the rest the driver's.  `size` 0: not configured."""

    max_size: int
    size: int = 0
    descriptors: int = 0
    driver: int = 0
    device: int = 0
    ready: bool = False

    def forget(self) -> None:
        """As after a reset."""
        self.size = self.descriptors = self.driver = self.device = 0
        self.ready = False

    def layout(self) -> QueueLayout:
        """Where it lies."""
        return QueueLayout(self.size, self.descriptors, self.driver, self.device)

    def problem(self, features: int) -> str | None:
        """Why no queue of the negotiated format may be used with these values, or None."""
        kind = format_of(features)
        if not 1 <= self.size <= self.max_size:
            return f"{self.size} descriptors; 1 to {self.max_size} are possible"
        layout = self.layout()
        try:
            check_layout(kind, layout)
        except ValueError as error:
            return str(error)
        for part, address in zip(kind.parts, layout[1:], strict=True):
            if address + part_size(part, self.size) > _END:
                return f"the {part.name} at {address:#x} passes the end of all addresses"
        return None
