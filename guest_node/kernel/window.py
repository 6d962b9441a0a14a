"""Many sends to one address in flight on one vCPU.  Experimental, not upstream.

Every frame is LINKed to the one before it, so what follows a message that found no room comes back untouched and is
sent again in order: messages arrive in order and exactly once.  A message is composed in guest RAM, where the
hypervisor reads it: on this path the guest copies nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from guest_node.kernel.argo import Argo
from hmx.argo import abi
from hmx.argo.abi import Address
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.trap import FrameFlag, Outcome, int32
from hmx.vcpu_area import SQ_ENTRIES

_LINK: Final = int(FrameFlag.LINK)
_DONE: Final = int(Outcome.DONE)
_CANCELED: Final = int(Outcome.CANCELED)
_EAGAIN: Final = -int(Errno.EAGAIN)
_OUTCOME: Final = 1  # places in a completion that lies flat
_REGS: Final = 6
_YIELDS: Final = 50  # of the CPU, before the hypervisor is asked to ring
_TURNS: Final = 16  # batches before the guest's other tasks have their turn

Compose = Callable[[memoryview, int, int], object]
"""compose(ram, address, n): write message `n` to `address` of the guest's RAM.  Called again for a message that is
sent again."""


class SendWindow:
    """Up to `depth` (at most 64) messages of `size` bytes in flight from port `src_port` to `to`.

    `room()` is awaited after EAGAIN until the receiver's ring has room again.  A message composed in place n % depth
    of the window stays there, so what does not change between messages n and n + depth need not be written twice.
    """

    def __init__(
        self, argo: Argo, to: Address, src_port: int, size: int, depth: int, message_type: int,
        room: Callable[[], Awaitable[object]],
    ) -> None:  # fmt: skip
        if not 0 < depth <= SQ_ENTRIES:
            raise ValueError(f"a window of {depth} sends; a vCPU has room for 1 to {SQ_ENTRIES} frames")
        self.frames = 0
        self.eagain = 0
        self.depth = depth
        self._size = size
        self._room = room
        self._vcpu = argo.vcpu
        self._argo = argo
        self._ram = argo.memory.buffer
        head = abi.SEND_ADDR.size + abi.IOV.size
        self._stride = -(-(head + size) // PAGE_SIZE) * PAGE_SIZE
        self._pages = depth * self._stride // PAGE_SIZE
        self._first = argo.memory.pages.allocate(self._pages)
        base = self._first * PAGE_SIZE
        self._at = [base + place * self._stride + head for place in range(depth)]
        self._regs: list[tuple[int, ...]] = []
        for at in self._at:
            start = at - head
            abi.SEND_ADDR.pack_into(self._ram, start, src_port, abi.DOMID_ANY, 0, to.port, to.domid, 0)
            abi.IOV.pack_into(self._ram, start + abi.SEND_ADDR.size, at, size, 0)
            trap = argo.call_trap(abi.Op.SENDV, start, start + abi.SEND_ADDR.size, 1, message_type)
            self._regs.append(trap.regs)
        # What the door's instruction names beside registers is the same in every frame.
        self._instruction = trap.privilege, trap.size, trap.imm, trap.address
        self._kind, self._result = int(argo.door.kind), _REGS + argo.door.result
        self._inflight: deque[int] = deque()
        self._failed = False
        self._follows = 0  # the sequence number after our last frame
        self._done = self._next = self._end = 0

    def places(self) -> list[memoryview]:
        """The RAM of each place of the window, `size` bytes each; message n is composed in place n % depth."""
        return [self._ram[at : at + self._size] for at in self._at]

    async def send(self, first: int, count: int, compose: Compose) -> None:
        """Send messages `first` to `first + count - 1`; returns when all were taken.

        Raises OSError with what the hypervisor answers to a send that cannot succeed.
        """
        self._done = self._next = first
        self._end = first + count
        try:
            await self._send_all(compose)
        finally:
            while self._inflight:
                await self._vcpu.answer_to(self._inflight[-1])
                self._vcpu.answers().pop(self._inflight.pop(), None)
            self._failed = False

    async def _send_all(self, compose: Compose) -> None:
        turns = 0
        while self._done < self._end:
            filled = 0 if self._failed else self._fill(compose)
            taken = self._harvest()
            if self._inflight:
                if not taken and not filled:
                    await self._answered()
            elif self._failed:
                await self._room()
                self._failed, self._next = False, self._done
            turns += 1
            if turns % _TURNS == 0:
                await asyncio.sleep(0)

    async def _answered(self) -> None:
        """Return when something is answered: soon, most likely, so others run first, and only then the bell is asked
        for.
        """
        if not self._vcpu.expect(_YIELDS):
            await self._vcpu.answer_to(self._inflight[0])

    def close(self) -> None:
        """Give the window's pages back.  Nothing may be in flight."""
        self._argo.memory.pages.release(self._first, self._pages)

    def _fill(self, compose: Compose) -> int:
        """Submit a batch: a quarter of the window, as far as there is room.  How many messages."""
        vcpu, depth, next_ = self._vcpu, self.depth, self._next
        inflight, area = self._inflight, vcpu.area
        if inflight and area.seq != self._follows:
            return 0  # somebody else's frame lies between: a LINK would look at its result, not at ours
        burst = min(max(1, depth // 4), depth - len(inflight), self._end - next_, area.room())
        if burst <= 0:
            return 0
        ram, at, regs, kind, submit = self._ram, self._at, self._regs, self._kind, area.submit
        privilege, size, immediate, address = self._instruction
        flag = _LINK if inflight else 0
        for index in range(next_, next_ + burst):
            place = index % depth
            compose(ram, at[place], index)
            inflight.append(submit(kind, regs[place], flag, privilege, size, immediate, address))
            flag = _LINK
        self._next = next_ + burst
        self._follows = area.seq
        self.frames += burst
        vcpu.submitted(burst)
        return burst

    def _harvest(self) -> int:
        """Take answers; how many messages the hypervisor took."""
        inflight, size, result = self._inflight, self._size, self._result
        answer = self._vcpu.answers().pop
        taken = 0
        while inflight:
            done = answer(inflight[0], None)
            if done is None:
                break
            inflight.popleft()
            if done[_OUTCOME] == _DONE:
                ret = int32(done[result])
                if ret == size:
                    taken += 1
                    continue
                if ret != _EAGAIN:
                    raise OSError(-ret, "sendv")
                self.eagain += 1
            elif done[_OUTCOME] != _CANCELED:
                raise OSError(Errno.ENOSYS, "sendv: the hypervisor does not serve the door")
            self._failed = True
        self._done += taken
        return taken
