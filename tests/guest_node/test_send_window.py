"""Many sends in flight: in order, exactly once, whoever else uses the vCPU (project send window, experimental)."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from guest_node.kernel.boot import Kernel
from guest_node.kernel.window import SendWindow
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import RingMemory
from hmx.argo.consumer import Consumer
from hmx.trap import Arch
from tests.guest_node import test_probe as probed
from tests.guest_node.test_kernel import SEEDS, World, simulate
from tests.guest_node.test_probe import ARM, X86

STAMP = struct.Struct("<Q")
SIZE = 32


async def _drain(kernel: Kernel, ring: RingMemory, count: int, rng: random.Random) -> list[int]:
    """Take `count` messages a few at a time, now and then asleep, with a notify after each pass."""
    consumer = Consumer(ring.window, ring.ring_len)
    got: list[int] = []
    while len(got) < count:
        for message in consumer.drain(rng.randint(1, 9)):
            assert message.payload[8:] == bytes([message.payload[0] % 4] * (SIZE - 8)), "another message's body"
            got.append(STAMP.unpack_from(message.payload)[0])
        await kernel.argo.notify([])
        await asyncio.sleep(rng.choice((0, 0, 0.001)))
    return got


def _compose(ram: memoryview, at: int, n: int) -> None:
    """The whole message, whatever lay in its place."""
    STAMP.pack_into(ram, at, n)
    ram[at + 8 : at + SIZE] = bytes([n % 4] * (SIZE - 8))


async def _room() -> None:
    await asyncio.sleep(0.0005)


async def _window(kernel: Kernel, to: int, depth: int) -> SendWindow:
    window = SendWindow(kernel.argo, Address(9, to), 5, SIZE, depth, 0xAB, _room)
    for index, place in enumerate(window.places()):
        place[8:] = bytes([index % 4] * (SIZE - 8))
    return window


@SEEDS
@pytest.mark.parametrize("depth", [1, 4, 16, 64])
def test_messages_arrive_in_order_and_once(seed: int, depth: int) -> None:
    """A ring of five messages and a slow receiver: EAGAIN and CANCELED frames are sent again, in order."""

    async def main(world: World) -> None:
        sender, receiver = await world.guest(1), await world.guest(2)
        ring = receiver.argo.allocate_ring(256)
        await receiver.argo.register_ring(ring, 9, DOMID_ANY)
        window = await _window(sender, 2, depth)
        drained = asyncio.ensure_future(_drain(receiver, ring, 150, random.Random(seed)))
        await window.send(0, 100, _compose)
        await window.send(100, 50, _compose)
        assert await drained == list(range(150))
        assert window.frames >= 150 and (depth == 1 or window.eagain)
        window.close()

    simulate(seed, main)


@SEEDS
def test_frames_of_others_in_between_change_nothing(seed: int) -> None:
    """A LINK looks at the frame before it, whosoever that is: a foreign success must not release what failed."""

    async def main(world: World) -> None:
        sender, receiver = await world.guest(1), await world.guest(2)
        ring, other = receiver.argo.allocate_ring(256), receiver.argo.allocate_ring(256)
        await receiver.argo.register_ring(ring, 9, DOMID_ANY)
        await receiver.argo.register_ring(other, 10, DOMID_ANY)
        window = await _window(sender, 2, 16)
        rng = random.Random(seed)

        async def disturb() -> None:
            while True:
                if rng.random() < 0.5:
                    await sender.argo.notify([])  # succeeds
                else:
                    await sender.argo.sendv(Address(77, 2), 5, [b"x"], 1)  # refused
                await asyncio.sleep(rng.choice((0, 0, 0.0003)))

        tasks = [asyncio.ensure_future(disturb()) for _ in range(3)]
        drained = asyncio.ensure_future(_drain(receiver, ring, 300, rng))
        await window.send(0, 300, STAMP.pack_into)
        assert await drained == list(range(300))
        for task in tasks:
            task.cancel()

    simulate(seed, main)


def test_a_refusal_is_raised_and_leaves_nothing_in_flight() -> None:
    """No such ring: ECONNREFUSED.  The window works again afterwards."""

    async def main(world: World) -> None:
        sender, receiver = await world.guest(1), await world.guest(2)
        window = await _window(sender, 2, 16)
        with pytest.raises(ConnectionRefusedError):
            await window.send(0, 40, STAMP.pack_into)
        assert not sender.vcpus[0].answers() and sender.vcpus[0].area.room() == 64
        ring = receiver.argo.allocate_ring(4032)
        await receiver.argo.register_ring(ring, 9, DOMID_ANY)
        await window.send(0, 40, STAMP.pack_into)
        assert len(Consumer(ring.window, ring.ring_len).drain()) == 40

    simulate(3, main)


def test_a_cancelled_send_leaves_nothing_in_flight() -> None:
    """A sender that is told to stop waits for the answers it is owed and no longer."""

    async def main(world: World) -> None:
        sender, receiver = await world.guest(1), await world.guest(2)
        ring = receiver.argo.allocate_ring(256)
        await receiver.argo.register_ring(ring, 9, DOMID_ANY)
        window = await _window(sender, 2, 16)
        task = asyncio.ensure_future(window.send(0, 1000, STAMP.pack_into))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not sender.vcpus[0].answers() and sender.vcpus[0].area.room() == 64

    simulate(4, main)


def test_a_window_has_as_many_places_as_a_vcpu_has_frames() -> None:
    """1 to 64."""

    async def main(world: World) -> None:
        kernel = await world.guest(1)
        for depth in (0, 65):
            with pytest.raises(ValueError, match="1 to 64"):
                SendWindow(kernel.argo, Address(9, 2), 5, SIZE, depth, 0, _room)

    simulate(0, main)


@pytest.mark.parametrize(
    ("arch", "cpu", "door"),
    [
        (X86, "intel", "msr"), (X86, "amd", "cpuid"), (X86, "intel", "pio"), (X86, "intel", "mmio"),
        (ARM, "armv8", "hvc"),
    ],
)  # fmt: skip
def test_a_window_works_through_every_kind_of_door(arch: Arch, cpu: str, door: str) -> None:
    """A frame names its MSR, leaf, port, address or immediate, and its privilege, in a window too (docs/doors.md)."""

    async def main() -> None:
        world = probed.World("xen", arch, cpu, (door,))
        sender, receiver = await world.guest(1), await world.guest(2)
        ring = receiver.argo.allocate_ring(4032)
        assert await receiver.argo.register_ring(ring, 9, DOMID_ANY) == 0
        window = await _window(sender, 2, 16)
        await window.send(0, 40, STAMP.pack_into)
        got = [STAMP.unpack_from(message.payload)[0] for message in Consumer(ring.window, ring.ring_len).drain()]
        assert got == list(range(40))

    probed.simulate(main())
