"""Every notification mode carries an exchange that nothing stops for good: no message and no interrupt is lost.

The receiver has two vCPUs.  It sleeps, masks, clears IF, raises its TPR, and moves its interrupt to the other vCPU,
and looks at its rings only when it was interrupted; a sender that found a ring full goes on only when it was
interrupted.  Rules: project contracts (interrupts are posted, one entry while unconsumed); Xen common/event_channel.c
for mask, unmask and bind_vcpu; Intel SDM vol. 3A 10.8 for the TPR.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guest_node.kernel.boot import Kernel
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import RingMemory
from hmx.argo.consumer import Consumer
from hmx.errno import Errno
from tests.doubles.interrupts import NOTIFICATIONS, World, simulate

RECEIVER = 2
SENDERS = (1, 3)
PORTS = (9, 10, 11)
VECTORS = (0x45, 0x8F, 0xD0)  # for set_vector: three classes
PRIORITIES = (0x00, 0x3F, 0x4F, 0x50, 0x7F, 0xC0, 0xFF)  # below, within and above the classes in use

VCPU, RING = st.integers(0, 1), st.integers(0, len(PORTS) - 1)
STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, len(SENDERS) - 1), RING, st.integers(1, 12)),
    st.tuples(st.just("send"), st.integers(0, len(SENDERS) - 1), RING, st.integers(1, 12)),
    st.tuples(st.just("sleep"), st.just(0), st.just(0), st.integers(0, 3)),
    st.tuples(st.just("mask"), VCPU, VCPU, st.just(0)),
    st.tuples(st.just("unmask"), VCPU, VCPU, st.just(0)),
    st.tuples(st.just("tpr"), VCPU, st.just(0), st.integers(0, len(PRIORITIES) - 1)),
    st.tuples(st.just("move"), VCPU, RING, st.integers(0, 3)),
)
Step = tuple[str, int, int, int]
SCRIPTS = st.lists(STEPS, max_size=30)


class Sender:
    """Sends what it is told to, in order, in a task of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.sent: dict[int, int] = dict.fromkeys(PORTS, 0)
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        self._room = asyncio.Event()
        kernel.argo.on_virq(self._room.set)
        self.task = asyncio.ensure_future(self._run())

    def send(self, port: int, count: int) -> None:
        for _ in range(count):
            self._queue.put_nowait(port)

    async def finished(self) -> None:
        await self._queue.join()
        self.task.cancel()

    async def _run(self) -> None:
        while True:
            port = await self._queue.get()
            payload = b"%d" % self.sent[port]
            self._room.clear()
            while (ret := await self.kernel.argo.sendv(Address(port, RECEIVER), 5, [payload], 0)) == -Errno.EAGAIN:
                await self._room.wait()
                self._room.clear()
            assert ret == len(payload)
            self.sent[port] += 1
            self._queue.task_done()


