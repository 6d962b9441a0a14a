"""Guests' Argo calls wired straight to the hypervisor's Argo core: no process, socket or vCPU, virtual time.

`Rig` holds the core and the guests; `RigCalls` is what a kernel offers to its drivers.  A seed decides, where
a test asks for it, which hypercalls suspend their task, which VIRQs are late and which get lost.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from guest_node.drivers.core import ArgoDriver
from guest_node.kernel.pages import PageAllocator
from hmx.argo import abi
from hmx.argo.abi import Address, Op
from hmx.argo.calls import Buffer, Outgoing, RingMemory, SpaceAnswer, SpaceQuery
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hv_node.argo.core import Argo
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.xsm import xsm_by_name
from topologies.inline.loop import VirtualLoop

T = TypeVar("T")
ARGUMENTS = 1 * PAGE_SIZE
GFNS = 2 * PAGE_SIZE
SCRATCH_PAGES = 300  # arguments, gfn list, notify array, and a payload of up to 1 MiB


class _Sink(RecordingSink):
    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig = rig

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        self._rig.raise_virq(domid)


class Rig:
    """One hypervisor.  `guest(domid)` adds a domain and returns its calls."""

    def __init__(self, seed: int = 0, *, xsm: str = "dummy", mac_permissive: bool = True) -> None:
        self.random = random.Random(seed)
        self.domains = DomainTable()
        self.argo = Argo(self.domains, xsm_by_name(xsm), _Sink(self), ArgoOptions(True, mac_permissive))
        self.guests: dict[int, RigCalls] = {}
        self.suspend = 0.0  # probability that a hypercall suspends its task first, and after
        self.lose_virq = 0.0
        self.late_virq = 0.0  # probability that a VIRQ is delivered up to 10 ms late

    def guest(self, domid: int, megabytes: int = 8) -> RigCalls:
        calls = self.guests[domid] = RigCalls(self, domid, megabytes << 20)
        return calls

    def kill(self, domid: int) -> None:
        """The domain's process died."""
        self.argo.domain_kill(self.domains.lookup(domid) or self.guests[domid].domain)
        self.guests[domid].dead = True

    def raise_virq(self, domid: int) -> None:
        guest = self.guests.get(domid)
        if guest is None or guest.dead or (self.lose_virq and self.random.random() < self.lose_virq):
            return
        if not guest.virq_pending:
            guest.virq_pending = True
            loop = asyncio.get_running_loop()
            if self.late_virq and self.random.random() < self.late_virq:
                loop.call_later(self.random.random() * 0.01, guest.deliver)
            else:
                loop.call_soon(guest.deliver)

    def driver(self, domid: int, megabytes: int = 8) -> ArgoDriver:
        """A new guest's driver, not yet started."""
        return ArgoDriver(self.guest(domid, megabytes), random.Random(domid))


