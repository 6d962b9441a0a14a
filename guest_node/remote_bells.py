"""The bells of a guest whose hypervisor is on another host, and what it holds of its domain.  Experimental.

What guest_node/attach.py makes of descriptors is made here of one end of a lane (guest_node/remote.py): bells that ship
what was submitted, and that wait by taking what has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guest_node.kernel.argo import GuestMemoryView
from guest_node.remote import RemoteEnd
from hmx.attach import Reply

BRIEFLY_S: Final = 0.0002
PAUSE_S: Final = 0.00005


class RemoteBells:
    """The bells of one vCPU whose hypervisor is on another host (guest_node/platform.py).

    `call_soon(function)`: in a turn of the guest's loop.  `wait(seconds)`: take what has arrived, and wait for more at
    most so long.
    """

    def __init__(
        self, end: RemoteEnd, vcpu: int, call_soon: Callable[[Callable[[], None]], object],
        wait: Callable[[float], object],
    ) -> None:  # fmt: skip
        self._end = end
        self._vcpu = vcpu
        self._call_soon = call_soon
        self._wait = wait
        self._handler: Callable[[], None] | None = None
        self._scheduled = False

    def ring(self) -> None:
        """Ship what was submitted."""
        self._end.ring(self._vcpu)

    def yield_cpu(self) -> None:
        """Take what has arrived."""
        self._end.settle()
        self._wait(0.0)

    def pause(self) -> None:
        """Wait a little."""
        self._wait(PAUSE_S)

    def wait_briefly(self) -> None:
        """Wait for an answer, not for long: it has to come from another host."""
        self._wait(BRIEFLY_S)

    def on_bell(self, handler: Callable[[], None]) -> None:
        """Call `handler` from the loop when something arrived for this vCPU."""
        self._handler = handler

    def rung(self) -> None:
        """Something has arrived, and the guest sleeps."""
        if self._handler is not None and not self._scheduled:
            self._scheduled = True
            self._call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._handler is not None:
            self._handler()
            self._end.settle()


@dataclass(slots=True)
class RemoteAttachment:
    """What a guest holds of its domain; as guest_node.attach.Attachment, with an end of a lane for descriptors."""

    end: RemoteEnd
    bells: list[RemoteBells]

    @property
    def reply(self) -> Reply:
        """What the domain is made of."""
        return self.end.reply

    @property
    def memory(self) -> GuestMemoryView:
        """The guest's RAM."""
        return self.end.memory

    def area(self, vcpu: int) -> memoryview:
        """The pages of one vCPU."""
        return self.end.areas[vcpu]

    def coalesced(self) -> int:
        """Interrupts of all vCPUs that coalesced with ones that the guest had not yet taken."""
        return sum(self.end.coalesced(vcpu) for vcpu in range(len(self.bells)))


def attachment(
    end: RemoteEnd, call_soon: Callable[[Callable[[], None]], object], wait: Callable[[float], object]
) -> RemoteAttachment:
    """Bells for every vCPU of `end`, which then reach the guest's loop."""
    bells = [RemoteBells(end, vcpu, call_soon, wait) for vcpu in range(end.reply.vcpus)]
    end.on_rung = lambda vcpu: bells[vcpu].rung()
    return RemoteAttachment(end, bells)