class Receiver:
    """Empties its rings whenever it was interrupted, and never otherwise."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.rings: dict[int, RingMemory] = {}
        self.got: dict[tuple[int, int], int] = {(port, sender): 0 for port in PORTS for sender in SENDERS}
        self._rung = asyncio.Event()
        kernel.argo.on_virq(self._rung.set)

    async def start(self) -> None:
        for number, port in enumerate(PORTS):
            self.rings[port] = self.kernel.argo.allocate_ring(256)
            assert await self.place(port, 0, number // 2) == 0  # the first two share a vector
        self.task = asyncio.ensure_future(self._run())

    async def place(self, port: int, vcpu: int, number: int) -> int:
        return await self.kernel.interrupts.place_ring(self.rings[port], port, DOMID_ANY, vcpu, number)

    async def _run(self) -> None:
        consumers = {port: Consumer(ring.window, ring.ring_len) for port, ring in self.rings.items()}
        while True:
            await self._rung.wait()
            self._rung.clear()
            for port, consumer in consumers.items():
                for message in consumer.drain():
                    key = port, message.source_domid
                    assert bytes(message.payload) == b"%d" % self.got[key], "every message once and in order"
                    self.got[key] += 1
            await self.kernel.argo.notify([])

    async def step(self, what: str, first: int, second: int, number: int) -> None:
        """One thing that a guest may do to its own interrupts."""
        kernel, interrupts = self.kernel, self.kernel.interrupts
        match what, interrupts.mode:
            case "mask", "virq" if second:
                interrupts.mask()
            case "unmask", "virq" if second:
                assert await interrupts.unmask(first) == 0
            case "mask", _:
                kernel.vcpus[first].enable_interrupts(False)
            case "unmask", _:
                kernel.vcpus[first].enable_interrupts(True)
            case "tpr", _:
                kernel.vcpus[first].set_priority(PRIORITIES[number])
            case "move", "virq":
                assert await interrupts.bind_vcpu(first, caller=number % 2) == 0
            case "move", "vector-per-cpu" if number:
                assert await interrupts.set_vector(first, VECTORS[number % 3]) == 0
            case "move", "line":
                pass  # there is one
            case "move", _:
                assert await self.place(PORTS[second], first, number) == 0

    async def release(self) -> None:
        """Hold nothing back any more; what is not held back is left alone, so that it must have come by itself."""
        if self.kernel.interrupts.page is not None:
            assert await self.kernel.interrupts.unmask(1) == 0
        for vcpu in self.kernel.vcpus:
            if not vcpu.interrupts_enabled:
                vcpu.enable_interrupts(True)
            if vcpu.apic is not None and vcpu.apic.tpr:
                vcpu.set_priority(0)


async def exchange(mode: str, seed: int, script: Sequence[Step]) -> None:
    world = World(seed)
    with world.watched():
        receiver = Receiver(await world.guest(RECEIVER, vcpus=2, notification=mode))
        senders = [Sender(await world.guest(domid, notification=mode)) for domid in SENDERS]
        assert receiver.kernel.interrupts.mode == mode
        await receiver.start()
        for what, first, second, number in script:
            if what == "send":
                senders[first].send(PORTS[second], number)
            elif what == "sleep":
                await asyncio.sleep(number / 10)  # long enough for every vCPU to fall asleep
            else:
                await receiver.step(what, first, second, number)
        await receiver.release()
        try:
            await asyncio.wait_for(asyncio.gather(*(sender.finished() for sender in senders)), 60)
        except TimeoutError:
            pytest.fail(f"stuck: {receiver.got}; unserved: {[watch.unserved() for watch in world.watches.values()]}")
        await asyncio.sleep(1)
    sent = {(port, sender.kernel.domid): sender.sent[port] for sender in senders for port in PORTS}
    assert receiver.got == sent
    for domid, watch in world.watches.items():
        assert watch.unserved() == [], f"of domain {domid}"
        counters = world.counters(domid)
        assert counters["interrupts_raised"] == sum(
            counters[f"interrupts_{fate}"] for fate in ("posted", "coalesced", "dropped")
        )
        assert counters["interrupts_dropped"] == 0
    receiver.task.cancel()


SEND, SLEEP = ("send", 0, 0, 3), ("sleep", 0, 0, 2)
HELD_BACK = [SLEEP, ("mask", 0, 1, 0), ("mask", 0, 0, 0), ("tpr", 0, 0, 6), SEND, SLEEP]


@pytest.mark.parametrize("mode", NOTIFICATIONS)
@settings(max_examples=60)
@given(st.integers(0, 2**32), SCRIPTS)
@example(0, [SEND, SLEEP, SEND])
@example(1, [*HELD_BACK, ("move", 1, 0, 1), SLEEP, SEND, ("unmask", 1, 1, 0), SLEEP, SEND])  # moved while held back
@example(2, [*HELD_BACK, ("unmask", 0, 1, 0), ("unmask", 0, 0, 0), SLEEP, ("tpr", 0, 0, 0), SLEEP])
def test_nothing_is_lost(mode: str, seed: int, script: list[Step]) -> None:
    """Whatever the receiver does, every message arrives once, and each handler ran after its last post."""
    simulate(exchange(mode, seed, script))


@pytest.mark.long
@pytest.mark.parametrize("mode", NOTIFICATIONS)
def test_nothing_is_lost_in_long_histories(mode: str) -> None:
    """The same with a thousand histories of a hundred steps each."""
    for seed in range(1000):
        chance = random.Random(seed)
        names = ("send", "send", "send", "sleep", "mask", "unmask", "tpr", "move")
        script = [
            (chance.choice(names), chance.randrange(2), chance.randrange(2), chance.randint(0, 3)) for _ in range(100)
        ]
        simulate(exchange(mode, seed, script))


@pytest.mark.parametrize("mode", NOTIFICATIONS)
def test_a_held_back_receiver_is_left_alone(mode: str) -> None:
    """While everything is held back no handler runs, however much is sent; one opening brings all of it."""

    async def main() -> None:
        world = World(7)
        receiver = Receiver(await world.guest(RECEIVER, vcpus=2, notification=mode))
        sender = Sender(await world.guest(1, notification=mode))
        await receiver.start()
        for vcpu in receiver.kernel.vcpus:
            vcpu.enable_interrupts(False)
        sender.send(9, 5)
        sender.send(11, 5)
        await asyncio.sleep(5)
        assert sum(vcpu.counters.interrupts_delivered for vcpu in receiver.kernel.vcpus) == 0
        assert set(receiver.got.values()) == {0}
        await receiver.release()
        await asyncio.wait_for(sender.finished(), 5)
        await asyncio.sleep(1)
        assert (receiver.got[9, 1], receiver.got[11, 1]) == (5, 5)
        receiver.task.cancel()

    simulate(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_port_that_moves_while_it_is_masked(seed: int) -> None:
    """What was posted to the old vCPU while that slept rang no bell; once the port is open on the new one, it comes."""

    async def main() -> None:
        world = World(seed)
        receiver = Receiver(await world.guest(RECEIVER, vcpus=2, notification="virq"))
        sender = Sender(await world.guest(1, notification="virq"))
        await receiver.start()
        receiver.kernel.interrupts.mask()
        await asyncio.sleep(1)
        sender.send(9, 1)
        await asyncio.sleep(1)
        assert receiver.kernel.vcpus[0].area.posted() == 1, "vCPU 0 sleeps over it"
        assert await receiver.kernel.interrupts.bind_vcpu(1, caller=1) == 0
        assert await receiver.kernel.interrupts.unmask(caller=1) == 0
        await asyncio.sleep(1)
        assert receiver.got[9, 1] == 1
        receiver.task.cancel()

    simulate(main())


def test_a_priority_above_the_class_holds_back_and_one_below_does_not() -> None:
    """SDM 10.8.3: a vector passes if its class is above the TPR's."""

    async def main(tpr: int) -> int:
        world = World(8)
        receiver = Receiver(await world.guest(RECEIVER, vcpus=2, notification="vectors-by-priority"))
        sender = Sender(await world.guest(1))
        await receiver.start()
        assert await receiver.place(9, 1, 2) == 0  # 0x61: class 6
        receiver.kernel.vcpus[1].set_priority(tpr)
        sender.send(9, 1)
        await asyncio.sleep(5)
        before = receiver.got[9, 1]
        await receiver.release()
        await asyncio.sleep(5)
        assert receiver.got[9, 1] == 1
        receiver.task.cancel()
        return before

    passed: dict[int, int] = {}
    for tpr in (0x50, 0x5F, 0x60, 0x6F, 0xFF):

        async def run(tpr: int = tpr) -> None:
            passed[tpr] = await main(tpr)

        simulate(run())
    assert passed == {0x50: 1, 0x5F: 1, 0x60: 0, 0x6F: 0, 0xFF: 0}
