"""A measured guest's receiving end: a ring of its own, drained with the public consumer, and who is who."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from hmx.argo.abi import Address, NotifyFlag
from hmx.argo.calls import RingMemory
from hmx.argo.consumer import Consumer

if TYPE_CHECKING:
    from guest_node.guest import Guest
    from guest_node.kernel.argo import Argo

PORT: Final = 0x4242
MESSAGE_TYPE: Final = 0x42454E43
YIELDS: Final = 4
PAUSES: Final = 3
MOST_SAMPLES: Final = 4000  # what a guest's report has room for


def hypervisor_pid() -> int:
    """The process that listens at the other end of the attach connection, by the kernel's word (SO_PEERCRED)."""
    for name in os.listdir("/proc/self/fd"):
        try:
            duplicate = os.dup(int(name))
        except OSError:
            continue
        try:
            with socket.socket(fileno=duplicate) as found:
                if found.family == socket.AF_UNIX and found.type & 0xF == socket.SOCK_SEQPACKET:
                    credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                    return int(struct.unpack("3i", credentials)[0])
        except OSError:
            continue
    return 0


def cpu_ns(pid: int) -> int:
    """CPU time of another process: the clock id is that of clock_getcpuclockid(3)."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def spread(samples: list[int]) -> list[int]:
    """At most MOST_SAMPLES of them, evenly by rank: their quantiles are those of all."""
    step = -(-len(samples) // MOST_SAMPLES) or 1
    return sorted(samples)[step // 2 :: step]


class Meter:
    """What passes between two moments: time on the clock that all processes share, CPU time here and there."""

    def __init__(self, hypervisor: int) -> None:
        self._hypervisor = hypervisor
        self._begin = self._now()

    def _now(self) -> tuple[int, int, int]:
        return time.monotonic_ns(), time.process_time_ns(), cpu_ns(self._hypervisor)

    def begin(self) -> None:
        """From here on."""
        self._begin = self._now()

    def read(self) -> dict[str, int]:
        """Nanoseconds since `begin`."""
        wall, own, hypervisor = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        return {"wall_ns": wall, "cpu_ns": own, "hypervisor_cpu_ns": hypervisor}


def identity(guest: Guest) -> int:
    """Report who we are; the hypervisor's pid."""
    pid = hypervisor_pid()
    guest.result(pid=os.getpid(), hypervisor_pid=pid)
    return pid


class Inbox:
    """A ring of our own, drained in our own task; the driver's pump has no part in it."""

    def __init__(self, guest: Guest, ring: RingMemory) -> None:
        self.calls: Argo = guest.driver.calls  # type: ignore[assignment]
        self.vcpu = self.calls.vcpu
        self.ring_len = ring.ring_len
        self.consumer = Consumer(ring.window, ring.ring_len)
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None
        # A tree that is measured against this one may be older, and know no other way to let time pass.
        self._pause = getattr(self.vcpu, "pause", self.vcpu.poll_interrupts)
        self.calls.on_virq(self._virq)

    @classmethod
    async def open(cls, guest: Guest, ring_len: int, partner: int) -> Inbox:
        """Register the ring for one sender."""
        calls = guest.driver.calls
        ring = calls.allocate_ring(ring_len)
        inbox = cls(guest, ring)
        ret = await calls.register_ring(ring, PORT, partner)
        if ret:
            raise OSError(-ret, "register_ring")
        return inbox

    def _virq(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def freed(self, size: int, unread: int) -> None:
        """Say that `size` of `unread` bytes were consumed and rx published: senders are woken in time, not each time.

        While less than half of the ring is in use, no message of up to a quarter of it can have been refused.
        """
        if self._owed or unread * 2 >= self.ring_len:
            self._owed += size
        if self._owed * 4 >= self.ring_len:
            await self.tell()

    async def tell(self) -> None:
        """Wake who waits for room."""
        if self._owed:
            self._owed = 0
            await self.calls.notify([])

    async def wait(self, pauses: int = 0) -> None:
        """Return when something lies in the ring, after up to `pauses` looks with a little time between them.  Never
        sleeps with a notify owed.
        """
        available = self.consumer.available
        for _ in range(YIELDS):
            os.sched_yield()
            if available():
                return
        await self.tell()
        for _ in range(pauses):
            self._pause()
            if available():
                return
        while not available():
            self._waiter = asyncio.get_running_loop().create_future()
            self.vcpu.poll_interrupts()  # what was posted before is stale; from here on a message posts anew
            if not available():
                await self._waiter


def copy_out(inbox: Inbox, target: bytearray) -> int:
    """The next message, copied once into `target`; its size, 0 when none is there.  Not yet consumed."""
    found = inbox.consumer.view()
    if found is None:
        return 0
    first, second = len(found.first), len(found.second)
    target[:first] = found.first
    if second:
        target[first : first + second] = found.second
    return first + second


async def await_peer(guest: Guest, name: str) -> Address:
    """The address of the peer's ring, once it stands."""
    to = Address(PORT, guest.peers[name])
    while not (await guest.driver.probe(to)).flags & NotifyFlag.EXISTS:  # noqa: ASYNC110  (nobody signals it)
        await asyncio.sleep(0.005)
    return to
