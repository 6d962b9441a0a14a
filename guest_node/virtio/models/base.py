"""What most device models have in common: no configuration, nothing to start, nothing to forget."""

from __future__ import annotations

from collections.abc import Callable


class BaseModel:
    """The parts of `guest_node.virtio.model.Model` that a simple device leaves as they are."""

    device_id: int
    features: int = 0
    queue_sizes: tuple[int, ...]

    def __init__(self) -> None:
        self.on_config: Callable[[], None] = _nothing

    def config(self) -> bytes:
        """An empty configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> bool:
        """Nothing may be written."""
        del offset, data
        return False

    def start(self, features: int) -> None:
        """The driver is live."""

    def reset(self) -> None:
        """The driver is gone."""


def _nothing() -> None:
    """Nobody listens yet."""