class RigCalls:
    """ArgoCalls of one domain; counts calls by name in `counts`.

    `refuse(op, detail)` may answer a negated errno that replaces the call.
    """

    max_batch: int = 16

    def __init__(self, rig: Rig, domid: int, size: int) -> None:
        self.rig = rig
        self.domid = domid
        self.ram = memoryview(bytearray(size))
        self.domain = Domain(domid, MappedMemory(self.ram))
        rig.domains.create(self.domain)
        rig.argo.domain_init(self.domain)
        self.pages = PageAllocator(size // PAGE_SIZE)
        self.pages.allocate(SCRATCH_PAGES)
        self.counts: Counter[str] = Counter()
        self.handlers: list[Callable[[], None]] = []
        self.virq_pending = False
        self.dead = False
        self.refuse: Callable[[Op, Any], int | None] = lambda op, detail: None
        self.sent: list[tuple[Address, int, bytes, int]] | None = None  # set to [] to record what was sent

    # -- calls ----

    async def register_ring(self, ring: RingMemory, port: int, partner: int, flags: int = 0) -> int:
        count = len(ring.gfns)

        def arguments() -> None:
            struct.pack_into(f"<{count}Q", self.ram, GFNS, *ring.gfns)
            abi.REGISTER_RING.pack_into(self.ram, ARGUMENTS, port, partner, 0, ring.ring_len)

        registers = (ARGUMENTS, GFNS, count, flags)
        return await self._call(Op.REGISTER_RING, arguments, registers, (port, partner))

    async def unregister_ring(self, port: int, partner: int) -> int:
        return await self._call(
            Op.UNREGISTER_RING,
            lambda: abi.UNREGISTER_RING.pack_into(self.ram, ARGUMENTS, port, partner, 0),
            (ARGUMENTS, 0, 0, 0),
            (port, partner),
        )

    async def sendv(self, dst: Address, src_port: int, buffers: Sequence[Buffer], message_type: int) -> int:
        await self._maybe_suspend()
        result = self._sendv(Outgoing(dst, src_port, buffers, message_type))
        await self._maybe_suspend()
        return result

    async def sendv_linked(self, messages: Sequence[Outgoing]) -> list[int]:
        assert len(messages) <= self.max_batch
        await self._maybe_suspend()
        results: list[int] = []
        for message in messages:
            failed = results and results[-1] < 0
            results.append(-Errno.ECANCELED if failed else self._sendv(message))
        await self._maybe_suspend()
        return results

    async def notify(self, entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
        assert len(entries) <= abi.MAX_NOTIFY_ENTRIES

        def arguments() -> None:
            abi.RING_DATA.pack_into(self.ram, ARGUMENTS, len(entries), 0)
            for n, (address, space) in enumerate(entries):
                at = ARGUMENTS + 8 + 20 * n
                abi.RING_DATA_ENT.pack_into(self.ram, at, address.port, address.domid, 0, 0, 0, space, 0)

        answers: list[SpaceAnswer] = []

        def collect() -> None:
            for n in range(len(entries)):
                fields = abi.RING_DATA_ENT.unpack_from(self.ram, ARGUMENTS + 8 + 20 * n)
                answers.append(SpaceAnswer(fields[3], fields[6]))

        self.counts["entries"] += len(entries)
        result = await self._call(Op.NOTIFY, arguments, (ARGUMENTS if entries else 0, 0, 0, 0), list(entries), collect)
        return result, answers or [SpaceAnswer(0, 0)] * len(entries)

    def allocate_ring(self, ring_len: int) -> RingMemory:
        count = npages_for(ring_len)
        first = self.pages.allocate(count)
        window = Window(self.ram, first * PAGE_SIZE, count * PAGE_SIZE)
        window.write(0, bytes(count * PAGE_SIZE))
        window.publish()
        return RingMemory(window, ring_len, tuple(range(first, first + count)))

    def release_ring(self, ring: RingMemory) -> None:
        self.pages.release(ring.gfns[0], len(ring.gfns))

    def on_virq(self, handler: Callable[[], None]) -> None:
        self.handlers.append(handler)

    # -- the way in and out ----

    def deliver(self) -> None:
        self.virq_pending = False
        if not self.dead:
            for handler in self.handlers:
                handler()

    async def _maybe_suspend(self) -> None:
        rig = self.rig
        while rig.suspend and rig.random.random() < rig.suspend:
            if rig.random.random() < 0.5:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(rig.random.random() * 0.001)

    def op(self, op: Op, a1: int, a2: int, a3: int, a4: int) -> int:
        """One hypercall, at once."""
        self.counts[op.name.lower()] += 1
        assert not self.dead, "a dead guest calls"
        return self.rig.argo.op(self.domain, op, a1, a2, a3, a4)

    async def _call(
        self,
        op: Op,
        arguments: Callable[[], object],
        registers: tuple[int, int, int, int],
        detail: Any,
        collect: Callable[[], None] = lambda: None,
    ) -> int:
        await self._maybe_suspend()
        refused = self.refuse(op, detail)
        if refused is None:
            arguments()
            refused = self.op(op, *registers)
            collect()
        await self._maybe_suspend()
        return refused

    def _sendv(self, message: Outgoing) -> int:
        refused = self.refuse(Op.SENDV, message)
        if refused is not None:
            return refused
        dst, src_port, buffers, message_type = message
        ram, at = self.ram, ARGUMENTS + 1024
        iovs: list[int] = []
        for buffer in buffers:
            size = len(buffer)
            ram[at : at + size] = buffer
            iovs += (at, size, 0)
            at += size
        abi.SEND_ADDR.pack_into(ram, ARGUMENTS, src_port, abi.DOMID_ANY, 0, dst.port, dst.domid, 0)
        abi.IOV_ARRAYS[len(buffers)].pack_into(ram, ARGUMENTS + 16, *iovs)
        result = self.op(Op.SENDV, ARGUMENTS, ARGUMENTS + 16, len(buffers), message_type)
        if self.sent is not None and result >= 0:
            self.sent.append((dst, src_port, b"".join(bytes(buffer) for buffer in buffers), message_type))
        return result


def simulate(main: Callable[..., Awaitable[T]], *arguments: Any, limit: float = 3600.0) -> T:
    """Run `main(*arguments)` in virtual time; TimeoutError after `limit` virtual seconds."""

    async def bounded() -> T:
        async with asyncio.timeout(limit):
            return await main(*arguments)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(bounded())
