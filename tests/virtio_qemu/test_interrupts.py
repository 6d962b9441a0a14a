"""Who is told, and when: kicks, interrupts, and their suppression (VIRTIO 1.4, 2.7.7, 2.7.10, 2.8.10, 4.2.2)."""

from __future__ import annotations

import asyncio

import pytest

from guest_node.virtio.drivers.negotiate import Wants, negotiate
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.mmio import Interrupt
from hmx.virtio.status import Status
from tests.virtio_qemu.conftest import Bench, Benches
from tests.virtio_qemu.transport import MmioQueue, MmioTransport, run

FORMATS = {
    "split": feature_set(Feature.RING_PACKED, Feature.RING_EVENT_IDX),
    "split, event index": feature_set(Feature.RING_PACKED),
    "packed": feature_set(Feature.RING_EVENT_IDX),
    "packed, event index": 0,
}
EVENT_INDEX = [name for name in FORMATS if "event" in name]


def live(found: Bench, rings: str, size: int = 8) -> tuple[MmioTransport, MmioQueue]:
    """The entropy device, ready, and its queue."""
    transport = found.transport()
    wants = Wants(DeviceId.RNG, 0, 0, (), FORMATS[rings])

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, size)]

    run(transport, negotiate(transport, wants, setup))
    return transport, transport.queues[0]


async def once(queue: MmioQueue, size: int = 8) -> bytes:
    """One request."""
    answer = queue.submit((), size)
    await queue.kick()
    return await answer


async def settle(transport: MmioTransport, queue: MmioQueue, outstanding: int) -> None:
    """Take what was used, without looking at the interrupt line, until so many chains are left."""
    while queue.ring.outstanding > outstanding:
        transport.board.wait(0.002)
        queue.collect()
        await asyncio.sleep(0)


@pytest.mark.parametrize("rings", FORMATS)
def test_buffers_that_wait_for_driver_ok(bench: Benches, rings: str) -> None:
    """Nobody kicks for what was available before DRIVER_OK; our device looks (2.1).  QEMU looks at an entropy queue
    only when it is kicked, which the driver may do once it is live.
    """
    found = bench("rng")
    transport = found.transport()
    wants = Wants(DeviceId.RNG, 0, 0, (), FORMATS[rings])
    answers: list[asyncio.Future[bytes]] = []

    async def work() -> bytes:
        async def setup(features: int) -> list[MmioQueue]:
            queue = await transport.setup_queue(0, 8)
            answers.append(queue.submit((), 100))
            queue.ring.publish()
            assert queue.ring.take() is None
            return [queue]

        await negotiate(transport, wants, setup)
        if found.side == "theirs":
            transport.queues[0].notify()
        return await answers[0]

    assert len(run(transport, work())) == 100


@pytest.mark.parametrize("rings", FORMATS)
def test_one_interrupt_for_each_used_buffer_that_is_awaited(bench: Benches, rings: str) -> None:
    """A driver that asks after each buffer is told of each, and of none beside them."""
    found = bench("rng")
    transport, queue = live(found, rings)
    before = found.board.raises

    for count in range(1, 21):
        assert len(run(transport, once(queue))) == 8
        assert found.board.raises - before == count
    assert transport.interrupts == 20


@pytest.mark.parametrize("rings", FORMATS)
def test_no_interrupt_where_none_is_wanted(bench: Benches, rings: str) -> None:
    """The flag of the available ring, an index that is not reached, DISABLE in the driver's event structure."""
    found = bench("rng")
    transport, queue = live(found, rings)
    assert len(run(transport, once(queue))) == 8  # QEMU gives an interrupt for its first used buffer in any case
    before = found.board.raises

    async def quiet() -> None:
        for _ in range(20):
            queue.ring.want_interrupts(False)
            queue.submit((), 8)
            if queue.ring.publish():
                queue.notify()
            while queue.ring.take() is None:
                transport.board.wait(0.002)

    run(transport, quiet())
    assert found.board.raises == before
    assert transport.read("InterruptStatus") == 0


