"""Many sends in flight on one vCPU.  Experimental, not upstream.

Every frame is LINKed to the one before it, so what follows a message that found no room comes back untouched and is
sent again in order.  A message is composed in guest RAM, where the hypervisor reads it: a guest kernel copies
nothing on this path.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from guest_node.kernel.argo import hypercall_trap
from hmx.argo.abi import DOMID_ANY, SEND_ADDR, Address, NotifyFlag, Op
from hmx.errno import Errno
from hmx.trap import FrameFlag, Outcome, int32
from hmx.xen import Hypercall
from topologies.bench.inbox import PORT, YIELDS
from topologies.bench.ledger import DISTINCT, STAMP, body

if TYPE_CHECKING:
    from guest_node.guest import Guest
    from guest_node.kernel.argo import Argo

MESSAGE_TYPE: Final = 0x42454E43
EAGAIN: Final = -int(Errno.EAGAIN)

_SEND: Final = struct.Struct("<IHHIHHQII")
_PAYLOAD_OFFSET: Final = 256
_PAGE: Final = 4096


class SendWindow:
    """Up to `depth` (at most 64) sends of `size` bytes in flight to one address, in order, exactly once."""

    def __init__(self, guest: Guest, to: Address, size: int, depth: int) -> None:
        self.calls: Argo = guest.driver.calls  # type: ignore[assignment]
        self.vcpu = self.calls._vcpu
        self.eagain = 0
        self.frames = 0
        self.depth = depth
        self._driver = guest.driver
        self._to = to
        self._size = size
        memory, door = self.calls._memory, self.calls._door
        pages = -(-(_PAYLOAD_OFFSET + size) // _PAGE)
        first = memory.pages.allocate(depth * pages)
        self._ram = memory.buffer
        self._regs: list[tuple[int, ...]] = []
        self._at: list[int] = []
        for slot in range(depth):
            base = (first + slot * pages) * _PAGE
            at = base + _PAYLOAD_OFFSET
            _SEND.pack_into(self._ram, base, PORT, DOMID_ANY, 0, to.port, to.domid, 0, at, size, 0)
            iovs = base + SEND_ADDR.size
            trap = hypercall_trap(door, Hypercall.ARGO_OP, Op.SENDV, base, iovs, 1, MESSAGE_TYPE)
            self._regs.append(trap.regs)
            self._at.append(at)
            self._ram[at : at + size] = bytes(STAMP.size) + body(size, slot)
        self._kind, self._result = int(door.kind), door.result
        self._inflight: deque[int] = deque()
        self._failed = False

    async def send(self, first: int, count: int) -> None:
        """Send messages `first` to `first + count - 1`."""
        submit, room, stamp = self.vcpu.area.submit, self.vcpu.area.room, STAMP.pack_into
        depth, regs, at, ram, inflight, kind = (
            self.depth, self._regs, self._at, self._ram, self._inflight, self._kind,
        )  # fmt: skip
        link, step = int(FrameFlag.LINK), max(1, depth // 4)
        fresh = depth % DISTINCT  # then a slot's body does not repeat with the sequence
        end, next_, done = first + count, first, first
        flag = 0
        while done < end:
            if not self._failed:
                burst = min(step, depth - len(inflight), end - next_, room())
                for index in range(next_, next_ + burst):
                    slot = index % depth
                    stamp(ram, at[slot], index)
                    if fresh:
                        ram[at[slot] + 8 : at[slot] + self._size] = body(self._size, index)
                    inflight.append(submit(kind, regs[slot], flag))
                    flag = link
                next_ += burst
                self.frames += burst
                if burst:
                    self.vcpu._publish()
            taken = self._harvest()
            done += taken
            if self._failed:
                if not inflight:
                    await self._room()
                    self._failed, flag, next_ = False, 0, done
                elif not taken:
                    await self._wait()
            elif not taken and (len(inflight) == depth or next_ == end):
                await self._wait()

    def _harvest(self) -> int:
        """Collect completions; how many messages were taken by the hypervisor."""
        vcpu, inflight = self.vcpu, self._inflight
        vcpu._collect()
        done, taken = vcpu._done, 0
        while inflight:
            completion = done.pop(inflight[0], None)
            if completion is None:
                break
            inflight.popleft()
            if completion.outcome == Outcome.DONE:
                ret = int32(completion.regs[self._result])
                if ret == self._size:
                    taken += 1
                    continue
                if ret != EAGAIN:
                    raise OSError(-ret, "sendv")
                self.eagain += 1
            elif completion.outcome != Outcome.CANCELED:
                raise OSError(Errno.ENOSYS, "sendv faulted")
            self._failed = True
        return taken

    async def _wait(self) -> None:
        """For a completion."""
        vcpu, first = self.vcpu, self._inflight[0]
        for _ in range(YIELDS):
            os.sched_yield()
            if vcpu.area.completed():
                return
        done = vcpu._spin_for(first)
        if done is None:
            done = await vcpu._park_for(first)
        vcpu._done[first] = done

    async def _room(self) -> None:
        """For room in the receiver's ring."""
        future = self._driver.want_space(self._to, self._size)
        try:
            await future
        finally:
            self._driver.forget(future)


async def await_peer(guest: Guest, name: str) -> Address:
    """The address of the peer's ring, once it stands."""
    to = Address(PORT, guest.peers[name])
    while not (await guest.driver.probe(to)).flags & NotifyFlag.EXISTS:  # noqa: ASYNC110  (nobody signals it)
        await asyncio.sleep(0.005)
    return to
