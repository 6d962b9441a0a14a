"""A guest's kernel on the simulated machine: boot, hypercalls, interrupts, waiting (project vCPU area; Xen public
headers).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from guest_node.kernel.boot import BootError, Kernel, boot
from guest_node.kernel.pages import PageAllocator
from guest_node.vcpu import Trap, Vcpu
from hmx.argo.abi import DOMID_ANY, Address, NotifyFlag
from hmx.argo.calls import Outgoing, SpaceQuery
from hmx.argo.consumer import Consumer
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, Kind, Outcome
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.personality import Personality
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

MIB = 1 << 20


class World:
    """A simulated machine on which guests boot."""

    def __init__(self, seed: int, personality: Personality | None = None) -> None:
        options, _ = parse_options("on,mac-permissive")
        core = Hypervisor(personality or PERSONALITIES["xen", Arch.X86_64], "intel", options, xsm_by_name("dummy"))
        self.machine = InlineMachine(core, random.Random(seed))

    async def guest(self, domid: int, vcpus: int = 1) -> Kernel:
        memory = SharedMemory(MIB)
        areas, bells = self.machine.create_domain(domid, memory, vcpus, name=f"g{domid}")
        cpus = [Vcpu(index, GuestSide(area), bells[index]) for index, area in enumerate(areas)]
        for vcpu in cpus:
            vcpu.start()
        return await boot(cpus, memory.guest)


def simulate(seed: int, main: Callable[[World], Awaitable[None]], personality: Personality | None = None) -> None:
    async def run() -> None:
        await main(World(seed, personality))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


SEEDS = pytest.mark.parametrize("seed", range(10))


@SEEDS
def test_boot_finds_xen_and_its_own_id(seed: int) -> None:
    """The probe reads the CPUID blocks; the HVM leaf names the domain; VIRQ_ARGO gets a port."""

    async def main(world: World) -> None:
        kernel = await world.guest(3)
        assert [(seen.name, seen.where, seen.domid) for seen in kernel.probe.sightings] == [("xen", 0x4000_0000, 3)]
        assert kernel.argo.door.kind == Kind.VMCALL and kernel.interrupts.virq_port > 0

    simulate(seed, main)


def test_boot_says_that_there_is_no_hypervisor() -> None:
    """On a machine where CPUID is not intercepted nobody is found, and the message says so."""
    bare = Personality("nobody", Arch.X86_64, "", ())

    async def main(world: World) -> None:
        with pytest.raises(BootError, match="no hypervisor announces itself"):
            await world.guest(1)

    simulate(0, main, bare)


@SEEDS
def test_a_message_wakes_its_receiver(seed: int) -> None:
    """register, sendv, VIRQ_ARGO, consume, notify: the whole walk, with a receiver that sleeps."""

    async def main(world: World) -> None:
        a, b = await world.guest(1), await world.guest(2)
        ring = b.argo.allocate_ring(4032)
        assert await b.argo.register_ring(ring, 9, DOMID_ANY) == 0
        rung = asyncio.Event()
        b.argo.on_virq(rung.set)
        await asyncio.sleep(1)
        assert await a.argo.sendv(Address(9, 2), 5, [b"he", b"llo"], 77) == 5
        await asyncio.wait_for(rung.wait(), 1)
        message = Consumer(ring.window, ring.ring_len).receive()
        assert message is not None
        assert (bytes(message.payload), message.source_port, message.source_domid, message.message_type) == (
            b"hello",
            5,
            1,
            77,
        )
        assert b.vcpus[0].counters.interrupts_delivered == 1

    simulate(seed, main)


@SEEDS
def test_a_chain_stops_at_the_first_failure(seed: int) -> None:
    """What does not fit is -EAGAIN, what follows it -ECANCELED; order is kept."""

    async def main(world: World) -> None:
        a, b = await world.guest(1), await world.guest(2)
        ring = b.argo.allocate_ring(128)
        await b.argo.register_ring(ring, 9, DOMID_ANY)
        results = await a.argo.sendv_linked([Outgoing(Address(9, 2), 0, [bytes(16)], 0)] * 6)
        assert results == [16, 16, 16, -Errno.EAGAIN, -Errno.ECANCELED, -Errno.ECANCELED]
        Consumer(ring.window, ring.ring_len).receive()
        woken = asyncio.Event()
        a.argo.on_virq(woken.set)
        await b.argo.notify([])
        await asyncio.wait_for(woken.wait(), 1)

    simulate(seed, main)


@SEEDS
def test_notify_answers_per_entry(seed: int) -> None:
    """Flags and largest message come back for each ring asked about."""

    async def main(world: World) -> None:
        a, b = await world.guest(1), await world.guest(2)
        await b.argo.register_ring(b.argo.allocate_ring(4032), 9, DOMID_ANY)
        ret, answers = await a.argo.notify([SpaceQuery(Address(9, 2), 100), SpaceQuery(Address(10, 2), 100)])
        assert ret == 0
        assert answers[0].flags & (NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT | NotifyFlag.SHARED) == 0b1011
        assert answers[0].max_message_size == 4000
        assert answers[1].flags == 0
        with pytest.raises(ValueError, match="257 entries"):
            await a.argo.notify([SpaceQuery(Address(9, 2), 0)] * 257)

    simulate(seed, main)


@SEEDS
def test_large_payloads_borrow_pages_and_keep_them(seed: int) -> None:
    """A payload beyond a page is bounced through pages of its own, reused by the next one."""

    async def main(world: World) -> None:
        a, b = await world.guest(1), await world.guest(2)
        ring = b.argo.allocate_ring(0x10000)
        await b.argo.register_ring(ring, 9, DOMID_ANY)
        consumer = Consumer(ring.window, ring.ring_len)
        payload = random.Random(seed).randbytes(50_000)
        free = None
        for _ in range(3):
            assert await a.argo.sendv(Address(9, 2), 0, [payload[:8], payload[8:]], 0) == len(payload)
            message = consumer.receive()
            assert message is not None and bytes(message.payload) == payload
            assert free is None or a.memory.pages.free_pages() == free
            free = a.memory.pages.free_pages()

    simulate(seed, main)


@SEEDS
def test_many_tasks_share_one_vcpu(seed: int) -> None:
    """More traps than the ring has slots: tasks wait for room, every one gets its own answer."""

    async def main(world: World) -> None:
        a, b = await world.guest(1), await world.guest(2)
        await b.argo.register_ring(b.argo.allocate_ring(0x8000), 9, DOMID_ANY)

        async def leaf(number: int) -> None:
            done = await a.vcpus[0].trap(Trap(Kind.CPUID, (0, 0, 0, 0), address=0x4000_0000 + number % 2))
            assert done.regs[0] == (0x4000_0005 if number % 2 == 0 else 4 << 16 | 22)

        async def chain(number: int) -> None:
            assert await a.argo.sendv_linked([Outgoing(Address(9, 2), number, [bytes(8)], 0)] * 10) == [8] * 10

        await asyncio.gather(*(leaf(n) for n in range(100)), *(chain(n) for n in range(20)))

    simulate(seed, main)


@SEEDS
def test_an_instruction_cannot_be_taken_back(seed: int) -> None:
    """A cancelled task still learns what its trap did; the cancellation comes at its next await."""

    async def main(world: World) -> None:
        a = await world.guest(1)
        seen: list[int] = []

        async def task() -> None:
            for _ in range(2):
                done = await a.vcpus[0].trap(Trap(Kind.CPUID, (0, 0, 0, 0), address=1))
                seen.append(done.outcome)
                await asyncio.sleep(0)

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert seen == [Outcome.DONE] * len(seen) and len(seen) <= 1
        assert not a.vcpus[0].area.outstanding

    simulate(seed, main)


def test_timeouts_survive_a_trap_that_swallowed_them() -> None:
    """asyncio.timeout around a parked trap still raises TimeoutError, once."""

    async def main(world: World) -> None:
        a = await world.guest(1)

        async def forever() -> None:
            while True:
                await a.vcpus[0].trap(Trap(Kind.CPUID, (0, 0, 0, 0), address=1))
                await asyncio.sleep(0.01)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await forever()
        await asyncio.sleep(1)

    simulate(1, main)


def test_a_dead_hypervisor_fails_every_trap() -> None:
    """After stop() nobody waits for ever."""

    async def main(world: World) -> None:
        a = await world.guest(1)
        world.machine.destroy_domain(1)
        waiting = asyncio.create_task(a.vcpus[0].trap(Trap(Kind.CPUID, ())))
        await asyncio.sleep(0.1)
        a.vcpus[0].stop(ConnectionError("the hypervisor is gone"))
        with pytest.raises(ConnectionError):
            await waiting
        with pytest.raises(ConnectionError):
            await a.vcpus[0].trap(Trap(Kind.CPUID, ()))

    simulate(0, main)


def test_pages_are_given_out_once_and_coalesce() -> None:
    """First fit, double frees are errors, all frames come back as one run."""
    pages = PageAllocator(16)
    runs = [pages.allocate(n) for n in (3, 5, 7)]
    assert runs == [1, 4, 9]
    with pytest.raises(MemoryError, match="no 1 contiguous"):
        pages.allocate(1)
    pages.release(4, 5)
    with pytest.raises(ValueError, match="freed twice"):
        pages.release(5, 1)
    pages.release(1, 3)
    pages.release(9, 7)
    assert pages.allocate(15) == 1
    with pytest.raises(ValueError):
        PageAllocator(1)
    assert PAGE_SIZE == 4096


@SEEDS
def test_every_vcpu_traps_for_itself(seed: int) -> None:
    """Four vCPUs on one loop: each learns its own number from the HVM leaf, all at once."""

    async def main(world: World) -> None:
        a = await world.guest(1, vcpus=4)
        leaf = Trap(Kind.CPUID, (0, 0, 0, 0), address=0x4000_0004)
        done = await asyncio.gather(*(vcpu.trap(leaf) for vcpu in a.vcpus for _ in range(5)))
        assert [completion.regs[1] for completion in done] == [n for n in range(4) for _ in range(5)]

    simulate(seed, main)
