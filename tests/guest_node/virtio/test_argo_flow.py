"""Flow control of VirtIO-Argo: full rings delay, they never stop anything for good.

Source: docs/virtio-argo.md, flow control; Argo gives no reservation, so each sendv may answer -EAGAIN whatever went
before (Xen common/argo.c).  Every ring here is as small as can be, and the hypervisor refuses at random.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.virtio.frontend import DeviceBroken, Queue
from hmx.argo.abi import Op
from hmx.errno import Errno
from hmx.virtio.argo import Variant
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import Feature, feature_set
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import EchoModel, KeepingModel, World, answer_to, ask

PACKED = feature_set(Feature.RING_PACKED)
TINY = 512  # ring bytes: one control message, and not much more


async def one_task(queue: Queue, dice: random.Random, turns: int, most: int) -> None:
    """A task with one request under way at a time."""
    for _ in range(turns):
        data, room = dice.randbytes(dice.randrange(most)), 1 + dice.randrange(most)
        while True:
            try:
                future = queue.submit((data[:7], data[7:]) if len(data) > 7 else (data,) if data else (), room)
                break
            except QueueFull:
                await queue.kick()
                await queue.room()
        await queue.kick()
        assert await future == answer_to(data, room)[:room]


def storm(world: World, domids: tuple[int, ...], probability: float, *errnos: Errno) -> None:
    """The hypervisor refuses sendv at random."""

    def refuse(op: Op, detail: Any) -> int | None:
        if op is Op.SENDV and world.random.random() < probability:
            return -world.random.choice(errnos)
        return None

    for domid in domids:
        world.rig.guests[domid].refuse = refuse


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    variant=st.sampled_from(Variant),
    avoid=st.sampled_from((0, PACKED)),
    front=st.sampled_from((TINY, 1024, 4096)),
    back=st.sampled_from((TINY, 1024, 4096)),
    delayed=st.booleans(),
)
def test_tiny_rings_and_refusals_delay_and_lose_nothing(
    seed: int, variant: Variant, avoid: int, front: int, back: int, delayed: bool
) -> None:
    """Whatever the sizes, the schedule and the refusals: every request is answered, with its own answer."""

    async def main() -> None:
        world = World(seed)
        dice = world.random
        world.rig.suspend = dice.choice((0.0, 0.3))
        world.rig.late_virq = dice.choice((0.0, 0.3))

        async def delay() -> None:
            await asyncio.sleep(dice.choice((0, 0, 0.001, 0.02)))

        backend = await world.serve(lambda: EchoModel((8, 8), delay if delayed else None), ring_len=back)
        transport, (_, queues) = await world.device(
            variant=variant, avoid=avoid, ring_len=front, size=8, timeout=60.0
        )
        storm(world, (1, 2), 0.3, Errno.EAGAIN, Errno.EAGAIN, Errno.EBUSY, Errno.ENOMEM)
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                most = dice.choice((60, 3000))
                tasks.create_task(one_task(queues[number & 1], random.Random(seed + number), 6, most))
        assert not backend.faults and not world.trouble and not world.left
        assert transport.under_way == 0

    simulate(main)


def test_full_rings_both_ways_do_not_wait_for_each_other() -> None:
    """Both sides want to send much more than the other's ring holds, at once: each consumes although it cannot send."""

    async def main() -> None:
        world = World(3)
        await world.serve(lambda: EchoModel((64, 64)), ring_len=TINY)
        transport, (_, queues) = await world.device(ring_len=TINY, size=64)
        futures = []
        for index in range(40):
            data = bytes([index]) * 3000
            try:
                futures.append((queues[index & 1].submit((data,), 5000), data))
            except QueueFull:
                continue
        for queue in queues:
            await queue.kick()
        for future, data in futures:
            assert await future == answer_to(data, 5000)[:5000]
        assert len(futures) >= 2 and transport.bus.traffic.refused > 0  # type: ignore[attr-defined]

    simulate(main)


def test_a_queue_never_asks_for_more_than_its_ring_holds() -> None:
    """Credit: answers under way fit our ring, so that the back end's answers find room; a lone large one is cut."""

    async def main() -> None:
        world = World()
        backend = await world.serve(lambda: KeepingModel((64,)))
        _, (_, (queue,)) = await world.device(ring_len=65536, size=64)
        futures = []
        with pytest.raises(QueueFull):
            for _ in range(64):
                futures.append(queue.submit((), 4096))
        assert 8 <= len(futures) < 16
        await queue.kick()
        await asyncio.sleep(0.1)
        room = asyncio.create_task(queue.room())
        await asyncio.sleep(0.1)
        assert not room.done()
        sent = backend.traffic.sendv
        for request in list(world.models[0].kept):  # type: ignore[union-attr]
            request.complete(bytes(4096))
        await asyncio.gather(*futures)
        await room
        assert not backend.traffic.refused and backend.traffic.sendv - sent < len(futures)
        large = queue.submit((), 200_000)
        await queue.kick()
        await asyncio.sleep(0.1)
        world.models[0].kept[-1].complete(bytes(200_000))  # type: ignore[union-attr]
        assert await large == bytes(200_000)

    simulate(main)