@pytest.mark.parametrize("rings", FORMATS)
def test_interrupts_are_asked_for_again(bench: Benches, rings: str) -> None:
    """After a pause without, each is there again."""
    found = bench("rng")
    transport, queue = live(found, rings)

    async def quiet() -> None:
        queue.ring.want_interrupts(False)
        answer = queue.submit((), 8)
        if queue.ring.publish():
            queue.notify()
        await settle(transport, queue, 0)
        assert len(await answer) == 8

    for _ in range(5):
        run(transport, quiet())
        assert len(run(transport, once(queue))) == 8


@pytest.mark.parametrize("rings", FORMATS)
def test_spurious_kicks(bench: Benches, rings: str) -> None:
    """A kick without a buffer, or for a queue that is not there, changes nothing (2.6)."""
    found = bench("rng")
    transport, queue = live(found, rings)
    before = found.board.raises
    for _ in range(3):
        queue.notify()
    transport.write("QueueNotify", 1)
    transport.write("QueueNotify", 0xFFFF)
    assert transport.read("Status") & Status.DEVICE_NEEDS_RESET == 0
    assert found.board.raises == before

    assert len(run(transport, once(queue))) == 8


def interrupted(found: Bench, transport: MmioTransport, queue: MmioQueue) -> None:
    """One request, until the line says that it was used; nothing is acknowledged."""

    async def used() -> None:
        queue.submit((), 8)
        queue.ring.publish()
        queue.notify()
        while not found.board.interrupt():
            assert found.board.wait(0.002)

    run_quietly(transport, used())


@pytest.mark.parametrize("rings", FORMATS)
def test_the_line_follows_interrupt_status(bench: Benches, rings: str) -> None:
    """High until acknowledged, whatever is read; what is not acknowledged stays (4.2.2)."""
    found = bench("rng")
    transport, queue = live(found, rings)
    interrupted(found, transport, queue)
    assert transport.read("InterruptStatus") == Interrupt.USED
    assert transport.read("InterruptStatus") == Interrupt.USED
    transport.write("InterruptACK", Interrupt.CONFIG)
    assert found.board.interrupt()
    assert transport.read("InterruptStatus") == Interrupt.USED
    transport.write("InterruptACK", Interrupt.USED)
    assert transport.read("InterruptStatus") == 0
    assert not found.board.interrupt()
    queue.collect()


@pytest.mark.parametrize("rings", FORMATS)
def test_a_reset_takes_the_interrupt_back(bench: Benches, rings: str) -> None:
    """InterruptStatus is 0 and the line is low (4.2.2.1)."""
    found = bench("rng")
    transport, queue = live(found, rings)
    interrupted(found, transport, queue)
    transport.write("Status", 0)
    assert transport.read("InterruptStatus") == 0
    assert not found.board.interrupt()


def run_quietly(transport: MmioTransport, work: object) -> None:
    """Like `run`, but nobody serves interrupts."""
    assert asyncio.iscoroutine(work)
    asyncio.run(asyncio.wait_for(work, 20))


@pytest.mark.parametrize("rings", EVENT_INDEX)
def test_one_interrupt_for_a_batch(bench: Benches, rings: str) -> None:
    """With an event index in the middle of what is used, one interrupt comes and no more (2.7.7, 2.8.10)."""
    found = bench("rng")
    transport, queue = live(found, rings, 16)
    before = found.board.raises

    async def batch() -> None:
        answers = [queue.submit((), 8) for _ in range(10)]
        queue.ring.publish()
        queue.notify()
        while any(not answer.done() for answer in answers):
            transport.board.wait(0.002)
            while (used := queue.ring.take()) is not None:  # the event index is left where it was
                queue._finish(used.token, used.written)
            await asyncio.sleep(0)

    run_quietly(transport, batch())
    assert found.board.raises == before + 1
