"""What a domain's kernel offers to whoever speaks Argo inside it.

A guest's driver core and a nested hypervisor's uplink both need the same five calls; neither should know through which
door they leave the domain.  The shapes are here, in the contract package, so that both users and every kernel agree.

Results are the hypervisor's int32: a count that is not negative, or a negated :class:`hmx.errno.Errno`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from hmx.argo.abi import Address
from hmx.memory import Window

Buffer = bytes | bytearray | memoryview


class Outgoing(NamedTuple):
    """One message to send: destination, claimed source port, buffers (at most 7 or 8 iovs), message type."""

    dst: Address
    src_port: int
    buffers: Sequence[Buffer]
    message_type: int


class SpaceQuery(NamedTuple):
    """One entry of a notify call: the ring asked about and the payload bytes wanted there."""

    address: Address
    space_required: int


class SpaceAnswer(NamedTuple):
    """What the hypervisor wrote back: `NotifyFlag` bits and the largest payload that the ring can ever take."""

    flags: int
    max_message_size: int


class RingMemory(NamedTuple):
    """Pages for one ring: the window through which they are touched, the ring's `len` in bytes, and the page frames."""

    window: Window
    ring_len: int
    gfns: tuple[int, ...]


class ArgoCalls(Protocol):
    """The Argo hypercalls as a kernel offers them.  Every method may suspend its task, never the whole domain."""

    max_batch: int

    async def register_ring(self, ring: RingMemory, port: int, partner: int, flags: int = 0) -> int:
        """Register `ring` as (port, partner).  0, or the errors of register_ring."""

    async def unregister_ring(self, port: int, partner: int) -> int:
        """Unregister the ring (port, partner).  0, or the errors of unregister_ring."""

    async def sendv(self, dst: Address, src_port: int, buffers: Sequence[Buffer], message_type: int) -> int:
        """Send one message; the payload bytes taken, or the errors of sendv."""

    async def sendv_linked(self, messages: Sequence[Outgoing]) -> list[int]:
        """Send messages as one LINK chain: after the first failure the rest report -ECANCELED, untouched."""

    async def notify(self, entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
        """Wake those who wait for room in our rings, then ask about others' (at most 256 entries)."""

    def allocate_ring(self, ring_len: int) -> RingMemory:
        """Zeroed pages for a ring of `ring_len` data bytes.  Raises MemoryError when the domain has none left."""

    def release_ring(self, ring: RingMemory) -> None:
        """Give the pages of an unregistered ring back."""

    def on_virq(self, handler: Callable[[], None]) -> None:
        """Run `handler` on every VIRQ_ARGO.  It runs at interruption points and may only set flags and wake tasks."""
