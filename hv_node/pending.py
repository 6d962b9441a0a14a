"""Frames whose operation waits for another hypervisor, and what a level needs of the hypervisor around it.

Experimental, not upstream: nothing in Xen's Argo waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hmx.trap import Outcome
from hv_node.doors.executor import ZERO_EXTENDED
from hv_node.hvm import AsyncCall, Hvm, Vcpu
from hv_node.levels.wards import CarriedCall

if TYPE_CHECKING:
    from hv_node.levels.level import Level

_DONE: Final = int(Outcome.DONE)
_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF


def _register(ret: int) -> int:
    """The result register of an operation that was pending, as it would be had it not been."""
    return ret & (_M32 if ret in ZERO_EXTENDED else _M64)


class Pending:
    """The part of a hypervisor that ends what was pending."""

    levels: Level | None
    _hvms: dict[int, Hvm]

    def _finish(self, vcpu: Vcpu) -> None:
        raise NotImplementedError

    def _step(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        raise NotImplementedError

    def complete(self, token: object, ret: int) -> None:
        """A pending operation ended: answer its frame and let what waited behind it go on."""
        if isinstance(token, CarriedCall):
            token.end(ret)
            return
        if isinstance(token, AsyncCall):
            self._complete_async(token, ret)
            return
        assert isinstance(token, Vcpu)
        if token.blocked is None:
            return
        token.area.complete(token.blocked, _DONE, (_register(ret),))
        token.chain = ret >= 0
        token.blocked = None
        self._finish(token)

    def _complete_async(self, call: AsyncCall, ret: int) -> None:
        vcpu = call.vcpu
        vcpu.deferred -= 1
        vcpu.area.complete(call.seq, _DONE, (_register(ret),))
        if vcpu.linked_to is call:
            vcpu.linked_to = None
        # Its followers form a chain of their own; the chain of the frames that overtook them is not theirs to change.
        overtaken, vcpu.chain = vcpu.chain, ret >= 0
        for head, regs in call.held:
            vcpu.deferred -= 1
            self._step(vcpu, head, regs)
        vcpu.chain = overtaken
        self._finish(vcpu)

    def message_sent(self, domid: int, size: int) -> None:
        """A message to another hypervisor's guest, whose sendv was pending, lies in its ring."""
        hvm = self._hvms.get(domid)
        if hvm is not None:
            hvm.counters.sent(size)

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None:  # noqa: ARG002
        """Hand an envelope to the uplink; a level sends its own, so this is for others."""
        if self.levels is None:
            raise NotImplementedError("this hypervisor has no uplink")
        self.levels.uplink.put(envelope, payload)

    def set_timer(self, key: object, deadline_ns: int) -> None:
        """No core asks for one: `levels.next_deadline()` says when `levels.on_timer` is due."""
        raise NotImplementedError("a hypervisor's timers are its level's")