def test_one_queue_does_not_take_the_credit_of_another() -> None:
    """A receiving queue is full of buffers all the time; the other queues have their own share."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((64, 64)))
        _, (_, (receiving, sending)) = await world.device(ring_len=16384, size=64)
        with pytest.raises(QueueFull):
            for _ in range(64):
                receiving.submit((), 1500)
        await receiving.kick()
        future = sending.submit((bytes(9000),), 1)
        await sending.kick()
        await asyncio.sleep(0.1)
        world.models[0].kept[-1].complete(b"k")  # type: ignore[union-attr]
        assert await future == b"k"

    simulate(main)


def test_the_window() -> None:
    """HELLO grants a window: no more bytes are under way in a queue, and no chain is larger."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((64,)))
        _, (_, (queue,)) = await world.device(window=10_000, size=64)
        with pytest.raises(ValueError, match="10000"):
            queue.submit((bytes(10_001),), 0)
        with pytest.raises(ValueError, match="10000"):
            queue.submit((), 10_001)
        first = queue.submit((bytes(6000),), 0)
        with pytest.raises(QueueFull):
            queue.submit((bytes(6000),), 0)
        second = queue.submit((bytes(4000),), 10_000)
        with pytest.raises(QueueFull):
            queue.submit((), 1)
        await queue.kick()
        await asyncio.sleep(0.1)
        for request in list(world.models[0].kept):  # type: ignore[union-attr]
            request.complete(bytes(request.writable))
        assert len(await first) == 0 and len(await second) == 10_000
        queue.submit((bytes(10_000),), 10_000)

    simulate(main)


def test_room_is_told_when_the_device_breaks() -> None:
    """Nobody waits for ever: who waits for room learns that none will come."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((4,)))
        transport, (_, (queue,)) = await world.device(size=4)
        with pytest.raises(QueueFull):
            for _ in range(5):
                queue.submit((b"x",), 1)
        room = asyncio.create_task(queue.room())
        await asyncio.sleep(0.1)
        await transport.reset()
        with pytest.raises(DeviceBroken):
            await room

    simulate(main)


def test_a_full_ring_of_the_back_end_makes_kick_wait() -> None:
    """Back-pressure: kick returns when the requests are out, and its cancellation takes none of them away."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((16,)))
        _, (_, (queue,)) = await world.device()
        stuck = True
        world.rig.guests[1].refuse = lambda op, detail: -Errno.EAGAIN if op is Op.SENDV and stuck else None
        future = queue.submit((b"a",), 1)
        kick = asyncio.create_task(queue.kick())
        await asyncio.sleep(2)
        assert not kick.done()
        kick.cancel()
        await asyncio.sleep(0.1)
        assert kick.cancelled() and not future.done()
        stuck = False
        assert await future == b"\x3b"
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), variant=st.sampled_from(Variant))
def test_tasks_may_be_cancelled_anywhere(seed: int, variant: Variant) -> None:
    """A hypercall runs to its end, and what it did not take is sent by somebody else."""

    async def main() -> None:
        world = World(seed)
        dice = world.random
        backend = await world.serve(lambda: EchoModel((8,)), ring_len=1024)
        transport, (_, (queue,)) = await world.device(variant=variant, ring_len=1024, size=8, timeout=60.0)
        world.rig.suspend = 0.5
        storm(world, (1, 2), 0.3, Errno.EAGAIN, Errno.EBUSY)
        for _ in range(10):
            task = asyncio.create_task(one_task(queue, random.Random(dice.random()), 3, 900))
            await asyncio.sleep(dice.choice((0, 0, 0.0001, 0.001, 0.01, 0.3)))
            task.cancel()
            await asyncio.wait([task])
        storm(world, (1, 2), 0.0, Errno.EAGAIN)
        while transport.under_way:
            await queue.kick()
            await asyncio.sleep(0.1)
        assert await ask(queue, b"a", 1) == b"\x3b"
        assert not backend.faults and not world.trouble

    simulate(main)


@pytest.mark.parametrize("variant", list(Variant))
def test_the_window_is_given_back(variant: Variant) -> None:
    """What was answered counts no more, at either end: any number of windows pass one after another."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((16,)))
        _, (_, (queue,)) = await world.device(variant=variant, window=10_000, ring_len=32768)
        for turn in range(30):
            futures = [queue.submit((bytes([turn]) * 3000,), 3000) for _ in range(3)]
            await queue.kick()
            for future in futures:
                assert await future == answer_to(bytes([turn]) * 3000, 3000)[:3000]
        assert not world.trouble

    simulate(main)
