"""A ring of a VirtIO-Argo back end, and what comes through it.  Experimental, docs/virtio-argo.md."""

from __future__ import annotations

from typing import Protocol

from guest_node.drivers.rings import DriverRing
from hmx.argo.abi import Address
from hmx.virtio.argo import MESSAGE_TYPE_VIRTIO


class Owner(Protocol):
    """The back end, as its rings know it."""

    def receive(self, channel: Channel, source: Address, payload: memoryview) -> None:
        """One message of this transport."""

    def lost(self, channel: Channel) -> None:
        """Messages were lost."""

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""


class Channel:
    """A ring, and how many front ends come through it.  `partner` DOMID_ANY: whoever has none of his own."""

    __slots__ = ("backend", "partner", "ring", "users")

    def __init__(self, backend: Owner, partner: int) -> None:
        self.backend = backend
        self.partner = partner
        self.ring: DriverRing | None = None
        self.users = 0

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message; it is always consumed."""
        if message_type == MESSAGE_TYPE_VIRTIO:
            self.backend.receive(self, Address(source_port, source_domid), payload)
        return True

    def lost(self, ring: DriverRing) -> None:  # noqa: ARG002
        """The ring held nonsense: who came through it has lost messages."""
        self.backend.lost(self)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self.backend.broken(cause)
